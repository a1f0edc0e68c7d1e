"""Ground blocks and splits: where patches may lie, which of them are for training, and the proof that no ground is shared.

Grids, block sizes and patch records enter; windows, one split per block, and measured distances leave.

The block grid is anchored at (0, 0) of the CRS, so that every pair, area and date of one CRS meets the same blocks. Windows keep half the
buffer away from their block's edge: windows of different blocks are a whole buffer apart, however the blocks are drawn.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import PatchSettings, SplitSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.layouts import area_of_split_entry
from sereno.pipeline.patches import SPLITS, PatchRecord, Split

WORLD: Final = CRS("EPSG:3395")
"""Ellipsoidal Mercator: conformal, so that what is nearest on its plane is nearest on the ground within a few kilometres."""
DEGREES: Final = CRS("EPSG:4326")
"""Longitude and latitude."""
ANCHOR_TOLERANCE_PX: Final = 1e-3
"""A grid this close to whole pixels of the CRS origin lies on them: a hundredth of a metre at 10 m."""

DISTANCE_TOLERANCE_M: Final = 1e-3
"""Distances are rounded to this; far below any pixel."""
OVERLAP_TOLERANCE_M2: Final = 1e-2
"""Footprints that share less ground than this touch; what remains is rounding."""


class Window(NamedTuple):
    """A square of the pair's grid that becomes a patch."""

    name: str
    """Unique in its pair: `rROW-cCOL`, or the name under which it was delivered."""
    block: str
    """Ground that always stays in one split: `CRS/I/J` of the block grid (I to the east, J to the north), or the area's name."""
    row: int
    """First row in the grid."""
    col: int
    """First column in the grid."""


class Block(NamedTuple):
    """Ground that always stays in one split."""

    name: str
    """As in `PatchRecord.block`."""
    areas: tuple[str, ...]
    """Areas whose patches lie in it, sorted."""
    patches: int
    """How many patches lie in it, all dates together: its weight."""


class Leakage(NamedTuple):
    """What was measured between splits; it exists only if nothing is shared."""

    min_distance_m: float | None
    """Smallest ground distance between patches of different splits; None if there is only one split."""
    nearest: tuple[str, str] | None
    """Ids of those two patches."""
    required_m: float
    """Distance that was asked for; 0 asks only that no ground is shared."""
    shared_blocks: int
    """Blocks in more than one split: always 0."""
    footprints: int
    """Different pieces of ground that were compared."""


def block_windows(geobox: GeoBox, settings: PatchSettings) -> list[Window]:
    """Windows of `size_px` in the cores of the ground blocks, only those that lie wholly inside `geobox`, row by row.

    A block is `block_patches * size_px + buffer_px` pixels wide. A grid that is not aligned with whole pixels of the CRS origin takes the
    nearest whole pixel as its anchor, the same for every pair on that grid.

    Raises:
        DataError: the grid is rotated, or its pixels are not square.
    """
    first_row, first_col = _anchor(geobox)
    side = settings.block_patches * settings.size_px + settings.buffer_px
    rows = list(_place_windows(first_row, geobox.shape.y, side, settings))
    columns = list(_place_windows(first_col, geobox.shape.x, side, settings))
    # Global rows count southwards from y = 0, blocks are numbered northwards.
    return [
        Window(f"r{row}-c{col}", f"{geobox.crs}/{east}/{-south - 1}", row, col)
        for (row, south), (col, east) in ((r, c) for r in rows for c in columns)
    ]


