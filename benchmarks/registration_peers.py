"""What others offer for laying SAR onto optical, each asked in the same way: two images and their common mask in, a field or a refusal out.

Each is used as its documentation says, on grey values and on gradient magnitudes, which is what makes it work at all here. Packages are
imported by the function that needs them, so that one that is not installed is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sereno.pipeline.config import AlignSettings, DescriptorName, FieldDegree
from sereno.pipeline.registration import LOG_OFFSET, Layer, estimate_field
from sereno.pipeline.shiftfield import ShiftField, make_shift

PIXEL_M: Final = 10.0
"""Side of a pixel; only ours asks for it."""
GRADIENT_SIGMA_PX: Final = 1.5
"""Scale of the gradient that all peers are given."""
SEARCH_PX: Final = 10
"""How far everybody may search, where it can be said."""
MIN_TIE_POINTS: Final = 10
"""From so many tie points an affine field is fitted through those of AROSICS, below it their mean is taken."""

Array = npt.NDArray[np.float32]


class Scene(NamedTuple):
    """Two views of one ground."""

    optical: Layer
    """Reflectance."""
    sar: Layer
    """dB."""


Peer = Callable[[Scene], ShiftField | None]


def make_ours(descriptor: DescriptorName, field: FieldDegree = "affine", search_m: float = SEARCH_PX * PIXEL_M) -> Peer:
    """Ours with that descriptor and that field at most."""
    settings = AlignSettings(descriptor=descriptor, field=field, search_m=search_m)

    def estimate(scene: Scene) -> ShiftField | None:
        found = estimate_field(scene.optical, scene.sar, settings, pixel_m=PIXEL_M)
        return found.field if found.verdict == "applied" else None

    return estimate


def to_grey(scene: Scene, *, gradient: bool) -> tuple[Array, Array]:
    """One band each: mean logarithm of reflectance and mean dB, or their gradient magnitudes, mean 0 and spread 1, 0 where not valid."""
    images = []
    for layer, values in ((scene.optical, np.log(np.maximum(scene.optical.values, 0) + LOG_OFFSET)), (scene.sar, scene.sar.values)):
        grey = values.mean(axis=0)
        grey = np.where(layer.valid, grey, np.median(grey[layer.valid])).astype(np.float32)
        if gradient:
            grey = ndimage.gaussian_gradient_magnitude(grey, GRADIENT_SIGMA_PX)
        grey = (grey - grey[layer.valid].mean()) / max(float(grey[layer.valid].std()), 1e-6)
        images.append(np.where(layer.valid, grey, 0).astype(np.float32))
    return images[0], images[1]


def make_phase_correlation(*, gradient: bool) -> Peer:
    """scikit-image's phase correlation, one shift per scene; it has no way to refuse."""
    from skimage.registration import phase_cross_correlation

    def estimate(scene: Scene) -> ShiftField | None:
        optical, sar = to_grey(scene, gradient=gradient)
        normalization = None if gradient else "phase"  # without normalisation it is better on gradients (measured)
        back, _, _ = phase_cross_correlation(optical, sar, upsample_factor=20, normalization=normalization)
        return make_shift(optical.shape, -float(back[0]), -float(back[1]))

    return estimate


def make_ecc(*, gradient: bool) -> Peer:
    """OpenCV's enhanced correlation coefficient, affine, on two levels; it refuses where it does not converge."""
    import cv2

    def estimate(scene: Scene) -> ShiftField | None:
        optical, sar = to_grey(scene, gradient=gradient)
        mask = (scene.optical.valid & scene.sar.valid).astype(np.uint8)
        rule = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
        warp = np.eye(2, 3, dtype=np.float32)
        try:
            for level in (4, 1):
                warp[:, 2] /= level
                views = [cv2.resize(image, None, fx=1 / level, fy=1 / level, interpolation=cv2.INTER_AREA) for image in (optical, sar)]
                small = cv2.resize(mask, None, fx=1 / level, fy=1 / level, interpolation=cv2.INTER_NEAREST)
                _, warp = cv2.findTransformECC(views[0], views[1], warp, cv2.MOTION_AFFINE, rule, small, 5)
                warp[:, 2] *= level
        except cv2.error:
            return None
        return field_of_affine(warp.astype(np.float64), optical.shape)

    return estimate


def field_of_affine(warp: npt.NDArray[np.float64], shape: tuple[int, ...]) -> ShiftField:
    """The field of a map from (x, y) of optical to (x, y) of SAR, (2, 3)."""
    start = make_shift(shape)
    (row, col), scale = start.centre, start.scale_px
    across = warp @ np.array([col, row, 1.0]) - np.array([col, row])
    linear = (warp[:, :2] - np.eye(2)) * scale
    dy = (float(across[1]), float(linear[1, 1]), float(linear[1, 0]))
    dx = (float(across[0]), float(linear[0, 1]), float(linear[0, 0]))
    return ShiftField("affine", dy, dx, start.centre, scale)


