"""Lay the scenes of a pair on one grid, or those of a group on each other.

Scenes and the lock enter; a pair leaves, or for other tasks than cloud removal a group. The clear scene of a pair stays where it is. The
field of shifts of SAR, and where needed those of the cloudy scene and of the dates around a pair, is measured against it and taken out in
the one interpolation that brings the image onto the grid, or refused, and the record says which and why. Ground outside the area's outline
is not valid, and nothing is where a scene was refused, or where the coefficients that placed them are too coarse to be believed and no
field was found.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask
from scipy.ndimage import uniform_filter

from sereno.pipeline import cube_samples, fusion_samples, sharpening_samples
from sereno.pipeline.clouds import SCL_CLOUD, SCL_NODATA, Visible, find_by_haze
from sereno.pipeline.config import AlignSettings, TaskName
from sereno.pipeline.descriptors import SIMILARITY_EDGE_PX
from sereno.pipeline.detectors import VISIBLE_BANDS
from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.geometry import displace_pixels, measure_pixel, to_metres
from sereno.pipeline.groups import to_coarse_grid, to_group
from sereno.pipeline.material import Laid
from sereno.pipeline.pairs import Group, Lock, Pair, SceneRecord, is_gaofen
from sereno.pipeline.plates import place_scene
from sereno.pipeline.radiometry import power_to_centi_db, to_reflectance
from sereno.pipeline.registration import (
    Bool,
    Layer,
    Placer,
    Registration,
    check_search,
    estimate_field,
    settle_field,
    start_registration,
)
from sereno.pipeline.scene import (
    CENTI_DB,
    MAX_REFLECTANCE,
    OPTICAL_UNITS,
    REFLECTANCE_SCALE,
    SAR_UNITS,
    bands_of,
    geobox_of,
    plates_of,
    to_scene,
    with_grid,
)
from sereno.pipeline.shiftfield import ShiftField, make_shift
from sereno.pipeline.skies import cover_pair
from sereno.pipeline.store import open_dataset, save_dataset

logger = logging.getLogger(__name__)

STRUCTURE_BANDS: Final = ("B03", "B04", "B08", "B2", "B3", "B4")
"""Green, red and near infrared, of Sentinel-2 and of Gaofen: together they show nearly every border that SAR sees (SEN12MS-CR)."""


class Scenes(NamedTuple):
    """The scenes of a pair, as `sereno.pipeline.scene` defines them."""

    sar: xr.Dataset
    """On its own grid as it is read, on the area's once it is aligned."""
    cloudy: xr.Dataset
    """On the area's grid."""
    clear: xr.Dataset
    """On the area's grid."""
    before: xr.Dataset | None = None
    """The clear date before both, on the area's grid; None if the pair has none."""
    after: xr.Dataset | None = None
    """The clear date after both; likewise."""

    @property
    def by_role(self) -> dict[str, xr.Dataset]:
        """Those that there are by their roles."""
        return {role: scene for role, scene in self._asdict().items() if scene is not None}

    @property
    def others(self) -> dict[str, xr.Dataset]:
        """Optical scenes that are no target: they are laid onto it."""
        return {role: scene for role, scene in self.by_role.items() if role not in ("sar", "clear")}


class Aligned(NamedTuple):
    """Scenes on one grid, and how they came to lie on each other."""

    scenes: Scenes
    """All on the area's grid."""
    sar: Registration
    """The field of SAR relative to the clear scene."""
    others: dict[str, Registration | None]
    """Those of the cloudy scene and of dates around the pair, by role; None of one where none was wanted."""


