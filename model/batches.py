"""What the networks are fed: batches of tensors made from stored integers, a maker for each task.

Stored arrays (see `sereno.pipeline.samples`) enter, `Batch` or `Sample` leaves. All changes of unit between disk and network are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor

from sereno.model.apertures import Seen, see_cubes
from sereno.model.config import S2SnapshotSettings, SarRange, TrainSettings, needs_series
from sereno.model.sharpening import SENTINEL2_GAINS, TYPICAL_MS_GAIN, TYPICAL_PAN_GAIN, degrade, enlarge, make_wald_pair
from sereno.model.snapshot import ESTIMATES
from sereno.model.temporal import Dates
from sereno.pipeline.config import TaskName
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS
from sereno.pipeline.samples import MASK_CHANNELS_OF
from sereno.pipeline.scene import CENTI_DB, MAX_REFLECTANCE, REFLECTANCE_SCALE

MAX_TARGET_CLOUD: Final = 0.5
"""Target pixels that are cloud or shadow with more than this probability have no weight at all."""
CLOUDY: Final = 0.5
"""A pixel whose cloud probability is at least this counts as cloudy in the validation's PSNR."""
SEEN_WHOLE: Final = 0.999
"""Share of valid pixels from which all that a coarse pixel saw counts as valid; the rest is rounding."""
CROPS: Final = "crops"
"""Name under which the numbers of random crops stand among the arrays of training samples, (B,) int64; elsewhere there are none."""
DAYS: Final = "days"
"""Name under which the days of a sample's dates stand among its arrays, (B, date) float32; NaN where they are not known."""
EVEN_AROUND: Final = (-1.0, 1.0)
"""Days of the dates around an input of which nobody knows them: as far before as after."""
EVEN_SERIES: Final = (-1.0, 0.0, 1.0)
"""The same of three dates."""

Array = npt.NDArray[Any]
Stored = Mapping[str, Array | Tensor]
"""Stored arrays by the names of `SAMPLES`, each (B, ..., row, col), and where they are known the days of their dates (`DAYS`)."""


class Signature(NamedTuple):
    """What a dataset is of, and a network is made for, apart from its settings."""

    bands: tuple[str, ...]
    """Optical bands of the target, in stored order."""
    sar_bands: tuple[str, ...]
    """SAR polarisations in stored order; empty for a dataset without SAR."""
    mean: tuple[float, ...]
    """Mean reflectance of usable training targets, per band."""
    std: tuple[float, ...]
    """Standard deviation of the same."""
    task: TaskName = "cloud-removal"
    """What is asked."""
    ratio: int = 1
    """Pixels of the stored grid along each side of a coarse pixel; 1 where nothing is coarse."""
    guide_bands: tuple[str, ...] = ()
    """Bands of the sharp image that guides; empty where none does."""
    guide_mean: tuple[float, ...] = ()
    """Mean reflectance of the guide in training, per band."""
    guide_std: tuple[float, ...] = ()
    """Standard deviation of the same."""
    series: bool = False
    """Whether there are clear images before and after each input of cloud removal."""


