"""Real pictures of a snapshot camera, and the walk that makes a cube of one.

A picture, an aperture and a trained network enter; a cube leaves, row by row, with how well it explains the picture. The estimate that
the network adds to is made of the whole picture at once, since each band of a tile was moved to other columns, among the light of other
tiles; the network then goes over tiles of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from affine import Affine
from odc.geo.geobox import GeoBox
from torch import Tensor

from sereno.model.apertures import PICTURE_NAMES, Seen, make_aperture, open_pattern, read_pattern, read_picture
from sereno.model.batches import estimate_cube
from sereno.model.checkpoint import Loaded, hash_file
from sereno.model.config import ApertureSettings, PredictSettings, S2SnapshotSettings
from sereno.model.images import PREDICTION_FORMAT, Axis, ImageRows, RowBlender, Sheet
from sereno.model.snapshot import Camera, approach_picture, check_measurement, make_camera, measure_cube
from sereno.pipeline.errors import DataError, TrainingError

logger = logging.getLogger(__name__)

TASK: Final = "snapshot-reconstruction"
"""What a checkpoint for pictures was trained for."""
STEP_PX: Final = 8
"""Tiles are as large as a multiple of this, the default side of attention windows; so are their overlaps."""
FAR_FROM_TRAINING: Final = 4.0
"""A picture that is so many times as bright as those of training, or as dark, is warned of."""
EMPTY_CELL: Final = float("nan")
"""Value of pixels without an answer, of which there are none."""
WITHOUT_VALUES: Final = {"settings": {"aperture": {"pattern": {"values"}}}}
"""What records leave out of what a checkpoint says: the aperture is named by its checksum."""


class Measured(NamedTuple):
    """A picture in the units of the camera that simulates training's."""

    seen: Seen
    """The camera, and the picture (1, H, W')."""
    facts: dict[str, Any]
    """What its record says of picture and aperture."""


def open_measurement(path: Path, loaded: Loaded, settings: PredictSettings, *, aperture: Path | None = None) -> Measured:
    """The picture in a file, seen through the mask in the file `aperture`, or else through that of the checkpoint.

    Raises:
        MissingError: a file is not there.
        DataError: the checkpoint is for another task; mask or picture is none, or they do not fit each other and the checkpoint's bands.
    """
    if loaded.meta.task != TASK:
        raise DataError(
            f"{path} is a picture of a snapshot camera, but the checkpoint was trained for {loaded.meta.task}: take one for {TASK}"
        )
    stored = read_picture(path, what="measurement", names=PICTURE_NAMES)
    own = loaded.settings.aperture or ApertureSettings()
    camera, words = _open_camera((stored.shape[0], stored.shape[1]), loaded, own, aperture, path)
    picture = torch.from_numpy(stored.astype(np.float64))
    check_measurement(camera, picture, where=f"measurement {path}")
    usual = _measure_usual(camera, loaded)
    white = _find_white(stored, settings, usual)
    scaled = ((picture - settings.measurement_black) / white).to(loaded.training_mean)[None]
    brightness = scaled.mean().item() / usual
    if not 1 / FAR_FROM_TRAINING < brightness < FAR_FROM_TRAINING:
        logger.warning(
            "%s is %.3g times as bright as training cubes are through this aperture: set 'predict.measurement_scale' to the number that "
            "stands for a white scene (now %g), or to 'training'",
            path,
            brightness,
            white,
        )
    facts = {
        "measurement": {"file": path.name, "sha256": hash_file(path), "shape": list(stored.shape), "dtype": str(stored.dtype)},
        "aperture": words | {"shape": list(camera.mask.shape), "shift_px": own.shift_px},
        "scale": {"white": white, "black": settings.measurement_black, "times_as_bright_as_training": brightness},
    }
    return Measured(Seen(camera, scaled), facts)


def _open_camera(
    detector: tuple[int, int], loaded: Loaded, own: ApertureSettings, aperture: Path | None, picture: Path
) -> tuple[Camera, dict[str, Any]]:
    """The camera, and where its aperture is from."""
    pattern = own.pattern if aperture is None else read_pattern(aperture)
    name = own.file if aperture is None else aperture.name
    if pattern is not None:
        mask, words = open_pattern(pattern), {"file": name, "sha256": pattern.sha256}
    else:
        columns = detector[1] - own.shift_px * (len(loaded.bands) - 1)
        if columns < 1:
            raise DataError(
                f"measurement {picture} has {detector[1]} columns, but {len(loaded.bands)} bands shifted by {own.shift_px} columns each "
                f"spread over {detector[1] - columns + 1} or more: take a picture of that camera, or train with its 'aperture.shift_px'"
            )
        mask, words = make_aperture(detector[0], columns), {"file": None, "sha256": None}
    camera = make_camera(mask.to(loaded.training_mean), len(loaded.bands), shift_px=own.shift_px, where=f"aperture {name}")
    return camera, words


def _measure_usual(camera: Camera, loaded: Loaded) -> float:
    """How bright a picture of training's mean spectrum is, on average."""
    flat = loaded.training_mean[None, :, None, None].expand(1, -1, *camera.mask.shape)
    return measure_cube(camera, flat).mean().item()


