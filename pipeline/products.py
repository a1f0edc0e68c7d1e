"""Simulated Gaofen products: ground of known reflectance and backscatter in, products as they are delivered out.

Names, metadata, coefficients, images and archives are complete, so that what reads them cannot tell them from real ones; `views` says how
the images lie over the ground. Same input, same bytes.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import warnings
import xml.etree.ElementTree as ET
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.warp import transform

from sereno.pipeline.errors import DataError
from sereno.pipeline.rpc import crop_rpc, format_rpb
from sereno.pipeline.sensors.gaofen3_metadata import CORNERS, DIVISORS, MODES, POLARISATIONS
from sereno.pipeline.sensors.gaofen6_calibration import ESUN, compute_reflectance_factor, find_gains
from sereno.pipeline.sensors.gaofen_xml import ABSENT
from sereno.pipeline.sun import BEIJING_H, compute_distance, compute_sun
from sereno.pipeline.views import Float, Layers, Terrain, View, find_centre, find_corners, make_rpc, make_view, see_ground, see_image

RADAR_WAVELENGTH_M: Final = 0.055517
"""Wavelength of Gaofen-3."""
QUALIFY: Final = {"HH": 997.1, "HV": 466.6, "VH": 471.2, "VV": 981.4}
"""Largest amplitudes of the simulated products, as they are stated in metadata."""
CONSTANTS_DB: Final = {"HH": 24.5, "HV": 24.6, "VH": 24.6, "VV": 24.4}
"""Calibration constants of the simulated products."""
RADAR_TAGS: Final = {
    ("HH",): "HH",
    ("VV",): "VV",
    ("HH", "HV"): "HHHV",
    ("VH", "VV"): "VVVH",
    ("HH", "HV", "VH", "VV"): "AHV",
}
"""Polarisation tags of the simulated products."""
OPTICAL_GSD_M: Final = {"MUX": 8.0, "PAN": 2.0, "WFV": 16.0}
"""Ground sampling distances of Gaofen-6."""
PAN_SHARES: Final = (0.2, 0.23, 0.17, 0.4)
"""What each band of PMS is of its panchromatic one, which covers 450 to 900 nm: their widths, 70, 80, 60 and 140 nm, over the sum."""
PAN_SLIP_M: Final = (2.6, -3.4)
"""East and north by which the coefficients of PAN err more than those of MUX, each image having its own: half a pixel of MUX."""
OPTICAL_MAX_DN: Final = 4095
"""Digital numbers of Gaofen-6 have 12 bits."""
OPTICAL_LEAN: Final = 0.18
"""Metres by which a metre of height is displaced across the track: the tangent of 10 degrees off nadir."""
TILE_OVERLAP_PX: Final = 32
"""Columns that neighbouring tiles of WFV share."""
MOMENTS_S: Final = {"StartTime": -2, "EndTime": 2, "CenterTime": 0}
"""Seconds from the middle of an image."""


class Pass(NamedTuple):
    """One overflight."""

    time: datetime
    """UTC."""
    serial: int
    """Number of the product; unique."""
    error_m: tuple[float, float] = (0.0, 0.0)
    """East and north: everything is placed so far off by the coefficients."""
    cloud_pct: float = 0
    """Cloud cover that optical products state."""


class Radar(NamedTuple):
    """How Gaofen-3 looks."""

    mode: str = "FSI"
    """Imaging mode."""
    gsd_m: float = 5.0
    """Ground distance of rows and columns."""
    incidence_deg: tuple[float, float] = (34.0, 36.0)
    """At near and far range."""
    level: str = "L1A"
    """`L1A` (I and Q), `L1B` (detected, with coefficients) or `L2` (projected at the mean height)."""


def write_gaofen3(
    folder: Path, terrain: Terrain, gamma0: dict[str, Layers], flight: Pass, *, radar: Radar, speckle: np.random.Generator | None = None
) -> Path:
    """The folder of a product in `folder`, of linear `gamma0` (y, x) by polarisation. `speckle` draws that of one look; None leaves it out.

    Raises:
        DataError: these polarisations together are of no mode.
    """
    level = radar.level
    bands = tuple(band for band in POLARISATIONS if band in gamma0)
    if bands not in RADAR_TAGS or radar.mode not in MODES:
        raise DataError(f"simulated Gaofen-3 of {', '.join(bands)} in mode {radar.mode}: no product holds these together")
    view = make_view(terrain, radar.gsd_m, -1 / math.tan(math.radians(sum(radar.incidence_deg) / 2)))
    longitude, latitude = find_centre(view)
    stem = (
        f"GF3_KAS_{radar.mode}_{flight.serial % 10**6:06d}_{_format_place(longitude, latitude)}_{flight.time:%Y%m%d}_{level}_{{}}_"
        f"L{2 if level == 'L2' else 1}{flight.serial:010d}"
    )
    product = folder / stem.format(RADAR_TAGS[bands])
    product.mkdir(parents=True)
    seen = _see_radar(terrain, gamma0, view, flight, radar)
    for band, power in zip(bands, seen.power, strict=True):
        dn = _to_digital(power, band, level, speckle)
        path = product / f"{stem.format(band)}.tiff"
        _write_image(path, dn, seen.transform, seen.crs)
        if level != "L2":
            path.with_suffix(".rpc").write_text(format_rpb(make_rpc(view, flight.error_m), comment="GF3"))
    named = product / product.name
    if level != "L2":
        _write_incidence(Path(f"{named}.incidence.xml"), _list_angles(view, radar))
    _write_xml(Path(f"{named}.meta.xml"), _describe_radar(bands, radar, flight, view, seen.size))
    return product


class Seen(NamedTuple):
    """What a radar product shows."""

    power: list[Layers]
    """(row, column) sigma0 by polarisation, 0 beyond the ground."""
    size: tuple[int, int]
    """Rows and columns."""
    transform: Affine | None
    """Of a projected product."""
    crs: str | None
    """Likewise."""


def _list_angles(view: View, radar: Radar) -> Float:
    """Incidence in degrees of every column."""
    return np.linspace(*radar.incidence_deg, view.size[1])


def _see_radar(terrain: Terrain, gamma0: dict[str, Layers], view: View, flight: Pass, radar: Radar) -> Seen:
    angles = _list_angles(view, radar)
    affine, crs = (None, None) if radar.level != "L2" else _make_projection(terrain, view)
    shape = view.size if affine is None else tuple(terrain.geobox.pad(2).zoom_to(resolution=view.gsd_m).shape)
    rows, columns = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    if affine is not None and crs is not None:
        x, y = affine.a * (columns + 0.5) + affine.c, affine.e * (rows + 0.5) + affine.f
        x, y = (np.asarray(axis).reshape(shape) for axis in transform(crs, view.crs, x.ravel(), y.ravel()))
        rows, columns = view.to_image(x - flight.error_m[0], y - flight.error_m[1], view.height_m)
    layers = np.stack([gamma0[band] for band in POLARISATIONS if band in gamma0])
    cosines = np.cos(np.radians(np.interp(columns, np.arange(angles.size), angles)))
    power = [np.asarray(layer * cosines, np.float32) for layer in see_ground(terrain, layers, view, (rows, columns))]
    return Seen(power, (shape[0], shape[1]), affine, crs)


def _make_projection(terrain: Terrain, view: View) -> tuple[Affine, str]:
    """The grid of a level 2 product: a transverse Mercator projection around the centre of the scene, as the provider uses."""
    longitude, latitude = find_centre(view)
    crs = f"+proj=tmerc +lat_0={latitude} +lon_0={longitude} +k=0.9996 +x_0=400000 +y_0=100000 +datum=WGS84 +units=m +no_defs"
    box = terrain.geobox.pad(2).boundingbox
    x, y = transform(view.crs, crs, [box.left, box.right], [box.top, box.top])
    return Affine(view.gsd_m, 0, min(x), 0, -view.gsd_m, max(y)), crs


def _to_digital(power: Layers, band: str, level: str, speckle: np.random.Generator | None) -> npt.NDArray[Any]:
    """Digital numbers (band, row, column) of sigma0: I and Q in int16, or amplitude in uint16; 0 where there is none."""
    divisor = DIVISORS["complex" if level == "L1A" else "detected"]
    squared = power * 10 ** (CONSTANTS_DB[band] / 10) / (QUALIFY[band] / divisor) ** 2
    half = math.sqrt(0.5)  # of the power in each of I and Q
    parts: Float = np.full((2, *power.shape), half) if speckle is None else speckle.normal(0, half, (2, *power.shape))
    parts = parts * np.sqrt(squared)
    complex_dn: npt.NDArray[np.int16] = np.clip(np.rint(parts), -divisor, divisor).astype(np.int16)
    detected_dn: npt.NDArray[np.uint16] = np.clip(np.rint(np.hypot(*parts)), 0, divisor).astype(np.uint16)[None]
    return complex_dn if level == "L1A" else detected_dn


def _write_incidence(path: Path, angles: Float) -> None:
    root = ET.Element("incidence")
    ET.SubElement(root, "numberofIncidenceValue").text = str(angles.size)
    for angle in angles:
        ET.SubElement(root, "incidenceValue").text = f"{angle:.6f}"
    _write_tree(path, root)


def _describe_radar(bands: tuple[str, ...], radar: Radar, flight: Pass, view: View, size: tuple[int, int]) -> dict[str, Any]:
    level, height, corners = radar.level, view.height_m, find_corners(view)
    centre = [sum(axis) / 4 for axis in zip(*corners, strict=True)]
    start, end = (f"{flight.time + timedelta(seconds=gap):%Y-%m-%d %H:%M:%S.%f}" for gap in (-4, 4))
    states = [
        {"TimeStamp": f"{flight.time + timedelta(seconds=step):%Y-%m-%d %H:%M:%S.%f}"}
        | {f"{axis}{kind}": "0.000000" for kind in ("Position", "Velocity") for axis in "xyz"}
        for step in range(-2, 3)
    ]
    return {
        "product": {
            "satellite": "GF3",
            "orbitID": flight.serial % 10**6,
            "Direction": "ASC",
            "sensor": {
                "imagingMode": radar.mode,
                "lamda": RADAR_WAVELENGTH_M,
                "RadarCenterFrequency": 5.400012,
                "waveParams": {"wave": {"centerLookAngle": sum(radar.incidence_deg) / 2 - 4, "averageAltitude": f"{height:.6f}"}},
                "lookDirection": "R",
                "polarParams": {"polar": {"polarMode": RADAR_TAGS[bands]}},
            },
            "GPS": {"GPSParam": states},
            "productinfo": {
                "NominalResolution": MODES[radar.mode][0],
                "productLevel": level.removeprefix("L"),
                "productType": "SLC" if level == "L1A" else "SLP",
                "productFormat": "GEOTIFF",
                "productGentime": f"{flight.time + timedelta(days=1):%Y-%m-%d %H:%M:%S}",
                "productPolar": RADAR_TAGS[bands],
            },
            "imageinfo": {
                "imagingTime": {"start": start, "end": end},
                "center": {"latitude": centre[1], "longitude": centre[0]},
                "corner": {
                    name: {"latitude": lat, "longitude": lon} for name, (lon, lat) in zip(CORNERS, corners, strict=True)
                },
                "width": size[1],
                "height": size[0],
                "widthspace": radar.gsd_m,
                "heightspace": radar.gsd_m,
                "imagebit": "16bit",
                "QualifyValue": {band: QUALIFY[band] if band in bands else ABSENT for band in POLARISATIONS},
                "echoSaturation": {band: 0.004 if band in bands else ABSENT for band in POLARISATIONS},
            },
            "processinfo": {
                "CalibrationConst": {band: CONSTANTS_DB[band] if band in bands else ABSENT for band in POLARISATIONS},
                "MultilookRange": 1,
                "MultilookAzimuth": 1,
                "EarthModel": "WGS84",
                "ProjectModel": "UTM",
                "DEMModel": 0,
                "incidenceAngleNearRange": radar.incidence_deg[0],
                "incidenceAngleFarRange": radar.incidence_deg[1],
                "DEM": f"{height:.6f}",
            },
        }
    }  # fmt: skip


def write_gaofen6_pms(folder: Path, terrain: Terrain, reflectance: Layers, flight: Pass, *, has_pan: bool = True) -> Path:
    """The folder of a PMS product in `folder`, of `reflectance` (4, y, x) at the top of the atmosphere.

    It holds MUX and, unless `has_pan` is false, PAN, of sixteen times the pixels, which coefficients place `PAN_SLIP_M` off.
    """
    view = make_view(terrain, OPTICAL_GSD_M["MUX"], OPTICAL_LEAN)
    product, zenith = _open_optical(folder, "PMS", view, flight)
    dn = _to_counts(see_image(terrain, reflectance, view), "GF6-PMS", zenith, flight.time)
    _write_part(product, "-MUX", dn, make_rpc(view, flight.error_m))
    _write_xml(product / f"{product.name}-MUX.xml", _describe_optical("PMS", len(dn), view, flight, zenith))
    if has_pan:
        fine = make_view(terrain, OPTICAL_GSD_M["PAN"], OPTICAL_LEAN)
        grey = np.tensordot(np.array(PAN_SHARES, np.float32), reflectance, 1)[None]
        pan = _to_counts(see_image(terrain, grey, fine), "GF6-PMS-PAN", zenith, flight.time)
        east_m, north_m = (error + slip for error, slip in zip(flight.error_m, PAN_SLIP_M, strict=True))
        _write_part(product, "-PAN", pan, make_rpc(fine, (east_m, north_m)))
        _write_xml(product / f"{product.name}-PAN.xml", _describe_optical("PMS", 1, fine, flight, zenith))
    return product


def write_gaofen6_wfv(folder: Path, terrain: Terrain, reflectance: Layers, flight: Pass) -> Path:
    """The folder of a WFV product in `folder`, of `reflectance` (8, y, x) at the top of the atmosphere: three tiles and one XML."""
    view = make_view(terrain, OPTICAL_GSD_M["WFV"], OPTICAL_LEAN)
    product, zenith = _open_optical(folder, "WFV", view, flight)
    dn = _to_counts(see_image(terrain, reflectance, view), "GF6-WFV", zenith, flight.time)
    rpc, width = make_rpc(view, flight.error_m), view.size[1]
    for number in range(3):
        first = max(0, number * width // 3 - TILE_OVERLAP_PX // 2)
        last = min(width, (number + 1) * width // 3 + TILE_OVERLAP_PX // 2)
        _write_part(product, f"-{number + 1}", dn[:, :, first:last], crop_rpc(rpc, row=0, column=first))
    _write_xml(product / f"{product.name}.xml", _describe_optical("WFV", len(dn), view, flight, zenith))
    return product


def _open_optical(folder: Path, sensor: str, view: View, flight: Pass) -> tuple[Path, float]:
    """The new folder of a product, and the zenith of the sun over it."""
    place = find_centre(view)
    product = folder / f"GF6_{sensor}_{_format_place(*place)}_{flight.time + timedelta(hours=BEIJING_H):%Y%m%d}_L1A{flight.serial:010d}"
    product.mkdir(parents=True)
    return product, compute_sun(flight.time, *place)[0]


def _to_counts(reflectance: Layers, instrument: str, zenith_deg: float, time: datetime) -> npt.NDArray[Any]:
    """Digital numbers of reflectance (band, row, column), by the gains of the year; at least 1 where there is ground."""
    gains = find_gains(instrument, time.year)[1].bands
    factors = [
        compute_reflectance_factor(gain, esun, zenith_deg, compute_distance(time))
        for gain, esun in zip(gains, ESUN[instrument], strict=True)
    ]
    counts = reflectance / np.array(factors)[:, None, None]
    dn: npt.NDArray[np.uint16] = np.where(reflectance > 0, np.clip(np.rint(counts), 1, OPTICAL_MAX_DN), 0).astype(np.uint16)
    return dn


def _write_part(product: Path, part: str, dn: npt.NDArray[Any], rpc: RPC) -> None:
    path = product / f"{product.name}{part}.tiff"
    _write_image(path, dn, None, None)
    path.with_suffix(".rpb").write_text(format_rpb(rpc, comment="GF6"))


def _describe_optical(sensor: str, n_bands: int, view: View, flight: Pass, zenith_deg: float) -> dict[str, Any]:
    corners = dict(zip(("TopLeft", "TopRight", "BottomRight", "BottomLeft"), find_corners(view), strict=True))
    stated = {key: f"{flight.time + timedelta(hours=BEIJING_H, seconds=gap):%Y-%m-%d %H:%M:%S}" for key, gap in MOMENTS_S.items()}
    content = {
        "SatelliteID": "GF6",
        "SensorID": sensor,
        "ReceiveTime": f"{flight.time:%Y-%m-%d %H:%M:%S}",
        "OrbitID": flight.serial % 10**5,
        "ProductLevel": "LEVEL1A",
        "ProductFormat": "GEOTIFF",
        "Bands": ",".join(str(band + 1) for band in range(n_bands)),
        **stated,
        "ImageGSD": view.gsd_m,
        "WidthInPixels": view.size[1],
        "HeightInPixels": view.size[0],
        "WidthInMeters": "",
        "CloudPercent": flight.cloud_pct,
        "PixelBits": "",
        "ValidPixelBits": "",
        "SolarAzimuth": f"{compute_sun(flight.time, *find_centre(view))[1]:.4f}",
        "SolarZenith": f"{zenith_deg:.4f}",
        "SatelliteZenith": "80.0000",
        "MapProjection": "",
    }
    for name, (longitude, latitude) in corners.items():
        content |= {f"{name}Latitude": f"{latitude:.6f}", f"{name}Longitude": f"{longitude:.6f}"}
    return {"ProductMetaData": content}


def _format_place(longitude: float, latitude: float) -> str:
    return f"{'E' if longitude >= 0 else 'W'}{abs(longitude):.1f}_{'N' if latitude >= 0 else 'S'}{abs(latitude):.1f}"


def _write_image(path: Path, values: npt.NDArray[Any], affine: Affine | None, crs: str | None) -> None:
    count, height, width = values.shape
    profile = {"driver": "GTiff", "dtype": str(values.dtype), "count": count, "height": height, "width": width}
    place = {} if affine is None else {"transform": affine, "crs": crs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # its place is in the coefficients
        with rasterio.open(path, "w", **profile, **place) as file:
            file.write(values)


def _write_xml(path: Path, content: dict[str, Any]) -> None:
    ((tag, children),) = content.items()
    root = ET.Element(tag)
    _add_children(root, children)
    _write_tree(path, root)


def _add_children(parent: ET.Element, children: dict[str, Any]) -> None:
    for tag, value in children.items():
        for one in value if isinstance(value, list) else [value]:
            child = ET.SubElement(parent, tag)
            if isinstance(one, dict):
                _add_children(child, one)
            else:
                child.text = str(one)


def _write_tree(path: Path, root: ET.Element) -> None:
    ET.indent(root)
    path.write_bytes(b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root) + b"\n")


def pack_product(product: Path) -> Path:
    """The folder of a product as the `.tar.gz` it is delivered as, beside it; the folder is removed. No time of writing stands in it."""
    archive = product.with_name(f"{product.name}.tar.gz")
    files = sorted(product.iterdir())
    with (
        archive.open("wb") as stream,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=stream, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as packed,
    ):
        for path in files:
            entry = tarfile.TarInfo(f"{product.name}/{path.name}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                packed.addfile(entry, content)
    for path in files:
        path.unlink()
    product.rmdir()
    return archive
