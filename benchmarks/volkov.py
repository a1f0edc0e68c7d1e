"""Hand-aligned pairs of pictures as a dataset: real ground and real SAR under simulated clouds.

A folder with `index.tsv`, `opt` and `sar` enters. A packed dataset leaves, with SAR as it is, zeroed, or shuffled between patches.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from samples import Facts, Sample, save_samples, stack_mask

from sereno.pipeline.atmosphere import SkySettings, Sun, apply_sky, compute_sun, make_sky
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.clouds import FULL, describe_cover
from sereno.pipeline.config import SplitSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.patches import SPLITS, PatchRecord, Split
from sereno.pipeline.scene import CENTI_DB, MAX_REFLECTANCE, REFLECTANCE_SCALE
from sereno.pipeline.splits import assign_splits, group_blocks

Array = npt.NDArray[Any]

PAIR_BANDS: Final = ("B02", "B03", "B04")
"""What the three channels of the pictures show, in the order in which they are stored here; the pictures hold red first."""
WHITE: Final = 0.3
"""Reflectance that stands for a picture value of 255. The pictures are divided by their 99 % quantile: this is not their reflectance."""
SAR_FLOOR_DB: Final = -25.0
"""Decibel that stands for a picture value of 0; 255 is 0 dB, linear between. The pictures hold no decibel: this is not backscatter."""
PATCH_PX: Final = 128
"""Side of a patch."""
PAIR_TIME: Final = datetime(2020, 11, 4, 18, 35)
"""When the optical scene was taken, UTC: it gives the sun."""
PAIR_PLACE: Final = (-118.4, 34.0)
"""Longitude and latitude of the pairs, roughly, degrees."""
COVERS: Final = (0.1, 0.5)
"""Share of a picture under thick cloud, drawn evenly between these."""
HAZES: Final = (0.0, 0.9)
"""Largest optical thickness of its haze, drawn evenly between these."""
CERTAIN_OPACITY: Final = 0.4
"""Opacity from which a pixel is certainly cloud; half of it makes a pixel cloudy, which is about what a classifier finds."""
SKY_SEED: Final = 11
"""Seed of the clouds, together with the pair's number."""
SHUFFLE_SEED: Final = 5
"""Seed of which patch gets which SAR."""


class PicturePair(NamedTuple):
    """One hand-aligned pair of pictures."""

    number: int
    """Place in the index."""
    name: str
    """Name without ending."""
    bounds_m: tuple[float, float, float, float]
    """Left, bottom, right, top in EPSG:3395."""
    optical: Array
    """(band, row, col) float32 reflectance-like, PAIR_BANDS."""
    sar: Array
    """(1, row, col) uint8 as delivered."""
    facts: dict[str, str]
    """The row of the index."""


class Cover(NamedTuple):
    """A picture under simulated clouds."""

    cloudy: Array
    """(band, row, col) uint16 reflectance x 10000."""
    cloud: Array
    """(row, col) uint8, probability x 255."""
    shadow: Array
    """(row, col) uint8, probability x 255."""


SarKind = Literal["real", "zero", "shuffled"]


def pack_volkov(folder: Path, output: Path, sar: SarKind) -> None:
    """Write the dataset of the pairs in `folder` with their SAR as it is, zeroed, or shuffled between patches of a split.

    The kind of SAR changes nothing else: optical values, masks, splits and order are the same bytes.

    Raises:
        MissingError: the index or a picture is not there.
        DataError: a picture is of another size than its bounds say, or too small for a patch.
    """
    pairs = read_pairs(folder)
    groups = group_touching([pair.bounds_m for pair in pairs])
    samples = [sample for pair in pairs for sample in cut_pair(pair, f"group-{groups[pair.number]:02d}")]
    settings = SplitSettings()
    splits = assign_splits(group_blocks(sample.record for sample in samples), settings)
    samples = [s._replace(record=s.record.model_copy(update={"split": splits[s.record.block]})) for s in samples]
    change = {"real": list, "zero": zero_sar, "shuffled": shuffle_sar}[sar]
    left, _, right, _ = pairs[0].bounds_m
    facts = Facts(PAIR_BANDS, ("VH",), PATCH_PX, round((right - left) / pairs[0].optical.shape[-1], 6))
    save_samples(change(samples), output, facts=facts, notes=describe_pairs(pairs, splits, sar))


