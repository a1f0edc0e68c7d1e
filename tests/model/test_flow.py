"""What the Snakefile asks of the config."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sereno.model.flow import Flow, hold_folder
from sereno.pipeline.errors import ConfigError, MissingError, StoreError

VALUES = {
    "pipeline": {"query": {"areas": {"a": {"bbox": [1, 2, 3, 4]}, "b": {"bbox": [5, 6, 7, 8]}}}},
    "model": {"runs": {"full": {}, "optical-only": {"network": {"use_sar": False}}}},
}


def test_each_query_job_sees_only_its_own_area() -> None:
    flow = Flow(VALUES, results="r")
    assert flow.areas == ("a", "b")
    assert list(json.loads(flow.settings("query", area="b"))["areas"]) == ["b"]


def test_each_run_has_the_training_settings_with_its_own_differences() -> None:
    flow = Flow(VALUES, results="r")
    full, optical = (json.loads(flow.settings("train", run=run)) for run in flow.runs)
    assert full.pop("network") == optical.pop("network") | {"use_sar": True}
    assert full == optical


def test_a_training_setting_is_in_no_data_job() -> None:
    changed = {**VALUES, "model": {**VALUES["model"], "train": {"lr": 0.5}}}
    before, after = Flow(VALUES, results="r"), Flow(changed, results="r")
    for step in ("ingest", "align", "mask", "patch", "pack", "evaluate", "predict", "report"):
        assert before.settings(step) == after.settings(step)
    assert before.settings("train", run="full") != after.settings("train", run="full")


def test_asking_for_more_scenes_clears_none_of_them_again() -> None:
    few, many, other = (
        Flow({**VALUES, "model": {"predict": changed}}, results="r").settings("predict")
        for changed in ({"pairs_per_area": 1}, {"pairs_per_area": None}, {"tile_px": 128})
    )
    assert few == many != other


class Checkpoints:
    """What Snakemake gives the input functions, for locks that are there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.query_area, self.packed = folder, self, 0

    @property
    def pack_patches(self) -> "Checkpoints":
        self.packed += 1
        return self

    def get(self, area: str = "") -> SimpleNamespace:
        return SimpleNamespace(output=SimpleNamespace(lock=str(self.folder / f"query/{area}.json")))


def write_lock(folder: Path, area: str, **changes: object) -> None:
    grid = {"crs": "EPSG:32632", "transform": [10, 0, 0, 0, -10, 0], "shape": [1, 1]}
    item = {"item": "I", "collection": "c", "sensor": "sentinel1-rtc", "time": "2021-06-01T00:00:00Z", "crs": "", "bbox": [0, 0, 1, 1]}
    scene = {"id": "s", "sensor": "sentinel1-rtc", "time": "2021-06-01T00:00:00Z", "items": [item | {"assets": {}}]}
    pair = {"id": "p", "sar": "s", "cloudy": "s", "clear": "s", "sar_gap_days": 0, "clear_gap_days": 0, "sky": 1}
    lock = {"area": area, "catalogue": "x", "grid": grid, "scenes": {"s": scene}, "pairs": [pair], "refused": []}
    folder.joinpath("query").mkdir(parents=True, exist_ok=True)
    folder.joinpath(f"query/{area}.json").write_text(json.dumps(lock | changes))


def test_a_job_depends_on_its_own_record_and_on_the_ground_of_its_area(tmp_path: Path) -> None:
    flow, checkpoints = Flow(VALUES, results=str(tmp_path)), Checkpoints(tmp_path)

    def read(**changes: object) -> tuple[str, str]:
        write_lock(tmp_path, "a", **changes)
        return flow.scene_record(checkpoints, "a", "s"), flow.pair_record(checkpoints, "a", "p")

    before = read()
    assert read(searched="2026-01-01T00:00:00Z", refused=[{"item": "x", "role": "sar", "reason": "r"}]) == before
    outlined = read(outline={"type": "Polygon", "coordinates": []})
    assert outlined[0] != before[0]
    assert outlined[1] != before[1]
    elsewhere = read(catalogue="y")
    assert (elsewhere[0] != before[0], elsewhere[1]) == (True, before[1])


