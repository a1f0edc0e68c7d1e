"""What a patch is, and how patches and the packed dataset lie on disk.

A pair's patches are a store of kind `patches` with four variables along `patch`; its manifest's summary lists `patches`
(records below), `refused` windows with reasons, `bands` and `sar_bands`:

    sar     (patch, sar_band, row, col)      int16 centi-dB
    cloudy  (patch, band, row, col)          uint16 reflectance x 10000
    clear   (patch, band, row, col)          uint16 reflectance x 10000
    mask    (patch, mask_channel, row, col)  uint8, MASK_CHANNELS; probabilities and validity x 255

and, where the pairs are series (`QuerySettings.series`), two more with the dates `before` and `after` along `date`:

    around        (patch, date, band, row, col)  uint16 reflectance x 10000
    around_clear  (patch, date, row, col)        uint8, probability x 255 that the pixel is valid and neither cloud nor shadow

The packed dataset is a store of kind `dataset` with one Zarr group per split (`train`, `val`, `test`) that holds the same
arrays, one chunk per patch, many patches per shard, already shuffled; `patches.csv` inside it lists the records in stored order.
"""

from __future__ import annotations

from operator import not_
from typing import Annotated, Final, Literal

from pydantic import Field

from sereno.pipeline.config import Settings

MASK_CHANNELS: Final = (
    "cloud_input",
    "shadow_input",
    "valid_input",
    "cloud_target",
    "shadow_target",
    "valid_target",
    "valid_sar",
)
"""Channels of `mask`; the first two of each image are probabilities, all are stored times 255 (validity: 0 or 255, 255 = usable)."""
CLOUDY_FROM: Final = 128
"""Stored probability from which a pixel counts as cloud or shadow: 0.5 x 255, rounded up."""
PATCH_ARRAYS: Final = ("sar", "cloudy", "clear", "mask")
"""The arrays that every patch store and each split has."""

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")

Percentage = Annotated[float, Field(ge=0, le=100)]


class PatchRecord(Settings):
    """Where a patch comes from and what it shows."""

    id: str
    """`AREA/PAIR/rROW-cCOL`, unique in a dataset; for delivered windows `AREA/PAIR/NAME`."""
    area: str
    """Area of the pair."""
    pair: str
    """Id of the pair, or group, in the lock of that area."""
    block: str
    """Ground block: patches of one block always share a split. `CRS/I/J` of the block grid, or the area for listed splits."""
    crs: str
    """CRS of `bounds_m`."""
    bounds_m: tuple[float, float, float, float]
    """Left, bottom, right, top in metres."""
    row: int
    """First row in the pair's grid."""
    col: int
    """First column in the pair's grid."""
    valid_share: float
    """Share of pixels usable in SAR, input and target alike."""
    cloud_input_share: float
    """Share of pixels whose input is cloud or shadow (probability of at least 0.5); for other tasks as `cloud_target_share`."""
    cloud_target_share: float
    """Share of pixels whose target is cloud or shadow (probability of at least 0.5)."""
    sar_gap_days: float
    """Time of SAR minus time of the input, days; 0 for other tasks."""
    clear_gap_days: float
    """Time of the target minus time of the input, days; 0 for other tasks."""
    gaps_days: dict[str, float] = Field(default_factory=dict, exclude_if=not_)
    """Time of other dates minus the sample's own, days, by their names: `before` and `after` of a series (from its input), `1`, `2`, `3` of
    fusion (from date 2). Empty where there are none. `patches.csv` has it as JSON, and no such column where all are empty."""
    split: Split | None = None
    """Given by `pack`."""
    position: int | None = None
    """Place in its split, given by `pack`."""
