"""Sentinel-1 product metadata: manifest, calibration, noise and geolocation, parsed from text, and the files of a product opened.

Enters: XML text as ESA's processor (IPF) wrote it, or a product as a `.SAFE` folder or `.zip`. Leaves: records of numbers, and tables
sampled at image lines and pixels. Lines and pixels count from 0 at the centre of the first pixel, as the annotation counts them.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sereno.pipeline.errors import DataError, MissingError

Float = npt.NDArray[np.float64]
Quantity = Literal["sigmaNought", "betaNought", "gamma"]
"""Radar brightness per unit of ground area, of slant-range area, and of area perpendicular to the beam, all on the ellipsoid."""
FileKind = Literal["measurement", "annotation", "calibration", "noise"]

SPEED_OF_LIGHT_M_S: Final = 299_792_458.0
"""In vacuum, as the processor has it."""
MAX_XML_BYTES: Final = 64 * 2**20
"""Largest XML file that is parsed; real annotations have 2 MB."""
PARTS: Final[dict[str, FileKind]] = {
    "s1Level1MeasurementSchema": "measurement",
    "s1Level1ProductSchema": "annotation",
    "s1Level1CalibrationSchema": "calibration",
    "s1Level1NoiseSchema": "noise",
}
"""What the manifest calls the files of a polarisation."""
SAFE: Final = "{http://www.esa.int/safe/sentinel-1.0}"
S1: Final = "{http://www.esa.int/safe/sentinel-1.0/sentinel-1}"
LEVEL1: Final = "{http://www.esa.int/safe/sentinel-1.0/sentinel-1/sar/level-1}"
GML: Final = "{http://www.opengis.net/gml}"
POLARISATION_IN_NAME: Final = re.compile(r"[-_](vv|vh|hh|hv)[-_.]", re.IGNORECASE)


class ProductFile(NamedTuple):
    """One file of a product."""

    path: str
    """Relative to the product's folder."""
    size_bytes: int
    """Size as the manifest states it."""
    md5: str
    """Its MD5 as the manifest states it; empty if it states none."""


class Product(NamedTuple):
    """What `manifest.safe` says of a product."""

    start: str
    """First line, UTC, ISO 8601 with `Z`."""
    stop: str
    """Last line, likewise."""
    platform: str
    """For example `sentinel-1a`."""
    product_type: str
    """`GRD`, `SLC`, ..."""
    mode: str
    """`IW`, `EW`, `SM`."""
    polarisations: tuple[str, ...]
    """In the order of the manifest."""
    orbit_state: str
    """`ascending` or `descending`."""
    absolute_orbit: int
    """Orbit at the start."""
    relative_orbit: int
    """Track, 1 to 175."""
    slice_number: int | None
    """Place of this slice in its datatake; None if the product is not a slice."""
    total_slices: int | None
    """Slices of the datatake."""
    ipf: str
    """Version of the processor, for example `003.40`; empty if not stated."""
    footprint: tuple[tuple[float, float], ...]
    """Corners, longitude and latitude in degrees, not closed."""
    parts: dict[tuple[FileKind, str], ProductFile]
    """Files by kind and polarisation."""


class Vectors(NamedTuple):
    """A table given along some image lines, each with pixels of its own."""

    lines: Float
    """(n,) ascending; they may lie outside of the image."""
    pixels: tuple[Float, ...]
    """Ascending, per line."""
    values: tuple[Float, ...]
    """At those pixels."""


class AzimuthBlock(NamedTuple):
    """A factor that varies along track only, for a rectangle of the image."""

    first_line: int
    """First line of the rectangle."""
    last_line: int
    """Last line of it, included."""
    first_pixel: int
    """First pixel of it."""
    last_pixel: int
    """Last pixel of it, included."""
    lines: Float
    """Lines at which the factor is given."""
    values: Float
    """The factor."""


class Noise(NamedTuple):
    """Thermal noise of one polarisation, in units of squared digital numbers."""

    range_vectors: Vectors
    """Its variation across track; before IPF 2.9 all of it."""
    azimuth_blocks: tuple[AzimuthBlock, ...]
    """Factor along track, one block per sub-swath; empty before IPF 2.9."""


class GeolocationGrid(NamedTuple):
    """Where some pixels lie on the ground."""

    lines: Float
    """(n,)"""
    pixels: Float
    """(n,)"""
    longitudes_deg: Float
    """(n,)"""
    latitudes_deg: Float
    """(n,)"""
    heights_m: Float
    """(n,) above the ellipsoid: of the coarse terrain that the processor used."""
    slant_ranges_m: Float | None = None
    """(n,) distance from the sensor; None if the source does not say."""
    incidence_deg: Float | None = None
    """(n,) angle between the beam and the ellipsoid's normal; None if the source does not say."""