class Batch(NamedTuple):
    """Patches as the networks and the loss take them; all float32, B patches of H x W pixels."""

    optical: Tensor
    """(B, C, H, W) cloudy reflectance, 1.0 = 100 %; may exceed 1 over clouds. Invalid pixels are 0."""
    sar: Tensor
    """(B, S, H, W) backscatter in dB scaled to 0..1 over `SarRange`. Invalid pixels are 0."""
    cloud: Tensor
    """(B, 1, H, W) probability 0..1 that the input pixel is cloud, shadow or invalid."""
    target: Tensor
    """(B, C, H, W) clear reflectance. Invalid pixels are 0."""
    weight: Tensor
    """(B, 1, H, W) trust in the target, 0..1: 0 where it is invalid or cloudy."""
    valid_input: Tensor
    """(B, 1, H, W) 1 where the input was observed, else 0."""
    valid_target: Tensor
    """(B, 1, H, W) 1 where the target was observed, else 0."""
    dates: Dates | None = None
    """Clear images before and after the input; None where the network does not look at them."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return self._change(lambda tensor: tensor.to(device, non_blocking=True))

    def cut(self, count: int) -> list[AnyBatch]:
        """The batch in `count` parts of as many patches each, which must divide it."""
        return [self._change(lambda tensor, part=part: tensor.chunk(count)[part]) for part in range(count)]  # type: ignore[misc]

    def _change(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with what `function` makes of each of its tensors."""
        *own, dates = self
        return Batch._make([*map(function, own), None if dates is None else Dates(*map(function, dates))])

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the network is called with."""
        return self.optical, self.sar, self.cloud, *(self.dates or ())

    @property
    def focus(self) -> Tensor:
        """Where a validation measures its PSNR, (B, H, W) bool: the cloudy pixels."""
        return (self.cloud[:, 0] >= CLOUDY) & (self.weight[:, 0] > 0)


class Sample(NamedTuple):
    """Patches of the tasks without clouds in the input, as the networks and the loss take them; all float32."""

    inputs: tuple[Tensor, ...]
    """What the network is called with, in the order of its task, each (B, ...); reflectance. Invalid pixels are 0."""
    target: Tensor
    """(B, C, H, W) true reflectance. Invalid pixels are 0."""
    weight: Tensor
    """(B, 1, H, W) trust in the target, 0..1: 0 where it or what the network sees of it is invalid or cloudy."""
    optical: Tensor
    """(B, C, H, W) what there is of the target without a network, for pictures: the input laid on its grid."""

    def to(self, device: torch.device) -> Sample:
        """The batch on `device`."""
        inputs = tuple(tensor.to(device, non_blocking=True) for tensor in self.inputs)
        return Sample(inputs, *(tensor.to(device, non_blocking=True) for tensor in (self.target, self.weight, self.optical)))

    def cut(self, count: int) -> list[AnyBatch]:
        """The batch in `count` parts of as many patches each, which must divide it."""
        inputs = zip(*(tensor.chunk(count) for tensor in self.inputs), strict=True)
        others = zip(*(tensor.chunk(count) for tensor in (self.target, self.weight, self.optical)), strict=True)
        return [Sample(seen, *rest) for seen, rest in zip(inputs, others, strict=True)]

    @property
    def cloud(self) -> Tensor:
        """(B, 1, H, W) 0: nothing of the input is hidden."""
        return torch.zeros_like(self.weight)

    @property
    def valid_input(self) -> Tensor:
        """(B, 1, H, W) 1: where the input is not valid, nothing is trusted."""
        return torch.ones_like(self.weight)

    @property
    def valid_target(self) -> Tensor:
        """(B, 1, H, W) 1 where the target is compared with something, else 0."""
        return (self.weight > 0).to(self.weight.dtype)

    @property
    def focus(self) -> Tensor:
        """Where a validation measures its PSNR, (B, H, W) bool: every trusted pixel."""
        return self.weight[:, 0] > 0


class Prepared(NamedTuple):
    """What a network is given where it is used."""

    inputs: tuple[Tensor, ...]
    """What it is called with, each (B, ...)."""
    usable: Tensor
    """(B, H, W) bool where its answer is worth something: what it depends on was observed, and is clear where that matters."""


AnyBatch = Batch | Sample
"""What a task's maker gives."""


def scale_optical(stored: Array | Tensor) -> Tensor:
    """Reflectance, float32, 1.0 = 100 %, from stored integers of any shape."""
    return _to_float(stored) / REFLECTANCE_SCALE


def store_optical(reflectance: Tensor) -> npt.NDArray[np.uint16]:
    """Stored integers of reflectance of any shape, the reverse of `scale_optical`: rounded, and cut to what can be stored."""
    return (reflectance * REFLECTANCE_SCALE).round().clamp(0, MAX_REFLECTANCE).cpu().numpy().astype(np.uint16)


