"""What the data steps spent and decided: every number on the page is one of the ledgers' or manifests'."""

from pathlib import Path
from typing import Any

import pytest

from sereno.model.accounts import describe_accounts
from sereno.model.page import Section, Table, Text, render_page
from sereno.model.results import Results, read_results
from sereno.pipeline.ledger import Entry, write_ledger
from sereno.pipeline.pairs import Lock
from sereno.pipeline.store import write_manifest, write_text

MOMENT = "2021-06-08T10:20:00Z"
LOST = "HTTP 404 <after> 1 attempt"


def write_lock(folder: Path) -> None:
    item = {"item": "I", "collection": "c", "sensor": "sentinel2-l2a", "time": MOMENT, "crs": "", "bbox": [0, 0, 1, 1], "assets": {}}
    scenes = {name: {"id": name, "sensor": "sentinel2-l2a", "time": MOMENT, "items": [item]} for name in ("s", "o", "c")}
    grid = {"crs": "EPSG:32632", "transform": [10, 0, 0, 0, -10, 0], "shape": [1, 1]}
    pair = {"id": "p", "sar": "s", "cloudy": "o", "clear": "c", "sar_gap_days": 0, "clear_gap_days": 1}
    lock = Lock.model_validate({"area": "west", "catalogue": "x", "grid": grid, "scenes": scenes, "pairs": [pair], "refused": []})
    write_text(folder / "query/west.json", lock.to_json())


def to_item(**facts: Any) -> dict[str, Any]:
    return {"item": "I", "offset": -1000, "offset_reason": "declared: -0.1", "offset_check": None, "share": 0.5} | facts


@pytest.fixture
def results(tmp_path: Path) -> Results:
    write_lock(tmp_path)
    searched = Entry("query", "west", "", "", "search", "used", "optical search: 7 items in 2 pages")
    write_ledger(tmp_path / "query/west.ledger.csv", [searched, Entry("query", "west", "", "TWIN", "", "duplicate", "of I")])
    used = [Entry("ingest", "west", "o", "I", band, "used", retries=2, bytes_read=500_000, seconds=0.5) for band in ("B02", "B03", "B04")]
    write_ledger(tmp_path / "ingest/west/o.ledger.csv", [*used, Entry("ingest", "west", "o", "I", "B08", "missing", LOST)])
    write_ledger(tmp_path / "ingest/west/gone.ledger.csv", [Entry("ingest", "west", "gone", "X", "B02", "used", bytes_read=10**12)])
    faulty = to_item(offset=0, offset_reason="baseline 03.01", offset_check={"verdict": "left in", "pixels": 5000})
    measured = to_item(offset_check={"verdict": "plausible", "pixels": 5000})
    half_told = to_item(offset_check={"verdict": "not left in", "pixels": 5000})
    unused = to_item(offset=None, share=0.0)
    scene = {"sensor": "sentinel2-l2a", "refused": None, "items": [to_item(), to_item(), faulty, measured, half_told, unused]}
    write_manifest(tmp_path / "ingest/west/o.json", kind="scene", summary=scene)
    refused = {"sensor": "sentinel1-rtc", "refused": "1.0% of the ground is valid", "items": [to_item(offset=0)]}
    write_manifest(tmp_path / "ingest/west/s.json", kind="scene", summary=refused)
    agreement = {
        "cloudy": {"both": 0.3, "only_first": 0.05, "only_second": 0.02, "neither": 0.63, "iou": 0.81},
        "clear": {"both": 0.0, "only_first": 0.0, "only_second": 0.0, "neither": 1.0, "iou": None},
    }
    unknown = {"unknown": {"cloudy": None, "clear": "no <classes>"}, "known_cloudy_share": 0.75, "known_clear_share": 0.0}
    truth = {"threshold": {"thick": 1.0, "thin": 0.4, "clear_as_cloud": 0.01, "shadow": None, "clear_as_shadow": 0.0}}
    masks = {"method": "scl", "second": "threshold", "agreement": agreement, "truth": truth, **unknown}
    write_manifest(tmp_path / "mask/west/p.json", kind="mask", summary=masks)
    return read_results(tmp_path, ())


def find_table(results: Results, heading: str) -> list[list[str]]:
    [table] = [block for block in describe_accounts(results) if isinstance(block, Table) and heading in block.head]
    return [[cell.words for cell in row] for row in table.rows]


