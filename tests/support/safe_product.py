"""A small Sentinel-1 GRD product made of nothing: a satellite flies north along a straight line over flat ground of one UTM zone.

What is seen at a place is a function of that place, so a reader that calibrates and geocodes rightly gives it back.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.warp import transform

Float = npt.NDArray[np.float64]
Ground = Callable[[Float, Float], Float]

EPSG: Final = "EPSG:32632"
TRACK_X: Final = 200_000.0
"""Where the satellite flies, metres east."""
SOUTH: Final = 5_000_000.0
"""First line of the image, metres north."""
ALTITUDE: Final = 700_000.0
NEAR: Final = 430_000.0
"""Ground range of the first pixel."""
SPACING: Final = 10.0
INTERVAL_S: Final = 0.0015
FIRST_TIME: Final = np.datetime64("2021-06-03T05:00:00", "us")
NAME: Final = "S1A_IW_GRDH_1SDV_20210603T050000_20210603T050025_038000_047C0A_1234"
LIGHT: Final = 299_792_458.0


class Image(NamedTuple):
    """What a product is made of."""

    shape: tuple[int, int] = (300, 400)
    """Lines and pixels."""
    bands: tuple[str, ...] = ("VV", "VH")
    ipf: str = "003.40"
    """Before 002.90 noise has one table only."""
    noise: float = 900.0
    """Thermal noise, squared digital numbers."""
    hill_m: float = 0.0
    """Height of every third control point."""
    nodata: tuple[slice, slice] | None = None
    """Part of the image without data."""


def see_smoothly(x: Float, y: Float) -> Float:
    """Backscatter that changes slowly: between 0.03 and 0.3."""
    return 0.1 * 3 ** (np.sin(x / 300) * np.cos(y / 400))


def gain_at(lines: Float, pixels: Float) -> Float:
    """Calibration of gamma0: linear along both axes, so that tables hold it exactly."""
    return 500.0 + 0.1 * lines - 0.05 * pixels


def noise_at(image: Image, lines: Float, pixels: Float) -> Float:
    """Thermal noise: linear across track, times a factor linear along track since IPF 2.9."""
    across = image.noise * (1 + pixels / image.shape[1])
    return across * (1 + lines / image.shape[0]) if image.ipf >= "002.90" else across + 0 * lines


def place_of(lines: Float, pixels: Float, height: Float | float = 0.0) -> tuple[Float, Float]:
    """Where the ground of that height lies that is seen at lines and pixels: x and y in metres."""
    squared = (NEAR + SPACING * pixels) ** 2 + ALTITUDE**2
    return TRACK_X + np.sqrt(squared - (ALTITUDE - height) ** 2), SOUTH + SPACING * lines


def write_product(folder: Path, ground: Ground = see_smoothly, image: Image = Image()) -> Path:  # noqa: B008
    """Write the product into `folder` as a `.SAFE` folder, VH ten times weaker than VV; its path."""
    root = folder / f"{NAME}.SAFE"
    files: dict[str, tuple[str, bytes]] = {}
    for number, band in enumerate(image.bands, start=1):
        stem = f"s1a-iw-grd-{band.lower()}-20210603t050000-{number:03d}"
        dn = to_numbers(ground, image, 1.0 if number == 1 else 0.1)
        files[f"measurement/{stem}.tiff"] = ("s1Level1MeasurementSchema", b"")
        path = root / "measurement" / f"{stem}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_tiff(path, dn, image)
        files[f"annotation/{stem}.xml"] = ("s1Level1ProductSchema", to_annotation(image).encode())
        files[f"annotation/calibration/calibration-{stem}.xml"] = ("s1Level1CalibrationSchema", to_calibration(image).encode())
        files[f"annotation/calibration/noise-{stem}.xml"] = ("s1Level1NoiseSchema", to_noise(image).encode())
    for name, (_, text) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (root / name).write_bytes(text)
    (root / "manifest.safe").write_text(to_manifest(image, {name: (kind, (root / name).read_bytes()) for name, (kind, _) in files.items()}))
    return root


def pack_product(root: Path) -> Path:
    """The product as an archive beside its folder; its path."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, f"{root.name}/{file.relative_to(root)}")
    return path


def to_numbers(ground: Ground, image: Image, factor: float) -> npt.NDArray[np.uint16]:
    """Digital numbers of what lies on flat ground."""
    lines, pixels = (axis.astype(float) for axis in np.indices(image.shape))
    power = factor * ground(*place_of(lines, pixels))
    dn = np.sqrt(power * gain_at(lines, pixels) ** 2 + noise_at(image, lines, pixels))
    if image.nodata:
        dn[image.nodata] = 0
    return np.rint(dn).astype(np.uint16)


