"""Ground blocks, the draw of splits, and the measured distance between them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import PatchSettings, SplitSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.patches import PatchRecord, Split
from sereno.pipeline.splits import Block, assign_splits, block_windows, check_leakage, group_blocks, guaranteed_distance_m, read_split_list

SMALL = PatchSettings(size_px=32, block_patches=2, buffer_px=16)


def make_grid(west: float, north: float, rows: int, cols: int, crs: str = "EPSG:32632", pixel: float = 10.0) -> GeoBox:
    return GeoBox((rows, cols), Affine(pixel, 0, west, 0, -pixel, north), crs)


def make_record(name: str, split: Split | None, bounds: tuple[float, float, float, float], **changes: object) -> PatchRecord:
    values = {"id": name, "area": "west", "pair": "p", "block": name, "crs": "EPSG:32632", "bounds_m": bounds, "row": 0, "col": 0}
    shares = {"valid_share": 1.0, "cloud_input_share": 0.5, "cloud_target_share": 0.0, "sar_gap_days": 1.0, "clear_gap_days": 5.0}
    return PatchRecord.model_validate({**values, **shares, "split": split, **changes})


def make_squares(grid: GeoBox, chosen: PatchSettings = SMALL) -> dict[tuple[str, int, int], tuple[float, float, float, float]]:
    """Bounds in metres of every window, by block, row and column."""
    a = grid.transform
    side = chosen.size_px
    return {
        (w.block, w.row, w.col): (a.c + w.col * a.a, a.f + (w.row + side) * a.e, a.c + (w.col + side) * a.a, a.f + w.row * a.e)
        for w in block_windows(grid, chosen)
    }


def distance(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    gaps = [max(first[i] - second[i + 2], second[i] - first[i + 2], 0) for i in (0, 1)]
    return math.hypot(*gaps)


def test_the_demo_area_holds_nine_blocks_of_four_windows() -> None:
    windows = block_windows(make_grid(498_400, 5_600 * 900, 1680, 1680), PatchSettings())
    assert len(windows) == 36
    assert len({w.block for w in windows}) == 9
    assert [w.row for w in windows] == sorted(w.row for w in windows)


def test_blocks_are_counted_from_the_origin_of_the_crs_to_the_east_and_to_the_north() -> None:
    # Blocks of 80 px = 800 m. This grid covers x 1600..2400 and y 800..1600: block 2 east, 1 north.
    assert {w.block for w in block_windows(make_grid(1600, 1600, 80, 80), SMALL)} == {"EPSG:32632/2/1"}
    assert {w.block for w in block_windows(make_grid(-800, 0, 80, 80), SMALL)} == {"EPSG:32632/-1/-1"}


@settings(max_examples=40, deadline=None)
@given(
    col=st.integers(-300, 300),
    row=st.integers(-300, 300),
    rows=st.integers(1, 260),
    cols=st.integers(1, 260),
    block_patches=st.integers(1, 3),
    half_buffer=st.integers(0, 20),
)
def test_windows_of_different_blocks_are_a_buffer_apart_and_inside_the_grid(
    col: int, row: int, rows: int, cols: int, block_patches: int, half_buffer: int
) -> None:
    chosen = PatchSettings(size_px=32, block_patches=block_patches, buffer_px=2 * half_buffer)
    grid = make_grid(col * 10, row * 10, rows, cols)
    squares = make_squares(grid, chosen)
    bounds = grid.boundingbox
    for left, bottom, right, top in squares.values():
        assert bounds.left <= left < right <= bounds.right
        assert bounds.bottom <= bottom < top <= bounds.top
    for (one, first), (two, second) in itertools.combinations(squares.items(), 2):
        if one[0] != two[0]:
            assert distance(first, second) >= chosen.buffer_px * 10
        else:
            assert distance(first, second) > 0 or first != second


@settings(max_examples=30, deadline=None)
@given(shift_col=st.integers(-200, 200), shift_row=st.integers(-200, 200))
def test_the_same_ground_has_the_same_windows_and_blocks_in_every_grid(shift_col: int, shift_row: int) -> None:
    first = make_squares(make_grid(0, 4000, 240, 240))
    second = make_squares(make_grid(shift_col * 10, 4000 + shift_row * 10, 240, 240))
    blocks = {bounds: block for (block, _, _), bounds in first.items()}
    for (block, _, _), bounds in second.items():
        assert blocks.get(bounds, block) == block
    shared = {bounds for bounds in blocks if bounds in set(second.values())}
    if abs(shift_col) <= 80 and abs(shift_row) <= 80:
        assert shared, "grids that overlap by two blocks share windows"


def test_a_grid_off_the_whole_pixels_is_snapped_and_promises_one_pixel_less() -> None:
    off = make_grid(3.3, 4000 - 4.9, 240, 240)
    assert {(w.row, w.col) for w in block_windows(off, SMALL)} == {
        (w.row, w.col) for w in block_windows(make_grid(0, 4000, 240, 240), SMALL)
    }
    assert guaranteed_distance_m(off, SMALL) == 150.0
    assert guaranteed_distance_m(make_grid(0, 4000, 240, 240), SMALL) == 160.0
    # The worst case: two snapped grids whose neighbouring blocks moved towards each other by half a pixel each.
    west, east = make_squares(make_grid(4.9, 4000, 240, 80)), make_squares(make_grid(795.1, 4000, 240, 80))
    apart = min(distance(a, b) for a in west.values() for b in east.values())
    assert 150.0 <= apart < 160.0


def test_a_rotated_grid_is_refused() -> None:
    with pytest.raises(DataError, match="north-up"):
        block_windows(GeoBox((80, 80), Affine.rotation(10) * Affine.scale(10, -10), "EPSG:32632"), SMALL)


BLOCKS = st.lists(
    st.builds(lambda number, area, patches: (number, area, patches), st.integers(0, 10**6), st.sampled_from("abc"), st.integers(1, 30)),
    min_size=1,
    max_size=40,
    unique_by=lambda value: value[0],
).map(lambda values: [Block(f"EPSG:32632/{number}/0", (area,), patches) for number, area, patches in values])
SHARES = st.tuples(st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 5)).map(
    lambda v: SplitSettings(validation=v[0], test=v[1], seed=v[2])
)


@settings(max_examples=80, deadline=None)
@given(blocks=BLOCKS, chosen=SHARES, shuffled=st.randoms(use_true_random=False))
def test_the_draw_does_not_depend_on_the_order_and_gives_every_block_one_split(
    blocks: list[Block], chosen: SplitSettings, shuffled: object
) -> None:
    first = assign_splits(blocks, chosen)
    mixed = list(blocks)
    shuffled.shuffle(mixed)  # type: ignore[attr-defined]
    assert assign_splits(mixed, chosen) == first
    assert set(first) == {block.name for block in blocks}
    assert "train" in first.values()
    if len(blocks) >= 3:
        assert ("val" in first.values()) == (chosen.validation > 0)
        assert ("test" in first.values()) == (chosen.test > 0)


@settings(max_examples=80, deadline=None)
@given(blocks=BLOCKS, chosen=SHARES)
def test_shares_are_met_to_within_half_a_block(blocks: list[Block], chosen: SplitSettings) -> None:
    drawn = assign_splits(blocks, chosen)
    sizes = {split: sum(b.patches for b in blocks if drawn[b.name] == split) for split in ("train", "val", "test")}
    total, largest = sum(sizes.values()), max(b.patches for b in blocks)
    for split, share in (("test", chosen.test), ("val", chosen.validation)):
        members = [b.patches for b in blocks if drawn[b.name] == split]
        # One block alone may miss by more where at least one is demanded; too little is drawn only where the others need what is left.
        if len(members) > 1:
            assert sizes[split] - share * total <= largest / 2
        if sum(1 for v in drawn.values() if v == "train") > 2 and members:
            assert share * total - sizes[split] <= largest / 2


def test_equal_blocks_meet_the_shares_of_the_demo_exactly_and_spread_over_the_areas() -> None:
    blocks = [Block(f"{area}/{n}", (area,), 12) for area in ("west", "east") for n in range(9)]
    for seed in range(10):
        drawn = assign_splits(blocks, SplitSettings(seed=seed))
        assert [sum(v == split for v in drawn.values()) for split in ("train", "val", "test")] == [12, 2, 4]
        for area in ("west", "east"):
            assert {drawn[b.name] for b in blocks if b.areas == (area,)} == {"train", "val", "test"}


def test_a_small_area_is_not_drained_beside_a_large_one() -> None:
    blocks = [Block(f"large/{n:03}", ("large",), 4) for n in range(60)] + [Block(f"small/{n}", ("small",), 4) for n in range(3)]
    for seed in range(5):
        drawn = assign_splits(blocks, SplitSettings(seed=seed))
        assert sorted(drawn[f"small/{n}"] for n in range(3)) == ["test", "train", "val"]


def test_different_seeds_draw_different_blocks() -> None:
    blocks = [Block(f"b/{n}", ("a",), 4) for n in range(20)]
    assert len({tuple(assign_splits(blocks, SplitSettings(seed=seed)).items()) for seed in range(5)}) == 5


def test_without_splits_everything_is_for_training() -> None:
    assert set(assign_splits([Block(str(n), ("a",), 1) for n in range(5)], SplitSettings(method="none")).values()) == {"train"}


def write_lists(tmp_path: Path, **lists: list[str]) -> Path:
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"train": [], "val": [], "test": [], **lists}))
    return file


def test_listed_areas_are_compared_whole_so_that_published_entries_do_not_leak(tmp_path: Path) -> None:
    # With the published loader's substring match `s1_1` would also take 106, 123, 139 and 140 into training.
    file = write_lists(
        tmp_path,
        train=["ROIs1158_spring_s1/s1_1", "ROIs1970_fall_s1/s1_1"],
        test=["ROIs1158_spring_s1/s1_106", "ROIs1158_spring_s1/s1_140", "ROIs1970_fall_s1/s1_139"],
        val=["ROIs1158_spring_s1/s1_17"],
    )
    names = [
        "ROIs1158_spring_1",
        "ROIs1158_spring_106",
        "ROIs1158_spring_140",
        "ROIs1158_spring_17",
        "ROIs1970_fall_1",
        "ROIs1970_fall_139",
    ]
    drawn = assign_splits([Block(name, (name,), 3) for name in names], SplitSettings(method="list", file=file))
    assert drawn == dict(zip(names, ["train", "test", "test", "val", "train", "test"], strict=True))


def test_areas_with_names_of_ones_own_may_be_listed(tmp_path: Path) -> None:
    file = write_lists(tmp_path, train=["west"], test=["east"])
    assert read_split_list(file, {"west", "east"}) == {"west": "train", "east": "test"}
    assert read_split_list(file, {"west"}) == {"west": "train"}, "an area of which no patch was kept may stay in the list"


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": ["ROIs1970_fall_s1/s1_3"]}, "'ROIs1970_fall_139' is in none of the lists"),
        ({"train": ["ROIs1970_fall_s1/s1_139"], "test": ["ROIs1970_fall_139"]}, "'ROIs1970_fall_139' is in the lists test and train"),
        ({"train": ["ROIs1970_fall"]}, "ROIs1970_fall"),
    ],
)
def test_an_area_in_no_list_or_in_two_is_named(tmp_path: Path, lists: dict[str, list[str]], words: str) -> None:
    file = write_lists(tmp_path, **lists)
    with pytest.raises(DataError, match=words):
        assign_splits([Block("ROIs1970_fall_139", ("ROIs1970_fall_139",), 1)], SplitSettings(method="list", file=file))


def test_a_block_of_two_areas_listed_apart_is_named(tmp_path: Path) -> None:
    file = write_lists(tmp_path, train=["west"], test=["east"])
    with pytest.raises(DataError, match="EPSG:32632/1/1"):
        assign_splits([Block("EPSG:32632/1/1", ("east", "west"), 1)], SplitSettings(method="list", file=file))


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ('{"train": []}', "three lists"), ("[]", "three lists")])
def test_a_split_file_of_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "splits.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words):
        read_split_list(file, {"west"})
    with pytest.raises(MissingError, match=r"pack\.split\.file"):
        read_split_list(tmp_path / "nowhere.json", {"west"})


def test_blocks_are_weighed_by_their_patches_and_know_all_their_areas() -> None:
    records = [make_record(str(n), None, (0, 0, 1, 1), block="b" if n else "a", area="ew"[n % 2]) for n in range(4)]
    assert group_blocks(records) == [Block("a", ("e",), 1), Block("b", ("e", "w"), 3)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 25))
def test_the_measured_distance_is_the_smallest_of_all_pairs(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    # Squares of 320 m on a lattice of 400 m that each may move by less than the gap: none overlap.
    places = generator.choice(400, size=count, replace=False)
    corners = [(400.0 * (p % 20) + generator.uniform(0, 79), 400.0 * (p // 20) + generator.uniform(0, 79)) for p in places]
    splits: list[Split] = [("train", "val", "test")[int(n)] for n in generator.integers(0, 3, count)]  # type: ignore[misc]
    records = [make_record(f"{n:02}", s, (x, y, x + 320, y + 320)) for n, ((x, y), s) in enumerate(zip(corners, splits, strict=True))]
    pairs = [(a, b) for a, b in itertools.combinations(records, 2) if a.split != b.split]
    found = check_leakage(records, buffer_m=0)
    if not pairs:
        assert found.min_distance_m is None
    else:
        assert found.min_distance_m == pytest.approx(min(distance(a.bounds_m, b.bounds_m) for a, b in pairs), abs=1e-3)


def test_drawn_blocks_pass_the_measurement_at_exactly_the_buffer() -> None:
    squares = make_squares(make_grid(0, 4000, 400, 400))
    blocks = [Block(name, ("a",), 4) for name in {key[0] for key in squares}]
    drawn = assign_splits(blocks, SplitSettings())
    records = [make_record(f"{b}-{r}-{c}", drawn[b], bounds, block=b) for (b, r, c), bounds in squares.items()]
    found = check_leakage(records, buffer_m=160.0)
    assert found.min_distance_m == 160.0
    assert (found.shared_blocks, found.footprints) == (0, len(records))
    with pytest.raises(DataError, match=r"are 160\.0 m apart, at least 170\.0 m are needed"):
        check_leakage(records, buffer_m=170.0)


def test_touching_patches_pass_only_where_no_buffer_is_asked_for() -> None:
    records = [make_record("a", "train", (0, 0, 320, 320)), make_record("b", "test", (320, 0, 640, 320))]
    assert check_leakage(records, buffer_m=0).min_distance_m == 0
    with pytest.raises(DataError, match=r"a \(train\) and b \(test\)"):
        check_leakage(records, buffer_m=10)


def test_an_overlap_of_one_pixel_is_found_among_neighbours_that_only_touch() -> None:
    touching = [make_record(f"t{n}", "train", (320.0 * n, -320, 320.0 * n + 320, 0)) for n in range(5)]
    beside = make_record("edge", "train", (-310, 0, 10, 320))
    with pytest.raises(DataError, match=r"edge \(train\) and inside \(test\) overlap"):
        check_leakage([*touching, beside, make_record("inside", "test", (0, 0, 320, 320))], buffer_m=0)


def test_a_block_in_two_splits_is_refused_however_far_its_patches_lie() -> None:
    records = [make_record("a", "train", (0, 0, 9, 9), block="b"), make_record("c", "val", (9e4, 0, 9e4 + 9, 9), block="b")]
    with pytest.raises(DataError, match="ground block b is in two splits: a in train, c in val"):
        check_leakage(records, buffer_m=0)


def at_lonlat(name: str, split: Split, lonlat: tuple[float, float], crs: str, side: float = 2560.0) -> PatchRecord:
    """A square patch of `crs` around a place on the ground."""
    x, y = CRS("EPSG:4326").transformer_to_crs(CRS(crs))(*lonlat)
    half = side / 2
    return make_record(name, split, (float(x) - half, float(y) - half, float(x) + half, float(y) + half), crs=crs)


@pytest.mark.parametrize(
    ("lonlat", "zones"), [((12.0, 47.0), (32632, 32633)), ((-6.0, -33.0), (32729, 32730)), ((180.0, 62.0), (32660, 32601))]
)
def test_an_overlap_across_two_utm_zones_is_found_also_at_the_date_line(lonlat: tuple[float, float], zones: tuple[int, int]) -> None:
    far = at_lonlat("far", "train", (lonlat[0] - 1.5, lonlat[1]), f"EPSG:{zones[0]}")
    first = at_lonlat("first", "train", lonlat, f"EPSG:{zones[0]}")
    second = at_lonlat("second", "test", (lonlat[0], lonlat[1] + 0.02), f"EPSG:{zones[1]}")  # 2.2 km north of a patch of 2.6 km
    with pytest.raises(DataError, match=r"first \(train\) and second \(test\) overlap"):
        check_leakage([far, first, second], buffer_m=0)
    assert check_leakage([far, second], buffer_m=480).min_distance_m > 50_000  # type: ignore[operator]


def test_patches_on_both_sides_of_the_date_line_meet() -> None:
    first = at_lonlat("first", "train", (179.995, 62.0), "EPSG:32660")  # reaches across the line
    second = at_lonlat("second", "test", (-179.97, 62.0), "EPSG:32601")  # lies wholly beyond it
    with pytest.raises(DataError, match="overlap"):
        check_leakage([first, second], buffer_m=0)
    beyond = at_lonlat("beyond", "test", (-179.93, 62.0), "EPSG:32601")  # 0.075 degrees are 3.9 km here, the squares take 2.6 of them
    assert check_leakage([first, beyond], buffer_m=480).min_distance_m == pytest.approx(1300, abs=150)


def test_the_distance_across_zones_is_that_on_the_ground() -> None:
    # Two squares one after the other along the meridian 12 E: the gap between them is known from the ellipsoid.
    geod = CRS("EPSG:4326").proj.get_geod()
    assert geod is not None
    _, north, _ = geod.fwd(12.0, 47.0, 0, 4000)
    first, second = at_lonlat("first", "train", (12.0, 47.0), "EPSG:32632"), at_lonlat("second", "val", (12.0, north), "EPSG:32633")
    found = check_leakage([first, second], buffer_m=480).min_distance_m
    # The squares are turned by the meridian convergence of 2.2 degrees, one to each side: their corners are nearer than their edges.
    turn = math.radians(3 * math.sin(math.radians(47)))
    corner = 1280 * (math.cos(turn) + math.sin(turn))
    assert found is not None
    assert 4000 - 2 * corner - 10 < found < 4000 - 2 * 1280 + 10


def test_one_split_alone_has_no_distance() -> None:
    found = check_leakage([make_record("a", "train", (0, 0, 1, 1)), make_record("b", "train", (0, 0, 1, 1), pair="q")], buffer_m=480)
    assert found.min_distance_m is None
    assert found.footprints == 1
