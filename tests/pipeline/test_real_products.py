"""Real products on their whole way through items, offset, sensors and radiometry give the values that others published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.items import MTD, to_item_record
from sereno.pipeline.offset import decide_offset, find_contradictions, read_offset
from sereno.pipeline.pairs import SceneRecord
from sereno.pipeline.radiometry import to_reflectance, to_stored_reflectance
from sereno.pipeline.sensors.sentinel2 import read_scene
from sereno.pipeline.signing import Resolver, read_file

SAMPLES = os.environ.get("SERENO_SAMPLES")
CHIP = "S2B_MSIL1C_20200406T101559_N0209_R065_T32UPC_20200406T130159"

pytestmark = [pytest.mark.real, pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files")]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(str(SAMPLES)) / "s2" / "ukis_pysat"


def to_chip_item() -> dict[str, Any]:
    """The L1C chip as a catalogue would state it: one file with all thirteen bands, and the product's metadata; no offset, no baseline."""
    properties = {"datetime": "2020-04-06T10:15:59.024Z", "platform": "sentinel-2b", "product:type": "S2MSI1C", "grid:code": "MGRS-32UPC"}
    assets = {
        "chip": {"href": f"{CHIP}.tif", "type": "image/tiff", "eo:bands": [{"name": name} for name in L1C_BANDS]},
        "product_metadata": {"href": f"{CHIP}_MTD.xml", "type": "application/xml"},
    }
    return {"id": "chip", "bbox": [11.7, 51.5, 11.8, 51.6], "properties": properties, "assets": assets}


def test_the_digital_numbers_of_the_chip_give_its_published_reflectance_exactly(folder: Path) -> None:
    record = to_item_record(to_chip_item())
    assert (record.sensor, record.processing_baseline, record.crs) == ("sentinel2-l1c", None, "EPSG:32632")
    text = read_file(Resolver(str(folder)), record.assets[MTD].href)
    offset_dn, reason = decide_offset(record, read_offset(text, where=MTD))
    assert (offset_dn, reason) == (0, "product metadata: 0 in every band")
    assert find_contradictions(record, offset_dn) == ()
    with rasterio.open(folder / record.assets["B01"].href) as product, rasterio.open(folder / f"{CHIP}_toa.tif") as answer:
        dn, published = product.read([record.assets[name].index for name in L1C_BANDS]), answer.read()
    stored, n_clamped = to_stored_reflectance(dn, np.ones(dn.shape, bool), offset_dn=offset_dn)
    assert n_clamped == 0
    np.testing.assert_array_equal(to_reflectance(stored), published)


def test_the_chip_read_as_a_scene_has_its_published_reflectance_where_all_bands_have_data(folder: Path) -> None:
    item = to_item_record(to_chip_item())
    scene = SceneRecord(id="chip", sensor=item.sensor, time=item.time, items=(item,))
    with rasterio.open(folder / f"{CHIP}_toa.tif") as answer:
        published, grid = answer.read(), GeoBox(answer.shape, answer.transform, str(answer.crs))
    read = read_scene(scene, grid, IngestSettings(check="none"), Resolver(str(folder))).scene
    has_data = (published > 0).all(axis=0)
    assert has_data.sum() == 97
    np.testing.assert_array_equal(read["valid"], has_data)
    np.testing.assert_array_equal(to_reflectance(read["data"].values), published * has_data)
    facts = read.attrs["provenance"]
    assert (facts["offset"], facts["offset_reason"]) == (0, "product metadata: 0 in every band")
    assert (facts["n_clamped"], facts["lost"], facts["refused"], facts["warnings"]) == (0, [], None, [])
