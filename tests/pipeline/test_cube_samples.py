"""A cube is cut as it is, with the pixels that are valid."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.cube_samples import check_cube, lay_cube, list_material
from sereno.pipeline.errors import DataError
from sereno.pipeline.groups import to_group
from sereno.pipeline.scene import to_scene

GRID = GeoBox((4, 6), Affine(1, 0, 0, 0, -1, 4), "EPSG:3395")
DATA = np.arange(3 * 4 * 6).reshape(3, 4, 6).astype(np.uint16)


def test_the_cube_and_its_validity_become_the_sample() -> None:
    valid = np.ones((4, 6), bool)
    valid[2, 3] = False
    scenes = {"cube": to_scene(DATA, valid, bands=("450nm", "550nm", "650nm"), geobox=GRID, provenance={})}
    check_cube(scenes, "g")
    laid = lay_cube(scenes, AlignSettings())
    material = list_material(to_group(laid.scenes, GRID, {"task": "snapshot-reconstruction", "ratio": 1}), scenes["cube"])
    np.testing.assert_array_equal(material.arrays["cube"](), DATA * valid)
    np.testing.assert_array_equal(material.mask, np.where(valid, 255, 0)[None])
    assert (material.ratio, material.names, material.unsure.any()) == (1, {"bands": ("450nm", "550nm", "650nm")}, False)


def test_one_band_is_no_cube() -> None:
    scenes = {"cube": to_scene(DATA[:1], np.ones((4, 6), bool), bands=("450nm",), geobox=GRID, provenance={})}
    with pytest.raises(DataError, match="group g: a cube has two bands or more, this one has 450nm"):
        check_cube(scenes, "g")
