"""A camera that sees all bands of a scene in one picture through a coded aperture, and how to go back from the picture.

Cubes (B, C, H, W) become measurements (B, H, W + largest shift) and the other way round (CASSI with a single disperser, Wagadarikar et
al. 2008). Baselines without a network and the losses of mask-aware learning stand here too. Values are linear in light, about 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sereno.pipeline.errors import DataError

SHIFT_PX: Final = 2
"""Columns by which the disperser shifts each band further than the one before (S2-Transformer's code)."""
NO_LIGHT: Final = 1e-8
"""Smallest sum of mask values that is divided by; less light reaches a detector pixel only from behind closed apertures."""
DUAL_STEP: Final = 0.125
"""Step of the dual iteration: it converges up to 1 over the squared norm of the gradient, which is 8 (Chambolle 2004, theorem 3.1)."""


class Camera(NamedTuple):
    """What a scene goes through on its way to the detector."""

    mask: Tensor
    """(H, W) share of light that the coded aperture lets through at each pixel; or (B, 1, H, W), another for each cube."""
    shifts_px: tuple[int, ...]
    """Columns by which each band is shifted, not falling."""
    gain: float
    """What the sum over bands is multiplied by."""

    @property
    def detector(self) -> tuple[int, int]:
        """Rows and columns of a measurement."""
        return self.mask.shape[-2], self.mask.shape[-1] + self.shifts_px[-1]


class GapTv(NamedTuple):
    """How long GAP-TV goes on, and how smooth its answer is."""

    rounds: int = 80
    """Projections onto the measurement, each followed by denoising."""
    weight: float = 0.05
    """Weight of the total variation in the first round, in units of the cube times pixels."""
    last_weight: float = 0.003
    """The same in the last round; between them it falls by the same factor from round to round."""
    denoising: int = 3
    """Dual steps of the denoising of each round, which go on from those of the round before."""


QUICK: Final = GapTv(rounds=60, denoising=2)
"""GAP-TV as a first estimate: half the work."""


def make_camera(mask: Tensor, bands: int, *, shift_px: int = SHIFT_PX, where: str = "mask") -> Camera:
    """A camera with this aperture (H, W) for so many bands; `where` names its source in messages.

    Band k is shifted by `shift_px` k columns, and the sum over C bands multiplied by 2 / C, so that half-open apertures keep the
    brightness (S2-Transformer's code).

    Raises:
        DataError: the mask is not an image of values from 0 upwards that lets some light through.
    """
    if mask.ndim != 2:
        raise DataError(f"{where}: a coded aperture is an image of two axes, not of shape {tuple(mask.shape)}; give the mask of one band")
    if not (mask.isfinite().all() and mask.min() >= 0 and mask.max() > 0):
        raise DataError(f"{where}: values from {mask.min():g} to {mask.max():g}, but a mask lets through shares of light from 0 up to 1")
    return _space_evenly(mask, bands, shift_px)


def _space_evenly(mask: Tensor, bands: int, shift_px: int) -> Camera:
    """The camera that shifts each band so many columns further than the one before, with the gain that `make_camera` tells."""
    return Camera(mask, tuple(shift_px * band for band in range(bands)), 2 / bands)


def check_cube(camera: Camera, cube: Tensor, *, where: str = "cube") -> None:
    """Refuse a cube (..., C, H, W) that is not of the camera's bands and size.

    Raises:
        DataError: says both and what to do.
    """
    bands, *size = cube.shape[-3:]
    if bands != len(camera.shifts_px):
        raise DataError(
            f"{where}: {bands} bands, but the camera is for {len(camera.shifts_px)}; resample its wavelengths or change the camera"
        )
    if tuple(size) != tuple(camera.mask.shape[-2:]):
        raise DataError(f"{where}: {_say(size)}, but the mask has {_say(camera.mask.shape[-2:])}; crop one to the size of the other")


def check_measurement(camera: Camera, measurement: Tensor, *, where: str = "measurement") -> None:
    """Refuse a measurement (..., H, W') that this camera cannot have made.

    Raises:
        DataError: says its size, the one expected, and what to do.
    """
    if tuple(measurement.shape[-2:]) != camera.detector:
        raise DataError(
            f"{where}: {_say(measurement.shape[-2:])}, but a mask of {_say(camera.mask.shape[-2:])} and shifts up to "
            f"{camera.shifts_px[-1]} columns give {_say(camera.detector)}; use the mask and the shift it was taken with"
        )


def measure_cube(camera: Camera, cube: Tensor) -> Tensor:
    """The picture of a cube, A x: (B, C, H, W) -> (B, H, W'). Each band is masked, shifted, and added to the others."""
    coded, width = camera.mask.to(cube) * cube, cube.shape[-1]
    picture = coded.new_zeros(len(coded), *camera.detector)
    for band, shift in zip(coded.unbind(1), camera.shifts_px, strict=True):
        picture[..., shift : shift + width] += band
    return camera.gain * picture


def project_back(camera: Camera, measurement: Tensor) -> Tensor:
    """The adjoint of `measure_cube`, A' y: (B, H, W') -> (B, C, H, W)."""
    return camera.gain * camera.mask.to(measurement) * _shift_back(camera, measurement)


def derive_camera(mask: Tensor, bands: int, columns: int) -> Camera:
    """The camera with this aperture (H, W) or (B, 1, H, W) for so many bands whose detector has so many columns.

    Raises:
        DataError: no whole shift from band to band gives so many.
    """
    beyond, steps = columns - mask.shape[-1], bands - 1
    if beyond < 0 or (beyond % steps if steps else beyond):
        raise DataError(
            f"picture: {columns} columns, but a mask of {mask.shape[-1]} columns and {bands} bands that are shifted alike give "
            f"{mask.shape[-1]} and a multiple of {steps} more; use the mask and the bands it was taken with"
        )
    return _space_evenly(mask, bands, beyond // max(1, steps))


def approach_picture(camera: Camera, cube: Tensor, measurement: Tensor, *, share: float = 1.0) -> Tensor:
    """`share` of the way from a cube to the nearest one with this picture: (B, C, H, W), (B, H, W') -> (B, C, H, W).

    The truth is among the cubes with a picture that has no noise, and a step towards all of them at right angles leads nearer to it.
    """
    missing = measurement - measure_cube(camera, cube)
    return cube + share * project_back(camera, missing / _measure_light(camera, measurement))


def estimate_first(camera: Camera, measurement: Tensor) -> Tensor:
    """The smallest cube with this picture, A' (A A')^-1 y: (B, H, W') -> (B, C, H, W), 0 behind closed apertures.

    The measurement shifted back and masked, as the S2-Transformer is given it, here divided by the light that reached each detector
    pixel, of which there is less at the sides. A A' is diagonal, since a detector pixel sees each band in one place at most.
    """
    return project_back(camera, measurement / _measure_light(camera, measurement))


def estimate_open(camera: Camera, measurement: Tensor) -> Tensor:
    """The mean of all bands that met in a detector pixel, for each of them: (B, H, W') -> (B, C, H, W), 0 where none did.

    Ours: behind closed apertures it shows other bands of other places, which is mostly nearer than nothing.
    """
    sums = measure_cube(camera, torch.ones(1, len(camera.shifts_px), *camera.mask.shape[-2:]).to(measurement))
    return _shift_back(camera, torch.where(sums > NO_LIGHT, measurement / sums.clamp_min(NO_LIGHT), 0.0))


@torch.no_grad()
def reconstruct_gap_tv(camera: Camera, measurement: Tensor, settings: GapTv | None = None) -> Tensor:
    """A cube with about this picture and little total variation: (B, H, W') -> (B, C, H, W) (GAP-TV, Yuan 2016, ICIP).

    Alternates the projection onto the cubes with this picture, `x = v + A' (A A')^-1 (y - A v)`, and denoising each band, `v = TV(x)`;
    accelerated by adding up the residuals of y (Liao et al. 2014, GAP). Ours: the weight of the variation falls while the rounds go on,
    and the denoising goes on from the dual variables of the round before, so that two steps are as good as eight from nothing. More rounds
    go on helping where there is no noise: of 42 held-out cubes of simulated land, 28 bands each, 60 rounds of two steps make 41.7 dB, 80 of
    three 42.3, 160 of three 42.8.
    """
    settings = settings or GapTv()
    light, back = _measure_light(camera, measurement), camera.gain * camera.mask.to(measurement)
    cube, aimed = torch.zeros_like(_shift_back(camera, measurement)), torch.zeros_like(measurement)
    dual = Dual(*(torch.zeros_like(cube) for _ in range(3)))
    for number in range(settings.rounds):
        seen = measure_cube(camera, cube)
        aimed += measurement - seen
        cube.addcmul_(_shift_back(camera, (aimed - seen) / light), back)
        cube = denoise_on(cube, dual, _weigh_round(settings, number), steps=settings.denoising)
    return cube


def _weigh_round(settings: GapTv, number: int) -> float:
    """Weight of the variation in a round, counted from 0."""
    fall = settings.last_weight / settings.weight
    return float(settings.weight * fall ** (number / max(1, settings.rounds - 1)))


def estimate_quickly(camera: Camera, measurement: Tensor) -> Tensor:
    """GAP-TV with half the work: (B, H, W') -> (B, C, H, W)."""
    return reconstruct_gap_tv(camera, measurement, QUICK)


class Dual(NamedTuple):
    """Where the denoising of a cube stands, each (B, C, H, W); steps change it in place."""

    down: Tensor
    """The field along columns, 0 in the last row."""
    across: Tensor
    """The field along rows, 0 in the last column."""
    divergence: Tensor
    """That of both."""


def denoise_bands(cube: Tensor, weight: float, *, steps: int) -> Tensor:
    """`argmin 1/2 |u - x|^2 + weight TV(u)` of each band, approached in so many steps: (B, C, H, W) -> (B, C, H, W).

    The isotropic total variation of Rudin, Osher and Fatemi (1992), by projected gradients of the dual (Chambolle 2004, section 3).
    """
    return denoise_on(cube, Dual(*(torch.zeros_like(cube) for _ in range(3))), weight, steps=steps)


def denoise_on(cube: Tensor, dual: Dual, weight: float, *, steps: int) -> Tensor:
    """The same, from where `dual` stands."""
    for _ in range(steps):
        smooth = torch.add(cube, dual.divergence, alpha=weight)
        dual.down[:, :, :-1].add_(smooth.diff(dim=2), alpha=DUAL_STEP / weight)
        dual.across[..., :-1].add_(smooth.diff(dim=3), alpha=DUAL_STEP / weight)
        length = (dual.down * dual.down).addcmul_(dual.across, dual.across).sqrt_().clamp_min_(1)
        dual.down.div_(length)
        dual.across.div_(length)
        _diverge(dual)
    return torch.add(cube, dual.divergence, alpha=weight)


ESTIMATES: Final[dict[str, Callable[[Camera, Tensor], Tensor]]] = {
    "gap-tv": estimate_quickly,
    "gap-tv-full": reconstruct_gap_tv,
    "open": estimate_open,
    "first": estimate_first,
}
"""What a network can be given, by the name of its base."""


def compute_signal_loss(signal: Tensor, cube: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of a head's answer from the encoded signal F' = M F, a scalar: cubes (B, C, H, W), mask (B, 1, H, W).

    With the mean absolute error of the image it is the loss of mask-encoding pretraining (Wang et al. 2025, as reading notes tell it; the
    norm is our guess).
    """
    return (signal.float() - mask * cube).abs().mean()


def weigh_signal(signal: Tensor, *, max_weight: float = 10.0) -> Tensor:
    """How much each voxel counts by how weak its encoded signal looks: (B, C, H, W) -> the same, mean 1 per image, no gradient.

    `w = 1 / |g|` cut to between 1 and `max_weight`, then `(w - 1) / mean(w - 1)`: nothing where the signal is strong, most where it is
    masked (mask-aware training, Wang et al. 2025, as reading notes tell it). NOTE: dark voxels in the open weigh as much as masked ones.
    """
    weight = 1 / signal.detach().float().abs().clamp_min(1 / max_weight)
    excess = weight.clamp_min(1) - 1
    return excess / excess.mean(dim=(1, 2, 3), keepdim=True).clamp_min(NO_LIGHT)


def compute_mask_aware_loss(image: Tensor, cube: Tensor, signal: Tensor) -> Tensor:
    """Mean absolute error of a cube weighed by `weigh_signal` of the head's answer, a scalar: (B, C, H, W) thrice.

    The second term of mask-aware training, beside the plain mean absolute error (Wang et al. 2025, as reading notes tell it).
    """
    return (weigh_signal(signal) * (image.float() - cube).abs()).mean()


def _shift_back(camera: Camera, measurement: Tensor) -> Tensor:
    """What of a measurement each band fell upon: (B, H, W') -> (B, C, H, W)."""
    width = camera.mask.shape[-1]
    return torch.stack([measurement[..., shift : shift + width] for shift in camera.shifts_px], dim=1)


def _measure_light(camera: Camera, like: Tensor) -> Tensor:
    """The diagonal of A A': (1 or B, H, W')."""
    openness = project_back(camera, torch.ones(1, *camera.detector).to(like))
    return measure_cube(camera, openness).clamp_min(NO_LIGHT)


def _diverge(dual: Dual) -> None:
    """Set the divergence of the field, minus the adjoint of the forward difference."""
    torch.add(dual.down, dual.across, out=dual.divergence)
    dual.divergence[:, :, 1:] -= dual.down[:, :, :-1]
    dual.divergence[..., 1:] -= dual.across[..., :-1]


def _say(size: tuple[int, ...] | list[int] | torch.Size) -> str:
    return f"{size[0]} x {size[1]} pixels"