def _place_windows(first: int, extent: int, side: int, settings: PatchSettings) -> Iterator[tuple[int, int]]:
    """(first pixel in the grid, block number) along one axis; the grid covers global pixels `first` to `first + extent`."""
    for block in range(first // side, (first + extent) // side + 1):
        for number in range(settings.block_patches):
            start = block * side + settings.buffer_px // 2 + number * settings.size_px - first
            if 0 <= start <= extent - settings.size_px:
                yield start, block


def _anchor(geobox: GeoBox) -> tuple[int, int]:
    """Row (southwards) and column (eastwards) of the grid's first pixel, counted from (0, 0) of the CRS."""
    affine = geobox.transform
    if affine.b or affine.d or affine.a <= 0 or not math.isclose(affine.a, -affine.e):
        raise DataError(f"ground blocks need a north-up grid with square pixels, but the transform is {tuple(affine)[:6]}")
    return round(affine.f / affine.e), round(affine.c / affine.a)


def guaranteed_distance_m(geobox: GeoBox, settings: PatchSettings) -> float:
    """Smallest distance in metres between windows of different blocks, also of blocks that another grid of this pixel size cuts.

    Two grids that are snapped to the block grid can stand up to one pixel nearer to each other than the buffer.
    """
    affine = geobox.transform
    first_row, first_col = _anchor(geobox)
    offset_px = max(abs(affine.f / affine.e - first_row), abs(affine.c / affine.a - first_col))
    snapped_px = 0 if offset_px < ANCHOR_TOLERANCE_PX else 1
    return float(max(settings.buffer_px - snapped_px, 0) * affine.a)


def group_blocks(records: Iterable[PatchRecord]) -> list[Block]:
    """The blocks in which `records` lie, sorted by name."""
    areas: defaultdict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for record in records:
        areas[record.block].add(record.area)
        counts[record.block] += 1
    return [Block(name, tuple(sorted(areas[name])), counts[name]) for name in sorted(counts)]


def assign_splits(blocks: Collection[Block], settings: SplitSettings) -> dict[str, Split]:
    """The split of every block, by name; the same whatever the order of `blocks`.

    `blocks`: a seeded draw that comes as near to the shares (of patches) as whole blocks allow, and takes blocks from the area that has
    given least so far, so that the splits spread over the areas. With three blocks or more, validation and test get one each at least
    (unless their share is 0), and training always keeps one.

    Raises:
        DataError: by `list`: an area is in no list or in two, or a block holds areas of different splits.
        MissingError: the list's file does not exist.
    """
    ordered = sorted(blocks)
    if settings.method == "none":
        return {block.name: "train" for block in ordered}
    if settings.method == "list":
        assert settings.file is not None  # checked by SplitSettings
        listed = read_split_list(settings.file, {area for block in ordered for area in block.areas})
        return {block.name: _take_listed(block, listed, settings.file) for block in ordered}
    return _draw_splits(ordered, settings)


def read_split_list(file: Path, areas: Collection[str]) -> dict[str, Split]:
    """The split of each of `areas` according to a JSON file with the lists `train`, `val` and `test`.

    An entry is the exact name of an area, or a line of a published list (`ROIs1970_fall_s1/s1_3`). Names are compared whole: the loader
    published with SEN12MS-CR compares substrings and lets 60 % of the test patches into training. Areas of which nothing was kept may be
    listed too.

    Raises:
        MissingError: there is no such file.
        DataError: it is no such JSON, or one of `areas` is in no list or in two.
    """
    if not file.is_file():
        raise MissingError(f"split file {file} does not exist: correct pack.split.file")
    try:
        lists = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"split file {file} is not valid JSON: {error}") from None
    if not isinstance(lists, dict) or set(lists) != set(SPLITS) or not all(isinstance(entries, list) for entries in lists.values()):
        raise DataError(f"split file {file} must hold the three lists {', '.join(SPLITS)} and nothing else")
    found: defaultdict[str, set[Split]] = defaultdict(set)
    for split in SPLITS:
        for entry in lists[split]:
            found[area_of_split_entry(str(entry))].add(split)
    for area in sorted(areas):
        if len(found[area]) != 1:
            where = f"in the lists {' and '.join(sorted(found[area]))}" if found[area] else "in none of the lists"
            raise DataError(f"area {area!r} is {where} of {file}: every area must be in exactly one")
    return {area: next(iter(found[area])) for area in sorted(areas)}


def _take_listed(block: Block, listed: Mapping[str, Split], file: Path) -> Split:
    splits = {listed[area] for area in block.areas}
    if len(splits) > 1:
        raise DataError(f"ground block {block.name} holds areas {list(block.areas)} that {file} puts into different splits")
    return splits.pop()


def _draw_splits(blocks: Sequence[Block], settings: SplitSettings) -> dict[str, Split]:
    order = np.random.default_rng(settings.seed).permutation(len(blocks))
    drawn: dict[str, Split] = {}
    shares: tuple[tuple[Split, float], ...] = (("test", settings.test), ("val", settings.validation))
    for place, (split, share) in enumerate(shares):
        # What follows must find something left: one block for training, and one for validation where there are enough.
        reserved = 1 + (len(blocks) >= 3 and any(later > 0 for _, later in shares[place + 1 :]))
        room = len(blocks) - len(drawn) - reserved
        if share > 0 and room > 0:
            pool = [blocks[i] for i in order if blocks[i].name not in drawn]
            chosen = _choose_blocks(pool, share * sum(block.patches for block in blocks), room)
            if not chosen and len(blocks) >= 3:
                chosen = [min(pool, key=lambda block: block.patches)]
            drawn |= {block.name: split for block in chosen}
    return {block.name: drawn.get(block.name, "train") for block in blocks}


