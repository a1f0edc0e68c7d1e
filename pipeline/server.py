"""A small STAC API over a static catalogue in a folder: landing page, collections, search, and the assets by byte range.

Enters: a folder with `catalog.json`, as `sereno simulate` writes it. Leaves: a starlette application, or the address of a child process
that serves it. It does what its conformance classes say and advertises nothing else; a request it cannot understand is answered with 400.
Only starlette, uvicorn and cql2 are imported, since the child has to answer within a second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sereno.pipeline.errors import CatalogueError, ConfigError, DataError, MissingError
from sereno.pipeline.search import find_items, parse_json, parse_query_string, parse_search, period_of, select_fields

Json = dict[str, Any]

CONFORMANCE: Final = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/item-search#query",
    "https://api.stacspec.org/v1.0.0/item-search#filter",
    "https://api.stacspec.org/v1.0.0/item-search#sort",
    "https://api.stacspec.org/v1.0.0/item-search#fields",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
    "http://www.opengis.net/spec/ogcapi-features-3/1.0/conf/filter",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-text",
    "http://www.opengis.net/spec/cql2/1.0/conf/cql2-json",
    "http://www.opengis.net/spec/cql2/1.0/conf/basic-cql2",
    "http://www.opengis.net/spec/cql2/1.0/conf/advanced-comparison-operators",
    "http://www.opengis.net/spec/cql2/1.0/conf/basic-spatial-functions",
)
"""What this server does, by the names that STAC API 1.0.0 and OGC API - Features give it."""
API_NAMES: Final = ("api", "collections", "conformance", "queryables", "search")
"""First parts of the API's own addresses, under which no asset can be served."""
START_S: Final = 30.0
"""A child that has not answered after so many seconds is given up."""
STOP_S: Final = 2.0
"""Requests under way at the end get so many seconds."""
LINK_RELS: Final = ("self", "root", "parent", "child", "item", "items", "collection", "queryables")
"""Links of the static files that are replaced by links of the API."""


@dataclass(frozen=True)
class StaticCatalogue:
    """What the JSON files of a catalogue say."""

    id: str
    """Id of the catalogue."""
    description: str
    """One sentence about it."""
    collections: dict[str, Json]
    """Collections by id."""
    items: tuple[Json, ...]
    """Items in order of time, then id; addresses of assets inside the folder are relative to it."""


def load_catalogue(folder: Path) -> StaticCatalogue:
    """The static catalogue in `folder`, found by following its `child` and `item` links.

    Raises:
        MissingError: there is no `catalog.json`, or a linked file is missing.
        DataError: a file is not the STAC it should be, or an address leads out of the folder.
    """
    root = folder.resolve()
    path = root / "catalog.json"
    if not path.is_file():
        raise MissingError(f"{folder} holds no catalog.json: give the folder of a simulated world, or run `sereno simulate` first")
    catalogue = _read_stac(path, root, "Catalog")
    collections: dict[str, Json] = {}
    items: dict[tuple[str, str], Json] = {}
    for child in _linked(catalogue, path, "child"):
        collection = _read_stac(child, root, "Collection")
        collections[collection["id"]] = collection
        for file in _linked(collection, child, "item"):
            item = {**_read_stac(file, root, "Feature"), "collection": collection["id"]}
            items[item["collection"], item["id"]] = item
    ordered = sorted(items.values(), key=lambda item: (*period_of(item), item["id"]))
    return StaticCatalogue(catalogue["id"], catalogue.get("description", ""), collections, tuple(ordered))


def _linked(stac: Json, path: Path, rel: str) -> Iterator[Path]:
    for link in stac.get("links", []):
        if link.get("rel") == rel:
            yield path.parent / unquote(link["href"])


def _read_stac(path: Path, root: Path, kind: str) -> Json:
    """The STAC object in `path`, its type checked and its asset addresses made relative to `root`."""
    try:
        stac = json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingError(f"{path} is linked but does not exist: write the catalogue again") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): write the catalogue again") from None
    if not isinstance(stac, dict) or stac.get("type") != kind or not isinstance(stac.get("id"), str):
        raise DataError(f"{path} is no STAC {kind} with an id: write the catalogue again")
    if "assets" in stac:
        stac["assets"] = {key: {**asset, "href": _to_served(asset["href"], path, root)} for key, asset in stac["assets"].items()}
    return stac


