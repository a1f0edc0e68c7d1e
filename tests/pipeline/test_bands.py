"""The tables of bands against facts of the Sentinel-2 user guide."""

import pytest

from sereno.pipeline.bands import GAOFEN_BANDS, L1C_BANDS, L2A_BANDS, SENTINEL2_BANDS, rgb_indices, select_gaofen_bands
from sereno.pipeline.errors import MissingError


def test_there_are_four_six_and_three_bands_of_10_20_and_60_m() -> None:
    by_gsd = {gsd: [band.name for band in SENTINEL2_BANDS if band.gsd_m == gsd] for gsd in (10, 20, 60)}
    assert by_gsd[10] == ["B02", "B03", "B04", "B08"]
    assert by_gsd[20] == ["B05", "B06", "B07", "B8A", "B11", "B12"]
    assert by_gsd[60] == ["B01", "B09", "B10"]


def test_bands_are_in_the_order_of_wavelength_and_named_once() -> None:
    wavelengths = [band.wavelength_nm for band in SENTINEL2_BANDS]
    assert wavelengths == sorted(wavelengths)
    for names in (L1C_BANDS, tuple(band.common_name for band in SENTINEL2_BANDS)):
        assert len(set(names)) == 13


def test_surface_reflectance_lacks_the_cirrus_band_alone() -> None:
    assert set(L1C_BANDS) - set(L2A_BANDS) == {"B10"}
    assert len(L2A_BANDS) == 12


def test_true_colour_is_red_green_blue_wherever_the_bands_stand() -> None:
    assert rgb_indices(L1C_BANDS) == (3, 2, 1)
    assert rgb_indices(("B02", "B08", "B04", "B03")) == (2, 3, 0)
    with pytest.raises(MissingError, match=r"\['B03'\] are needed"):
        rgb_indices(("B02", "B04"))


def test_gaofen_is_shown_by_its_own_red_green_and_blue() -> None:
    names = tuple(band.name for band in GAOFEN_BANDS)
    assert rgb_indices(names) == (2, 1, 0)
    assert [GAOFEN_BANDS[index].common_name for index in rgb_indices(names)] == ["red", "green", "blue"]
    assert rgb_indices(names[:4][::-1]) == (1, 2, 3)


@pytest.mark.parametrize(("sensor", "n_bands"), [("gaofen-pms", 4), ("gaofen-wfv", 8), ("gaofen-wfv4", 4)])
def test_cameras_of_gaofen_hold_the_first_bands_of_the_table(sensor: str, n_bands: int) -> None:
    assert select_gaofen_bands(sensor) == tuple(f"B{number + 1}" for number in range(n_bands))
