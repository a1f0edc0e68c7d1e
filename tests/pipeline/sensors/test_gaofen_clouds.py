"""From a Gaofen product with simulated clouds to its mask: the product is written, read, and its clouds are found where they were put."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline import products
from sereno.pipeline.archives import read_contents
from sereno.pipeline.atmosphere import SkySettings, Sun
from sereno.pipeline.bands import GAOFEN_BANDS
from sereno.pipeline.config import IngestSettings, MaskSettings
from sereno.pipeline.detectors import Image, detect_clouds
from sereno.pipeline.overlay import compute_air, draw_clouds, lay_clouds
from sereno.pipeline.pairs import SceneRecord
from sereno.pipeline.scene import geobox_of, with_grid
from sereno.pipeline.sensors import gaofen6
from sereno.pipeline.signing import Resolver
from sereno.pipeline.sun import compute_sun
from sereno.pipeline.views import Terrain

SIZE = 240
BOX = GeoBox((SIZE, SIZE), Affine(10, 0, 500_000, 0, -10, 4_500_000), "EPSG:32650")
INNER = (slice(60, 180), slice(60, 180))
FLIGHT = products.Pass(datetime(2020, 6, 3, 3, 10, tzinfo=UTC), 1420312367)
LEAVES = {"blue": 0.03, "green": 0.06, "red": 0.04, "nir": 0.35, "rededge1": 0.08, "rededge2": 0.25, "coastal": 0.02, "yellow": 0.05}
"""Reflectance of a meadow."""


def read_pair(product: Path) -> xr.Dataset:
    """The scene of the product as the input of a pair."""
    item = gaofen6.to_item(product.name, read_contents(product, gaofen6.is_text))[0]
    record = SceneRecord(id="s", sensor=item.sensor, time=item.time, items=(item,))
    scene = gaofen6.read_scene(record, BOX[INNER], IngestSettings(attempts=1), Resolver(str(product.parent))).scene
    pair = xr.Dataset(
        {"cloudy": (("band", "y", "x"), scene["data"].values), "valid_cloudy": (("y", "x"), scene["valid"].values)},
        coords={"band": scene["band"].values},
        attrs={"provenance": {"cloudy": scene.attrs["provenance"]}},
    )
    return with_grid(pair, geobox_of(scene))


@pytest.mark.parametrize(("sensor", "n_bands"), [("PMS", 4), ("WFV", 8)])
def test_clouds_of_a_product_are_found_where_they_were_put(tmp_path: Path, sensor: str, n_bands: int) -> None:
    bands = GAOFEN_BANDS[:n_bands]
    zenith, azimuth = compute_sun(FLIGHT.time, 117.0, 40.65)
    sun = Sun(azimuth, 90 - zenith)
    airs = [compute_air(band.wavelength_nm, sun.elevation_deg) for band in bands]
    clear: Any = np.stack(
        [
            np.full((SIZE, SIZE), air.path + air.through * LEAVES[band.common_name], np.float32)
            for band, air in zip(bands, airs, strict=True)
        ]
    )
    settings = SkySettings(cover=0.3, blob_px=9, haze=0.0, cirrus=0.0, base_m=500)
    sky = draw_clouds(np.random.default_rng(2), (SIZE, SIZE), settings=settings, sun=sun, pixel_m=10)
    truth = lay_clouds(clear, sky, wavelengths_nm=tuple(band.wavelength_nm for band in bands), sun=sun)
    write = products.write_gaofen6_pms if sensor == "PMS" else products.write_gaofen6_wfv
    ground = Terrain(BOX, np.zeros((SIZE, SIZE), np.float32))
    found = detect_clouds(
        Image(read_pair(write(tmp_path, ground, truth.image, FLIGHT)), "cloudy", "pair"), "haze", MaskSettings(method="haze")
    )
    cloud, shadow = truth.cloud[INNER], truth.shadow[INNER]
    assert 0.1 < (cloud > 0.95).mean() < 0.7  # there is something to find and something to leave alone
    assert found.cloud[cloud > 0.95].mean() > 0.97
    assert found.cloud[cloud < 0.02].mean() < 0.03  # WFV's pixels are 16 m wide, so that edges spread
    # The sun stands in the south-east: what shades the last 20 rows and columns lies outside the scene, and is not known.
    shadow, found_shadow, open_ground = shadow[:100, :100], found.shadow[:100, :100], cloud[:100, :100] < 0.02
    assert (shadow[open_ground] > 0.95).mean() > 0.01
    assert (
        found_shadow[(shadow > 0.95) & open_ground].mean() > 0.4
    )  # shade leaves a third of NIR, about what MAX_SHADOW_NIR allows over leaves
    assert found_shadow[(shadow < 0.02) & open_ground].mean() < 0.03
