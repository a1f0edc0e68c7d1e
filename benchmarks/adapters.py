"""Real sample data as packed datasets, so that training, evaluation and `quality.py` run on them as on any other.

python benchmarks/adapters.py worldcereal SERIES_FOLDER OUTPUT.json [--test-site SITE]
python benchmarks/adapters.py volkov PAIRS_FOLDER OUTPUT.json [--sar real|zero|shuffled]

`worldcereal`: time series of a few fields, real clouds and real SAR; train on the other sites, test on one. Beside the dataset stands
`floors.json`: what needs no network, only other dates. `volkov`: real ground and real SAR under simulated clouds.
What was chosen, and what was refused, is in the manifest's summary. Reading the series needs `h5netcdf` and `h5py`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
import zarr
from PIL import Image

from sereno.model.config import SarRange
from sereno.model.data import open_split, read_facts, read_records, to_batch
from sereno.model.evaluate import REGIONS, mark_regions, score_regions
from sereno.model.metrics import METRICS, average_scores
from sereno.pipeline.atmosphere import SkySettings, Sun, apply_sky, compute_sun, make_sky
from sereno.pipeline.bands import L2A_BANDS, SENTINEL2_BANDS
from sereno.pipeline.clouds import FULL, SCL_CLOUD, SCL_SHADOW, describe_cover, to_probability
from sereno.pipeline.config import PackSettings, SplitSettings
from sereno.pipeline.errors import DataError, MissingError, SerenoError
from sereno.pipeline.pack import create_arrays, measure_targets, to_csv
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS, SPLITS, PatchRecord, Split
from sereno.pipeline.scene import CENTI_DB, MAX_REFLECTANCE, REFLECTANCE_SCALE
from sereno.pipeline.splits import assign_splits, check_leakage, group_blocks
from sereno.pipeline.store import staged, store_of, write_json, write_manifest

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Days = npt.NDArray[np.float64]

ORDER_SEED: Final = 2
"""Seed of the order in which patches are stored."""

SERIES_BANDS: Final = ("B05", "B06", "B07", "B8A", "B11", "B12")
"""Optical bands of the series, 20 m."""
SERIES_SAR: Final = ("VV", "VH")
"""Polarisations of the series, 20 m."""
SERIES_SCALE: Final = 1e-4
"""Stored optical integer times this is reflectance, and stored SAR integer times this is decibel: the files' `scale_factor`."""
SCL_SNOW: Final = 11
"""Snow or ice. It hides the ground as a cloud does; in these series most of it is cloud (99 % snow on a September day in Flanders)."""
SCL_DOUBT: Final = 7
"""Unclassified: thin cloud on a cloudy date, a dark or bare field on a clear one."""
DILATE_PX: Final = 1
"""Clouds and shadows grow by so many pixels of 20 m."""
MIN_INPUT_COVER: Final = 0.1
"""An input hides at least this share of the ground: smaller covers leave too few pixels to score."""
MAX_TARGET_COVER: Final = 0.05
"""A target hides at most this share, which then has no weight."""
MAX_DOUBT: Final = 0.5
"""A date that is unclassified over more than this share is neither input nor target: haze over everything looks like that."""
MAX_GAP_DAYS: Final = 10.0
"""Largest time between input and target."""
LEVEL_DAYS: Final = 30.0
"""Clear dates this near in time are what the brightness of a target is compared with."""
MAX_LEVEL_CHANGE: Final = 0.2
"""A target whose median B05 differs by more than this share from the median of those dates is haze or shadow that the classes missed."""
VALIDATION_SHARE: Final = 0.2
"""Last share of the inputs of a training site that validates."""

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


class Sample(NamedTuple):
    """One patch on its way into a dataset."""

    record: PatchRecord
    """Where it comes from, with its split."""
    sar: Array
    """(sar_band, row, col) int16 centi-dB."""
    cloudy: Array
    """(band, row, col) uint16 reflectance x 10000."""
    clear: Array
    """(band, row, col) uint16 reflectance x 10000."""
    mask: Array
    """(mask_channel, row, col) uint8, MASK_CHANNELS."""


