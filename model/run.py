"""What changes while a network is trained, and all of it that has to be saved so that training goes on exactly.

A network and the settings enter `Run`; `to_state` leaves, as plain values and tensors. How its steps are taken is in `train`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sereno.model.batches import AnyBatch
from sereno.model.config import TrainSettings
from sereno.model.lessons import choose_answer, find_lesson
from sereno.model.weighting import MaskEncoder, weigh_pixels

ROW_EVERY: Final = 20
"""Steps between rows of the history, and the most that a GPU is ahead of the guards."""
SMOOTHING: Final = 0.95
"""Decay of the smoothed loss that is watched for divergence."""
SETTLED: Final = 20
"""Losses after which the smoothed one is no longer ruled by the first."""
CONTEST: Final = ("fooling", "critic", "margin", "penalty")
"""Columns of training with critics: the network's term before it is weighted, then what they minimise, and two parts of it."""


class Score(NamedTuple):
    """What a validation found."""

    loss: float
    """Mean loss over the patches with a usable target."""
    psnr_db: float | None
    """Mean over patches of the PSNR of cloudy pixels; None if there are none."""


class Best(NamedTuple):
    """The weights that are saved in the end."""

    step: int
    """Optimiser steps after which they were taken."""
    score: Score | None
    """Their validation; None without a validation split."""
    weights: dict[str, Tensor]
    """State dict of the network."""


class Trend(NamedTuple):
    """Where the loss is heading; batches without any trusted target have no say."""

    seen: int = 0
    """Losses so far."""
    smooth: float = 0.0
    """Their exponential mean."""
    lowest: float = math.inf
    """The lowest it was."""
    last: float = 0.0
    """The last loss."""

    def follow(self, loss: float) -> Trend:
        """The trend after one more loss."""
        if loss <= 0:
            return self._replace(last=loss)
        smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * loss if self.seen else loss
        return Trend(self.seen + 1, smooth, min(self.lowest, smooth) if self.seen >= SETTLED else math.inf, loss)


class Sums(NamedTuple):
    """What the next row of the history is the mean of."""

    steps: int
    """Steps taken since the row before."""
    values: list[float]
    """Sums over them, in the order of `columns`."""

    @staticmethod
    def columns(settings: TrainSettings) -> tuple[str, ...]:
        """Names of the values: the norm of the gradient before it is clipped, the parts of the loss, `total` first, what critics say."""
        return ("grad_norm", *find_lesson(settings).name_parts(settings), *(CONTEST if settings.adversarial else ()))

    @staticmethod
    def begin(settings: TrainSettings) -> Sums:
        """Nothing yet."""
        return Sums(0, [0.0] * len(Sums.columns(settings)))

    def add(self, values: Sequence[float]) -> Sums:
        """The sums with one more step."""
        return Sums(self.steps + 1, [total + value for total, value in zip(self.values, values, strict=True)])

    def to_means(self, settings: TrainSettings) -> dict[str, float]:
        """Means by column; empty if there was no step."""
        return {name: total / self.steps for name, total in zip(Sums.columns(settings), self.values, strict=True)} if self.steps else {}


