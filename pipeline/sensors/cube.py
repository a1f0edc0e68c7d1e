"""Hyperspectral cubes in a folder (`.mat`, `.npy`, GeoTIFF): a file in, reflectance with a name per wavelength out.

Most cubes say nothing of where they lie: each then gets ground of its own, far from all others, with pixels of 1 m, so that blocks and
splits mean what they mean elsewhere. Wavelengths are never guessed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.warp import transform_bounds

from sereno.pipeline.arrays import UNNAMED, read_arrays
from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.layouts import WAVELENGTHS_SUFFIX, find_cubes
from sereno.pipeline.mosaic import Part, Reading, lay_items, lose_item, to_entry, to_reading
from sereno.pipeline.pairs import AssetRecord, GridRecord, Group, ItemRecord, Lock, SceneRecord
from sereno.pipeline.scene import MAX_REFLECTANCE, REFLECTANCE_SCALE, Bool2d
from sereno.pipeline.sensors.assets import LossError, check_unchanged, select_assets
from sereno.pipeline.signing import Resolver

NOWHERE: Final = "EPSG:3395"
"""CRS of cubes that lie nowhere: metres, of one piece all round the world."""
APART_M: Final = 20_000
"""Cubes that lie nowhere begin so far from each other, metres, and none is wider than half of it: the rest is empty ground between them."""
PLACES: Final = 1000
"""So many cubes that lie nowhere have room side by side: from 0 degrees eastwards to 180 there are 20 037 508 m."""
TIME: Final = "1970-01-01T00:00:00Z"
"""Nominal: cubes state no time."""
WAVELENGTH_NAMES: Final = ("wavelengths", "wavelength", "lambda", "wl", "bands_nm")
"""Variables of a `.mat` file that may hold wavelengths."""
CUBE: Final = "cube"
"""Name of the asset, and of its role in a group."""
MICROMETRES_BELOW: Final = 100.0
"""Wavelengths smaller than this are stated in micrometres."""


class Cube(NamedTuple):
    """One cube as it lies in its file."""

    values: npt.NDArray[Any]
    """(band, y, x) in the file's type."""
    wavelengths_nm: tuple[float, ...]
    """One per band."""
    grid: GeoBox | None
    """Where it lies; None if the file does not say."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of its bands: `550nm`."""
        return tuple(f"{wavelength:g}nm" for wavelength in self.wavelengths_nm)


def list_cube(folder: Path, area: str) -> Lock:
    """The lock of one cube of `folder`: one scene, one group.

    NOTE: where a cube is laid that lies nowhere depends on how many files come before it by name: one that is added moves those after it,
    and they are read again. A place drawn from the name alone could be that of another cube.

    Raises:
        MissingError: there is no such folder or cube.
        DataError: it cannot be read, states no wavelengths, or lies nowhere and finds no room.
    """
    files = find_cubes(folder)
    if area not in files:
        raise MissingError(f"{folder} holds no cube {area!r}; it has {', '.join(files) or 'none'}")
    path = folder / files[area]
    cube = open_cube(path)
    grid = cube.grid or _lay_cube(cube, list(files).index(area), path)
    asset = AssetRecord(href=path.name, checksum="1220" + _hash(path), size_bytes=path.stat().st_size)
    item = ItemRecord(
        item=path.name,
        collection="cubes",
        sensor="cube",
        time=TIME,
        crs=str(grid.crs),
        bbox=transform_bounds(str(grid.crs), "EPSG:4326", *grid.boundingbox),
        assets={CUBE: asset},
        properties={"time": "nominal: cubes state none", "place": "as stated" if cube.grid else "nominal: its file states none"},
    )
    scene = SceneRecord(id=area, sensor="cube", time=TIME, items=(item,))
    group = Group(id=area, scenes={CUBE: area})
    record = GridRecord.from_geobox(grid)
    return Lock(
        area=area,
        catalogue=str(folder),
        grid=record,
        scenes={area: scene},
        pairs=(),
        task="snapshot-reconstruction",
        groups=(group,),
        refused=(),
    )


