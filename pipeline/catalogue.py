"""STAC catalogues: open one by the name of a preset, URL or folder, and search it.

Enters: an address. Leaves: items as the catalogue states them, each once.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sereno.pipeline.errors import CatalogueError, MissingError
from sereno.pipeline.http import TIMEOUT_S, make_retry
from sereno.pipeline.presets import Preset, find_preset
from sereno.pipeline.server import running_server
from sereno.pipeline.signing import Resolver

if TYPE_CHECKING:  # pystac and requests cost a third of a second, which reading one scene does not need
    from pystac_client import Client

Bbox = tuple[float, float, float, float]
Period = tuple[datetime | None, datetime | None]

PAGE: Final = 250
"""Items asked for per page."""


@dataclass(frozen=True)
class Catalogue:
    """An open catalogue."""

    address: str
    """What the user gave: a URL or a folder."""
    base_url: str
    """URL of the landing page, without a slash at the end."""
    preset: Preset
    """What is known of it."""

    @property
    def resolver(self) -> Resolver:
        """Makes the addresses of its assets readable."""
        return Resolver(self.base_url, self.preset.signed_by, tuple(sorted(self.preset.gdal.items())))

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
    preset = find_preset(address)
    url = preset.url if not urlsplit(address).scheme else address
    if url:
        yield Catalogue(address, url.rstrip("/"), preset)
        return
    if not Path(address).is_dir():
        raise MissingError(
            f"catalogue {address!r} is neither a preset, a URL nor a folder: correct pipeline.query.catalogue, or run `sereno simulate`"
        )
    with running_server(Path(address)) as base_url:
        yield Catalogue(address, base_url, preset)


def _connect(catalogue: Catalogue) -> Client:
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    reader = StacApiIO(max_retries=make_retry(), timeout=TIMEOUT_S)
    if Path(catalogue.address).is_dir():
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