def scale_sar(stored: Array | Tensor, valid: Tensor, sar_range: SarRange, sar_bands: Sequence[str]) -> Tensor:
    """Backscatter in 0..1 from stored centi-dB: (B, S, H, W), valid (B, 1, H, W) -> (B, S, H, W); 0 where not valid.

    Cross-polarised bands (VH, HV) are scaled over `vh_db`, all others over `vv_db`, clipped at both ends.
    """
    ranges = [sar_range.vh_db if band.upper() in ("VH", "HV") else sar_range.vv_db for band in sar_bands]
    decibel = _to_float(stored) / CENTI_DB
    low, high = (decibel.new_tensor(ends).reshape(-1, 1, 1) for ends in zip(*ranges, strict=True)) if ranges else (decibel, decibel)
    return ((decibel - low) / (high - low)).clamp(0, 1) * valid


def to_batch(  # the four stored arrays and the two things that give SAR its meaning
    sar: Array | Tensor,
    cloudy: Array | Tensor,
    clear: Array | Tensor,
    mask: Array | Tensor,
    sar_range: SarRange,
    sar_bands: Sequence[str],
) -> Batch:
    """A batch from stored patches: sar (B, S, H, W), cloudy and clear (B, C, H, W), mask (B, 7, H, W) in `MASK_CHANNELS`."""
    channels = dict(zip(MASK_CHANNELS, torch.split(_to_float(mask) / 255, 1, dim=1), strict=True))
    trusted = _trust(torch.maximum(channels["cloud_target"], channels["shadow_target"]))
    return Batch(
        optical=scale_optical(cloudy) * channels["valid_input"],
        sar=scale_sar(sar, channels["valid_sar"], sar_range, sar_bands),
        cloud=torch.maximum(torch.maximum(channels["cloud_input"], channels["shadow_input"]), 1 - channels["valid_input"]),
        target=scale_optical(clear) * channels["valid_target"],
        weight=channels["valid_target"] * trusted,
        valid_input=channels["valid_input"],
        valid_target=channels["valid_target"],
    )


def make_clearing_batch(stored: Stored, signature: Signature, settings: TrainSettings) -> Batch:
    """The batch of cloud removal: arrays of `PATCH_ARRAYS` -> inputs optical, SAR, cloud; and the dates around, for who looks at them."""
    batch = to_batch(**{name: stored[name] for name in PATCH_ARRAYS}, sar_range=settings.sar_range, sar_bands=signature.sar_bands)
    return batch._replace(dates=read_dates(stored)) if needs_series(settings.network) else batch


def read_dates(stored: Stored) -> Dates:
    """The clear images around an input: around (B, 2, C, H, W), around_clear (B, 2, H, W) and days (B, 2) as tensors; 0 where not trusted.

    A pixel that is rather not clear than clear counts as not clear, as one of the target does. Without days both are as far away.
    """
    images, clear = scale_optical(stored["around"]), _to_float(stored["around_clear"])[:, :, None] / 255
    clear = _trust(1 - clear)
    return Dates(torch.where(clear > 0, images, 0.0), clear, read_days(stored, images, even=EVEN_AROUND))


def read_days(stored: Stored, like: Tensor, *, even: Sequence[float]) -> Tensor:
    """Days of the dates, (B, date) on the device of `like` (B, ...): those `stored`, or `even` ones for samples that lack one."""
    evenly = like.new_tensor(even).expand(len(like), -1)
    if DAYS not in stored:
        return evenly
    days = _to_float(stored[DAYS])
    return torch.where(days.isfinite().all(dim=1, keepdim=True), days, evenly)


