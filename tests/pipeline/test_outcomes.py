"""What a run lost is counted in one line and named with its reason, and nothing is said where nothing was."""

from pathlib import Path
from typing import Any

from sereno.pipeline.acquisitions import Cause
from sereno.pipeline.config import load_settings
from sereno.pipeline.outcomes import CAUSE_WORDS, describe_outcome, describe_refusals, list_outcome, read_outcome
from sereno.pipeline.pairs import Lock
from sereno.pipeline.store import write_json


def make_lock(*refused: tuple[str, str | None], area: str = "west") -> Lock:
    """A lock of two pairs that refuses items for causes."""
    seen = {"sensor": "gaofen3", "time": "2021-06-01T00:00:00Z"}
    item = seen | {"item": "I", "collection": "c", "crs": "", "bbox": [0, 0, 1, 1], "assets": {}}
    pair = {"sar": "s", "cloudy": "s", "clear": "s", "sar_gap_days": 0, "clear_gap_days": 0, "sky": 1}
    values = {
        "area": area,
        "catalogue": "x",
        "grid": {"crs": "EPSG:32632", "transform": [10, 0, 0, 0, -10, 0], "shape": [1, 1]},
        "scenes": {"s": {"id": "s", "items": [item], **seen}},
        "pairs": [pair | {"id": name} for name in ("p1", "p2")],
        "refused": [{"item": name, "role": "sar", "reason": f"{name} is odd", "cause": cause} for name, cause in refused],
    }
    return load_settings(Lock, values, where="test")


def write_run(folder: Path, lock: Lock, **summaries: dict[str, Any]) -> None:
    """A results folder with that lock and manifests of `scene` and pairs; a name is that of the file."""
    write_json(folder / f"query/{lock.area}.json", lock.model_dump(mode="json"))
    for name, summary in summaries.items():
        kind, step = ("scene", "ingest") if name == "s" else ("pair", "align")
        manifest = {"format": "sereno-store/1", "kind": kind, "store": "", "files": {}, "summary": summary}
        write_json(folder / f"{step}/{lock.area}/{name}.json", manifest)


def test_every_loss_is_counted_in_one_line_and_named_with_its_reason(tmp_path: Path) -> None:
    lock = make_lock(("half", "item"), ("renamed", "item"), ("late", "sar_gap"))
    write_run(tmp_path, lock, s={"warnings": ["no height on 48 %"]}, p1={"refused": "SAR: only 3 windows"}, p2={"refused": None})
    outcome = read_outcome(tmp_path)
    expected = f"2 products refused, 1 scene with warnings, 1 of 2 pairs given up: `sereno ledger {tmp_path}` gives the reasons"
    assert describe_outcome(outcome, tmp_path) == [expected]
    assert list_outcome(outcome) == [
        "warning: west s: no height on 48 %",
        "given up: west p1: SAR: only 3 windows",
    ]


def test_choices_of_the_settings_are_no_losses_and_what_has_not_run_is_none(tmp_path: Path) -> None:
    write_run(tmp_path, make_lock(("late", "sar_gap"), ("old", None)), p2={"refused": None})
    outcome = read_outcome(tmp_path)
    assert outcome.n_pairs == 1
    assert describe_outcome(outcome, tmp_path) == list_outcome(outcome) == []
    assert describe_outcome(read_outcome(tmp_path / "empty"), tmp_path) == []


def test_a_pair_that_no_lock_names_any_more_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, make_lock(), p1={"refused": None}, p3={"refused": "x"})
    assert read_outcome(tmp_path).given_up == []


def test_refusals_are_summed_by_cause_over_all_areas() -> None:
    locks = [make_lock(("half", "item"), ("late", "sar_gap"), ("old", None)), make_lock(("half", "item"), ("half", "item"), area="east")]
    (line,) = describe_refusals(locks)
    assert line.startswith("refused in the search: 2 cannot be used, 1 have no SAR near in time, 1 are refused for other reasons; ")
    assert describe_refusals([make_lock()]) == []


def test_every_cause_has_its_words() -> None:
    assert set(CAUSE_WORDS) == {cause.name.lower() for cause in Cause} | {None}
