"""Laws of whole images: tiles blended to rows, and rows that read back as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from sereno.model.images import Axis, ImageRows, RowBlender, Sheet, write_cog

IMAGE = np.random.default_rng(0).random((3, 70, 40)).astype(np.float32)


@settings(deadline=None)
@given(extent=st.integers(1, 700), tile=st.integers(4, 16), overlap=st.integers(0, 8))
def test_weights_of_overlapping_tiles_sum_to_one_at_every_pixel(extent: int, tile: int, overlap: int) -> None:
    axis = Axis(extent, 8 * tile, 8 * min(overlap, tile // 2))
    total = torch.zeros(axis.padded)
    for number in range(axis.n_tiles):
        total[number * axis.stride : number * axis.stride + axis.tile] += axis.window(number)
    assert axis.padded >= extent
    assert axis.stride % 8 == 0
    torch.testing.assert_close(total, torch.ones(axis.padded), rtol=0, atol=2e-7)


def test_the_buffer_is_as_high_as_a_tile_whatever_the_height_of_the_image() -> None:
    columns = Axis(90, 64, 16)
    shapes = {RowBlender(3, Axis(rows, 64, 16), columns, torch.device("cpu")).sum.shape for rows in (10, 500, 50_000)}
    assert shapes == {(3, 64, columns.padded)}


def test_tiles_of_one_image_are_blended_back_to_it() -> None:
    rows, columns, image = Axis(70, 32, 8), Axis(40, 32, 8), torch.from_numpy(IMAGE)
    padded = torch.zeros(3, rows.padded, columns.padded)
    padded[:, :70, :40] = image
    blender, parts = RowBlender(3, rows, columns, torch.device("cpu")), []
    for row in range(rows.n_tiles):
        for column in range(columns.n_tiles):
            top, left = row * rows.stride, column * columns.stride
            blender.add(padded[:, top : top + 32, left : left + 32], row, column)
        parts.append(blender.take(row))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), IMAGE, rtol=0, atol=1e-6)


def make_sheet(crs: str | None) -> Sheet:
    grid = GeoBox((70, 40), Affine(1, 0, 0, 0, -1, 70), crs)
    return Sheet(("450nm", "460nm", "470nm"), "float32", float("nan"), (1.0,) * 3, grid, 2, {2: {"said": "so"}})


@pytest.mark.parametrize("crs", [None, "EPSG:32632"])
def test_an_image_reads_back_as_it_was_written_with_and_without_a_place(tmp_path: Path, crs: str | None) -> None:
    parts = [ImageRows(0, IMAGE[:, :32]), ImageRows(32, IMAGE[:, 32:])]
    for name in ("a.tif", "b.tif"):
        write_cog(iter(parts), make_sheet(crs), tmp_path / name, tags={"software": "x"})
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert cog_validate(tmp_path / "a.tif", strict=True)[0]
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), IMAGE)
        assert (file.descriptions, file.crs and file.crs.to_epsg()) == (("450nm", "460nm", "470nm"), crs and 32632)
        assert (file.tags()["software"], file.tags(2)["said"]) == ("x", "so")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.tif", "b.tif"]