def read_pairs(folder: Path) -> list[PicturePair]:
    """The pairs that `index.tsv` lists, in its order; `pack_volkov` says what is raised."""
    index = folder / "index.tsv"
    if not index.is_file():
        raise MissingError(f"{index} does not exist: name the folder that holds it beside `opt` and `sar`")
    with index.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [_read_pair(folder, number, row) for number, row in enumerate(rows)]


def _read_pair(folder: Path, number: int, row: Mapping[str, str]) -> PicturePair:
    pictures = []
    for kind, mode in (("opt", "RGB"), ("sar", "L")):
        path = folder / kind / row["file"]
        if not path.is_file():
            raise MissingError(f"{path} is in the index but not there")
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert(mode)))
    optical, sar = pictures
    if optical.shape[:2] != sar.shape or min(sar.shape) < PATCH_PX:
        raise DataError(
            f"{folder}, {row['file']}: optical is {optical.shape[:2]}, SAR is {sar.shape}; both must be alike, {PATCH_PX} px or more"
        )
    blue_first = optical[..., ::-1].transpose(2, 0, 1)
    bounds = (float(row["x0_3395"]), float(row["y0"]), float(row["x1"]), float(row["y1"]))
    scaled = blue_first.astype(np.float32) * np.float32(WHITE / 255)
    return PicturePair(number, Path(row["file"]).stem, bounds, scaled, sar[None], dict(row))


def group_touching(bounds_m: Sequence[tuple[float, float, float, float]]) -> list[int]:
    """The group of each rectangle: those that overlap or touch, also through others, share one; groups count from 0 in order."""
    group = list(range(len(bounds_m)))
    for second, (left, bottom, right, top) in enumerate(bounds_m):
        for first, other in enumerate(bounds_m[:second]):
            if left <= other[2] and other[0] <= right and bottom <= other[3] and other[1] <= top:
                merged = {group[first], group[second]}
                group = [min(merged) if name in merged else name for name in group]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(group))}
    return [numbers[name] for name in group]


def cut_pair(pair: PicturePair, block: str) -> list[Sample]:
    """The patches of a pair under its own clouds, side by side from its upper left corner."""
    cover = cover_picture(pair.optical, np.random.default_rng((SKY_SEED, pair.number)), sun=compute_sun(PAIR_TIME, *PAIR_PLACE))
    clear = to_stored(pair.optical)
    decibel = SAR_FLOOR_DB * (1 - pair.sar.astype(np.float64) / 255)
    sar = np.rint(decibel * CENTI_DB).astype(np.int16)
    rows, columns = pair.sar.shape[1:]
    starts = [(r, c) for r in range(0, rows - PATCH_PX + 1, PATCH_PX) for c in range(0, columns - PATCH_PX + 1, PATCH_PX)]
    return [_cut_window(pair, block, (sar, clear, cover), start) for start in starts]


def _cut_window(pair: PicturePair, block: str, layers: tuple[Array, Array, Cover], start: tuple[int, int]) -> Sample:
    (row, col), (sar, clear, cover) = start, layers
    window = (..., slice(row, row + PATCH_PX), slice(col, col + PATCH_PX))
    left, bottom, right, top = pair.bounds_m
    wide, high = (right - left) / pair.sar.shape[2], (top - bottom) / pair.sar.shape[1]
    cloud, shadow = cover.cloud[window], cover.shadow[window]
    record = PatchRecord(
        id=f"volkov/{pair.name}/r{row}-c{col}",
        area="volkov",
        pair=pair.name,
        block=block,
        crs="EPSG:3395",
        bounds_m=(left + col * wide, top - (row + PATCH_PX) * high, left + (col + PATCH_PX) * wide, top - row * high),
        row=row,
        col=col,
        valid_share=1.0,
        cloud_input_share=describe_cover(np.maximum(cloud, shadow), np.ones_like(cloud, bool)),
        cloud_target_share=0.0,
        sar_gap_days=3.0,
        clear_gap_days=0.0,
    )
    mask = stack_mask({"cloud_input": cloud, "shadow_input": shadow}, (PATCH_PX, PATCH_PX))
    return Sample(record, sar[window], cover.cloudy[window], clear[window], mask)