def test_every_lock_and_every_scene_has_a_ledger(tmp_path: Path) -> None:
    flow = Flow(VALUES, results=str(tmp_path))
    for area in flow.areas:
        write_lock(tmp_path, area)
    names = ("query/a.ledger.csv", "query/b.ledger.csv", "ingest/a/s.ledger.csv", "ingest/b/s.ledger.csv")
    assert flow.all_ledgers(Checkpoints(tmp_path)) == [f"{tmp_path}/{name}" for name in names]


def test_only_scenes_that_are_placed_by_heights_wait_for_elevation_models(tmp_path: Path) -> None:
    checkpoints, query = Checkpoints(tmp_path), {**VALUES["pipeline"]["query"], "dem_catalogue": "earth-search"}
    flow = Flow({"pipeline": {"query": query, "dem": {"margin_m": 300}}}, results=str(tmp_path))
    facts = {"sensor": "dem", "time": "2021-04-22T00:00:00Z"}
    item = facts | {"item": "d", "collection": "c", "crs": "", "bbox": [0, 0, 1, 1], "assets": {}}
    for area, sensor in (("a", "gaofen3"), ("b", "sentinel1-rtc")):
        seen = {"sensor": sensor, "time": "2021-06-01T00:00:00Z"}
        image = {**item, **seen, "item": "I"}
        write_lock(tmp_path, area, dem={"id": "dem", "items": [item], **facts}, scenes={"s": {"id": "s", "items": [image], **seen}})
    assert flow.dem_margin == ["--dem-margin", "300.0"]
    assert flow.dem_image(checkpoints, "a", "s") == [f"{tmp_path}/dem/a.json"]
    assert flow.dem_option(checkpoints, "a", "s") == ["--dem", f"{tmp_path}/dem/a.tif"]
    assert flow.dem_image(checkpoints, "b", "s") == flow.dem_option(checkpoints, "b", "s") == []
    assert flow.all_dems(checkpoints) == [f"{tmp_path}/dem/{area}.json" for area in "ab"]
    assert flow.all_ledgers(checkpoints)[-1] == f"{tmp_path}/dem/a.ledger.csv"
    assert '"item":"d"' in flow.dem_record(checkpoints, "a")


def test_frozen_locks_bring_their_elevation_models_unless_a_file_is_named(tmp_path: Path) -> None:
    facts = {"sensor": "dem", "time": "2021-04-22T00:00:00Z"}
    item = facts | {"item": "d", "collection": "c", "crs": "", "bbox": [0, 0, 1, 1], "assets": {}}
    write_lock(tmp_path, "west", dem={"id": "dem", "items": [item], **facts})
    query = {"source": "lock", "catalogue": str(tmp_path / "query")}
    flow = Flow({"pipeline": {"query": query}}, results=str(tmp_path / "r"))
    (tmp_path / "dem.tif").touch()
    named = Flow({"pipeline": {"query": query, "ingest": {"dem": str(tmp_path / "dem.tif")}}}, results=str(tmp_path / "r"))
    write_lock(tmp_path / "r", "west", dem={"id": "dem", "items": [item], **facts})
    checkpoints = Checkpoints(tmp_path / "r")
    assert (len(flow.all_dems(checkpoints)), flow.dem_margin) == (1, [])
    assert named.all_dems(checkpoints) == []


def test_the_first_pairs_that_were_not_given_up_are_cleared_once_all_are_aligned(tmp_path: Path) -> None:
    flow, checkpoints = Flow(VALUES, results=str(tmp_path)), Checkpoints(tmp_path)
    pair = {"sar": "s", "cloudy": "s", "clear": "s", "sar_gap_days": 0, "clear_gap_days": 0, "sky": 1}
    for area, refusals in (("a", ["SAR: only 3 windows", None, None]), ("b", ["the clear scene: ...", "the clear scene: ..."])):
        write_lock(tmp_path, area, pairs=[pair | {"id": f"p{number}"} for number in range(len(refusals))])
        (tmp_path / "align" / area).mkdir(parents=True)
        for number, why in enumerate(refusals):
            (tmp_path / f"align/{area}/p{number}.json").write_text(json.dumps({"summary": {"refused": why}}))
    assert flow.all_predictions(checkpoints) == [f"{tmp_path}/predict/{run}/a/p1.tif" for run in ("full", "optical-only")]
    assert checkpoints.packed == 1
    every = Flow({**VALUES, "model": {"predict": {"pairs_per_area": None}}}, results=str(tmp_path))
    assert [Path(path).stem for path in every.all_predictions(checkpoints)] == ["p1", "p2"]
    none, waited = Flow({**VALUES, "model": {"predict": {"pairs_per_area": 0}}}, results=str(tmp_path)), checkpoints.packed
    assert (none.all_predictions(checkpoints), checkpoints.packed) == ([], waited), "no scene is asked for, so nothing is waited for"