def _to_served(href: str, path: Path, root: Path) -> str:
    if urlsplit(href).scheme:
        return href
    target = Path(os.path.normpath(path.parent / unquote(href)))
    if not target.is_relative_to(root):
        raise DataError(f"{path}: asset {href!r} leads out of {root}; only files inside the folder are served")
    inside = target.relative_to(root)
    if inside.parts[0] in API_NAMES:
        raise DataError(f"{path}: asset {href!r} lies in a folder whose name the API uses itself; move it to `assets`")
    return quote(inside.as_posix())


class Api:
    """The answers of the server to one catalogue; every method is one address."""

    def __init__(self, catalogue: StaticCatalogue) -> None:
        self.catalogue = catalogue

    def show_landing(self, request: Request) -> JSONResponse:
        """The landing page, a STAC catalogue."""
        base = _base_of(request)
        links = [
            _link("self", base + "/"),
            _link("root", base + "/"),
            _link("conformance", f"{base}/conformance"),
            _link("service-desc", f"{base}/api", "application/vnd.oai.openapi+json;version=3.0"),
            _link("data", f"{base}/collections"),
            _link("http://www.opengis.net/def/rel/ogc/1.0/queryables", f"{base}/queryables", "application/schema+json"),
            {**_link("search", f"{base}/search", "application/geo+json"), "method": "GET"},
            {**_link("search", f"{base}/search", "application/geo+json"), "method": "POST"},
            *(_link("child", f"{base}/collections/{quote(name)}") for name in self.catalogue.collections),
        ]
        known = {"type": "Catalog", "stac_version": "1.0.0", "id": self.catalogue.id, "description": self.catalogue.description}
        return JSONResponse({**known, "conformsTo": list(CONFORMANCE), "links": links})

    def show_conformance(self, request: Request) -> JSONResponse:  # noqa: ARG002 - starlette gives it to every address
        """The conformance classes."""
        return JSONResponse({"conformsTo": list(CONFORMANCE)})

    def show_description(self, request: Request) -> JSONResponse:
        """A short OpenAPI document: the addresses and their methods."""
        paths: Json = {}
        for route in request.app.routes:
            if isinstance(route, Route):
                methods = sorted((route.methods or set()) - {"HEAD"})
                answers = {"200": {"description": "as in STAC API 1.0.0"}, "400": {"description": "a parameter is not understood"}}
                paths[route.path] = {method.lower(): {"responses": answers} for method in methods}
        document = {"openapi": "3.0.3", "info": {"title": self.catalogue.id, "version": "1.0.0"}, "paths": paths}
        return JSONResponse(document, media_type="application/vnd.oai.openapi+json;version=3.0")

    def show_queryables(self, request: Request) -> JSONResponse:
        """JSON schema of the properties that a filter can name."""
        items = self.catalogue.items
        if "collection" in request.path_params:
            name = self._collection_of(request)["id"]
            items = tuple(item for item in items if item["collection"] == name)
        names = sorted({"id", "collection", "geometry"}.union(*(item["properties"] for item in items)))
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": str(request.url),
            "type": "object",
            "title": "Queryables",
        }
        return JSONResponse({**schema, "properties": {name: {} for name in names}}, media_type="application/schema+json")

    def list_collections(self, request: Request) -> JSONResponse:
        """All collections."""
        base = _base_of(request)
        collections = [_serve_collection(collection, base) for collection in self.catalogue.collections.values()]
        links = [_link("self", f"{base}/collections"), _link("root", base + "/"), _link("parent", base + "/")]
        return JSONResponse({"collections": collections, "links": links})

    def show_collection(self, request: Request) -> JSONResponse:
        """One collection."""
        return JSONResponse(_serve_collection(self._collection_of(request), _base_of(request)))

    def list_items(self, request: Request) -> JSONResponse:
        """Items of one collection, page by page."""
        body = parse_query_string(request.query_params.multi_items())
        strange = sorted(body.keys() - {"collections", "bbox", "datetime", "limit", "token"})
        name = self._collection_of(request)["id"]
        if strange or body.get("collections", [name]) != [name]:  # pystac-client names the collection once more
            raise DataError(f"parameter {(strange or ['collections'])[0]!r} does not belong to the items of one collection; use /search")
        return self._answer(request, {**body, "collections": [name]})

    def show_item(self, request: Request) -> JSONResponse:
        """One item."""
        collection, name = self._collection_of(request)["id"], request.path_params["item"]
        for item in self.catalogue.items:
            if item["collection"] == collection and item["id"] == name:
                return JSONResponse(_serve_item(item, _base_of(request)), media_type="application/geo+json")
        raise HTTPException(404, f"collection {collection!r} has no item {name!r}")

    def search_by_get(self, request: Request) -> JSONResponse:
        """Search with parameters in the address."""
        return self._answer(request, parse_query_string(request.query_params.multi_items()))

    async def search_by_post(self, request: Request) -> JSONResponse:
        """Search with a JSON body."""
        body = parse_json("body", (await request.body()).decode(errors="replace") or "{}")
        if not isinstance(body, dict):
            raise DataError(f"the body must be a JSON object, seen {str(body)[:80]!r}")
        return self._answer(request, body)

    def _collection_of(self, request: Request) -> Json:
        name = request.path_params["collection"]
        if name not in self.catalogue.collections:
            raise HTTPException(404, f"there is no collection {name!r}; there are {sorted(self.catalogue.collections)}")
        return self.catalogue.collections[name]

    def _answer(self, request: Request, body: Json) -> JSONResponse:
        search = parse_search(body)
        found = find_items(self.catalogue.items, search)
        end = search.offset + search.limit
        base = _base_of(request)
        page = [select_fields(_serve_item(item, base), search.include, search.exclude) for item in found[search.offset : end]]
        links = [_link("root", base + "/"), _link("self", str(request.url), "application/geo+json")]
        if end < len(found):
            links.append(_next_link(request, str(end)))
        answer = {"type": "FeatureCollection", "features": page, "links": links, "numberMatched": len(found), "numberReturned": len(page)}
        return JSONResponse(answer, media_type="application/geo+json")