def make_sharpening_batch(stored: Stored, signature: Signature, _settings: TrainSettings) -> Sample:
    """The batch of pan-sharpening, by Wald's protocol: pan (B, G, r^2 h, r^2 w), ms and mask (B, C, r h, r w) -> inputs ms, pan.

    Both images are made coarser by their own ratio, and the multispectral one as it was taken is the target (Wald et al. 1997). Trusted is
    what is valid and clear where all that the coarse pixel over it saw is valid.
    """
    ms, pan, clear, valid = read_sharpening(stored)
    pair = make_wald_pair(ms, pan, gains=find_gains(signature.bands), pan_gains=find_pan_gains(signature.guide_bands))
    seen = degrade(valid, signature.ratio, [TYPICAL_MS_GAIN])
    whole = F.interpolate((seen >= SEEN_WHOLE).to(ms.dtype), scale_factor=float(signature.ratio))
    return Sample((pair.ms, pair.pan), pair.target, clear * whole, enlarge(pair.ms, signature.ratio))


class Sharpening(NamedTuple):
    """Images as they were taken, float32 reflectance."""

    ms: Tensor
    """(B, C, h, w) multispectral; invalid pixels are 0."""
    pan: Tensor
    """(B, G, r h, r w) what sharpens it; pixels under invalid ones are 0."""
    clear: Tensor
    """(B, 1, h, w) trust, 0..1: 0 where invalid or cloudy."""
    valid: Tensor
    """(B, 1, h, w) 1 where both were observed, else 0."""


def read_sharpening(stored: Stored) -> Sharpening:
    """Stored pan, ms and mask (see `SAMPLES`) as tensors at their own scale."""
    cloud, shadow, valid = _read_mask(stored["mask"], "pansharpening")
    ms, pan = scale_optical(stored["ms"]), scale_optical(stored["pan"])
    fine = F.interpolate(valid, size=pan.shape[-2:])
    return Sharpening(ms * valid, pan * fine, valid * _trust(torch.maximum(cloud, shadow)), valid)


def prepare_sharpening(stored: Stored, _signature: Signature, _settings: TrainSettings) -> Prepared:
    """Both images as they were taken; clouds may be sharpened like ground."""
    ms, pan, _, valid = read_sharpening(stored)
    return Prepared((ms, pan), F.interpolate(valid, size=pan.shape[-2:])[:, 0] > 0)


def find_gains(bands: Sequence[str]) -> list[float]:
    """Contrast that each multispectral band keeps at its Nyquist frequency: the sensor's own where it is known."""
    return [SENTINEL2_GAINS.get(band, TYPICAL_MS_GAIN) for band in bands]


def find_pan_gains(bands: Sequence[str]) -> list[float]:
    """The same of the bands that guide; one that is not known counts as panchromatic."""
    return [SENTINEL2_GAINS.get(band, TYPICAL_PAN_GAIN) for band in bands]


def make_fusion_batch(stored: Stored, _signature: Signature, _settings: TrainSettings) -> Sample:
    """The batch of fusion: fine and mask (B, 3, C, r h, r w), coarse (B, 3, C, h, w) -> inputs coarse, fine of the outer dates.

    The middle fine image is the target. Trusted is what is valid and clear on all three dates.
    """
    fine, coarse = scale_optical(stored["fine"]), fill_coarse(scale_optical(stored["coarse"]))
    cloud, shadow, valid = _read_mask(stored["mask"], "spatiotemporal-fusion")
    clear = (valid * _trust(torch.maximum(cloud, shadow))).prod(dim=1)
    fine = fine * valid
    outer = torch.stack([fine[:, 0], fine[:, 2]], dim=1)
    return Sample((coarse, outer), fine[:, 1], clear, outer.mean(dim=1))


def fill_coarse(coarse: Tensor) -> Tensor:
    """Coarse images (B, 3, C, h, w) whose missing pixels, 0 in all bands, are the mean of the other dates there; 0 where all are missing.

    Nobody trusts these pixels, but networks look at them from the pixels around.
    """
    known = find_coarse(coarse)
    return torch.where(known, coarse, coarse.sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp(min=1))


def find_coarse(coarse: Tensor) -> Tensor:
    """Where coarse images (B, 3, C, h, w) hold anything, (B, 3, 1, h, w): missing pixels are 0 in all bands."""
    return (coarse > 0).any(dim=2, keepdim=True)