def test_a_damaged_pair_is_left_to_the_job_that_names_it(tmp_path: Path) -> None:
    for area, text in (("a", "{"), ("b", "[]")):
        write_lock(tmp_path, area)
        (tmp_path / "align" / area).mkdir(parents=True)
        (tmp_path / f"align/{area}/p.json").write_text(text)
    flow = Flow({**VALUES, "model": {"runs": {"only": {}}}}, results=str(tmp_path))
    assert flow.all_predictions(Checkpoints(tmp_path)) == [f"{tmp_path}/predict/only/{area}/p.tif" for area in "ab"]


def with_query(results: str = "r", **query: object) -> Flow:
    return Flow({"pipeline": {"query": query}}, results=results)


def test_frozen_locks_name_the_areas_and_are_what_their_jobs_depend_on(tmp_path: Path) -> None:
    for area in ("west", "east"):
        write_lock(tmp_path, area)
    flow = with_query(source="lock", catalogue=str(tmp_path / "query"))
    assert flow.areas == ("east", "west")
    assert flow.frozen_lock("west") == [str(tmp_path / "query/west.json")]
    assert Flow(VALUES, results="r").frozen_lock("a") == []


def test_a_folder_without_locks_and_one_that_would_be_written_over_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no lock \(AREA\.json\) in folder .*empty"):
        _ = with_query(source="lock", catalogue=str(tmp_path / "empty")).areas
    write_lock(tmp_path, "west")
    with pytest.raises(ConfigError, match="where the flow writes its own locks"):
        _ = with_query(str(tmp_path), source="lock", catalogue=str(tmp_path / "query")).areas


def test_the_files_of_an_area_a_table_and_heights_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ground.geojson").touch()
    (tmp_path / "pairs.csv").touch()
    query: dict[str, Any] = {"areas": {"a": {"file": "ground.geojson"}, "b": {"bbox": [1, 2, 3, 4]}}}
    flow = Flow({"pipeline": {"query": query, "ingest": {"dem": "r/dem.tif"}}}, results="r")
    assert (flow.query_files("a"), flow.query_files("b"), flow.dem_files) == (["ground.geojson"], [], ["r/dem.tif"])
    paired = Flow({"pipeline": {"query": query | {"source": "gaofen", "table": "pairs.csv"}}}, results="r")
    assert (paired.query_files("a"), paired.query_files("b")) == (["ground.geojson", "pairs.csv"], ["pairs.csv"])
    remote = {"query": query, "ingest": {"dem": "/vsicurl/https://x/dem.tif"}}
    assert Flow({"pipeline": remote}, results="r").dem_files == []


@pytest.mark.parametrize("key", ["query.areas.a.file", "query.table", "ingest.dem", "ingest.geoid", "pack.split.file"])
def test_a_file_that_is_named_and_not_there_is_refused_by_the_key_that_names_it(key: str) -> None:
    values: dict[str, Any] = {"query": {"source": "gaofen", "areas": {"a": {} if "areas" in key else {"bbox": [1, 2, 3, 4]}}}}
    *path, last = key.split(".")
    place = values
    for part in path:
        place = place.setdefault(part, {})
    place |= {last: "lost/file"} | ({"method": "list"} if "split" in key else {})
    with pytest.raises(MissingError, match=rf"pipeline\.{key}: there is no file lost/file: correct its path"):
        Flow({"pipeline": values}, results="r")


