"""Three dates, fine and coarse: what belongs together, what is moved, and what a patch holds."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.spatial import cKDTree

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.fusion_samples import (
    COARSE,
    FINE,
    check_series,
    compare_sensors,
    fit_line,
    is_other_sensor,
    lay_series,
    list_material,
)
from sereno.pipeline.groups import average_scene, to_group
from sereno.pipeline.scene import geobox_of, to_scene

SIDE, RATIO = 256, 16
GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")


def make_series(shift: int = 0) -> dict[str, xr.Dataset]:
    """Parcels whose colours change from date to date, the first date moved by `shift` columns; coarse images are averages."""
    corners = np.random.default_rng(1).uniform(0, SIDE + 16, (250, 2))
    parcels = cKDTree(corners).query(np.stack(np.mgrid[:SIDE, : SIDE + 16], axis=-1))[1]
    scenes = {}
    for number, (fine, coarse) in enumerate(zip(FINE, COARSE, strict=True), 1):
        colours = np.random.default_rng(2).integers(300, 3500, (3, 250)) + 40 * number
        start = 8 - (shift if number == 1 else 0)
        data = colours[:, parcels[:, start : start + SIDE]].astype(np.uint16)
        facts = {"item": f"S2-{number}", "time": f"2021-06-{number:02d}T10:20:00Z", "sensor": "sentinel2-l2a", "refused": None}
        scenes[fine] = to_scene(data, np.ones((SIDE, SIDE), bool), bands=("B03", "B04", "B08"), geobox=GRID, provenance=facts)
        scenes[coarse] = average_scene(scenes[fine], RATIO)
    return scenes


def test_a_series_stays_as_it_is_unless_its_dates_are_to_be_registered() -> None:
    series = make_series(3)
    laid = lay_series(series, AlignSettings())
    assert (laid.scenes, laid.registrations) == (series, {})


def test_a_date_that_lies_beside_the_target_is_laid_onto_it() -> None:
    straight, shifted = make_series(), make_series(3)
    laid = lay_series(shifted, AlignSettings(register_cloudy=True))
    assert {role: one.verdict for role, one in laid.registrations.items()} == {"fine-1": "applied", "fine-3": "applied"}
    assert laid.registrations["fine-1"].shift_px == pytest.approx((0, 3), abs=0.1)
    inside = np.s_[:, :, 4:-4]
    np.testing.assert_array_equal(laid.scenes["fine-1"]["data"].values[inside], straight["fine-1"]["data"].values[inside])
    xr.testing.assert_identical(laid.scenes["fine-2"], shifted["fine-2"])


def change(role: str, **facts: Any) -> dict[str, xr.Dataset]:
    series = make_series()
    series[role].attrs["provenance"] = series[role].attrs["provenance"] | facts
    return series


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ({role: scene for role, scene in make_series().items() if role != "coarse-2"}, "coarse-2 is missing; a series has three dates"),
        (change("fine-2", sensor="gaofen-pms"), "fine-1, fine-2, fine-3 are of sentinel2-l2a, gaofen-pms, sentinel2-l2a"),
        (change("fine-3", time="2021-06-02T10:20:00Z"), "needed are three dates in order"),
        (
            {**make_series(), "coarse-3": make_series()["coarse-3"].isel(band=[0, 1])},
            "fine-2 has bands .* coarse-3 has .* pipeline.ingest.bands",
        ),
    ],
)
def test_scenes_that_are_no_series_are_one_line(series: dict[str, xr.Dataset], words: str) -> None:
    check_series(make_series(), "g")
    with pytest.raises(DataError, match=f"group g: .*{words}") as caught:
        check_series(series, "g")
    assert "\n" not in str(caught.value)


def test_the_mask_of_a_date_is_valid_where_fine_and_coarse_are_and_clouds_are_known() -> None:
    series = make_series()
    series["fine-1"]["valid"][0, 0] = False
    series["coarse-3"]["valid"][1, 1] = False
    stated = {"fine-1": 0.0, "fine-2": 10.0, "fine-3": 30.5}
    group = to_group(series, GRID, {"task": "spatiotemporal-fusion", "ratio": RATIO, "pair": {"id": "g", "gaps_days": stated}})
    cloud = np.zeros((SIDE, SIDE), np.uint8)
    cloud[5, 5] = 77
    layers = {f"{kind}_{role}": (("y", "x"), cloud) for kind in ("cloud", "shadow") for role in FINE}
    known = {f"known_{role}": (("y", "x"), group[f"valid_{role}"].values.copy()) for role in FINE}
    known["known_fine-2"][1][9, 9] = False
    material = list_material(group, xr.Dataset({**layers, **known}))
    assert material.mask.shape == (3, 3, SIDE, SIDE)
    assert (material.mask[:, :2, 5, 5] == 77).all()
    valid = material.mask[:, 2] > 0
    assert [(~date).sum() for date in valid] == [1, 1, RATIO * RATIO]
    assert not valid[0, 0, 0]
    assert not valid[1, 9, 9]
    assert not valid[2, RATIO : 2 * RATIO, RATIO : 2 * RATIO].any()
    assert material.unsure.sum() == 1
    assert material.arrays["fine"]().shape == (3, 3, SIDE, SIDE)
    assert material.arrays["coarse"]().shape == (3, 3, SIDE // RATIO, SIDE // RATIO)
    np.testing.assert_array_equal(material.arrays["coarse"]()[1], series["coarse-2"]["data"].values)
    assert (material.names["dates"], material.ratio) == (("1", "2", "3"), RATIO)
    assert material.gaps_days == {"1": -10.0, "2": 0.0, "3": 20.5}, "days from the target, which is not in the middle"


def make_two_sensors(gain: float = 1.05, offset: float = 0.01, noise: float = 0.0) -> dict[str, xr.Dataset]:
    """A series whose coarse images answer by a straight line, with a cloud that no quality bit of theirs knows."""
    series = make_series()
    rng = np.random.default_rng(7)
    for coarse in COARSE:
        scene = series[coarse]
        values = scene["data"].values * gain + offset * 10_000 + rng.normal(0, noise * 10_000, scene["data"].shape)
        values[:, :2, :4] = 8000
        facts = scene.attrs["provenance"] | {"item": f"M-{coarse}", "sensor": "sentinel2-l2a"}
        stored = np.rint(values).astype(np.uint16)
        series[coarse] = to_scene(stored, scene["valid"].values, bands=("B03", "B04", "B08"), geobox=geobox_of(scene), provenance=facts)
    return series


def test_averages_of_the_fine_images_are_not_compared_with_them() -> None:
    assert not is_other_sensor(make_series())
    assert dict(lay_series(make_series(), AlignSettings()).facts) == {}


@pytest.mark.parametrize(("gain", "offset"), [(1.05, 0.01), (0.93, -0.004), (1.0, 0.0)])
def test_the_line_between_two_sensors_is_found_under_clouds_of_one(gain: float, offset: float) -> None:
    found = compare_sensors(make_two_sensors(gain, offset, noise=0.001))
    assert set(found) == {"B03", "B04", "B08"}
    for fit in found.values():
        assert fit["gain"] == pytest.approx(gain, abs=0.02)
        assert fit["offset"] == pytest.approx(offset, abs=0.004)
        assert fit["scatter"] < 0.003
        assert fit["pixels"] == 3 * 14 * 14  # inner ones alone: a neighbour beyond the edge is not known


def test_pixels_that_either_sensor_calls_covered_are_not_compared() -> None:
    series = make_two_sensors()
    scl = np.full((SIDE, SIDE), 5, np.uint8)
    scl[:, 128:] = 9
    for fine in FINE:
        series[fine] = series[fine].assign(scl=(("y", "x"), scl))
    assert compare_sensors(series)["B03"]["pixels"] == 3 * 14 * 6
    for coarse in COARSE:
        series[coarse]["valid"][:, :] = False
    assert compare_sensors(series) == {}


def test_a_line_needs_contrast_and_passes_over_outliers() -> None:
    x = np.linspace(0.05, 0.4, 200)
    y = 0.9 * x + 0.02
    y[::4] += 0.3  # a quarter of clouds
    assert fit_line(x, y) == {"gain": 0.9, "offset": 0.02, "scatter": 0.0}
    assert fit_line(np.full(200, 0.2), y) == {}
    assert fit_line(x[:10], y[:10]) == {}
