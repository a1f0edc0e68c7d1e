"""Settings of training, evaluation, prediction and report, and the whole config file.

Only pydantic is imported here, since the Snakefile reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import not_
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from sereno.pipeline.config import ARM, Name, PipelineSettings, Settings, Share, TaskName, load_settings

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
"""Where tensors live; `auto` takes a GPU if there is one."""


Decay = Annotated[float, Field(ge=0, lt=1)]
"""How much of an average is kept at each step; with 1 it would never move."""


def is_none(value: object) -> bool:
    """Whether there is none: such settings are left out of records."""
    return value is None


class ClearingSettings(Settings):
    """What every network of ours for cloud removal has in common."""

    use_sar: bool = True
    """False trains the same network without SAR."""
    base: Literal["cloudy", "filled", "dates"] = "filled"
    """What the network adds to: the cloudy input as in the notes, the input with its clouds filled smoothly, or with its clouds filled from
    the clear images around its date (`pipeline.query.series`)."""
    stem_px: Literal[1, 2, 4] = 1
    """Side of the square of pixels that becomes one token; 1 as in the notes, 2 costs a quarter of the time."""


SIZES: Final = {"S": (32, 2), "M": (32, 6), "L": (64, 3)}
"""Width and blocks of AFSST by preset."""


class AfsstSettings(ClearingSettings):
    """The dual-stream spectral-spatial transformer, and every ablation of it."""

    name: Literal["afsst"] = "afsst"
    """A network of `model/networks/`."""
    size: Literal["S", "M", "L"] = "S"
    """Preset of width and blocks: about 1.5, 3.2 and 7.6 million parameters."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """Channels at full resolution, doubled at each deeper level up to four times; none takes the preset's."""
    blocks: Annotated[int, Field(ge=1)] | None = None
    """Transformer blocks per level and stream; none takes the preset's."""
    head_dim: Annotated[int, Field(ge=4)] = 32
    """Channels per attention head; must divide the width."""
    levels: Annotated[int, Field(ge=1, le=4)] = 3
    """Encoder levels."""
    window_px: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    """Side of an attention window in tokens."""
    expansion: Annotated[int, Field(ge=1)] = 2
    """Hidden width of the feed-forward layers as a multiple of the width."""
    optical_attention: Literal["spectral", "spatial", "parallel"] = "spectral"
    """Attention of the optical stream: among channels as in the notes, in windows (the ablation afsst-spa), or both side by side."""
    sar_features: Literal["msfem", "convolution"] = "msfem"
    """How SAR enters: edges at several kernel sizes as in the notes, or one convolution (the ablation without MSFEM)."""
    msfem_alpha: Literal["channel", "scalar", "fixed"] = "channel"
    """The factor of the Sobel edges: learnt per channel, learnt as one number, or fixed at 1."""
    fusion: Literal["pixel", "global", "concat", "sfi"] = "pixel"
    """How the streams merge: with weights for every channel and pixel that see the cloud probability, weights per channel as in the
    notes, concatenation (the ablation without TFusion), or in space and in the frequency domain as in SFIIN, clouds filled."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channels % self.head_dim:
            raise ValueError(f"'head_dim' {self.head_dim} does not divide 'width' {self.channels}")
        return self

    @property
    def channels(self) -> int:
        """Channels at full resolution."""
        return self.width or SIZES[self.size][0]

    @property
    def depth(self) -> int:
        """Transformer blocks per level and stream."""
        return self.blocks or SIZES[self.size][1]


class SpatialSpectralSettings(Settings):
    """The blocks of the S2-Transformer, whatever its task."""

    width: Annotated[int, Field(ge=8)] = 60
    """Channels everywhere."""
    head_dim: Annotated[int, Field(ge=4)] = 10
    """Channels per attention head, spatial and spectral; must divide the width."""
    stages: Annotated[int, Field(ge=1)] = 4
    """Residual groups of blocks, each of which gives an intermediate image."""
    blocks: Annotated[int, Field(ge=1)] = 6
    """Blocks per stage."""
    window_px: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    """Side of an attention window in tokens."""
    expansion: Annotated[int, Field(ge=1)] = 4
    """Hidden width of the feed-forward layers as a multiple of the width."""
    order: Literal["parallel-concat", "parallel-sum", "spatial-spectral", "spectral-spatial", "spatial", "spectral"] = "parallel-concat"
    """How spatial and spectral attention are combined in a block."""
    mask_to: Literal["query-key", "query", "key", "value", "none"] = "query-key"
    """What of the spatial attention is multiplied by the embedded mask."""
    spectral_windows: bool = False
    """True attends among channels inside each window, as the notes say; false over the whole image, as the authors' code does."""
    drop_path: Share = 0.0
    """Chance that the last block is skipped in training, rising linearly from 0 at the first; the authors use 0.1."""
    pins: bool = False
    """True makes an intermediate image after every stage, for `loss.stages` to weigh."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.head_dim:
            raise ValueError(f"'head_dim' {self.head_dim} does not divide 'width' {self.width}")
        return self


class S2TransformerSettings(SpatialSpectralSettings, ClearingSettings):
    """The mask-aware S2-Transformer in cloud mode: the mask is the clear-sky confidence."""

    name: Literal["s2transformer"]
    """A network of `model/networks/`."""


class S2SnapshotSettings(SpatialSpectralSettings):
    """The S2-Transformer on its own task, snapshot spectral reconstruction: the mask is the coded aperture."""

    name: Literal["s2snapshot"]
    """A network of `model/networks/`."""
    encoding: bool = True
    """True adds the head that fits the encoded signal, for mask-encoding pretraining and mask-aware training."""
    encoding_steps: Annotated[int, Field(ge=0)] = 100
    """Steps at the beginning in which the head learns the encoded signal; afterwards it weighs the errors."""
    emphasis: Annotated[float, Field(ge=0)] = 1.0
    """How much the weighed errors count beside the plain ones."""
    consistency: Share = Field(default=0.0, exclude_if=not_)
    """How far the answer is moved towards the nearest cube with the picture that was measured, which is not theirs: 1 all the way, as is
    best where pictures have no noise, 0 not at all."""
    base: Literal["gap-tv", "gap-tv-full", "open", "first"] = "gap-tv"
    """What the network sees and adds to, a row of `ESTIMATES` in `model/snapshot.py`: GAP-TV with half the work or all that the baseline
    has, or the measurement shifted back without the aperture, or with it as in the authors' code."""


