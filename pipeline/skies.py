"""The input of a pair made of its target: which sky is drawn for it, how the image lies under that, and what is kept of the truth.

Enters: a pair whose cloudy scene is the clear one, and the ranges of the settings. Leaves: the pair with clouds over its input, the
truth beside it and every number drawn in its provenance. Equal settings, area and pair give equal bytes, whatever else is made.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from sereno.pipeline.atmosphere import SkySettings, Sun, compute_sun
from sereno.pipeline.bands import GAOFEN_BANDS, PAN, SENTINEL2_BANDS
from sereno.pipeline.clouds import CLOUDY, FULL, SCL_NODATA, SCL_SHADOW
from sereno.pipeline.config import OverlaySettings
from sereno.pipeline.errors import DataError
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.noise import Image
from sereno.pipeline.overlay import Overlay, draw_clouds, lay_clouds
from sereno.pipeline.pairs import is_gaofen
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.scene import MAX_REFLECTANCE, OPTICAL_UNITS, REFLECTANCE_SCALE, bands_of, geobox_of

PAN_NM: Final = 674.8
"""Centroid of the panchromatic image of Gaofen-6 PMS (its spectral response, 456 to 900 nm)."""
SURFACE: Final = "sentinel2-l2a"
"""The sensor whose reflectance is that of the ground, so that clean air adds nothing."""
MORNING_H: Final = 10.5
"""Local solar time at which Sentinel-2, Gaofen-1 and Gaofen-6 pass, hours: the sun of a scene that does not state it."""
LOWEST_SUN_DEG: Final = 10.0
"""Optical images are not taken under a lower sun; one that is reckoned stands at least so high."""
NOISE: Final = 0.004
"""Standard deviation of sensor noise over the light that clouds add (signal-to-noise of MSI: Drusch et al. 2012); the rest has its own."""
SEEN_CLOUD: Final = 0.25
"""From this loss of the ground's picture on a pixel counts as cloud; thinner cloud adds less than 0.03 to red."""
THICK: Final = 0.9
"""From this loss on cloud is thick; it adds 0.15 to red and more."""
SEEN_SHADOW: Final = 0.3
"""From this loss of direct sunlight on a pixel counts as shadow: NIR is a fourth darker there."""
SCL_CLASSES: Final = ((SEEN_CLOUD, 8), (0.7, 9))
"""Loss of the ground's picture from which the classification says cloud of medium, and of high probability."""
TRUTHS: Final = ("cloud_truth", "shadow_truth")
"""Variables (y, x) of a pair with a simulated sky, uint8 x 255: loss of the ground's picture at 660 nm, and of direct sunlight."""


class Truth(NamedTuple):
    """What is true of a simulated input, as a method that finds all would say it."""

    cloud: Image
    """(y, x) probability of cloud: 0.5 where SEEN_CLOUD of the ground's picture is lost, thin cloud and thick alike."""
    shadow: Image
    """(y, x) likewise of shadow, less where cloud hides it."""
    thick: npt.NDArray[np.bool_]
    """(y, x), True where THICK of the ground's picture is lost."""


def cover_pair(pair: xr.Dataset, settings: OverlaySettings) -> xr.Dataset:
    """`pair` with its input under the simulated sky that its record asks for; a pair without one is given back as it is.

    `cloudy` is `clear` under clouds, on the pixels that are valid in `clear`; `scl_cloudy` says cloud and shadow where they are; TRUTHS
    are added, and `provenance["overlay"]` holds the numbers drawn. The sun is that of the scene; where that does not state it, the one of
    mid-morning on that day. Detectors that saturate, light from the sides of clouds and parallax between bands are not simulated.

    Raises:
        DataError: a band has no known wavelength, or the scene was taken at night.
    """
    provenance = pair.attrs["provenance"]
    sky = provenance["pair"].get("sky")
    if sky is None or provenance.get("refused"):
        return pair
    facts, grid = provenance["clear"], geobox_of(pair)
    pixel_m = measure_pixel(grid)
    rng = make_rng(settings, provenance["area"], provenance["pair"]["id"])
    drawn, (sun, origin) = draw_settings(rng, settings), find_sun(facts, grid)
    clouds = draw_clouds(rng, (grid.shape.y, grid.shape.x), settings=_to_pixels(drawn, pixel_m), sun=sun, pixel_m=pixel_m)
    lengths = find_wavelengths(bands_of(pair), str(facts["sensor"]))
    clear = to_reflectance(pair["clear"].values)
    overlay = lay_clouds(clear, clouds, wavelengths_nm=lengths, sun=None if facts["sensor"] == SURFACE else sun, pixel_m=pixel_m)
    covered = pair.assign(_to_variables(pair, overlay, _to_stored(rng, clear, overlay, pair["valid_clear"].values)))
    record = {"seed": settings.seed, "sky": sky, **{name: round(value, 6) for name, value in drawn.items()}}
    record |= {"sun_azimuth_deg": sun.azimuth_deg, "sun_elevation_deg": sun.elevation_deg, "sun": origin}
    covered.attrs["provenance"] = {**provenance, "overlay": record}
    for variable in covered.data_vars.values():  # as `with_grid` marks them
        if {"y", "x"} <= set(variable.dims):
            variable.attrs["grid_mapping"] = "spatial_ref"
    return covered


