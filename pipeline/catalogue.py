"""STAC catalogues: open one by the name of a preset, URL or folder, and search it.

Enters: an address. Leaves: items as the catalogue states them, each once, and what finding them took.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from sereno.pipeline.errors import CatalogueError, MissingError, PermanentError
from sereno.pipeline.http import RETRIED, Budget, hide_secrets, make_patient
from sereno.pipeline.presets import PRESETS, Preset, find_preset
from sereno.pipeline.server import running_server
from sereno.pipeline.signing import Resolver

if TYPE_CHECKING:  # pystac and requests cost a third of a second, which reading one scene does not need
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

logger = logging.getLogger(__name__)

Bbox = tuple[float, float, float, float]
Period = tuple[datetime | None, datetime | None]
Json = dict[str, Any]

ITEM_SEARCH: Final = re.compile(r"/v1\.[^/]+/item-search$")
"""Conformance class of an API that searches items, whatever minor version it states."""
CONNECTION_FAULTS: Final = {
    "NameResolutionError": "its host is not found, so there is no network, or the name is wrong",
    "ProxyError": "the proxy of this network does not let it through",
    "Connection refused": "nothing listens at its address",
    "ConnectTimeout": "no connection comes about",
}
"""What urllib3 and requests name, in plain words."""
PAGE: Final = 250
"""Items asked for per page."""
LONG_PERIOD: Final = timedelta(days=31)
"""Longer periods are searched month by month: deep pages are slow and fail more often (stac-utils/pystac-client issues 659 and 680)."""
STALE_PAGES: Final = 10
"""After so many pages in a row without a new item paging is given up: servers may send empty pages that lead on to full ones, as those do
that filter what their index has found, and others go round in circles (stac-utils/pystac-client issue 629)."""
REMEDY: Final = (
    "choose a smaller area or a shorter start..end, name the collections in pipeline.query, or raise pipeline.query.max_requests"
)
"""What helps against a spent budget."""


@dataclass(frozen=True)
class Catalogue:
    """An open catalogue."""

    address: str
    """What the user gave: a URL or a folder."""
    base_url: str
    """URL of the landing page, without a slash at the end."""
    preset: Preset
    """What is known of it."""
    budget: Budget = field(default_factory=Budget, compare=False)
    """Counts what it is asked."""
    pause: Callable[[float], None] = field(default=time.sleep, compare=False)
    """Waits so many seconds between two tries."""

    @property
    def resolver(self) -> Resolver:
        """Makes the addresses of its assets readable."""
        return Resolver.from_preset(self.base_url, self.preset)

    @functools.cached_property
    def reader(self) -> StacApiIO:
        """What asks for the client, and for pages by itself."""
        return _make_reader(self)

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
        with _plain_faults(self), _silent_client():
            return tuple(sorted(collection.id for collection in client.get_collections()))


class SearchStatistics(NamedTuple):
    """What a search took, for the ledger and the log."""

    requests: int
    """Requests made, repetitions included."""
    retries: int
    """Requests that repeated one that failed."""
    pages: int
    """Pages that came and were used."""
    repeats: int
    """Items that came more than once in the pages of one search."""
    warnings: tuple[str, ...]
    """What was odd about the answers, one line each: fewer items than stated, pages in circles, a month asked twice."""


class SearchResult(NamedTuple):
    """What a search found."""

    items: list[Json]
    """Items as the catalogue states them, each once, in order of collection and id."""
    statistics: SearchStatistics
    """What it took."""


@contextlib.contextmanager
def open_catalogue(address: str, *, max_requests: int | None = None, pause: Callable[[float], None] = time.sleep) -> Iterator[Catalogue]:
    """The catalogue at `address`: a STAC API by URL, or a folder with `catalog.json`, served by a child process as long as the block lasts.

    At most `max_requests` are made to a STAC API, repetitions included; None means no limit. `pause` waits between two tries.

    Raises:
        MissingError: the folder is not there or holds no catalogue.
        CatalogueError: the embedded server does not start. A URL is first asked when something is searched.
    """
    preset, budget = find_preset(address), Budget(max_requests, REMEDY)
    url = preset.url if not urlsplit(address).scheme else address
    if url:
        yield Catalogue(address, url.rstrip("/"), preset, budget, pause)
        return
    if not Path(address).is_dir():
        known = ", ".join(name for name in PRESETS if name != "local")
        raise MissingError(
            f"catalogue {address!r} is neither a preset ({known}), a URL nor a folder: correct it in pipeline.query, "
            "or run `sereno simulate`"
        )
    with running_server(Path(address)) as base_url:
        yield Catalogue(address, base_url, preset, budget, pause)


def _make_reader(catalogue: Catalogue) -> StacApiIO:
    from pystac_client.stac_api_io import StacApiIO

    reader = StacApiIO(max_retries=None)
    make_patient(reader.session, catalogue.budget, catalogue.pause)
    if Path(catalogue.address).is_dir():
        reader.session.trust_env = False  # a proxy of the surroundings knows nothing of our own child
    return reader


def _connect(catalogue: Catalogue) -> Client:
    from pystac_client import Client

    with _plain_faults(catalogue), _silent_client():
        client: Client = Client.open(catalogue.base_url, stac_io=catalogue.reader)
    if not any(ITEM_SEARCH.search(name) for name in client.get_conforms_to()):
        raise PermanentError(f"{catalogue.address} offers no item search: give the landing page of a STAC API, not of a static catalogue")
    client.add_conforms_to("ITEM_SEARCH")  # the client itself knows version 1.0 alone
    return client


@contextlib.contextmanager
def _silent_client() -> Iterator[None]:
    """Without the warnings of pystac-client on landing pages that leave something out: it finds its way, or what it lacks is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _InterruptedError(CatalogueError):
    """An answer that broke off or never came: asking again may help."""