class Facts(NamedTuple):
    """What all patches of a dataset share."""

    bands: tuple[str, ...]
    """Optical bands in stored order."""
    sar_bands: tuple[str, ...]
    """Polarisations in stored order."""
    size_px: int
    """Side of a patch."""
    resolution_m: float
    """Pixel size."""


def save_samples(
    samples: Sequence[Sample], output: Path, *, facts: Facts, notes: Mapping[str, Any], apart: Sequence[Split] = SPLITS
) -> None:
    """Write a packed dataset: the contract of `sereno.pipeline.patches`, `notes` added to the manifest's summary.

    The splits named in `apart` are proven to share no ground; what a split left out of it shares is for `notes` to say.

    Raises:
        DataError: two of those splits share ground, or no training target pixel is usable.
    """
    arranged = arrange_samples(samples)
    records = [sample.record for split in SPLITS for sample in arranged[split]]
    leakage = check_leakage([record for record in records if record.split in apart], buffer_m=0)
    settings = PackSettings()
    counts = {split: len(arranged[split]) for split in SPLITS}
    with staged(store_of(output)) as partial:
        create_arrays(partial, counts, facts._asdict(), settings)
        for split in SPLITS:
            for name in PATCH_ARRAYS if arranged[split] else ():
                values = np.stack([getattr(sample, name) for sample in arranged[split]])
                zarr.open_array(partial, path=f"{split}/{name}", mode="r+")[:] = values
        (partial / "patches.csv").write_text(to_csv(records))
        mean, std = measure_targets(partial, settings.shard_patches)
        output.unlink(missing_ok=True)
    edges = np.linspace(0, 1, 11)
    cover = {split: np.histogram([s.record.cloud_input_share for s in arranged[split]], edges)[0].tolist() for split in SPLITS}
    summary = facts._asdict() | {
        "mask_channels": list(MASK_CHANNELS),
        "counts": counts,
        "leakage": leakage._asdict() | {"compared": list(apart)},
        "cloud_share": {"edges": edges.round(3).tolist()} | cover,
        "training_mean": mean,
        "training_std": std,
    }
    write_manifest(output, kind="dataset", summary=summary | dict(notes))
    logger.info("%s: %s", output, ", ".join(f"{count} {split}" for split, count in counts.items()))


def arrange_samples(samples: Sequence[Sample]) -> dict[Split, list[Sample]]:
    """The samples by split, shuffled within it, each with its position."""
    arranged: dict[Split, list[Sample]] = {}
    for number, split in enumerate(SPLITS):
        members = sorted((sample for sample in samples if sample.record.split == split), key=lambda sample: sample.record.id)
        order = np.random.default_rng((ORDER_SEED, number)).permutation(len(members))
        placed = [members[place] for place in order]
        arranged[split] = [s._replace(record=s.record.model_copy(update={"position": p})) for p, s in enumerate(placed)]
    return arranged


def stack_mask(channels: Mapping[str, Array], shape: tuple[int, int]) -> Array:
    """The mask of a patch, (7, row, col) uint8: `channels` by name, validity full and probabilities zero where not given."""
    assert set(channels) <= set(MASK_CHANNELS)
    missing = {name: np.full(shape, FULL * name.startswith("valid"), np.uint8) for name in MASK_CHANNELS}
    return np.stack([np.asarray((missing | dict(channels))[name], np.uint8) for name in MASK_CHANNELS])