def make_mutual_information(*, gradient: bool) -> Peer:
    """SimpleITK's Mattes mutual information, affine, on three levels; it has no way to refuse."""
    import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def estimate(scene: Scene) -> ShiftField | None:
        optical, sar = to_grey(scene, gradient=gradient)
        fixed, moving = (sitk.GetImageFromArray(image) for image in (optical, sar))
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(50)
        for layer, put in ((scene.optical, method.SetMetricFixedMask), (scene.sar, method.SetMetricMovingMask)):
            put(sitk.GetImageFromArray(layer.valid.astype(np.uint8)))
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.3, 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
        start = sitk.AffineTransform(2)
        start.SetCenter([(length - 1) / 2 for length in reversed(optical.shape)])
        method.SetInitialTransform(start, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:
            return None
        corners = np.array([start.TransformPoint(place) for place in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))])
        warp = np.column_stack([corners[1] - corners[0], corners[2] - corners[0], corners[0]])
        return field_of_affine(warp, optical.shape)

    return estimate


def make_arosics(*, gradient: bool) -> Peer:
    """AROSICS' tie points that it keeps, with an affine field through them; it refuses where it keeps none."""
    with fill_gaps_of_old_gdal():
        from arosics import COREG_LOCAL
        from geoarray import GeoArray

    def estimate(scene: Scene) -> ShiftField | None:
        transform, projection = (500_000, PIXEL_M, 0, 5_000_000, 0, -PIXEL_M), "EPSG:32632"
        images = [np.where(image == 0, -9999, image) for image in to_grey(scene, gradient=gradient)]
        optical, sar = (GeoArray(image, transform, projection, nodata=-9999) for image in images)
        quiet: dict[str, Any] = {"q": True, "progress": False, "CPUs": 1, "ignore_errors": True, "calc_corners": False}
        with redirect_stdout(StringIO()):
            found = COREG_LOCAL(
                optical, sar, grid_res=32, window_size=(256, 256), max_shift=SEARCH_PX, nodata=(-9999, -9999), **quiet
            ).CoRegPoints_table
        if not len(found) or "OUTLIER" not in found:
            return None
        kept = found[(found["OUTLIER"] == False) & (found["ABS_SHIFT"] >= 0)]  # noqa: E712 - a column, and it may hold nodata
        if not len(kept):
            return None
        votes = kept[["Y_IM", "X_IM", "Y_SHIFT_PX", "X_SHIFT_PX"]].to_numpy(float)
        return fit_through(votes[:, :2], -votes[:, 2:], scene.optical.valid.shape)

    return estimate


def fit_through(places: npt.NDArray[np.float64], shifts: npt.NDArray[np.float64], shape: tuple[int, ...]) -> ShiftField:
    """The affine field through shifts (n, 2) at places (n, 2), rows first, or their mean where they are few."""
    if len(places) < MIN_TIE_POINTS:
        return make_shift(shape, *(float(value) for value in shifts.mean(axis=0)))
    start = make_shift(shape)
    offsets = (places - np.array(start.centre)) / start.scale_px
    coefficients = np.linalg.lstsq(np.column_stack([np.ones(len(places)), offsets]), shifts, rcond=None)[0]
    dy, dx = (tuple(float(value) for value in axis) for axis in coefficients.T)
    return ShiftField("affine", dy, dx, start.centre, start.scale_px)


@contextmanager
def fill_gaps_of_old_gdal() -> Iterator[None]:
    """HACK: AROSICS 1.13 asks GDAL for context managers that came with 3.8; Debian 12 has 3.6. Harmless where they are there."""
    from osgeo import gdal

    if not hasattr(gdal, "config_options"):

        @contextmanager
        def config_options(options: dict[str, str]) -> Iterator[None]:
            before = {key: gdal.GetConfigOption(key) for key in options}
            for key, value in options.items():
                gdal.SetConfigOption(key, value)
            try:
                yield
            finally:
                for key, value in before.items():
                    gdal.SetConfigOption(key, value)

        gdal.config_options = config_options
    if not hasattr(gdal.Dataset, "__enter__"):
        gdal.Dataset.__enter__ = lambda dataset: dataset
        gdal.Dataset.__exit__ = lambda *_: None
    yield


PEERS: Final[dict[str, Callable[[], Peer]]] = {
    "sereno, self-similarity": lambda: make_ours("self-similarity"),
    "sereno, orientations": lambda: make_ours("orientations"),
    "sereno, quadratic": lambda: make_ours("self-similarity", "quadratic"),
    "sereno, one shift": lambda: make_ours("self-similarity", "shift"),
    "scikit-image phase correlation": lambda: make_phase_correlation(gradient=False),
    "scikit-image, gradients": lambda: make_phase_correlation(gradient=True),
    "OpenCV ECC": lambda: make_ecc(gradient=False),
    "OpenCV ECC, gradients": lambda: make_ecc(gradient=True),
    "SimpleITK mutual information": lambda: make_mutual_information(gradient=False),
    "SimpleITK, gradients": lambda: make_mutual_information(gradient=True),
    "AROSICS local": lambda: make_arosics(gradient=False),
    "AROSICS local, gradients": lambda: make_arosics(gradient=True),
}
"""By the name in the tables; each is made when it is its turn, which raises ImportError where its package is missing."""
