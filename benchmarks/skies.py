"""How like real clouds the simulated ones are that `align` lays over clear images, in numbers and in a picture.

python benchmarks/skies.py SAMPLES [PICTURE]

SAMPLES holds `sen12mscr`, `s2/eolearn` and `worldcereal`. Prints the spectra of real and simulated cloud of equal brightness in red,
those of a real and a simulated veil, the light left in real and simulated shadows, and how much of simulated clouds detectors find.
PICTURE, a PNG, shows the real cloudy image and the clear one beside simulated skies over the clear one: above in true colour, below
in SWIR, NIR and red.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from PIL import Image as Picture

from sereno.pipeline.atmosphere import Sun
from sereno.pipeline.bands import L1C_BANDS, SENTINEL2_BANDS
from sereno.pipeline.clouds import CLOUDY, SCL_SHADOW, CloudShadow, compare_with_truth
from sereno.pipeline.config import CloudMethod, MaskSettings, OverlaySettings
from sereno.pipeline.detectors import Image, detect_clouds
from sereno.pipeline.overlay import SHADE, SHADE_NM, Clouds, lay_clouds
from sereno.pipeline.scene import REFLECTANCE_SCALE, with_grid
from sereno.pipeline.skies import cover_pair, read_truth

Array = npt.NDArray[np.float32]

TRIPLET: Final = "sen12mscr/glfcr/{}/ROIs1970_fall_139_p839.tif"
SLOVENIA: Final = "s2/eolearn/REFERENCE_SCENES.npy"
VEIL_DAY: Final = 1
"""Place of 2015-07-31 in that file."""
CLEAR_DAY: Final = 4
"""Place of 2015-07-11."""
SUN: Final = Sun(155.0, 47.0)
"""About that of the triplet: early October at 33 degrees north, half past ten."""
BRIGHTNESS: Final = ((0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.9))
"""Reflectance in red between which clouds are compared."""
N_SKIES: Final = 12
"""Skies over the clear image of the triplet."""
VEIL: Final = Clouds(*(np.full((101, 100), value, np.float32) for value in (2.2, 0.12, 1.0, 0.0)))
"""An even veil over an image of that file, as thick as that of 2015-07-31 was found to be: droplets, ice, relief, shadow."""
METHODS: Final[tuple[CloudMethod, ...]] = ("threshold", "haze", "s2cloudless")
"""Those that need no classification and no weights."""
GROUND_CLASSES: Final = (4, 5)
"""Plants and bare ground in the classification, ..."""
MIN_GROUND: Final = 0.85
"""... which fill so much of a clear date, ..."""
CLEAR_CLASSES: Final = (2, 4, 5, 6, 7)
"""... and with dark ground, water and what is not told ..."""
MIN_CLEAR: Final = 0.97
"""... so much."""
SHADOW_DAYS: Final = 10
"""A shadow is compared with the nearest clear date within so many days, ..."""
SHADOW_PX: Final = 15
"""... if it is larger than this."""
FLANDERS_BANDS: Final = ("B05", "B06", "B07", "B8A", "B11", "B12")
"""What the series of these sites hold, in that order."""


class Covered(NamedTuple):
    """One simulated sky over the clear image of the triplet."""

    pair: xr.Dataset
    """The pair with its truth."""
    image: Array
    """(band, y, x) reflectance."""


def read_triplet(samples: Path, kind: str) -> Array:
    """The image `kind` of the triplet as reflectance, (band, y, x)."""
    with rasterio.open(samples / TRIPLET.format(kind)) as source:
        image: Array = source.read().astype(np.float32) / np.float32(REFLECTANCE_SCALE)
    return image


def cover_triplet(clear: Array, n_skies: int) -> list[Covered]:
    """The clear image under so many skies of the settings' defaults."""
    stored = np.rint(clear * REFLECTANCE_SCALE).astype(np.uint16)
    grid = GeoBox.from_bbox((500_000, 3_700_000, 502_560, 3_702_560), "EPSG:32650", resolution=10)
    facts = {"sensor": "sen12mscr-s2", "sun_azimuth_deg": SUN.azimuth_deg, "sun_elevation_deg": SUN.elevation_deg, "time": "2018-10-01"}
    valid = np.ones(clear.shape[1:], bool)
    covered = []
    for sky in range(1, n_skies + 1):
        variables: dict[str, Any] = {}
        for role in ("cloudy", "clear"):
            variables |= {role: (("band", "y", "x"), stored), f"valid_{role}": (("y", "x"), valid)}
        provenance = {"area": "triplet", "pair": {"id": f"sky{sky}", "sky": sky}, "cloudy": facts, "clear": facts}
        pair = cover_pair(
            with_grid(xr.Dataset(variables, coords={"band": list(L1C_BANDS)}, attrs={"provenance": provenance}), grid), OverlaySettings()
        )
        covered.append(Covered(pair, pair["cloudy"].values.astype(np.float32) / np.float32(REFLECTANCE_SCALE)))
    return covered


def print_spectra(real: Array, skies: list[Covered]) -> None:
    """Medians by band of cloud of equal brightness in red."""
    print(f"| cloud, red | share | {' | '.join(L1C_BANDS)} |\n| --- | --- |{' --- |' * len(L1C_BANDS)}")
    simulated = np.concatenate([sky.image.reshape(len(L1C_BANDS), -1) for sky in skies], axis=1)
    for low, high in BRIGHTNESS:
        for name, image in (("real", real.reshape(len(L1C_BANDS), -1)), ("simulated", simulated)):
            inside = (image[3] >= low) & (image[3] < high)
            print_row(f"{name}, {low:g} to {high:g} | {inside.mean():.0%}", np.median(image[:, inside], axis=1))