@contextlib.contextmanager
def _plain_faults(catalogue: Catalogue) -> Iterator[None]:
    """Let the faults of pystac-client pass as ours, in one line and without signatures."""
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError

    place = hide_secrets(catalogue.address)
    try:
        yield
    except APIError as error:
        if isinstance(error.__context__, CatalogueError):  # ours, which the client has wrapped
            known = PermanentError if isinstance(error.__context__, PermanentError) else CatalogueError
            raise known(f"catalogue {place}: {error.__context__}") from None
        status = getattr(error, "status_code", None)
        words = hide_secrets(_find_cause(str(error)))[:300]
        stated = f"HTTP {status}: {words}" if status else words
        kind = _InterruptedError if status is None or status in RETRIED else PermanentError
        raise kind(f"catalogue {place} does not answer as it should: {stated}; try again later or check the URL") from None
    except json.JSONDecodeError as error:
        raise _InterruptedError(f"catalogue {place} answers, but not as a STAC API ({error}): check the URL") from None
    except (ClientTypeError, ValueError, AttributeError, KeyError) as error:  # pystac on JSON that is not STAC
        raise PermanentError(f"catalogue {place} answers, but not as a STAC API ({hide_secrets(str(error))}): check the URL") from error


def _find_cause(words: str) -> str:
    """What a library says of a failed connection in words of ours: its own are nested three deep."""
    for mark, plain in CONNECTION_FAULTS.items():
        if mark in words:
            return plain
    return words


def select_collections(
    catalogue: Catalogue, wanted: tuple[str, ...], *, settings: str = "optical_collections and sar_collections"
) -> tuple[str, ...]:
    """Those of the wanted collections that the catalogue has, in the wanted order; `settings` are those of `query` that name them.

    Raises:
        PermanentError: it has none of them; the message names what it has.
    """
    chosen = tuple(name for name in wanted if name in catalogue.collections)
    if not chosen:
        known = ", ".join(catalogue.collections[:12]) + (", ..." if len(catalogue.collections) > 12 else "")
        raise PermanentError(
            f"catalogue {hide_secrets(catalogue.address)} has none of the collections {', '.join(wanted)}; it has {known or 'none at all'}"
            f": name some of them in pipeline.query.{settings}"
        )
    return chosen


def search_items(catalogue: Catalogue, collections: tuple[str, ...], bboxes: Sequence[Bbox], period: Period) -> SearchResult:
    """Every item of the collections that touches one of `bboxes` (degrees) within `period`, once.

    An area across 180 degrees comes as two boxes. A period of more than a month is asked for month by month; one whose pages break off in
    spite of all retries is asked for once more from its start. Servers may repeat items from page to page (microsoft/PlanetaryComputer
    issue 163): repeats are removed and counted.

    Raises:
        CatalogueError: no answer in spite of all that, or more requests than allowed.
    """
    requests, retries = catalogue.budget.requests, catalogue.budget.retries
    questions = [_Question(collections, bbox, part) for part in split_period(period) for bbox in bboxes]
    answers = [_ask_twice(catalogue, question) for question in questions]
    items: dict[tuple[str, str], Json] = {}
    for answer in answers:
        items = answer.items | items  # of an item in two months or boxes the first answer stays
    notes = tuple(note for answer in answers for note in answer.notes)
    for note in notes:
        logger.warning("catalogue %s, %s", hide_secrets(catalogue.address), note)
    statistics = SearchStatistics(
        requests=catalogue.budget.requests - requests,
        retries=catalogue.budget.retries - retries,
        pages=sum(answer.pages for answer in answers),
        repeats=sum(answer.repeats for answer in answers),
        warnings=notes,
    )
    return SearchResult([items[key] for key in sorted(items)], statistics)


