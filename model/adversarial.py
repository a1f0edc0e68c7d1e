"""What a critic and the network it judges minimise: one row per objective.

Images and a critic enter, losses leave; two functions more say what becomes of the critic after its step and how much it counts at a
step. Losses are sums over images, divided by the number of them in the whole batch, so that a batch may be cut up: the losses of the
pieces add up to that of the whole. All in float32, whatever the critic computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sereno.model.config import AdversarialSettings, StfganSettings, TrainSettings
from sereno.model.networks.stfgan import Discriminator
from sereno.pipeline.errors import ConfigError

SHARES: Final = 3
"""Sets the seeds of shares apart from those of all else that is drawn at a step."""
UNDER_ROOT: Final = 1e-12
"""Added under the root of a gradient's length: the derivative of a root at zero is infinite."""
NORMS: Final = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
"""Layers whose weights are scales of what they normalise."""


class Objective(NamedTuple):
    """What both sides minimise, given scores (B,)."""

    fool: Callable[[Tensor], Tensor]
    """Loss of the network per image it made, (B,)."""
    judge: Callable[[Tensor, Tensor], Tensor]
    """Loss of the critic per pair of a real image and one that was made, (B,)."""
    is_clipped: bool
    """True where the critic's weights are cut to a range after its step."""
    is_penalised: bool
    """True where the length of the critic's gradient is part of its loss."""


class Contest(NamedTuple):
    """What a critic is to tell apart."""

    real: Tensor
    """(B, C, H, W) true images."""
    made: Tensor
    """(B, C, H, W) images of the network, of the same places."""
    images: int
    """How many the whole batch has, of which these may be a piece."""


class CriticLoss(NamedTuple):
    """What a critic minimises, all scalars."""

    total: Tensor
    """The sum of the objective and the weighted penalty."""
    margin: Tensor
    """Mean score of real images less that of made ones: an estimate of their distance with the Wasserstein objectives."""
    penalty: Tensor
    """The gradient penalty without its weight, 0 where there is none."""


def create_critics(settings: TrainSettings, mean: Sequence[float], std: Sequence[float]) -> nn.ModuleList:
    """Critics with fresh weights that depend on `seed` alone: one for each stage of STFGAN, one for any other network.

    Those of STFGAN are as wide as it is; `mean` and `std` are reflectance of training targets, per band.

    Raises:
        ConfigError: as `check_critic`.
    """
    network, adversarial = settings.network, settings.adversarial
    assert adversarial is not None
    kind = network if isinstance(network, StfganSettings) else StfganSettings(name="stfgan", width=adversarial.width, stages=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        critics = nn.ModuleList(Discriminator(kind, mean=mean, std=std) for _ in range(kind.stages))
    check_critic(critics, adversarial)
    return critics


def check_critic(critic: nn.Module, settings: AdversarialSettings) -> None:
    """Refuse a critic that a gradient penalty cannot be asked of.

    Raises:
        ConfigError: it has batch norms, with which no image has a gradient of its own (Gulrajani et al. 2017, section 4).
    """
    if OBJECTIVES[settings.objective].is_penalised and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in critic.modules()):
        raise ConfigError(
            f"objective '{settings.objective}' penalises the gradient of each image, which a critic with batch norms does not have: "
            "set 'network.norm' to channel or choose another 'objective'"
        )


def weigh_critic(settings: AdversarialSettings, step: int) -> float:
    """Weight of the critic in the network's loss after `step` steps: 0 during the warm-up."""
    return 0.0 if step < settings.warmup_steps else settings.weight


def show_trusted(image: Tensor, trust: Tensor) -> Tensor:
    """What a critic may see of real and made images alike: (B, C, H, W), trust (B, 1, H, W) in 0..1 -> (B, C, H, W).

    Where the target is not trusted both are 0, so nothing there tells them apart or moves anything.
    """
    return torch.where(trust > 0, image * trust, 0.0)


def compute_fooling_loss(critic: nn.Module, made: Tensor, settings: AdversarialSettings, *, images: int | None = None) -> Tensor:
    """What the network minimises beside its other losses, a scalar, unweighted: `made` (B, C, H, W) of a batch of so many `images`.

    The gradient goes through the critic to the images, not into the critic's weights.
    """
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    scores: Tensor = functional_call(critic, frozen, (made,))
    return OBJECTIVES[settings.objective].fool(scores.float()).sum() / (len(made) if images is None else images)


