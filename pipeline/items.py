"""Catalogue items brought into one form, whatever the dialect they were written in.

Enters: a STAC item as a mapping. Leaves: an `ItemRecord`, or a refusal that says what the item lacks. Pure; addresses inside the catalogue
are kept relative to it, so that a lock written from an embedded server names no port.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS, POLARISATIONS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.imagers import IMAGERS, QA, Imager, find_contradiction, find_imager
from sereno.pipeline.pairs import ItemRecord, OffsetSource, Sensor
from sereno.pipeline.presets import PRESETS
from sereno.pipeline.signing import strip_signature

Json = Mapping[str, Any]

MTD: Final = "MTD"
"""Our name of the product metadata of Sentinel-2."""
DESCRIBED_BY: Final = ("annotation", "calibration", "noise")
"""Kinds of files that describe one polarisation of a Sentinel-1 GRD product."""
NATIVE_M: Final = {**{band.name: band.gsd_m for band in SENTINEL2_BANDS}, SCL: 20}
"""Ground sampling distance of each Sentinel-2 file at its finest, metres."""
NAMES: Final = {
    **{band.name.lower(): band.name for band in SENTINEL2_BANDS},
    **{band.name.lower().replace("b0", "b"): band.name for band in SENTINEL2_BANDS},
    **{band.common_name: band.name for band in SENTINEL2_BANDS},
    **{name.lower(): name for name in (SCL, *POLARISATIONS)},
    "rededge071": "B05",  # common names of the STAC extension eo since 1.1
    "rededge075": "B06",
    "rededge078": "B07",
}
"""Our names by what catalogues call an asset or a band, in lower case."""
ASSETS_OF: Final[Mapping[Sensor, tuple[str, ...]]] = {
    "sentinel2-l2a": (*L2A_BANDS, SCL),
    "sentinel2-l1c": L1C_BANDS,
    "sentinel1-rtc": POLARISATIONS,
    "sentinel1-grd": POLARISATIONS,
}
"""What an item of each sensor may hold."""

DEM_KEYS: Final = ("data", "dem", "elevation")
"""Keys of assets with heights: the first at Planetary Computer and Earth Search."""
VERTICAL_DATUMS: Final = {"cop-dem": "EGM2008 height", "nasadem": "EGM96 height", "alos-dem": "EGM96 height"}
"""Surface above which heights are, by the name that it has in the EPSG registry and by how the collection's begins (Airbus 2022, Copernicus
DEM product handbook; Buckley et al. 2020, NASADEM user guide; JAXA 2021, ALOS World 3D-30m product description)."""

RESOLUTION: Final = re.compile(r"_(10|20|60)m$")
"""Resolution at the end of an asset's key (CDSE, stactools)."""
UNUSED: Final = re.compile(r"^(visual|tci|true.?colou?r|rgb|preview|rendered|overview|thumbnail|browse)|[-_]jp2$", re.IGNORECASE)
"""Keys of assets whose bands are no measurements, or twins in JPEG 2000: those of Earth Search's `sentinel-2-l2a` lie elsewhere and carry
the offset that its GeoTIFFs may have lost, so that one never stands in for the other."""
DESCRIPTION: Final = re.compile(r"(product|annotation|calibration|noise)[-_](?:.*[-_])?(vv|vh|hh|hv)(?=$|[-_.])", re.IGNORECASE)
"""Kind and polarisation in the key of an asset that describes Sentinel-1 GRD."""
BESIDE_ANNOTATION: Final = re.compile(r"annotation/(?:rfi/rfi|calibration/calibration)-(?=[^/]+\.xml$)")
"""Path of a file below `annotation` that is named after the product annotation (ESA, Sentinel-1 product specification, SAFE layout)."""
PRODUCT_METADATA: Final = re.compile(r"(^product[-_]metadata$)|/(MTD_MSIL(1C|2A)|product_metadata)\.xml$", re.IGNORECASE)
"""Key or address of the product metadata of Sentinel-2; that of the granule (`MTD_TL.xml`, `metadata.xml`) is another file."""