def _next_link(request: Request, token: str) -> Json:
    address = str(request.url.replace(query=""))
    if request.method == "POST":
        return {**_link("next", address, "application/geo+json"), "method": "POST", "body": {"token": token}, "merge": True}
    return {**_link("next", f"{address}?{urlencode({**request.query_params, 'token': token})}", "application/geo+json"), "method": "GET"}


def _base_of(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _link(rel: str, href: str, kind: str = "application/json") -> Json:
    return {"rel": rel, "href": href, "type": kind}


def _serve_collection(collection: Json, base: str) -> Json:
    address = f"{base}/collections/{quote(collection['id'])}"
    links = [_link("items", f"{address}/items", "application/geo+json"), _link("queryables", f"{address}/queryables")]
    return _with_addresses(collection, base, [_link("self", address), _link("parent", base + "/"), *links])


def _serve_item(item: Json, base: str) -> Json:
    collection = f"{base}/collections/{quote(item['collection'])}"
    address = f"{collection}/items/{quote(item['id'])}"
    own = _link("self", address, "application/geo+json")
    return _with_addresses(item, base, [own, _link("parent", collection), _link("collection", collection)])


def _with_addresses(stac: Json, base: str, links: list[Json]) -> Json:
    """`stac` with links of the API in place of those between files, and absolute asset addresses."""
    kept = [link for link in stac.get("links", []) if link.get("rel") not in LINK_RELS]
    served = {**stac, "links": [*links, _link("root", base + "/"), *kept]}
    if "assets" in stac:
        served["assets"] = {key: {**asset, "href": urljoin(f"{base}/", asset["href"])} for key, asset in stac["assets"].items()}
    return served


def _refuse(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - the signature is starlette's
    """One line of JSON: 400 for what is not understood, else the status that was raised."""
    status, words = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"code": http.HTTPStatus(status).phrase, "description": words}, status, headers=headers)