class Pattern(Settings):
    """A coded aperture as a checkpoint holds it, filled in when training begins."""

    shape: tuple[int, int]
    """Rows, columns."""
    values: str
    """Shares of light times 65535, rounded, row by row as little-endian 16-bit numbers, compressed by zlib, in base64."""
    sha256: str
    """SHA-256 of the file they were read from."""


class ApertureSettings(Settings):
    """The camera that pictures of cubes are taken with; without these settings one with an aperture that we made up, and no noise."""

    file: str | None = None
    """Its coded aperture: `.mat`, `.npy`, GeoTIFF or PNG, rows x columns of shares of light 0..1 (integers above 1: shares of the largest
    number of their type), at least as large as crops and patches. None: the one that we made up. A checkpoint keeps name and values."""
    shift_px: Annotated[int, Field(ge=0)] = 2
    """Columns by which the disperser shifts each band further than the one before."""
    electrons: Annotated[float, Field(gt=0)] | None = None
    """Electrons that a white scene frees in a detector pixel: training pictures have the shot noise that goes with it; None: none."""
    read_noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of what the detector adds to each pixel of a training picture; 1 is as bright as a white scene."""
    pattern: Pattern | None = Field(default=None, exclude_if=is_none)
    """What the file held; leave it out."""


class FusingSettings(Settings):
    """What every network of ours for spatiotemporal fusion has in common."""

    base: Literal["change", "none"] = "change"
    """What the network adds to: the fine dates moved by the change of the coarse ones, or nothing as in the papers."""
    reach_px: Annotated[int, Field(ge=1)] | None = 32
    """Fine pixels to each side within which changes are measured where predictions from both dates are combined; none takes the whole
    image as in StfNet, whose answer then depends on how a scene is cut into tiles."""


STAGE_RATIO: Final = 4
"""How many times as small one stage of STFGAN makes pixels."""


class StfganSettings(FusingSettings):
    """The generators and critics of STFGAN."""

    name: Literal["stfgan"]
    """A network of `model/networks/`."""
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Channels of the generator, and of the critic's first layers."""
    coarse_blocks: Annotated[int, Field(ge=1)] = 16
    """Residual blocks on the coarse grid."""
    fine_blocks: Annotated[int, Field(ge=1)] = 8
    """Residual blocks on the fine grid."""
    stages: Literal[1, 2] = 2
    """Generators one after the other, each of which makes pixels four times as small: ratio 4 or 16 of coarse to fine."""
    norm: Literal["channel", "batch"] = "channel"
    """What is normalised: each pixel over its channels, or each channel over the batch as in the public re-implementation."""
    joint: bool = False
    """True lets the loss of the second stage train the first as well."""

    @property
    def ratio(self) -> int:
        """How many times as small it makes pixels."""
        ratio: int = STAGE_RATIO**self.stages
        return ratio