class GroundRange(NamedTuple):
    """How slant range becomes ground range, and so the pixel, along track."""

    lines: Float
    """(n,) image lines at which it is given, ascending; also outside of the image."""
    origins_m: Float
    """(n,) slant range at which the polynomial has its origin."""
    coefficients: tuple[Float, ...]
    """Per line: ground range in metres as a polynomial of slant range minus origin, the constant first."""
    spacing_m: float
    """Ground range between pixels."""


class Annotation(NamedTuple):
    """What the annotation of one polarisation says that reading needs."""

    shape: tuple[int, int]
    """Lines and pixels of the whole image."""
    grid: GeolocationGrid
    """Its geolocation grid."""
    ground_range: GroundRange | None
    """None for images in slant range."""


def parse_manifest(text: str | bytes, *, where: str) -> Product:
    """What `manifest.safe` says; `where` names the file in messages.

    Raises:
        DataError: it is not XML, or lacks something a Sentinel-1 level-1 product states.
    """
    root = _parse_xml(text, where)
    slice_number, total = (root.find(f".//{LEVEL1}{key}") for key in ("sliceNumber", "totalSlices"))
    names = [node.text or "" for node in root.findall(f".//{LEVEL1}transmitterReceiverPolarisation")]
    processor = root.find(f".//{SAFE}software[@name='Sentinel-1 IPF']")
    corners = [pair.split(",") for pair in _text_of(root, f".//{GML}coordinates", where).split()]
    try:
        return Product(
            start=f"{_text_of(root, f'.//{SAFE}startTime', where)}Z",
            stop=f"{_text_of(root, f'.//{SAFE}stopTime', where)}Z",
            platform=f"sentinel-1{_text_of(root, f'.//{SAFE}platform/{SAFE}number', where)}".lower(),
            product_type=_text_of(root, f".//{LEVEL1}productType", where),
            mode=_text_of(root, f".//{LEVEL1}mode", where),
            polarisations=tuple(names),
            orbit_state=_text_of(root, f".//{S1}pass", where).lower(),
            absolute_orbit=int(_text_of(root, f".//{SAFE}orbitNumber[@type='start']", where)),
            relative_orbit=int(_text_of(root, f".//{SAFE}relativeOrbitNumber[@type='start']", where)),
            slice_number=_optional_int(slice_number),
            total_slices=_optional_int(total),
            ipf="" if processor is None else processor.get("version", ""),
            footprint=tuple((float(longitude), float(latitude)) for latitude, longitude in corners),
            parts=_parse_parts(root),
        )
    except ValueError as error:
        raise DataError(f"{where}: {error}; the file is damaged, fetch the product again") from None


def _parse_parts(root: ET.Element) -> dict[tuple[FileKind, str], ProductFile]:
    parts: dict[tuple[FileKind, str], ProductFile] = {}
    for entry in root.iter("dataObject"):
        kind, place, stream = PARTS.get(entry.get("repID", "")), entry.find(".//fileLocation"), entry.find("byteStream")
        if kind is None or place is None or stream is None:
            continue
        path = place.get("href", "").removeprefix("./")
        found = POLARISATION_IN_NAME.search(PurePosixPath(path).name)
        if found:
            parts[kind, found[1].upper()] = ProductFile(path, int(stream.get("size", "0")), (stream.findtext("checksum") or "").strip())
    return parts


def parse_calibration(text: str | bytes, quantity: Quantity, *, where: str) -> Vectors:
    """The calibration table A of `quantity`: backscatter is DN^2 / A^2 (ESA, Sentinel-1 product specification S1-RS-MDA-52-7441, 6.3.2).

    Raises:
        DataError: it is not a calibration file, or its tables do not fit together.
    """
    nodes = _parse_xml(text, where).findall("calibrationVectorList/calibrationVector")
    return _to_vectors(nodes, quantity, where)


def parse_noise(text: str | bytes, *, where: str) -> Noise:
    """The thermal noise, in the form since IPF 2.9 (range times azimuth) or in the one before (a single list).

    Raises:
        DataError: it is not a noise file, or its tables do not fit together.
    """
    root = _parse_xml(text, where)
    single = root.findall("noiseVectorList/noiseVector")
    if single:
        return Noise(_to_vectors(single, "noiseLut", where), ())
    vectors = _to_vectors(root.findall("noiseRangeVectorList/noiseRangeVector"), "noiseRangeLut", where)
    return Noise(vectors, tuple(_to_block(node, where) for node in root.findall("noiseAzimuthVectorList/noiseAzimuthVector")))


