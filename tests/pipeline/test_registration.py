"""The shift of SAR relative to optical is found to a fraction of a pixel, or refused."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from scipy import ndimage
from scipy.spatial import cKDTree

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.registration import Features, Registration, correlate_masked, describe_edges, estimate_shift, find_peak

SIZE = 384
SHIFT = (2.37, -3.61)
LOOKS = 4.0
Array = npt.NDArray[np.float32]


class Ground:
    """Parcels and roads as continuous functions of place, so that any sub-pixel shift of their image is exact."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.parcels = cKDTree(rng.uniform(-40, SIZE + 40, (370, 2)))
        self.reflectance = rng.uniform(0.03, 0.35, (370, 3))
        self.backscatter_db = rng.uniform(-18, -6, (370, 2))
        self.roads = [(*rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)) for _ in range(4)]

    def draw(self, table: npt.NDArray[np.float64], road: float, shift: tuple[float, float] = (0.0, 0.0)) -> Array:
        """One value per parcel as an image (band, y, x), content moved by `shift`, each pixel the mean of 2 x 2 samples."""
        places = (np.arange(2 * SIZE) + 0.5) / 2 - 0.5
        rows, cols = np.meshgrid(places - shift[0], places - shift[1], indexing="ij")
        values = table[self.parcels.query(np.stack([rows, cols], axis=-1))[1]].transpose(2, 0, 1)
        for row, col, angle in self.roads:
            values[:, np.abs((rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)) < 0.8] = road
        return values.reshape(-1, SIZE, 2, SIZE, 2).mean(axis=(2, 4)).astype(np.float32)

    def optical(self) -> Array:
        return self.draw(self.reflectance, 0.15)

    def power(self, shift: tuple[float, float] = (0.0, 0.0), seed: int = 5) -> Array:
        power = self.draw(10 ** (self.backscatter_db / 10), 0.01, shift)
        return power * np.random.default_rng(seed).gamma(LOOKS, 1 / LOOKS, power.shape).astype(np.float32)

    def sar(self, shift: tuple[float, float] = (0.0, 0.0)) -> Array:
        return 10 * np.log10(self.power(shift))


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(1)


@pytest.fixture(scope="module")
def optical(ground: Ground) -> Array:
    return ground.optical()


def estimate(optical: Array, sar: Array, valid: npt.NDArray[np.bool_] | None = None, **settings: float) -> Registration:
    usable = np.ones(optical.shape[1:], bool)
    return estimate_shift(
        optical,
        sar,
        valid_optical=usable if valid is None else valid,
        valid_sar=np.ones(sar.shape[1:], bool),
        settings=AlignSettings(**settings),
    )


def make_speckle(seed: int) -> Array:
    gamma = np.random.default_rng(seed).gamma(LOOKS, 1 / LOOKS, (2, SIZE, SIZE))
    return (10 * np.log10(gamma) - 15).astype(np.float32)


@pytest.mark.parametrize("shift", [SHIFT, (-1.5, 0.8), (5.2, 4.6)])
def test_shift_is_found_within_a_seventh_of_a_pixel_though_contrasts_are_independent(
    ground: Ground, optical: Array, shift: tuple[float, float]
) -> None:
    found = estimate(optical, ground.sar(shift))
    assert found.verdict == "applied"
    assert np.hypot(found.dy_px - shift[0], found.dx_px - shift[1]) <= 0.15
    assert found.sigma_px is not None
    assert found.sigma_px <= 0.1


def test_no_shift_is_found_where_there_is_none(ground: Ground, optical: Array) -> None:
    found = estimate(optical, ground.sar())
    assert found.verdict == "applied"
    assert abs(found.dy_px) <= 0.15
    assert abs(found.dx_px) <= 0.15


def test_content_moved_to_higher_columns_gives_a_positive_column_shift(ground: Ground, optical: Array) -> None:
    moved = np.roll(ground.sar(), 3, axis=2)
    found = estimate(optical, moved)
    assert found.dx_px == pytest.approx(3, abs=0.2)
    assert found.dy_px == pytest.approx(0, abs=0.2)


