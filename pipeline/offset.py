"""The reflectance offset of Sentinel-2: which one a product carries, and whether its pixels look like it.

Since processing baseline 04.00 products hold reflectance + 0.1; catalogues state that in three ways, or not at all, or wrongly. The
decision is made per item from what is stated, recorded in words, and checked on the darkest pixels.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Final, Literal, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from sereno.pipeline.errors import DataError
from sereno.pipeline.pairs import ItemRecord, OffsetSource
from sereno.pipeline.scene import REFLECTANCE_SCALE, Bool2d

OFFSET_BASELINE: Final = 4.0
"""Processing baseline since which Sentinel-2 products carry an offset (ESA, products of baseline 04.00, January 2022)."""
OFFSET_DN: Final = -1000
"""Number to add to the digital numbers of such products: BOA_ADD_OFFSET and RADIO_ADD_OFFSET of every band."""
MAX_OFFSET: Final = 1.0
"""Largest reflectance offset that can be meant; a catalogue that declares more states digital numbers."""
SAID_BY: Final = {"metadata": "product metadata", "declared": "declared by the catalogue", "baseline": "processing baseline"}
"""How the sources that state a number are called in words."""

MAX_XML_BYTES: Final = 16 * 2**20
"""Largest metadata file that is parsed; real ones have 50 kB."""
PRODUCT_ROOT: Final = re.compile(r"\}Level-(1C|2A)_User_Product$")
"""Root element of the product metadata of Sentinel-2, in any version of its namespace."""
QUANTIFICATION: Final = {
    "1C": ("QUANTIFICATION_VALUE",),
    "2A": ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"),
}
"""Elements that state the scale, by level; the last one in products before 02.07."""
ADD_OFFSET: Final = {"1C": "RADIO_ADD_OFFSET", "2A": "BOA_ADD_OFFSET"}
"""Element that states the offset of one band, by level."""

VISIBLE_BANDS: Final = ("B02", "B03", "B04")
"""Bands in which hardly any ground is darker than zero, water and shadow included."""
DOUBLE_SHIFT_SHARE: Final = 0.05
"""Share of clamped pixels in every visible band above which an offset was probably removed twice."""
INFRARED_ZERO_SHARE: Final = 0.5
"""The same without a visible band: noise about zero, as over water, puts at most half of the pixels there. Less tells nothing, since plants
hide a second shift: it left at most 0.7 % of the ground at zero in that band of B05, B06, B07, B8A, B11 and B12 which has the fewest
(measured: 44 clear dates of two farmlands of WorldCereal)."""
CIRRUS_BAND: Final = "B10"
"""Band of L1C that sees hardly anything of the ground: some thousandths under clear sky, and not below zero for most pixels."""
CIRRUS_ZERO_SHARE: Final = 0.9
"""Share of clamped pixels in that band above which an offset was probably removed twice, which haze hides in visible bands of L1C."""
DARK_PERCENT: Final = 1.0
"""The darkest percent of the ground decides whether an offset was left in."""
DARK_REFLECTANCE: Final = 0.085
"""Reflectance that the darkest ground exceeds in no band, unless the offset of 0.1 was left in (or all is bright desert). Less than the
offset itself: it is there because noise and overcorrected haze put dark ground below zero."""
MIN_DARK_PX: Final = 1000
"""With fewer pixels than this the dark-pixel check gives no verdict."""
SAMPLED_PX: Final = 500_000
"""Of larger scenes every second, third, ... row and column is looked at, so that about so many pixels are."""
HISTOGRAM_STEP_DN: Final = 100
"""Width of a class of the histogram: reflectance 0.01."""
HISTOGRAM_CLASSES: Final = 20
"""Classes of that width from zero; one more holds what is brighter than 0.2."""

Verdict = Literal["plausible", "not left in", "left in", "removed twice", "too few pixels"]
"""What the darkest pixels say of the offset. `not left in` is half of `plausible`, and all that can be told without visible and cirrus
bands."""


class OffsetCheck(NamedTuple):
    """What the darkest pixels say, and the numbers it rests on; `_asdict` makes it ready for JSON."""

    verdict: Verdict
    """`left in` and `removed twice` are hints to look, not proofs: bright desert and snow look like an offset left in, and without visible
    bands so do fields now and then (2 of 44 clear dates)."""
    pixels: int
    """Pixels of clear ground that were looked at."""
    darkest_band: str | None
    """The band whose darkest percent is darkest; None with too few pixels."""
    dark_reflectance: float | None
    """Reflectance below which the darkest percent of that band lies."""
    zero_share: float | None
    """Share of pixels at zero in the band that has the fewest: of the visible ones, or of all where no visible one is there."""
    zero_band: str | None
    """That band; None with too few pixels, as the share."""
    cirrus_zero_share: float | None
    """Share of pixels at zero in the cirrus band; None without that band."""
    histogram: tuple[int, ...]
    """Pixels of the darkest band per class of HISTOGRAM_STEP_DN, the last class open; empty with too few pixels."""


def decide_offset(record: ItemRecord, metadata_offset: int | None = None) -> tuple[int, str]:
    """The number to add to a product's digital numbers, and in words why.

    `metadata_offset` is what `read_offset` found in the product's metadata file, None if that was not read. The first of
    `record.offset_sources` that says something decides. The flag goes first where there is one: Earth Search lists `raster:bands` offset
    -0.1, and the untouched metadata file, also for items whose pixels it has shifted, and names the flag as the truth
    (Element84/earth-search issue 9); a flag that says `not removed` leaves the number to the others. The sensing date never decides, since
    old scenes are processed anew.

    Raises:
        DataError: nothing that may be believed about the item decides it.
    """
    stated = _read_statements(record, metadata_offset)
    for source in record.offset_sources:
        if source == "flag" and record.offset_applied:
            stale = f", which overrules the declared {record.declared_offset:g}" if record.declared_offset else ""
            return 0, f"the provider says that the offset is already removed{stale}"
        if source in stated:
            return stated[source]
    raise DataError(
        f"item {record.item}: cannot tell whether its values carry the reflectance offset: of {', '.join(record.offset_sources)} none says "
        f"(flag {record.offset_applied}, metadata file {'not read' if metadata_offset is None else metadata_offset}, raster:bands "
        f"{record.declared_offset}, baseline {record.processing_baseline}); leave it out or use another collection"
    )


def find_contradictions(record: ItemRecord, metadata_offset: int | None = None) -> tuple[str, ...]:
    """Where the sources contradict what was decided, one line each; whether they are believed or not.

    An offset that the provider says it has removed is no contradiction, but one that it removed from a product that never had it is.

    Raises:
        DataError: `decide_offset` cannot decide.
    """
    decided, reason = decide_offset(record, metadata_offset)
    stated = _read_statements(record, metadata_offset)
    if record.offset_applied and "flag" in record.offset_sources:
        own = [words for source, (offset_dn, words) in stated.items() if offset_dn == 0 and source != "declared"]
        return tuple(f"item {record.item}: {reason}, but the product never had one: {words}" for words in own)
    others = [f"{words}, which means {offset_dn}" for offset_dn, words in stated.values() if offset_dn != decided]
    return tuple(f"item {record.item}: offset {decided} ({reason}), but {words}" for words in others)


def _read_statements(record: ItemRecord, metadata_offset: int | None) -> dict[OffsetSource, tuple[int, str]]:
    """What each source that states a number says: the number to add, and the words."""
    stated: dict[OffsetSource, tuple[int, str]] = {}
    if metadata_offset is not None:
        stated["metadata"] = metadata_offset, f"{SAID_BY['metadata']}: {metadata_offset} in every band"
    declared = record.declared_offset
    if declared is not None:
        is_reflectance = abs(declared) <= MAX_OFFSET
        unit = "" if is_reflectance else " (too large for reflectance: digital numbers)"
        stated["declared"] = round(declared * (REFLECTANCE_SCALE if is_reflectance else 1)), f"{SAID_BY['declared']}: {declared:g}{unit}"
    try:
        has_offset = float(record.processing_baseline or "") >= OFFSET_BASELINE
    except ValueError:  # not stated, or not a number
        return stated
    era = "04.00 or later" if has_offset else "before 04.00"
    stated["baseline"] = OFFSET_DN if has_offset else 0, f"{SAID_BY['baseline']} {record.processing_baseline} ({era})"
    return stated


class _PlainTree(ET.TreeBuilder):
    """A tree of a document without a document type: no entities, so nothing that grows and nothing that is fetched."""

    def doctype(self, name: str, *_: str | None) -> NoReturn:
        raise DataError(f"it has a document type ({name}), which Sentinel-2 metadata never has")


def read_offset(text: str | bytes, *, where: str) -> int:
    """The number to add to the digital numbers of every band, as the product metadata (`MTD_MSIL2A.xml`, `MTD_MSIL1C.xml`) states it.

    0 if it lists no offsets, which is so before baseline 04.00 (ESA, Sentinel-2 product specification, S2-PDGS-TAS-DI-PSD). `where` names
    the file in messages.

    Raises:
        DataError: the text is no such file, its scale is not 1 / 10000, its bands have different offsets, or a product of 04.00 or later
            lists none.
    """
    root = _parse_product(text, where)
    level = PRODUCT_ROOT.search(root.tag)
    if level is None:
        raise DataError(
            f"{where}: its root is {root.tag!r}, expected that of the product metadata of Sentinel-2 (MTD_MSIL1C or MTD_MSIL2A)"
        )
    scales = {node.text for name in QUANTIFICATION[level[1]] for node in root.iter(name)}
    if {_to_number(scale, "scale", where) for scale in scales} != {REFLECTANCE_SCALE}:
        raise DataError(f"{where}: its scale is {sorted(map(str, scales))}, expected {REFLECTANCE_SCALE}; use another collection")
    offsets = {str(node.get("band_id")): _to_number(node.text, "offset", where) for node in root.iter(ADD_OFFSET[level[1]])}
    if len(set(offsets.values())) > 1:
        raise DataError(f"{where}: its bands have different offsets, by band id: {offsets}")
    baseline = root.findtext(".//PROCESSING_BASELINE") or "0"
    if not offsets and _to_number(baseline, "baseline", where) >= OFFSET_BASELINE:
        raise DataError(f"{where}: lists no {ADD_OFFSET[level[1]]} although its baseline is {baseline}; the file is damaged")
    return int(next(iter(offsets.values()), 0))


def _parse_product(text: str | bytes, where: str) -> ET.Element:
    if len(text) > MAX_XML_BYTES:
        raise DataError(f"{where}: {len(text)} bytes are too many for Sentinel-2 metadata")
    try:
        return ET.fromstring(text, parser=ET.XMLParser(target=_PlainTree()))  # noqa: S314 - without entities
    except ET.ParseError as error:
        raise DataError(f"{where}: not valid XML ({error}); the file is damaged, fetch it again") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _to_number(text: str | None, what: str, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{where}: its {what} is {text!r}, expected a number; the file is damaged") from None


def judge_offset(stored: npt.NDArray[np.uint16], usable: Bool2d, bands: tuple[str, ...]) -> OffsetCheck:
    """What the darkest pixels say of the offset that was removed.

    `stored` (band, y, x) is reflectance x 10000 after the offset was removed; `usable` (y, x) marks ground free of cloud. An offset left
    in keeps nearly every pixel of every band above 0.085; an offset removed twice drives even visible bands of plain ground to zero, but
    hardly ever all of the infrared ones, so that without visible bands only gross cases of it are seen, and the verdict says so.
    Catalogues have stated both wrongly (Element84/earth-search issues 66 and 71).
    """
    step = max(1, math.ceil(math.sqrt(usable.size / SAMPLED_PX)))
    thin = stored[:, ::step, ::step][:, usable[::step, ::step]]
    pixels = thin.shape[1]
    if pixels < MIN_DARK_PX:
        return OffsetCheck("too few pixels", pixels, None, None, None, None, None, ())
    zero = {band: round(float(np.mean(values == 0)), 4) for band, values in zip(bands, thin, strict=True)}
    visible = [band for band in bands if band in VISIBLE_BANDS]
    zero_band = min(visible or bands, key=lambda band: zero[band])
    dark = [float(np.percentile(values, DARK_PERCENT)) / REFLECTANCE_SCALE for values in thin]
    darkest = int(np.argmin(dark))
    verdict: Verdict = "plausible" if visible or CIRRUS_BAND in bands else "not left in"
    if zero[zero_band] > (DOUBLE_SHIFT_SHARE if visible else INFRARED_ZERO_SHARE) or zero.get(CIRRUS_BAND, 0) > CIRRUS_ZERO_SHARE:
        verdict = "removed twice"
    elif dark[darkest] > DARK_REFLECTANCE:
        verdict = "left in"
    classes = np.minimum(thin[darkest] // HISTOGRAM_STEP_DN, HISTOGRAM_CLASSES)
    return OffsetCheck(
        verdict=verdict,
        pixels=pixels,
        darkest_band=bands[darkest],
        dark_reflectance=round(dark[darkest], 4),
        zero_share=zero[zero_band],
        zero_band=zero_band,
        cirrus_zero_share=zero.get(CIRRUS_BAND),
        histogram=tuple(np.bincount(classes, minlength=HISTOGRAM_CLASSES + 1).tolist()),
    )


def describe_check(check: OffsetCheck) -> str | None:
    """Words for a probably missing or doubled offset; None if the dark pixels have nothing against it."""
    if check.verdict == "removed twice":
        if (check.cirrus_zero_share or 0) > CIRRUS_ZERO_SHARE:
            share, where = check.cirrus_zero_share, f"the cirrus band {CIRRUS_BAND}"
        else:
            share, where = check.zero_share, f"every {'visible ' if check.zero_band in VISIBLE_BANDS else ''}band"
        return f"{share:.0%} of the clear ground is zero in {where}: the offset was probably removed twice"
    if check.verdict == "left in":
        return (
            f"the darkest percent of the clear ground has reflectance {check.dark_reflectance:.3f} in its darkest band "
            f"({check.darkest_band}): the offset was probably left in"
        )
    return None