def prepare_fusion(stored: Stored, signature: Signature, settings: TrainSettings) -> Prepared:
    """Coarse images of all dates and fine ones of the outer ones, usable where these are clear and the middle coarse one is known.

    Nothing of the middle fine one is asked.
    """
    cloud, shadow, valid = _read_mask(stored["mask"], "spatiotemporal-fusion")
    clear = (valid * _trust(torch.maximum(cloud, shadow)))[:, ::2] > 0
    middle = find_coarse(scale_optical(stored["coarse"]))[:, 1, 0]
    seen = middle.repeat_interleave(signature.ratio, dim=-2).repeat_interleave(signature.ratio, dim=-1)
    return Prepared(make_fusion_batch(stored, signature, settings).inputs, clear.all(dim=1)[:, 0] & seen)


def prepare_snapshot(stored: Stored, signature: Signature, settings: TrainSettings) -> Prepared:
    """The estimate from a picture of the cube, the aperture, and the picture."""
    batch = make_snapshot_batch(stored, signature, settings)
    return Prepared(batch.inputs, batch.weight[:, 0] > 0)


def make_snapshot_batch(stored: Stored, signature: Signature, settings: TrainSettings) -> Sample:
    """The batch of snapshot reconstruction: cube and mask (B, C, H, W) -> inputs estimate, aperture, picture.

    The cube is the target; the picture of it that `see_snapshots` gives becomes the estimate that the network is for.
    """
    cube, valid, seen = see_snapshots(stored, signature, settings)
    estimate = estimate_cube(seen, settings)
    return Sample((estimate, lay_mask(seen, len(cube)), seen.picture), cube, valid, estimate)


class Snapshots(NamedTuple):
    """Cubes and their pictures."""

    cube: Tensor
    """(B, C, H, W); invalid pixels are 0."""
    valid: Tensor
    """(B, 1, H, W) 1 where it was observed, else 0."""
    seen: Seen
    """The camera and what it saw."""


def see_snapshots(stored: Stored, _signature: Signature, settings: TrainSettings) -> Snapshots:
    """Stored cubes and what the camera of `settings` sees of them."""
    (valid,) = _read_mask(stored["mask"], "snapshot-reconstruction")
    cube = scale_optical(stored["cube"]) * valid
    crops = [int(number) for number in stored[CROPS]] if CROPS in stored else None
    return Snapshots(cube, valid, see_cubes(cube, settings, crops))


def estimate_cube(seen: Seen, settings: TrainSettings) -> Tensor:
    """What the network of `settings` is given of pictures: (B, C, H, W)."""
    return ESTIMATES[find_base(settings)](seen.camera, seen.picture)


def find_base(settings: TrainSettings) -> str:
    """The estimate that the network of `settings` is given of pictures, by its name among `ESTIMATES`."""
    return settings.network.base if isinstance(settings.network, S2SnapshotSettings) else "open"


def lay_mask(seen: Seen, count: int) -> Tensor:
    """The aperture over each of `count` cubes, (B, 1, H, W)."""
    mask = seen.camera.mask
    return mask if mask.ndim == 4 else mask.expand(count, 1, -1, -1)


def _read_mask(mask: Array | Tensor, task: TaskName) -> tuple[Tensor, ...]:
    """Channels of a stored mask (B, ..., channel, row, col), each 0..1 with the channel's axis kept."""
    scaled = _to_float(mask) / 255
    return tuple(torch.split(scaled, 1, dim=-3)[MASK_CHANNELS_OF[task].index(name)] for name in MASK_CHANNELS_OF[task])


def _trust(cloud: Tensor) -> Tensor:
    """Trust in pixels that are cloud or shadow with this probability: all that is left, and none above `MAX_TARGET_CLOUD`."""
    return torch.where(cloud > MAX_TARGET_CLOUD, 0.0, 1 - cloud)


def _to_float(stored: Array | Tensor) -> Tensor:
    if isinstance(stored, Tensor):
        return stored.to(torch.float32)
    return torch.from_numpy(stored.astype(np.float32))