def test_sums_are_those_of_the_ledgers_of_scenes_that_are_in_a_lock(results: Results) -> None:
    assert find_table(results, "tried again") == [
        ["query", "used", "0", "1", "0", "0 B", "0.0"],
        ["query", "duplicate", "1", "0", "0", "0 B", "0.0"],
        ["ingest", "used", "0", "3", "6", "1.5 MB", "1.5"],
        ["ingest", "missing", "0", "1", "0", "0 B", "0.0"],
    ]


def test_searches_are_told_in_their_own_words(results: Results) -> None:
    assert find_table(results, "what was searched") == [["west", "optical search: 7 items in 2 pages"]]


def test_losses_while_reading_are_listed_with_their_reason(results: Results) -> None:
    assert find_table(results, "status") == [["missing", "west", "o", "I", "B08", LOST]]
    page = render_page("t", [Section("ledger", "Ledger", describe_accounts(results))])
    assert "HTTP 404 &lt;after&gt; 1 attempt" in page


def test_offsets_are_counted_by_reason_and_check_for_optical_items_that_were_laid(results: Results) -> None:
    assert find_table(results, "dark pixels") == [
        ["-1000", "declared: -0.1", "not asked", "2"],
        ["-1000", "declared: -0.1", "not left in; without a visible band they cannot tell whether it was removed twice", "1"],
        ["-1000", "declared: -0.1", "plausible", "1"],
        ["0", "baseline 03.01", "left in", "1"],
    ]


def test_refused_scenes_are_named(results: Results) -> None:
    [row] = [row for row in find_all(results) if "1.0% of the ground is valid" in row]
    assert row == ["west", "s", "1.0% of the ground is valid"]


def find_all(results: Results) -> list[list[str]]:
    return [[cell.words for cell in row] for block in describe_accounts(results) if isinstance(block, Table) for row in block.rows]


def test_the_agreement_of_masks_is_shown_per_image(results: Results) -> None:
    assert find_table(results, "cloud in both") == [
        ["west", "p", "cloudy", "30.0 %", "5.0 %", "2.0 %", "63.0 %", "81.0 %"],
        ["west", "p", "clear", "0.0 %", "0.0 %", "0.0 %", "100.0 %", "\N{EN DASH}"],
    ]
    said = [block.words for block in describe_accounts(results) if isinstance(block, Text)]
    assert any(words.startswith("scl decides; threshold is compared with it and decides nothing.") for words in said)


def test_what_was_chosen_for_pairs_is_shown_with_its_reason_and_two_methods_that_decide_are_both_named(tmp_path: Path) -> None:
    write_lock(tmp_path)
    why, agreement = (
        "omnicloudmask is not installed",
        {"clear": dict.fromkeys(("both", "only_first", "only_second", "neither", "iou"), 0.5)},
    )
    for name, method, asked in (
        ("p", "haze", {"asked": "auto", "why": why}),
        ("q", "haze", {"asked": "auto", "why": why}),
        ("r", "scl", {}),
    ):
        summary = {"method": method, "second": "threshold", "unknown": {}, "agreement": agreement, **asked}
        write_manifest(tmp_path / f"mask/west/{name}.json", kind="mask", summary=summary)
    lock = Lock.read(tmp_path / "query/west.json")
    pairs = tuple(lock.pairs[0].model_copy(update={"id": name}) for name in ("p", "q", "r"))
    write_text(tmp_path / "query/west.json", lock.model_copy(update={"pairs": pairs}).to_json())
    results = read_results(tmp_path, ())
    assert find_table(results, "chosen because") == [["haze", why, "2"]]
    said = [block.words for block in describe_accounts(results) if isinstance(block, Text)]
    assert any(words.startswith("haze or scl decides; threshold is compared with it") for words in said)


def test_what_methods_find_of_simulated_clouds_is_shown(results: Results) -> None:
    assert find_table(results, "thick cloud found") == [
        ["west", "p", "threshold", "100.0 %", "40.0 %", "1.0 %", "\N{EN DASH}", "0.0 %"],
    ]


def test_images_whose_clouds_are_not_known_everywhere_are_named(results: Results) -> None:
    assert find_table(results, "clouds known") == [
        ["west", "p", "cloudy", "75.0 %", "classes of a part are lost"],
        ["west", "p", "clear", "0.0 %", "no <classes>"],
    ]


def test_what_has_not_run_is_said_with_the_step_that_makes_it(tmp_path: Path) -> None:
    said = [block.words for block in describe_accounts(read_results(tmp_path, ())) if isinstance(block, Text)]
    assert said[0] == "There is no ledger: run `sereno query` and `sereno ingest`."
    assert not any("None in" in words for words in said)
