"""How answers are scored, task by task: the methods, where and by which metrics, and the baselines that need no weights.

Some patches and a network enter (`Case`), scores and answers leave (`Judged`). Another task is another function and a `Scoring` of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.batches import (
    EVEN_SERIES,
    Batch,
    Signature,
    make_clearing_batch,
    make_fusion_batch,
    make_sharpening_batch,
    make_snapshot_batch,
    read_dates,
    read_days,
    read_sharpening,
    see_snapshots,
)
from sereno.model.config import TrainSettings
from sereno.model.fusion import Estimate, Series, predict_changed, predict_linear, predict_nearest, predict_starfm
from sereno.model.indices import WITHOUT_TRUTH, compute_q2n, compute_qnr, compute_spatial_distortion, compute_spectral_distortion
from sereno.model.layers import smooth_fill
from sereno.model.metrics import COUNTS, METRICS, average_maps, compute_error_maps
from sereno.model.sharpening import TYPICAL_MS_GAIN, degrade, enlarge, find_ratio, sharpen_brovey, sharpen_gsa, synthesise_pan
from sereno.model.snapshot import GapTv, estimate_first, reconstruct_gap_tv
from sereno.model.temporal import fill_from_dates
from sereno.pipeline.patches import MASK_CHANNELS

REGIONS: Final = {
    "all": "pixels valid in input and target, clouds of the target included (the convention of published scores)",
    "cloudy": "valid pixels whose input is cloud or shadow and whose target is clear",
    "clear": "valid pixels whose input and target are clear",
}
"""Where cloud removal is scored, in words."""
SHARPENING_METRICS: Final = (*METRICS, "q2n", *WITHOUT_TRUTH)
"""Scores of pan-sharpening: those with truth, then those without."""
SHARPENERS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "bicubic": lambda ms, pan: enlarge(ms, find_ratio(ms, pan)),
    "brovey": sharpen_brovey,
    "gsa": sharpen_gsa,
}
"""Pan-sharpening without a network: ms (B, C, h, w), pan (B, G, r h, r w) -> (B, C, r h, r w)."""
FUSERS: Final[Mapping[str, Callable[[Series], Estimate]]] = {
    "nearest": predict_nearest,
    "linear": predict_linear,
    "change": predict_changed,
    "starfm": predict_starfm,
}
"""Fusion without a network."""
CHANGED: Final = 0.02
"""Reflectance, mean over bands, by which a pixel differs from the mean of the outer dates to count as changed."""


class Case(NamedTuple):
    """Some patches, and what is asked about them."""

    stored: Mapping[str, Tensor]
    """Their arrays as they are stored, on the network's device."""
    signature: Signature
    """What they are of, and the network was made for."""
    settings: TrainSettings
    """Settings of the run."""
    network: Callable[..., Tensor]
    """Called with the inputs of the task, answers in float32."""
    cloud_threshold: float
    """A pixel whose cloud or shadow probability is at least this counts as cloudy."""


class Judged(NamedTuple):
    """What came out."""

    answers: dict[str, Tensor]
    """Reflectance (B, C, H, W) by method."""
    scores: Tensor
    """(B, method, region, metrics then counts) float64; NaN where a region has nothing to score."""