class Series(NamedTuple):
    """All dates of one site on one grid."""

    site: str
    """Name of the site."""
    times: npt.NDArray[np.datetime64]
    """(date,) optical acquisitions, UTC, rising, each once."""
    optical: Array
    """(date, band, row, col) uint16 reflectance x 10000, 0 where there is nothing."""
    scl: Array
    """(date, row, col) uint8 scene classes."""
    sar_times: npt.NDArray[np.datetime64]
    """(SAR date,) SAR acquisitions, UTC, rising."""
    sar: Array
    """(SAR date, sar_band, row, col) int16 centi-dB."""
    valid_sar: Array
    """(SAR date, row, col) bool."""
    crs: str
    """CRS of the grid."""
    bounds_m: tuple[float, float, float, float]
    """Left, bottom, right, top."""
    n_repeated: int
    """Optical acquisitions that were in the file twice; the first is kept."""


class Masks(NamedTuple):
    """What the scene classes of a series say of every date, (date, row, col)."""

    cloud: Array
    """uint8, probability x 255 of cloud or snow."""
    shadow: Array
    """uint8, probability x 255 of cloud shadow."""
    valid: Array
    """bool, True = observed."""

    @property
    def usable(self) -> Array:
        """bool, True = observed and more likely clear than not."""
        usable: Array = self.valid & (np.maximum(self.cloud, self.shadow) < FULL / 2)
        return usable


class Neighbours(NamedTuple):
    """The nearest clear observation of every pixel before and after a moment."""

    before: Array
    """(band, row, col) values; those of `after` where there is none before."""
    after: Array
    """(band, row, col) values; those of `before` where there is none after."""
    days_before: Days
    """(row, col) days back to it; infinite if there is none."""
    days_after: Days
    """(row, col) days on to it; infinite if there is none."""


def read_series(folder: Path) -> Series:
    """The series of the site in `folder`.

    Raises:
        MissingError: a file, or the library that reads it, is not there.
        DataError: the optical and the SAR file are of different grids, or values are scaled otherwise than expected.
    """
    optical, sar = (_read_netcdf(folder, pattern) for pattern in ("S2_L2A_20m_*.nc", "S1_GRD-*_20m_*.nc"))
    if optical.attrs["bounds"] != sar.attrs["bounds"] or optical.sizes["y"] != sar.sizes["y"]:
        raise DataError(f"{folder}: bounds of the optical file are {optical.attrs['bounds']}, of the SAR file {sar.attrs['bounds']}")
    for dataset, names in ((optical, SERIES_BANDS), (sar, SERIES_SAR)):
        factors = {float(dataset[name].attrs["scale_factor"]) for name in names}
        if factors != {SERIES_SCALE}:
            raise DataError(f"{folder}: values are scaled by {sorted(factors)}, expected {SERIES_SCALE}")
    times = optical["timestamp"].values.astype("M8[s]")
    kept = np.flatnonzero(np.diff(times, prepend=times[:1] - 1) > np.timedelta64(0, "s"))
    stored_sar = np.stack([sar[name].values for name in SERIES_SAR], axis=1)
    return Series(
        site=folder.name,
        times=times[kept],
        optical=np.stack([optical[name].values for name in SERIES_BANDS], axis=1)[kept],
        scl=optical["SCL"].values[kept],
        sar_times=sar["timestamp"].values.astype("M8[s]"),
        sar=np.rint(stored_sar * (SERIES_SCALE * CENTI_DB)).astype(np.int16),
        valid_sar=(stored_sar != 0).all(axis=1),
        crs=f"EPSG:{int(optical.attrs['epsg'])}",
        bounds_m=tuple(float(edge) for edge in json.loads(str(optical.attrs["bounds"]).replace("(", "[").replace(")", "]"))),
        n_repeated=len(times) - len(kept),
    )


def _read_netcdf(folder: Path, pattern: str) -> xr.Dataset:
    lacking = [name for name in ("h5netcdf", "h5py") if importlib.util.find_spec(name) is None]
    if lacking:
        raise MissingError(f"{' and '.join(lacking)} needed to read {folder / pattern}: pip install h5netcdf h5py")
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise MissingError(f"{folder} holds {len(found)} files {pattern}, expected one")
    with xr.open_dataset(found[0], engine="h5netcdf", mask_and_scale=False) as dataset:
        return dataset.load()


