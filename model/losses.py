"""What training minimises: differences from the clear target, weighted by the cloud masks of input and target.

Images and their batch enter; the named parts of the loss and their weighted sum leave. A part is the sum of its terms, a term is a sum
over the batch divided by an amount that depends on the batch alone. So a batch may be cut up, to save memory or among processes: with the
amounts of the whole, the losses of the pieces add up to the loss of the whole. Another part is a function, a row of `TERMS`, a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sereno.model.config import LossSettings
from sereno.model.weighting import Supervision, weigh_pixels

NO_AMOUNT: Final = 1e-8
"""Smallest amount that is divided by; below it nothing is trusted and the loss is zero."""
CHARBONNIER: Final = 1e-3
"""Reflectance below which the Charbonnier part is quadratic (Lai et al. 2017)."""
FAINT: Final = 1e-3
"""Reflectance: length of a spectrum, or Fourier amplitude, below which its direction is noise; it bounds the gradient of the direction."""
UNDER_ROOT: Final = 1e-30
"""Added under the root of a length: the derivative of a root at zero is infinite."""


class Truth(NamedTuple):
    """What an image is compared with."""

    target: Tensor
    """(B, C, H, W) clear reflectance, 0 where it is not trusted, whatever is stored there."""
    trust: Tensor
    """(B, 1, H, W) trust in the target, 0..1."""
    weight: Tensor
    """(B, 1, H, W) trust with clouds of the input emphasised (see `weigh_pixels`)."""
    batch: Supervision
    """The rest."""


class Comparison(NamedTuple):
    """An image beside the truth."""

    image: Tensor
    """(B, C, H, W) reflectance, float32 or better."""
    error: Tensor
    """(B, C, H, W) image less target, 0 where the target is not trusted."""
    truth: Truth
    """What it is compared with."""


class Term(NamedTuple):
    """A quotient in the loss."""

    part: str
    """The part it is added to, which is a weight of `LossSettings`."""
    add_up: Callable[[Comparison], Tensor]
    """The numerator: a sum over the batch, a scalar."""
    measure: Callable[[Truth], Tensor]
    """The amount it is divided by: a sum over the batch, a scalar."""


def name_parts(settings: LossSettings) -> tuple[str, ...]:
    """Keys of the losses: `total`, the parts of non-zero weight, then `stages` if it has one."""
    parts = dict.fromkeys(term.part for term in _active_terms(settings).values())
    return ("total", *parts, *(["stages"] if settings.stages else []))


def measure_amounts(batch: Supervision, settings: LossSettings, weight: Tensor) -> dict[str, Tensor]:
    """What each term is divided by: scalars by term, to be summed over all pieces of a batch before use.

    `weight` is that of `weigh_pixels`, (B, 1, H, W). Nothing here depends on a prediction.
    """
    truth = _look_at(batch, weight)
    return {name: term.measure(truth) for name, term in _active_terms(settings).items()}


def compute_loss(
    images: Tensor | Sequence[Tensor],
    batch: Supervision,
    settings: LossSettings,
    *,
    weight: Tensor | None = None,
    amounts: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parts of `name_parts` and their weighted sum `total`, each a scalar in float32 (float64 for float64 images).

    `images` is (B, C, H, W), or the final image followed by intermediate ones, the mean loss of which is the part `stages` (0 without
    any). `weight` (B, 1, H, W) is static by default (`weigh_pixels`), `amounts` that of this batch (`measure_amounts`). Where the target
    is not trusted, what it holds moves nothing; with nothing trusted at all, loss and gradient are zero.
    """
    weight = weigh_pixels(batch, settings) if weight is None else weight
    amounts = measure_amounts(batch, settings, weight) if amounts is None else amounts
    truth = _look_at(batch, weight)
    final, *others = (_compute_parts(image, truth, settings, amounts) for image in ([images] if isinstance(images, Tensor) else images))
    losses = {"total": final["total"], **final}
    if settings.stages:
        losses["stages"] = sum((other["total"] for other in others), torch.zeros_like(final["total"])) / max(1, len(others))
        losses["total"] = losses["total"] + settings.stages * losses["stages"]
    return losses