def parse_annotation(text: str | bytes, *, where: str) -> Annotation:
    """Size, geolocation grid and ground range of an image.

    Raises:
        DataError: it is not the annotation of an image.
    """
    root = _parse_xml(text, where)
    names = ("line", "pixel", "longitude", "latitude", "height", "slantRangeTime", "incidenceAngle")
    nodes = root.findall("geolocationGrid/geolocationGridPointList/geolocationGridPoint")
    if not nodes:
        raise DataError(f"{where}: holds no geolocation grid, so it is not the annotation of an image (its root is <{root.tag}>)")
    columns = [np.array([_number_of(node, name, where) for node in nodes]) for name in names]
    columns[5] *= SPEED_OF_LIGHT_M_S / 2
    image = "imageAnnotation/imageInformation"
    shape = tuple(int(_number_of(root, f"{image}/{key}", where)) for key in ("numberOfLines", "numberOfSamples"))
    return Annotation((shape[0], shape[1]), GeolocationGrid(*columns), _parse_ground_range(root, image, where))


def _parse_ground_range(root: ET.Element, image: str, where: str) -> GroundRange | None:
    nodes = root.findall("coordinateConversion/coordinateConversionList/coordinateConversion")
    if not nodes:
        return None
    first = np.datetime64(_text_of(root, f"{image}/productFirstLineUtcTime", where), "ns")
    interval_s = _number_of(root, f"{image}/azimuthTimeInterval", where)
    times = np.array([np.datetime64(_text_of(node, "azimuthTime", where), "ns") for node in nodes])
    origins, spacing = [_number_of(node, "sr0", where) for node in nodes], _number_of(root, f"{image}/rangePixelSpacing", where)
    polynomials = tuple(_parse_numbers(_text_of(n, "srgrCoefficients", where), "srgrCoefficients", where) for n in nodes)
    return GroundRange((times - first) / np.timedelta64(1, "s") / interval_s, np.array(origins), polynomials, spacing)


def sample_vectors(vectors: Vectors, lines: Float, pixels: Float) -> Float:
    """The table at `lines` (n,) and `pixels` (m,), bilinear between its points and constant beyond them: (n, m)."""
    upper = np.clip(np.searchsorted(vectors.lines, lines), 1, max(len(vectors.lines) - 1, 1))
    if len(vectors.lines) == 1:
        return np.broadcast_to(np.interp(pixels, vectors.pixels[0], vectors.values[0]), (len(lines), len(pixels))).copy()
    needed = range(int(upper.min()) - 1, int(upper.max()) + 1)
    rows = np.stack([np.interp(pixels, vectors.pixels[i], vectors.values[i]) for i in needed])
    below, above = vectors.lines[upper - 1], vectors.lines[upper]
    share = np.clip((lines - below) / (above - below), 0, 1)[:, None]
    first = upper - 1 - needed.start
    sampled: Float = rows[first] * (1 - share) + rows[first + 1] * share
    return sampled


def sample_noise(noise: Noise, lines: Float, pixels: Float) -> Float:
    """Thermal noise at `lines` (n,) and `pixels` (m,), squared digital numbers: (n, m).

    Since IPF 2.9 it is the product of a range and an azimuth table (ESA, Thermal Denoising of Products Generated by the S-1 IPF,
    MPC-0392, 2017); beyond the blocks of the second the first stands alone.
    """
    eta = sample_vectors(noise.range_vectors, lines, pixels)
    for block in noise.azimuth_blocks:
        # Half a pixel of slack: sampled places may lie between the last pixel of a block and the first of the next.
        rows = np.flatnonzero((lines >= block.first_line - 0.5) & (lines < block.last_line + 0.5))
        columns = np.flatnonzero((pixels >= block.first_pixel - 0.5) & (pixels < block.last_pixel + 0.5))
        if rows.size and columns.size:
            part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            eta[part] *= np.interp(lines[rows], block.lines, block.values)[:, None]
    return eta


def compute_ground_range(conversion: GroundRange, lines: Float, slant_ranges_m: Float) -> Float:
    """Pixel of places at `lines` and `slant_ranges_m` (any one shape), linear along track between the polynomials around it."""
    upper = np.clip(np.searchsorted(conversion.lines, lines), 1, max(len(conversion.lines) - 1, 1))
    pixels = np.zeros(lines.shape)
    for number in range(max(int(upper.min()) - 1, 0), min(int(upper.max()) + 1, len(conversion.lines))):
        here = np.interp(lines, conversion.lines, np.arange(len(conversion.lines)) == number)  # its weight: 1 at its own line
        near = here > 0
        ground = np.polynomial.polynomial.polyval(slant_ranges_m[near] - conversion.origins_m[number], conversion.coefficients[number])
        pixels[near] += here[near] * ground / conversion.spacing_m
    return pixels


