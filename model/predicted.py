"""Whole predicted images of groups in the report, beside what went in and what is true, with a detail that shows single pixels.

Results enter; blocks of the page leave. Images are read only as finely as they are shown; errors are measured band by band.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import rasterio
import xarray as xr
from rasterio.enums import Resampling
from rasterio.windows import Window

from sereno.model.alignment import choose_crop
from sereno.model.colours import Colours, Levels, choose_colours, describe_levels, measure_levels, to_colours
from sereno.model.findings import name_run
from sereno.model.gallery import NODATA, PICTURE_BUDGET_PX, SAMPLES_PER_PIXEL, mark_split
from sereno.model.page import NOTHING, Block, Cell, Heading, Shot, Shots, Table, Text, mark_best, show_day, show_number, show_share
from sereno.model.pictures import Picture, encode_png, shrink_picture
from sereno.model.results import Array, Json, Key, Results, RunResults, is_stale, list_cleared
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.patches import CLOUDY_FROM
from sereno.pipeline.scene import REFLECTANCE_SCALE, bands_of, geobox_of
from sereno.pipeline.store import open_dataset, read_json

DETAIL_PX: Final = 128
"""Side of the ground that the detail shows, pixels of the grid."""
DETAIL_PICTURE_PX: Final = 256
"""Smallest side of its picture."""
MIN_PICTURE_PX: Final = 64
"""Longest side below which no picture is made, however many there are."""
STRETCH_PX: Final = 600
"""Rows and columns to which an image is thinned where its darkest and brightest values are measured."""
MIN_COLUMNS: Final = 3
"""Two pictures are shown no larger than three would be."""


class Shown(NamedTuple):
    """What is shown of a task's groups, by role with words."""

    inputs: Mapping[str, str]
    """What the network was given."""
    truth: Mapping[str, str]
    """What it should have made; empty where nobody knows."""


SHOWN: Final[Mapping[str, Shown]] = {
    "pansharpening": Shown({"ms": "multispectral, as taken", "pan": "sharp, as taken"}, {}),
    "spatiotemporal-fusion": Shown(
        {"fine-1": "fine, first date", "fine-3": "fine, last date", "coarse-2": "coarse, middle date"},
        {"fine-2": "fine, middle date: the truth"},
    ),
    "snapshot-reconstruction": Shown({}, {"cube": "the cube: the truth"}),
}
"""Images by task."""


class Scene(NamedTuple):
    """A group and how it is shown."""

    key: Key
    """Area and group."""
    group: xr.Dataset
    """Opened, not read."""
    ratio: int
    """Grid pixels along each side of a coarse one."""
    looks: Mapping[str, tuple[Colours, Levels]]
    """Colours and stretch by role; those of predictions by the empty name."""
    px: int
    """Longest side of a picture."""


class Part(NamedTuple):
    """Which pixels of the grid are shown, and every which one."""

    rows: slice
    """Of the grid; whole coarse pixels."""
    columns: slice
    """Likewise."""
    step: int
    """1 for all of them."""


def describe_images(results: Results, *, picture_px: int) -> list[Block]:
    """Every predicted image beside what it was made of and the truth, a detail of it, its file, and its errors where the truth is known."""
    keys, shown = list_cleared(results), SHOWN.get(results.task)
    if not keys or shown is None:
        return [Text("No image was predicted, or its group is no longer there: run `sereno predict`.", "missing")]
    n_pictures = sum(len(shown.inputs) + len(shown.truth) + len(_find_runs(results, key)) for key in keys)
    px = max(MIN_PICTURE_PX, min(picture_px, int(math.sqrt(PICTURE_BUDGET_PX / n_pictures))))
    return [block for key in keys for block in _describe_image(results, key, shown, px)]


def _find_runs(results: Results, key: Key) -> list[RunResults]:
    return [run for run in results.runs if key in run.predictions]