def _choose_blocks(pool: Sequence[Block], target: float, room: int) -> list[Block]:
    """At most `room` blocks of `pool` whose patches come near `target`, one area after the other.

    A block is taken only if that brings the sum nearer to `target`; one that does not now, never will, since the gap only narrows.
    """
    queues: defaultdict[str, list[Block]] = defaultdict(list)
    for block in reversed(pool):
        queues[block.areas[0]].append(block)
    sizes = {area: len(queue) for area, queue in queues.items()}
    rank = {area: place for place, area in enumerate(dict.fromkeys(block.areas[0] for block in pool))}
    taken: Counter[str] = Counter()
    chosen: list[Block] = []
    gap = target
    while len(chosen) < room:
        for queue in queues.values():
            while queue and queue[-1].patches >= 2 * gap:
                queue.pop()
        open_areas = [area for area, queue in queues.items() if queue]
        if not open_areas:
            break
        # First areas that keep a block for others, then those that gave the smallest share, then those that can spare one.
        area = min(open_areas, key=lambda a: (taken[a] + 1 == sizes[a], taken[a] / sizes[a], sizes[a] < 3, rank[a]))
        block = queues[area].pop()
        taken[area] += 1
        gap -= block.patches
        chosen.append(block)
    return chosen


def check_leakage(records: Collection[PatchRecord], *, buffer_m: float) -> Leakage:
    """The smallest distance between patches of different splits, measured on their footprints and not taken from how they were drawn.

    Within a CRS distances are exact on its plane. Between CRSs footprints are compared on an ellipsoidal Mercator plane, also across the
    date line, and the distance of the nearest ones is geodesic; beyond some kilometres the nearest on the plane may not be quite the
    nearest on the ground. `buffer_m` 0 asks only that no ground is shared: patches may then touch.

    Raises:
        DataError: a block lies in two splits, or two patches of different splits overlap or are nearer than `buffer_m`; both are named.
    """
    _check_blocks(records)
    footprints: dict[tuple[str, str, tuple[float, ...]], PatchRecord] = {}
    for record in sorted(records, key=lambda r: r.id):
        assert record.split is not None  # given by assign_splits
        footprints.setdefault((record.split, record.crs, record.bounds_m), record)
    unique = list(footprints.values())
    found = [*_nearest_within_crs(unique, buffer_m), *_nearest_across_crs(unique, buffer_m)]
    if not found:
        return Leakage(None, None, buffer_m, 0, len(unique))
    distance, first, second = min(found)
    return Leakage(round(distance, 3), (first, second), buffer_m, 0, len(unique))


def _check_blocks(records: Iterable[PatchRecord]) -> None:
    holders: dict[str, PatchRecord] = {}
    for record in sorted(records, key=lambda r: r.id):
        other = holders.setdefault(record.block, record)
        if other.split != record.split:
            raise DataError(
                f"ground block {record.block} is in two splits: {other.id} in {other.split}, {record.id} in {record.split}; "
                "a block must stay whole"
            )


Found = tuple[float, str, str]
"""Distance in metres and the ids of the two patches."""


def _nearest_within_crs(records: Sequence[PatchRecord], buffer_m: float) -> Iterator[Found]:
    by_crs: defaultdict[str, list[PatchRecord]] = defaultdict(list)
    for record in records:
        by_crs[record.crs].append(record)
    for group in by_crs.values():
        boxes = shapely.box(*np.array([record.bounds_m for record in group]).T)
        for left, right in _split_pairs(group):
            pairs, distances = shapely.STRtree(boxes[left]).query_nearest(boxes[right], return_distance=True)
            a, b = left[pairs[1]], right[pairs[0]]
            overlaps = shapely.area(shapely.intersection(boxes[a], boxes[b]))
            yield _take_nearest(group, (a, b), distances, overlaps, buffer_m)


