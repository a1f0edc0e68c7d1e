"""Catalogue items brought into one form, whatever the dialect they were written in.

Enters: a STAC item as a mapping. Leaves: an `ItemRecord`, or a refusal that says what the item lacks. Pure; addresses inside the catalogue
are kept relative to it, so that a lock written from an embedded server names no port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from sereno.pipeline.bands import L2A_BANDS, SAR_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.pairs import ItemRecord, Sensor

Json = Mapping[str, Any]

RTC: Final = re.compile("rtc", re.IGNORECASE)
"""Mark of radiometric terrain correction in a collection id, a product type or the address of an asset."""
BASELINE_IN_NAME: Final = re.compile(r"_N(\d\d)(\d\d)_")
"""Processing baseline in the name of a Sentinel-2 product."""


def to_item_record(item: Json, *, base_url: str = "") -> ItemRecord:
    """The item as a record; `base_url` is that of its catalogue.

    Understands the keys of Earth Search (`red`, `scl`, `proj:code`, `raster:bands`, `view:sun_elevation`) and of Planetary Computer
    (`B04`, `SCL`, `proj:epsg`, `s2:mean_solar_zenith`), before and after pystac rewrote them.

    Raises:
        MissingError: an asset of a band or polarisation is missing.
        DataError: the item is not of a product that can be read, or contradicts itself.
        ConfigError: a value of the item is of a wrong type.
    """
    for key in ("id", "properties", "assets", "bbox"):
        if not item.get(key):
            raise DataError(f"the item {item.get('id', '')!r} states no {key}")
    properties, sensor = item["properties"], _sensor_of(item)
    assets = _select_assets(item, L2A_BANDS if sensor == "sentinel2-l2a" else SAR_BANDS)
    bbox = item["bbox"]
    crs = _crs_of(properties) or _crs_of(next(iter(assets.values())))
    sun_zenith = properties.get("s2:mean_solar_zenith")
    facts = {
        "item": item["id"],
        "collection": item.get("collection") or "",
        "sensor": sensor,
        "time": _time_of(item),
        "crs": crs,
        "bbox": (bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1]),
        "assets": {name: _to_asset(item, asset, base_url) for name, asset in assets.items()},
        "cloud_cover_pct": properties.get("eo:cloud_cover") if sensor == "sentinel2-l2a" else None,
        "processing_baseline": _baseline_of(item),
        "declared_offset": _offset_of(assets) if sensor == "sentinel2-l2a" else None,
        "offset_applied": properties.get("earthsearch:boa_offset_applied"),
        "sun_azimuth_deg": _first_of(properties, "view:sun_azimuth", "s2:mean_solar_azimuth"),
        "sun_elevation_deg": _first_of(properties, "view:sun_elevation") if sun_zenith is None else 90.0 - sun_zenith,
        "properties": _facts_of(properties),
    }
    return load_settings(ItemRecord, facts, where="the item")


def _first_of(properties: Json, *keys: str) -> Any:
    """The first of the keys that has a value."""
    return next((properties[key] for key in keys if properties.get(key) is not None), None)


def _sensor_of(item: Json) -> Sensor:
    properties = item["properties"]
    name = str(_first_of(properties, "constellation", "platform") or "").lower().replace(" ", "-")
    if name.startswith("sentinel-2"):
        level = str(properties.get("s2:product_type") or "S2MSI2A")
        if level != "S2MSI2A":
            raise DataError(f"product {level} is not surface reflectance (S2MSI2A)")
        return "sentinel2-l2a"
    if name.startswith("sentinel-1"):
        marks = [item.get("collection"), properties.get("sar:product_type"), *(asset.get("href") for asset in item["assets"].values())]
        if not any(RTC.search(str(mark)) for mark in marks):
            raise DataError(f"collection {item.get('collection')!r} is not terrain-corrected gamma0 (RTC)")
        return "sentinel1-rtc"
    raise DataError(f"constellation {name!r} is not known: expected sentinel-1 or sentinel-2")


def _select_assets(item: Json, bands: tuple[str, ...]) -> dict[str, Json]:
    """The assets of the bands, and of the scene classification where there is one, by our names."""
    common = {band.name: band.common_name for band in SENTINEL2_BANDS}
    chosen = {}
    for name in (*bands, *([SCL] if bands == L2A_BANDS else [])):
        keys = (name, common.get(name, name.lower()), name.lower())
        asset = _first_of(item["assets"], *keys)
        if asset is not None and asset.get("href"):
            chosen[name] = asset
        elif name != SCL:
            raise MissingError(f"asset {' or '.join(dict.fromkeys(keys))} is missing; the item has {', '.join(sorted(item['assets']))}")
    return chosen


def _to_asset(item: Json, asset: Json, base_url: str) -> dict[str, Any]:
    href = _relative_to(base_url, _absolute(item, asset["href"]))
    return {"href": href, "checksum": asset.get("file:checksum"), "size_bytes": asset.get("file:size")}


def _absolute(item: Json, href: str) -> str:
    own = next((link["href"] for link in item.get("links", []) if link.get("rel") == "self"), "")
    return urljoin(own, href) if urlsplit(own).scheme in ("http", "https") else href


def _relative_to(base_url: str, href: str) -> str:
    return href.removeprefix(f"{base_url}/") if base_url else href


def _crs_of(properties: Json) -> str:
    code, epsg = properties.get("proj:code"), properties.get("proj:epsg")
    return str(code) if code else f"EPSG:{epsg}" if epsg else ""


def _time_of(item: Json) -> str:
    text = _first_of(item["properties"], "datetime", "start_datetime")
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        raise DataError(f"its time {text!r} is not RFC 3339") from None
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.isoformat().removesuffix("+00:00") + "Z"


def _baseline_of(item: Json) -> str | None:
    properties = item["properties"]
    stated = _first_of(properties, "s2:processing_baseline", "processing:version")
    named = BASELINE_IN_NAME.search(f"{properties.get('s2:product_uri', '')} {item['id']}")
    return str(stated) if stated is not None else f"{named[1]}.{named[2]}" if named else None


def _offset_of(assets: Mapping[str, Json]) -> float | None:
    """The reflectance offset that all bands state, in `raster:bands` (STAC 1.0) or in `bands` (STAC 1.1); None if they state none."""
    offsets = set()
    for name, asset in assets.items():
        if name != SCL:
            raster, band = ((asset.get(key) or [{}])[0] for key in ("raster:bands", "bands"))
            offsets.add(_first_of({**asset, **band, "offset": raster.get("offset")}, "offset", "raster:offset"))
    if len(offsets) > 1:
        raise DataError(f"its bands state different offsets: {sorted(offsets, key=str)}")
    (offset,) = offsets
    return None if offset is None else float(offset)


def _facts_of(properties: Json) -> dict[str, str]:
    """What tells one acquisition and one processing from another, in one spelling."""
    square = [properties.get(key) for key in ("mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square")]
    tile = _first_of(properties, "s2:mgrs_tile", "grid:code") or ("".join(map(str, square)) if all(square) else None)
    facts = {
        "platform": str(properties.get("platform") or "").lower(),
        "tile": str(tile or "").removeprefix("MGRS-"),
        "orbit_state": properties.get("sat:orbit_state"),
        "relative_orbit": properties.get("sat:relative_orbit"),
        "datastrip": properties.get("s2:datastrip_id"),
        "product": properties.get("s2:product_uri"),
        "generated": _first_of(properties, "s2:generation_time", "s1:processing_datetime", "processing:datetime", "created"),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}