def mask_dates(scl: Array) -> Masks:
    """Clouds and shadows of every date: (date, row, col) classes -> masks.

    A class that says neither (7) takes the share of cloud and shadow among the classified pixels of its date, so that it is cloud on a
    cloudy date and ground on a clear one; where nothing is classified it counts as cloud.
    """
    clouds, shadows = [], []
    for classes in scl:
        cloud, shadow = np.isin(classes, (*SCL_CLOUD, SCL_SNOW)), np.isin(classes, SCL_SHADOW)
        known = (classes != 0) & (classes != SCL_DOUBT)
        share = float((cloud | shadow)[known].mean()) if known.any() else 1.0
        doubt = np.where(classes == SCL_DOUBT, np.uint8(round(share * FULL)), np.uint8(0))
        clouds.append(np.maximum(to_probability(cloud, dilate_px=DILATE_PX, feather_px=0), doubt))
        shadows.append(to_probability(shadow, dilate_px=DILATE_PX, feather_px=0))
    return Masks(np.stack(clouds), np.stack(shadows), scl != 0)


def judge_dates(series: Series, masks: Masks) -> list[str]:
    """What each date is: `clear` (a target), `cloudy` (an input), `doubtful`, `between`, or `odd` (clear by its classes, not its light)."""
    hidden = (np.isin(series.scl, (*SCL_CLOUD, *SCL_SHADOW, SCL_SNOW)) | ~masks.valid).mean(axis=(1, 2))
    doubt = (series.scl == SCL_DOUBT).mean(axis=(1, 2))
    verdicts = np.full(len(series.times), "between", dtype="<U8")
    verdicts[hidden <= MAX_TARGET_COVER] = "clear"
    verdicts[hidden >= MIN_INPUT_COVER] = "cloudy"
    verdicts[doubt > MAX_DOUBT] = "doubtful"
    clear = np.flatnonzero(verdicts == "clear")
    levels = np.array([np.median(series.optical[date, 0][masks.usable[date]]) for date in clear])
    verdicts[clear[find_odd_levels(levels, to_days(series.times[clear]))]] = "odd"
    return [str(verdict) for verdict in verdicts]


def find_odd_levels(levels: Days, days: Days) -> npt.NDArray[np.bool_]:
    """Where a level differs too much from the median of those within LEVEL_DAYS, itself included: (n,), (n,) -> (n,)."""
    usual = np.array([np.median(levels[abs(days - day) <= LEVEL_DAYS]) for day in days])
    odd: npt.NDArray[np.bool_] = abs(levels - usual) > MAX_LEVEL_CHANGE * usual
    return odd


def to_days(times: npt.NDArray[np.datetime64]) -> Days:
    """Days since 1970."""
    days: Days = times.astype("M8[s]").astype(np.int64) / 86400
    return days


def pair_dates(days: Days, verdicts: Sequence[str]) -> list[tuple[int, int]]:
    """Places (input, target): every cloudy date with the nearest clear one, if it lies within MAX_GAP_DAYS."""
    clear = np.array([place for place, verdict in enumerate(verdicts) if verdict == "clear"], dtype=np.int64)
    pairs = []
    for date in (place for place, verdict in enumerate(verdicts) if verdict == "cloudy"):
        gaps = abs(days[clear] - days[date])
        if len(clear) and gaps.min() <= MAX_GAP_DAYS:
            pairs.append((date, int(clear[gaps.argmin()])))
    return pairs


def split_in_time(pairs: Sequence[tuple[int, int]]) -> list[Split | None]:
    """`train` before a date and `val` from it on, None for pairs that reach across it: no date is in both."""
    first = sorted(pairs)[round(len(pairs) * (1 - VALIDATION_SHARE))][0] if pairs else 0
    return ["val" if min(pair) >= first else "train" if max(pair) < first else None for pair in pairs]


