"""`sereno predict`: clear a whole scene and write it as a cloud-optimised GeoTIFF that says of each pixel where it comes from.

A pair, or for other tasks a group, its masks and a checkpoint enter. The scene is walked in rows of overlapping tiles, so that memory
follows its width and never its height; neighbouring tiles are blended. The last band of the image, `provenance`, is 0 where there is
nothing, 1 where the cloudy scene's own clear pixel was kept, 2 where the network had a part. A JSON record of the same name lies beside it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from torch import Tensor

from sereno.model.batches import DAYS, Prepared, make_clearing_batch
from sereno.model.checkpoint import Loaded, check_bands, check_dates, check_question, choose_device, hash_file, load_checkpoint
from sereno.model.config import PredictSettings, needs_sar, needs_series
from sereno.model.images import PREDICTION_FORMAT, Axis, ImageRows, RowBlender, Sheet, write_cog
from sereno.model.measurements import Developing, describe_cube, describe_measurement, open_measurement
from sereno.model.strips import describe_group, read_rows
from sereno.model.tasks import CLOUD_REMOVAL, TASKS
from sereno.pipeline.errors import ConfigError, DataError, TrainingError
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import MASK_CHANNELS
from sereno.pipeline.samples import SAMPLES
from sereno.pipeline.scene import MAX_REFLECTANCE, OPTICAL_UNITS, REFLECTANCE_SCALE, bands_of, find_unknown, geobox_of
from sereno.pipeline.store import open_dataset, staged, write_json

logger = logging.getLogger(__name__)

NODATA: Final = 65_535
"""Stored value of pixels without an answer."""
NOTHING, OBSERVED, RECONSTRUCTED = 0, 1, 2
"""Values of the provenance band."""
PAIR_ROLES: Final = ("sar", "cloudy", "clear", *AROUND)
"""Scenes of a pair; the last two of a series only."""
CLEAR_BELOW: Final = 0.05
"""Up to this cloud or shadow probability a pixel is kept as observed."""
CLOUDY_FROM: Final = 0.5
"""From this probability on it is the network's alone; between the two the share of the network grows evenly."""

Array = npt.NDArray[Any]


class Scene(NamedTuple):
    """A pair and its masks, opened for reading on demand."""

    pair: xr.Dataset
    """Kind `pair`."""
    masks: xr.Dataset
    """Kind `mask`, on the same grid."""
    geobox: GeoBox
    """That grid."""


class Strip(NamedTuple):
    """Some whole rows of a scene, in memory; the tiles of one row have an axis more in front."""

    sar: Array
    """(S, rows, W) int16 centi-dB."""
    cloudy: Array
    """(C, rows, W) uint16 reflectance x 10000."""
    mask: Array
    """(7, rows, W) uint8 in `MASK_CHANNELS`; those of the target are 0."""
    around: Array
    """(2, C, rows, W) uint16 reflectance x 10000 of the dates before and after; (0, C, rows, W) where the network does not look at them."""
    around_clear: Array
    """(2, rows, W) uint8, probability x 255 that a pixel of them is valid and clear; (0, rows, W) likewise."""

    def share_of_network(self, *, keep_observed: bool) -> Array:
        """How much of each pixel is the network's, 0..1: (rows, W) float32."""
        if not keep_observed:
            return np.ones(self.mask.shape[1:], np.float32)
        probability = np.maximum(self.mask[CLOUD], self.mask[SHADOW]).astype(np.float32) / 255
        share: Array = ((probability - CLEAR_BELOW) / (CLOUDY_FROM - CLEAR_BELOW)).clip(0, 1)
        return share


CLOUD, SHADOW, VALID, VALID_SAR = (MASK_CHANNELS.index(name) for name in ("cloud_input", "shadow_input", "valid_input", "valid_sar"))