def split_period(period: Period) -> tuple[Period, ...]:
    """The calendar months of a long period, each with its first moment and that of the next one; a short or open period as it is."""
    start, end = period
    if start is None or end is None or end - start <= LONG_PERIOD:
        return (period,)
    edges = [start]
    while edges[-1] < end:
        month = edges[-1].replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        edges.append(min((month + LONG_PERIOD).replace(day=1), end))
    return tuple(itertools.pairwise(edges))


class _Question(NamedTuple):
    """One search."""

    collections: tuple[str, ...]
    """Ids of the collections."""
    bbox: Bbox
    """West, south, east, north in degrees."""
    period: Period
    """First and last moment."""

    def __str__(self) -> str:
        first, last = (f"{end:%Y-%m-%d}" if end else ".." for end in self.period)
        return f"{first}/{last}"


class _Answer(NamedTuple):
    """All pages of one search."""

    items: dict[tuple[str, str], Json]
    """Items by collection and id."""
    pages: int
    """Pages that came."""
    repeats: int
    """Items that came more than once."""
    notes: tuple[str, ...]
    """What was odd, one line each."""


def _ask_twice(catalogue: Catalogue, question: _Question) -> _Answer:
    """The answer to `question`, asked again from its first page if its pages break off: nobody else knows how to go on in the middle."""
    client = catalogue.client
    try:
        return _ask(catalogue, client, question)
    except _InterruptedError as error:
        logger.info("%s; asking for %s once more", error, question)
        answer = _ask(catalogue, client, question)
        return answer._replace(notes=(*answer.notes, f"{question}: its pages broke off and were asked for again"))


def _ask(catalogue: Catalogue, client: Client, question: _Question) -> _Answer:
    items: dict[tuple[str, str], Json] = {}
    notes: list[str] = []
    followed: set[str] = set()
    pages = repeats = stale = 0
    stated: int | None = None
    for page in _read_pages(catalogue, client, question):
        pages += 1
        new = {(str(item.get("collection", "")), str(item["id"])): item for item in page["features"]}
        repeats += len(page["features"]) - len(new.keys() - items.keys())
        stale = stale + 1 if new.keys() <= items.keys() else 0
        items = new | items
        stated = _count_of(page) if stated is None else stated
        link = _name_next(page)
        if link and (link in followed or stale >= STALE_PAGES):
            fault = "went round in circles" if link in followed else f"brought nothing new in {stale} pages one after the other"
            notes.append(f"{question}: paging {fault} and was stopped after {pages} pages with {len(items)} items")
            break
        followed.add(link)
    if stated is not None and len(items) < stated:
        notes.append(f"{question}: {stated} items were announced, {len(items)} came")
    return _Answer(items, pages, repeats, tuple(notes))


def _read_pages(catalogue: Catalogue, client: Client, question: _Question) -> Iterator[Json]:
    from pystac import Link

    interval = None if question.period == (None, None) else question.period
    with _plain_faults(catalogue):
        with _silent_client():  # GET: every STAC API has to know it, POST is optional
            search = client.search(method="GET", collections=list(question.collections), bbox=question.bbox, datetime=interval, limit=PAGE)
        reader, parameters = catalogue.reader, search.get_parameters()
        page = _to_page(reader.read_json(search.url, method="GET", parameters=parameters))
        yield page
        while link := _find_next(page):  # NOTE: the client's own paging takes an empty page for the last one, whatever it links to
            page = _to_page(reader.read_json(Link.from_dict(link), parameters=parameters))
            yield page


def _to_page(answer: Json) -> Json:
    """An answer that lists items with an id each, null for none; the faults are those that `_plain_faults` knows."""
    features = (answer["features"] or []) if isinstance(answer, dict) else None
    if not isinstance(features, list):
        raise ValueError(f"a page is no list of features: {str(answer)[:80]}")
    for item in features:
        if not isinstance(item, dict) or not item.get("id"):
            raise ValueError(f"a feature is no item with an id: {str(item)[:80]}")
    return {**answer, "features": features}


def _find_next(page: Json) -> Json | None:
    """The link to the next page; None if there is none."""
    return next((link for link in page.get("links") or () if link.get("rel") == "next"), None)


def _name_next(page: Json) -> str:
    """The next page's address and body as one text; empty if there is none."""
    link = _find_next(page)
    return json.dumps([link.get("href"), link.get("body")], sort_keys=True) if link else ""


def _count_of(page: Json) -> int | None:
    """Number of items that a page states for the whole search: OGC API, or the context extension of STAC API before 1.0."""
    stated = page.get("numberMatched", (page.get("context") or {}).get("matched"))
    return stated if isinstance(stated, int) else None