def _nearest_across_crs(records: Sequence[PatchRecord], buffer_m: float) -> Iterator[Found]:
    if len({record.crs for record in records}) < 2:
        return
    shapes = _to_world(records)
    crs = np.array([record.crs for record in records])
    for left, right in _split_pairs(records):
        for first, second in ((p, q) for p in np.unique(crs[left]) for q in np.unique(crs[right]) if p != q):
            ours, theirs = left[crs[left] == first], right[crs[right] == second]
            tree = shapely.STRtree(shapes[ours])
            for turn in _turns(shapes[ours], shapes[theirs]):  # the world once round: patches that meet at the date line
                moved = shapely.transform(shapes[theirs], lambda xy, by=turn: np.add(xy, (by, 0.0)))
                pairs = tree.query_nearest(moved)
                a, b = ours[pairs[1]], theirs[pairs[0]]
                overlaps = shapely.area(shapely.intersection(shapes[a], moved[pairs[0]]))
                yield _take_nearest(records, (a, b), _to_ground_m(shapes[a], moved[pairs[0]]), overlaps, buffer_m)


def _split_pairs(records: Sequence[PatchRecord]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Places of the records of every two splits that both hold some."""
    splits = np.array([record.split for record in records])
    places = [np.flatnonzero(splits == split) for split in SPLITS]
    yield from ((left, right) for left, right in combinations(places, 2) if left.size and right.size)


def _take_nearest(records: Sequence[PatchRecord], pairs: tuple[Any, Any], distances: Any, overlaps: Any, buffer_m: float) -> Found:
    """The nearest of `pairs`, at equal distance the one that overlaps most; refused if it shares ground or is nearer than `buffer_m`."""
    place = int(np.lexsort((-overlaps, distances))[0])
    first, second = records[pairs[0][place]], records[pairs[1][place]]
    distance = float(distances[place])
    if overlaps[place] > OVERLAP_TOLERANCE_M2 or distance < buffer_m - DISTANCE_TOLERANCE_M:
        what = "overlap" if overlaps[place] > OVERLAP_TOLERANCE_M2 else f"are {distance:.1f} m apart, at least {buffer_m:.1f} m are needed"
        raise DataError(
            f"patches {first.id} ({first.split}) and {second.id} ({second.split}) {what}: the splits share ground; "
            "give overlapping areas one CRS (`epsg`) so that they share ground blocks, or move them to one split"
        )
    return distance, first.id, second.id


def _to_world(records: Sequence[PatchRecord]) -> npt.NDArray[np.object_]:
    """Footprints on the Mercator plane. Straight edges stay straight enough: 2.6 km at 60 degrees north bend by 0.2 m."""
    corners = np.array([[(left, low), (right, low), (right, top), (left, top)] for left, low, right, top in (r.bounds_m for r in records)])
    moved = np.empty_like(corners)
    crs = np.array([record.crs for record in records])
    for name in np.unique(crs):
        here = crs == name
        x, y = CRS(str(name)).transformer_to_crs(WORLD)(corners[here, :, 0].ravel(), corners[here, :, 1].ravel())
        moved[here] = np.stack([x, y], axis=-1).reshape(-1, 4, 2)
    turn = _world_turn_m()
    moved[..., 0] -= turn * np.round((moved[..., 0] - moved[:, :1, 0]) / turn)  # a patch on the date line stays in one piece
    shapes: npt.NDArray[np.object_] = shapely.polygons(moved)
    return shapes


def _world_turn_m() -> float:
    """Length of the equator on the Mercator plane."""
    x, _ = DEGREES.transformer_to_crs(WORLD)(180.0, 0.0)
    return 2 * float(x)


def _turns(ours: Any, theirs: Any) -> list[float]:
    """By how much to move `theirs` eastwards to meet `ours`: not at all, and once round where that brings them nearer."""
    turn = _world_turn_m()
    (west, _, east, _), (low, _, high, _) = shapely.total_bounds(ours), shapely.total_bounds(theirs)
    return [0.0, *([turn] if east - low > turn / 2 else []), *([-turn] if high - west > turn / 2 else [])]


def _to_ground_m(first: Any, second: Any) -> npt.NDArray[np.float64]:
    """Geodesic distance in metres between the nearest points of shapes on the Mercator plane, pair by pair."""
    ends = shapely.get_coordinates(shapely.shortest_line(first, second)).reshape(-1, 2, 2)
    lon, lat = WORLD.transformer_to_crs(DEGREES)(ends[..., 0].ravel(), ends[..., 1].ravel())
    lon, lat = np.reshape(lon, (-1, 2)), np.reshape(lat, (-1, 2))
    geod = DEGREES.proj.get_geod()
    assert geod is not None  # longitude and latitude stand on an ellipsoid
    distances: npt.NDArray[np.float64] = geod.inv(lon[:, 0], lat[:, 0], lon[:, 1], lat[:, 1])[2]
    return distances