def align_pair(lock_and_pair: tuple[Path, str], scenes: Sequence[Path], output: Path, settings: AlignSettings) -> None:
    """Write the pair at `output` from the lock, the pair's id and the manifests of its scenes: SAR, cloudy, clear, and before and after.

    A pair with a scene that `ingest` refused is written too, with no valid pixel and the reason in its provenance under `refused`; so is
    one that `find_misplaced` refuses.

    Raises:
        ConfigError: the search is too narrow for the pixels of the grid.
        MissingError: lock, pair or scene is not there, or no band is left that shows structure.
        DataError: a scene is not the one that the lock names, lies on another grid, or cloudy and clear do not belong together.
    """
    started = time.monotonic()
    lock, pair_id = Lock.read(lock_and_pair[0]), lock_and_pair[1]
    pair, grid = lock.pair(pair_id), lock.grid.to_geobox()
    check_search(settings, pixel_m=measure_pixel(grid))
    logger.info("align: %s/%s", lock.area, pair.id)
    opened = Scenes(**{role: open_dataset(manifest, kind="scene") for role, manifest in zip(pair.roles, scenes, strict=True)})
    check_scenes(opened, lock, pair, scenes)
    refused = find_refusal(opened.by_role)
    aligned = _align_scenes(opened, pair, grid, settings) if refused is None else _leave_scenes(opened, grid, refused)
    refused = refused or find_misplaced(aligned)
    provenance = {
        "pair": pair.model_dump(mode="json"),
        "area": lock.area,
        **{role: scene.attrs["provenance"] for role, scene in opened.by_role.items()},
        "registration": _to_record(aligned.sar, grid),
        **{f"registration_{role}": None if one is None else _to_record(one, grid) for role, one in aligned.others.items()},
        "refused": refused,
    }
    inside = mark_inside(lock.outline, grid) if refused is None else np.zeros(grid.shape, bool)
    dataset = cover_pair(limit_to(inside, to_pair(aligned.scenes, grid, provenance)), settings.overlay)
    save_dataset(dataset, output, kind="pair", summary=_summarise(dataset))
    _log_end(f"{lock.area}/{pair.id}", aligned, refused, time.monotonic() - started)


class GroupSteps(NamedTuple):
    """How the scenes of a group of one task are laid onto each other."""

    check_scenes: Callable[[dict[str, xr.Dataset], str], None]
    """Refuses scenes that do not belong together; the text names the group."""
    lay_scenes: Callable[[dict[str, xr.Dataset], AlignSettings], Laid]
    """The scenes by role, moved where it is sure how, and what was measured."""


STEPS_OF: Final[Mapping[TaskName, GroupSteps]] = {
    "pansharpening": GroupSteps(sharpening_samples.check_product, sharpening_samples.lay_guide),
    "spatiotemporal-fusion": GroupSteps(fusion_samples.check_series, fusion_samples.lay_series),
    "snapshot-reconstruction": GroupSteps(cube_samples.check_cube, cube_samples.lay_cube),
}
"""One row per task that has groups."""


def align_job(lock_and_id: tuple[Path, str], scenes: Sequence[Path], output: Path, settings: AlignSettings) -> None:
    """Write the pair, or group, of the lock with that id; `scenes` are the manifests of its scenes in the lock's order.

    Raises:
        ConfigError: another number of scenes is given than it has.
        MissingError, DataError: as `align_pair` and `align_group`.
    """
    job = Lock.read(lock_and_id[0]).job(lock_and_id[1])
    if len(scenes) != len(job.scene_ids):
        raise ConfigError(f"{job.id} has the scenes {', '.join(job.scene_ids)}, but {len(scenes)} manifests are given: give one for each")
    if isinstance(job, Group):
        align_group(lock_and_id, scenes, output, settings)
    else:
        align_pair(lock_and_id, scenes, output, settings)