def predict_scene(checkpoint: Path, pair_and_masks: tuple[Path, Path], output: Path, settings: PredictSettings) -> None:
    """Write the cleared scene to `output` (GeoTIFF) and its record beside it (`.json`); equal input gives equal bytes.

    A pixel is kept where it was observed clear, and reconstructed under cloud and shadow, or where nobody knows whether there are any; it
    stays nodata where the cloudy scene has no pixel (beyond the swath nothing says what the day looked like, and users expect the
    footprint of the scene), and where SAR is missing under a cloud for a network that uses SAR, since its answer there would be a guess.

    NOTE: attention over channels weighs a whole tile, so a network sees tiles larger than its training crops a little differently
    (Chu et al. 2022, "Improving image restoration by revisiting global information aggregation"). The default of 256 gives it more
    clear surroundings than the 128 of training; set `tile_px` to the crop size to rule the effect out.

    Raises:
        DataError: the checkpoint is for another task, bands of pair and checkpoint differ, or the masks are those of another pair or grid.
        MissingError: an input is not there.
        TrainingError: the checkpoint is unusable or gives values that are no numbers.
        StoreError: an input is damaged, or the image cannot be written or does not read back.
    """
    logger.info("predict: making an image of %s with %s", pair_and_masks[0], checkpoint)
    loaded = load_checkpoint(checkpoint, choose_device(settings.device))
    scene = open_scene(*pair_and_masks, kind="pair" if loaded.meta.task == CLOUD_REMOVAL.name else "group")
    if loaded.meta.task != CLOUD_REMOVAL.name:
        check_question(loaded, describe_group(scene.pair), where=pair_and_masks[0])
    else:
        check_bands(loaded, bands_of(scene.pair), bands_of(scene.pair, "sar_band"), where=pair_and_masks[0])
        check_dates(loaded, has_dates=AROUND[0] in scene.pair, where=pair_and_masks[0])
    if refused := scene.pair.attrs["provenance"].get("refused"):
        logger.warning("predict: %s holds no valid pixel, so nothing is made: %s", pair_and_masks[0], refused)
    walk = (Clearing if loaded.meta.task == CLOUD_REMOVAL.name else GroupWalk)(scene, loaded, settings)
    with staged(output) as partial:
        write_cog(walk.walk(), describe_sheet(walk), partial, tags=describe_image(walk, checkpoint))
        write_json(output.with_suffix(".json"), describe_scene(walk, checkpoint, partial))
    logger.info("predict: wrote %s: %s", output, ", ".join(f"{count} {name}" for name, count in sorted(walk.tally.items())))


def predict_measurement(  # what `predict_scene` is given, and a mask
    checkpoint: Path, measurement: Path, output: Path, settings: PredictSettings, *, aperture: Path | None = None
) -> None:
    """Write the cube of a picture that a real camera took to `output` (GeoTIFF) and its record beside it; equal input gives equal bytes.

    The picture was taken through the mask in the file `aperture`, or else through that which the checkpoint was trained with. The cube is
    reflectance, float32, each band described by its wavelength, as cubes for training may be.

    Raises:
        MissingError, DataError: as `open_measurement`.
        TrainingError: the checkpoint is unusable or gives values that are no numbers.
        StoreError: the image cannot be written or does not read back.
    """
    logger.info("predict: making a cube of %s with %s", measurement, checkpoint)
    loaded = load_checkpoint(checkpoint, choose_device(settings.device))
    walk = Developing(open_measurement(measurement, loaded, settings, aperture=aperture), loaded, settings)
    with staged(output) as partial:
        write_cog(walk.walk(), walk.sheet, partial, tags=describe_cube(walk, checkpoint))
        write_json(output.with_suffix(".json"), describe_measurement(walk, checkpoint, partial))
    logger.info("predict: wrote %s: %d tiles, %.2g of the picture is left unexplained", output, walk.tiles_run, walk.misfit)


