"""STAC catalogues: open one by URL or folder, search it, and bring its items into one form whatever the dialect.

Enters: an address. Leaves: items, each once, and `SceneRecord`s. Addresses inside the catalogue are kept relative to it, so that a lock
written from an embedded server names no port; `resolve_href` makes them readable again.
"""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from sereno.pipeline.bands import L2A_BANDS, SAR_BANDS, SCL, SENTINEL2_BANDS
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import CatalogueError, DataError, MissingError
from sereno.pipeline.pairs import SceneRecord, Sensor
from sereno.pipeline.server import running_server

if TYPE_CHECKING:  # pystac and requests cost a third of a second, which reading one scene does not need
    from pystac_client import Client
    from urllib3 import Retry

Json = Mapping[str, Any]
Bbox = tuple[float, float, float, float]
Period = tuple[datetime | None, datetime | None]

RETRIED: Final = (429, 502, 503, 504)
"""HTTP answers that are worth another try: too many requests, and gateways that are down for a moment."""
ATTEMPTS: Final = 6
"""Further tries of a request; the pauses between them double from one second on, plus jitter."""
CONNECT_ATTEMPTS: Final = 2
"""Further tries if nothing listens at all."""
TIMEOUT_S: Final = (10.0, 60.0)
"""Longest wait for a connection, and for the next piece of an answer."""
PAGE: Final = 250
"""Items asked for per page."""
TOKENS: Final = {"planetarycomputer.microsoft.com": "https://planetarycomputer.microsoft.com/api/sas/v1/token"}
"""Host of a catalogue whose assets need a signature, to the address that gives one per storage container (Planetary Computer,
`Using tokens for data access`). A signature lives about 45 minutes, so it is fetched when reading, never stored."""
SIGNED_HOST: Final = ".blob.core.windows.net"
"""Assets on these hosts need the signature."""
RTC: Final = re.compile("rtc", re.IGNORECASE)
"""Mark of radiometric terrain correction in a collection id, a product type or the address of an asset."""
BASELINE_IN_NAME: Final = re.compile(r"_N(\d\d)(\d\d)_")
"""Processing baseline in the name of a Sentinel-2 product."""


@dataclass(frozen=True)
class Catalogue:
    """An open catalogue."""

    address: str
    """What the user gave: a URL or a folder."""
    base_url: str
    """URL of the landing page, without a slash at the end."""

    @functools.cached_property
    def client(self) -> Client:
        """The standard client, connected at first use.

        Raises:
            CatalogueError: nothing answers, or what answers is no STAC API with search.
        """
        return _connect(self)

    @functools.cached_property
    def collections(self) -> tuple[str, ...]:
        """Ids of the collections, asked once.

        Raises:
            CatalogueError: no answer.
        """
        client = self.client
        with _plain_faults(self):
            return tuple(sorted(collection.id for collection in client.get_collections()))


@contextlib.contextmanager
def open_catalogue(address: str) -> Iterator[Catalogue]:
    """The catalogue at `address`: a STAC API by URL, or a folder with `catalog.json`, served by a child process as long as the block lasts.

    Raises:
        MissingError: the folder is not there or holds no catalogue.
        CatalogueError: the embedded server does not start. A URL is first asked when something is searched.
    """
    if urlsplit(address).scheme in ("http", "https"):
        yield Catalogue(address, address.rstrip("/"))
        return
    if not Path(address).is_dir():
        raise MissingError(
            f"catalogue {address!r} is neither a URL nor a folder: correct pipeline.query.catalogue, or run `sereno simulate`"
        )
    with running_server(Path(address)) as base_url:
        yield Catalogue(address, base_url)


def _make_retry() -> Retry:
    from urllib3 import Retry

    # Every request here only reads, so POST may be repeated too.
    return Retry(
        total=ATTEMPTS, connect=CONNECT_ATTEMPTS, status_forcelist=RETRIED, allowed_methods=None, backoff_factor=0.5, backoff_jitter=0.5
    )


def _connect(catalogue: Catalogue) -> Client:
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    reader = StacApiIO(max_retries=_make_retry(), timeout=TIMEOUT_S)
    if not urlsplit(catalogue.address).scheme:
        reader.session.trust_env = False  # a proxy of the surroundings knows nothing of our own child
    with _plain_faults(catalogue), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is checked below
        client: Client = Client.open(catalogue.base_url, stac_io=reader)
    if not client.conforms_to("ITEM_SEARCH"):
        raise CatalogueError(f"{catalogue.address} offers no item search: give the landing page of a STAC API, not of a static catalogue")
    return client


