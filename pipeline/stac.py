"""STAC items and a static catalogue as plain mappings, written in the two dialects that real catalogues speak.

Enters: what is known of one product. Leaves: mappings ready for JSON, with relative links that pystac follows from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.warp import transform

from sereno.pipeline.bands import L2A_BANDS, SAR_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.imagers import LANDSAT, LANDSAT_QA, MODIS, MODIS_STATE

Dialect = Literal["earth-search", "planetary-computer"]

OPTICAL_COLLECTION: Final[dict[Dialect, str]] = {"earth-search": "sentinel-2-c1-l2a", "planetary-computer": "sentinel-2-l2a"}
"""Collection of Sentinel-2 L2A in each dialect."""
SAR_COLLECTION: Final = "sentinel-1-rtc"
"""Collection of terrain-corrected Sentinel-1."""
DEM_COLLECTION: Final = "cop-dem-glo-30"
"""Collection of heights."""
LANDSAT_COLLECTION: Final = "landsat-c2-l2"
"""Collection of Landsat Collection 2 Level-2, in both dialects."""
MODIS_COLLECTION: Final = "modis-09A1-061"
"""Collection of 8-day composites of MODIS."""
COMMON_NAMES: Final = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir08", "B11": "swir16", "B12": "swir22"}
"""Common names of bands by ours, as the extension `eo` has them."""
BOA_OFFSET: Final = 1000
"""Added to the stored numbers of L2A since processing baseline 04.00 (ESA 2021, Sentinel-2 product specification 14.9)."""
SAR_NODATA: Final = -32768.0
"""Nodata value that Planetary Computer declares for Sentinel-1 RTC."""
COG_TYPE: Final = "image/tiff; application=geotiff; profile=cloud-optimized"
STAC_VERSION: Final = "1.0.0"
TO_ROOT: Final = "../../"
"""From an item to the root of its catalogue, as hrefs begin."""
SHA256_MULTIHASH: Final = "1220"
"""How a SHA-256 begins in `file:checksum`: code 0x12 and length 0x20 (multihash, as the STAC extension `file` 2.1.0 asks)."""
_EXTENSION: Final = "https://stac-extensions.github.io/{}/schema.json"
_TITLES: Final = {
    OPTICAL_COLLECTION["earth-search"]: "Simulated Sentinel-2 Collection 1 Level-2A",
    OPTICAL_COLLECTION["planetary-computer"]: "Simulated Sentinel-2 Level-2A",
    SAR_COLLECTION: "Simulated Sentinel-1 radiometrically terrain corrected",
    DEM_COLLECTION: "Simulated heights",
    LANDSAT_COLLECTION: "Simulated Landsat Collection 2 Level-2",
    MODIS_COLLECTION: "Simulated MODIS surface reflectance, 8 days",
}


class Product(NamedTuple):
    """What all products have in common."""

    item: str
    """Id of the item."""
    area: str
    """Area it shows; its files lie in `assets/AREA/ITEM/`."""
    time: datetime
    """Moment of acquisition, UTC."""
    geobox: GeoBox
    """Grid of the 10 m bands."""
    dialect: Dialect
    """Style of the item."""


class OpticalFacts(NamedTuple):
    """What is stated of a Sentinel-2 product besides."""

    baseline: str
    """Processing baseline, for example `05.00`."""
    cloud_cover_pct: float
    """Cloud cover in percent of the valid pixels."""
    nodata_pct: float
    """Share of pixels outside the swath, percent."""
    sun_azimuth_deg: float
    """Azimuth of the sun, degrees clockwise from north."""
    sun_elevation_deg: float
    """Elevation of the sun, degrees."""


class SarFacts(NamedTuple):
    """What is stated of a Sentinel-1 product besides."""

    orbit_state: Literal["ascending", "descending"]
    """Direction of flight."""
    relative_orbit: int
    """Number of the track."""


def has_offset(baseline: str) -> bool:
    """Whether products of that baseline carry `BOA_OFFSET`; the date of acquisition does not tell, since archives are reprocessed."""
    return float(baseline) >= 4


def to_middle(geobox: GeoBox) -> tuple[float, float]:
    """Longitude and latitude of the middle of `geobox`."""
    bounds = geobox.boundingbox
    [middle] = _to_degrees(geobox, [((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2)])
    return middle


def _to_degrees(geobox: GeoBox, places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    longitudes, latitudes = transform(str(geobox.crs), "EPSG:4326", *zip(*places, strict=True))
    return list(zip(longitudes, latitudes, strict=True))


def to_grid_code(geobox: GeoBox) -> str:
    """MGRS 100 km square of the centre of `geobox`, for example `32TNR` (DMA TM 8358.1, 1990); northern hemisphere."""
    zone = _to_epsg(geobox) % 100
    bounds = geobox.boundingbox
    easting, northing = int((bounds.left + bounds.right) / 2 // 100_000), int((bounds.bottom + bounds.top) / 2 // 100_000)
    _, latitude = to_middle(geobox)
    column = "ABCDEFGHJKLMNPQRSTUVWXYZ"[(zone - 1) % 3 * 8 + (easting - 1) % 8]
    row = "ABCDEFGHJKLMNPQRSTUV"[(northing + (0 if zone % 2 else 5)) % 20]
    band = "CDEFGHJKLMNPQRSTUVWX"[min(19, int((latitude + 80) // 8))]
    return f"{zone:02d}{band}{column}{row}"


def _to_epsg(geobox: GeoBox) -> int:
    return int(str(geobox.crs).removeprefix("EPSG:"))


def to_optical_item(product: Product, facts: OpticalFacts) -> dict[str, Any]:
    """Item of a Sentinel-2 L2A product in the dialect of its area."""
    writer = _to_earth_search if product.dialect == "earth-search" else _to_planetary_computer
    properties, assets, extensions = writer(product, facts)
    properties |= {
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": facts.cloud_cover_pct,
        "s2:processing_baseline": facts.baseline,
        "s2:nodata_pixel_percentage": facts.nodata_pct,
        "s2:product_type": "S2MSI2A",
    }
    return _to_item(product, OPTICAL_COLLECTION[product.dialect], (properties, assets, ("eo/v1.1.0", *extensions)))


Parts = tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]
"""Properties, assets and extensions of an item."""


def _to_earth_search(product: Product, facts: OpticalFacts) -> Parts:
    code = to_grid_code(product.geobox)
    properties = {
        "platform": "sentinel-2a",
        "proj:code": f"EPSG:{_to_epsg(product.geobox)}",
        "grid:code": f"MGRS-{code}",
        "view:sun_azimuth": facts.sun_azimuth_deg,
        "view:sun_elevation": facts.sun_elevation_deg,
        "earthsearch:boa_offset_applied": False,
    }
    assets = {}
    for band in SENTINEL2_BANDS:
        if band.name not in L2A_BANDS:
            continue
        raster = {"nodata": 0, "data_type": "uint16", "spatial_resolution": band.gsd_m, "scale": 0.0001}
        raster["offset"] = -BOA_OFFSET / 10_000 if has_offset(facts.baseline) else 0
        assets[band.common_name] = {
            **_to_asset(product, band.name, band.gsd_m),
            "eo:bands": [{"name": band.name, "common_name": band.common_name, "center_wavelength": round(band.wavelength_nm / 1000, 4)}],
            "raster:bands": [raster],
        }
    scl = {"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}
    assets["scl"] = {**_to_asset(product, SCL, 20), "raster:bands": [scl]}
    return properties, assets, ("grid/v1.1.0", "projection/v2.0.0", "raster/v1.1.0", "view/v1.0.0")


def _to_planetary_computer(product: Product, facts: OpticalFacts) -> Parts:
    properties = {
        "platform": "Sentinel-2A",
        "proj:epsg": _to_epsg(product.geobox),
        "s2:mgrs_tile": to_grid_code(product.geobox),
        "s2:mean_solar_zenith": round(90 - facts.sun_elevation_deg, 4),
        "s2:mean_solar_azimuth": facts.sun_azimuth_deg,
    }
    assets = {band.name: _to_asset(product, band.name, band.gsd_m) for band in SENTINEL2_BANDS if band.name in L2A_BANDS}
    for band in SENTINEL2_BANDS:
        if band.name in assets:
            assets[band.name]["eo:bands"] = [{"name": band.name, "center_wavelength": round(band.wavelength_nm / 1000, 4)}]
    assets[SCL] = _to_asset(product, SCL, 20)
    return properties, assets, ("projection/v1.1.0",)


def to_sar_item(product: Product, facts: SarFacts) -> dict[str, Any]:
    """Item of a Sentinel-1 RTC product; only the key of the CRS differs between the dialects."""
    properties = _to_crs(product) | {
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "start_datetime": _to_text(product.time - timedelta(seconds=12)),
        "end_datetime": _to_text(product.time + timedelta(seconds=13)),
        "sat:orbit_state": facts.orbit_state,
        "sat:relative_orbit": facts.relative_orbit,
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:product_type": "GRD",
        "sar:polarizations": list(SAR_BANDS),
    }
    raster = {"nodata": int(SAR_NODATA), "data_type": "float32", "spatial_resolution": 10}
    assets = {name.lower(): {**_to_asset(product, name.lower(), 10), "raster:bands": [raster]} for name in SAR_BANDS}
    return _to_item(product, SAR_COLLECTION, (properties, assets, ("sar/v1.0.0", "sat/v1.0.0", _projection(product), "raster/v1.1.0")))


def to_dem_item(product: Product) -> dict[str, Any]:
    """Item of the heights of an area: float32 metres above the ellipsoid, there being no geoid in this world."""
    return _to_item(
        product,
        DEM_COLLECTION,
        (_to_crs(product) | {"vertical_datum": "ellipsoid"}, {"data": _to_asset(product, "dem", 10)}, (_projection(product),)),
    )


class LandsatFacts(NamedTuple):
    """What is stated of a Landsat product besides."""

    cloud_cover_pct: float
    """Cloud cover in percent of the valid pixels."""
    sun_azimuth_deg: float
    """Azimuth of the sun, degrees clockwise from north."""
    sun_elevation_deg: float
    """Elevation of the sun, degrees."""
    path_row: tuple[int, int]
    """Path and row of the scene."""


def to_landsat_item(product: Product, facts: LandsatFacts) -> dict[str, Any]:
    """Item of a Landsat 9 product; its `geobox` is that of the pixels of 30 m."""
    properties = _to_crs(product) | {
        "platform": "landsat-9",
        "instruments": ["oli", "tirs"],
        "created": _to_text(product.time + timedelta(days=15)),
        "gsd": 30,
        "eo:cloud_cover": facts.cloud_cover_pct,
        "view:off_nadir": 0,
        "view:sun_elevation": facts.sun_elevation_deg,
        "view:sun_azimuth": facts.sun_azimuth_deg,
        "proj:shape": [product.geobox.shape.y, product.geobox.shape.x],
        "proj:transform": list(product.geobox.transform)[:6],
        "landsat:wrs_type": "2",
        "landsat:wrs_path": f"{facts.path_row[0]:03d}",
        "landsat:wrs_row": f"{facts.path_row[1]:03d}",
        "landsat:collection_category": "T1",
        "landsat:collection_number": "02",
        "landsat:correction": "L2SP",
    }
    place = {"spatial_resolution": 30} if product.dialect == "earth-search" else {}
    numbers = {"nodata": LANDSAT.fill, "data_type": "uint16", **place, "scale": LANDSAT.scale, "offset": LANDSAT.offset}
    assets = {}
    for key, name in LANDSAT.bands.values():
        if key != "coastal":
            asset = _to_plain_asset(product, name, ["reflectance"])
            assets[key] = {**asset, "eo:bands": [{"name": name, "common_name": key}], "raster:bands": [numbers]}
    nothing = {"nodata": LANDSAT_QA.fill} if product.dialect == "earth-search" else {}
    bits = {**nothing, "data_type": "uint16", **place, "unit": "bit index"}
    quality = _to_plain_asset(product, "QA_PIXEL", ["cloud", "cloud-shadow", "snow-ice", "water-mask"])
    assets[LANDSAT_QA.key] = {**quality, "raster:bands": [bits]}
    extensions = ("eo/v1.1.0", "raster/v1.1.0", "view/v1.0.0", _projection(product))
    return _to_item(product, LANDSAT_COLLECTION, (properties, assets, extensions))


class ModisFacts(NamedTuple):
    """What is stated of a composite of MODIS besides."""

    start: datetime
    """First moment of its period, UTC."""
    end: datetime
    """Last moment, UTC."""
    tile: tuple[int, int]
    """Horizontal and vertical number of its tile."""


def to_modis_item(product: Product, facts: ModisFacts) -> dict[str, Any]:
    """Item of a composite: no moment but a period, no EPSG code but the projection as text, as Planetary Computer states them."""
    properties = {
        "datetime": None,
        "start_datetime": _to_text(facts.start),
        "end_datetime": _to_text(facts.end),
        "modis:horizontal-tile": facts.tile[0],
        "modis:vertical-tile": facts.tile[1],
        "modis:tile-id": f"51{facts.tile[0]:03d}{facts.tile[1]:03d}",
        "instruments": ["modis"],
        "platform": "terra",
        "created": _to_text(facts.end + timedelta(days=9)),
        "proj:epsg": None,
        "proj:wkt2": CRS.from_user_input(str(product.geobox.crs)).to_wkt(),
        "proj:shape": [product.geobox.shape.y, product.geobox.shape.x],
        "proj:transform": list(product.geobox.transform)[:6],
    }
    assets = {}
    for name, (key,) in MODIS.bands.items():
        band = {"name": key, "common_name": COMMON_NAMES[name]}
        number = {"data_type": "int16", "spatial_resolution": 500, "scale": MODIS.scale}
        assets[key] = {**_to_plain_asset(product, key, ["data", "reflectance"]), "eo:bands": [band], "raster:bands": [number]}
    state = _to_plain_asset(product, MODIS_STATE.key, ["data"])
    assets[MODIS_STATE.key] = {**state, "raster:bands": [{"data_type": "uint16", "spatial_resolution": 500}]}
    return _to_item(product, MODIS_COLLECTION, (properties, assets, ("eo/v1.0.0", "projection/v1.0.0", "raster/v1.0.0")))


def _to_plain_asset(product: Product, name: str, roles: list[str]) -> dict[str, Any]:
    href = f"{TO_ROOT}assets/{product.area}/{product.item}/{name}.tif"
    return {"href": href, "type": COG_TYPE, "title": name, "roles": roles}


def _to_crs(product: Product) -> dict[str, Any]:
    epsg = _to_epsg(product.geobox)
    return {"proj:code": f"EPSG:{epsg}"} if product.dialect == "earth-search" else {"proj:epsg": epsg}


def _projection(product: Product) -> str:
    return "projection/v2.0.0" if product.dialect == "earth-search" else "projection/v1.1.0"


def _to_asset(product: Product, name: str, gsd_m: int) -> dict[str, Any]:
    geobox = product.geobox.zoom_out(gsd_m // 10)
    affine = geobox.transform
    return {
        "href": f"{TO_ROOT}assets/{product.area}/{product.item}/{name}.tif",
        "type": COG_TYPE,
        "title": f"{name} - {gsd_m}m",
        "gsd": gsd_m,
        "proj:shape": [geobox.shape.y, geobox.shape.x],
        "proj:transform": [affine.a, affine.b, affine.c, affine.d, affine.e, affine.f],
        "roles": ["data"],
    }


def _to_item(product: Product, collection: str, parts: Parts) -> dict[str, Any]:
    properties, assets, extensions = parts
    bounds = product.geobox.boundingbox
    corners = [(bounds.left, bounds.bottom), (bounds.right, bounds.bottom), (bounds.right, bounds.top), (bounds.left, bounds.top)]
    ring = [[round(value, 6) for value in place] for place in _to_degrees(product.geobox, [*corners, corners[0]])]
    longitudes, latitudes = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": sorted(_EXTENSION.format(name) for name in extensions),
        "id": product.item,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {"datetime": _to_text(product.time), **properties},
        "assets": assets,
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "collection.json", "type": "application/json"},
            {"rel": "collection", "href": "collection.json", "type": "application/json"},
        ],
    }


class FileFacts(NamedTuple):
    """What is stated of one file."""

    size_bytes: int
    """Its size."""
    sha256: str
    """Its SHA-256 in hexadecimal digits."""


def with_files(item: dict[str, Any], facts: Mapping[str, FileFacts]) -> dict[str, Any]:
    """`item` with size and checksum of the files of the assets in `facts`, by asset key."""
    stated = {key: {"file:size": fact.size_bytes, "file:checksum": SHA256_MULTIHASH + fact.sha256} for key, fact in facts.items()}
    extensions = sorted({*item["stac_extensions"], _EXTENSION.format("file/v2.1.0")})
    return item | {"assets": {key: asset | stated.get(key, {}) for key, asset in item["assets"].items()}, "stac_extensions": extensions}


def _to_text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def to_collection(name: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collection over `items`, with links to them by file name."""
    west, south, east, north = zip(*(item["bbox"] for item in items), strict=True)
    times = sorted(item["properties"]["datetime"] or item["properties"]["start_datetime"] for item in items)
    links = [{"rel": kind, "href": "../../catalog.json", "type": "application/json"} for kind in ("root", "parent")]
    links += [{"rel": "item", "href": f"{item['id']}.json", "type": "application/geo+json"} for item in items]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": name,
        "title": _TITLES[name],
        "description": f"{_TITLES[name]}: made by sereno, shows no real place.",
        "license": "Apache-2.0",
        "extent": {
            "spatial": {"bbox": [[min(west), min(south), max(east), max(north)]]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        "links": links,
    }


def to_catalog(collections: list[str]) -> dict[str, Any]:
    """Root catalogue with links to `collections`."""
    links = [{"rel": "root", "href": "catalog.json", "type": "application/json"}]
    links += [{"rel": "child", "href": f"items/{name}/collection.json", "type": "application/json"} for name in collections]
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": "sereno-world",
        "description": "A simulated world with known truth.",
        "links": links,
    }