class Scoring(NamedTuple):
    """How a task is scored."""

    methods: Mapping[str, str]
    """What is scored, `network` first, in words."""
    regions: Mapping[str, str]
    """Where, or by which protocol, in words."""
    metrics: tuple[str, ...]
    """Keys of the scores."""
    compared: tuple[str, tuple[str, ...]]
    """The region and the metrics in which the network is compared with each baseline."""
    shown: Mapping[str, str]
    """Arrays of the example patches beside those that are stored, and the method whose answer they hold."""
    judge: Callable[[Case], Judged]
    """Scores patches."""
    needed: Mapping[str, str] = MappingProxyType({})
    """The stored array by the name of a method that is made of it; datasets without that array go without that method."""

    def fit(self, arrays: Collection[str]) -> Scoring:
        """The same with the methods that a dataset with these `arrays` can have."""
        methods = {name: words for name, words in self.methods.items() if self.needed.get(name) in (None, *arrays)}
        return self._replace(methods=methods, shown={name: method for name, method in self.shown.items() if method in methods})

    @property
    def baselines(self) -> tuple[str, ...]:
        """Methods that need no weights."""
        return tuple(name for name in self.methods if name != "network")

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys along the last axis of the scores."""
        return (*self.metrics, *COUNTS)


def judge_clearing(case: Case) -> Judged:
    """Score cloud removal: the network beside copying, the training mean, the smooth fill, and in a series the dates around."""
    batch = make_clearing_batch(case.stored, case.signature, case.settings)
    answers = {"network": case.network(*batch.inputs), **_clear_simply(batch, case)}
    regions = mark_regions(case.stored["mask"], case.cloud_threshold)
    return Judged(answers, torch.stack([score_regions(answer, batch.target, regions) for answer in answers.values()], dim=1))


def _clear_simply(batch: Batch, case: Case) -> dict[str, Tensor]:
    mean = torch.tensor(case.signature.mean, dtype=torch.float32, device=batch.optical.device)
    answers = {
        "copy": batch.optical,
        "mean": mean[:, None, None].expand_as(batch.optical),
        "fill": smooth_fill(batch.optical, 1 - batch.cloud, mean),
    }
    if CLEARING.needed["dates"] in case.stored:
        answers["dates"] = fill_from_dates(batch.optical, batch.cloud, read_dates(case.stored), mean)
    return answers


def mark_regions(mask: Tensor, threshold: float) -> Tensor:
    """Where each of REGIONS is: stored mask (B, 7, H, W) uint8, probability from which a pixel is cloudy -> (B, 3, H, W) bool."""
    channel = dict(zip(MASK_CHANNELS, mask.unbind(1), strict=True))
    valid = (channel["valid_input"] > 0) & (channel["valid_target"] > 0)
    cloudy, target_cloudy = (
        torch.maximum(channel[f"cloud_{image}"], channel[f"shadow_{image}"]) >= threshold * 255 for image in ("input", "target")
    )
    clear_target = valid & ~target_cloudy
    return torch.stack([valid, clear_target & cloudy, clear_target & ~cloudy], dim=1)


def score_regions(answer: Tensor, target: Tensor, regions: Tensor, *, ratio: float = 1.0) -> Tensor:
    """Score one method: (B, C, H, W), (B, C, H, W), (B, region, H, W) bool -> (B, region, METRICS then COUNTS) float64.

    SSIM windows see all valid pixels around a pixel, whichever region those belong to. `ratio` is that of ERGAS, see `average_maps`.
    """
    maps = compute_error_maps(answer, target, regions[:, 0])
    scores = [average_maps(maps, region, ratio=ratio) for region in regions.unbind(1)]
    return torch.stack([torch.stack([score[name] for name in (*METRICS, *COUNTS)], dim=-1) for score in scores], dim=1)


def judge_sharpening(case: Case) -> Judged:
    """Score pan-sharpening at reduced resolution, where the truth is known, and at full resolution, where it is not.

    The answers are those at full resolution: (B, C, r h, r w).
    """
    methods = {"network": case.network, **SHARPENERS}
    answers = {name: sharpen(*_take_full(case)) for name, sharpen in methods.items()}
    reduced, full = _score_reduced(case, methods), _score_full(case, answers)
    return Judged(answers, torch.stack([reduced, full], dim=2))


def _take_full(case: Case) -> tuple[Tensor, Tensor]:
    """Multispectral and guiding image as they were taken."""
    ms, pan, _, _ = read_sharpening(case.stored)
    return ms, pan


def _score_reduced(case: Case, methods: Mapping[str, Callable[..., Tensor]]) -> Tensor:
    """Scores by Wald's protocol: (B, method, SHARPENING_METRICS then COUNTS)."""
    batch = make_sharpening_batch(case.stored, case.signature, case.settings)
    usable = batch.weight[:, 0] > 0
    rows = []
    for sharpen in methods.values():
        answer = sharpen(*batch.inputs)
        scores = average_maps(compute_error_maps(answer, batch.target, usable), usable, ratio=case.signature.ratio)
        rows.append(_to_row({**scores, "q2n": compute_q2n(answer, batch.target, usable)}))
    return torch.stack(rows, dim=1)


def _score_full(case: Case, answers: Mapping[str, Tensor]) -> Tensor:
    """Scores without a truth: (B, method, SHARPENING_METRICS then COUNTS). Several guides are combined as `synthesise_pan` does."""
    ms, pan, clear, _ = read_sharpening(case.stored)
    usable = F.interpolate(clear, size=pan.shape[-2:])[:, 0] > 0
    guide = pan if pan.shape[1] == 1 else synthesise_pan(ms, pan)
    seen = degrade(guide, case.signature.ratio, [TYPICAL_MS_GAIN] * guide.shape[1])
    counts = dict(zip(COUNTS, (usable.sum((1, 2)).double(), *[torch.zeros(len(ms)).to(ms)] * 2), strict=True))
    rows = []
    for answer in answers.values():
        spectral = compute_spectral_distortion(answer, ms, usable)
        spatial = compute_spatial_distortion(answer, guide, ms, seen, usable)
        indices = dict(zip(WITHOUT_TRUTH, (spectral, spatial, compute_qnr(spectral, spatial)), strict=True))
        rows.append(_to_row({**indices, **counts}))
    return torch.stack(rows, dim=1)


def _to_row(scores: Mapping[str, Tensor]) -> Tensor:
    """Scores of one method by name, each (B,) -> (B, SHARPENING_METRICS then COUNTS); NaN where there is none."""
    nothing = torch.full_like(scores["n_pixels"], float("nan"))
    return torch.stack([scores.get(name, nothing).double() for name in (*SHARPENING_METRICS, *COUNTS)], dim=-1)


