"""Which bands a picture shows as red, green and blue, whatever the sensor, and how dark and bright they are shown.

Names of bands enter, places and words leave; stored images enter, pictures leave. True colours share one stretch, so that they stay true;
false ones have one for each band, or the brightest of them would drown the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.model.pictures import DISPLAY_GAMMA, MAX_STRETCH_SAMPLES, STRETCH_PERCENTILES, Picture, paint
from sereno.pipeline.bands import rgb_indices
from sereno.pipeline.errors import MissingError
from sereno.pipeline.scene import REFLECTANCE_SCALE

WAVELENGTH: Final = re.compile(r"(\d+(?:\.\d+)?) ?nm")
"""Names of the bands of hyperspectral cubes."""
EYE_NM: Final = (650.0, 550.0, 460.0)
"""Wavelengths that are shown as red, green and blue: about those of the bands that Sentinel-2 calls so, in the middle of the colours."""
NEAR_NM: Final = 60.0
"""A band further from them shows another colour."""
FALSE_COLOURS: Final = (("B08", "B04", "B03"), ("B8A", "B04", "B03"), ("B4", "B3", "B2"), ("B11", "B8A", "B05"), ("B12", "B8A", "B05"))
"""Bands that are shown where there are no true colours, those first that people know: near infrared, red, green; then of the bands of 20 m
short-wave infrared, near infrared, red edge."""
NARROWEST: Final = 0.01
"""Least reflectance from black to white, so that flat ground does not show its noise."""
USUAL: Final = (0.0, 0.3)
"""Black and white where no pixel is valid; suits most land."""

Array = npt.NDArray[Any]


class Colours(NamedTuple):
    """Three bands to show."""

    places: tuple[int, int, int]
    """Of what is red, green and blue among the bands."""
    words: str
    """What they are, for a legend."""
    is_true: bool
    """Whether they are what the eye would see."""


class Levels(NamedTuple):
    """What is shown black and what white, of each colour."""

    low: tuple[float, float, float]
    """Shown black; reflectance, red, green and blue."""
    high: tuple[float, float, float]
    """Shown white."""


def choose_colours(bands: Sequence[str]) -> Colours:
    """The bands to show: red, green and blue, or those nearest to them, or false colours that the words name."""
    try:
        return _name_colours(bands, rgb_indices(tuple(bands)), "True colours", is_true=True)
    except MissingError:
        pass
    waves = read_wavelengths(bands)
    if waves is not None:
        return _choose_waves(bands, waves)
    known = next((names for names in FALSE_COLOURS if set(names) <= set(bands)), None)
    if known is not None:
        red, green, blue = (bands.index(name) for name in known)
        return _name_colours(bands, (red, green, blue), "False colours")
    if len(bands) == 1:
        return Colours((0, 0, 0), f"Grey: {bands[0]}", is_true=False)
    return _name_colours(bands, (len(bands) - 1, len(bands) // 2, 0), "False colours")


def read_wavelengths(bands: Sequence[str]) -> list[float] | None:
    """Nanometres of bands that are called by them, `550nm`; None if one is not."""
    found = [WAVELENGTH.fullmatch(band) for band in bands]
    return [float(match[1]) for match in found if match] if found and all(found) else None


def _choose_waves(bands: Sequence[str], waves: Sequence[float]) -> Colours:
    """Bands nearest to the colours of the eye, or where these lie too far, the longest, a middle and the shortest wave."""
    red, green, blue = (min(range(len(waves)), key=lambda place: abs(waves[place] - wanted)) for wanted in EYE_NM)
    if all(abs(waves[place] - wanted) <= NEAR_NM for place, wanted in zip((red, green, blue), EYE_NM, strict=True)):
        return _name_colours(bands, (red, green, blue), "The bands nearest to what the eye sees", is_true=True)
    rising = sorted(range(len(waves)), key=lambda place: waves[place])
    return _name_colours(bands, (rising[-1], rising[len(rising) // 2], rising[0]), "False colours")


def _name_colours(bands: Sequence[str], places: tuple[int, int, int], kind: str, *, is_true: bool = False) -> Colours:
    red, green, blue = (bands[place] for place in places)
    return Colours(places, f"{kind}: {red} is shown red, {green} green, {blue} blue", is_true)


def measure_levels(images: Iterable[tuple[Array, Array]], colours: Colours) -> Levels:
    """One stretch for all pictures from (optical (band, y, x) stored integers, valid (y, x)) pairs."""
    samples = [np.zeros((3, 0))]
    for optical, valid in images:
        values = optical[list(colours.places)][:, valid]
        samples.append(values[:, :: max(1, values.shape[1] // MAX_STRETCH_SAMPLES)] / REFLECTANCE_SCALE)
    joined = np.concatenate(samples, axis=1)
    if not joined.size:
        return Levels(*((level, level, level) for level in USUAL))
    if colours.is_true or len(set(colours.places)) == 1:
        low, high = np.percentile(joined, STRETCH_PERCENTILES)
        lows, highs = np.full(3, low), np.full(3, high)
    else:
        lows, highs = np.percentile(joined, STRETCH_PERCENTILES, axis=1)
    low, high = lows.tolist(), np.maximum(highs, lows + NARROWEST).tolist()
    return Levels((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def to_colours(optical: Array, valid: Array, colours: Colours, levels: Levels) -> Picture:
    """The bands chosen as red, green and blue: stored (band, y, x), valid (y, x) -> (y, x, 3)."""
    shown = optical[list(colours.places)] / REFLECTANCE_SCALE
    low, high = (np.array(ends)[:, None, None] for ends in levels)
    return paint((shown - low) / (high - low), valid, gamma=DISPLAY_GAMMA)


def describe_levels(colours: Colours, levels: Levels) -> str:
    """Colours and stretch in words."""
    if len(set(zip(*levels, strict=True))) == 1:
        return f"{colours.words}; reflectance {levels.low[0]:.3f} is black, {levels.high[0]:.3f} white."
    ends = ", ".join(f"{low:.3f} to {high:.3f}" for low, high in zip(*levels, strict=True))
    return f"{colours.words}; from black to white reflectances of {ends}."
