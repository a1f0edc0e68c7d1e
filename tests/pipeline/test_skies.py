"""The input made of its target: the truth is kept, equal pairs get equal skies and others others, and what cannot be covered is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from real_files import find_samples

from sereno.pipeline.bands import GAOFEN_BANDS, L1C_BANDS, L2A_BANDS
from sereno.pipeline.config import OverlaySettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.scene import with_grid
from sereno.pipeline.skies import (
    SEEN_CLOUD,
    SEEN_SHADOW,
    THICK,
    TRUTHS,
    _to_pixels,
    cover_pair,
    draw_settings,
    find_sun,
    find_wavelengths,
    read_truth,
)
from sereno.pipeline.store import open_dataset, save_dataset

SIDE = 120
GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
SETTINGS = OverlaySettings(cover=(0.3, 0.4), cloud_m=(150, 200), base_m=(300, 500))
FACTS = {"sensor": "sentinel2-l1c", "time": "2021-06-03T10:20:00Z", "item": "T", "sun_azimuth_deg": 150.0, "sun_elevation_deg": 60.0}


def make_pair(name: str = "20210603-sky1", bands: tuple[str, ...] = L1C_BANDS, *, sky: int | None = 1, **facts: Any) -> xr.Dataset:
    """Input and target alike: even ground with a corner that is not valid."""
    clear = np.random.default_rng(1).integers(1200, 2500, (len(bands), SIDE, SIDE)).astype(np.uint16)
    valid = np.ones((SIDE, SIDE), bool)
    valid[:10, :10] = False
    clear[:, ~valid] = 0
    scl = np.full((SIDE, SIDE), 4, np.uint8)
    scl[20:30, :5] = 0
    variables: dict[str, Any] = {}
    for role in ("cloudy", "clear"):
        variables |= {role: (("band", "y", "x"), clear), f"valid_{role}": (("y", "x"), valid), f"scl_{role}": (("y", "x"), scl)}
    scene = {**FACTS, **facts}
    provenance = {"area": "west", "pair": {"id": name, "sky": sky}, "cloudy": scene, "clear": scene, "refused": None}
    return with_grid(xr.Dataset(variables, coords={"band": list(bands)}, attrs={"provenance": provenance}), GRID)


def test_the_target_stays_and_the_input_lies_under_clouds_whose_truth_is_kept() -> None:
    pair = make_pair()
    covered = cover_pair(pair, SETTINGS)
    np.testing.assert_array_equal(covered["clear"], pair["clear"])
    lost, shaded = (covered[name].values for name in TRUTHS)
    assert lost.dtype == shaded.dtype == covered["scl_cloudy"].dtype == np.uint8
    assert covered["cloudy"].dtype == np.uint16
    changed = np.abs(covered["cloudy"].values.astype(int) - pair["clear"].values).max(axis=0)
    assert changed[(lost == 0) & (shaded == 0)].max(initial=0) < 20
    assert (changed[(lost > 25) | (shaded > 25)] > 0).all()
    brighter = covered["cloudy"].values.astype(int) - pair["clear"].values
    assert np.median(brighter[1][lost > 250]) > 1000
    assert np.median(brighter[7][(shaded > 200) & (lost < 13)]) < -500


def test_nothing_is_laid_where_nothing_is_valid() -> None:
    covered = cover_pair(make_pair(), SETTINGS)
    for name in ("cloudy", *TRUTHS):
        assert not covered[name].values[..., :10, :10].any()
    assert not covered["valid_cloudy"].values[:10, :10].any()


def test_every_number_drawn_stands_in_the_provenance_and_within_its_range() -> None:
    record = cover_pair(make_pair(), SETTINGS).attrs["provenance"]["overlay"]
    assert (record["seed"], record["sky"], record["sun"]) == (3, 1, "stated")
    assert (record["sun_azimuth_deg"], record["sun_elevation_deg"]) == (150, 60)
    for name in ("cover", "cloud_m", "haze", "cirrus", "base_m"):
        low, high = getattr(SETTINGS, name)
        assert low <= record[name] <= high, name


def test_clouds_are_as_large_on_the_ground_whatever_the_pixel() -> None:
    drawn = draw_settings(np.random.default_rng(0), SETTINGS)
    for pixel_m in (8.0, 16.0):
        assert _to_pixels(drawn, pixel_m).blob_px == drawn["cloud_m"] / pixel_m
    assert _to_pixels(drawn, 16).base_m == drawn["base_m"]


def test_a_pair_gets_the_same_sky_again_and_another_pair_seed_or_area_another() -> None:
    first, again, other = (cover_pair(make_pair(name), SETTINGS)["cloudy"].values for name in ("a-sky1", "a-sky1", "a-sky2"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    assert (cover_pair(make_pair("a-sky1"), SETTINGS.model_copy(update={"seed": 4}))["cloudy"].values != first).mean() > 0.5
    moved = make_pair("a-sky1")
    moved.attrs["provenance"]["area"] = "east"
    assert (cover_pair(moved, SETTINGS)["cloudy"].values != first).mean() > 0.5


def test_real_and_refused_pairs_stay_what_they_are() -> None:
    real, refused = make_pair(sky=None), make_pair()
    refused.attrs["provenance"]["refused"] = "torn"
    for pair in (real, refused):
        assert cover_pair(pair, SETTINGS) is pair
        assert read_truth(pair) is None


def test_the_classification_says_what_lies_over_the_ground() -> None:
    covered = cover_pair(make_pair(bands=L2A_BANDS, sensor="sentinel2-l2a"), SETTINGS)
    scl, (lost, shaded) = covered["scl_cloudy"].values, (covered[name].values / 255 for name in TRUTHS)
    known = covered["scl_clear"].values != 0
    np.testing.assert_array_equal(scl == 0, ~known)
    valid = known & covered["valid_cloudy"].values
    assert set(scl[valid & (lost > SEEN_CLOUD + 0.01)]) == {8, 9}
    assert set(scl[valid & (lost < SEEN_CLOUD - 0.01) & (shaded > SEEN_SHADOW + 0.01)]) == {3}
    assert set(scl[valid & (lost < SEEN_CLOUD - 0.01) & (shaded < SEEN_SHADOW - 0.01)]) == {4}
    np.testing.assert_array_equal(covered["scl_clear"], make_pair()["scl_clear"])


def test_reflectance_of_the_surface_has_no_air_above_it() -> None:
    broken = SETTINGS.model_copy(update={"haze": (0.0, 0.0), "cirrus": (0.0, 0.0)})
    surface, top = (cover_pair(make_pair(bands=("B02", "B04"), sensor=f"sentinel2-{level}"), broken) for level in ("l2a", "l1c"))
    shaded = (surface["shadow_truth"].values > 200) & (surface["cloud_truth"].values < 3)
    assert shaded.any()
    np.testing.assert_array_equal(surface["shadow_truth"], top["shadow_truth"])
    assert surface["cloudy"].values[0][shaded].mean() < top["cloudy"].values[0][shaded].mean() - 200


@pytest.mark.parametrize(("sensor", "bands"), [("gaofen-pms", ("B1", "B2", "B3", "B4", "PAN")), ("gaofen-wfv", ("B7", "B1", "B8", "B4"))])
def test_images_of_gaofen_lie_under_the_same_clouds(sensor: str, bands: tuple[str, ...]) -> None:
    covered = cover_pair(make_pair(bands=bands, sensor=sensor).drop_vars(["scl_cloudy", "scl_clear"]), SETTINGS)
    assert "scl_cloudy" not in covered
    thick = covered["cloud_truth"].values > 252
    seen = covered["cloudy"].values[:, thick].mean(axis=1) / 10_000
    assert seen.min() > 0.35
    assert seen.max() / seen.min() < 1.4
    np.testing.assert_array_equal(covered["cloud_truth"], cover_pair(make_pair(), SETTINGS)["cloud_truth"])


def test_truth_counts_thin_cloud_as_cloud_and_shadow_only_where_it_is_seen() -> None:
    pair = cover_pair(make_pair(), SETTINGS)
    truth = read_truth(pair)
    assert truth is not None
    lost, shaded = (pair[name].values / 255 for name in TRUTHS)
    np.testing.assert_array_equal(truth.cloud >= 0.5, lost >= SEEN_CLOUD)
    np.testing.assert_array_equal(truth.thick, lost >= THICK)
    assert (truth.shadow <= 1 - lost + 1e-6).all()
    assert ((truth.shadow >= 0.5) == (shaded >= SEEN_SHADOW))[lost < 0.3].all()


def test_a_scene_without_its_sun_takes_that_of_mid_morning_and_says_so() -> None:
    sun, origin = find_sun({"time": "2021-06-21T00:00:00Z"}, GRID)
    # 45.15 N at 10:30 solar time: declination 23.45, hour angle -22.5 degrees.
    sine = np.sin(np.radians(45.15)) * np.sin(np.radians(23.45)) + np.cos(np.radians(45.15)) * np.cos(np.radians(23.45)) * np.cos(
        np.radians(22.5)
    )
    assert sun.elevation_deg == pytest.approx(np.degrees(np.arcsin(sine)), abs=0.3)
    assert 90 < sun.azimuth_deg < 180
    assert "reckoned" in origin
    with pytest.raises(DataError, match="T: the sun is at -5"):
        find_sun({"item": "T", "sun_azimuth_deg": 10.0, "sun_elevation_deg": -5.0}, GRID)


def test_bands_of_every_sensor_have_their_wavelengths_and_others_are_refused() -> None:
    assert find_wavelengths(("B4", "PAN"), "gaofen-pms") == (GAOFEN_BANDS[3].wavelength_nm, 674.8)
    assert find_wavelengths(("B08",), "sen12mscr-s2") == (832.8,)
    with pytest.raises(DataError, match="'B99'"):
        find_wavelengths(("B02", "B99"), "sentinel2-l2a")


def test_a_covered_pair_is_stored_and_read_back(tmp_path: Path) -> None:
    covered = cover_pair(make_pair(), SETTINGS)
    save_dataset(covered, tmp_path / "pair.json", kind="pair", summary={})
    back = open_dataset(tmp_path / "pair.json", kind="pair")
    for name in ("cloudy", *TRUTHS):
        np.testing.assert_array_equal(back[name], covered[name])
    assert back["cloud_truth"].attrs["grid_mapping"] == "spatial_ref"


@pytest.mark.real
def test_simulated_cloud_over_a_real_image_has_the_colours_of_real_cloud() -> None:
    """Clouds equally bright in red: every band but those that the other season of the ground or vapour rules is within a seventh."""
    images = []
    for kind in ("s2_cloudy", "s2_cloudfree"):
        with rasterio.open(find_samples() / f"sen12mscr/glfcr/{kind}/ROIs1970_fall_139_p839.tif") as source:
            images.append(source.read()[:, :SIDE, :SIDE])
    pair = make_pair()
    pair["clear"][:] = images[1]
    seen = cover_pair(pair, SETTINGS)["cloudy"].values
    spectra = [np.median(image[:, (image[3] > 4500) & (image[3] < 6000)], axis=1) for image in (images[0], seen)]
    asked = [place for place, name in enumerate(L1C_BANDS) if name not in ("B09", "B10")]
    np.testing.assert_allclose(spectra[1][asked], spectra[0][asked], rtol=1 / 7)
