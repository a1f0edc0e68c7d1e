"""Lay the three scenes of a pair on one grid.

Scenes and the lock enter; a pair leaves. The optical scenes already lie on the area's grid. The field of shifts of SAR is measured against
the clear scene and taken out in the one interpolation that brings SAR onto the grid, or refused, and the record says which and why. Ground
outside the area's outline is not valid, and nothing is where one of the three scenes was refused.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from sereno.pipeline.clouds import SCL_CLOUD, SCL_SHADOW
from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.geometry import resample_sar, to_metres
from sereno.pipeline.pairs import Lock, Pair
from sereno.pipeline.radiometry import centi_db_to_power, power_to_centi_db, to_reflectance
from sereno.pipeline.registration import Bool, Float, Layer, Registration, estimate_field, start_registration
from sereno.pipeline.scene import OPTICAL_UNITS, SAR_UNITS, bands_of, geobox_of, with_grid
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)

STRUCTURE_BANDS: Final = ("B03", "B04", "B08", "B2", "B3", "B4")
"""Green, red and near infrared, of Sentinel-2 and of Gaofen: together they show nearly every border that SAR sees (SEN12MS-CR)."""


class Scenes(NamedTuple):
    """The three scenes of a pair, as `sereno.pipeline.scene` defines them."""

    sar: xr.Dataset
    """On its own grid."""
    cloudy: xr.Dataset
    """On the area's grid."""
    clear: xr.Dataset
    """On the area's grid."""


def align_pair(lock_and_pair: tuple[Path, str], scenes: tuple[Path, Path, Path], output: Path, settings: AlignSettings) -> None:
    """Write the pair at `output` from the lock, the pair's id and the manifests of its SAR, cloudy and clear scenes.

    A pair with a scene that `ingest` refused is written too, with no valid pixel and the reason in its provenance under `refused`.

    Raises:
        MissingError: lock, pair or scene is not there, or no band is left that shows structure.
        DataError: a scene is not the one that the lock names, lies on another grid, or cloudy and clear do not belong together.
    """
    started = time.monotonic()
    lock, pair_id = Lock.read(lock_and_pair[0]), lock_and_pair[1]
    pair, grid = lock.pair(pair_id), lock.grid.to_geobox()
    logger.info("align: %s/%s", lock.area, pair.id)
    opened = Scenes(*(open_dataset(manifest, kind="scene") for manifest in scenes))
    check_scenes(opened, lock, pair, scenes)
    refused = find_refusal(opened)
    registration, aligned = _place_sar(opened, grid, settings) if refused is None else _leave_sar(opened, grid, refused)
    shift_m = to_metres(registration.shift_px, grid)
    provenance = {
        "pair": pair.model_dump(mode="json"),
        "area": lock.area,
        **{role: scene.attrs["provenance"] for role, scene in opened._asdict().items()},
        "registration": registration.to_record() | {"shift_m": [round(metres, 3) for metres in shift_m]},
        "refused": refused,
    }
    inside = mark_inside(lock.outline, grid) if refused is None else np.zeros(grid.shape, bool)
    dataset = limit_to(inside, to_pair(opened, aligned, grid, provenance))
    save_dataset(dataset, output, kind="pair", summary=_summarise(dataset))
    seconds = time.monotonic() - started
    logger.info("align: %s/%s: shift %s, %s, %.1f s", lock.area, pair.id, registration.verdict, registration.reason, seconds)


def find_refusal(scenes: Scenes) -> str | None:
    """Which of the scenes was refused when it was read, and why, in words; None if none was."""
    found = [
        f"the {role} scene: {scene.attrs['provenance'].get('refused')}" for role, scene in scenes._asdict().items() if is_refused(scene)
    ]
    return "; ".join(found) or None


def is_refused(scene: xr.Dataset) -> bool:
    """Whether `ingest` found that the scene is not to be used."""
    return scene.attrs["provenance"].get("refused") is not None


def _place_sar(scenes: Scenes, grid: GeoBox, settings: AlignSettings) -> tuple[Registration, tuple[Float, Bool]]:
    """The field of shifts of SAR, and SAR (linear power, validity) on `grid` with the field taken out."""
    power, valid, source = centi_db_to_power(scenes.sar["data"].values), scenes.sar["valid"].values, geobox_of(scenes.sar)
    registration = measure_field(scenes.clear, resample_sar(power, valid, source=source, target=grid), settings)
    return registration, resample_sar(power, valid, source=source, target=grid, field=registration.field)


def _leave_sar(scenes: Scenes, grid: GeoBox, refused: str) -> tuple[Registration, tuple[Float, Bool]]:
    """What stands for the shift and for SAR in a pair that is not to be used."""
    nothing = np.zeros((len(bands_of(scenes.sar, "sar_band")), *grid.shape), np.float32)
    start = start_registration((grid.shape.y, grid.shape.x), refused, pixel_m=measure_pixel(grid))
    return start, (nothing, np.zeros(grid.shape, bool))


def mark_inside(outline: dict[str, Any] | None, grid: GeoBox) -> Bool:
    """Pixels of `grid` whose centre lies inside `outline`, a GeoJSON geometry in the grid's CRS, (y, x) bool; all of them without one."""
    if outline is None:
        return np.ones(grid.shape, bool)
    inside: Bool = geometry_mask([outline], out_shape=grid.shape, transform=grid.transform, invert=True)
    return inside


