"""The guide is laid onto the coarse bands, which stay as they are; and a patch holds both with one mask."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from real_files import find_samples
from scipy.spatial import cKDTree

from sereno.pipeline.config import AlignSettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.groups import to_coarse_grid, to_group
from sereno.pipeline.scene import geobox_of, to_scene
from sereno.pipeline.sharpening_samples import check_product, lay_guide, list_material

SIDE, MARGIN = 512, 16
GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32632")
FACTS = {"item": "S2", "time": "2021-06-03T10:20:00Z", "sensor": "sentinel2-l2a", "refused": None}
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def parcels() -> Array:
    """Which of 800 parcels each fine pixel lies in, the margin included."""
    corners = np.random.default_rng(1).uniform(0, SIDE + 2 * MARGIN, (800, 2))
    places = np.stack(np.mgrid[: SIDE + 2 * MARGIN, : SIDE + 2 * MARGIN], axis=-1)
    found: Array = cKDTree(corners).query(places)[1]
    return found


def make_product(parcels: Array, shift: tuple[int, int] = (0, 0), ratio: int = 2) -> dict[str, xr.Dataset]:
    """The guide, its content moved by `shift` fine pixels, and the coarse bands, averages of other colours of the same parcels."""
    rng = np.random.default_rng(2)
    colours = rng.integers(300, 3500, (5, 800))
    rows, cols = (slice(MARGIN - step, MARGIN - step + SIDE) for step in shift)
    fine = colours[:2][:, parcels[rows, cols]].astype(np.uint16)
    inner = colours[2:][:, parcels[MARGIN:-MARGIN, MARGIN:-MARGIN]]
    coarse = inner.reshape(3, SIDE // ratio, ratio, SIDE // ratio, ratio).mean(axis=(2, 4)).astype(np.uint16)
    grids = {"ms": (coarse, to_coarse_grid(GRID, ratio), ("B05", "B8A", "B11")), "pan": (fine, GRID, ("B03", "B08"))}
    return {
        role: to_scene(
            data, np.ones(grid.shape, bool), bands=bands, geobox=grid, provenance=dict(FACTS), scl=np.full(grid.shape, 4, np.uint8)
        )
        for role, (data, grid, bands) in grids.items()
    }


@pytest.mark.parametrize("shift", [(1, -1), (-3, 4)])
def test_a_shift_of_whole_fine_pixels_is_taken_out_and_nothing_is_interpolated(parcels: Array, shift: tuple[int, int]) -> None:
    straight, shifted = make_product(parcels), make_product(parcels, shift)
    laid = lay_guide(shifted, AlignSettings())
    found = laid.registrations["pan"]
    assert found.verdict == "applied"
    assert (2 * found.shift_px[0], 2 * found.shift_px[1]) == pytest.approx(shift, abs=0.25)
    inside = np.s_[:, 4:-4, 4:-4]
    np.testing.assert_array_equal(laid.scenes["pan"]["data"].values[inside], straight["pan"]["data"].values[inside])
    xr.testing.assert_identical(laid.scenes["ms"], shifted["ms"])
    assert laid.grid == geobox_of(shifted["ms"])
    lost = ~laid.scenes["pan"]["valid"].values
    assert lost.sum() == SIDE * SIDE - (SIDE - abs(shift[0])) * (SIDE - abs(shift[1]))


def test_a_guide_that_lies_right_stays_to_the_byte(parcels: Array) -> None:
    product = make_product(parcels)
    xr.testing.assert_identical(lay_guide(product, AlignSettings()).scenes["pan"], product["pan"])


def test_a_guide_of_other_ground_stays_and_the_record_says_so(parcels: Array) -> None:
    product, other = make_product(parcels), make_product(parcels[::-1, ::-1].copy())
    laid = lay_guide({"pan": other["pan"], "ms": product["ms"]}, AlignSettings())
    assert laid.registrations["pan"].verdict == "refused"
    xr.testing.assert_identical(laid.scenes["pan"], other["pan"])


@pytest.mark.parametrize(("what", "other"), [("item", "S2-OTHER"), ("time", "2021-06-08T10:20:00Z"), ("sensor", "sentinel2-l1c")])
def test_images_of_two_products_are_refused_in_one_line(parcels: Array, what: str, other: str) -> None:
    product = make_product(parcels)
    check_product(product, "g")
    product["ms"].attrs["provenance"][what] = other
    with pytest.raises(DataError, match=f"group g: pan is of {what} .* ms of '{other}'; both must be images of one product"):
        check_product(product, "g")


def test_the_mask_is_valid_where_both_images_are_and_clouds_are_known(parcels: Array) -> None:
    product = make_product(parcels)
    product["pan"]["valid"][1, 1] = False
    product["ms"]["valid"][2, 2] = False
    group = to_group(product, GRID, {"task": "pansharpening", "ratio": 2})
    shape = product["ms"]["valid"].shape
    known = product["ms"]["valid"].values.copy()
    known[3, 3] = False
    cloud = np.zeros(shape, np.uint8)
    cloud[4, 4] = 200
    masks = xr.Dataset({"cloud_ms": (("y", "x"), cloud), "shadow_ms": (("y", "x"), cloud // 2), "known_ms": (("y", "x"), known)})
    material = list_material(group, masks)
    assert material.ratio == 2
    assert material.names == {"bands": ("B05", "B8A", "B11"), "pan_bands": ("B03", "B08")}
    found = material.mask
    assert (found[0, 4, 4], found[1, 4, 4], found[2, 4, 4]) == (200, 100, 255)
    assert [tuple(place) for place in np.argwhere(found[2] == 0)] == [(0, 0), (2, 2), (3, 3)]
    np.testing.assert_array_equal(material.arrays["pan"](), group["pan"].values)
    assert material.unsure.sum() == 1


@pytest.mark.real
def test_bands_of_10_and_20_m_of_a_real_sample_lie_one_fine_pixel_apart_and_are_brought_together() -> None:
    """Thirty-six clear dates of one square of 640 m side by side: alone each is too small for windows, and all have the same shift."""
    folder = find_samples() / "worldcereal/00002806639B424A"
    h5py = pytest.importorskip("h5py")
    end = "00002806639B424A_32631_2017-08-01_2018-11-30.nc"
    with h5py.File(folder / f"S2_L2A_10m_{end}") as fine, h5py.File(folder / f"S2_L2A_20m_{end}") as coarse:
        clear = np.flatnonzero(np.isin(coarse["SCL"][:], (4, 5, 6, 7)).mean(axis=(1, 2)) > 0.98)[:36]
        series = {"pan": [fine[name][:] for name in ("B04", "B08")], "ms": [coarse[name][:] for name in ("B05", "B8A", "B11")]}
    scenes = {}
    for role, bands in series.items():
        stacked = np.stack([band[clear] for band in bands]).astype(np.uint16)
        n_bands, _, side, _ = stacked.shape
        image = stacked.reshape(n_bands, 6, 6, side, side).transpose(0, 1, 3, 2, 4).reshape(n_bands, 6 * side, 6 * side)
        grid = GeoBox(image.shape[1:], Affine(640 / side, 0, 500_000, 0, -640 / side, 5_000_000), "EPSG:32631")
        names = tuple(f"b{n}" for n in range(n_bands))
        scenes[role] = to_scene(image, np.ones(image.shape[1:], bool), bands=names, geobox=grid, provenance=dict(FACTS))
    laid = lay_guide(scenes, AlignSettings())
    assert laid.registrations["pan"].verdict == "applied"
    assert [2 * shift for shift in laid.registrations["pan"].shift_px] == pytest.approx([-0.8, 0], abs=0.1)

    def compare(pan: xr.Dataset) -> float:
        near_infrared = pan["data"].values[1].astype(float).reshape(192, 2, 192, 2).mean(axis=(1, 3))[4:-4]
        return float(np.corrcoef(near_infrared.ravel(), scenes["ms"]["data"].values[1, 4:-4].ravel())[0, 1])

    assert compare(laid.scenes["pan"]) > 0.98
    assert compare(scenes["pan"]) < 0.97