def align_group(lock_and_id: tuple[Path, str], scenes: Sequence[Path], output: Path, settings: AlignSettings) -> None:
    """Write the group at `output` from the lock, the group's id and the manifests of its scenes, in the order of the names of their roles.

    A group with a scene that `ingest` refused is written too, with no valid pixel and the reason in its provenance under `refused`.

    Raises:
        MissingError: lock, group or scene is not there.
        DataError: a scene is not the one that the lock names, lies on another grid, or they do not belong together.
    """
    started = time.monotonic()
    lock = Lock.read(lock_and_id[0])
    group, grid = lock.job(lock_and_id[1]), lock.grid.to_geobox()
    assert isinstance(group, Group)  # align_job has asked
    name, steps = f"{lock.area}/{group.id}", STEPS_OF[lock.task]
    logger.info("align: %s: %s", name, ", ".join(group.roles))
    opened = {role: open_dataset(path, kind="scene") for role, path in zip(group.roles, scenes, strict=True)}
    for (role, scene), path in zip(opened.items(), scenes, strict=True):
        record = lock.scene(group.scenes[role])
        _check_item(scene, path, f"the {role} scene of {group.id}", record)
        _check_grid(scene, path, to_coarse_grid(grid, record.zoom))
    steps.check_scenes(opened, group.id)
    refused = find_refusal(opened)
    laid = steps.lay_scenes(opened, settings) if refused is None else Laid(opened, {}, grid)
    found = {role: _to_record(one, laid.grid) for role, one in laid.registrations.items()}
    provenance = {
        "task": lock.task,
        "ratio": max(lock.scene(scene).zoom for scene in group.scenes.values()),
        "pair": group.model_dump(mode="json"),
        "area": lock.area,
        **{role: scene.attrs["provenance"] for role, scene in opened.items()},
        "registration": found,
        **laid.facts,
        "refused": refused,
    }
    kept = {role: _limit_scene(scene, lock.outline, refused) for role, scene in laid.scenes.items()}
    dataset = to_group(kept, grid, provenance)
    shares = {role: round(float(dataset[f"valid_{role}"].values.mean()), 6) for role in group.roles}
    told = {key: provenance[key] for key in ("task", "ratio", "pair", "area", "registration", *laid.facts, "refused")}
    bands = {role: list(bands_of(scene)) for role, scene in kept.items()}
    save_dataset(dataset, output, kind="group", summary=told | {"bands": bands, "valid_share": shares})
    if radiometry := laid.facts.get("radiometry"):
        fits = ", ".join(f"{band} x {fit['gain']:.3f} {fit['offset']:+.4f}" for band, fit in radiometry.items())
        logger.info("align: %s: coarse reflectance from averaged fine reflectance: %s", name, fits)
    _log_group(name, laid.registrations, refused, time.monotonic() - started)


def _limit_scene(scene: xr.Dataset, outline: dict[str, Any] | None, refused: str | None) -> xr.Dataset:
    """The scene with nothing valid outside the area's outline, and nowhere if its group was refused; there values are 0."""
    grid = geobox_of(scene)
    inside = mark_inside(outline, grid) if refused is None else np.zeros(grid.shape, bool)
    if inside.all():
        return scene
    return scene.assign({name: scene[name].copy(data=scene[name].values * inside) for name in ("data", "valid")})


def _log_group(name: str, found: Mapping[str, Registration], refused: str | None, seconds: float) -> None:
    for role, one in found.items():
        if one.verdict == "refused":
            logger.warning("align: %s: %s stays where its geocoding puts it: %s", name, role, one.reason)
    if refused is not None:
        logger.warning("align: %s: not used: %s", name, refused)
    words = ", ".join(f"shift of {role} {one.verdict}, {one.reason}" for role, one in found.items())
    logger.info("align: %s: %s, %.1f s", name, words or "nothing to measure", seconds)


def _to_record(registration: Registration, grid: GeoBox) -> dict[str, Any]:
    shift_m = to_metres(registration.shift_px, grid)
    return registration.to_record() | {"shift_m": [round(metres, 3) for metres in shift_m]}


def _log_end(name: str, aligned: Aligned, refused: str | None, seconds: float) -> None:
    for role, found in (("SAR", aligned.sar), *((f"the {role} image", one) for role, one in aligned.others.items())):
        if refused is None and found is not None and found.verdict == "refused":
            logger.warning("align: %s: %s stays where its geocoding puts it: %s", name, role, found.reason)
    if refused is not None:
        logger.warning("align: %s: not used: %s", name, refused)
    others = ", ".join(f"of the {role} image {'not wanted' if one is None else one.verdict}" for role, one in aligned.others.items())
    logger.info("align: %s: shift %s, %s; %s, %.1f s", name, aligned.sar.verdict, aligned.sar.reason, others, seconds)


def find_refusal(scenes: Mapping[str, xr.Dataset]) -> str | None:
    """Which of the scenes by role was refused when it was read, and why, in words; None if none was."""
    found = [f"the {role} scene: {scene.attrs['provenance'].get('refused')}" for role, scene in scenes.items() if is_refused(scene)]
    return "; ".join(found) or None


def is_refused(scene: xr.Dataset) -> bool:
    """Whether `ingest` found that the scene is not to be used."""
    return scene.attrs["provenance"].get("refused") is not None