def judge_fusion(case: Case) -> Judged:
    """Score fusion: the network beside what three dates give without one. Dates whose days nobody knows are taken as evenly spaced."""
    batch = make_fusion_batch(case.stored, case.signature, case.settings)
    answers = {"network": case.network(*batch.inputs)}
    coarse, fine = batch.inputs
    days = read_days(case.stored, coarse, even=EVEN_SERIES)
    series = Series(coarse, fine, batch.weight[:, None].expand(-1, 2, -1, -1, -1), days)
    answers |= {name: predict(series).image for name, predict in FUSERS.items()}
    trusted = batch.weight[:, 0] > 0
    regions = torch.stack([trusted, trusted & mark_changed(fine, batch.target)], dim=1)
    scores = [score_regions(answer, batch.target, regions, ratio=case.signature.ratio) for answer in answers.values()]
    return Judged(answers, torch.stack(scores, dim=1))


def mark_changed(outer: Tensor, middle: Tensor) -> Tensor:
    """Where land changed by more than `CHANGED`: fine reflectance (B, 2, C, H, W) and (B, C, H, W) -> (B, H, W) bool."""
    return (middle - outer.mean(dim=1)).abs().mean(dim=1) > CHANGED


def judge_reconstruction(case: Case) -> Judged:
    """Score snapshot reconstruction: the network beside the estimates that need no weights."""
    batch = make_snapshot_batch(case.stored, case.signature, case.settings)
    camera, picture = see_snapshots(case.stored, case.signature, case.settings).seen
    answers = {"network": case.network(*batch.inputs), "estimate": batch.optical}
    answers |= {"first": estimate_first(camera, picture), "gap-tv": reconstruct_gap_tv(camera, picture)}
    region = batch.weight > 0
    return Judged(answers, torch.stack([score_regions(answer, batch.target, region) for answer in answers.values()], dim=1))


CLEARING: Final = Scoring(
    methods={
        "network": "the trained network",
        "copy": "the cloudy image as it is, not clipped",
        "mean": "the training mean of each band everywhere",
        "fill": "the cloudy image with its clouds filled smoothly from what is clear around them, the training mean where nothing is clear",
        "dates": "the cloudy image with its clouds filled from the dates around it: the straight line in time where both are clear, the "
        "clear one where one is, the smooth fill elsewhere",
    },
    regions=REGIONS,
    metrics=METRICS,
    compared=("cloudy", ("psnr", "ssim")),
    shown={"prediction": "network", "fill": "fill", "dates": "dates"},
    judge=judge_clearing,
    needed={"dates": "around"},
)
"""Cloud removal."""
SHARPENING: Final = Scoring(
    methods={
        "network": "the trained network",
        "bicubic": "the multispectral image enlarged by cubic convolution (Keys 1981)",
        "brovey": "every band times panchromatic over intensity (Gillespie et al. 1987)",
        "gsa": "adaptive Gram-Schmidt sharpening (Aiazzi et al. 2007)",
    },
    regions={
        "reduced": "both images made coarser by their ratio, compared with the multispectral image as it was taken (Wald et al. 1997)",
        "full": "the images as they were taken; there is no truth, only how far likenesses of bands changed (Alparone et al. 2008), "
        "which is no verdict: an image that was only enlarged often ranks above sharpened ones that are nearer to the truth",
    },
    metrics=SHARPENING_METRICS,
    compared=("reduced", ("psnr", "ssim", "q2n")),
    shown={"prediction": "network", "gsa": "gsa", "bicubic": "bicubic"},
    judge=judge_sharpening,
)
"""Pan-sharpening."""
FUSING: Final = Scoring(
    methods={
        "network": "the trained network",
        "nearest": "the fine image of the nearest date",
        "linear": "the straight line in time between both fine images",
        "change": "both fine images moved by the change of the coarse ones",
        "starfm": "similar pixels around, moved by the change of their coarse pixels (after Gao et al. 2006)",
    },
    regions={
        "all": "pixels valid and clear on all three dates",
        "changed": f"of these, pixels that differ from the mean of both outer dates by more than {CHANGED} reflectance",
    },
    metrics=METRICS,
    compared=("changed", ("rmse", "psnr", "ssim")),
    shown={"prediction": "network", "linear": "linear", "starfm": "starfm"},
    judge=judge_fusion,
)
"""Spatiotemporal fusion."""
RECONSTRUCTING: Final = Scoring(
    methods={
        "network": "the trained network",
        "estimate": "what the network is given: the estimate that 'network.base' names",
        "first": "the picture shifted back and masked, divided by the light of each detector pixel",
        "gap-tv": f"GAP-TV, {GapTv().rounds} rounds of falling weight (after Yuan 2016)",
    },
    regions={"all": "valid pixels"},
    metrics=METRICS,
    compared=("all", ("psnr", "ssim")),
    shown={"prediction": "network", "estimate": "estimate"},
    judge=judge_reconstruction,
)
"""Snapshot spectral reconstruction."""