def open_scene(pair: Path, masks: Path, *, kind: Literal["pair", "group"] = "pair") -> Scene:
    """The pair, or for other tasks the group, and its masks.

    Raises:
        MissingError, StoreError: one of them is not there or damaged.
        DataError: the masks are those of another pair or grid.
    """
    opened, opened_masks = open_dataset(pair, kind=kind), open_dataset(masks, kind="mask")
    geobox, made_of, made_for = geobox_of(opened), opened.attrs["provenance"], opened_masks.attrs["provenance"]
    grid = geobox_of(opened_masks)
    is_same = grid == geobox if kind == "pair" else grid.boundingbox == geobox.boundingbox  # those of coarse images are coarse
    if not is_same or any(made_for[key] != made_of[key] for key in ("area", "pair")):
        raise DataError(f"{masks} was not made from {pair}: run `sereno mask` on this pair")
    return Scene(opened, opened_masks, geobox)


def read_strip(scene: Scene, first: int, stop: int, *, dates: Sequence[str] = ()) -> Strip:
    """Rows `first` to `stop` (exclusive) of the scene, with the images of those `dates`; where nobody knows of cloud, there is."""
    rows = slice(first, stop)
    pair, masks = scene.pair.isel(y=rows), scene.masks.isel(y=rows)
    stored = {
        "cloud_input": np.where(find_unknown(pair, masks, "cloudy"), 255, masks["cloud_cloudy"].values),
        "shadow_input": masks["shadow_cloudy"].values,
        "valid_input": pair["valid_cloudy"].values * np.uint8(255),
        "valid_sar": pair["valid_sar"].values * np.uint8(255),
    }
    nothing = np.zeros((stop - first, scene.geobox.shape.x), np.uint8)
    channels = [stored.get(name, nothing) for name in MASK_CHANNELS]
    cloudy = pair["cloudy"].values
    around = np.stack([pair[date].values for date in dates]) if dates else cloudy[None][:0]
    clear = np.stack([_measure_clear(pair, masks, date) for date in dates]) if dates else nothing[None][:0]
    return Strip(pair["sar"].values, cloudy, np.stack(channels).astype(np.uint8, copy=False), around, clear)


def _measure_clear(pair: xr.Dataset, masks: xr.Dataset, role: str) -> Array:
    """Probability x 255 that a pixel is valid and clear, (y, x) uint8, as patches hold it; 0 where nobody knows."""
    covered = np.maximum(masks[f"cloud_{role}"].values, masks[f"shadow_{role}"].values)
    clear: Array = np.where(pair[f"valid_{role}"].values & ~find_unknown(pair, masks, role), 255 - covered, 0).astype(np.uint8)
    return clear


def find_days(scene: Scene) -> Array:
    """Days of the dates before and after a pair from its cloudy scene, (2,) float32; NaN where it does not state them."""
    pair = scene.pair.attrs["provenance"]["pair"]
    return np.array([pair.get(f"{date}_gap_days", np.nan) for date in AROUND], np.float32)