class Run:
    """What changes while training: weights, their average, the optimiser, how the loss goes, the best so far."""

    def __init__(
        self, network: nn.Module, settings: TrainSettings, *, device: torch.device, bands: int, critics: nn.ModuleList | None = None
    ) -> None:
        """`network` and `critics` are on `device`; its images have so many optical `bands`."""
        self.network, self.settings, self.device = network, settings, device
        self._weights = network.state_dict()  # these share memory with the network
        self.average = {name: tensor.detach().clone() for name, tensor in self._weights.items()}
        self.optimiser = create_optimiser(network, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.encoder = create_encoder(bands, settings.seed).to(device) if settings.loss.weighting == "learned" else None
        self.step, self.sums, self.trend, self.skipped = 0, Sums.begin(settings), Trend(), 0
        self.best: Best | None = None
        self.worse = 0
        self.sound = Best(0, None, {name: tensor.to("cpu", copy=True) for name, tensor in self.average.items()})
        self.unread: list[Tensor] = []
        self.is_stopping = False
        answer = choose_answer(network, settings)
        self.answer = torch.compile(answer) if settings.compile else answer
        self.lesson, self.critics = find_lesson(settings), critics
        self.critic_optimiser = create_critic_optimiser(critics, settings)

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken, or the last `patience` validations were not better than the best."""
        return self.step == self.settings.steps or (self.settings.patience is not None and self.worse >= self.settings.patience)

    @property
    def is_row_due(self) -> bool:
        """Whether a row of the history belongs to this step."""
        return self.step % ROW_EVERY == 0 or self.is_validation_due

    @property
    def is_validation_due(self) -> bool:
        """Whether the averaged weights are scored after this step."""
        return self.step % self.settings.validate_every == 0 or self.step == self.settings.steps

    @property
    def is_saving_due(self) -> bool:
        """Whether the state is saved after this step."""
        return self.step % self.settings.save_every == 0 or self.is_over or self.is_stopping

    def weigh(self, batch: AnyBatch) -> Tensor:
        """Weight of each pixel in the loss, (B, 1, H, W)."""
        with torch.no_grad():
            return weigh_pixels(batch, self.settings.loss, None if self.encoder is None else self.encoder(batch.optical))

    def follow(self, values: Sequence[float]) -> None:
        """Enter a step, `values` in the order of `Sums.columns`.

        With fp16 one of too large a gradient is only counted: the scaler left it out.
        """
        norm, total, *_ = values
        if self.settings.precision == "fp16" and not math.isfinite(norm):
            self.skipped += 1
        else:
            self.skipped, self.trend, self.sums = 0, self.trend.follow(total), self.sums.add(values)

    @torch.no_grad()
    def answer_averaged(self, batch: AnyBatch) -> Tensor:
        """What the averaged weights answer, in fp32 as in `evaluate`: (B, C, H, W), on the run's device."""
        self.network.eval()
        seen = batch.to(self.device)
        answer: Tensor = functional_call(self.network, self.average, seen.inputs)
        return answer.float()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the weights; faster at first, so that the first ones are forgotten."""
        decay = min(self.settings.ema, self.step / (self.step + 9))
        moving = [(self.average[name], tensor) for name, tensor in self._weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in moving], [tensor for _, tensor in moving], 1 - decay)
        for name, tensor in self._weights.items():
            if not tensor.is_floating_point():
                self.average[name].copy_(tensor)

    def keep_best(self, score: Score | None) -> None:
        """Keep the averaged weights if their loss is below that of all before them, else count them as worse.

        Without a score the newest are kept.
        """
        is_best = score is None or self.best is None or self.best.score is None or score.loss < self.best.score.loss
        if is_best:
            self.best = Best(self.step, score, {name: tensor.clone() for name, tensor in self.average.items()})
        self.worse = 0 if is_best else self.worse + 1

    def keep_sound(self) -> None:
        """Remember the averaged weights as of a step after which nothing was wrong, on the CPU: what a fault later leaves."""
        for name, tensor in self.sound.weights.items():
            tensor.copy_(self.average[name])
        self.sound = self.sound._replace(step=self.step)

    @property
    def has_sound(self) -> bool:
        """Whether those weights are of use: finite, and at least one step was taken that fp16 did not leave out."""
        return self.sound.step > self.skipped and all(bool(tensor.isfinite().all()) for tensor in self.sound.weights.values())

    def to_state(self) -> dict[str, Any]:
        """Everything but the history, as plain values and tensors. Nothing else is random: see the module's first lines and `PatchFeed`."""
        best = None if self.best is None else {**self.best._asdict(), "score": self.best.score and tuple(self.best.score)}
        encoder = None if self.encoder is None else self.encoder.state_dict()
        learnt = {"network": self.network.state_dict(), "average": self.average, "encoder": encoder, "best": best}
        engine = {"optimiser": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()}
        progress = {"step": self.step, "sums": tuple(self.sums), "trend": tuple(self.trend), "skipped": self.skipped, "worse": self.worse}
        return learnt | engine | progress | self._describe_critics()

    def _describe_critics(self) -> dict[str, Any]:
        """The critics' part of the state; empty if there are none."""
        if self.critics is None or self.critic_optimiser is None:
            return {}
        return {"critics": self.critics.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `to_state` saw."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        if self.critics is not None and self.critic_optimiser is not None:
            self.critics.load_state_dict(state["critics"])
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
        self.step, self.sums, self.trend = state["step"], Sums(*state["sums"]), Trend(*state["trend"])
        self.skipped, self.worse, best = state["skipped"], state["worse"], state["best"]
        self.best = best and Best(best["step"], best["score"] and Score(*best["score"]), best["weights"])
        self.keep_sound()


def create_optimiser(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of all weights, as one kernel per step: AdamW (Loshchilov and Hutter 2019) or Adam (Kingma and Ba 2015)."""
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(network.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)


def create_critic_optimiser(critics: nn.ModuleList | None, settings: TrainSettings) -> torch.optim.Optimizer | None:
    """The optimiser of the critics, RMSprop as with WGAN (Arjovsky et al. 2017); None without critics."""
    if critics is None or settings.adversarial is None:
        return None
    return torch.optim.RMSprop(critics.parameters(), lr=settings.adversarial.lr)


def create_encoder(bands: int, seed: int) -> MaskEncoder:
    """The small network of learned weighting, with fresh weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskEncoder(bands)
