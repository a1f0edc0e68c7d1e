"""The reflectance offset of Sentinel-2: which one a product carries, and whether its pixels look like it.

Since processing baseline 04.00 products hold reflectance + 0.1; catalogues state that in three ways, or not at all, or wrongly. The
decision is made per item from what is stated, recorded in words, and checked on the darkest pixels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import ItemRecord
from sereno.pipeline.scene import REFLECTANCE_SCALE, Bool2d

OFFSET_BASELINE: Final = 4.0
"""Processing baseline since which Sentinel-2 products carry an offset (ESA, products of baseline 04.00, January 2022)."""
OFFSET_DN: Final = -1000
"""Number to add to the digital numbers of such products: BOA_ADD_OFFSET and RADIO_ADD_OFFSET of every band."""
VISIBLE_BANDS: Final = ("B02", "B03", "B04")
"""Bands in which hardly any ground is darker than zero, water and shadow included."""
DOUBLE_SHIFT_SHARE: Final = 0.05
"""Share of clamped pixels in every visible band above which an offset was probably removed twice."""
DARK_PERCENT: Final = 1.0
"""The darkest percent of the ground decides whether an offset was left in."""
DARK_REFLECTANCE: Final = 0.1
"""Reflectance that the darkest ground exceeds in no band, unless the offset of 0.1 was left in (or all is bright desert)."""
MIN_DARK_PX: Final = 1000
"""With fewer pixels than this the dark-pixel check gives no verdict."""


def decide_offset(record: ItemRecord) -> tuple[int, str]:
    """The number to add to a product's digital numbers, and in words why.

    The provider's word that the offset is already removed goes first: Earth Search lists `raster:bands` offset -0.1 also for items whose
    pixels it has shifted, and names the flag as the truth (Element84/earth-search issue 9). Then the declared offset, then the processing
    baseline. The sensing date never decides, since old scenes are processed anew.

    Raises:
        DataError: nothing known about the item decides it.
    """
    if record.offset_applied:
        stale = f", which overrules the declared {record.declared_offset}" if record.declared_offset else ""
        return 0, f"the provider says that the offset is already removed{stale}"
    if record.declared_offset is not None:
        return round(record.declared_offset * REFLECTANCE_SCALE), f"declared by the catalogue: {record.declared_offset}"
    try:
        baseline = float(record.processing_baseline or "")
    except ValueError:
        raise DataError(
            f"item {record.item}: cannot tell whether its values carry the reflectance offset: the catalogue states no raster:bands "
            f"offset, no offset flag and processing baseline {record.processing_baseline!r}; leave it out or use another collection"
        ) from None
    if baseline >= OFFSET_BASELINE:
        return OFFSET_DN, f"processing baseline {record.processing_baseline} (04.00 or later)"
    return 0, f"processing baseline {record.processing_baseline} (before 04.00)"


def find_shift_fault(stored: npt.NDArray[np.uint16], usable: Bool2d, bands: tuple[str, ...]) -> str | None:
    """Words for a probably missing or doubled offset, or None if the dark pixels look right or are too few.

    `stored` (band, y, x) is reflectance x 10000 after the offset was removed; `usable` (y, x) marks ground free of cloud. An offset left
    in keeps every band of every pixel above 0.1; an offset removed twice drives even visible bands of plain ground to zero. Catalogues
    have stated both wrongly (Element84/earth-search issues 66 and 71), so this is a hint to look, not a proof: bright desert passes 0.1
    too.
    """
    thin = stored[:, ::2, ::2][:, usable[::2, ::2]]
    if thin.shape[1] < MIN_DARK_PX:
        return None
    visible = [bands.index(name) for name in VISIBLE_BANDS if name in bands]
    clamped = min((float(np.mean(thin[index] == 0)) for index in visible), default=0.0)
    if clamped > DOUBLE_SHIFT_SHARE:
        return f"{clamped:.0%} of the clear ground is zero in every visible band: the offset was probably removed twice"
    darkest = min(float(np.percentile(band, DARK_PERCENT)) for band in thin) / REFLECTANCE_SCALE
    if darkest > DARK_REFLECTANCE:
        return f"the darkest percent of the clear ground has reflectance {darkest:.3f} in its darkest band: the offset was probably left in"
    return None
