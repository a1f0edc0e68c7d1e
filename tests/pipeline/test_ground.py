import numpy as np
import pytest

from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.ground import BARE, KIND_INDEX, KINDS, Ground, Units, compute_cube, compute_shading, compute_spectra, make_ground

PLACE = {name: index for index, name in enumerate(L2A_BANDS)}
JUNE, AUGUST = 159, 225


@pytest.fixture(scope="module")
def ground() -> Ground:
    return make_ground(np.random.default_rng(11), (420, 420))


def _average_units() -> Units:
    count = len(KINDS)
    one, none = np.ones(count, np.float32), np.zeros(count, np.float32)
    return Units(np.arange(count, dtype=np.uint8), one, none, one, none)


def _reflectance(day: float) -> dict[str, np.ndarray]:
    mean, _ = compute_spectra(_average_units(), day)
    return {kind.name: mean[index] for index, kind in enumerate(KINDS)}


def _ndvi(spectrum: np.ndarray) -> float:
    nir, red = spectrum[PLACE["B08"]], spectrum[PLACE["B04"]]
    return float((nir - red) / (nir + red))


def test_every_spectrum_has_one_value_per_band() -> None:
    assert all(len(values) == len(L2A_BANDS) for values in BARE.values())
    assert compute_spectra(_average_units(), JUNE)[0].shape == (len(KINDS), 12)


def test_backscatter_says_nothing_about_reflectance() -> None:
    crops = [index for index, kind in enumerate(KINDS) if kind.weight > 0]
    power = np.array([KINDS[index].backscatter_db for index in crops])
    for day in (154, 164, 174, 184):
        mean = compute_spectra(_average_units(), day)[0][crops]
        bands = mean[:, [PLACE[name] for name in ("B02", "B04", "B06", "B08", "B11")]]
        correlation = np.corrcoef(np.hstack([bands, power]).T)[:5, 5:]
        assert np.abs(correlation).max() < 0.25


def test_crops_differ_in_backscatter_by_more_than_their_parcels_do() -> None:
    power = np.array([kind.backscatter_db for kind in KINDS if kind.weight > 0])
    gaps = np.hypot(*(power[:, None] - power[None]).transpose(2, 0, 1))
    assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 2


def test_vegetation_rises_at_the_red_edge_and_water_is_darkest_in_the_infrared() -> None:
    spectra = _reflectance(JUNE)
    assert _ndvi(spectra["broadleaf"]) > 0.8
    assert spectra["broadleaf"][PLACE["B06"]] > 2.5 * spectra["broadleaf"][PLACE["B05"]]
    assert spectra["lake"][PLACE["B11"]] < 0.003
    assert _ndvi(spectra["river"]) < 0


def test_winter_cereals_ripen_while_summer_crops_green() -> None:
    june, august = _reflectance(JUNE), _reflectance(AUGUST)
    assert _ndvi(june["wheat"]) > 0.6
    assert _ndvi(august["wheat"]) < 0.3
    assert _ndvi(june["soy"]) < 0.5
    assert _ndvi(august["soy"]) > 0.7


def test_reflectance_changes_smoothly_with_the_day() -> None:
    days = np.arange(60, 330)
    curves = np.stack([compute_spectra(_average_units(), day)[0] for day in days])
    assert np.abs(np.diff(curves, axis=0)).max() < 0.025
    assert curves.min() > 0
    assert curves.max() < 0.7


def test_ground_holds_every_kind_and_parcels_of_20_to_60_pixels(ground: Ground) -> None:
    kinds = np.unique(ground.units.kind[ground.unit])
    assert {KIND_INDEX[name] for name in ("wheat", "river", "lake", "road", "tile roof", "meadow")} <= set(kinds.tolist())
    sizes = np.bincount(ground.unit.ravel())
    parcel = np.isin(ground.units.kind, [index for index, kind in enumerate(KINDS) if kind.weight > 0])[: len(sizes)]
    side = np.sqrt(np.median(sizes[parcel & (sizes > 50)]))
    assert 20 < side < 60


def test_texture_is_centred_and_of_unit_variance(ground: Ground) -> None:
    assert abs(ground.texture.mean()) < 0.1
    assert 0.8 < ground.texture.std() < 1.2


def test_lakes_lie_level_and_walls_stand_in_villages(ground: Ground) -> None:
    lake = ground.units.kind[ground.unit] == KIND_INDEX["lake"]
    assert np.ptp(ground.height_m[lake]) < 1
    roofs = np.isin(ground.units.kind[ground.unit], [KIND_INDEX["tile roof"], KIND_INDEX["metal roof"]])
    assert (ground.wall > 0).sum() > 20
    assert roofs[ground.wall > 0].all()


def test_slopes_towards_the_sun_are_brighter_and_flat_ground_is_unchanged() -> None:
    flat = np.zeros((8, 8), np.float32)
    rising_north = np.tile(np.arange(8, 0, -1, dtype=np.float32)[:, None], (1, 8))
    assert np.all(compute_shading(flat, 180, 45) == 1)
    assert np.all(compute_shading(rising_north, 180, 45) > 1)
    assert np.all(compute_shading(rising_north, 0, 45) < 1)


def test_same_seed_gives_the_same_ground(ground: Ground) -> None:
    again = make_ground(np.random.default_rng(11), (420, 420))
    assert np.array_equal(again.unit, ground.unit)
    assert np.array_equal(again.height_m, ground.height_m)


def test_a_cube_has_the_spectra_of_the_bands_but_for_ripples_that_differ_from_unit_to_unit() -> None:
    ground = make_ground(np.random.default_rng(1), (200, 200))
    centres = [band.wavelength_nm for band in SENTINEL2_BANDS if band.name != "B10"]
    cube = compute_cube(np.random.default_rng(2), ground, centres, day=170)
    mean, contrast = compute_spectra(ground.units, 170)
    plain = np.moveaxis(mean[ground.unit] + contrast[ground.unit] * ground.texture[..., None], -1, 0)
    ratio = cube / plain
    assert (cube.dtype, cube.shape) == (np.float32, (12, 200, 200))
    assert np.abs(ratio - 1).max() <= 3 * 0.04 + 1e-5
    unit = ground.unit == ground.unit[100, 100]
    assert np.ptp(ratio[:, unit], axis=1).max() < 1e-4
    assert np.ptp(ratio[3]) > 0.1


def test_between_two_bands_spectra_go_straight() -> None:
    ground = make_ground(np.random.default_rng(1), (200, 200))
    low, high = (band.wavelength_nm for band in SENTINEL2_BANDS[2:4])
    cube = compute_cube(np.random.default_rng(2), ground, np.linspace(low, high, 40).tolist(), day=170)
    bent = cube[1:-1] - (cube[2:] + cube[:-2]) / 2
    assert np.abs(bent).max() < 0.003 * cube.max()