def cover_picture(optical: Array, rng: np.random.Generator, *, sun: Sun) -> Cover:
    """`optical` (band, row, col) reflectance under a new sky: thick cloud with soft edges, haze, cirrus and shadow.

    The probability of cloud is the sky's own opacity over CERTAIN_OPACITY, that of shadow the share of sunlight that is kept away.
    """
    settings = SkySettings(
        cover=float(rng.uniform(*COVERS)),
        blob_px=float(rng.uniform(40, 120)),
        haze=float(rng.uniform(*HAZES)),
        cirrus=float(rng.uniform(0, 0.3)),
        base_m=float(rng.uniform(400, 1500)),
    )
    sky = make_sky(rng, (optical.shape[1], optical.shape[2]), settings=settings, sun=sun)
    wavelengths = {band.name: band.wavelength_nm for band in SENTINEL2_BANDS}
    seen = [
        apply_sky(image, sky, band=L2A_BANDS.index(name), wavelength_nm=wavelengths[name])
        for name, image in zip(PAIR_BANDS, optical, strict=True)
    ]
    cloud = np.rint(np.clip(sky.cloud / CERTAIN_OPACITY, 0, 1) * FULL).astype(np.uint8)
    shadow = np.rint(np.clip(sky.shadow, 0, 1) * FULL).astype(np.uint8)
    return Cover(to_stored(np.stack(seen)), cloud, shadow)


def to_stored(reflectance: Array) -> Array:
    """Reflectance as it is stored: uint16 x 10000."""
    stored: Array = np.rint(np.clip(reflectance * REFLECTANCE_SCALE, 0, MAX_REFLECTANCE)).astype(np.uint16)
    return stored


def zero_sar(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the SAR of a black picture."""
    return [sample._replace(sar=np.full_like(sample.sar, round(SAR_FLOOR_DB * CENTI_DB))) for sample in samples]


def shuffle_sar(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the SAR of another one of their split, each used once and none its own: the next in a drawn circle."""
    changed = list(samples)
    for number, split in enumerate(SPLITS):
        places = [place for place, sample in enumerate(samples) if sample.record.split == split]
        circle = np.random.default_rng((SHUFFLE_SEED, number)).permutation(places)
        if len(circle) == 1:
            raise DataError(f"split {split} holds one patch: there is no other to take SAR from")
        for place, giver in zip(circle, np.roll(circle, 1), strict=True):
            changed[place] = samples[place]._replace(sar=samples[giver].sar)
    return changed


def describe_pairs(pairs: Sequence[PicturePair], splits: Mapping[str, Split], sar: SarKind) -> dict[str, Any]:
    """What was chosen, for the manifest."""
    notes = [
        f"Optical values are the 8-bit pictures, each divided by its 99 % quantile, times {WHITE}/255: a plausible size, not reflectance.",
        f"SAR values are the 8-bit pictures, 0..255 laid linearly onto {SAR_FLOOR_DB:g}..0 dB: to feed a network, not backscatter.",
        "Clouds are simulated over clear pictures, so input and target show the same day; SAR is three days younger.",
        "Distances are of EPSG:3395, about 1.2 times those on the ground here.",
    ]
    sources = {
        pair.name: {key: value for key, value in pair.facts.items() if key not in ("file", "x0_3395", "y0", "x1", "y1")} for pair in pairs
    }
    sky = {"cover": COVERS, "haze": HAZES, "certain_opacity": CERTAIN_OPACITY, "seed": SKY_SEED, "sun_of": PAIR_TIME.isoformat() + "Z"}
    settings = SplitSettings()
    how = {"method": "groups", "seed": settings.seed, "validation": settings.validation, "test": settings.test}
    return {
        "splits": how | {"blocks": dict(sorted(Counter(splits.values()).items()))},
        "adapter": {"name": "volkov", "sar": sar, "sky": sky, "pairs": sources, "notes": notes},
    }