@contextlib.contextmanager
def _plain_faults(catalogue: Catalogue) -> Iterator[None]:
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError

    try:
        yield
    except APIError as error:
        words = " ".join(str(error).split())[:300]
        raise CatalogueError(
            f"catalogue {catalogue.address} does not answer as it should: {words}; try again later or check the URL"
        ) from error
    except (ClientTypeError, ValueError, AttributeError, KeyError) as error:  # pystac on JSON, or on no JSON, that is not STAC
        raise CatalogueError(f"{catalogue.address} answers, but not as a STAC API ({error}): check the URL") from error


def select_collections(catalogue: Catalogue, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the wanted collections that the catalogue has, in the wanted order.

    Raises:
        CatalogueError: it has none of them; the message names what it has.
    """
    chosen = tuple(name for name in wanted if name in catalogue.collections)
    if not chosen:
        known = ", ".join(catalogue.collections[:12]) + (", ..." if len(catalogue.collections) > 12 else "")
        raise CatalogueError(
            f"catalogue {catalogue.address} has none of the collections {', '.join(wanted)}; it has {known or 'none at all'}"
        )
    return chosen


def search_items(catalogue: Catalogue, collections: tuple[str, ...], bbox: Bbox, period: Period) -> list[dict[str, Any]]:
    """Every item of the collections that touches `bbox` (degrees) within `period`, once, in order of collection and id.

    Servers may repeat items from page to page (microsoft/PlanetaryComputer#163): repeats are removed.

    Raises:
        CatalogueError: no answer, in spite of retries.
    """
    interval = None if period == (None, None) else period
    with _plain_faults(catalogue):
        # GET: every STAC API has to know it, POST is optional.
        search = catalogue.client.search(method="GET", collections=list(collections), bbox=bbox, datetime=interval, limit=PAGE)
        items = {(str(item.get("collection", "")), str(item["id"])): item for item in search.items_as_dicts()}
    return [items[key] for key in sorted(items)]


def resolve_href(catalogue: Catalogue, href: str) -> str:
    """The address of an asset as it can be read now: absolute, and signed where the catalogue's host asks for that.

    Raises:
        CatalogueError: no signature is given.
    """
    if not urlsplit(href).scheme:
        return f"{catalogue.base_url}/{href}"
    parts, service = urlsplit(href), TOKENS.get(urlsplit(catalogue.base_url).netloc)
    if service is None or not parts.netloc.endswith(SIGNED_HOST):
        return href
    account, container = parts.netloc.removesuffix(SIGNED_HOST), parts.path.split("/")[1]
    return f"{href}?{_read_token(f'{service}/{account}/{container}')}"


@functools.lru_cache
def _read_token(address: str) -> str:
    import requests
    from requests.adapters import HTTPAdapter

    with requests.Session() as session:
        session.mount("https://", HTTPAdapter(max_retries=_make_retry()))
        try:
            answer = session.get(address, timeout=TIMEOUT_S)
            answer.raise_for_status()
            return str(answer.json()["token"])
        except (requests.RequestException, KeyError) as error:
            raise CatalogueError(f"{address} gives no signature for reading assets ({error}): try again later") from error


def to_scene_record(item: Json, *, base_url: str = "") -> SceneRecord:
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
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", item["id"]).lstrip("._-"),
        "item": item["id"],
        "collection": item.get("collection") or "",
        "sensor": sensor,
        "time": _time_of(item),
        "crs": crs,
        "bbox": (bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1]),
        "assets": {name: _relative_to(base_url, _absolute(item, asset["href"])) for name, asset in assets.items()},
        "cloud_cover_pct": properties.get("eo:cloud_cover") if sensor == "sentinel2-l2a" else None,
        "processing_baseline": _baseline_of(item),
        "declared_offset": _offset_of(assets) if sensor == "sentinel2-l2a" else None,
        "offset_applied": properties.get("earthsearch:boa_offset_applied"),
        "sun_azimuth_deg": _first_of(properties, "view:sun_azimuth", "s2:mean_solar_azimuth"),
        "sun_elevation_deg": _first_of(properties, "view:sun_elevation") if sun_zenith is None else 90.0 - sun_zenith,
        "properties": _facts_of(properties),
    }
    return load_settings(SceneRecord, facts, where="the item")


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