def build_app(folder: Path) -> Starlette:
    """The STAC API over the static catalogue in `folder`, with the files of the folder below the same address.

    Raises:
        MissingError, DataError: as `load_catalogue`.
    """
    api = Api(load_catalogue(folder))
    routes = [
        Route("/", api.show_landing),
        Route("/conformance", api.show_conformance),
        Route("/api", api.show_description),
        Route("/queryables", api.show_queryables),
        Route("/collections", api.list_collections),
        Route("/collections/{collection}", api.show_collection),
        Route("/collections/{collection}/queryables", api.show_queryables),
        Route("/collections/{collection}/items", api.list_items),
        Route("/collections/{collection}/items/{item}", api.show_item),
        Route("/search", api.search_by_get, methods=["GET"]),
        Route("/search", api.search_by_post, methods=["POST"]),
        Mount("/", StaticFiles(directory=folder)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refuse, DataError: _refuse})


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(f"cannot listen on port {port} ({error.strerror}): choose another with --port, or 0 for a free one") from None


def _make_server(app: Starlette) -> uvicorn.Server:
    plain = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=int(STOP_S))
    return uvicorn.Server(plain)


def serve_folder(folder: Path, port: int) -> None:
    """Serve the catalogue in `folder` on 127.0.0.1 until interrupted; one line on stdout says where.

    Raises:
        ConfigError: the port is taken.
        MissingError, DataError: as `load_catalogue`.
    """
    app = build_app(folder)
    with _listen(port) as listener, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        _make_server(app).run(sockets=[listener])


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """The base address of a server over `folder`, in a child process that ends with the block, and with this process however it dies.

    Raises:
        MissingError, DataError: as `load_catalogue`.
        CatalogueError: the child does not answer.
    """
    if not (folder / "catalog.json").is_file():
        load_catalogue(folder)
    command = [sys.executable, "-m", "sereno.pipeline.server", str(folder)]
    # A session of its own: Ctrl-C stops the parent, which then stops the child.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:  # noqa: S603
        watch = threading.Timer(START_S, child.kill)
        watch.start()
        try:
            address = _await_answer(child, folder)
            watch.cancel()
            yield address
        finally:
            watch.cancel()
            child.terminate()
            try:
                child.wait(STOP_S * 2)
            except subprocess.TimeoutExpired:
                child.kill()


def _await_answer(child: subprocess.Popen[str], folder: Path) -> str:
    """The base address, once the child has answered on it."""
    assert child.stdout is not None  # a pipe was asked for
    line = child.stdout.readline()
    report = json.loads(line) if line else {}
    if "fault" in report:
        raise DataError(report["fault"])
    try:
        connection = http.client.HTTPConnection("127.0.0.1", report["port"], timeout=START_S)
        with contextlib.closing(connection):
            connection.request("GET", "/conformance")
            status = connection.getresponse().status
    except (KeyError, OSError, http.client.HTTPException):
        status = 0
    if status != 200:
        raise CatalogueError(f"the server over {folder} did not start (exit code {child.poll()}, answer {status}): see the lines above")
    return f"http://127.0.0.1:{report['port']}"


def _serve_for_parent(folder: Path) -> None:
    """Serve on a free port, tell it on stdout, and end when stdin ends: then the parent has closed it, or is no more."""
    try:
        app = build_app(folder)
    except (DataError, MissingError) as error:
        sys.stdout.write(json.dumps({"fault": str(error)}) + "\n")
        return
    server = _make_server(app)
    with _listen(0) as listener:
        threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
        sys.stdout.write(json.dumps({"port": listener.getsockname()[1]}) + "\n")
        sys.stdout.flush()
        server.run(sockets=[listener])


def _end_with_stdin(server: uvicorn.Server) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True
    time.sleep(STOP_S * 2)
    os._exit(1)


if __name__ == "__main__":
    _serve_for_parent(Path(sys.argv[1]))