RTC: Final = re.compile(r"(?<![a-z])rtc(?![a-z])", re.IGNORECASE)
"""Mark of radiometric terrain correction in a collection id, a product type or the address of an asset."""
LEVEL: Final = re.compile(r"(?:S2MSI|MSIL|(?<![a-z])L)(1C|2A)", re.IGNORECASE)
"""Level of a Sentinel-2 product in its type, its name or that of its collection."""
IMAGE_TYPES: Final = ("image/tiff", "image/jp2")
"""How the types of images begin that can be read."""
PLATFORM: Final = re.compile(r"^S([12][A-D])_")
"""Platform at the beginning of a product's name."""
BASELINE: Final = re.compile(r"^(\d{1,2})\.(\d{2})$")
"""Processing baseline of Sentinel-2 as catalogues state it."""
BASELINE_IN_NAME: Final = re.compile(r"_N(\d\d)(\d\d)_")
"""Processing baseline in the name of a Sentinel-2 product."""
ORBIT_IN_NAME: Final = re.compile(r"_R(\d{3})_")
"""Relative orbit in the name of a Sentinel-2 product; Earth Search states it nowhere else."""
TILE: Final = re.compile(r"^(\d\d)([C-X])[A-Z]{2}$")
"""MGRS square: zone and latitude band; bands from N on lie north of the equator."""


_Number = Annotated[float, Field(strict=True)]
"""A number, and no text that looks like one: it is calculated with as it is."""