def _points(image: Image) -> list[tuple[float, ...]]:
    """Line, pixel, longitude, latitude, height, slant range and incidence angle of the control points."""
    lines, pixels = (axis.ravel() for axis in np.meshgrid(np.linspace(0, image.shape[0] - 1, 10), np.linspace(0, image.shape[1] - 1, 21)))
    lines, pixels = np.rint(lines), np.rint(pixels)
    heights = np.where(np.arange(lines.size) % 3, 0.0, image.hill_m)
    x, y = place_of(lines, pixels, heights)
    longitudes, latitudes = transform(EPSG, "EPSG:4326", x, y)
    ranges = np.hypot(NEAR + SPACING * pixels, ALTITUDE)
    angles = np.degrees(np.arccos((ALTITUDE - heights) / ranges))
    return list(zip(lines, pixels, longitudes, latitudes, heights, ranges, angles, strict=True))


def _write_tiff(path: Path, dn: npt.NDArray[np.uint16], image: Image) -> None:
    gcps = [GroundControlPoint(row=line, col=pixel, x=x, y=y, z=z) for line, pixel, x, y, z, *_ in _points(image)]
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": dn.shape[0], "width": dn.shape[1]}
    with rasterio.open(path, "w", **profile, gcps=gcps, crs="EPSG:4326") as file:
        file.write(dn, 1)


def _join(values: npt.ArrayLike) -> str:
    return " ".join(f"{value:.12g}" for value in np.atleast_1d(np.asarray(values, float)))


def _time(line: float) -> str:
    return str(FIRST_TIME + np.timedelta64(round(line * INTERVAL_S * 1e6), "us"))


def to_annotation(image: Image) -> str:
    """Size, ground range and geolocation grid."""
    ranges = np.linspace(np.hypot(NEAR - 1e4, ALTITUDE), np.hypot(NEAR + SPACING * image.shape[1] + 1e4, ALTITUDE), 200)
    origin = float(ranges[0])
    series = np.polynomial.Polynomial.fit(ranges - origin, np.sqrt(ranges**2 - ALTITUDE**2) - NEAR, 6).convert().coef
    conversions = "".join(
        f"<coordinateConversion><azimuthTime>{_time(line)}</azimuthTime><sr0>{origin!r}</sr0>"
        f"<srgrCoefficients>{' '.join(repr(float(c)) for c in series)}</srgrCoefficients></coordinateConversion>"
        for line in (-1000, 100, 1000)
    )
    points = "".join(
        f"<geolocationGridPoint><azimuthTime>{_time(line)}</azimuthTime><slantRangeTime>{2 * r / LIGHT!r}</slantRangeTime>"
        f"<line>{line:g}</line><pixel>{pixel:g}</pixel><latitude>{y!r}</latitude><longitude>{x!r}</longitude><height>{z!r}</height>"
        f"<incidenceAngle>{angle!r}</incidenceAngle></geolocationGridPoint>"
        for line, pixel, x, y, z, r, angle in (tuple(float(v) for v in point) for point in _points(image))
    )
    return (
        "<product><imageAnnotation><imageInformation>"
        f"<productFirstLineUtcTime>{_time(0)}</productFirstLineUtcTime><azimuthTimeInterval>{INTERVAL_S}</azimuthTimeInterval>"
        f"<rangePixelSpacing>{SPACING}</rangePixelSpacing>"
        f"<numberOfSamples>{image.shape[1]}</numberOfSamples><numberOfLines>{image.shape[0]}</numberOfLines>"
        f"</imageInformation></imageAnnotation><coordinateConversion><coordinateConversionList>{conversions}"
        f"</coordinateConversionList></coordinateConversion><geolocationGrid><geolocationGridPointList>{points}"
        "</geolocationGridPointList></geolocationGrid></product>"
    )


def to_calibration(image: Image) -> str:
    """Tables along lines that reach beyond the image, with pixels of their own."""
    vectors = ""
    for line, step in ((-100, 40), (120, 57), (image.shape[0] + 50, 40)):
        pixels = np.arange(0, image.shape[1] + step, step)
        gamma = gain_at(np.float64(line), pixels)
        vectors += (
            f"<calibrationVector><line>{line}</line><pixel>{_join(pixels)}</pixel><sigmaNought>{_join(gamma * 1.1)}</sigmaNought>"
            f"<betaNought>{_join(gamma * 0.8)}</betaNought><gamma>{_join(gamma)}</gamma></calibrationVector>"
        )
    return f"<calibration><calibrationVectorList>{vectors}</calibrationVectorList></calibration>"


