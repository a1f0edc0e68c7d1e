"""The lock: what is written is what is read, and faults are named."""

from pathlib import Path

import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import ConfigError, MissingError
from sereno.pipeline.pairs import AssetRecord, GridRecord, Group, ItemRecord, Lock, Pair, Refusal, SceneRecord

TILES = tuple(
    ItemRecord(
        item=f"S2A_{tile}_20210603",
        collection="sentinel-2-l2a",
        sensor="sentinel2-l2a",
        time="2021-06-03T10:00:31Z",
        crs=f"EPSG:{epsg}",
        bbox=(8.9, 45.5, 9.1, 45.7),
        assets={"B02": AssetRecord(href="assets/B02.tif", checksum="1220" + "ab" * 32, size_bytes=17)},
    )
    for tile, epsg in (("32TPT", 32632), ("33TUM", 32633))
)
SCENE = SceneRecord(id="s2-a", sensor="sentinel2-l2a", time="2021-06-03T10:00:31Z", items=TILES)
OUTLINE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
LOCK = Lock(
    area="west",
    catalogue="results/simulate",
    grid=GridRecord(crs="EPSG:32632", transform=(10, 0, 498_400, 0, -10, 5_040_000), shape=(1680, 1680)),
    scenes={"s2-a": SCENE},
    pairs=(Pair(id="p1", sar="s1", cloudy="s2-a", clear="s2-b", sar_gap_days=-0.2, clear_gap_days=5),),
    refused=(Refusal(item="x", role="clear", reason="cloud cover 80 %, at most 5 % allowed"),),
    outline=OUTLINE,
)


def test_a_lock_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "west.json").write_text(LOCK.to_json())
    assert Lock.read(tmp_path / "west.json") == LOCK


@settings(max_examples=25, deadline=None)
@given(west=st.floats(-1e6, 1e6), north=st.floats(-1e7, 1e7), rows=st.integers(1, 20_000), cols=st.integers(1, 20_000))
def test_a_grid_survives_json_to_the_last_bit(west: float, north: float, rows: int, cols: int) -> None:
    geobox = GeoBox((rows, cols), Affine(10, 0, west, 0, -10, north), "EPSG:32633")
    assert GridRecord.model_validate_json(GridRecord.from_geobox(geobox).to_json()).to_geobox() == geobox


def test_scenes_and_pairs_are_found_by_id_and_named_when_missing() -> None:
    assert LOCK.scene("s2-a") is SCENE
    assert LOCK.pair("p1") is LOCK.pairs[0]
    with pytest.raises(MissingError, match=r"scene 'x' is not in the lock of area 'west'; it has \['s2-a'\]"):
        LOCK.scene("x")
    with pytest.raises(MissingError, match=r"pair 'x' is not in the lock of area 'west'; it has \['p1'\]"):
        LOCK.pair("x")


def test_a_scene_of_several_items_bears_all_their_names() -> None:
    assert SCENE.item == "S2A_32TPT_20210603+S2A_33TUM_20210603"


def test_a_scene_without_an_item_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'items': .*at least 1 item"):
        load_settings(SceneRecord, SCENE.model_dump() | {"items": ()}, where="x")


def test_a_missing_lock_says_which_step_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="run `sereno query` first"):
        Lock.read(tmp_path / "nowhere.json")


def test_another_format_is_refused_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(LOCK.to_json().replace("sereno-lock/2", "sereno-lock/1"))
    with pytest.raises(ConfigError, match=r"old\.json \(delete it and run `sereno query` again\): 'format'.*sereno-lock/1"):
        Lock.read(tmp_path / "old.json")


def test_a_lock_that_was_cut_short_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "west.json").write_text(LOCK.to_json()[:-9])
    with pytest.raises(ConfigError, match=r"west\.json \(delete it and run `sereno query` again\): not valid JSON"):
        Lock.read(tmp_path / "west.json")


