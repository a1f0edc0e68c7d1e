"""Time series of a few fields as a dataset: real clouds, real SAR, trained on some sites and tested on another.

Folders of sites enter, a file of Sentinel-2 and one of Sentinel-1 each, 20 m. A packed dataset leaves, and `floors.json` beside it: what
needs no network, only other dates. Reading the series needs `h5netcdf` and `h5py`.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from samples import Facts, Sample, save_samples, stack_mask

from sereno.model.batches import to_batch
from sereno.model.config import SarRange
from sereno.model.data import open_split, read_facts, read_records
from sereno.model.metrics import METRICS, average_scores
from sereno.model.scoring import REGIONS, mark_regions, score_regions
from sereno.pipeline.clouds import FULL, SCL_CLOUD, SCL_SHADOW, describe_cover, to_probability
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.patches import PatchRecord, Split
from sereno.pipeline.scene import CENTI_DB, REFLECTANCE_SCALE
from sereno.pipeline.store import write_json

Array = npt.NDArray[Any]
Days = npt.NDArray[np.float64]

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
    batch = to_batch(**arrays, sar_range=SarRange(), sar_bands=facts.sar_bands)
    regions = mark_regions(torch.from_numpy(arrays["mask"]), 0.5)
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