class Clearing:
    """One walk over a scene: what it needs, and the tally it keeps."""

    def __init__(self, scene: Scene, loaded: Loaded, settings: PredictSettings) -> None:
        self.scene, self.loaded, self.settings = scene, loaded, settings
        rows, columns = scene.geobox.shape.y, scene.geobox.shape.x
        self.rows = Axis(rows, settings.tile_px, settings.overlap_px)
        self.columns = Axis(columns, settings.tile_px, settings.overlap_px)
        self.dates = AROUND if needs_series(loaded.settings.network) else ()
        self.tally: Counter[str] = Counter()
        """Pixels `observed`, `reconstructed`, `nodata_input`, `nodata_sar`; `tiles_run`, `tiles_skipped`; values `clamped`."""

    @torch.inference_mode()
    def walk(self) -> Iterator[ImageRows]:
        """The scene from top to bottom.

        Raises:
            TrainingError: the network gives values that are no numbers.
        """
        self.tally.clear()
        bands = len(self.loaded.bands)
        blender = RowBlender(bands, self.rows, self.columns, self.loaded.training_mean.device)
        for row in range(self.rows.n_tiles):
            first = row * self.rows.stride
            strip = read_strip(self.scene, first, min(first + self.rows.tile, self.rows.extent), dates=self.dates)
            provenance = self._decide(strip)
            for column, tile in self._run_tiles(strip, provenance == RECONSTRUCTED):
                blender.add(tile, row, column)
            restored = blender.take(row)
            height = restored.shape[1]
            top = Strip(*(array[..., :height, :] for array in strip))
            yield ImageRows(first, self._compose(top, restored, provenance[:height]))

    def _decide(self, strip: Strip) -> Array:
        """Provenance of each pixel, (rows, W) uint8."""
        share = strip.share_of_network(keep_observed=self.settings.keep_observed)
        valid, valid_sar = strip.mask[VALID] > 0, strip.mask[VALID_SAR] > 0
        if not needs_sar(self.loaded.settings.network):
            valid_sar = np.ones_like(valid_sar)
        chosen: Array = np.where(share == 0, OBSERVED, np.where(valid_sar, RECONSTRUCTED, NOTHING))
        return np.where(valid, chosen, NOTHING).astype(np.uint8)

    def _run_tiles(self, strip: Strip, wanted: Array) -> Iterator[tuple[int, Tensor]]:
        """Numbers and cleared images (C, tile, tile) of the tiles in which some pixel is wanted; the others are not run."""
        tile, stride = self.columns.tile, self.columns.stride
        chosen = [number for number in range(self.columns.n_tiles) if wanted[:, number * stride : number * stride + tile].any()]
        self.tally.update(tiles_run=len(chosen), tiles_skipped=self.columns.n_tiles - len(chosen))
        down, across = tile - wanted.shape[0], self.columns.padded - wanted.shape[1]
        padded = Strip(*(_mirror(array, down, across) for array in strip)) if chosen else strip
        for start in range(0, len(chosen), self.settings.batch_size):
            numbers = chosen[start : start + self.settings.batch_size]
            cut = [np.stack([array[..., n * stride : n * stride + tile] for n in numbers]) for array in padded]
            yield from zip(numbers, self._restore_tiles(Strip(*cut)), strict=True)

    def _restore_tiles(self, tiles: Strip) -> Tensor:
        days = np.broadcast_to(find_days(self.scene), (len(tiles.cloudy), len(AROUND)))
        stored = {**tiles._asdict(), "clear": np.zeros_like(tiles.cloudy), DAYS: days}
        batch = make_clearing_batch(stored, self.loaded.meta.signature, self.loaded.settings).to(self.loaded.training_mean.device)
        restored: Tensor = self.loaded.network(*batch.inputs).float()
        if not restored.isfinite().all():
            pair = self.scene.pair.attrs["provenance"]["pair"]["id"]
            raise TrainingError(f"the network gives values that are no numbers for pair {pair}: train again, with a lower 'train.lr'")
        return restored

    def _compose(self, strip: Strip, restored: Array, provenance: Array) -> Array:
        """The finished image (C + 1, rows, W) uint16 from observed and restored pixels."""
        share = strip.share_of_network(keep_observed=self.settings.keep_observed)
        mixed = share * (restored * REFLECTANCE_SCALE) + (1 - share) * strip.cloudy
        stored = np.rint(mixed.clip(0, MAX_REFLECTANCE)).astype(np.uint16)
        there = provenance != NOTHING
        clamped = ((mixed < -0.5) | (mixed >= MAX_REFLECTANCE + 0.5)) & there
        no_input = strip.mask[VALID] == 0
        self.tally.update(
            observed=int((provenance == OBSERVED).sum()),
            reconstructed=int((provenance == RECONSTRUCTED).sum()),
            nodata_input=int(no_input.sum()),
            nodata_sar=int((~there & ~no_input).sum()),
            clamped=int(clamped.sum()),
        )
        return np.concatenate([np.where(there, stored, NODATA), provenance[None]]).astype(np.uint16)


def _mirror(array: Array, down: int, across: int) -> Array:
    """`array` (..., rows, W) with so many rows and columns more, mirrored."""
    padding = ((0, 0),) * (array.ndim - 2) + ((0, down), (0, across))
    return np.pad(array, padding, mode="reflect")


