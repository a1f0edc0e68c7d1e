"""The pictures of the report: cleared scenes beside what went in and what is true, and example patches.

Results enter; blocks of the page leave, with the scores of a scene against its simulated truth where there is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import rasterio
import xarray as xr
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from sereno.model.page import Block, Cell, Heading, Legend, Shot, Shots, Table, Text, mark_best, show_day, show_number, show_share
from sereno.model.pictures import (
    PROVENANCE,
    Stretch,
    encode_png,
    measure_stretch,
    read_png,
    shrink_picture,
    to_error_colours,
    to_provenance_colours,
    to_sar_composite,
    to_true_colour,
)
from sereno.model.results import Array, Key, Results, RunResults, find_error, find_truth, is_stale, list_cleared, read_examples
from sereno.pipeline.pairs import GridRecord
from sereno.pipeline.patches import CLOUDY_FROM, MASK_CHANNELS
from sereno.pipeline.scene import REFLECTANCE_SCALE, bands_of, geobox_of
from sereno.pipeline.store import open_dataset, read_json

PICTURE_BUDGET_PX: Final = 4_000_000
"""Pixels of all scene pictures together, about 5 MB; where there are many, each becomes smaller."""
SCENE_COLUMNS: Final = 5
"""Scene pictures side by side: one run's story in one row."""
PATCH_PICTURE_PX: Final = 200
"""Longest side of an example patch."""
SAMPLES_PER_PIXEL: Final = 4
"""Scenes are read at most so many times finer than they are shown, so that memory follows the page and not the scene."""
STRETCH_SCENES: Final = 12
"""Clear scenes that the stretch is measured on, at most."""
STRETCH_SAMPLES_PX: Final = 600
"""They are thinned to about this side."""
PROGRESS_PX: Final = 600
"""Longest side of a picture of validation patches."""
ERROR_TOP: Final = 0.1
"""Absolute error in reflectance that is shown brightest."""
NODATA: Final = 65_535
"""Stored value of pixels without an answer, in cleared scenes and in the simulated truth."""
BASELINE_WORDS: Final = {
    "copy": "copy of the cloudy image",
    "mean": "training mean",
    "fill": "smooth fill",
    "dates": "clear dates around it",
}
"""Short names of the methods that need no weights."""


class Truth(NamedTuple):
    """What truly lies under the clouds of a scene."""

    path: Path
    """Image without clouds, where it truly lies."""
    moved_m: tuple[float, float]
    """East and north by which the clear scene, and with it the whole pair, lies off."""


class Look(NamedTuple):
    """How scenes are shown, the same for all of them."""

    stretch: Stretch
    """Of optical pictures."""
    px: int
    """Longest side of a picture."""


def choose_stretch(results: Results) -> Stretch:
    """One stretch for all optical pictures, from the clear scenes of the cleared pairs, or from the example targets.

    Raises:
        MissingError: the bands lack red, green or blue.
    """
    keys = list_cleared(results)
    if keys:
        pairs = [_open_thinned(results.manifest("align", key), STRETCH_SAMPLES_PX) for key in keys[:STRETCH_SCENES]]
        return measure_stretch([(pair["clear"].values, pair["valid_clear"].values) for pair in pairs], bands_of(pairs[0]))
    for run in results.runs:
        examples = read_examples(run)
        if examples:
            return measure_stretch([(image, image.any(0)) for image in examples["clear"]], tuple(examples["bands"].tolist()))
    return measure_stretch([], ("B04", "B03", "B02"))