def print_row(name: str, values: npt.NDArray[Any]) -> None:
    """One row of a table in Markdown."""
    print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")


def print_veil(samples: Path) -> None:
    """Median by band of the veil over Slovenia, of the clear day before it, and of that under an even simulated veil."""
    scenes = np.moveaxis(np.load(samples / SLOVENIA).astype(np.float32), -1, 1)
    lengths = tuple(band.wavelength_nm for band in SENTINEL2_BANDS)
    simulated = lay_clouds(scenes[CLEAR_DAY], VEIL, wavelengths_nm=lengths, sun=Sun(145.0, 60.0), pixel_m=10).image
    for name, image in (("real veil", scenes[VEIL_DAY]), ("simulated veil", simulated), ("clear", scenes[CLEAR_DAY])):
        print_row(f"{name} | 100%", np.median(image.reshape(len(L1C_BANDS), -1), axis=1))


def print_shadows(samples: Path) -> None:
    """Light left in shadows of the sites in Flanders against the nearest clear date, and in a full simulated shadow."""
    ratios = [ratio for folder in sorted((samples / "worldcereal").iterdir()) if folder.is_dir() for ratio in measure_shadows(folder)]
    lengths = {band.name: band.wavelength_nm for band in SENTINEL2_BANDS}
    print(f"\n| shadow | dates | {' | '.join(FLANDERS_BANDS)} |\n| --- | --- |{' --- |' * len(FLANDERS_BANDS)}")
    print_row(f"real | {len(ratios)}", np.median(ratios, axis=0))
    print_row("simulated, full | ", np.interp([lengths[name] for name in FLANDERS_BANDS], SHADE_NM, SHADE))


def measure_shadows(folder: Path) -> list[npt.NDArray[np.float64]]:
    """Per date of one site with a shadow, its reflectance over that of the same ground on the nearest clear date, (band,)."""
    from worldcereal import read_series  # it needs h5netcdf

    series = read_series(folder)
    days = series.times.astype("datetime64[s]").astype(np.int64) / 86_400
    clear = np.isin(series.scl, CLEAR_CLASSES).mean((1, 2)) > MIN_CLEAR
    clear &= np.isin(series.scl, GROUND_CLASSES).mean((1, 2)) > MIN_GROUND
    ratios = []
    for place, classes in enumerate(series.scl):
        gaps = np.where(clear, np.abs(days - days[place]), np.inf)
        gaps[place], shaded = np.inf, np.isin(classes, SCL_SHADOW)
        if gaps.min() <= SHADOW_DAYS and shaded.sum() > SHADOW_PX:
            seen, lit = (series.optical[date][:, shaded].mean(axis=1) for date in (place, int(gaps.argmin())))
            ratios.append(seen / lit)
    return ratios


def print_findings(skies: list[Covered]) -> None:
    """What detectors find of the simulated clouds, all skies together."""
    print("\n| method | thick found | thin found | clear called cloud | shadow found | clear called shadow |\n|" + " --- |" * 6)
    for method in METHODS:
        found = [detect_clouds(Image(sky.pair, "cloudy", "triplet"), method, MaskSettings(method=method)) for sky in skies]
        truths = [truth for sky in skies if (truth := read_truth(sky.pair)) is not None]
        seen = CloudShadow(*(np.concatenate([getattr(one, kind) >= CLOUDY for one in found]) for kind in ("cloud", "shadow")))
        true = CloudShadow(*(np.concatenate([getattr(one, kind) >= CLOUDY for one in truths]) for kind in ("cloud", "shadow")))
        thick = np.concatenate([one.thick for one in truths])
        shares = compare_with_truth(seen, true, thick, np.ones_like(thick))
        print(f"| {method} | {' | '.join('none there' if share is None else f'{share:.1%}' for share in shares)} |")


def draw_picture(images: list[Array], path: Path) -> None:
    """The images side by side, in true colour above, B11, B8A and B04 below."""
    rows = []
    for bands, white in (((3, 2, 1), 0.5), ((11, 8, 3), 0.6)):
        shown = [np.clip(image[list(bands)] / white, 0, 1) ** 0.7 for image in images]
        rows.append(np.concatenate([np.pad(image, ((0, 0), (0, 4), (0, 4)), constant_values=1) for image in shown], axis=2))
    pixels = (np.concatenate(rows, axis=1) * 255).astype(np.uint8).transpose(1, 2, 0)
    Picture.fromarray(pixels).save(path)


def main() -> None:
    """Print the tables, and draw the picture if a place for it is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    chosen = parser.parse_args()
    cloudy, clear = read_triplet(chosen.samples, "s2_cloudy"), read_triplet(chosen.samples, "s2_cloudfree")
    skies = cover_triplet(clear, N_SKIES)
    print_spectra(cloudy, skies)
    print_veil(chosen.samples)
    print_shadows(chosen.samples)
    print_findings(skies)
    if chosen.picture is not None:
        draw_picture([cloudy, clear, *(sky.image for sky in skies[:4])], chosen.picture)


if __name__ == "__main__":
    main()