def to_noise(image: Image) -> str:
    """One table before IPF 2.9, range and azimuth tables since then, the latter in two blocks side by side."""
    lines, pixels = (0, image.shape[0]), np.arange(0, image.shape[1] + 30, 30)
    across = _join(image.noise * (1 + pixels / image.shape[1]))
    if image.ipf < "002.90":
        vectors = "".join(
            f"<noiseVector><line>{n}</line><pixel>{_join(pixels)}</pixel><noiseLut>{across}</noiseLut></noiseVector>" for n in lines
        )
        return f"<noise><noiseVectorList>{vectors}</noiseVectorList></noise>"
    vectors = "".join(
        f"<noiseRangeVector><line>{n}</line><pixel>{_join(pixels)}</pixel><noiseRangeLut>{across}</noiseRangeLut></noiseRangeVector>"
        for n in lines
    )
    half, last_line = image.shape[1] // 2, image.shape[0] - 1
    at = np.arange(0, image.shape[0] + 20, 20)
    blocks = "".join(
        f"<noiseAzimuthVector><swath>IW{n}</swath><firstAzimuthLine>0</firstAzimuthLine><firstRangeSample>{first}</firstRangeSample>"
        f"<lastAzimuthLine>{last_line}</lastAzimuthLine><lastRangeSample>{last}</lastRangeSample><line>{_join(at)}</line>"
        f"<noiseAzimuthLut>{_join(1 + at / image.shape[0])}</noiseAzimuthLut></noiseAzimuthVector>"
        for n, (first, last) in enumerate(((0, half - 1), (half, image.shape[1] - 1)), start=1)
    )
    return f"<noise><noiseRangeVectorList>{vectors}</noiseRangeVectorList><noiseAzimuthVectorList>{blocks}</noiseAzimuthVectorList></noise>"


def to_manifest(image: Image, files: dict[str, tuple[str, bytes]]) -> str:
    """The manifest, which states size and MD5 of every file."""
    corners = [place_of(np.float64(line), np.float64(pixel)) for line, pixel in _corners(image)]
    longitudes, latitudes = transform(EPSG, "EPSG:4326", [c[0] for c in corners], [c[1] for c in corners])
    outline = " ".join(f"{lat:.6f},{lon:.6f}" for lon, lat in zip(longitudes, latitudes, strict=True))
    objects = "".join(
        f'<dataObject ID="{number}" repID="{kind}"><byteStream mimeType="x" size="{len(content)}">'
        f'<fileLocation locatorType="URL" href="./{name}"/><checksum checksumName="MD5">{hashlib.md5(content).hexdigest()}</checksum>'
        "</byteStream></dataObject>"
        for number, (name, (kind, content)) in enumerate(files.items())
    )
    pols = "".join(f"<l:transmitterReceiverPolarisation>{band}</l:transmitterReceiverPolarisation>" for band in image.bands)
    safe, s1 = "http://www.esa.int/safe/sentinel-1.0", "http://www.esa.int/safe/sentinel-1.0/sentinel-1"
    return (
        f'<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1" xmlns:safe="{safe}" xmlns:s1="{s1}" xmlns:l="{s1}/sar/level-1" '
        'xmlns:gml="http://www.opengis.net/gml"><metadataSection>'
        f'<safe:processing><safe:software name="Sentinel-1 IPF" version="{image.ipf}"/></safe:processing>'
        "<safe:platform><safe:number>A</safe:number><l:mode>IW</l:mode></safe:platform>"
        '<safe:orbitReference><safe:orbitNumber type="start">38000</safe:orbitNumber>'
        '<safe:relativeOrbitNumber type="start">103</safe:relativeOrbitNumber><s1:pass>ASCENDING</s1:pass></safe:orbitReference>'
        f"{pols}<l:productType>GRD</l:productType><l:sliceNumber>3</l:sliceNumber><l:totalSlices>9</l:totalSlices>"
        f"<safe:startTime>{_time(0)}</safe:startTime><safe:stopTime>{_time(image.shape[0] - 1)}</safe:stopTime>"
        f"<gml:coordinates>{outline}</gml:coordinates></metadataSection><dataObjectSection>{objects}</dataObjectSection></xfdu:XFDU>"
    )


def _corners(image: Image) -> tuple[tuple[float, float], ...]:
    line, pixel = image.shape[0] - 1.0, image.shape[1] - 1.0
    return ((0, 0), (0, pixel), (line, pixel), (line, 0))