class StfnetSettings(FusingSettings):
    """The two streams of StfNet, and how their predictions are combined."""

    name: Literal["stfnet"]
    """A network of `model/networks/`."""
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    """Channels of the first layer; the second has half as many."""
    bands_apart: bool = False
    """True gives each band streams of its own that see no other band, as the notes say."""
    delta: Annotated[float, Field(ge=0)] = 0.2
    """Reflectance; if one change exceeds the other by more, the prediction across the smaller one is taken alone."""
    learning: Literal["span", "middle"] = "span"
    """What it learns from: the outer dates alone, as in the paper, or the middle fine image as the other networks; the paper's
    losses replace those of `loss`, by which it is validated."""
    consistency: Annotated[float, Field(ge=0)] = 1.0
    """Learning `span`: weight of the constraint that both changes add up (lambda; 1 in StfMLP, StfNet's is not known)."""
    proportional: bool = Field(default=False, exclude_if=not_)
    """True makes the answer to half a coarse change half as large, so that what learning `span` sees of the whole holds for its parts."""


class AdversarialSettings(Settings):
    """How a critic takes part in training."""

    objective: Literal["wgan-clip", "wgan-gp", "lsgan"] = "wgan-clip"
    """What critic and generator minimise."""
    weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the adversarial term in the generator's loss; 1e-3 is of the re-implementation, with squared errors of values of -1..1.
    Those of reflectance are near 1e-4 on the simulated world: with 1e-5 validation went on improving there, 1e-3 outweighed them."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps at the beginning in which the generator trains without the critic."""
    critic_steps: Annotated[int, Field(ge=1)] = 1
    """Steps of the critic per step of the generator."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the critic (RMSprop in the public re-implementation)."""
    clip: Annotated[float, Field(gt=0)] = 0.01
    """Objective `wgan-clip`: largest absolute value of a critic's weight (Arjovsky et al. 2017); those of norms are left alone."""
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Channels of the critic's first layers, of a network other than stfgan, whose critics are as wide as it is."""
    penalty: Annotated[float, Field(ge=0)] = 10.0
    """Objective `wgan-gp`: weight of the gradient penalty (Gulrajani et al. 2017)."""


class UnetSettings(ClearingSettings):
    """A plain convolutional U-Net, the yardstick."""

    name: Literal["unet"]
    """A network of `model/networks/`."""
    width: Annotated[int, Field(ge=8)] = 24
    """Channels at full resolution, doubled at each deeper level; 24 has about as many parameters as AFSST S."""
    levels: Annotated[int, Field(ge=1, le=5)] = 4
    """Encoder levels."""


class SfiinSettings(Settings):
    """Pan-sharpening in space and in the frequency domain."""

    name: Literal["sfiin"]
    """A network of `model/networks/`."""
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 8
    """Channels everywhere; 8 as in the published benchmark."""
    blocks: Annotated[int, Field(ge=1)] = 5
    """Spatial-frequency blocks, one after the other."""
    spatial: Literal["invertible", "convolution"] = "invertible"
    """The branch in space: an invertible block as in the authors' code, or one convolution as in the notes."""