def _lay_cube(cube: Cube, number: int, path: Path) -> GeoBox:
    """Ground for a cube that lies nowhere, from its number among the files of its folder; pixels of 1 m."""
    rows, columns = cube.values.shape[1:]
    if columns > APART_M // 2:
        raise DataError(
            f"cube {path} states no place and has {columns} columns, for which there is no room (expected {APART_M // 2} at most): cut it "
            "into several, or give it a place as a GeoTIFF"
        )
    if number >= PLACES:
        raise DataError(
            f"cube {path} states no place and is number {number + 1} of its folder, which has room for {PLACES}: take others into a second "
            "folder and dataset, or give them places as GeoTIFF"
        )
    return GeoBox((rows, columns), Affine(1, 0, APART_M * number, 0, -1, rows), NOWHERE)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_scene(record: SceneRecord, geobox: GeoBox, settings: IngestSettings, resolver: Resolver) -> Reading:
    """The cube on `geobox`, its own grid: reflectance of `settings.bands` (all if empty), valid where all bands are finite.

    Numbers are divided by `settings.cube_scale`; without one floats are reflectance already, and integers reach from 0 to 1.

    Raises:
        MissingError: a band is wanted that the cube does not have.
    """
    cube = open_cube(Path(resolver(record.items[0].assets[CUBE].href)))
    bands = settings.bands or cube.bands
    unknown = [band for band in bands if band not in cube.bands]
    if unknown:
        raise MissingError(
            f"{record.item}: has no band {', '.join(unknown)}; correct pipeline.ingest.bands, known are {', '.join(cube.bands)}"
        )
    mosaic = lay_items(record.items, geobox, partial(_read_item, cube=cube, bands=bands, settings=settings, resolver=resolver))
    return to_reading(record, mosaic, geobox, bands=bands, settings=settings)


def _read_item(  # noqa: PLR0913 - what `lay_items` gives, and what is bound
    item: ItemRecord, geobox: GeoBox, wanted: Bool2d, *, cube: Cube, bands: tuple[str, ...], settings: IngestSettings, resolver: Resolver
) -> Part:
    asset = select_assets(item, (CUBE,), resolver, settings)[CUBE]
    try:
        check_unchanged(asset)
    except LossError as loss:
        return lose_item(item, loss.words, n_bands=len(bands), dtype=np.uint16, asset=CUBE)
    if cube.values.shape[1:] != tuple(geobox.shape):
        words = f"it has {cube.values.shape[1:]} pixels, its grid in the lock {tuple(geobox.shape)}: run `sereno query` again"
        return lose_item(item, words, n_bands=len(bands), dtype=np.uint16, asset=CUBE)
    scale = settings.cube_scale or find_scale(cube.values.dtype)
    values = cube.values[[cube.bands.index(band) for band in bands]]
    valid: Bool2d = np.isfinite(values).all(axis=0)
    data, n_clamped = np.zeros(values.shape, np.uint16), 0
    for target, band in zip(data, values, strict=True):
        scaled = np.rint(np.where(valid, band, 0) * (REFLECTANCE_SCALE / scale))
        n_clamped += int(np.count_nonzero(valid & ((scaled < 0) | (scaled > MAX_REFLECTANCE))))
        target[...] = np.clip(scaled, 0, MAX_REFLECTANCE).astype(np.uint16)
    facts = {
        "offset": 0,
        "offset_reason": "cubes have none",
        "offset_check": None,
        "calibration": f"reflectance = number / {scale:g}",
        "n_clamped": n_clamped,
        "wavelengths_nm": list(cube.wavelengths_nm),
    }
    whole = (slice(0, geobox.shape.y), slice(0, geobox.shape.x))
    return Part(whole, data, valid & wanted, facts, (to_entry(item, CUBE, "used"),))


def find_scale(dtype: np.dtype[Any]) -> float:
    """The number that is reflectance 1 where nothing is said: 1 for floats, the largest number of the type for integers."""
    return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)


def open_cube(path: Path) -> Cube:
    """The cube in a file, whatever its format.

    Raises:
        MissingError: there is no such file, or a package that reads it is not installed.
        DataError: it holds no cube, or states no wavelengths.
    """
    if not path.is_file():
        raise MissingError(f"cube {path} does not exist: name the folder that holds it in pipeline.query.catalogue")
    values, stated, grid = OPENERS.get(path.suffix.lower(), _open_image)(path)
    wavelengths = _read_sidecar(path) or stated
    if not wavelengths:
        raise DataError(
            f"cube {path} states no wavelengths: write {path.stem}{WAVELENGTHS_SUFFIX} beside it, one number in nanometres per band"
        )
    return Cube(_to_bands_first(values, len(wavelengths), path), wavelengths, grid)