class _Stated(BaseModel):
    """Base of what is checked of an item before it is read: what is stated must be of its type, and may be missing."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _StatedBand(_Stated):
    """An entry of `eo:bands`, `raster:bands` or `bands`."""

    scale: _Number | None = None
    """Scale of the values, STAC 1.0."""
    raster_scale: _Number | None = Field(None, alias="raster:scale")
    """Likewise, STAC 1.1."""
    offset: _Number | None = None
    """Offset of the values, STAC 1.0."""
    raster_offset: _Number | None = Field(None, alias="raster:offset")
    """Likewise, STAC 1.1."""
    spatial_resolution: _Number | None = None
    """Pixel size, metres."""


class _StatedAsset(_Stated):
    """An asset."""

    href: str | None = None
    """Address."""
    gsd: _Number | None = None
    """Ground sampling distance, metres."""
    transform: list[_Number] | None = Field(None, alias="proj:transform")
    """Affine coefficients."""
    resolution: _Number | None = Field(None, alias="raster:spatial_resolution")
    """Pixel size, metres."""
    scale: _Number | None = Field(None, alias="raster:scale")
    """Scale of the values."""
    offset: _Number | None = Field(None, alias="raster:offset")
    """Offset of the values."""
    eo: list[_StatedBand] | None = Field(None, alias="eo:bands")
    """Bands of the file, STAC 1.0."""
    raster: list[_StatedBand] | None = Field(None, alias="raster:bands")
    """Their values, STAC 1.0."""
    bands: list[_StatedBand] | None = None
    """Both, STAC 1.1."""


class _StatedLink(_Stated):
    """A link."""

    href: str
    """Address."""


class _StatedProperties(_Stated):
    """Those properties that are calculated with; the others are checked with the record, or kept as text."""

    zenith: _Number | None = Field(None, alias="s2:mean_solar_zenith")
    """Zenith angle of the sun, degrees."""


class _StatedItem(_Stated):
    """An item."""

    id: str
    """Unique in its collection."""
    collection: str | None = None
    """Id of its collection."""
    bbox: list[_Number]
    """Corners in degrees, with or without height."""
    links: list[_StatedLink] = []
    """Its own address among them."""
    properties: _StatedProperties
    """Facts."""
    assets: dict[str, _StatedAsset]
    """Files by key."""


def to_item_record(
    item: Json, *, base_url: str = "", offset_sources: tuple[OffsetSource, ...] = PRESETS["local"].offset_sources
) -> ItemRecord:
    """The item as a record; `base_url` is that of its catalogue, `offset_sources` whom to believe about the reflectance offset.

    Understands Earth Search (`red`, `scl`, `view:sun_elevation`), Planetary Computer (`B04`, `SCL`, `s2:mean_solar_zenith`), CDSE
    (`B04_10m`, `processing:version`, `product:type`), what stactools writes (one band at several resolutions: the native one is taken),
    STAC 1.0 and 1.1, before and after pystac rewrote them; and the products of `imagers`. An optical item that lacks some bands and a
    Sentinel-1 item with any polarisation are records too: whether that is enough is decided where they are used.

    Raises:
        MissingError: the item holds no band and no polarisation at all.
        DataError: the item is not of a product that can be read, or contradicts itself.
        ConfigError: a value of the item is of a wrong type.
    """
    _check_stated(item)
    properties, sensor = item["properties"], _sensor_of(item)
    if sensor in IMAGERS:
        return _to_imager_record(item, sensor, base_url)
    is_optical = sensor.startswith("sentinel2")
    choices = _choose_assets(item, ASSETS_OF[sensor])
    sun_zenith = properties.get("s2:mean_solar_zenith")
    facts = {
        "item": item["id"],
        "collection": item.get("collection") or "",
        "sensor": sensor,
        "time": _time_of(item),
        "crs": "" if sensor == "sentinel1-grd" else _crs_of(item, choices),  # ground range has none, whatever some catalogues state
        "bbox": _bbox_of(item),
        "assets": _to_assets(item, choices, base_url),
        "cloud_cover_pct": properties.get("eo:cloud_cover") if is_optical else None,
        "processing_baseline": _baseline_of(item) if is_optical else None,
        "declared_offset": _offset_of(choices) if is_optical else None,
        "offset_applied": properties.get("earthsearch:boa_offset_applied"),
        "offset_sources": offset_sources,
        "sun_azimuth_deg": _first_of(properties, "view:sun_azimuth", "s2:mean_solar_azimuth"),
        "sun_elevation_deg": _first_of(properties, "view:sun_elevation") if sun_zenith is None else 90.0 - sun_zenith,
        "properties": _to_facts(item, choices),
    }
    return load_settings(ItemRecord, facts, where="the item")


def _to_imager_record(item: Json, sensor: Sensor, base_url: str) -> ItemRecord:
    """An item of Landsat or MODIS; the moment of a composite that states a period alone is the middle of it."""
    properties, imager = item["properties"], IMAGERS[sensor]
    choices = _choose_planes(item, imager)
    for name, choice in choices.items():
        if name != QA:
            _check_scale(imager, choice)
    period = None if properties.get("datetime") else _period_of(properties)
    facts = {
        "item": item["id"],
        "collection": item.get("collection") or "",
        "sensor": sensor,
        "time": _to_text(period[0] + (period[1] - period[0]) / 2) if period else _time_of(item),
        "crs": _crs_of(item, choices),
        "bbox": _bbox_of(item),
        "assets": {name: {**_to_asset(item, choice.asset, base_url), "index": choice.number} for name, choice in choices.items()},
        "cloud_cover_pct": properties.get("eo:cloud_cover"),
        "sun_azimuth_deg": properties.get("view:sun_azimuth"),
        "sun_elevation_deg": properties.get("view:sun_elevation"),
        "properties": _to_imager_facts(properties, period) | {"platform": _platform_of(item)},
    }
    return load_settings(ItemRecord, facts, where="the item")


def _choose_planes(item: Json, imager: Imager) -> dict[str, _Choice]:
    """The asset with each of an imager's bands by our names, synonyms among them, and that with its quality bits.

    Raises:
        MissingError: the item holds none of the bands.
    """
    images = {key: a for key, a in item["assets"].items() if a.get("href") and str(a.get("type") or "image/tiff").startswith(IMAGE_TYPES)}
    held = {
        name.lower(): _Choice(key, asset, number, (False, 0)) for key, asset in images.items() for number, name in _list_names(key, asset)
    }
    known = {name: imager.names_of(name) for name in (*imager.bands, *imager.synonyms)}
    found = {name: held[key.lower()] for name, keys in known.items() for key in reversed(keys) if key.lower() in held}
    if not found:
        wanted = ", ".join(keys[0] for keys in imager.bands.values())
        raise MissingError(f"none of {wanted} is among its assets: {', '.join(sorted(item['assets']))}")
    quality = held.get(imager.quality.key) if imager.quality else None
    return {name: found[name] for name in known if name in found} | ({QA: quality} if quality else {})


def _list_names(key: str, asset: Json) -> Iterator[tuple[int, str]]:
    """What an image is called, with the number of the band: names of bands inside, and the key, which stands for the first."""
    for number, band in enumerate(asset.get("eo:bands") or asset.get("bands") or (), 1):
        yield number, str(band.get("name"))
    yield 1, key


def _check_scale(imager: Imager, choice: _Choice) -> None:
    stated = {name: _stated_number(choice, name) for name in ("scale", "offset")}
    wrong = find_contradiction(imager, stated)
    if wrong:
        raise DataError(f"its asset {choice.key} states {wrong} in {imager.name}: nobody knows which it is, so it is not read")


def _period_of(properties: Json) -> tuple[datetime, datetime] | None:
    """First and last moment that an item states; None if it does not state both."""
    ends = [properties.get(key) for key in ("start_datetime", "end_datetime")]
    return (_parse_time(ends[0]), _parse_time(ends[1])) if all(ends) else None


def _to_imager_facts(properties: Json, period: tuple[datetime, datetime] | None) -> dict[str, str]:
    """What tells one acquisition and one processing from another."""
    row = [properties.get(f"landsat:wrs_{axis}") for axis in ("path", "row")]
    square = [properties.get(f"modis:{axis}-tile") for axis in ("horizontal", "vertical")]
    tile = "".join(map(str, row)) if all(row) else f"h{square[0]:0>2}v{square[1]:0>2}" if None not in square else ""
    facts = {
        "tile": tile,
        "generated": _first_of(properties, "created", "updated"),
        "period": "/".join(map(_to_text, period)) if period else None,
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}


def to_dem_record(item: Json, *, base_url: str = "") -> ItemRecord:
    """An item with heights of the ground as a record, its file as the asset `dem`; `base_url` is that of its catalogue.

    The surface above which the heights are is taken from the item, else from what is known of its collection: the files of Copernicus DEM
    do not state it.

    Raises:
        MissingError: no asset is a file of heights.
        DataError: the item lacks what every item must state, or contradicts itself.
        ConfigError: a value of the item is of a wrong type.
    """
    _check_stated(item)
    asset, collection = _find_heights(item), item.get("collection") or ""
    known = (datum for name, datum in VERTICAL_DATUMS.items() if collection.startswith(name))
    datum = item["properties"].get("vertical_datum") or next(known, None)
    facts = {
        "item": item["id"],
        "collection": collection,
        "sensor": "dem",
        "time": _time_of(item),
        "crs": _crs_of(item, {"dem": _Choice("dem", asset, 1, (False, 0))}),
        "bbox": _bbox_of(item),
        "assets": {"dem": _to_asset(item, asset, base_url)},
        "properties": {"vertical_datum": str(datum)} if datum else {},
    }
    return load_settings(ItemRecord, facts, where="the item")


def _check_stated(item: Json) -> None:
    for key in ("id", "properties", "assets", "bbox"):
        if not item.get(key):
            raise DataError(f"the item {item.get('id', '')!r} states no {key}")
    load_settings(_StatedItem, item, where="the item")


def _find_heights(item: Json) -> Json:
    """The asset that holds heights: by its key, else the only image with the role `data`."""
    assets = {key: asset for key, asset in item["assets"].items() if asset.get("href")}
    named = [asset for key, asset in assets.items() if key.lower() in DEM_KEYS]
    images = [asset for asset in assets.values() if "data" in (asset.get("roles") or ()) and "tiff" in str(asset.get("type"))]
    if not named and len(images) != 1:
        raise MissingError(f"none of its assets is a file of heights: {', '.join(sorted(item['assets']))}; expected {', '.join(DEM_KEYS)}")
    found: Json = named[0] if named else images[0]
    return found


def _first_of(properties: Json, *keys: str) -> Any:
    """The first of the keys that has a value."""
    return next((properties[key] for key in keys if properties.get(key) is not None), None)


def _platform_of(item: Json) -> str:
    """For example `sentinel-2a`; without the letter if only the constellation is known."""
    named = PLATFORM.match(item["id"])
    stated = _first_of(item["properties"], "platform", "constellation") or (f"sentinel-{named[1]}" if named else "")
    return str(stated).lower().replace(" ", "-").replace("_", "-")


def _sensor_of(item: Json) -> Sensor:
    platform = _platform_of(item)
    if platform.startswith("sentinel-2"):
        return _level_of(item)
    if platform.startswith("sentinel-1"):
        return _correction_of(item)
    if imager := find_imager(item["id"]):
        return imager
    known = ", ".join(imager.name for imager in IMAGERS.values())
    raise DataError(f"platform {platform!r} is not known: expected sentinel-1 or sentinel-2, or {known} with its own id")


def _level_of(item: Json) -> Sensor:
    properties = item["properties"]
    stated = str(_first_of(properties, "s2:product_type", "product:type") or "")
    for text in (stated, properties.get("s2:product_uri"), item["id"], item.get("collection")):
        if level := LEVEL.search(str(text or "")):
            return "sentinel2-l1c" if level[1].upper() == "1C" else "sentinel2-l2a"
    raise DataError(f"nothing tells whether it is L1C or L2A: product type {stated!r}, collection {item.get('collection')!r}")


def _correction_of(item: Json) -> Sensor:
    kind = _first_of(item["properties"], "sar:product_type", "product:type")
    marks = [item.get("collection"), kind, item["id"]]
    if any(RTC.search(str(mark).replace("_", "-")) for mark in [*marks, *(asset.get("href") for asset in item["assets"].values())]):
        return "sentinel1-rtc"
    if "GRD" in str(kind or f"{item['id']} {item.get('collection')}").upper():
        return "sentinel1-grd"
    raise DataError(f"product {kind or item['id']} is neither terrain-corrected gamma0 (RTC) nor ground range (GRD)")


class _Choice(NamedTuple):
    """An asset that holds what one of our names stands for."""

    key: str
    """Key of the asset."""
    asset: Json
    """The asset as the catalogue states it."""
    number: int
    """Band of the file, from 1."""
    misfit: tuple[bool, int]
    """How far it is from the native resolution: whether it is coarser, and by how many metres."""


def _choose_assets(item: Json, names: Sequence[str]) -> dict[str, _Choice]:
    """The best asset for each of our names, in their order: native resolution, else finer, else coarser; then a key of its own."""
    offers: dict[str, list[tuple[bool, _Choice]]] = {}
    for key, asset in item["assets"].items():
        for own_key, name, number in _read_names(key, asset):
            offers.setdefault(name, []).append((own_key, _Choice(key, asset, number, _misfit_of(name, key, asset))))
    best = {
        name: min(offers[name], key=lambda offer: (offer[1].misfit, not offer[0], offer[1].key.upper() != name, offer[1].key))[1]
        for name in names
        if name in offers
    }
    if not best.keys() - {SCL}:
        raise MissingError(f"none of {', '.join(names)} is among its assets: {', '.join(sorted(item['assets']))}")
    return best


def _read_names(key: str, asset: Json) -> Iterator[tuple[bool, str, int]]:
    """What an asset holds: whether its key says so, our name for it, the band of the file."""
    if not asset.get("href") or UNUSED.search(key):
        return
    if own := NAMES.get(RESOLUTION.sub("", key.lower())):
        yield True, own, 1
    elif str(asset.get("type") or "image/tiff").startswith(IMAGE_TYPES):
        for number, band in enumerate(asset.get("eo:bands") or asset.get("bands") or (), 1):
            titles = (band.get("name"), band.get("eo:common_name"), band.get("common_name"))
            if name := next((NAMES[str(title).lower()] for title in titles if str(title).lower() in NAMES), None):
                yield False, name, number


def _misfit_of(name: str, key: str, asset: Json) -> tuple[bool, int]:
    native, suffix = NATIVE_M.get(name), RESOLUTION.search(key.lower())
    if native is None:
        return False, 0
    entry = (asset.get("raster:bands") or [{}])[0]
    stated = suffix[1] if suffix else _first_of({**entry, **asset}, "gsd", "raster:spatial_resolution", "spatial_resolution")
    transform = asset.get("proj:transform")
    metres = float(stated if stated is not None else transform[0] if transform else native)
    return metres > native, round(abs(metres - native))


def _to_assets(item: Json, choices: Mapping[str, _Choice], base_url: str) -> dict[str, dict[str, Any]]:
    """The chosen assets and those that describe them, by our names."""
    assets = {name: {**_to_asset(item, choice.asset, base_url), "index": choice.number} for name, choice in choices.items()}
    described = _find_descriptions(item, choices) if choices.keys() & set(POLARISATIONS) else _find_product_metadata(item)
    return assets | {name: _to_asset(item, asset, base_url) for name, asset in described.items()}


def _find_product_metadata(item: Json) -> dict[str, Json]:
    found = [a for key, a in item["assets"].items() if a.get("href") and any(map(PRODUCT_METADATA.search, (key, a["href"])))]
    return {MTD: found[0]} if found else {}


def _find_descriptions(item: Json, choices: Mapping[str, _Choice]) -> dict[str, Json]:
    """The files that describe the chosen polarisations, by kind and polarisation.

    Planetary Computer and stactools list the file on radio interference as the product annotation of newer products, and some catalogues
    list no annotation at all: it lies beside the others, under their name.
    """
    found: dict[str, Json] = {}
    for key, asset in item["assets"].items():
        match = DESCRIPTION.search(key)
        if match and asset.get("href"):
            kind = match[1].lower().replace("product", "annotation")
            found[f"{kind}-{match[2].upper()}"] = asset
    for name in choices:
        beside = found.get(f"annotation-{name}", found.get(f"calibration-{name}"))
        if beside and BESIDE_ANNOTATION.search(beside["href"]):
            found[f"annotation-{name}"] = {"href": BESIDE_ANNOTATION.sub("annotation/", beside["href"])}  # of which size is not known
    wanted = [f"{kind}-{name}" for name in choices for kind in DESCRIBED_BY]
    return {name: found[name] for name in wanted if name in found}


def _to_asset(item: Json, asset: Json, base_url: str) -> dict[str, Any]:
    href = _relative_to(base_url, strip_signature(_absolute(item, asset["href"])))
    checksum = _first_of(asset, "file:checksum", "checksum:multihash")
    return {"href": href, "checksum": checksum, "size_bytes": asset.get("file:size")}


def _absolute(item: Json, href: str) -> str:
    own = next((link["href"] for link in item.get("links", []) if link.get("rel") == "self"), "")
    return urljoin(own, href) if urlsplit(own).scheme in ("http", "https") else href


def _relative_to(base_url: str, href: str) -> str:
    return href.removeprefix(f"{base_url}/") if base_url else href


def _bbox_of(item: Json) -> tuple[float, float, float, float]:
    """West, south, east, north of a box with two or three dimensions, longitudes within -180..180."""
    bbox = item["bbox"]
    if len(bbox) not in (4, 6):
        raise DataError(f"its bbox {bbox} is not of four or six numbers")
    west, south, east, north = bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1]
    if not -90 <= south <= north <= 90:
        raise DataError(f"its bbox {bbox} is not west, south, east, north in degrees")
    return _wrap_longitude(west), south, _wrap_longitude(east), north


def _wrap_longitude(longitude_deg: float) -> float:
    return longitude_deg if -180 <= longitude_deg <= 180 else (longitude_deg + 180) % 360 - 180


def _crs_of(item: Json, choices: Mapping[str, _Choice]) -> str:
    """The CRS that the item or its first asset states, else that of its Sentinel-2 tile; empty if nothing tells."""
    for stated in (item["properties"], *(choice.asset for choice in choices.values())):
        code, epsg = stated.get("proj:code"), stated.get("proj:epsg")
        if code or epsg:
            return str(code or f"EPSG:{epsg}")
    tile = TILE.match(_tile_of(item["properties"]))
    return f"EPSG:{326 if tile[2] >= 'N' else 327}{tile[1]}" if tile else ""


def _tile_of(properties: Json) -> str:
    """For example `06VVN`; some catalogues drop the leading zero."""
    square = [str(properties.get(key) or "") for key in ("mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square")]
    tile = _first_of(properties, "s2:mgrs_tile", "grid:code") or ("".join(square) if all(square) else "")
    return f"{str(tile).removeprefix('MGRS-'):0>5}" if tile else ""


def _time_of(item: Json) -> str:
    return _to_text(_parse_time(_first_of(item["properties"], "datetime", "start_datetime")))


def _parse_time(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise DataError(f"its time {text!r} is not RFC 3339") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _to_text(moment: datetime) -> str:
    return moment.isoformat().removesuffix("+00:00") + "Z"


def _baseline_of(item: Json) -> str | None:
    properties = item["properties"]
    for key in ("s2:processing_baseline", "processing:version"):
        if stated := BASELINE.match(str(properties.get(key) or "")):
            return f"{stated[1]:0>2}.{stated[2]}"
    named = BASELINE_IN_NAME.search(f"{properties.get('s2:product_uri', '')} {item['id']}")
    return f"{named[1]}.{named[2]}" if named else None


def _offset_of(choices: Mapping[str, _Choice]) -> float | None:
    """The reflectance offset that all bands state, in `raster:bands` (STAC 1.0) or in `bands` (STAC 1.1); None if they state none."""
    stated = {name: _stated_number(choice, "offset") for name, choice in choices.items() if name != SCL}
    offsets = {offset for offset in stated.values() if offset is not None}
    if len(offsets) > 1:
        raise DataError(f"its bands state different offsets: {sorted(offsets)}")
    return offsets.pop() if offsets else None


def _stated_number(choice: _Choice, what: str) -> float | None:
    """The `offset` or `scale` of an asset."""
    entries = ((choice.asset.get(key) or [{}]) for key in ("raster:bands", "bands"))
    old, new = (of_bands[min(choice.number, len(of_bands)) - 1] for of_bands in entries)
    stated = _first_of({**choice.asset, **new, what: old.get(what)}, what, f"raster:{what}")
    return None if stated is None else float(stated)


def _to_facts(item: Json, choices: Mapping[str, _Choice]) -> dict[str, str]:
    """What tells one acquisition and one processing from another, in one spelling."""
    properties, pols = item["properties"], [name for name in choices if name in POLARISATIONS]
    names = f"{properties.get('s2:product_uri', '')} {item['id']}"
    orbit, coarse = ORBIT_IN_NAME.search(names), [f"{name} from {choice.key}" for name, choice in choices.items() if choice.misfit[0]]
    facts = {
        "platform": _platform_of(item),
        "tile": _tile_of(properties),
        "orbit_state": properties.get("sat:orbit_state"),
        "relative_orbit": _first_of(properties, "sat:relative_orbit") or (int(orbit[1]) if orbit else None),
        "absolute_orbit": properties.get("sat:absolute_orbit"),
        "datatake": _first_of(properties, "s2:datatake_id", "s1:datatake_id", "eopf:datatake_id"),
        "datastrip": _first_of(properties, "s2:datastrip_id", "eopf:datastrip_id"),
        "product": _first_of(properties, "s2:product_uri", "s1:product_identifier"),
        "generated": _first_of(properties, "s2:generation_time", "s1:processing_datetime", "processing:datetime", "created"),
        "mode": properties.get("sar:instrument_mode"),
        "slice": properties.get("s1:slice_number"),
        "polarisations": " ".join(pols),
        "coarser": ", ".join(coarse),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}