def test_how_a_step_runs_is_in_no_job_and_what_it_writes_is() -> None:
    query = VALUES["pipeline"]["query"]
    usual, other, bands = (
        Flow({"pipeline": {"query": query | {"max_requests": requests}, "ingest": ingest}}, results="r")
        for requests, ingest in (
            (2000, {}),
            (5, {"readers": 9, "attempts": 9, "scheduler": "tcp://here:8786"}),
            (5, {"readers": 9, "bands": ["B02"]}),
        )
    )
    assert usual.settings("query", area="a") == other.settings("query", area="a")
    assert usual.settings("ingest") == other.settings("ingest") != bands.settings("ingest")


@pytest.mark.parametrize(
    ("scheduler", "hint"), [("thread", "did you mean 'threads'"), ("Threads", "did you mean 'threads'"), ("here:8786", "tcp://")]
)
def test_a_scheduler_is_threads_or_an_address(scheduler: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"pipeline.ingest.scheduler: seen '{scheduler}'.*{hint}"):
        Flow({"pipeline": {**VALUES["pipeline"], "ingest": {"scheduler": scheduler}}}, results="r")


def test_a_fault_in_a_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'network.usesar', did you mean 'use_sar'\?"):
        Flow({**VALUES, "model": {"runs": {"x": {"network": {"usesar": False}}}}}, results="r")


def with_runs(**runs: object) -> Flow:
    return Flow({**VALUES, "model": {"runs": runs}}, results="r")


def test_several_processes_are_started_by_torchrun_and_one_by_itself() -> None:
    flow = with_runs(one={}, two={"processes": 2})
    assert (flow.launch("one"), flow.processes("one")) == ("sereno", 1)
    assert (flow.launch("two"), flow.processes("two")) == ("torchrun --standalone --nproc-per-node 2 -m sereno.model", 2)


@pytest.mark.parametrize("start", ["r/train/first/checkpoint.safetensors", "./r/train/../train/first/checkpoint.safetensors"])
def test_a_run_that_starts_from_another_names_its_checkpoint_as_that_one_writes_it(start: str) -> None:
    flow = with_runs(first={}, second={"start_from": start})
    assert flow.start_files("first") == []
    assert flow.start_files("second") == ["r/train/first/checkpoint.safetensors"]
    absolute = with_runs(first={}, second={"start_from": str(Path(start).absolute())})
    assert absolute.start_files("second") == flow.start_files("second")
    elsewhere = with_runs(only={"start_from": "/other/r/train/x/checkpoint.safetensors"})
    assert elsewhere.start_files("only") == ["/other/r/train/x/checkpoint.safetensors"]


@pytest.mark.parametrize(("start", "known"), [("itself", "first"), ("frist", "first")])
def test_a_run_that_starts_from_itself_or_from_none_is_refused(start: str, known: str) -> None:
    with pytest.raises(
        ConfigError, match=f"model.runs.itself: 'start_from' is .* no other run bears the name '{start}'; others are: {known}"
    ):
        with_runs(first={}, itself={"start_from": f"r/train/{start}/checkpoint.safetensors"})


def test_the_file_of_a_custom_network_is_known_and_ours_have_none() -> None:
    flow = with_runs(ours={}, theirs={"network": {"name": "custom", "source": "lib/peer.py:make"}})
    assert (flow.network_files("ours"), flow.network_files("theirs")) == ([], ["lib/peer.py"])


def test_only_one_flow_works_in_a_folder(tmp_path: Path) -> None:
    first = hold_folder(tmp_path)
    with pytest.raises(StoreError, match=r"is already at work in"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"folder .*file/results, for results, cannot be written: Not a directory"):
        hold_folder(tmp_path / "file/results")