def _open_thinned(manifest: Path, samples_px: int) -> xr.Dataset:
    """A pair with every so many-th pixel, its longer side about `samples_px` to twice that, or whole if it is smaller."""
    pair = open_dataset(manifest, kind="pair")
    step = max(1, max(pair.sizes["y"], pair.sizes["x"]) // samples_px)
    return pair.isel(y=slice(None, None, step), x=slice(None, None, step))


def describe_scenes(results: Results, stretch: Stretch, *, picture_px: int) -> list[Block]:
    """Cloudy, SAR, cleared and true pictures of every cleared scene, with its shares and, where the truth is known, its error."""
    keys = list_cleared(results)
    if not keys:
        return [Text("No scene has been cleared, or its pair is no longer there: run `sereno predict`.", "missing")]
    n_pictures = sum(3 + sum(key in run.predictions for run in results.runs) for key in keys)
    look = Look(stretch, min(picture_px, int(math.sqrt(PICTURE_BUDGET_PX / n_pictures))))
    blocks: list[Block] = [
        Text(
            f"All optical pictures of this page share one stretch: reflectance {stretch.low:.3f} is black, {stretch.high:.3f} white. "
            "SAR is shown with VV or HH in red, VH or HV in green and their difference in dB in blue."
        ),
        Legend([(f"rgb{colour}", words) for words, colour in PROVENANCE.values()]),
    ]
    return blocks + [block for key in keys for block in _describe_scene(results, key, look)]


def _describe_scene(results: Results, key: Key, look: Look) -> list[Block]:
    pair = _open_thinned(results.manifest("align", key), SAMPLES_PER_PIXEL * look.px)
    provenance = pair.attrs["provenance"]
    if provenance.get("refused"):
        return [Heading(f"{key[0]} · {key[1]}"), Text(f"This pair is not used: {provenance['refused']}.", "bad")]
    cleared, sources, rows = [], [], []
    for run in results.runs:
        if key in run.predictions:
            image, where = _show_prediction(run.predictions[key].with_suffix(".tif"), look)
            cleared.append(Shot(image, f"cleared by {run.name}", "the cloudy date"))
            sources.append(Shot(where, f"provenance, {run.name}", "where each pixel comes from"))
            rows.append(_to_share_row(run, key, results.folder))
    stale = [run.name for run in results.runs if key in run.predictions and is_stale(run, key)]
    truth = _find_truth(results, provenance)
    shots = [*_show_inputs(pair, look), *cleared, _show_target(pair, truth, look), *sources]
    blocks: list[Block] = [Heading(f"{key[0]} · {key[1]}"), Shots(shots, "scene", SCENE_COLUMNS)]
    blocks.append(Table(("run", "GeoTIFF", "observed", "reconstructed", "not observed"), rows, n_words=2))
    if stale:
        blocks.append(Text(f"{', '.join(stale)}: cleared with other weights than those that are scored here: run `sereno predict`.", "bad"))
    return blocks if truth is None else [*blocks, *_score_scene(results, key, truth)]


def _find_truth(results: Results, provenance: Mapping[str, Any]) -> Truth | None:
    path = find_truth(results, str(provenance["cloudy"]["item"]))
    return None if path is None else Truth(path, find_error(results, str(provenance["clear"]["item"])) or (0.0, 0.0))


def _show_inputs(pair: xr.Dataset, look: Look) -> list[Shot]:
    provenance = pair.attrs["provenance"]
    gap = show_number(provenance["pair"]["sar_gap_days"], 2, sign=True)
    sar = to_sar_composite(pair["sar"].values, pair["valid_sar"].values, sar_bands=bands_of(pair, "sar_band"))
    return [
        Shot(_show_optical(pair, "cloudy", look), *_name_input(provenance)),
        Shot(encode_png(shrink_picture(sar, look.px)), "SAR", f"{_show_day(provenance['sar'])}, {gap} days"),
    ]


def _name_input(provenance: Mapping[str, Any]) -> tuple[str, str]:
    """Heading and words of the picture of the input."""
    sky, day = provenance["pair"].get("sky"), _show_day(provenance["cloudy"])
    return ("cloudy", day) if sky is None else ("simulated clouds", f"sky {sky} over {day}")


def _show_optical(pair: xr.Dataset, role: str, look: Look) -> str:
    picture = to_true_colour(pair[role].values, pair[f"valid_{role}"].values, bands=bands_of(pair), stretch=look.stretch)
    return encode_png(shrink_picture(picture, look.px))


def _show_target(pair: xr.Dataset, truth: Truth | None, look: Look) -> Shot:
    """The simulated truth of the cloudy date, or else the clear scene with its date."""
    provenance = pair.attrs["provenance"]
    if truth is not None:
        bands = bands_of(pair)
        image = read_image(truth.path, bands, GridRecord.from_geobox(geobox_of(pair)), moved_m=truth.moved_m)
        picture = encode_png(shrink_picture(to_true_colour(image, image[0] != NODATA, bands=bands, stretch=look.stretch), look.px))
        return Shot(picture, "true", f"{_show_day(provenance['cloudy'])}, simulated without clouds")
    if provenance["pair"].get("sky") is not None:
        return Shot(_show_optical(pair, "clear", look), "clear", f"{_show_day(provenance['clear'])}, the image under the simulated clouds")
    gap = show_number(provenance["pair"]["clear_gap_days"], 1, sign=True)
    return Shot(_show_optical(pair, "clear", look), "clear", f"{_show_day(provenance['clear'])}, {gap} days: another day")


def _show_prediction(path: Path, look: Look) -> tuple[str, str]:
    """True-colour and provenance pictures of a written image; the second is empty for an image without that band."""
    with rasterio.open(path) as image:
        step = max(1, max(image.shape) // (SAMPLES_PER_PIXEL * look.px))
        values = image.read(out_shape=(image.count, image.height // step, image.width // step), resampling=Resampling.nearest)
        names, nodata = tuple(image.descriptions), image.nodata
    optical = to_true_colour(values, (values[0] != nodata), bands=names, stretch=look.stretch)
    where = encode_png(shrink_picture(to_provenance_colours(values[-1]), look.px)) if names[-1] == "provenance" else ""
    return encode_png(shrink_picture(optical, look.px)), where


def _to_share_row(run: RunResults, key: Key, folder: Path) -> list[Cell]:
    path = run.predictions[key]
    shares = read_json(path)["shares"]
    words = [show_share(shares[name]) for name in ("observed", "reconstructed", "nodata")]
    return [Cell(word) for word in (run.name, str(path.with_suffix(".tif").relative_to(folder)), *words)]


def _score_scene(results: Results, key: Key, truth: Truth) -> list[Block]:
    """Cleared scenes and the copy against the truth, on cloudy pixels of the whole scene and of its test patches."""
    if not results.manifest("mask", key).is_file():
        return [Text("This pair has no masks, so no error of cloudy pixels against the truth: run `sereno mask`.", "missing")]
    pair, masks = (open_dataset(results.manifest(step, key), kind=kind) for step, kind in (("align", "pair"), ("mask", "mask")))
    grid, bands = GridRecord.from_geobox(geobox_of(pair)), bands_of(pair)
    images = {run.name: read_image(run.predictions[key].with_suffix(".tif"), bands, grid) for run in results.runs if key in run.predictions}
    true = read_image(truth.path, bands, grid, moved_m=truth.moved_m)
    cloudy = np.maximum(masks["cloud_cloudy"].values, masks["shadow_cloudy"].values) >= CLOUDY_FROM
    there = cloudy & pair["valid_cloudy"].values & (true[0] != NODATA)
    for image in images.values():
        there &= image[0] != NODATA
    tested = there & mark_split(results.records, key[0], grid)
    rows = [_to_truth_row(name, image, true, (there, tested)) for name, image in {"copy": pair["cloudy"].values, **images}.items()]
    head = ("against the truth, cloudy pixels", "PSNR, dB", "MAE", "PSNR, dB, test ground", "MAE, test ground")
    note = (
        f"Cloudy pixels with an answer: {show_share(there.mean())} of the scene; on test ground {show_share(tested.mean())}. "
        "The rest of the scene includes ground that the networks were trained on; the columns of test ground do not."
    )
    return [Table(head, mark_best(rows, (True, False, True, False))), Text(note, "small")]


def read_image(path: Path, bands: tuple[str, ...], grid: GridRecord, *, moved_m: tuple[float, float] = (0.0, 0.0)) -> Array:
    """The bands asked for on that grid, (band, y, x) uint16, NODATA where the file has nothing; its content moved east and north."""
    with rasterio.open(path) as image:
        places = [image.descriptions.index(name) + 1 for name in bands]
        options = {"crs": grid.crs, "transform": rasterio.Affine(*grid.transform), "height": grid.shape[0], "width": grid.shape[1]}
        resampling = Resampling.bilinear if any(moved_m) else Resampling.nearest
        options |= {"src_transform": rasterio.Affine.translation(*moved_m) * image.transform, "src_crs": image.crs}
        with WarpedVRT(image, resampling=resampling, nodata=NODATA, **options) as laid:
            values: Array = laid.read(places)
    return values


def mark_split(records: Sequence[Mapping[str, str]], area: str, grid: GridRecord, split: str = "test") -> Array:
    """Where patches of a split lie on the grid of an area, (y, x) bool."""
    marked = np.zeros(grid.shape, bool)
    for bounds in {row["bounds_m"] for row in records if (row["area"], row["split"]) == (area, split)}:
        left, bottom, right, top = json.loads(bounds)
        (first_col, first_row), (last_col, last_row) = (
            ~rasterio.Affine(*grid.transform) * corner for corner in ((left, top), (right, bottom))
        )
        marked[max(0, round(first_row)) : round(last_row), max(0, round(first_col)) : round(last_col)] = True
    return marked


def _to_truth_row(name: str, image: Array, true: Array, regions: tuple[Array, Array]) -> list[Cell]:
    errors = [error for region in regions for error in compare_images(image, true, region)]
    return [
        Cell(BASELINE_WORDS.get(name, name)),
        *(Cell(show_number(error, digits)) for error, digits in zip(errors, (2, 4, 2, 4), strict=True)),
    ]


def compare_images(image: Array, true: Array, region: Array) -> tuple[float, float]:
    """PSNR in dB (peak 1) and MAE in reflectance over a region: stored (band, y, x) twice, (y, x) bool -> numbers, NaN if it is empty."""
    if not region.any():
        return math.nan, math.nan
    squares, absolutes = [], []
    for ours, theirs in zip(image, true, strict=True):
        difference = (ours[region].astype(np.float64) - theirs[region]) / REFLECTANCE_SCALE
        squares.append(float(np.mean(difference**2)))
        absolutes.append(float(np.mean(np.abs(difference))))
    mse = float(np.mean(squares))
    return (-10 * math.log10(mse) if mse else math.inf), float(np.mean(absolutes))


def describe_progress(results: Results) -> list[Block]:
    """How the same validation patches looked at the first, the middle and the last validation of each run; nothing without pictures.

    Raises:
        StoreError: a picture is damaged.
    """
    blocks: list[Block] = []
    for run in results.runs:
        steps = list(run.pictures)
        shown = sorted({steps[place] for place in (0, len(steps) // 2, -1)}) if steps else []
        shots = [Shot(encode_png(shrink_picture(read_png(run.pictures[step]), PROGRESS_PX)), f"after {step} steps") for step in shown]
        if shots:
            blocks += [Heading(f"Validation patches while {run.name} was trained"), Shots(shots, "map")]
    if blocks:
        blocks.append(
            Text("A row per patch: input, SAR if there is some, the network's answer, target; one stretch for each run.", "small")
        )
    return blocks


def describe_examples(results: Results, stretch: Stretch) -> list[Block]:
    """Some patches with every run's answer, its error, and the scores of cloudy pixels."""
    examples = {run.name: read_examples(run) for run in results.runs}
    examples = {name: arrays for name, arrays in examples.items() if arrays}
    if not examples:
        return [Text("No example patches were kept: set `evaluate.examples` above 0 and run `sereno evaluate`.", "missing")]
    first = next(iter(examples.values()))
    blocks: list[Block] = [
        Text(
            "Patches from the least to the most cloudy input. Scores are of cloudy pixels. Errors are means over the bands, black for 0 "
            f"to yellow for a reflectance of {ERROR_TOP:g} and more; grey ground has no clear target."
        )
    ]
    for place in np.argsort(first["cloud_input_share"], kind="stable"):
        name, cover = str(first["id"][place]), show_share(float(first["cloud_input_share"][place]))
        shots = _show_example(examples, name, stretch)
        blocks += [Heading(f"{name}: {cover} cloud and shadow"), Shots(shots, "patch", len(shots))]
    return blocks


def _show_example(examples: Mapping[str, Mapping[str, Array]], name: str, stretch: Stretch) -> list[Shot]:
    """Cloudy, SAR, smooth fill, networks, target, and the networks' errors of one patch."""
    found = {run: (arrays, arrays["id"].tolist().index(name)) for run, arrays in examples.items() if name in arrays["id"]}
    arrays, place = next(iter(found.values()))
    mask = dict(zip(MASK_CHANNELS, arrays["mask"][place], strict=True))
    bands = tuple(arrays["bands"].tolist())
    everywhere = np.ones_like(mask["valid_input"], bool)

    def show(image: Array, valid: Array) -> str:
        return encode_png(shrink_picture(to_true_colour(image, valid > 0, bands=bands, stretch=stretch), PATCH_PICTURE_PX))

    sar = to_sar_composite(arrays["sar"][place], mask["valid_sar"] > 0, sar_bands=tuple(arrays["sar_bands"].tolist()))
    shots = [
        Shot(show(arrays["cloudy"][place], mask["valid_input"]), "cloudy", _show_scores(arrays, place, "copy")),
        Shot(encode_png(shrink_picture(sar, PATCH_PICTURE_PX)), "SAR"),
        *(
            Shot(show(arrays[name][place], everywhere), BASELINE_WORDS[name], _show_scores(arrays, place, name))
            for name in ("fill", "dates")
            if name in arrays
        ),
    ]
    shots += [Shot(show(a["prediction"][p], everywhere), run, _show_scores(a, p, "network")) for run, (a, p) in found.items()]
    shots.append(Shot(show(arrays["clear"][place], mask["valid_target"]), "clear target"))
    trusted = (mask["valid_target"] > 0) & (np.maximum(mask["cloud_target"], mask["shadow_target"]) < CLOUDY_FROM)
    return shots + [Shot(_show_error(a["prediction"][p], a["clear"][p], trusted), f"error of {run}") for run, (a, p) in found.items()]


def _show_error(prediction: Array, target: Array, trusted: Array) -> str:
    error = np.abs(prediction.astype(np.float32) - target).mean(0) / REFLECTANCE_SCALE
    return encode_png(shrink_picture(to_error_colours(error, trusted, top=ERROR_TOP), PATCH_PICTURE_PX), colours=64)


def _show_scores(arrays: Mapping[str, Array], place: int, method: str) -> str:
    """PSNR and SSIM of the cloudy pixels of one example."""
    methods, regions, columns = (arrays[name].tolist() for name in ("methods", "regions", "columns"))
    scores = arrays["scores"][place, methods.index(method), regions.index("cloudy")]
    psnr, ssim = (float(scores[columns.index(key)]) for key in ("psnr", "ssim"))
    return "no cloudy pixel" if math.isnan(psnr) else f"{show_number(psnr, 1)} dB, {show_number(ssim, 3)}"


def _show_day(scene: Mapping[str, Any]) -> str:
    return show_day(scene["time"], scene.get("properties", {}))