class CustomSettings(Settings):
    """A network of your own, or of a paper: trained, scored and used like ours."""

    name: Literal["custom"]
    """A network of `model/networks/`."""
    source: Annotated[str, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")]
    """`path/to/file.py:function`; called with `sar_bands`, `mean` and `std`. Its code runs whenever the network is made."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to that function as keyword arguments as well."""
    use_sar: bool = True
    """False says that the network does not look at SAR."""
    use_series: bool = Field(default=False, exclude_if=not_)
    """True calls it with three more inputs: the clear images around the cloudy one (`pipeline.query.series`), trust in them, their days."""

    @property
    def file(self) -> str:
        """The file that `source` names, as it is written there."""
        return self.source.rpartition(":")[0]

    @property
    def function(self) -> str:
        """The function that `source` names."""
        return self.source.rpartition(":")[2]


def _tag_network(value: Any) -> str:
    return f"{ARM}{value.get('name', 'afsst') if isinstance(value, Mapping) else getattr(value, 'name', None)}"


NetworkSettings = Annotated[
    Annotated[AfsstSettings, Tag(f"{ARM}afsst")]
    | Annotated[S2TransformerSettings, Tag(f"{ARM}s2transformer")]
    | Annotated[UnetSettings, Tag(f"{ARM}unet")]
    | Annotated[CustomSettings, Tag(f"{ARM}custom")]
    | Annotated[SfiinSettings, Tag(f"{ARM}sfiin")]
    | Annotated[StfganSettings, Tag(f"{ARM}stfgan")]
    | Annotated[StfnetSettings, Tag(f"{ARM}stfnet")]
    | Annotated[S2SnapshotSettings, Tag(f"{ARM}s2snapshot")],
    Discriminator(
        _tag_network,
        custom_error_type="unknown_network",
        custom_error_message="'name' must be afsst, s2transformer, unet, custom, sfiin, stfgan, stfnet or s2snapshot",
    ),
]
"""Which network, and how large; without a name it is AFSST."""

SERVED_BY: Final[Mapping[TaskName, tuple[str, ...]]] = {
    "cloud-removal": ("afsst", "custom", "s2transformer", "unet"),
    "pansharpening": ("sfiin",),
    "spatiotemporal-fusion": ("stfgan", "stfnet"),
    "snapshot-reconstruction": ("s2snapshot",),
}
"""Names of the networks that serve each task."""


def explain_misfit(network: str, task: str) -> str:
    """One line that says that a network does not serve a task, and which pairs there are."""
    pairs = "; ".join(f"{known}: {', '.join(names)}" for known, names in SERVED_BY.items())
    return f"network '{network}' does not serve the task '{task}'; allowed are {pairs}"


def explain_ratio(network: StfganSettings, ratio: int) -> str:
    """One line that says that a network makes other pixels than those of a dataset, whose coarse ones are `ratio` fine ones wide."""
    return (
        f"network 'stfgan' with {network.stages} stages makes pixels {network.ratio} times as small, but the dataset's ratio is {ratio}: "
        "set 'network.stages' or `query.coarse_m`"
    )


def needs_sar(network: NetworkSettings) -> bool:
    """Whether the network looks at SAR."""
    return isinstance(network, ClearingSettings | CustomSettings) and network.use_sar


def needs_series(network: NetworkSettings) -> bool:
    """Whether the network looks at the clear images around the cloudy one."""
    return network.use_series if isinstance(network, CustomSettings) else getattr(network, "base", None) == "dates"


class LossSettings(Settings):
    """Weights of the parts of the loss, and how much each pixel counts; a part of weight zero is not computed."""

    pixel: Annotated[float, Field(ge=0)] = 1.0
    """Mean absolute difference."""
    charbonnier: Annotated[float, Field(ge=0)] = 0.0
    """Absolute difference, smooth at zero."""
    squared: Annotated[float, Field(ge=0)] = 0.0
    """Squared difference, as STFGAN and StfNet have it."""
    spatial: Annotated[float, Field(ge=0)] = 0.2
    """Difference of neighbouring pixels."""
    spectral: Annotated[float, Field(ge=0)] = 0.2
    """Difference of neighbouring bands."""
    sam: Annotated[float, Field(ge=0)] = 0.0
    """Angle between the spectra, in radians."""
    carl: Annotated[float, Field(ge=0)] = 0.0
    """Target under clouds, input where it is clear, and target everywhere (DSen2-CR)."""
    amplitude: Annotated[float, Field(ge=0)] = 0.0
    """Amplitude of the Fourier transform."""
    phase: Annotated[float, Field(ge=0)] = 0.0
    """Phase of the Fourier transform, on the circle."""
    stages: Annotated[float, Field(ge=0)] = 0.0
    """All of the above for the intermediate images of a network that has them, their mean."""
    temporal: Annotated[float, Field(ge=0)] = Field(default=0.0, exclude_if=not_)
    """Agreement of the answers from the date before alone and from the date after alone, and the loss of both; three times the work."""
    weighting: Literal["static", "learned"] = "static"
    """How a pixel's weight follows from the clouds of the input: from the mask, or from what a small network learnt of the mask."""
    cloud_emphasis: Annotated[float, Field(ge=0)] = 3.0
    """Lambda of static weighting: how much more a cloudy input pixel weighs than a clear one."""
    encoding_steps: Annotated[int, Field(ge=1)] = 200
    """Steps of the small network of learned weighting before training begins; then it is frozen."""
    max_weight: Annotated[float, Field(gt=1)] = 10.0
    """Largest weight that learned weighting gives before it is normalised."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = ("pixel", "charbonnier", "squared", "spatial", "spectral", "sam", "carl", "amplitude", "phase")
        if not any(getattr(self, part) for part in parts):
            raise ValueError(f"every part of the loss has weight zero: give one of {', '.join(parts)} a weight")
        return self


USUAL_LOSSES: Final[Mapping[str, Mapping[str, float]]] = {
    "sfiin": {"spatial": 0, "spectral": 0, "amplitude": 0.1, "phase": 0.1},
    "stfgan": {"pixel": 0, "squared": 1, "spatial": 0, "spectral": 0},
    "stfnet": {"pixel": 0, "squared": 1, "spatial": 0, "spectral": 0},
    "s2snapshot": {"spatial": 0, "spectral": 0},
}
"""Weights of the loss that a network of a paper has unless others are given; all others have the defaults of `LossSettings`."""


class SarRange(Settings):
    """Backscatter range in dB that is scaled to 0..1."""

    vv_db: tuple[float, float] = (-25.0, 0.0)
    """Co-polarised channels."""
    vh_db: tuple[float, float] = (-32.5, 0.0)
    """Cross-polarised channels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, (low, high) in {"vv_db": self.vv_db, "vh_db": self.vh_db}.items():
            if low >= high:
                raise ValueError(f"'{name}' must be two rising values in dB, not {low} and {high}")
        return self


class TrainSettings(Settings):
    """One training run."""

    network: NetworkSettings = AfsstSettings()
    """Which network, and how large."""
    loss: LossSettings = LossSettings()
    """What is minimised."""
    sar_range: SarRange = SarRange()
    """Scaling of SAR (the convention of GLF-CR and of TCRNet)."""
    aperture: ApertureSettings | None = Field(default=None, exclude_if=is_none)
    """Task snapshot-reconstruction: the camera; none has an aperture that we made up."""
    adversarial: AdversarialSettings | None = None
    """A critic that judges the images while the network learns; none trains without. It sharpens texture and lowers PSNR."""
    start_from: str | None = None
    """Checkpoint whose weights training starts from; none starts from random ones."""
    steps: Annotated[int, Field(ge=1)] = 600
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Crops per step, of all processes together."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts into which each process cuts its share of a batch to save memory; the result is the same."""
    crop_px: Annotated[int, Field(ge=16, multiple_of=8)] = 128
    """Side of the random crops."""
    crops_per_patch: Annotated[int, Field(ge=1)] = 4
    """Crops taken from a patch each time it is decoded."""
    optimiser: Literal["adamw", "adam"] = "adamw"
    """AdamW decays weights apart from the gradient, Adam through it."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the optimiser's averages of the gradient and of its square."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up the rate falls along a cosine to zero, or in steps, or stays."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Linear warm-up."""
    step_every: Annotated[int, Field(ge=1)] = 50_000
    """Schedule `step`: steps after which the rate falls."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Schedule `step`: what it is then multiplied by (TCRNet: 0.2 every 50 epochs)."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    divergence: Annotated[float, Field(gt=1)] | None = 20.0
    """Training stops when its smoothed loss is so many times the lowest it was; none never stops for that."""
    ema: Decay = 0.99
    """Decay of the averaged weights that are validated and saved; 0 switches averaging off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network; weights, loss and averages stay in fp32."""
    compile: bool = False
    """True compiles the network with torch.compile: minutes at first, then faster."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations; the best is kept."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Validations without a better one after which training stops early; none trains all steps."""
    save_every: Annotated[int, Field(ge=1)] = 25
    """Steps between saved states, from which a killed run goes on."""
    pictures: Annotated[int, Field(ge=0)] = 4
    """Validation patches that are drawn at each validation, always the same ones."""
    tensorboard: bool = False
    """True also writes the history for TensorBoard (needs the extra `tensorboard`)."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that share each batch, started by torchrun, one per GPU."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, crops and order."""

    @model_validator(mode="before")
    @classmethod
    def _fill_loss(cls, values: Any) -> Any:
        network, loss = (values.get(key, {}) for key in ("network", "loss")) if isinstance(values, Mapping) else ({}, None)
        name = network.get("name") if isinstance(network, Mapping) else getattr(network, "name", None)
        usual = USUAL_LOSSES.get(str(name), {}) if isinstance(loss, Mapping) else {}
        return {**values, "loss": {**usual, **loss}} if usual else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % (self.processes * self.accumulate):
            parts = f"{self.processes} 'processes' times {self.accumulate} in 'accumulate'"
            raise ValueError(f"'batch_size' {self.batch_size} cannot be shared evenly among {parts}")
        if self.adversarial and self.precision == "fp16":
            raise ValueError("'adversarial' needs 'precision' bf16 or fp32: gradients of a critic and of the network overflow apart")
        if self.aperture and not isinstance(self.network, S2SnapshotSettings):
            raise ValueError(f"'aperture' is the camera of snapshots, which network '{self.network.name}' does not see: leave it out")
        if self.loss.stages and isinstance(self.network, S2SnapshotSettings) and self.network.encoding:
            raise ValueError("'loss.stages' and 'network.encoding' ask for different answers: set one of them to 0 or false")
        if self.loss.temporal and not needs_series(self.network):
            raise ValueError(
                "'loss.temporal' compares answers from two dates around a cloudy one: it needs a network for cloud removal with 'base: "
                "dates' (a custom one with 'use_series: true')"
            )
        if self.loss.temporal and self.loss.stages:
            raise ValueError("'loss.stages' and 'loss.temporal' ask for different answers: set one of them to 0")
        has_pins = isinstance(self.network, SpatialSpectralSettings) and self.network.pins
        if self.loss.stages and not has_pins and self.network.name != "custom":
            raise ValueError("'loss.stages' needs intermediate images: those of the network s2transformer or s2snapshot with 'pins: true'")
        if has_pins and not self.loss.stages:
            raise ValueError("'network.pins' makes intermediate images, but 'loss.stages' is 0: give it a weight or leave 'pins' out")
        return self


class EvaluateSettings(Settings):
    """How a run is scored."""

    split: Literal["train", "val", "test"] = "test"
    """Split that is scored."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Patches per forward pass."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    cloud_threshold: Share = 0.5
    """A pixel whose cloud or shadow probability is at least this counts as cloudy."""
    examples: Annotated[int, Field(ge=0)] = 6
    """Patches whose pictures are kept for the report."""


class PredictSettings(Settings):
    """How whole scenes are cleared."""

    pairs_per_area: Annotated[int, Field(ge=0)] | None = 1
    """At most so many pairs of each area that were not given up, in the order of the lock; none means all."""
    tile_px: Annotated[int, Field(ge=32, multiple_of=8)] = 256
    """Side of a tile."""
    overlap_px: Annotated[int, Field(ge=0, multiple_of=8)] = 64
    """Overlap of neighbouring tiles, over which they are blended."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Task cloud-removal: tiles per forward pass; all other tasks take one at a time."""
    keep_observed: bool = True
    """Task cloud-removal: clear input pixels are kept as observed; false takes the network's output everywhere, as other tasks do."""
    measurements: str | None = Field(default=None, exclude_if=is_none)
    """Task snapshot-reconstruction: folder of real pictures (`.mat`, `.npy`, GeoTIFF, PNG), of which each run then makes cubes."""
    measurement_scale: Annotated[float, Field(gt=0)] | Literal["training"] | None = Field(default=None, exclude_if=is_none)
    """Number of a picture that stands for a white scene. None: 1 of floats, the largest of the type of integers. `training`: pictures are
    made as bright, on average, as training cubes are through the same aperture, so that reflectance is right but for a factor."""
    measurement_black: float = Field(default=0.0, exclude_if=not_)
    """Number of a picture that stands for no light at all."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 2 * self.overlap_px > self.tile_px:
            raise ValueError("'overlap_px' may be at most half of 'tile_px'")
        return self


class ReportSettings(Settings):
    """What the page shows."""

    title: str = "sereno"
    """Heading of the page."""
    scene_picture_px: Annotated[int, Field(ge=64)] = 640
    """Longer side of the scene pictures."""


class ModelSettings(Settings):
    """The model steps, one section each."""

    train: TrainSettings = TrainSettings()
    """What all runs have in common."""
    runs: dict[Name, dict[str, Any]] = {"afsst": {}}  # noqa: RUF012 - pydantic copies it
    """Training runs by name, each with the settings in which it differs from `train`."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Score runs."""
    predict: PredictSettings = PredictSettings()
    """Clear whole scenes."""
    report: ReportSettings = ReportSettings()
    """Write the page."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.runs:
            raise ValueError("'runs' is empty: name at least one run")
        for name in self.runs:
            self.run_settings(name)
        return self

    def run_settings(self, name: str) -> TrainSettings:
        """Settings of the run `name`: `train` with that run's differences laid over it.

        Raises:
            ConfigError: a difference is no setting of `train`.
        """
        given = self.train.model_dump(exclude=None if "loss" in self.train.model_fields_set else {"loss"})  # what is usual for its network
        return load_settings(TrainSettings, _overlay(given, self.runs[name]), where=f"model.runs.{name}")


def _overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping; another network's settings replace those of the base's network."""
    merged = {} if changes.get("name", base.get("name")) != base.get("name") else dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


class Config(Settings):
    """The config file: `pipeline` for the data, `model` for what is trained on it."""

    pipeline: PipelineSettings
    """The data steps."""
    model: ModelSettings = ModelSettings()
    """Training and what comes after it."""
    pathvars: dict[str, str] = Field(default_factory=dict)
    """Snakemake's own: `results: some/folder` puts everything there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for run in self.model.runs:
            network = self.model.run_settings(run).network
            if network.name not in SERVED_BY[self.pipeline.task]:
                raise ValueError(f"'model.runs.{run}': {explain_misfit(network.name, self.pipeline.task)}")
            ratio = self.pipeline.query.fusion_ratio
            if isinstance(network, StfganSettings) and ratio not in (None, network.ratio):
                raise ValueError(f"'model.runs.{run}': {explain_ratio(network, ratio)}")
            if needs_series(network) and not (self.pipeline.query.series or self.pipeline.query.source == "lock"):
                raise ValueError(
                    f"'model.runs.{run}': its network looks at clear images before and after the cloudy one: set 'pipeline.query.series' "
                    "to true, or 'network.base' to filled"
                )
        if self.model.predict.measurements and self.pipeline.task != "snapshot-reconstruction":
            raise ValueError(
                f"'model.predict.measurements' are pictures for the task snapshot-reconstruction, not '{self.pipeline.task}': leave it out"
            )
        return self


def load_config(values: object, *, where: str = "config") -> Config:
    """The whole config as checked records.

    Raises:
        ConfigError: one line that names every faulty key.
    """
    return load_settings(Config, values, where=where)