def test_groups_of_another_task_take_the_place_of_pairs(tmp_path: Path) -> None:
    model = {"train": {"network": {"name": "sfiin"}}}
    values = {"pipeline": {**VALUES["pipeline"], "task": "pansharpening"}, "model": model}
    flow, checkpoints = Flow(values, results=str(tmp_path)), Checkpoints(tmp_path)
    for area in flow.areas:
        write_lock(tmp_path, area, pairs=[], task="pansharpening", groups=[{"id": "g", "scenes": {"pan": "s-pan", "ms": "s-ms"}}])
    assert (flow.task, Flow(VALUES, results="r").task) == (["--task", "pansharpening"], [])
    assert flow.all_pairs(checkpoints, "mask") == [f"{tmp_path}/mask/{area}/g.json" for area in flow.areas]
    assert flow.pair_scenes(checkpoints, "a", "g") == [f"{tmp_path}/ingest/a/{name}.json" for name in ("s-ms", "s-pan")]
    assert '"s-pan"' in flow.pair_record(checkpoints, "a", "g")


def test_a_pair_in_a_series_is_aligned_from_five_scenes_in_their_order(tmp_path: Path) -> None:
    flow, checkpoints = Flow(VALUES, results=str(tmp_path)), Checkpoints(tmp_path)
    pair = {"id": "p", "sar": "s", "cloudy": "c", "clear": "t", "sar_gap_days": 0, "clear_gap_days": 5}
    around = {"before": "b", "after": "a", "before_gap_days": -5, "after_gap_days": 15}
    write_lock(tmp_path, "a", pairs=[pair | around])
    assert flow.pair_scenes(checkpoints, "a", "p") == [f"{tmp_path}/ingest/a/{name}.json" for name in ("s", "c", "t", "b", "a")]
    assert '"before":"b"' in flow.pair_record(checkpoints, "a", "p")


def test_settings_of_a_search_without_series_are_what_they_were() -> None:
    assert "series" not in Flow(VALUES, results="r").settings("query", area="a")


def with_snapshots(tmp_path: Path, **predict: object) -> Flow:
    query = {"source": "cubes", "catalogue": str(tmp_path / "cubes")}
    train = {"network": {"name": "s2snapshot"}, "aperture": {"file": str(tmp_path / "mask.npy")}}
    model = {"train": train, "runs": {"r": {}, "other": {"aperture": {"file": None}}}, "predict": predict}
    return Flow({"pipeline": {"task": "snapshot-reconstruction", "query": query}, "model": model}, results="r")


def test_real_pictures_become_cubes_of_their_names_and_a_run_waits_for_its_aperture(tmp_path: Path) -> None:
    for name in ("cubes/a.npy", "seen/p1.mat", "seen/p-2.png", "seen/notes.txt", "mask.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    flow = with_snapshots(tmp_path, measurements=str(tmp_path / "seen"))
    assert flow.all_cubes == [f"r/predict/{run}/{name}.tif" for run in ("r", "other") for name in ("p-2", "p1")]
    assert flow.measurement_file("p1") == str(tmp_path / "seen/p1.mat")
    assert (flow.aperture_files("r"), flow.aperture_files("other")) == ([str(tmp_path / "mask.npy")], [])
    assert "measurements" not in flow.settings("predict")
    assert with_snapshots(tmp_path).all_cubes == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"folder .*seen of measurements does not exist: set model\.predict\.measurements"),
        (["seen/a.txt"], r"holds no measurement \(.*\.png\): correct model\.predict\.measurements"),
        (["seen/a.npy", "seen/a.mat"], r"its stem becomes the name of a cube, but a\.mat has the same stem: rename it"),
        (["seen/a b.npy"], "a name has letters, digits"),
    ],
)
def test_a_folder_of_pictures_that_cannot_be_used_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for name in ("cubes/a.npy", "mask.npy", *names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises((MissingError, ConfigError), match=words):
        with_snapshots(tmp_path, measurements=str(tmp_path / "seen"))


def test_an_aperture_that_is_not_there_and_pictures_for_another_task_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cubes").mkdir()
    (tmp_path / "cubes/a.npy").touch()
    with pytest.raises(MissingError, match=r"model\.runs\.r \(train\.aperture\.file\): there is no file .*mask\.npy"):
        with_snapshots(tmp_path)
    with pytest.raises(ConfigError, match=r"'model\.predict\.measurements' are pictures for the task snapshot-reconstruction, not 'cloud-"):
        Flow({**VALUES, "model": {"predict": {"measurements": "x"}}}, results="r")