def test_shift_survives_ground_that_is_half_cloud(ground: Ground, optical: Array) -> None:
    cloudy, valid = optical.copy(), np.ones(optical.shape[1:], bool)
    cloudy[:, :, : SIZE // 2] = 0.8
    valid[:, : SIZE // 2] = False
    found = estimate(cloudy, ground.sar(SHIFT), valid)
    assert found.verdict == "applied"
    assert np.hypot(found.dy_px - SHIFT[0], found.dx_px - SHIFT[1]) <= 0.3


def test_small_scene_is_measured_with_smaller_windows_that_overlap(ground: Ground, optical: Array) -> None:
    corner = np.s_[:, :256, :256]
    found = estimate(optical[corner], ground.sar(SHIFT)[corner])
    assert found.verdict == "applied"
    assert found.n_windows == 49
    assert np.hypot(found.dy_px - SHIFT[0], found.dx_px - SHIFT[1]) <= 0.2


def test_unrelated_flat_noisy_and_unreachable_scenes_are_refused_with_a_reason(ground: Ground, optical: Array) -> None:
    sar, speckle = ground.sar(), make_speckle(3)
    water = np.full_like(optical, 0.03) + np.random.default_rng(2).normal(0, 0.001, optical.shape).astype(np.float32)
    nulls = {
        "other ground": (optical, Ground(9).sar()),
        "mirrored": (optical, sar[:, :, ::-1]),
        "upside down": (optical, sar[:, ::-1]),
        "turned": (optical, np.rot90(sar, axes=(1, 2))),
        "pure speckle": (optical, speckle),
        "water": (water, speckle),
        "water under structured SAR": (water, sar),
        "constant": (np.full_like(optical, 0.1), np.full_like(sar, -10)),
        "14 rows away": (optical, ground.sar((14, 0))),
        "9.5 columns away, at the end of the search": (optical, ground.sar((0, 9.5))),
    }
    for name, (left, right) in nulls.items():
        found = estimate(left, np.ascontiguousarray(right))
        assert (found.verdict, found.dy_px, found.dx_px) == ("refused", 0, 0), (name, found.reason)
        assert found.reason, name


def test_all_cloud_and_a_tiny_scene_are_refused_without_an_exception(ground: Ground, optical: Array) -> None:
    sar = ground.sar()
    clouded = estimate(optical, sar, np.zeros(optical.shape[1:], bool))
    tiny = estimate(optical[:, :40, :40], sar[:, :40, :40])
    assert [clouded.verdict, tiny.verdict] == ["refused", "refused"]
    assert clouded.n_windows == tiny.n_windows == 0
    assert estimate(np.full_like(optical, np.nan), sar).verdict == "refused"
    assert estimate(optical, np.full_like(sar, -np.inf)).verdict == "refused"


def test_nan_infinite_and_zero_pixels_are_left_out_and_move_nothing(ground: Ground, optical: Array) -> None:
    sar, holed = ground.sar(SHIFT), optical.copy()
    sar[:, :40] = -np.inf
    sar[0, 100:140, 200:230] = np.nan
    holed[1, 300:330, 50:90] = np.nan
    holed[:, :, -20:] = 0
    found = estimate(holed, sar)
    assert found.verdict == "applied"
    assert np.hypot(found.dy_px - SHIFT[0], found.dx_px - SHIFT[1]) <= 0.15


def test_values_of_invalid_pixels_do_not_matter(ground: Ground, optical: Array) -> None:
    valid = np.ones(optical.shape[1:], bool)
    valid[50:150, 80:200] = False
    garbage = np.where(valid, optical, np.random.default_rng(4).uniform(0, 50, optical.shape)).astype(np.float32)
    assert estimate(garbage, ground.sar(), valid) == estimate(optical, ground.sar(), valid)


def test_equal_input_gives_equal_output_and_the_record_is_plain_json(ground: Ground, optical: Array) -> None:
    first, second = (estimate(optical, ground.sar(SHIFT)) for _ in range(2))
    assert first == second
    record = json.loads(json.dumps(first.to_record()))
    assert record["dy_px"] == pytest.approx(first.dy_px, abs=1e-4)
    assert len(record["windows"]) == first.n_good
    assert sum(window["inlier"] for window in record["windows"]) == first.n_inlier
    assert set(record["windows"][0]) == {"row", "col", "dy", "dx", "peak", "inlier"}


def test_corrected_sar_measures_no_shift(ground: Ground, optical: Array) -> None:
    power = ground.power(SHIFT)
    found = estimate(optical, 10 * np.log10(power))
    corrected = np.stack([ndimage.shift(band, (-found.dy_px, -found.dx_px), order=1, cval=np.nan) for band in power])
    again = estimate(optical, 10 * np.log10(corrected))
    assert again.verdict == "applied"
    assert np.hypot(again.dy_px, again.dx_px) <= 0.3


@pytest.mark.parametrize(
    "stricter", [{"min_peak": 0.9}, {"max_rms_px": 0.01}, {"max_sigma_px": 0.001}, {"max_shift_px": 4.0}], ids=lambda s: next(iter(s))
)
def test_each_gate_can_refuse(ground: Ground, optical: Array, stricter: dict[str, float]) -> None:
    assert estimate(optical, ground.sar(SHIFT), **stricter).verdict == "refused"


def test_edges_do_not_depend_on_contrast_or_its_sign(optical: Array) -> None:
    valid = np.ones(optical.shape[1:], bool)
    band = optical[:1]
    same = describe_edges((-3 * band + 7).astype(np.float32), valid).values
    assert np.allclose(describe_edges(band, valid).values, same, atol=1e-3)


def test_correlation_equals_the_sum_written_out_over_usable_pixels() -> None:
    rng = np.random.default_rng(0)
    small, large = (Features(*draw_features(rng, side)) for side in (12, 18))
    surface = correlate_masked(small, large)
    means = [features.values.sum(axis=(1, 2)) / features.usable.sum() for features in (small, large)]
    for row, col in ((0, 0), (3, 5), (6, 6)):
        part = np.s_[row : row + 12, col : col + 12]
        both = (small.usable * large.usable[part]) > 0
        left = (small.values - means[0][:, None, None])[:, both]
        right = (large.values[:, *part] - means[1][:, None, None])[:, both]
        assert surface[row, col] == pytest.approx((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()), abs=1e-4)


def draw_features(rng: np.random.Generator, side: int) -> tuple[Array, Array]:
    usable = (rng.random((side, side)) > 0.2).astype(np.float32)
    return (rng.random((3, side, side)) * usable).astype(np.float32), usable


def test_top_of_a_quadric_is_found_exactly_and_one_at_the_edge_is_not_taken() -> None:
    rows, cols = np.mgrid[:21, :21].astype(np.float32)
    surface = np.exp(-((rows - 12.3) ** 2 + (cols - 7.8) ** 2) / 400)
    surface[(np.abs(rows - 12) > 3) | (np.abs(cols - 8) > 3)] = 0
    assert find_peak(surface) == pytest.approx((12.3, 7.8), abs=0.01)
    assert find_peak(np.roll(surface, 8, axis=0)) is None


@pytest.fixture(scope="module")
def triplet() -> tuple[Array, Array]:
    folder = os.environ.get("SERENO_SAMPLES")
    if not folder:
        pytest.skip("SERENO_SAMPLES is not set: no real sample files")
    base, name = Path(folder) / "sen12mscr" / "glfcr", "ROIs1970_fall_139_p839.tif"
    with rasterio.open(base / "s2_cloudfree" / name) as clear, rasterio.open(base / "s1" / name) as sar:
        return clear.read((3, 4, 8)).astype(np.float32) / 10_000, sar.read().astype(np.float32)


@pytest.mark.real
@pytest.mark.parametrize("shift", [(3.0, 0.0), (0.0, -3.0), (2.5, -1.3), (-1.7, -3.4), (5.2, 4.1)])
def test_shift_added_to_real_sar_is_recovered(triplet: tuple[Array, Array], shift: tuple[float, float]) -> None:
    # Natural peaks are 1 to 2 px broad and the true shift is unknown, so only the difference to no added shift can be judged.
    optical, sar = triplet
    before = estimate(optical, sar)
    moved = np.stack([ndimage.shift(band, shift, order=1, cval=np.nan) for band in 10 ** (sar / 10)])
    after = estimate(optical, 10 * np.log10(moved))
    assert [before.verdict, after.verdict] == ["applied", "applied"]
    assert np.hypot(after.dy_px - before.dy_px - shift[0], after.dx_px - before.dx_px - shift[1]) <= 0.15


@pytest.mark.real
def test_real_sar_turned_or_mirrored_is_refused(triplet: tuple[Array, Array]) -> None:
    optical, sar = triplet
    turned = [np.rot90(sar, quarter, axes=(1, 2)) for quarter in (1, 2, 3)]
    mirrored = [sar[:, ::-1], sar[:, :, ::-1], sar.transpose(0, 2, 1)]
    assert [estimate(optical, np.ascontiguousarray(other)).verdict for other in turned + mirrored] == ["refused"] * 6
