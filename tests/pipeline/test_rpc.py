"""Coefficients are read as GDAL reads them, lead to the ground and back, and follow crops and averages of the image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer
from real_files import find_samples

from sereno.pipeline.errors import DataError
from sereno.pipeline.rpc import crop_rpc, fit_rpc, format_rpb, multilook_rpc, parse_rpc, shift_ground, to_ground, to_image

NAMES = (
    "height_off", "height_scale", "lat_off", "lat_scale", "line_off", "line_scale", "long_off", "long_scale", "samp_off", "samp_scale",
    "line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff",
)  # fmt: skip


def make_rpc(seed: int = 1) -> RPC:
    """An image of 4000 x 5000 pixels of about 10 m near 10 E 50 N, turned by some degrees, bent a little, displaced by height."""
    generator = np.random.default_rng(seed)
    line_num, samp_num = (generator.normal(0, 1e-4, 20) for _ in range(2))
    line_num[:4] += (0.01, -0.2, -1.1, 0.01)
    samp_num[:4] += (-0.01, 1.15, -0.2, 0.05)
    line_den, samp_den = (np.concatenate([[1.0], generator.normal(0, 1e-4, 19)]) for _ in range(2))
    coefficients = dict(zip(NAMES[-4:], (list(part) for part in (line_num, line_den, samp_num, samp_den)), strict=True))
    return RPC(
        line_off=2000.5, line_scale=2100.0, samp_off=2499.0, samp_scale=2600.0, lat_off=50.0, lat_scale=0.2, long_off=10.0, long_scale=0.4,
        height_off=300.0, height_scale=1000.0, err_bias=1.0, err_rand=0.5, **coefficients,
    )  # fmt: skip


def assert_same(one: RPC, other: RPC) -> None:
    for name in NAMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=0, err_msg=name)


def write_beside_image(folder: Path, text: str, suffix: str) -> RPC | None:
    path = folder / "image.tiff"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 4, "width": 4}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path, "w", **profile) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
    path.with_suffix(suffix).write_text(text)
    with rasterio.open(path) as file:
        return file.rpcs  # type: ignore[no-any-return]


def test_what_is_written_is_read_again() -> None:
    assert_same(parse_rpc(format_rpb(make_rpc()), where="test"), make_rpc())


def test_an_rpb_is_read_as_gdal_reads_it(tmp_path: Path) -> None:
    text = format_rpb(make_rpc())
    seen = write_beside_image(tmp_path, text, ".rpb")
    assert seen is not None
    assert_same(parse_rpc(text, where="test"), seen)


@pytest.mark.real
def test_real_rpb_files_are_read_as_gdal_reads_them(tmp_path: Path) -> None:
    found = sorted((find_samples() / "gaofen").rglob("*.rpb"))
    assert found
    for number, path in enumerate(found):
        (tmp_path / str(number)).mkdir()
        seen = write_beside_image(tmp_path / str(number), path.read_text(), ".rpb")
        assert seen is not None
        assert_same(parse_rpc(path.read_bytes(), where=path.name), seen)


def test_the_grammar_of_rpc_txt_is_read_too() -> None:
    rpc = make_rpc()
    lines = [f"{name.upper()}: {getattr(rpc, name):+.17g} pixels" for name in NAMES if not name.endswith("coeff")]
    for name in NAMES:
        if name.endswith("coeff"):
            lines += [f"{name.upper()}_{number}: {value:+.17e}" for number, value in enumerate(getattr(rpc, name), 1)]
    assert_same(parse_rpc("\n".join(lines), where="test"), rpc)


def test_places_are_seen_where_gdal_sees_them() -> None:
    rpc, generator = make_rpc(), np.random.default_rng(2)
    longitudes, latitudes = 10 + generator.uniform(-0.3, 0.3, 50), 50 + generator.uniform(-0.15, 0.15, 50)
    rows, columns = to_image(rpc, longitudes, latitudes, 250.0)
    with RPCTransformer(rpc, RPC_HEIGHT=250) as transformer:
        corner_rows, corner_columns = transformer.rowcol(longitudes, latitudes, op=lambda number: number)
    np.testing.assert_allclose(rows + 0.5, corner_rows, atol=1e-7)
    np.testing.assert_allclose(columns + 0.5, corner_columns, atol=1e-7)


def test_an_image_across_180_degrees_is_whole() -> None:
    rpc = make_rpc()
    rpc.long_off = 179.95
    west, east = (to_image(rpc, np.array([longitude]), np.array([50.0]), 0.0)[1][0] for longitude in (179.999999, -179.999999))
    assert 0 < east - west < 0.1


def test_ground_and_image_lead_to_each_other() -> None:
    rpc, generator = make_rpc(), np.random.default_rng(3)
    rows, columns, heights = generator.uniform(0, 4000, 40), generator.uniform(0, 5000, 40), generator.uniform(-100, 1200, 40)
    again = to_image(rpc, *to_ground(rpc, rows, columns, heights), heights)
    np.testing.assert_allclose(again, (rows, columns), atol=1e-5)


def test_an_averaged_image_is_seen_at_the_centres_of_its_blocks() -> None:
    rpc = make_rpc()
    longitudes, latitudes = to_ground(rpc, np.array([1.5, 101.5]), np.array([1.0, 201.0]), 0.0)  # centres of blocks of 4 x 3
    rows, columns = to_image(multilook_rpc(rpc, (4, 3)), longitudes, latitudes, 0.0)
    np.testing.assert_allclose(rows, [0, 25], atol=1e-6)
    np.testing.assert_allclose(columns, [0, 200 / 3], atol=1e-6)


def test_a_crop_begins_at_its_corner() -> None:
    rpc = make_rpc()
    longitude, latitude = to_ground(rpc, np.array([120.0]), np.array([340.0]), 10.0)
    rows, columns = to_image(crop_rpc(rpc, row=100, column=300), longitude, latitude, 10.0)
    np.testing.assert_allclose([rows[0], columns[0]], [20, 40], atol=1e-6)


def test_a_shift_of_the_ground_moves_what_is_seen_there() -> None:
    rpc = make_rpc()
    moved = shift_ground(rpc, longitude_deg=1e-3, latitude_deg=-2e-3)
    np.testing.assert_allclose(
        to_image(moved, np.array([10.001]), np.array([49.998]), 5.0), to_image(rpc, np.array([10.0]), np.array([50.0]), 5.0), atol=1e-6
    )


def test_a_fit_goes_through_the_points_of_a_polynomial() -> None:
    rpc, generator = make_rpc(), np.random.default_rng(4)
    rpc.line_den_coeff = rpc.samp_den_coeff = [1.0] + [0.0] * 19
    ground = (10 + generator.uniform(-0.3, 0.3, 400), 50 + generator.uniform(-0.15, 0.15, 400), generator.uniform(0, 600, 400))
    fitted = fit_rpc(to_image(rpc, *ground), ground)
    np.testing.assert_allclose(to_image(fitted, *ground), to_image(rpc, *ground), atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("lineOffset", "lineofset_", "lacks lineOffset"),
        ("lineScale = 2100.0", "lineScale = 0", "expected above 0"),
        ("latOffset = 50.0", "latOffset = fifty", "something else than numbers"),
        ("latOffset = 50.0", "latOffset = nan", "not finite"),
        ("lineDenCoef = (\n", "lineDenCoef = (1,\n", "holds 21 numbers, expected 20"),
    ],
)
def test_damaged_coefficients_are_refused_by_name(old: str, new: str, words: str) -> None:
    text = format_rpb(make_rpc())
    assert old in text
    with pytest.raises(DataError, match=words) as caught:
        parse_rpc(text.replace(old, new), where="image.rpb of PRODUCT")
    assert "PRODUCT" in str(caught.value)


@pytest.mark.parametrize("text", ["", "nothing of the kind", b"\xff\x00\xfe"])
def test_text_of_another_kind_is_refused(text: Any) -> None:
    with pytest.raises(DataError, match="lacks"):
        parse_rpc(text, where="test")


def test_coefficients_without_an_image_are_told_from_slow_ones() -> None:
    rpc = make_rpc()
    flat = RPC(**{**{name: getattr(rpc, name) for name in NAMES}, "line_num_coeff": [0.0] * 20})
    with pytest.raises(DataError, match="lead from no ground"):
        to_ground(flat, np.array([5.0]), np.array([5.0]), 0.0)