def _find_white(stored: np.ndarray[Any, Any], settings: PredictSettings, usual: float) -> float:
    """How many numbers above black stand for a white scene."""
    scale = settings.measurement_scale
    if scale == "training":
        above = float(stored.mean()) - settings.measurement_black
        if above <= 0:
            raise DataError(
                f"the measurement is {above:g} above black on average, so no scale follows: correct 'predict.measurement_black'"
            )
        return above / usual
    whole = 1.0 if stored.dtype.kind == "f" else float(np.iinfo(stored.dtype).max)
    white = (scale or whole) - settings.measurement_black
    if white <= 0:
        raise DataError(f"'predict.measurement_black' {settings.measurement_black:g} is not below white, {scale or whole:g}: correct them")
    return white


class Developing:
    """One walk over a picture, and the tally it keeps."""

    def __init__(self, measured: Measured, loaded: Loaded, settings: PredictSettings) -> None:
        self.measured, self.loaded, self.settings = measured, loaded, settings
        rows, columns = measured.seen.camera.mask.shape
        self.rows, self.columns = (_lay_tiles(extent, settings) for extent in (rows, columns))
        network = loaded.settings.network
        self._consistency = network.consistency if isinstance(network, S2SnapshotSettings) else 0.0
        self.misfit, self.tiles_run = 0.0, 0
        """Root mean square of what the cube leaves unexplained of the picture, as a share of the picture's own; tiles that were run."""

    @property
    def sheet(self) -> Sheet:
        """What is written: reflectance with a wavelength per band, lying nowhere."""
        rows, bands = self.rows.extent, self.loaded.bands
        grid = GeoBox((rows, self.columns.extent), Affine(1, 0, 0, 0, -1, rows), None)
        return Sheet(bands, "float32", EMPTY_CELL, (1.0,) * len(bands), grid, self.rows.n_tiles, {})

    @torch.inference_mode()
    def walk(self) -> Iterator[ImageRows]:
        """The cube from top to bottom, (C, rows, W) float32.

        Raises:
            TrainingError: the network gives values that are no numbers.
        """
        seen, squares = self.measured.seen, 0.0
        estimate = estimate_cube(seen, self.loaded.settings)
        blender = RowBlender(len(self.loaded.bands), self.rows, self.columns, estimate.device)
        for row in range(self.rows.n_tiles):
            for column in range(self.columns.n_tiles):
                blender.add(self._run_tile(estimate, row, column), row, column)
            first, rows = row * self.rows.stride, torch.from_numpy(blender.take(row))[None].to(estimate)
            part = _cut_rows(seen, first, rows.shape[2])  # which depend on no others: bands are shifted along rows
            rows = approach_picture(part.camera, rows, part.picture, share=self._consistency) if self._consistency else rows
            squares += (measure_cube(part.camera, rows) - part.picture).double().square().sum().item()
            yield ImageRows(first, rows[0].cpu().numpy())
        self.misfit = math.sqrt(squares / max(seen.picture.double().square().sum().item(), math.ulp(0.0)))

    def _run_tile(self, estimate: Tensor, row: int, column: int) -> Tensor:
        """The network's answer for a tile (C, tile, tile), 0 beyond the image."""
        top, left = row * self.rows.stride, column * self.columns.stride
        window = slice(top, top + self.rows.tile), slice(left, left + self.columns.tile)
        answer: Tensor = self.loaded.network(estimate[:, :, *window], self.measured.seen.camera.mask[window][None, None]).float()
        if not answer.isfinite().all():
            raise TrainingError("the network gives values that are no numbers for this picture: train again, with a lower 'train.lr'")
        self.tiles_run += 1
        return F.pad(answer[0], (0, self.columns.tile - answer.shape[3], 0, self.rows.tile - answer.shape[2]))


def _lay_tiles(extent: int, settings: PredictSettings) -> Axis:
    """Tiles along an axis; an image smaller than a tile is one tile, so that it is seen as a patch of its size is."""
    tile = min(settings.tile_px, -(-extent // STEP_PX) * STEP_PX)
    return Axis(extent, tile, min(settings.overlap_px, tile // 2 // STEP_PX * STEP_PX))


def _cut_rows(seen: Seen, first: int, count: int) -> Seen:
    """Some rows of a picture, and the camera that sees them alone."""
    rows = slice(first, first + count)
    return Seen(seen.camera._replace(mask=seen.camera.mask[rows]), seen.picture[:, rows])


def describe_cube(walk: Developing, checkpoint: Path) -> dict[str, str]:
    """Tags of the written cube."""
    facts = walk.measured.facts
    return {
        "task": TASK,
        "measurement": facts["measurement"]["file"],
        "units": "reflectance",
        "checkpoint": checkpoint.name,
        "weights_sha256": walk.loaded.meta.weights_sha256,
        "software": f"sereno {version('sereno')}",
    }


def describe_measurement(walk: Developing, checkpoint: Path, image: Path) -> dict[str, Any]:
    """The record of a cube: what it was made of and how, and how well it explains its picture."""
    meta = walk.loaded.meta.model_dump(mode="json", exclude=WITHOUT_VALUES)
    return {
        "format": PREDICTION_FORMAT,
        "kind": "prediction",
        "task": TASK,
        **walk.measured.facts,
        "bands": list(walk.loaded.bands),
        "units": "reflectance",
        "shape": [walk.rows.extent, walk.columns.extent],
        "misfit": walk.misfit,
        "tiles": {"run": walk.tiles_run, "rows": walk.rows.n_tiles, "columns": walk.columns.n_tiles},
        "settings": walk.settings.model_dump(mode="json", exclude={"measurements"}),
        "checkpoint": {"file": checkpoint.name, **meta},
        "sha256": hash_file(image),
    }
