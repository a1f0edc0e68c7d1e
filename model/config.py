"""Settings of training, evaluation, prediction and report, and the whole config file.

Only pydantic is imported here, since the Snakefile reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sereno.pipeline.config import Name, PipelineSettings, Settings, Share, load_settings

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
"""Where tensors live; `auto` takes a GPU if there is one."""


class NetworkSettings(Settings):
    """Which network, and how large."""

    name: Literal["afsst"] = "afsst"
    """A network of `model/networks/`."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels at full resolution; each deeper level doubles them, up to four times."""
    head_dim: Annotated[int, Field(ge=4)] = 16
    """Channels per attention head; must divide `width`."""
    stem_px: Literal[1, 2, 4] = 1
    """Side of the square of pixels that becomes one token; 1 as in the notes, 2 costs a quarter of the time."""
    levels: Annotated[int, Field(ge=1, le=4)] = 3
    """Encoder levels."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Transformer blocks per level and stream."""
    window_px: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    """Side of an attention window."""
    expansion: Annotated[int, Field(ge=1)] = 2
    """Hidden width of the feed-forward layers as a multiple of the width."""
    use_sar: bool = True
    """False trains the same network without SAR."""
    base: Literal["cloudy", "filled"] = "filled"
    """What the network adds to: the cloudy input as in the notes, or the input with its clouds filled smoothly."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.head_dim:
            raise ValueError(f"'head_dim' {self.head_dim} does not divide 'width' {self.width}")
        return self


class LossSettings(Settings):
    """Weights of the parts of the loss; zero switches a part off."""

    pixel: Annotated[float, Field(ge=0)] = 1.0
    """Mean absolute difference."""
    spatial: Annotated[float, Field(ge=0)] = 0.2
    """Difference of neighbouring pixels."""
    spectral: Annotated[float, Field(ge=0)] = 0.2
    """Difference of neighbouring bands."""
    cloud_emphasis: Annotated[float, Field(ge=0)] = 3.0
    """Lambda: how much more a cloudy input pixel weighs than a clear one."""


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

    network: NetworkSettings = NetworkSettings()
    """Which network, and how large."""
    loss: LossSettings = LossSettings()
    """What is minimised."""
    sar_range: SarRange = SarRange()
    """Scaling of SAR (the convention of GLF-CR and of TCRNet)."""
    steps: Annotated[int, Field(ge=1)] = 600
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Crops per step."""
    crop_px: Annotated[int, Field(ge=16, multiple_of=8)] = 128
    """Side of the random crops."""
    crops_per_patch: Annotated[int, Field(ge=1)] = 4
    """Crops taken from a patch each time it is decoded."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Linear warm-up, after which the rate falls along a cosine to zero."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    ema: Share = 0.99
    """Decay of the averaged weights that are validated and saved; 0 switches averaging off."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations; the best is kept."""
    save_every: Annotated[int, Field(ge=1)] = 25
    """Steps between saved states, from which a killed run goes on."""
    device: Device = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, crops and order."""


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
    """At most so many pairs of each area, in the order of the lock; none means all."""
    tile_px: Annotated[int, Field(ge=32, multiple_of=8)] = 256
    """Side of a tile."""
    overlap_px: Annotated[int, Field(ge=0, multiple_of=8)] = 64
    """Overlap of neighbouring tiles, over which they are blended."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Tiles per forward pass."""
    keep_observed: bool = True
    """Clear input pixels are kept as they were observed; false takes the network's output everywhere."""
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
        return load_settings(TrainSettings, _overlay(self.train.model_dump(), self.runs[name]), where=f"model.runs.{name}")


def _overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
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


def load_config(values: object, *, where: str = "config") -> Config:
    """The whole config as checked records.

    Raises:
        ConfigError: one line that names every faulty key.
    """
    return load_settings(Config, values, where=where)