class GroupWalk:
    """One walk over a group of another task than cloud removal: every pixel is the network's; nothing is kept as it was observed."""

    def __init__(self, scene: Scene, loaded: Loaded, settings: PredictSettings) -> None:
        """Checks that tiles begin and end with coarse pixels.

        Raises:
            ConfigError: they do not.
        """
        self.scene, self.loaded, self.settings = scene, loaded, settings
        self.signature = loaded.meta.signature
        self.tally: Counter[str] = Counter()
        """Pixels `reconstructed`, `nodata_input`; `tiles_run`, `tiles_skipped`; values `clamped`."""
        rows, columns = scene.geobox.shape.y, scene.geobox.shape.x
        self.rows = Axis(rows, settings.tile_px, settings.overlap_px)
        self.columns = Axis(columns, settings.tile_px, settings.overlap_px)
        ratio = self.signature.ratio
        if settings.tile_px % ratio or settings.overlap_px % ratio:
            raise ConfigError(
                f"'predict.tile_px' {settings.tile_px} and 'overlap_px' {settings.overlap_px} must be multiples of {ratio}, the fine "
                "pixels along a coarse one: round them"
            )

    @torch.inference_mode()
    def walk(self) -> Iterator[ImageRows]:
        """The image from top to bottom.

        Raises:
            TrainingError: the network gives values that are no numbers.
        """
        self.tally.clear()
        blender = RowBlender(len(self.loaded.bands), self.rows, self.columns, self.loaded.training_mean.device)
        for row in range(self.rows.n_tiles):
            first = row * self.rows.stride
            stop = min(first + self.rows.tile, self.rows.extent)
            stored = self._pad(read_rows(self.scene.pair, self.scene.masks, first, stop), stop - first)
            usable = np.zeros((self.rows.tile, self.columns.padded), bool)
            for column in range(self.columns.n_tiles):
                prepared = self._prepare_tile(stored, column)
                left = column * self.columns.stride
                usable[:, left : left + self.columns.tile] = prepared.usable[0].cpu().numpy()
                if prepared.usable.any():
                    blender.add(self._make_tile(prepared), row, column)
                self.tally.update(["tiles_run" if prepared.usable.any() else "tiles_skipped"])
            restored = blender.take(row)
            yield ImageRows(first, self._compose(restored, usable[: restored.shape[1], : self.columns.extent]))

    def _pad(self, stored: dict[str, Array], height: int) -> dict[str, Array]:
        """Rows as high as a tile, as wide as all tiles; what lacks is mirrored with the edge pixels, so that grids stay on each other."""
        padded = {}
        for spec in SAMPLES[self.signature.task]:
            ratio, array = self.signature.ratio if spec.is_coarse else 1, stored[spec.name]
            down, across = (self.rows.tile - height) // ratio, (self.columns.padded - self.columns.extent) // ratio
            padded[spec.name] = np.pad(array, ((0, 0),) * (array.ndim - 2) + ((0, down), (0, across)), mode="symmetric")
        return padded

    def _prepare_tile(self, stored: dict[str, Array], column: int) -> Prepared:
        """What the network is given of tile number `column` of a row, and where its answer is worth something."""
        prepare, device = TASKS[self.signature.task].prepare, self.loaded.training_mean.device
        assert prepare is not None
        tensors = {}
        for spec in SAMPLES[self.signature.task]:
            ratio = self.signature.ratio if spec.is_coarse else 1
            left = column * self.columns.stride // ratio
            cut = stored[spec.name][None, ..., left : left + self.columns.tile // ratio]
            tensors[spec.name] = torch.from_numpy(np.ascontiguousarray(cut)).to(device)
        return prepare(tensors, self.signature, self.loaded.settings)

    def _make_tile(self, prepared: Prepared) -> Tensor:
        """The network's answer for one tile, (C, tile, tile)."""
        answer: Tensor = self.loaded.network(*prepared.inputs).float()
        if not answer.isfinite().all():
            group = self.scene.pair.attrs["provenance"]["pair"]["id"]
            raise TrainingError(f"the network gives values that are no numbers for group {group}: train again, with a lower 'train.lr'")
        return answer[0]

    def _compose(self, restored: Array, usable: Array) -> Array:
        """The finished image (C + 1, rows, W) uint16."""
        scaled = restored * REFLECTANCE_SCALE
        stored = np.rint(scaled.clip(0, MAX_REFLECTANCE)).astype(np.uint16)
        clamped = ((scaled < -0.5) | (scaled >= MAX_REFLECTANCE + 0.5)) & usable
        counts = {"reconstructed": int(usable.sum()), "nodata_input": int((~usable).sum()), "clamped": int(clamped.sum())}
        self.tally.update(counts)
        provenance = np.where(usable, RECONSTRUCTED, NOTHING)
        return np.concatenate([np.where(usable, stored, NODATA), provenance[None]]).astype(np.uint16)


Walk = Clearing | GroupWalk
"""What an image is written from."""


def describe_sheet(walk: Walk) -> Sheet:
    """What is written of a walk over a pair or group: the bands as stored integers, then the provenance."""
    bands = walk.loaded.bands
    return Sheet(
        bands=(*bands, "provenance"),
        dtype="uint16",
        nodata=NODATA,
        scales=(*[1 / REFLECTANCE_SCALE] * len(bands), 1.0),
        geobox=walk.scene.geobox,
        pieces=walk.rows.n_tiles,
        band_tags={len(bands) + 1: {"values": "0 nodata, 1 observed, 2 reconstructed"}},
    )


def list_roles(provenance: Mapping[str, Any]) -> list[str]:
    """The scenes that a pair or group is made of: SAR, cloudy, clear, or the roles of its task in order."""
    return [role for role in (*PAIR_ROLES, *sorted(provenance.keys() - set(PAIR_ROLES))) if _is_scene(provenance.get(role))]


def _is_scene(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "item" in entry


def describe_image(walk: Walk, checkpoint: Path) -> dict[str, str]:
    """Tags of the written image: the pair or group, the scenes it is made of, units and checkpoint."""
    provenance = walk.scene.pair.attrs["provenance"]
    roles = list_roles(provenance)
    items = {f"{role}_item": str(provenance[role]["item"]) for role in roles}
    times = {f"{role}_time": str(provenance[role]["time"]) for role in roles if role != "clear"}
    return {
        "area": str(provenance["area"]),
        "pair": str(provenance["pair"]["id"]),
        "units": OPTICAL_UNITS,
        "scale": f"{1 / REFLECTANCE_SCALE}",
        "checkpoint": checkpoint.name,
        "weights_sha256": walk.loaded.meta.weights_sha256,
        "software": f"sereno {version('sereno')}",
        **items,
        **times,
    }


def describe_scene(walk: Walk, checkpoint: Path, image: Path) -> dict[str, Any]:
    """The record of a finished walk: the pair or group, what the image was made of and how, and its shares."""
    geobox, tally = walk.scene.geobox, walk.tally
    pixels = geobox.shape.y * geobox.shape.x
    bounds = geobox.boundingbox
    nodata = tally["nodata_input"] + tally["nodata_sar"]
    provenance = walk.scene.pair.attrs["provenance"]
    return {
        "format": PREDICTION_FORMAT,
        "kind": "prediction",
        "area": provenance["area"],
        "pair": provenance["pair"],
        "items": {role: provenance[role]["item"] for role in list_roles(provenance)},
        "bands": [*walk.loaded.bands, "provenance"],
        "crs": str(geobox.crs),
        "bounds_m": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "shape": [geobox.shape.y, geobox.shape.x],
        "shares": {
            "observed": tally["observed"] / pixels,
            "reconstructed": tally["reconstructed"] / pixels,
            "nodata": nodata / pixels,
        },
        "nodata_px": {"outside_input": tally["nodata_input"], "cloudy_without_sar": tally["nodata_sar"]},
        "clamped_values": tally["clamped"],
        "tiles": {"run": tally["tiles_run"], "skipped": tally["tiles_skipped"]},
        "settings": walk.settings.model_dump(mode="json"),
        "checkpoint": {"file": checkpoint.name, **walk.loaded.meta.model_dump(mode="json")},
        "sha256": hash_file(image),
    }