def _to_bands_first(values: npt.NDArray[Any], n_bands: int, path: Path) -> npt.NDArray[Any]:
    """(band, y, x), of an array whose bands lie along the last axis that has as many places, or the first."""
    if values.ndim != 3 or values.dtype.kind not in "uif":
        raise DataError(
            f"cube {path} holds {values.dtype} numbers of shape {values.shape}: expected (row, column, band) or (band, row, column)"
        )
    if n_bands not in values.shape:
        raise DataError(
            f"cube {path} is of shape {values.shape}, and {n_bands} wavelengths are stated, as many as no axis has: correct them in "
            f"{path.stem}{WAVELENGTHS_SUFFIX} beside it, one number in nanometres per band"
        )
    axis = 2 if values.shape[2] == n_bands else 0 if values.shape[0] == n_bands else 1
    return np.ascontiguousarray(np.moveaxis(values, axis, 0))


def _read_sidecar(path: Path) -> tuple[float, ...]:
    """Wavelengths that stand beside a cube, nanometres; none if nothing does."""
    beside = path.with_name(path.stem + WAVELENGTHS_SUFFIX)
    if not beside.is_file():
        return ()
    try:
        return _to_nanometres([float(word) for word in beside.read_text().replace(",", " ").split()])
    except ValueError:
        raise DataError(f"{beside} must hold numbers alone, one wavelength in nanometres per line") from None


def _to_nanometres(numbers: list[float]) -> tuple[float, ...]:
    scale = 1000.0 if numbers and max(numbers) < MICROMETRES_BELOW else 1.0
    return tuple(round(number * scale, 3) for number in numbers)


Opened = tuple[npt.NDArray[Any], tuple[float, ...], GeoBox | None]
"""Numbers, wavelengths in nanometres (none if it states none), and the place if there is one."""


def _open_npy(path: Path) -> Opened:
    return read_arrays(path, what=CUBE)[UNNAMED], (), None


def _open_mat(path: Path) -> Opened:
    arrays = read_arrays(path, what=CUBE)
    cubes = [name for name, value in arrays.items() if value.ndim == 3]
    if len(cubes) != 1:
        raise DataError(
            f"cube {path} holds {len(cubes)} arrays of three dims ({', '.join(cubes) or 'none'}), expected one: save the cube alone, and "
            "its wavelengths"
        )
    named = next((arrays[name] for name in arrays if name.lower() in WAVELENGTH_NAMES), np.empty(0))
    if named.dtype.kind not in "uif":
        raise DataError(f"cube {path}: its wavelengths are {named.dtype}, expected numbers in nanometres: write them as such")
    return arrays[cubes[0]], _to_nanometres([float(number) for number in named.ravel()]), None


def _open_image(path: Path) -> Opened:
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as source:
            stated = [_find_wavelength(source.descriptions[band - 1], source.tags(band)) for band in source.indexes]
            is_placed = source.crs is not None and source.crs.is_projected and not (source.transform.b or source.transform.d)
            grid = GeoBox(source.shape, source.transform, str(source.crs)) if is_placed else None
            values: npt.NDArray[Any] = source.read()
    except RasterioIOError as error:
        raise DataError(f"cube {path} is no image that can be read ({error}): copy it again, or save it as .npy") from None
    numbers = [number for number in stated if number is not None]
    return values, _to_nanometres(numbers) if len(numbers) == len(stated) else (), grid


def _find_wavelength(description: str | None, tags: Mapping[str, str]) -> float | None:
    """Wavelength that the tags of a band state, or its description where that is a number, with or without `nm`."""
    words = tags.get("wavelength") or (description or "").lower().removesuffix("nm")
    try:
        return float(words)
    except ValueError:
        return None


OPENERS: Final[Mapping[str, Callable[[Path], Opened]]] = {".npy": _open_npy, ".mat": _open_mat}
"""By suffix; everything else is an image."""