@pytest.mark.parametrize(("cloudy", "sky"), [("s2-b", None), ("s2-a", 1)])
def test_an_input_that_is_its_target_has_a_sky_and_a_real_one_has_none(cloudy: str, sky: int | None) -> None:
    values = {"id": "p", "sar": "s1", "cloudy": cloudy, "clear": "s2-b", "sar_gap_days": 0, "clear_gap_days": 0, "sky": sky}
    with pytest.raises(ConfigError, match="a pair has a 'sky' if its input is its target"):
        load_settings(Pair, values, where="lock")
    assert load_settings(Pair, values | {"sky": None if sky else 1}, where="lock").sky == (None if sky else 1)


def test_a_lock_of_groups_comes_back_and_gives_its_jobs(tmp_path: Path) -> None:
    group = Group(id="20210603", scenes={"pan": "s2-a-pan", "ms": "s2-a-ms"})
    scenes = {
        "s2-a-pan": SCENE.model_copy(update={"id": "s2-a-pan", "bands": ("B02",)}),
        "s2-a-ms": SCENE.model_copy(update={"id": "s2-a-ms", "bands": ("B05",), "zoom": 2}),
    }
    lock = LOCK.model_copy(update={"task": "pansharpening", "pairs": (), "groups": (group,), "scenes": scenes})
    (tmp_path / "west.json").write_text(lock.to_json())
    found = Lock.read(tmp_path / "west.json")
    assert found == lock
    assert found.jobs == (group,)
    assert found.job("20210603").scene_ids == ("s2-a-ms", "s2-a-pan")
    with pytest.raises(MissingError, match=r"group 'x' is not in the lock of area 'west'; it has \['20210603'\]"):
        found.job("x")


def test_a_lock_for_cloud_removal_says_nothing_of_groups() -> None:
    assert not {"task", "groups", "zoom"} & set(LOCK.to_json().replace('"', " ").split())
    assert LOCK.jobs == LOCK.pairs
    assert LOCK.pairs[0].scene_ids == ("s1", "s2-a", "s2-b")


SERIES = {"before": "s2-x", "after": "s2-y", "before_gap_days": -5.0, "after_gap_days": 20.0}


def test_a_pair_in_a_series_names_the_scenes_around_it_last() -> None:
    pair = load_settings(Pair, LOCK.pairs[0].model_dump() | SERIES, where="lock")
    assert pair.scene_ids == ("s1", "s2-a", "s2-b", "s2-x", "s2-y")
    assert pair.roles == ("sar", "cloudy", "clear", "before", "after")
    assert Pair.model_validate_json(pair.to_json()) == pair


def test_a_pair_without_a_series_is_written_as_it_always_was() -> None:
    assert list(LOCK.pairs[0].model_dump(mode="json")) == ["id", "sar", "cloudy", "clear", "sar_gap_days", "clear_gap_days", "sky"]
    assert LOCK.pairs[0].roles == ("sar", "cloudy", "clear")


@pytest.mark.parametrize("name", SERIES)
def test_a_series_has_both_scenes_with_their_gaps_or_none(name: str) -> None:
    with pytest.raises(ConfigError, match="a pair has 'before' and 'after' with the gaps of both, or none of the four"):
        load_settings(Pair, LOCK.pairs[0].model_dump() | SERIES | {name: None}, where="lock")


@pytest.mark.parametrize("change", [{"before": "s2-a"}, {"after": "s2-b"}, {"before": "s2-y"}])
def test_input_and_target_are_not_around_themselves(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be two scenes beside input and target"):
        load_settings(Pair, LOCK.pairs[0].model_dump() | SERIES | change, where="lock")
    simulated = LOCK.pairs[0].model_dump() | SERIES | {"cloudy": "s2-b", "sky": 1}
    assert load_settings(Pair, simulated, where="lock").scene_ids == ("s1", "s2-b", "s2-b", "s2-x", "s2-y")