def find_neighbours(images: Array, usable: Array, days: Days, at: float) -> Neighbours:
    """The nearest usable observations around day `at`: (date, band, row, col), (date, row, col), (date,) rising -> neighbours.

    Raises:
        DataError: some pixel was never usable.
    """
    if not usable.any(axis=0).all():
        raise DataError("a pixel of the series is never clear outside the target: there is nothing to copy")
    ends = []
    for side in (np.flatnonzero(days <= at), np.flatnonzero(days > at)[::-1]):
        values, gap = np.zeros(images.shape[1:], np.float64), np.full(images.shape[2:], np.inf)
        for date in side:  # towards `at`, so that the nearest one stays
            values = np.where(usable[date], images[date], values)
            gap = np.where(usable[date], abs(days[date] - at), gap)
        ends.append((values, gap))
    (before, days_before), (after, days_after) = ends
    return Neighbours(
        np.where(np.isinf(days_before), after, before), np.where(np.isinf(days_after), before, after), days_before, days_after
    )


def copy_nearest(near: Neighbours) -> Array:
    """The nearer of the two observations, (band, row, col)."""
    return np.where(near.days_before <= near.days_after, near.before, near.after)


def interpolate_between(near: Neighbours) -> Array:
    """The straight line in time between the two observations, (band, row, col); the one there is where there is only one."""
    once = np.isinf(near.days_before) | np.isinf(near.days_after)
    before, after = (np.where(once, 1.0, gap) for gap in (near.days_before, near.days_after))
    share = before / (before + after)
    return near.before * (1 - share) + near.after * share


class Choice(NamedTuple):
    """A site with all that was decided about it."""

    series: Series
    """Its dates."""
    masks: Masks
    """Their clouds."""
    verdicts: list[str]
    """What each date is."""
    pairs: list[tuple[int, int]]
    """Places of input and target."""


def pack_worldcereal(folder: Path, output: Path, test_site: str | None) -> None:
    """Write the dataset of the sites in `folder`, tested on `test_site` (the last by name if None), and `floors.json` beside it.

    Raises:
        MissingError: there are fewer than two sites, or no such one.
        DataError: a site yields no pair.
    """
    sites = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(sites) < 2 or (test_site or sites[-1]) not in sites:
        raise MissingError(f"{folder} holds the sites {sites}: at least two are needed, and '{test_site or 'SITE'}' among them")
    tested = test_site or sites[-1]
    choices = {site: choose_pairs(read_series(folder / site)) for site in sites}
    splits: dict[str, list[Split | None]] = {
        site: ["test"] * len(choice.pairs) if site == tested else split_in_time(choice.pairs) for site, choice in choices.items()
    }
    samples = [
        cut_sample(choices[site], pair, split)
        for site in sites
        for pair, split in zip(choices[site].pairs, splits[site], strict=True)
        if split is not None
    ]
    size_px = choices[tested].series.scl.shape[-1]
    left, _, right, _ = choices[tested].series.bounds_m
    facts = Facts(SERIES_BANDS, SERIES_SAR, size_px, (right - left) / size_px)
    save_samples(samples, output, facts=facts, notes=describe_series(choices, splits, tested), apart=("train", "test"))
    write_json(output.with_name("floors.json"), score_floors(output, choices[tested]))


def choose_pairs(series: Series) -> Choice:
    """Masks, verdicts and pairs of a site.

    Raises:
        DataError: it yields no pair.
    """
    masks = mask_dates(series.scl)
    verdicts = judge_dates(series, masks)
    pairs = pair_dates(to_days(series.times), verdicts)
    if not pairs:
        raise DataError(f"site {series.site}: no cloudy date has a clear one within {MAX_GAP_DAYS:g} days; dates are {Counter(verdicts)}")
    return Choice(series, masks, verdicts, pairs)


def name_pair(series: Series, pair: tuple[int, int]) -> str:
    """Days of input and target, `2018-04-16-to-2018-04-19`."""
    return "-to-".join(str(series.times[place])[:10] for place in pair)


