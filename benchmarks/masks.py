"""How far cloud masks agree on real images: our two sets of rules and s2cloudless, against each other, reference masks and SCL.

python benchmarks/masks.py SAMPLES

SAMPLES is a folder with `s2/eolearn` (eo-learn's example patch), `s2/sen2r` (sen2r's Barbellino scenes) and `sen12mscr/glfcr` (a triplet of
SEN12MS-CR). Pixels count as cloud from a probability of one half on, before anything is grown. Needs the extra `s2cloudless`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.bands import L1C_BANDS
from sereno.pipeline.clouds import CLOUDY, Agreement, compare_masks, find_in_scl
from sereno.pipeline.config import CloudMethod, MaskSettings
from sereno.pipeline.detectors import Image, detect_clouds
from sereno.pipeline.scene import REFLECTANCE_SCALE, Bool2d, with_grid

EOLEARN_DATES: Final = (("2015-08-20", 2), ("2015-07-31", 1), ("2015-09-09", 4), ("2015-08-30", 3), ("2015-07-11", 0))
"""Days of the images in REFERENCE_SCENES.npy, and where each is in the series of masks."""
EOLEARN_MASKS: Final = {"reference": "CLM_S2C", "reference over dates": "CLM_INTERSSIM"}
"""Masks of eo-learn: s2cloudless smoothed and grown; the same and a comparison with other dates, both together."""
SEN2R_BANDS: Final = tuple(name for name in L1C_BANDS if name != "B8A")
"""sen2r leaves B8A out of its 10 m products."""
SEN2R_DAYS: Final = ("20170703", "20190723")
TRIPLET: Final = "ROIs1970_fall_139_p839.tif"


class Row(NamedTuple):
    """Two masks of one image."""

    image: str
    """Place and day."""
    first: str
    """Method, or whose mask."""
    second: str
    """That which is compared with it."""
    agreement: Agreement
    """Shares of all pixels."""


def to_pair(values: npt.NDArray[np.uint16], bands: tuple[str, ...]) -> xr.Dataset:
    """Stored top-of-atmosphere reflectance (band, y, x) at 10 m as the input of a pair that is valid everywhere."""
    shape = values.shape[1:]
    variables = {"cloudy": (("band", "y", "x"), values), "valid_cloudy": (("y", "x"), np.ones(shape, bool))}
    pair = xr.Dataset(variables, coords={"band": list(bands)}, attrs={"provenance": {"cloudy": {"sensor": "sentinel2-l1c"}}})
    return with_grid(pair, GeoBox(shape, Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633"))


def find(pair: xr.Dataset, method: CloudMethod) -> Bool2d:
    """Cloud (y, x) in the input of `pair`."""
    cloud: Bool2d = detect_clouds(Image(pair, "cloudy", "benchmark"), method, MaskSettings(method=method)).cloud >= CLOUDY
    return cloud


def compare(image: str, masks: dict[str, Bool2d], *names: tuple[str, str]) -> Iterator[Row]:
    """A row for each pair of names."""
    for first, second in names:
        yield Row(image, first, second, compare_masks(masks[first], masks[second], np.ones_like(masks[first])))


def compare_eolearn(samples: Path) -> Iterator[Row]:
    """Slovenia, five days: our methods for L1C against both reference masks, and against each other."""
    folder = samples / "s2" / "eolearn"
    scenes = np.load(folder / "REFERENCE_SCENES.npy").transpose(0, 3, 1, 2)
    series = {name: np.load(folder / "TestEOPatch" / "mask" / f"{file}.npy")[..., 0].astype(bool) for name, file in EOLEARN_MASKS.items()}
    for scene, (day, place) in zip(scenes, EOLEARN_DATES, strict=True):
        pair = to_pair(np.rint(scene * REFLECTANCE_SCALE).astype(np.uint16), L1C_BANDS)
        masks = {name: values[place] for name, values in series.items()}
        masks |= {"s2cloudless": find(pair, "s2cloudless"), "threshold": find(pair, "threshold")}
        masks["haze"] = find(pair, "haze")
        combinations = [(ours, reference) for ours in ("s2cloudless", "threshold", "haze") for reference in series]
        yield from compare(f"Slovenia {day}", masks, *combinations, ("threshold", "s2cloudless"), ("haze", "threshold"))


def read(path: Path) -> npt.NDArray[Any]:
    """All bands (band, y, x)."""
    with rasterio.open(path) as file:
        values: npt.NDArray[Any] = file.read()
        return values


def compare_sen2r(samples: Path) -> Iterator[Row]:
    """An alpine lake, two days: our rules on L1C against the scene classification of L2A. s2cloudless lacks B8A there."""
    for day in SEN2R_DAYS:
        folder = samples / "s2" / "sen2r"
        pair = to_pair(read(folder / f"S2A1C_{day}_022_Barbellino_TOA_10.tif"), SEN2R_BANDS)
        classes = read(folder / f"S2A2A_{day}_022_Barbellino_SCL_10.tif")[0].repeat(2, axis=0).repeat(2, axis=1)
        masks = {"threshold": find(pair, "threshold"), "haze": find(pair, "haze"), "SCL": find_in_scl(classes).cloud}
        yield from compare(f"Barbellino {day[:4]}-{day[4:6]}-{day[6:]}", masks, ("threshold", "SCL"), ("haze", "SCL"))


def compare_triplet(samples: Path) -> Iterator[Row]:
    """A triplet of SEN12MS-CR: our rules against s2cloudless, in the input and in the target."""
    for role in ("cloudy", "cloudfree"):
        pair = to_pair(read(samples / "sen12mscr" / "glfcr" / f"s2_{role}" / TRIPLET).astype(np.uint16), L1C_BANDS)
        masks: dict[str, Bool2d] = {name: find(pair, name) for name in ("threshold", "s2cloudless", "haze")}
        yield from compare(f"SEN12MS-CR {role}", masks, ("threshold", "s2cloudless"), ("haze", "s2cloudless"), ("haze", "threshold"))


def to_table(rows: list[Row]) -> str:
    """The rows in Markdown, percentages of all pixels."""
    heads = ("image", "first", "second", "cloud in both", "first alone", "second alone", "in none", "IoU")
    lines = [heads, tuple("---" for _ in heads)]
    for image, first, second, found in rows:
        shares = (f"{100 * share:.1f} %" for share in found[:4])
        lines.append((image, first, second, *shares, "no cloud" if found.iou is None else f"{found.iou:.2f}"))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="folder of sample files")
    samples = parser.parse_args().samples
    print(to_table([*compare_eolearn(samples), *compare_sen2r(samples), *compare_triplet(samples)]))


if __name__ == "__main__":
    main()