def list_members(path: Path) -> dict[str, int]:
    """Sizes in bytes of the files of a product (a `.SAFE` folder or `.zip`), by path relative to its `.SAFE` folder.

    Raises:
        DataError: the archive is damaged or not finished, or holds no `.SAFE` folder.
    """
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    root = root_of(path)
    with _open_zip(path) as archive:
        return {i.filename.removeprefix(f"{root}/"): i.file_size for i in archive.infolist() if i.filename.startswith(f"{root}/")}


def root_of(path: Path) -> str:
    """Name of the `.SAFE` folder inside an archive.

    Raises:
        DataError: the archive is damaged, or does not hold just one product.
    """
    with _open_zip(path) as archive:
        roots = {name.split("/")[0] for name in archive.namelist() if "/" in name}
    products = sorted(name for name in roots if name.endswith(".SAFE"))
    if len(products) != 1:
        raise DataError(f"{path}: expected one .SAFE folder in the archive, found {products or 'none'}")
    return products[0]


def read_file(path: str) -> bytes:
    """The bytes of a file, or of a member of an archive (`FOLDER/NAME.zip/NAME.SAFE/manifest.safe`).

    Raises:
        MissingError: there is no such file or member.
        DataError: the archive is damaged.
    """
    archive_path, member = split_archive(path)
    if not member:
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            raise MissingError(f"{path} does not exist: the product has moved or is not whole") from None
    with _open_zip(Path(archive_path)) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise MissingError(f"{archive_path} holds no {member}: the product is not whole") from None
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{archive_path}: {member} is damaged ({error}); fetch the product again") from error


def split_archive(path: str) -> tuple[str, str]:
    """A path as that of an archive and that of the member in it; the second is empty if the path leads into none."""
    head, dot, member = path.partition(".zip/")
    return (f"{head}.zip", member) if dot else (path, "")


def to_gdal(path: str) -> str:
    """A path as GDAL opens it: through `/vsizip/` if it leads into an archive."""
    return f"/vsizip/{path}" if split_archive(path)[1] and not path.startswith("/vsi") else path


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be opened as an archive ({error}): its copy may be unfinished, fetch it again") from error


def _parse_xml(text: str | bytes, where: str) -> ET.Element:
    """The root; expat itself refuses entities that grow without end (since 2.4.1), and external ones are never read."""
    if len(text) > MAX_XML_BYTES:
        raise DataError(f"{where}: {len(text)} bytes are too many for Sentinel-1 metadata")
    try:
        return ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"{where}: not valid XML ({error}); the file is damaged, fetch it again") from None


def _text_of(root: ET.Element, path: str, where: str) -> str:
    text = (root.findtext(path) or "").strip()
    if not text:
        raise DataError(f"{where}: lacks {re.sub(r'{[^}]*}', '', path).removeprefix('.//')}, which Sentinel-1 products state")
    return text


def _number_of(root: ET.Element, path: str, where: str) -> float:
    return float(_parse_numbers(_text_of(root, path, where), path, where)[0])


def _optional_int(node: ET.Element | None) -> int | None:
    return int(node.text) if node is not None and node.text else None


def _parse_numbers(text: str, name: str, where: str) -> Float:
    try:
        return np.array(text.split(), np.float64)
    except ValueError as error:
        raise DataError(f"{where}: {name} holds something else than numbers ({error})") from None


def _to_vectors(nodes: Sequence[ET.Element], name: str, where: str) -> Vectors:
    if not nodes:
        raise DataError(f"{where}: holds no table of {name}: it is another file than expected")
    lines = np.array([_number_of(node, "line", where) for node in nodes])
    pixels, values = (tuple(_parse_numbers(_text_of(node, key, where), key, where) for node in nodes) for key in ("pixel", name))
    paired: list[tuple[Any, Any]] = list(zip(pixels, values, strict=True))
    if any(p.size != v.size or (np.diff(p) <= 0).any() for p, v in paired) or (np.diff(lines) <= 0).any():
        raise DataError(f"{where}: the table of {name} has not one value per pixel in ascending order; the file is damaged")
    return Vectors(lines, pixels, values)


def _to_block(node: ET.Element, where: str) -> AzimuthBlock:
    keys = ("firstAzimuthLine", "lastAzimuthLine", "firstRangeSample", "lastRangeSample")
    first_line, last_line, first_pixel, last_pixel = (int(_number_of(node, key, where)) for key in keys)
    lines, values = (_parse_numbers(_text_of(node, key, where), key, where) for key in ("line", "noiseAzimuthLut"))
    if lines.size != values.size:
        raise DataError(f"{where}: noiseAzimuthLut has {values.size} values for {lines.size} lines; the file is damaged")
    return AzimuthBlock(first_line, last_line, first_pixel, last_pixel, lines, values)
