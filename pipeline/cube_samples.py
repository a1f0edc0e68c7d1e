"""Samples of snapshot spectral reconstruction: hyperspectral cubes, of which measurements are simulated when a network is fed.

One scene enters and leaves as it is; what patches are cut from leaves.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.groups import ratio_of
from sereno.pipeline.material import Laid, Material, read_values
from sereno.pipeline.scene import bands_of, geobox_of


def check_cube(scenes: dict[str, xr.Dataset], name: str) -> None:
    """Refuse what is no cube.

    Raises:
        DataError: it has fewer than two bands.
    """
    bands = bands_of(scenes["cube"])
    if len(bands) < 2:
        raise DataError(f"group {name}: a cube has two bands or more, this one has {', '.join(bands)}: widen pipeline.ingest.bands")


def lay_cube(scenes: dict[str, xr.Dataset], _settings: AlignSettings) -> Laid:
    """The cube as it is: there is nothing to lay it onto."""
    return Laid(scenes, {}, geobox_of(scenes["cube"]))


def list_material(group: xr.Dataset, _masks: xr.Dataset) -> Material:
    """What patches are cut from: the cube, and where it is valid."""
    valid = group["valid_cube"].values
    mask = np.where(valid, 255, 0).astype(np.uint8)[None]
    arrays = {"cube": partial(read_values, group, "cube")}
    return Material("snapshot-reconstruction", arrays, mask, {"bands": bands_of(group)}, ratio_of(group), np.zeros_like(valid))