def _to_variables(pair: xr.Dataset, overlay: Overlay, stored: npt.NDArray[np.uint16]) -> dict[str, Any]:
    """What of `pair` the sky changes or adds: the `stored` input and where it is valid, the truth, and classes if the target has some."""
    valid = pair["valid_clear"].values
    variables: dict[str, Any] = {"cloudy": (("band", "y", "x"), stored, {"units": OPTICAL_UNITS}), "valid_cloudy": (("y", "x"), valid)}
    for name, part in zip(TRUTHS, (overlay.cloud, overlay.shadow), strict=True):
        variables[name] = (("y", "x"), _to_bytes(part, valid))
    if "scl_clear" in pair:
        variables["scl_cloudy"] = (("y", "x"), classify_cover(pair["scl_clear"].values, overlay))
    return variables


def make_rng(settings: OverlaySettings, area: str, pair: str) -> np.random.Generator:
    """A Generator for the sky of one pair, whatever other pairs there are."""
    digest = hashlib.sha256(f"{settings.seed}/{area}/{pair}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))


def draw_settings(rng: np.random.Generator, settings: OverlaySettings) -> dict[str, float]:
    """One number from each range of the settings, by its name."""
    ranges = {
        "cover": settings.cover,
        "cloud_m": settings.cloud_m,
        "haze": settings.haze,
        "cirrus": settings.cirrus,
        "base_m": settings.base_m,
    }
    return {name: float(rng.uniform(*ends)) for name, ends in ranges.items()}


def _to_pixels(drawn: dict[str, float], pixel_m: float) -> SkySettings:
    """The numbers drawn for a sky over pixels of `pixel_m` metres."""
    return SkySettings(drawn["cover"], drawn["cloud_m"] / pixel_m, drawn["haze"], drawn["cirrus"], drawn["base_m"])


def find_sun(facts: dict[str, Any], grid: GeoBox) -> tuple[Sun, str]:
    """Where the sun stands in a scene, and how that is known: `stated`, or reckoned for MORNING_H of its day at the middle of the grid.

    Raises:
        DataError: the scene states a sun below the horizon.
    """
    azimuth, elevation = facts.get("sun_azimuth_deg"), facts.get("sun_elevation_deg")
    if azimuth is not None and elevation is not None:
        if elevation <= 0:
            raise DataError(f"{facts.get('item')}: the sun is at {elevation} degrees: clouds are laid over images taken by day alone")
        return Sun(float(azimuth), float(elevation)), "stated"
    centre = grid.boundingbox
    place = Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True)
    longitude, latitude = place.transform((centre.left + centre.right) / 2, (centre.bottom + centre.top) / 2)
    minutes = round((MORNING_H - longitude / 15) % 24 * 60) % (24 * 60)
    moment = datetime.fromisoformat(facts["time"]).replace(hour=minutes // 60, minute=minutes % 60)
    sun = compute_sun(moment, longitude, latitude)
    return Sun(round(sun.azimuth_deg, 3), round(max(sun.elevation_deg, LOWEST_SUN_DEG), 3)), "reckoned for half past ten, solar time"


def find_wavelengths(bands: tuple[str, ...], sensor: str) -> tuple[float, ...]:
    """Middle of each band of a sensor, nanometres.

    Raises:
        DataError: a band is not known.
    """
    known = {band.name: band.wavelength_nm for band in (GAOFEN_BANDS if is_gaofen(sensor) else SENTINEL2_BANDS)}
    known |= {PAN: PAN_NM} if is_gaofen(sensor) else {}
    unknown = [name for name in bands if name not in known]
    if unknown:
        raise DataError(f"bands {unknown} of {sensor} have no known wavelength, so no colour under clouds; known are {', '.join(known)}")
    return tuple(known[name] for name in bands)


def _to_stored(
    rng: np.random.Generator, clear: npt.NDArray[np.float32], overlay: Overlay, valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint16]:
    """The covered image as it is stored: noise of the light that was added, clamped, rounded, 0 where nothing is valid."""
    added = np.maximum(overlay.image - clear, 0)
    noisy = overlay.image + np.float32(NOISE) * added * rng.standard_normal(clear.shape, dtype=np.float32)
    stored: npt.NDArray[np.uint16] = np.rint(np.clip(noisy * REFLECTANCE_SCALE, 0, MAX_REFLECTANCE)).astype(np.uint16)
    stored[:, ~valid] = 0
    return stored


def _to_bytes(share: Image, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    stored: npt.NDArray[np.uint8] = np.where(valid, np.rint(share * FULL), 0).astype(np.uint8)
    return stored


def classify_cover(scl: npt.NDArray[np.uint8], overlay: Overlay) -> npt.NDArray[np.uint8]:
    """The scene classes (y, x) of a clear image once it lies under clouds: `scl` with cloud and shadow, SCL_NODATA where it says that."""
    classes, known = scl.copy(), scl != SCL_NODATA
    classes[(overlay.shadow >= SEEN_SHADOW) & known] = SCL_SHADOW[0]
    for loss, name in SCL_CLASSES:
        classes[(overlay.cloud >= loss) & known] = name
    return classes


def read_truth(pair: xr.Dataset) -> Truth | None:
    """What is true of the clouds of a pair's input; None if they are real."""
    if any(name not in pair for name in TRUTHS):
        return None
    lost, shaded = (pair[name].values.astype(np.float32) / np.float32(FULL) for name in TRUTHS)
    cloud, shadow = (np.minimum(part * np.float32(CLOUDY / seen), 1) for part, seen in ((lost, SEEN_CLOUD), (shaded, SEEN_SHADOW)))
    return Truth(cloud, np.minimum(shadow, 1 - lost), lost >= THICK)