def cut_sample(choice: Choice, pair: tuple[int, int], split: Split) -> Sample:
    """The whole site as one patch: cloudy `pair[0]`, clear `pair[1]`, and the SAR nearest to the cloudy date."""
    series, masks = choice.series, choice.masks
    days, sar_days = to_days(series.times), to_days(series.sar_times)
    cloudy, clear = pair
    sar = int(abs(sar_days - days[cloudy]).argmin())
    hidden = {place: np.maximum(masks.cloud[place], masks.shadow[place]) for place in pair}
    valid = masks.valid[cloudy] & masks.valid[clear] & series.valid_sar[sar]
    record = PatchRecord(
        id=f"{series.site}/{name_pair(series, pair)}/r0-c0",
        area=series.site,
        pair=name_pair(series, pair),
        block=series.site,
        crs=series.crs,
        bounds_m=series.bounds_m,
        row=0,
        col=0,
        valid_share=float(valid.mean()),
        cloud_input_share=describe_cover(hidden[cloudy], masks.valid[cloudy]),
        cloud_target_share=describe_cover(hidden[clear], masks.valid[clear]),
        sar_gap_days=round(float(sar_days[sar] - days[cloudy]), 4),
        clear_gap_days=round(float(days[clear] - days[cloudy]), 4),
        split=split,
    )
    channels = {f"{kind}_{name}": getattr(masks, kind)[place] for kind in ("cloud", "shadow") for name, place in _roles(pair)}
    channels |= {f"valid_{name}": masks.valid[place] * np.uint8(FULL) for name, place in _roles(pair)}
    channels["valid_sar"] = series.valid_sar[sar] * np.uint8(FULL)
    optical = [np.where(masks.valid[place], series.optical[place], 0).astype(np.uint16) for place in pair]
    stored_sar = np.where(series.valid_sar[sar], series.sar[sar], 0).astype(np.int16)
    return Sample(record, stored_sar, optical[0], optical[1], stack_mask(channels, valid.shape))


def _roles(pair: tuple[int, int]) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("input", pair[0]), ("target", pair[1])


FLOORS: Final = {
    "copy_nearest": "the nearest clear date of the same site other than the target, before or after, pixel by pixel",
    "interpolate": "the straight line in time between the nearest clear dates before and after the input, never the target, pixel by pixel",
    "site_mean": "the mean over all clear dates of the same site but the target, pixel by pixel",
    "training_mean": "the mean over all clear targets of training, one number per band",
}
"""What needs no network, in words. All but the last use other dates of the tested site, which a network of one date never sees."""


def score_floors(dataset: Path, choice: Choice) -> dict[str, dict[str, float]]:
    """Mean scores of FLOORS over the test patches, on cloudy pixels, with the evaluator's own regions and metrics."""
    facts = read_facts(dataset)
    arrays = open_split(dataset, "test").read(0, len(choice.pairs))
    batch = to_batch(*arrays, SarRange(), facts.sar_bands)
    regions = mark_regions(torch.from_numpy(arrays.mask), 0.5)
    places = {f"{choice.series.site}/{name_pair(choice.series, pair)}/r0-c0": pair for pair in choice.pairs}
    answers = [answer_without_network(choice, places[record.id]) for record in read_records(dataset, "test")]
    scores = {}
    for name in FLOORS:
        if name == "training_mean":
            answer = torch.tensor(facts.mean)[:, None, None].expand_as(batch.target)
        else:
            answer = torch.from_numpy(np.stack([given[name] for given in answers]) / REFLECTANCE_SCALE).float()
        cloudy = score_regions(answer, batch.target, regions)[:, list(REGIONS).index("cloudy")]
        means = {metric: average_scores(cloudy[:, METRICS.index(metric)]) for metric in ("psnr", "ssim", "sam_deg", "mae")}
        scores[name] = {metric: round(mean.mean, 6) for metric, mean in means.items()} | {"n": means["psnr"].n}
    return scores