def limit_to(inside: Bool, pair: xr.Dataset) -> xr.Dataset:
    """`pair` with nothing valid outside `inside`, (y, x) bool; there values are 0, as they are wherever nothing is valid."""
    if inside.all():
        return pair
    names = [name for role in Scenes._fields for name in (role, f"valid_{role}")]
    return pair.assign({name: pair[name].copy(data=pair[name].values * inside) for name in names})


def check_scenes(scenes: Scenes, lock: Lock, pair: Pair, manifests: tuple[Path, Path, Path]) -> None:
    """Refuse scenes that are not those of `pair`, or do not fit each other.

    Raises:
        DataError: see `align_pair`; the message names the manifest.
    """
    grid = lock.grid.to_geobox()
    for role, scene, manifest in zip(Scenes._fields, scenes, manifests, strict=True):
        dim, expected = ("sar_band" if role == "sar" else "band"), lock.scene(getattr(pair, role)).item
        if dim not in scene.dims:
            raise DataError(
                f"{manifest} is given as the {role} scene of {pair.id}, but its values lie along {scene['data'].dims}, not {dim!r}"
            )
        item = scene.attrs["provenance"]["item"]
        if item != expected:
            raise DataError(
                f"{manifest} holds item {item!r}, but the {role} scene of {pair.id} is {expected!r}: run `sereno ingest` for it again"
            )
        if role != "sar" and geobox_of(scene) != grid:
            raise DataError(
                f"{manifest} lies on {geobox_of(scene)!r}, but the lock's grid is {grid!r}: run `sereno ingest` with this lock again"
            )
    _check_same_product(scenes, pair)


def _check_same_product(scenes: Scenes, pair: Pair) -> None:
    levels = [scene.attrs["provenance"]["sensor"] for scene in (scenes.cloudy, scenes.clear)]
    if levels[0] != levels[1]:
        raise DataError(f"pair {pair.id}: cloudy is of product {levels[0]!r}, clear of {levels[1]!r}; both must be of one processing level")
    bands = [bands_of(scene) for scene in (scenes.cloudy, scenes.clear)]
    if bands[0] != bands[1]:
        raise DataError(f"pair {pair.id}: cloudy has bands {bands[0]}, clear has {bands[1]}; set pipeline.ingest.bands to those of both")


def measure_field(clear: xr.Dataset, sar: tuple[Float, Bool], settings: AlignSettings) -> Registration:
    """The field of shifts of `sar` (linear power and validity on the grid of `clear`) relative to the clear scene's cloud-free ground.

    Raises:
        MissingError: `clear` has none of the bands that show structure.
    """
    names = [name for name in STRUCTURE_BANDS if name in bands_of(clear)]
    if not names:
        raise MissingError(f"one of {STRUCTURE_BANDS} is needed to align, scenes have {bands_of(clear)}: add it to pipeline.ingest.bands")
    ground = clear["valid"].values
    if "scl" in clear:
        ground = ground & ~np.isin(clear["scl"].values, (*SCL_CLOUD, *SCL_SHADOW))
    power, valid = sar
    decibel = 10 * np.log10(np.where(valid & (power > 0), power, np.nan))
    optical = to_reflectance(clear["data"].sel(band=names).values)
    return estimate_field(Layer(optical, ground), Layer(decibel, valid, "sar"), settings, pixel_m=measure_pixel(geobox_of(clear)))


def measure_pixel(grid: GeoBox) -> float:
    """Side of a pixel of `grid` in units of its CRS, metres for UTM."""
    return float(np.sqrt(abs(grid.transform.determinant)))


def to_pair(scenes: Scenes, aligned: tuple[Float, Bool], grid: GeoBox, provenance: dict[str, Any]) -> xr.Dataset:
    """The pair as a dataset on `grid`, from the scenes and SAR (linear power, validity) on that grid."""
    stored, _ = power_to_centi_db(*aligned)
    variables: dict[str, Any] = {
        "sar": (("sar_band", "y", "x"), stored, {"units": SAR_UNITS}),
        "valid_sar": (("y", "x"), aligned[1]),
    }
    for role, scene in (("cloudy", scenes.cloudy), ("clear", scenes.clear)):
        variables[role] = (("band", "y", "x"), scene["data"].values, {"units": OPTICAL_UNITS})
        variables[f"valid_{role}"] = (("y", "x"), scene["valid"].values)
        if "scl" in scene:
            variables[f"scl_{role}"] = (("y", "x"), scene["scl"].values)
        elif is_refused(scene):  # the next step wants classes, and 0 says that there are none
            variables[f"scl_{role}"] = (("y", "x"), np.zeros(grid.shape, np.uint8))
    names = {"band": list(bands_of(scenes.clear)), "sar_band": list(bands_of(scenes.sar, "sar_band"))}
    return with_grid(xr.Dataset(variables, coords=names, attrs={"provenance": provenance}), grid)


def _summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """What people and the report want to know of a pair without opening it."""
    provenance = dataset.attrs["provenance"]
    shares = {role: round(float(dataset[f"valid_{role}"].values.mean()), 6) for role in Scenes._fields}
    return {
        "area": provenance["area"],
        "pair": provenance["pair"],
        "bands": list(bands_of(dataset)),
        "sar_bands": list(bands_of(dataset, "sar_band")),
        "valid_share": shares,
        "registration": provenance["registration"],
        "refused": provenance["refused"],
    }
