"""The command line of the data verbs that only look: what is printed, and the exit code."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sereno.pipeline.__main__ import app, override_settings, try_again
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError, PermanentError, SerenoError
from sereno.pipeline.ledger import Entry, write_ledger
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, Pair, Refusal, SceneRecord
from sereno.pipeline.store import write_manifest

MOMENT = "2021-06-03T10:20:00Z"


def make_lock(area: str = "west", baseline: str = "05.09") -> Lock:
    def make_scene(name: str, bands: tuple[str, ...], sensor: str) -> SceneRecord:
        facts = {"sensor": sensor, "time": MOMENT}
        assets = {band: AssetRecord(href=f"{name}/{band}.tif", size_bytes=1_000_000) for band in bands}
        item = ItemRecord.model_validate(
            facts
            | {"item": name, "collection": "c", "crs": "EPSG:32632", "bbox": (8.9, 45.4, 9.3, 45.8)}
            | {"assets": assets, "processing_baseline": baseline}
        )
        return SceneRecord.model_validate(facts | {"id": name, "items": (item,)})

    scenes = {"s": make_scene("s", ("VV", "VH"), "sentinel1-rtc")}
    scenes |= {name: make_scene(name, ("B03", "B04", "B08", "SCL"), "sentinel2-l2a") for name in ("o", "c")}
    grid = GridRecord(crs="EPSG:32632", transform=(10, 0, 498_400, 0, -10, 5_056_800), shape=(1680, 1680))
    pair = Pair(id="p", sar="s", cloudy="o", clear="c", sar_gap_days=0, clear_gap_days=5)
    return Lock(area=area, catalogue="here", grid=grid, scenes=scenes, pairs=(pair,), refused=())


def write_lock(path: Path, lock: Lock) -> str:
    path.write_text(lock.to_json())
    return str(path)


def run(*words: str) -> Result:
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, SerenoError):  # which only the program itself turns into one line
        raise result.exception
    return result


def test_a_plan_is_a_row_per_area_and_a_sum(tmp_path: Path) -> None:
    locks = [write_lock(tmp_path / f"{area}.json", make_lock(area)) for area in ("west", "east")]
    result = run("plan", *locks, "--settings", json.dumps({"patch": {"size_px": 128, "block_patches": 4}}))
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line}
    assert rows["west"][1:4] == ["3", "3", "10"]
    assert rows["west"][-3] == "144", "patches"
    assert rows["total"][-3] == "288"


def test_a_plan_takes_the_settings_of_a_config_file(tmp_path: Path) -> None:
    lock, config = write_lock(tmp_path / "west.json", make_lock()), tmp_path / "config.yaml"
    config.write_text("pipeline:\n  query: {areas: {west: {bbox: [1, 2, 3, 4]}}}\n  patch: {size_px: 128, block_patches: 4}\n")
    same = run("plan", lock, "--settings", json.dumps({"patch": {"size_px": 128, "block_patches": 4}}))
    assert run("plan", lock, "--config", str(config)).output == same.output
    config.write_text("pipeline: {patch: {size_pxl: 128}}")
    with pytest.raises(ConfigError, match=r"config\.yaml, section 'pipeline': .*did you mean 'size_px'"):
        run("plan", lock, "--config", str(config))
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        run("plan", lock, "--config", str(tmp_path / "none.yaml"))


def test_a_plan_is_not_asked_in_two_ways_nor_from_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    lock, config = write_lock(tmp_path / "west.json", make_lock()), tmp_path / "config.yaml"
    config.write_text("pipeline: [")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read: while parsing") as caught:
        run("plan", lock, "--config", str(config))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"--settings and --config .*: give one of them"):
        run("plan", lock, "--config", str(config), "--settings", '{"patch": {"size_px": 128}}')


def test_the_exit_code_says_whether_locks_differ(tmp_path: Path) -> None:
    old, new = write_lock(tmp_path / "old.json", make_lock()), write_lock(tmp_path / "new.json", make_lock(baseline="05.10"))
    same, other = run("diff", old, old), run("diff", old, new)
    assert (same.exit_code, same.output) == (0, "no difference\n")
    assert other.exit_code == 1
    assert "~ scene o, item o, processing_baseline: 05.09 -> 05.10\n" in other.output
    assert other.output.endswith("3 x scene changed\n")


def test_a_ledger_is_summed_and_what_was_not_used_is_listed(tmp_path: Path) -> None:
    lost = "HTTP 404 after 1 attempt"
    write_ledger(tmp_path / "query/west.ledger.csv", [Entry("query", "west", "", "TWIN", "", "duplicate", "another processing of S2A")])
    write_ledger(
        tmp_path / "ingest/west/o.ledger.csv",
        [
            Entry("ingest", "west", "o", "S2A", "B04", "used", bytes_read=1_500_000, seconds=0.5, retries=2),
            Entry("ingest", "west", "o", "S2A", "B08", "missing", lost),
        ],
    )
    result = run("ledger", str(tmp_path))
    assert result.exit_code == 0
    assert result.output.splitlines()[:-1] == [
        "step    status     items  assets  retries    read  seconds",
        "query   duplicate      1       0        0     0 B      0.0",
        "ingest  used           0       1        2  1.5 MB      0.5",
        "ingest  missing        0       1        0     0 B      0.0",
        "",
        "duplicate: west TWIN: another processing of S2A",
        f"missing: west o S2A B08: {lost}",
    ]


def test_refused_products_and_pairs_given_up_are_told_by_plan_and_ledger(tmp_path: Path) -> None:
    lost = Refusal(item="half.tar.gz", role="sar", reason="archive is cut off", cause="item")
    (tmp_path / "query").mkdir()
    lock = write_lock(tmp_path / "query/west.json", make_lock().model_copy(update={"refused": (lost,)}))
    write_ledger(tmp_path / "query/west.ledger.csv", [Entry("query", "west", "", lost.item, "", "refused", lost.reason)])
    write_manifest(tmp_path / "align/west/p.json", kind="pair", summary={"refused": "SAR: only 3 windows"})
    assert run("plan", lock).output.splitlines()[-1] == "refused in the search: 1 cannot be used; the locks name each with its reason"
    told = run("ledger", str(tmp_path)).output.splitlines()[-3:]
    assert told[:2] == ["refused: west half.tar.gz: archive is cut off", "given up: west p: SAR: only 3 windows"]
    assert told[2].startswith("1 product refused, 1 of 1 pair given up: `sereno ledger ")


def test_a_folder_without_a_ledger_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no ledger in"):
        run("ledger", str(tmp_path))
    (tmp_path / "query").mkdir()
    (tmp_path / "query/west.ledger.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"west\.ledger\.csv"):
        run("ledger", str(tmp_path))


@pytest.mark.parametrize(
    ("fault", "runs", "pauses"),
    [
        (ConfigError("x"), 1, []),
        (MissingError("x"), 1, []),
        (DataError("x"), 1, []),
        (PermanentError("x"), 1, []),
        (CatalogueError("x"), 3, [10, 30]),
    ],
)
def test_only_what_a_server_may_give_later_is_tried_again_with_growing_pauses(fault: SerenoError, runs: int, pauses: list[float]) -> None:
    done: list[int] = []
    waited: list[float] = []

    def work() -> None:
        done.append(1)
        raise fault

    with pytest.raises(type(fault)):
        try_again(work, 3, waited.append)
    assert (len(done), waited) == (runs, pauses)


def test_what_works_at_the_second_try_is_done_once() -> None:
    answers = [CatalogueError("x"), None, None]

    def work() -> None:
        if fault := answers.pop(0):
            raise fault

    try_again(work, 3, lambda _: None)
    assert len(answers) == 1


def test_options_stand_instead_of_settings_and_are_checked() -> None:
    settings = IngestSettings(readers=2, bands=("B02",))
    assert override_settings(settings, readers=7, scheduler=None) == IngestSettings(readers=7, bands=("B02",))
    with pytest.raises(ConfigError, match=r"--readers: 'readers': Input should be greater than or equal to 1"):
        override_settings(settings, readers=0)


def test_the_ledger_ends_with_how_to_read_again_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "ingest/west/s.ledger.csv"
    path.parent.mkdir(parents=True)
    write_ledger(
        path, [Entry("ingest", "west", "s", "i", "B02", "missing", "HTTP 404"), Entry("ingest", "west", "s", "i", "", "missing", "x")]
    )
    last = run("ledger", str(tmp_path)).output.splitlines()[-1]
    assert last.startswith("1 asset of 1 scene could not be read whole and 1 scene gave no usable ground: `sereno ledger")
    assert f"delete {tmp_path}/ingest/AREA/SCENE.json" in last
    write_ledger(path, [Entry("ingest", "west", "s", "i", "B02", "used"), Entry("ingest", "west", "s", "i", "", "used")])
    assert "SCENE.json" not in run("ledger", str(tmp_path)).output