def _describe_image(results: Results, key: Key, shown: Shown, px: int) -> list[Block]:
    heading = Heading(f"{key[0]} · {key[1]}")
    group = open_dataset(results.manifest("align", key), kind="group")
    if group.attrs["provenance"].get("refused"):
        return [heading, Text(f"This group is not used: {group.attrs['provenance']['refused']}.", "bad")]
    scene = Scene(key, group, int(group.attrs.get("ratio", 1)), _choose_looks(group, shown), px)
    rows, columns = geobox_of(group).shape
    whole = Part(slice(0, rows), slice(0, columns), max(1, max(rows, columns) // (SAMPLES_PER_PIXEL * px)))
    runs = _find_runs(results, key)
    shots, details = (_show_part(scene, runs, shown, part) for part in (whole, _choose_detail(scene, shown)))
    blocks: list[Block] = [heading, Text(describe_levels(*scene.looks[""]), "small"), Shots(shots, "scene", max(MIN_COLUMNS, len(shots)))]
    blocks += [Text(f"A detail of it, {DETAIL_PX} pixels wide:", "small"), Shots(details, "scene", max(MIN_COLUMNS, len(details)))]
    blocks.append(_tabulate_files(results, key, runs))
    stale = [run.name for run in runs if is_stale(run, key)]
    if stale:
        blocks.append(Text(f"{', '.join(stale)}: made with other weights than those that are scored here: run `sereno predict`.", "bad"))
    return blocks + (_score_image(results, scene, runs, shown) if shown.truth else [])


def _choose_looks(group: xr.Dataset, shown: Shown) -> dict[str, tuple[Colours, Levels]]:
    """Colours of every role: one stretch for all images of the same bands, from the truth or the first input."""
    rows, columns = geobox_of(group).shape
    looks: dict[str, tuple[Colours, Levels]] = {}
    by_bands: dict[tuple[str, ...], tuple[Colours, Levels]] = {}
    for role in (*shown.truth, *shown.inputs):
        names = bands_of(group, str(group[role].dims[0]))
        if names not in by_bands:
            part = Part(slice(0, rows), slice(0, columns), max(1, max(rows, columns) // STRETCH_PX))
            colours = choose_colours(names)
            by_bands[names] = colours, measure_levels([_read_role(group, role, part)], colours)
        looks[role] = by_bands[names]
    return looks | {"": looks[next(iter((*shown.truth, *shown.inputs)))]}


def _read_role(group: xr.Dataset, role: str, part: Part) -> tuple[Array, Array]:
    """An image of a group and where it is valid, coarse ones with their own pixels."""
    ratio = int(group.attrs.get("ratio", 1)) if "y_coarse" in group[f"valid_{role}"].dims else 1
    y, x = (slice(axis.start // ratio, axis.stop // ratio, max(1, part.step // ratio)) for axis in (part.rows, part.columns))
    rows, columns = group[f"valid_{role}"].dims
    cut = group[[role, f"valid_{role}"]].isel({rows: y, columns: x})
    return cut[role].values, cut[f"valid_{role}"].values


def _choose_detail(scene: Scene, shown: Shown) -> Part:
    """The ground with most to see: valid in all that is shown, near the middle."""
    rows, columns = geobox_of(scene.group).shape
    whole = Part(slice(0, rows), slice(0, columns), 1)
    usable = np.ones((rows, columns), bool)
    for role in (*shown.truth, *shown.inputs):
        valid = _read_role(scene.group, role, whole)[1]
        factor = rows // valid.shape[0]
        usable &= valid.repeat(factor, axis=0).repeat(factor, axis=1)
    found = choose_crop(usable, DETAIL_PX)
    y, x = (slice(axis.start // scene.ratio * scene.ratio, axis.stop // scene.ratio * scene.ratio) for axis in found)
    return Part(y, x, 1)


def _show_part(scene: Scene, runs: Sequence[RunResults], shown: Shown, part: Part) -> list[Shot]:
    """Inputs, predictions and truth of a part."""
    provenance = scene.group.attrs["provenance"]

    def show_role(role: str, words: str) -> Shot:
        values, valid = _read_role(scene.group, role, part)
        return Shot(_to_uri(to_colours(values, valid, *scene.looks[role]), scene, part), words, _find_day(provenance, role))

    shots = [show_role(role, words) for role, words in shown.inputs.items()]
    for run in runs:
        values, valid = _read_prediction(run, scene, part)
        shots.append(Shot(_to_uri(to_colours(values, valid, *scene.looks[""]), scene, part), f"made by {name_run(run)}"))
    return shots + [show_role(role, words) for role, words in shown.truth.items()]


def _to_uri(picture: Picture, scene: Scene, part: Part) -> str:
    """A whole image shrunk, a detail enlarged."""
    if part.rows.stop - part.rows.start > DETAIL_PX or part.columns.stop - part.columns.start > DETAIL_PX:
        return encode_png(shrink_picture(picture, scene.px))
    factor = max(1, -(-DETAIL_PICTURE_PX // max(picture.shape[:2])))
    return encode_png(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def _find_day(provenance: Json, role: str) -> str:
    facts = provenance.get(role) or {}
    day = show_day(str(facts.get("time", "")), facts.get("properties") or {})
    return "" if day == NOTHING else day


def _read_prediction(run: RunResults, scene: Scene, part: Part) -> tuple[Array, Array]:
    """The bands of a predicted image that are the group's, and where there is an answer."""
    height, width = (len(range(axis.start, axis.stop, part.step)) for axis in (part.rows, part.columns))
    window = Window.from_slices((part.rows.start, part.rows.stop), (part.columns.start, part.columns.stop))
    with rasterio.open(run.predictions[scene.key].with_suffix(".tif")) as image:
        bands = list(range(1, len(bands_of(scene.group)) + 1))
        values = image.read(bands, window=window, out_shape=(len(bands), height, width), resampling=Resampling.nearest)
    return values, values[0] != NODATA


def _tabulate_files(results: Results, key: Key, runs: Sequence[RunResults]) -> Table:
    rows = []
    for run in runs:
        path = run.predictions[key]
        record = read_json(path)
        size = " × ".join(str(side) for side in record["shape"])
        file = str(path.with_suffix(".tif").relative_to(results.folder))
        shares = [show_share(record["shares"][name]) for name in ("reconstructed", "nodata")]
        rows.append([Cell(word) for word in (run.name, file, size, *shares)])
    return Table(("run", "GeoTIFF", "rows × columns", "made", "no answer"), rows, n_words=2)


def _score_image(results: Results, scene: Scene, runs: Sequence[RunResults], shown: Shown) -> list[Block]:
    """Predictions against the truth, on all clear pixels of the image and on its test ground."""
    (role,) = shown.truth
    grid = GridRecord.from_geobox(geobox_of(scene.group))
    there = scene.group[f"valid_{role}"].values & ~_find_cloud(results, scene, role)
    for run in runs:
        with rasterio.open(run.predictions[scene.key].with_suffix(".tif")) as image:
            there &= image.read(1) != NODATA
    tested = there & mark_split(results.records, scene.key[0], grid)
    rows = []
    for run in runs:
        errors = [number for region in (there, tested) for number in _measure_errors(run, scene, role, region)]
        words = (show_number(value, digits) for value, digits in zip(errors, (2, 4, 2, 4), strict=True))
        rows.append([Cell(run.name), *map(Cell, words)])
    head = ("against the truth", "PSNR, dB", "MAE", "PSNR, dB, test ground", "MAE, test ground")
    note = f"Compared: {show_share(there.mean())} of the image; on test ground {show_share(tested.mean())}. The rest of the image includes "
    note += "ground that the networks were trained on; the columns of test ground do not."
    return [Table(head, mark_best(rows, (True, False, True, False))), Text(note, "small")]


def _find_cloud(results: Results, scene: Scene, role: str) -> Array:
    """Where the truth is cloud or shadow by its mask; nowhere without one."""
    path = results.manifest("mask", scene.key)
    nowhere = np.zeros(scene.group[f"valid_{role}"].shape, bool)
    if not path.is_file():
        return nowhere
    masks = open_dataset(path, kind="mask")
    names = [f"{kind}_{role}" for kind in ("cloud", "shadow") if f"{kind}_{role}" in masks]
    found: Array = np.logical_or.reduce([masks[name].values >= CLOUDY_FROM for name in names]) if names else nowhere
    return found


def _measure_errors(run: RunResults, scene: Scene, role: str, region: Array) -> tuple[float, float]:
    """PSNR in dB (peak 1) and MAE of an image in a region (y, x), band by band; NaN if it is empty."""
    if not region.any():
        return math.nan, math.nan
    squares, absolutes = [], []
    with rasterio.open(run.predictions[scene.key].with_suffix(".tif")) as image:
        for band in range(len(bands_of(scene.group))):
            true = scene.group[role].isel(band=band).values[region]
            difference = (image.read(band + 1)[region].astype(np.float64) - true) / REFLECTANCE_SCALE
            squares.append(float(np.mean(difference**2)))
            absolutes.append(float(np.mean(np.abs(difference))))
    mse = float(np.mean(squares))
    return (-10 * math.log10(mse) if mse else math.inf), float(np.mean(absolutes))