def answer_without_network(choice: Choice, pair: tuple[int, int]) -> dict[str, Array]:
    """What the floors of one site make of a pair: stored units (band, row, col) by name."""
    days = to_days(choice.series.times)
    others = [place for place, verdict in enumerate(choice.verdicts) if verdict == "clear" and place != pair[1]]
    images, usable = choice.series.optical[others], choice.masks.usable[others]
    near = find_neighbours(images, usable, days[others], float(days[pair[0]]))
    mean = (images * usable[:, None]).sum(axis=0) / usable.sum(axis=0)
    return {"copy_nearest": copy_nearest(near), "interpolate": interpolate_between(near), "site_mean": mean}


def describe_series(choices: Mapping[str, Choice], splits: Mapping[str, Sequence[Split | None]], tested: str) -> dict[str, Any]:
    """What was chosen and what was refused, for the manifest."""
    sites = {
        site: {
            "dates": len(choice.series.times),
            "repeated_acquisitions_dropped": choice.series.n_repeated,
            "verdicts": dict(sorted(Counter(choice.verdicts).items())),
            "targets": len({target for _, target in choice.pairs}),
            "inputs_without_target": choice.verdicts.count("cloudy") - len(choice.pairs),
            "splits": {str(name): count for name, count in sorted(Counter(map(str, splits[site])).items())},
            "first": str(choice.series.times[0]) + "Z",
            "last": str(choice.series.times[-1]) + "Z",
        }
        for site, choice in choices.items()
    }
    limits = {
        "dilate_px": DILATE_PX,
        "min_input_cover": MIN_INPUT_COVER,
        "max_target_cover": MAX_TARGET_COVER,
        "max_doubt": MAX_DOUBT,
        "max_gap_days": MAX_GAP_DAYS,
        "level_days": LEVEL_DAYS,
        "max_level_change": MAX_LEVEL_CHANGE,
    }
    notes = [
        "One patch is a whole site on one date. Train and test are different sites, so few that nothing here supports a general claim.",
        "Inputs may share a target (`targets` counts the different ones): neighbouring patches are not independent.",
        "Validation is the end in time of the training sites: the same ground as training, so it may only pick a step. Pairs that reach "
        "across the cut ('None') are left out, so that no date is in both.",
        "The target was taken up to ten days from the input: what changed between them counts as error for every method.",
        "Clear dates whose brightness does not fit those around them in time ('odd') are neither targets nor copied from: haze and shadow "
        "that the classes missed. This favours what interpolates in time a little.",
        "Snow counts as cloud; class 7 takes the share of cloud and shadow of its date.",
        "The sites' SAR is one ascending pass per date as delivered, nearest in time to the input; it is not moved.",
    ]
    return {
        "splits": {"method": "site", "test_site": tested, "validation_share": VALIDATION_SHARE, "validation_shares_ground_with": "train"},
        "adapter": {"name": "worldcereal", "sites": sites, "limits": limits, "floors": FLOORS, "notes": notes},
    }


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


def main() -> None:
    """Read the command line and write one dataset; a fault of the data becomes one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    series = kinds.add_parser("worldcereal", help="time series of sites, real clouds")
    series.add_argument("--test-site", help="site to test on; the others train")
    pictures = kinds.add_parser("volkov", help="pairs of pictures, simulated clouds")
    pictures.add_argument("--sar", choices=("real", "zero", "shuffled"), default="real", help="SAR as it is, none, or of other ground")
    for kind in (series, pictures):
        kind.add_argument("folder", type=Path, help="folder of the samples")
        kind.add_argument("output", type=Path, help="manifest to write, for example dataset.json")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if given.kind == "worldcereal":
            pack_worldcereal(given.folder, given.output, given.test_site)
        else:
            pack_volkov(given.folder, given.output, given.sar)
    except SerenoError as error:
        sys.exit(f"adapters: error: {error}")


if __name__ == "__main__":
    main()