def find_misplaced(aligned: Aligned) -> str | None:
    """Which image of a pair nobody knows to lie on the clear one, and why, in words; None if none does.

    Where coefficients of Gaofen placed an image, or the ground that it is compared with, it may lie 300 m off. A field that is found says
    how far; where it is refused nothing does, and a network trained on such a pair learns to move borders: the pair is given up. Images of
    the Sentinels lie right to a pixel by themselves and stay. `align.register_cloudy: false` asks for no field, and none is missed.
    """
    placed = {role for role, scene in aligned.scenes.by_role.items() if is_placed_by_coefficients(scene)}
    faults = []
    if aligned.sar.verdict == "refused" and placed & {"sar", "clear"}:
        remedy = ", but high ground leans at level 2: use level 1 with a DEM" if is_projected(aligned.scenes.sar) else ""
        faults.append(f"SAR: {aligned.sar.reason}{remedy}")
    for role, one in aligned.others.items():
        if one is not None and one.verdict == "refused" and placed & {role, "clear"}:
            faults.append(f"the {role} scene: {one.reason}")
    words = "placed by coefficients or its provider, up to some hundred metres off, and where it lies on the clear scene cannot be told"
    return f"{words}: {'; '.join(faults)}" if faults else None


def is_projected(scene: xr.Dataset) -> bool:
    """Whether its provider projected the scene at one height, so that no DEM brings relief right: level 2 of Gaofen-3."""
    return str(scene.attrs["provenance"].get("properties", {}).get("processing_level")) == "L2"


def is_placed_by_coefficients(scene: xr.Dataset) -> bool:
    """Whether rational polynomial coefficients placed the scene, so that it may lie far from where it belongs."""
    return is_gaofen(scene.attrs["provenance"]["sensor"])


def _align_scenes(scenes: Scenes, pair: Pair, grid: GeoBox, settings: AlignSettings) -> Aligned:
    """The scenes on `grid`, with the fields taken out that were found."""
    fixed, others = without_cloud(scenes.clear), scenes.others
    sar = measure_field(fixed, scenes.sar, grid, settings)
    found = {
        role: measure_field(fixed, scene, grid, settings) if is_field_wanted(scene, role, pair, settings) else None
        for role, scene in others.items()
    }
    moved = {role: place_optical(others[role], grid, one.field) for role, one in found.items() if one is not None}
    return Aligned(scenes._replace(sar=place_sar(scenes.sar, grid, sar.field), **moved), sar, found)


def measure_field(fixed: Layer, scene: xr.Dataset, grid: GeoBox, settings: AlignSettings) -> Registration:
    """The field of `scene` relative to `fixed`, which lies on `grid`, or a refusal with its reason.

    Where little but cloud would be left, what was kept out for cloud is let in: it lies in one image alone, so that all gates hold, and
    found by haze some of it is bright ground.
    """
    if "sar_band" in scene.dims:
        return _register_image(fixed, lambda field: to_layer(place_sar(scene, grid, field)), scene, grid, settings)
    found = _register_image(fixed, lambda field: without_cloud(place_optical(scene, grid, field)), scene, grid, settings)
    if found.status != "no_ground":
        return found
    again = _register_image(fixed, lambda field: to_layer(place_optical(scene, grid, field)), scene, grid, settings)
    return dataclasses.replace(again, reason=f"clouds let in: {again.reason}") if again.verdict == "applied" else found


def _register_image(fixed: Layer, place: Placer, scene: xr.Dataset, grid: GeoBox, settings: AlignSettings) -> Registration:
    """The field of the image that `place` gives; one that is placed by heights is placed and measured until its relief lies right."""
    pixel_m = measure_pixel(grid)
    if any(plate.relief is not None for plate in plates_of(scene)):
        return settle_field(fixed, place, settings, pixel_m=pixel_m)
    return estimate_field(fixed, place(make_shift(fixed.valid.shape)), settings, pixel_m=pixel_m)


def is_field_wanted(scene: xr.Dataset, role: str, pair: Pair, settings: AlignSettings) -> bool:
    """Whether the cloudy scene, or one around it, is registered to the clear one; a cloudy one that is made of that lies right."""
    if role == "cloudy" and pair.sky is not None:
        return False
    return is_placed_by_coefficients(scene) if settings.register_cloudy is None else settings.register_cloudy