def compute_critic_loss(critic: nn.Module, contest: Contest, settings: AdversarialSettings, *, shares: Tensor) -> CriticLoss:
    """What the critic minimises; no gradient reaches what made the images. `shares` (B,) in 0..1 are drawn anew (`draw_shares`).

    They place each image at which the gradient is penalised between the real and the made one.
    """
    objective, made = OBJECTIVES[settings.objective], contest.made.detach()
    real_scores, made_scores = critic(contest.real).float(), critic(made).float()
    judged = objective.judge(real_scores, made_scores).sum() / contest.images
    margin = (real_scores - made_scores).detach().sum() / contest.images
    if not objective.is_penalised:
        return CriticLoss(judged, margin, torch.zeros_like(judged))
    penalty = compute_gradient_penalty(critic, contest, shares)
    return CriticLoss(judged + settings.penalty * penalty, margin, penalty.detach())


def draw_shares(settings: TrainSettings, *, critics: int, step: int, turn: int, part: tuple[int, int] = (0, 1)) -> Tensor:
    """Shares for the `turn` of the critics after `step` steps, on the CPU: (critics, batch size / n) in 0..1, `part` (i, n) of the batch.

    Those of the whole batch depend on nothing else, so that it may be cut among processes, and a run goes on exactly from any step.
    """
    seed = int(np.random.SeedSequence((settings.seed, SHARES, step, turn)).generate_state(1, np.uint64)[0])
    whole = torch.rand(critics, settings.batch_size, generator=torch.Generator().manual_seed(seed))
    return whole.chunk(part[1], dim=1)[part[0]]


def compute_gradient_penalty(critic: nn.Module, contest: Contest, shares: Tensor) -> Tensor:
    """Mean over images of `(|gradient of the score| - 1)^2` at `s real + (1 - s) made`, a scalar (Gulrajani et al. 2017, eq. 3).

    The length is over all bands and pixels of an image. The critic works in float32 here even under autocast: bf16 rounds to one
    part in 256, and the rounding would be penalised too.
    """
    with torch.autocast(contest.real.device.type, enabled=False):
        share = shares.float()[:, None, None, None]
        between = (share * contest.real.float() + (1 - share) * contest.made.detach().float()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        length = (gradient.square().sum(dim=(1, 2, 3)) + UNDER_ROOT).sqrt()
        return (length - 1).square().sum() / contest.images


@torch.no_grad()
def restrain_critic(critic: nn.Module, settings: AdversarialSettings) -> None:
    """Do to the critic what its objective asks for after each of its steps: clip its weights to `clip`, or nothing.

    Norms keep theirs, which Arjovsky et al. 2017 do not say: they are 1 at first, and cut to 0.01 in seven layers they leave scores that
    no image moves (measured on the critic of STFGAN: gradients of 1e-4 with batch norms and 1e-7 with channel norms, against 0.05 and 0.8).
    """
    if not OBJECTIVES[settings.objective].is_clipped:
        return
    for module in critic.modules():
        if not isinstance(module, NORMS):
            for parameter in module.parameters(recurse=False):
                parameter.clamp_(-settings.clip, settings.clip)


def _please(scores: Tensor) -> Tensor:
    return -scores


def _compare(real: Tensor, made: Tensor) -> Tensor:
    return made - real


def _please_squared(scores: Tensor) -> Tensor:
    return (scores - 1).square() / 2


def _compare_squared(real: Tensor, made: Tensor) -> Tensor:
    return ((real - 1).square() + made.square()) / 2


OBJECTIVES: Final = {
    "wgan-clip": Objective(_please, _compare, is_clipped=True, is_penalised=False),
    "wgan-gp": Objective(_please, _compare, is_clipped=False, is_penalised=True),
    "lsgan": Objective(_please_squared, _compare_squared, is_clipped=False, is_penalised=False),
}
"""Objectives by name: Arjovsky et al. 2017, algorithm 1; Gulrajani et al. 2017, eq. 3; Mao et al. 2017, eq. 9 (labels 0, 1, 1)."""