def _compute_parts(image: Tensor, truth: Truth, settings: LossSettings, amounts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of one image and their weighted sum `total`."""
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    seen = Comparison(image, torch.where(truth.trust > 0, image - truth.target, 0.0), truth)
    parts: dict[str, Tensor] = {}
    for name, term in _active_terms(settings).items():
        value = term.add_up(seen) / amounts[name].clamp_min(NO_AMOUNT)
        parts[term.part] = parts[term.part] + value if term.part in parts else value
    return {"total": torch.stack([getattr(settings, part) * value for part, value in parts.items()]).sum(), **parts}


def _active_terms(settings: LossSettings) -> dict[str, Term]:
    return {name: term for name, term in TERMS.items() if getattr(settings, term.part)}


def _look_at(batch: Supervision, weight: Tensor) -> Truth:
    return Truth(torch.where(batch.weight > 0, batch.target, 0.0), batch.weight, weight, batch)


def _add_pixels(seen: Comparison) -> Tensor:
    """Absolute differences."""
    return _add_weighted(seen.error.abs(), seen.truth.weight)


def _add_charbonnier(seen: Comparison) -> Tensor:
    """`sqrt(e^2 + c^2) - c`: absolute differences, but smooth at zero (Charbonnier et al. 1994), where it is zero here."""
    return _add_weighted((seen.error.square() + CHARBONNIER**2).sqrt() - CHARBONNIER, seen.truth.weight)


def _add_squares(seen: Comparison) -> Tensor:
    """Squared differences."""
    return _add_weighted(seen.error.square(), seen.truth.weight)


def _add_neighbours(seen: Comparison, dim: int) -> Tensor:
    """Half of the absolute differences of neighbouring pixels along `dim` (SSR-NET, Zhang et al. 2021)."""
    return _add_weighted(seen.error.diff(dim=dim).abs(), _lesser(seen.truth.weight, dim)) / 2


def _measure_neighbours(truth: Truth, dim: int) -> Tensor:
    return _lesser(truth.weight, dim).sum()


def _add_bands(seen: Comparison) -> Tensor:
    """Absolute differences of neighbouring bands (SSR-NET, Zhang et al. 2021); zero for a single band."""
    steps = seen.error.diff(dim=1).abs()
    return (steps.sum(dim=1, keepdim=True) * seen.truth.weight).sum() / max(1, steps.shape[1])


def _add_angles(seen: Comparison) -> Tensor:
    """Spectral angles in radians (Kruse et al. 1993), where the target has one.

    Written `2 atan2(|u - v|, |u + v|)` with unit vectors (Kahan 2006): right at every angle, and no derivative of an arc
    cosine, which is infinite where two spectra agree.
    """
    truth = seen.truth
    true = _to_direction(torch.where(_has_angle(truth), truth.target, 1.0), dim=1)
    ours = _to_direction(seen.image, dim=1)
    angle = 2 * torch.atan2(_length_of(ours - true, dim=1), _length_of(ours + true, dim=1))
    return _add_weighted(angle, truth.weight * _has_angle(truth))


def _measure_angles(truth: Truth) -> Tensor:
    return (truth.weight * _has_angle(truth)).sum()


def _has_angle(truth: Truth) -> Tensor:
    """Where the target is bright enough for a direction, (B, 1, H, W) bool."""
    return _length_of(truth.target, dim=1) > FAINT


def _add_adaptively(seen: Comparison) -> Tensor:
    """Differences from the target under clouds and from the input elsewhere (first term of CARL in DSen2-CR, Meraner et al. 2020).

    The cloud mask is this part's own weight; `weigh_pixels` has no say. A pixel counts by what it is compared with: as far as the target
    is trusted under clouds, if the input was observed elsewhere.
    """
    cloudy, clear = _split_trust(seen.truth)
    change = torch.where(clear > 0, seen.image - seen.truth.batch.optical, 0.0)
    return _add_weighted(seen.error.abs(), cloudy) + _add_weighted(change.abs(), clear)


def _measure_adaptively(truth: Truth) -> Tensor:
    cloudy, clear = _split_trust(truth)
    return (cloudy + clear).sum()


def _split_trust(truth: Truth) -> tuple[Tensor, Tensor]:
    """How far a pixel is compared with the target, and how far with the input."""
    cloud = truth.batch.cloud
    return cloud * truth.trust, (1 - cloud) * truth.batch.valid_input


def _add_target(seen: Comparison) -> Tensor:
    """Differences from the target everywhere (second term of CARL, Meraner et al. 2020)."""
    return _add_weighted(seen.error.abs(), seen.truth.trust)


def _measure_target(truth: Truth) -> Tensor:
    return truth.trust.sum()


def _add_amplitudes(seen: Comparison) -> Tensor:
    """Absolute differences of Fourier amplitudes, mean over bands (the reconstruction loss of SFIIN, Zhou et al. 2022, in our terms)."""
    ours, true = (_amplitude_of(_transform(image, seen.truth)) for image in (seen.image, seen.truth.target))
    return ((ours - true).abs() * _count_twins(ours, seen.image)).mean(dim=1).sum()


def _measure_amplitudes(truth: Truth) -> Tensor:
    """Pixels times the root mean square of the trust, per image: so a noisy error costs the same whatever share of it is seen."""
    return truth.trust.square().mean(dim=(1, 2, 3)).sqrt().sum() * truth.trust[0].numel()


def _add_phases(seen: Comparison) -> Tensor:
    """`A (1 - cos(phase difference))`, A the target's amplitude: a phase that is all but absent in the target hardly counts.

    The cosine is taken as `1 - |u - v|^2 / 2` of the directions in the complex plane: periodic, and no angle is ever formed.
    """
    ours, true = (_transform(image, seen.truth) for image in (seen.image, seen.truth.target))
    apart = (_to_direction(ours, dim=-1) - _to_direction(true, dim=-1)).square().sum(dim=-1) / 2
    return (_amplitude_of(true) * apart * _count_twins(apart, seen.image)).sum()


def _measure_phases(truth: Truth) -> Tensor:
    amplitude = _amplitude_of(_transform(truth.target, truth))
    return (amplitude * _count_twins(amplitude, truth.target)).sum()


def _transform(image: Tensor, truth: Truth) -> Tensor:
    """Half the Fourier transform of what is trusted of `image`: (B, C, H, W) -> (B, C, H, W // 2 + 1, 2), real and imaginary.

    The transform mixes all pixels, so that only the trust can say which count; emphasis on some would bend the spectrum itself. With
    norm `ortho` noise has its deviation for an amplitude, in reflectance, whatever the size.
    """
    return torch.view_as_real(torch.fft.rfft2(image * truth.trust, norm="ortho"))


def _amplitude_of(transformed: Tensor) -> Tensor:
    return _length_of(transformed, dim=-1).squeeze(-1)


def _count_twins(half: Tensor, image: Tensor) -> Tensor:
    """How often each column of half a transform stands in the whole one: (..., W // 2 + 1), (..., W) -> (W // 2 + 1,), 1 or 2."""
    column = torch.arange(half.shape[-1], device=half.device)
    return torch.where((column == 0) | (2 * column == image.shape[-1]), 1, 2)


def _to_direction(vectors: Tensor, dim: int) -> Tensor:
    """Unit vectors along `dim`; shorter than 1 where a vector is fainter than `FAINT`, so that gradients stay finite."""
    return vectors / _length_of(vectors, dim).clamp_min(FAINT)


def _length_of(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean length along `dim`, which stays with extent 1; measured 25 times faster than torch's norm over bands on a CPU."""
    return (vectors.square().sum(dim=dim, keepdim=True) + UNDER_ROOT).sqrt()


def _add_weighted(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum over pixels of the mean over bands: (B, C, H, W), (B, 1, H, W) -> scalar."""
    return (values.mean(dim=1, keepdim=True) * weight).sum()


def _measure_weight(truth: Truth) -> Tensor:
    return truth.weight.sum()


def _lesser(weight: Tensor, dim: int) -> Tensor:
    """Weight of each pair of neighbours along `dim`, that of the lesser of them: one less than `weight` has there."""
    count = weight.shape[dim] - 1
    return torch.minimum(weight.narrow(dim, 0, count), weight.narrow(dim, 1, count))


TERMS: Final = {
    "pixel": Term("pixel", _add_pixels, _measure_weight),
    "charbonnier": Term("charbonnier", _add_charbonnier, _measure_weight),
    "squared": Term("squared", _add_squares, _measure_weight),
    "spatial_across": Term("spatial", partial(_add_neighbours, dim=3), partial(_measure_neighbours, dim=3)),
    "spatial_down": Term("spatial", partial(_add_neighbours, dim=2), partial(_measure_neighbours, dim=2)),
    "spectral": Term("spectral", _add_bands, _measure_weight),
    "sam": Term("sam", _add_angles, _measure_angles),
    "carl_adaptive": Term("carl", _add_adaptively, _measure_adaptively),
    "carl_target": Term("carl", _add_target, _measure_target),
    "amplitude": Term("amplitude", _add_amplitudes, _measure_amplitudes),
    "phase": Term("phase", _add_phases, _measure_phases),
}
"""All terms of the loss by name, in the order of the settings."""