def place_sar(scene: xr.Dataset, grid: GeoBox, field: ShiftField) -> xr.Dataset:
    """A SAR scene on `grid` with `field` taken out."""
    power, valid = place_scene(scene, grid, field)
    stored, _ = power_to_centi_db(power, valid)
    return to_scene(stored, valid, bands=bands_of(scene, "sar_band"), geobox=grid, provenance=scene.attrs["provenance"])


def place_optical(scene: xr.Dataset, grid: GeoBox, field: ShiftField) -> xr.Dataset:
    """An optical scene, which lies on `grid`, with `field` taken out; classes come from the nearest pixel."""
    if field.is_zero:
        return scene
    reflectance, valid = place_scene(scene, grid, field)
    stored = np.clip(np.rint(reflectance * REFLECTANCE_SCALE), 0, MAX_REFLECTANCE).astype(np.uint16)
    scl = move_classes(scene["scl"].values, field) if "scl" in scene else None
    return to_scene(stored, valid, bands=bands_of(scene), geobox=grid, provenance=scene.attrs["provenance"], scl=scl)


def move_classes(classes: npt.NDArray[np.uint8], field: ShiftField) -> npt.NDArray[np.uint8]:
    """Classes (y, x) with `field` taken out, each from the nearest pixel; SCL_NODATA where that lies outside."""
    rows, cols = (np.rint(axis).astype(np.intp) for axis in displace_pixels(classes.shape, field))
    inside = (rows >= 0) & (rows < classes.shape[0]) & (cols >= 0) & (cols < classes.shape[1])
    moved = np.full(classes.shape, SCL_NODATA, np.uint8)
    moved[inside] = classes[rows[inside], cols[inside]]
    return moved


def _leave_scenes(scenes: Scenes, grid: GeoBox, refused: str) -> Aligned:
    """What stands for a pair that is not to be used: no SAR, its other scenes as they are read, and nothing measured, since `refused`."""
    names, nowhere = bands_of(scenes.sar, "sar_band"), np.zeros(grid.shape, bool)
    nothing = np.zeros((len(names), *grid.shape), np.int16)
    sar = to_scene(nothing, nowhere, bands=names, geobox=grid, provenance=scenes.sar.attrs["provenance"])
    start = start_registration((grid.shape.y, grid.shape.x), refused, pixel_m=measure_pixel(grid))
    return Aligned(scenes._replace(sar=sar), start, dict.fromkeys(scenes.others))


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
    names = [name for role in Scenes._fields if role in pair for name in (role, f"valid_{role}")]
    return pair.assign({name: pair[name].copy(data=pair[name].values * inside) for name in names})


def check_scenes(scenes: Scenes, lock: Lock, pair: Pair, manifests: Sequence[Path]) -> None:
    """Refuse scenes that are not those of `pair`, or do not fit each other.

    Raises:
        DataError: see `align_pair`; the message names the manifest.
    """
    grid = lock.grid.to_geobox()
    for (role, scene), manifest in zip(scenes.by_role.items(), manifests, strict=True):
        dim, what = ("sar_band" if role == "sar" else "band"), f"the {role} scene of {pair.id}"
        if dim not in scene.dims:
            raise DataError(f"{manifest} is given as {what}, but its values lie along {scene['data'].dims}, not {dim!r}")
        _check_item(scene, manifest, what, lock.scene(getattr(pair, role)))
        if role != "sar":
            _check_grid(scene, manifest, grid)
    _check_same_product(scenes, pair)


def _check_item(scene: xr.Dataset, manifest: Path, what: str, record: SceneRecord) -> None:
    item = scene.attrs["provenance"]["item"]
    if item != record.item:
        raise DataError(f"{manifest} holds item {item!r}, but {what} is {record.item!r}: run `sereno ingest` for it again")


def _check_grid(scene: xr.Dataset, manifest: Path, grid: GeoBox) -> None:
    if geobox_of(scene) != grid:
        raise DataError(
            f"{manifest} lies on {geobox_of(scene)!r}, but the lock's grid is {grid!r}: run `sereno ingest` with this lock again"
        )


def _check_same_product(scenes: Scenes, pair: Pair) -> None:
    level, bands = scenes.clear.attrs["provenance"]["sensor"], bands_of(scenes.clear)
    for role, scene in scenes.others.items():
        own, held = scene.attrs["provenance"]["sensor"], bands_of(scene)
        if own != level:
            raise DataError(f"pair {pair.id}: {role} is of product {own!r}, clear of {level!r}; both must be of one processing level")
        if held != bands:
            raise DataError(f"pair {pair.id}: {role} has bands {held}, clear has {bands}; set pipeline.ingest.bands to those of both")


def to_layer(scene: xr.Dataset) -> Layer:
    """What registration looks at: SAR in dB, or the bands of an optical scene that show structure.

    Raises:
        MissingError: an optical scene has none of those bands.
    """
    valid = scene["valid"].values
    if "sar_band" in scene.dims:
        return Layer((scene["data"].values / CENTI_DB).astype(np.float32), valid, "sar")
    names = [name for name in STRUCTURE_BANDS if name in bands_of(scene)]
    if not names:
        raise MissingError(f"one of {STRUCTURE_BANDS} is needed to align, scenes have {bands_of(scene)}: add it to pipeline.ingest.bands")
    return Layer(to_reflectance(scene["data"].sel(band=names).values), valid)


def without_cloud(scene: xr.Dataset) -> Layer:
    """`to_layer` of an optical scene where there is no cloud.

    Shadows of clouds stay: borders go on in them, and on simulated ground fields are found under more clouds with them than without.
    """
    layer = to_layer(scene)
    return layer._replace(valid=layer.valid & ~find_cloud(scene))


def find_cloud(scene: xr.Dataset) -> Bool:
    """Bodies of cloud in an optical scene (y, x), by its classes, else by haze; nothing where it lacks the bands for that.

    Enough to keep most of it out: what is missed lies in one image alone, agrees with nothing in the other and costs accuracy only. Scraps
    smaller than the reach of descriptors stay in, and bright ground with them: each would take with it a whole reach of ground around.
    """
    if "scl" in scene:
        cloud = np.isin(scene["scl"].values, SCL_CLOUD)
    elif names := next((names for names in VISIBLE_BANDS if set(names) <= set(bands_of(scene))), None):
        visible = Visible(*(to_reflectance(scene["data"].sel(band=name).values) for name in names))
        cloud = find_by_haze(visible, sun=None, pixel_m=measure_pixel(geobox_of(scene))).cloud
    else:
        return np.zeros(scene["valid"].shape, bool)
    bodies: Bool = uniform_filter(cloud.astype(np.float32), 2 * SIMILARITY_EDGE_PX + 1) > 0.5
    return bodies


def to_pair(scenes: Scenes, grid: GeoBox, provenance: dict[str, Any]) -> xr.Dataset:
    """The pair as a dataset on `grid`, from scenes that lie on it."""
    variables: dict[str, Any] = {
        "sar": (("sar_band", "y", "x"), scenes.sar["data"].values, {"units": SAR_UNITS}),
        "valid_sar": (("y", "x"), scenes.sar["valid"].values),
    }
    for role, scene in scenes.by_role.items():
        if role == "sar":
            continue
        variables[role] = (("band", "y", "x"), scene["data"].values, {"units": OPTICAL_UNITS})
        variables[f"valid_{role}"] = (("y", "x"), scene["valid"].values)
        if "scl" in scene:
            variables[f"scl_{role}"] = (("y", "x"), scene["scl"].values)
        elif is_refused(scene):  # the next step wants classes, and 0 says that there are none
            variables[f"scl_{role}"] = (("y", "x"), np.full(grid.shape, SCL_NODATA, np.uint8))
    names = {"band": list(bands_of(scenes.clear)), "sar_band": list(bands_of(scenes.sar, "sar_band"))}
    return with_grid(xr.Dataset(variables, coords=names, attrs={"provenance": provenance}), grid)


def _summarise(dataset: xr.Dataset) -> dict[str, Any]:
    """What people and the report want to know of a pair without opening it."""
    provenance = dataset.attrs["provenance"]
    shares = {role: round(float(dataset[f"valid_{role}"].values.mean()), 6) for role in Scenes._fields if role in dataset}
    return {
        "area": provenance["area"],
        "pair": provenance["pair"],
        "bands": list(bands_of(dataset)),
        "sar_bands": list(bands_of(dataset, "sar_band")),
        "valid_share": shares,
        "registration": provenance["registration"],
        **{name: value for name, value in provenance.items() if name.startswith("registration_")},
        "overlay": provenance.get("overlay"),
        "refused": provenance["refused"],
    }
