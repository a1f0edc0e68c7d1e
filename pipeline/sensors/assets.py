"""The assets of an item: pixels of one raster file on a wanted grid, with what could not be read named instead of hidden.

Every sensor reads through this file: an asset and a grid enter; values, the mask of those that exist and a line of the ledger leave. Where
the file's grid fits the wanted one, pixels are copied or repeated, never interpolated. What may heal is tried again and then fails the job;
what will not heal costs its own pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.geometry import WARP_TOLERANCE_PX, scale_options
from sereno.pipeline.http import RETRIED, TIMEOUT_S, hide_secrets
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import AssetRecord, ItemRecord, Status
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.signing import Resolver, strip_signature

logger = logging.getLogger(__name__)

GDAL_OPTIONS: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not list the folder of a remote file
    "GDAL_HTTP_MAX_RETRY": 0,  # tried again here, where it is counted
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,  # a server that gives less than a kilobyte a second for a minute has stalled
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": 32_768,  # the header of a cloud-optimised file in one request
    "VSI_CACHE": True,
}
"""How GDAL reads over HTTP; seconds and bytes."""
FRESH: Final = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/"}
"""NOTE: GDAL remembers that a file could not be opened, and keeps the torn piece of a transfer that broke off (measured, GDAL 3.10.3):
without this option no further try would reach the server."""
BACKOFF_S: Final = 0.5
"""Pause before the second attempt, seconds, on average; doubled before each further one."""
SNAP_PX: Final = 1e-3
"""Two grids fit if their pixel edges lie within this many pixels of each other."""
WARP_MARGIN_PX: Final = 4
"""Source pixels read around the area before warping, for the kernel."""
WARPING: Final = threading.Lock()
"""Held while a band is warped: one at a time bounds the memory, and rasterio's way to silence a warning is not made for threads."""
WARP_THREADS: Final = 4
"""Threads of GDAL in one warp."""
HTTP_STATUS: Final = re.compile(r"HTTP (?:response|error) code ?: ?(\d{3})")
"""How GDAL words an answer of a server when it opens a file."""
ABSENT: Final = re.compile("does not exist|No such file")
"""How GDAL words that a file inside an archive is not there."""
DENIED: Final = (401, 403)
"""Answers to a signature that has run out, or to none."""
HASHES: Final = {"1220": "sha256", "1114": "sha1", "d50110": "md5"}
"""Beginning of a multihash in hexadecimal digits (function and length), and the function."""
MD5_DIGITS: Final = 32
"""Length of a bare MD5."""

T = TypeVar("T")
Cause = Literal["transient", "denied", "missing", "unreadable"]
"""Why reading failed: may heal by itself; needs another signature; there is no such file; what is there cannot be read."""


class Asset(NamedTuple):
    """One file of an item; small and picklable."""

    item: str
    """Id of the item."""
    name: str
    """Band, for example `B04`."""
    record: AssetRecord
    """Address, band number and what the lock knows of the file."""
    resolver: Resolver
    """Makes the address readable."""
    attempts: int = 1
    """How often reading is tried before it counts as failed."""
    check: Literal["checksum", "size", "none"] = "none"
    """Whether the file is compared with the lock."""

    @property
    def place(self) -> str:
        """Item, band and address for messages, without signature."""
        return f"item {self.item}, {self.name} ({strip_signature(self.resolver.to_address(self.record.href))})"

    @property
    def is_local(self) -> bool:
        """Whether it is a file on a disk of this machine."""
        return not urlsplit(self.resolver.to_address(self.record.href)).scheme


class Pixels(NamedTuple):
    """Values of one asset."""

    values: npt.NDArray[Any]
    """(band, y, x) in the file's dtype; 0 where not readable."""
    readable: Bool2d
    """(y, x), False where the file holds a tile that cannot be read."""
    lost: tuple[str, ...]
    """One line per unreadable tile."""


class Layer(NamedTuple):
    """One band on the wanted grid."""

    values: npt.NDArray[Any]
    """(y, x); meaningless where there is no data."""
    has_data: Bool2d
    """(y, x), True where the file covers the pixel with a value that is not nodata."""
    lost: tuple[str, ...]
    """One line per unreadable tile, or one for the whole file."""
    entry: Entry
    """What became of the asset and what it cost; scene and area are filled in later."""


class Rule(NamedTuple):
    """How the pixels of a product are to be read; picklable, so `is_data` is a function of a module."""

    is_data: Callable[[npt.NDArray[Any], float | None], Bool2d]
    """Which of the values (y, x) are data, given the nodata value that the file declares (None: it declares none)."""
    resampling: Resampling = Resampling.bilinear
    """Interpolation where the grids do not fit."""


class GridMatch(NamedTuple):
    """How a wanted grid lies on a file's pixels when no interpolation is needed."""

    rows: npt.NDArray[np.int64]
    """File row of each wanted row; outside of the file also negative or too large."""
    columns: npt.NDArray[np.int64]
    """File column of each wanted column."""


class Fault(NamedTuple):
    """Why an attempt failed."""

    cause: Cause
    """What kind of fault it is."""
    words: str
    """One line, without signature."""


class LossError(Exception):
    """Something that will not heal: a file that is not there, no image, or changed. Never leaves the package of sensors."""

    def __init__(self, status: Status, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def select_assets(record: ItemRecord, names: tuple[str, ...], resolver: Resolver, settings: IngestSettings) -> dict[str, Asset]:
    """Those of the assets `names` that the item has, by name."""
    return {
        name: Asset(record.item, name, record.assets[name], resolver, settings.attempts, settings.check)
        for name in names
        if name in record.assets
    }


class Access:
    """One raster file under reading: opened, tried again where that may help, its retries, bytes and seconds counted.

    A context manager; it works as long as the block lasts.

    Raises:
        LossError: the file is not there, cannot be opened, or is not that of the lock.
        CatalogueError: it cannot be opened now.
    """

    def __init__(self, asset: Asset) -> None:
        self.asset = asset
        self.retries, self.bytes_read = 0, 0
        self._started = time.monotonic()
        self._source: DatasetReader | None = None
        self._renew, self._fresh = False, False
        self._env = rasterio.Env(**GDAL_OPTIONS, **dict(asset.resolver.options))

    def __enter__(self) -> Self:
        self._env.__enter__()
        try:
            check_unchanged(self.asset)
            self.insist(lambda: self.source)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        self._env.__exit__(kind, error, trace)

    @property
    def source(self) -> DatasetReader:
        """The opened file."""
        if self._source is None:
            address = self.asset.resolver(self.asset.record.href, renew=self._renew)
            with rasterio.Env(**(FRESH if self._fresh else {})):
                self._source = rasterio.open(address)
        return self._source

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def insist(self, action: Callable[[], T], *, tile: Window | None = None, tries: int | None = None) -> T:
        """What `action` returns, tried again with growing pauses where that may help.

        Faults that may heal are tried `attempts` times, others `tries` times on a server and once on a disk; a refused signature is renewed
        once in between. `tile` is the one storage tile that `action` reads, if it is one: then its bytes can be asked for.

        Raises:
            LossError: what will not heal.
            CatalogueError: what may heal, but has not.
        """
        asset, limit = self.asset, self.asset.attempts
        for attempt in itertools.count(1):
            try:
                result = action()
            except RasterioIOError as error:
                fault = diagnose(asset, error, self._span_of(tile))
            else:
                self._renew = False
                return result
            self._close()
            if fault.cause == "denied" and not self._renew:
                self._renew = True
            elif fault.cause == "denied":
                advice = f", or {asset.resolver.advice}" if asset.resolver.advice else ""
                raise CatalogueError(
                    f"{asset.place} may not be read: {fault.words}; check the keys in the environment and what the account may read{advice}"
                )
            elif fault.cause == "missing":
                raise LossError("missing", fault.words)
            elif fault.cause == "unreadable" and (asset.is_local or attempt >= (tries or limit)):
                raise LossError("unreadable", fault.words)
            elif attempt >= limit:
                raise CatalogueError(f"{asset.place} cannot be read after {attempt} attempts: {fault.words}; run again later")
            self._fresh = True
            self.retries += 1
            time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError("the loop above ends by itself")

    def _span_of(self, tile: Window | None) -> tuple[int, int] | None:
        """First and last byte of a storage tile in the file, if the format tells."""
        if tile is None or self._source is None or self._source.driver != "GTiff":
            return None
        height, width = self._source.block_shapes[0]
        place = f"{int(tile.col_off) // width}_{int(tile.row_off) // height}"
        first, size = (self._source.get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE"))
        return (int(first), int(first) + int(size) - 1) if first and size else None

    def count(self, window: Window, bands: tuple[int, ...]) -> None:
        """Count the stored bytes under `window`: its tiles as a TIFF states them, else its share of the file, if the size is known."""
        source, asset = self.source, self.asset
        if source.driver != "GTiff":
            path = Path(asset.resolver(asset.record.href)) if asset.is_local else None
            size = path.stat().st_size if path is not None and path.is_file() else asset.record.size_bytes or 0
            self.bytes_read += round(size * window.width * window.height * len(bands) / (source.width * source.height * source.count))
            return
        height, width = source.block_shapes[0]
        rows = range(int(window.row_off) // height, -(-int(window.row_off + window.height) // height))
        columns = range(int(window.col_off) // width, -(-int(window.col_off + window.width) // width))
        planes = bands if source.interleaving is not None and source.interleaving.name == "band" else bands[:1]
        for band in planes:
            for row in rows:
                for column in columns:
                    self.bytes_read += int(source.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band) or 0)

    def to_entry(self, status: Status, reason: str = "") -> Entry:
        """The asset's line in the ledger."""
        seconds = time.monotonic() - self._started
        return Entry("ingest", "", "", self.asset.item, self.asset.name, status, reason, self.retries, self.bytes_read, seconds)


def diagnose(asset: Asset, error: RasterioIOError, span: tuple[int, int] | None) -> Fault:
    """Why an attempt failed; a server is asked where GDAL's words do not tell (`span`: first and last byte that were wanted)."""
    words = _words_of(error, asset)
    if asset.is_local:
        path = asset.resolver(asset.record.href)
        absent = ABSENT.search(words) is not None if path.startswith("/vsi") else not Path(path).exists()
        return Fault("missing", "there is no such file") if absent else Fault("unreadable", words)
    stated = HTTP_STATUS.search(words)
    if stated:
        return _judge_status(int(stated[1]))
    if "CURL error" in words:
        return Fault("transient", words)
    return _probe(asset, words, span)


def _words_of(error: RasterioIOError, asset: Asset) -> str:
    """GDAL's own words, which rasterio keeps as the innermost cause, in one line without the address's signature."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return hide_secrets(str(cause).replace(asset.resolver(asset.record.href), strip_signature(asset.record.href)))[:200]


def _judge_status(status: int) -> Fault:
    words = f"the server answers HTTP {status}"
    if status in DENIED:
        return Fault("denied", words)
    if status in RETRIED or status >= 500:
        return Fault("transient", words)
    return Fault("missing" if status in (404, 410) else "unreadable", words)


def _probe(asset: Asset, words: str, span: tuple[int, int] | None) -> Fault:
    """What a server says to a request for the bytes that GDAL did not get; GDAL itself passes over its answers while it reads."""
    import requests

    first, last = span or (0, 0)
    try:
        with _ask(asset, first, last) as answer:
            if answer.status_code == 416:
                return Fault("unreadable", f"the file ends before byte {last}")
            if answer.status_code >= 400:
                return _judge_status(answer.status_code)
            n_given = len(answer.content) if answer.status_code == 206 else last - first + 1
    except requests.RequestException as error:
        return Fault("transient", f"no whole answer to a request for bytes {first}-{last} ({type(error).__name__})")
    if n_given < last - first + 1:
        return Fault("unreadable", f"the file ends before byte {last}")
    healed = span is not None and "Read error" in words  # the bytes that GDAL missed are there now
    return Fault("transient" if healed else "unreadable", words)


def _ask(asset: Asset, first: int, last: int, *, renew: bool = False) -> Any:
    """The answer to a request for some bytes, its body not read yet."""
    import requests

    headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    return requests.get(asset.resolver.to_web(asset.record.href, renew=renew), headers=headers, timeout=TIMEOUT_S, stream=True)


def check_unchanged(asset: Asset) -> None:
    """Check that the file is still that of the lock: a local one by size and checksum, a remote one by size and ETag, as far as stated.

    A server that refuses is not judged here: reading will say so.

    Raises:
        LossError: it has changed; a file that is gone is named when it is opened.
        CatalogueError: the server does not say.
    """
    record = asset.record
    if asset.check == "none" or (record.size_bytes, record.etag, record.checksum) == (None, None, None):
        return
    if asset.is_local:
        _check_local(Path(asset.resolver(record.href)), record, asset.check == "checksum")
    elif record.size_bytes is not None or record.etag is not None:
        _check_remote(asset)


def _check_local(path: Path, record: AssetRecord, whole: bool) -> None:
    if not path.is_file():
        return
    size = path.stat().st_size
    if record.size_bytes is not None and size != record.size_bytes:
        raise LossError("unreadable", f"size differs from the lock: {size} bytes, expected {record.size_bytes}")
    if not whole or not record.checksum:
        return
    function, expected = parse_checksum(record.checksum)
    if not function:
        logger.warning("%s: its checksum %s is of no known kind and is not compared", path, record.checksum)
        return
    with path.open("rb") as stream:
        seen = hashlib.file_digest(stream, function).hexdigest()
    if seen != expected:
        raise LossError("unreadable", f"checksum differs from the lock: {function} {seen[:12]}, expected {expected[:12]}")


def parse_checksum(text: str) -> tuple[str, str]:
    """Hash function and digits of a checksum: a multihash in hexadecimal digits, or bare MD5; the function is empty if it is not known."""
    digits = text.lower()
    if len(digits) == MD5_DIGITS:
        return "md5", digits
    for mark, function in HASHES.items():
        if digits.startswith(mark) and len(digits) == len(mark) + 2 * hashlib.new(function, usedforsecurity=False).digest_size:
            return function, digits.removeprefix(mark)
    return "", digits


def _check_remote(asset: Asset) -> None:
    record, stated = asset.record, _ask_facts(asset)
    if stated is None:
        return
    size, etag = stated
    if record.size_bytes is not None and size.isdigit() and int(size) != record.size_bytes:
        raise LossError("unreadable", f"size differs from the lock: {size} bytes, expected {record.size_bytes}")
    if asset.check == "checksum" and record.etag and etag and _bare(etag) != _bare(record.etag):
        raise LossError("unreadable", f"ETag differs from the lock: {etag}, expected {record.etag}")


def _ask_facts(asset: Asset) -> tuple[str, str | None] | None:
    """Size and ETag as the server states them, asked for until it does, or a bad moment would let a changed file pass; None if it refuses.

    Raises:
        CatalogueError: no answer in spite of all attempts.
    """
    import requests

    renew, words = False, ""
    for attempt in range(max(2, asset.attempts)):  # a refused signature is renewed in any case
        time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5) if attempt else 0)
        try:
            with _ask(asset, 0, 0, renew=renew) as answer:
                status, headers = answer.status_code, answer.headers
                _ = answer.content if status == requests.codes.partial else b""
        except requests.RequestException as error:
            words = f"no whole answer ({type(error).__name__})"
            continue
        if status in (requests.codes.ok, requests.codes.partial):
            return headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", ""), headers.get("ETag")
        renew, words = status in DENIED, f"the server answers HTTP {status}"
        if status not in (*DENIED, *RETRIED):
            return None
    if renew:
        return None
    raise CatalogueError(f"{asset.place} cannot be compared with the lock after {attempt + 1} attempts: {words}; run again later")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def read_layer(asset: Asset, geobox: GeoBox, rule: Rule, out: npt.NDArray[Any] | None = None) -> Layer:
    """The band of `asset` on `geobox`: pixels copied where the grids fit, else warped; into `out` (y, x) if given.

    What will not heal is no error: a file that cannot be used gives a layer without data, a damaged tile lacks its pixels, and the entry
    says so.

    Raises:
        CatalogueError: the asset cannot be read now, in spite of all attempts, or must not be read.
    """
    access = Access(asset)
    try:
        with access:
            if access.source.crs is None:
                raise LossError("unreadable", "the file has no CRS, so its place on the ground is unknown")
            if asset.record.index > access.source.count:
                raise LossError("unreadable", f"the file has {access.source.count} bands, band {asset.record.index} is wanted")
            match = match_grid(access.source.crs, access.source.transform, geobox)
            if match is not None:
                return _copy_pixels(access, match, rule, out)
            return _warp_pixels(access, geobox, rule, out)
    except LossError as loss:
        logger.warning("%s is lost: %s", asset.place, loss.words)
        values = _blank(out, tuple(geobox.shape), np.dtype(np.uint8))
        return Layer(values, np.broadcast_to(np.False_, values.shape), (loss.words,), access.to_entry(loss.status, loss.words))


def _blank(out: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros, in `out` if there is one."""
    if out is None:
        return np.zeros(shape, dtype)
    out[...] = 0
    return out


def read_pixels(access: Access, window: Window, bands: tuple[int, ...] = (1,), out: npt.NDArray[Any] | None = None) -> Pixels:
    """`window` of an opened file: whole if it can be read, else row of tiles by row of tiles, else tile by tile with the lost ones listed.

    Raises:
        CatalogueError: the server does not give it now.
    """
    try:
        values = access.insist(lambda: access.source.read(bands, window=window, out=out), tries=2)
    except LossError as loss:
        if loss.status == "missing":  # gone as a whole
            raise
        return _read_rows(access, window, bands)
    access.count(window, bands)
    return Pixels(values, np.broadcast_to(np.True_, values.shape[1:]), ())


def _read_rows(access: Access, window: Window, bands: tuple[int, ...]) -> Pixels:
    """`window` read in pieces: what some tiles have lost does not cost the others."""
    source = access.insist(lambda: access.source)
    shape = (len(bands), int(window.height), int(window.width))
    pixels = Pixels(np.zeros(shape, source.dtypes[bands[0] - 1]), np.ones(shape[1:], bool), ())
    lost: list[str] = []
    for tiles in _tiles_in(source.block_shapes[0], window):
        row = Window.from_slices(tiles[0].toslices()[0], (int(window.col_off), int(window.col_off + window.width)))
        if len(tiles) > 1 and not _read_piece(access, row, pixels, (window, bands), is_tile=False):
            continue
        faults = (_read_piece(access, tile, pixels, (window, bands), is_tile=True) for tile in tiles)
        lost += [fault for fault in faults if fault]
    if lost:
        logger.warning("%s: %d tiles cannot be read, their pixels are invalid", access.asset.place, len(lost))
    return pixels._replace(lost=tuple(lost))


def _read_piece(access: Access, piece: Window, pixels: Pixels, whole: tuple[Window, tuple[int, ...]], *, is_tile: bool) -> str:
    """Fill `piece` of the pixels of a window with its bands (`whole`); the fault in words if it is lost, else nothing."""
    (window, bands), (rows, columns) = whole, piece.toslices()
    top, left = int(window.row_off), int(window.col_off)
    place = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    try:
        pixels.values[:, *place] = access.insist(
            lambda: access.source.read(bands, window=piece), tile=piece if is_tile else None, tries=None if is_tile else 1
        )
    except LossError as loss:
        if loss.status == "missing":
            raise
        if is_tile:
            pixels.readable[place] = False
        return f"rows {rows.start}-{rows.stop - 1}, columns {columns.start}-{columns.stop - 1}: {loss.words}"
    access.count(piece, bands)
    return ""


def _tiles_in(block_shape: tuple[int, int], window: Window) -> Iterator[list[Window]]:
    """The parts of `window` that lie in one storage tile each, by rows of tiles."""
    height, width = block_shape
    top, left = int(window.row_off), int(window.col_off)
    bottom, right = top + int(window.height), left + int(window.width)
    for row in range(top // height * height, bottom, height):
        rows = (max(row, top), min(row + height, bottom))
        columns = range(left // width * width, right, width)
        yield [Window.from_slices(rows, (max(column, left), min(column + width, right))) for column in columns]


def match_grid(crs: object, transform: Affine, geobox: GeoBox) -> GridMatch | None:
    """How `geobox` lies on a file with `crs` and `transform`, or None if reading it needs interpolation.

    The grids fit if both are north-up in one CRS, the file's pixel is a whole multiple of the wanted one, and edges meet: then each wanted
    pixel lies inside one pixel of the file, wherever the coarse grid begins.
    """
    wanted = geobox.transform
    rotated = any(abs(number) > 0 for number in (transform.b, transform.d, wanted.b, wanted.d))
    if rotated or CRS(crs) != geobox.crs or transform.a <= 0 or transform.e >= 0 or wanted.a <= 0 or wanted.e >= 0:
        return None
    rows = _match_axis((transform.f, transform.e), (wanted.f, wanted.e), geobox.shape.y)
    columns = _match_axis((transform.c, transform.a), (wanted.c, wanted.a), geobox.shape.x)
    return None if rows is None or columns is None else GridMatch(rows, columns)


def _match_axis(source: tuple[float, float], wanted: tuple[float, float], size: int) -> npt.NDArray[np.int64] | None:
    """Source index of each of `size` wanted pixels along one axis; the pairs are origin and step in CRS units."""
    ratio = source[1] / wanted[1]
    first = (wanted[0] - source[0]) / wanted[1]
    if round(ratio) < 1 or abs(ratio - round(ratio)) * size > SNAP_PX or abs(first - round(first)) > SNAP_PX:
        return None
    indices: npt.NDArray[np.int64] = (round(first) + np.arange(size)) // round(ratio)
    return indices


def own_geobox(asset: Asset, geobox: GeoBox, margin_px: int) -> GeoBox | None:
    """The grid of a file, cropped to `geobox` plus a margin, if it differs from that only by a shift; else None.

    The crop may reach beyond the file: what lies there is no data. A file that is lost has no grid.

    Raises:
        CatalogueError: the asset cannot be opened now.
    """
    wanted = geobox.pad(margin_px)
    try:
        with Access(asset._replace(check="none")) as access:
            crs, own = access.source.crs, access.source.transform
    except LossError:  # reading it will say so, and whether it has changed
        return None
    step = wanted.transform
    same_step = max(abs(own.a - step.a), abs(own.e - step.e)) * max(wanted.shape) < SNAP_PX * abs(step.a)
    if crs is None or CRS(crs) != wanted.crs or own.b or own.d or not same_step:
        return None
    column, row = ~own * (step.c, step.f)
    first_column, first_row = math.floor(column + SNAP_PX), math.floor(row + SNAP_PX)
    # A grid that lies between the wanted pixels needs one more of its own to cover the last of them.
    extra_x, extra_y = int(column - first_column > SNAP_PX), int(row - first_row > SNAP_PX)
    shape = (wanted.shape.y + extra_y, wanted.shape.x + extra_x)
    return GeoBox(shape, own * Affine.translation(first_column, first_row), wanted.crs)


def _copy_pixels(access: Access, match: GridMatch, rule: Rule, out: npt.NDArray[Any] | None) -> Layer:
    source, band = access.source, access.asset.record.index
    dtype = np.dtype(source.dtypes[band - 1])
    shape = (match.rows.size, match.columns.size)
    inside_rows = np.flatnonzero((match.rows >= 0) & (match.rows < source.height))
    inside_columns = np.flatnonzero((match.columns >= 0) & (match.columns < source.width))
    covers_all = (inside_rows.size, inside_columns.size) == shape
    values = out if out is not None and covers_all else _blank(out, shape, dtype)
    if not inside_rows.size or not inside_columns.size:
        return Layer(values, np.broadcast_to(np.False_, shape), (), access.to_entry("used", "its ground lies beside the area"))
    rows, columns = match.rows[inside_rows], match.columns[inside_columns]
    window = Window.from_slices((int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1))
    target = (slice(inside_rows[0], inside_rows[-1] + 1), slice(inside_columns[0], inside_columns[-1] + 1))
    view, nodata = values[target], source.nodatavals[band - 1]
    is_same = view.shape == (int(window.height), int(window.width)) and view.dtype == dtype
    pixels = read_pixels(access, window, (band,), view[None] if is_same else None)
    block = pixels.values[0]
    known = rule.is_data(block, nodata)
    if pixels.lost:
        known &= pixels.readable
    if not np.shares_memory(block, view):
        _repeat(block, rows - rows[0], columns - columns[0], view)
    if covers_all and known.all():
        return Layer(values, np.broadcast_to(np.True_, shape), pixels.lost, _judge(access, pixels, known))
    has_data = np.zeros(shape, bool)
    _repeat(known, rows - rows[0], columns - columns[0], has_data[target])
    return Layer(values, has_data, pixels.lost, _judge(access, pixels, known))


def _judge(access: Access, pixels: Pixels, known: Bool2d) -> Entry:
    """The asset's line in the ledger after its pixels were read."""
    if not pixels.lost:
        return access.to_entry("used")
    more = f" (+{len(pixels.lost) - 1} more)" if len(pixels.lost) > 1 else ""
    return access.to_entry("partly" if known.any() or pixels.readable.any() else "unreadable", pixels.lost[0] + more)


def _repeat(block: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
    """Write `block` with its rows and columns repeated to `out` (y, x); both indices begin at 0 and rise."""
    wide = block if block.shape[1] == columns.size else np.take(block, columns, axis=1)
    if out.flags.c_contiguous and out.dtype == wide.dtype:
        np.take(wide, rows, axis=0, out=out, mode="clip")  # `clip` since `raise` would write to a buffer first
    else:
        out[...] = np.take(wide, rows, axis=0)


def _warp_pixels(access: Access, geobox: GeoBox, rule: Rule, out: npt.NDArray[Any] | None) -> Layer:
    """The file interpolated onto `geobox`; a pixel has data if all that enter it have."""
    source, band = access.source, access.asset.record.index
    window, transform, crs = _window_of(source, geobox), source.transform, source.crs
    nodata, dtype = source.nodatavals[band - 1], np.dtype(source.dtypes[band - 1])
    if window is None:
        values = _blank(out, tuple(geobox.shape), dtype)
        return Layer(values, np.broadcast_to(np.False_, values.shape), (), access.to_entry("used", "its ground lies beside the area"))
    pixels = read_pixels(access, window, (band,))
    known = pixels.readable & rule.is_data(pixels.values[0], nodata)
    with WARPING:
        # A ring of what is not known: GDAL would repeat the outermost pixel for half a pixel beyond the edge.
        block = np.full((known.shape[0] + 2, known.shape[1] + 2), np.nan, np.float32)
        np.copyto(block[1:-1, 1:-1], pixels.values[0], where=known)
        own = GeoBox(block.shape, transform * Affine.translation(window.col_off - 1, window.row_off - 1), crs)
        warped = _warp(block, own, geobox, rule.resampling)
    has_data = np.isfinite(warped)
    warped[~has_data] = 0
    values = out if out is not None else np.empty(warped.shape, dtype)
    np.copyto(values, warped if values.dtype.kind == "f" else np.rint(warped, out=warped), casting="unsafe")
    return Layer(values, has_data, pixels.lost, _judge(access, pixels, known))


def _warp(block: npt.NDArray[np.float32], own: GeoBox, geobox: GeoBox, resampling: Resampling) -> npt.NDArray[np.float32]:
    """`block` on `geobox`, NaN wherever a NaN enters: GDAL is told of no nodata value, so that it does not make up for what is missing."""
    warped: npt.NDArray[np.float32] = np.empty(tuple(geobox.shape), np.float32)
    reproject(
        block,
        warped,
        src_transform=own.transform,
        src_crs=str(own.crs),
        dst_transform=geobox.transform,
        dst_crs=str(geobox.crs),
        dst_nodata=np.nan,
        resampling=resampling,
        num_threads=WARP_THREADS,
        tolerance=WARP_TOLERANCE_PX,
        **scale_options(own, geobox),
    )
    return warped


def _window_of(source: DatasetReader, geobox: GeoBox) -> Window | None:
    """The pixels of `source` under `geobox` plus a margin, or None if there are none."""
    try:
        left, bottom, right, top = transform_bounds(str(geobox.crs), source.crs, *geobox.boundingbox)
    except CRSError:  # the area lies where the file's projection does not reach
        return None
    corners = [~source.transform * (x, y) for x in (left, right) for y in (bottom, top)]
    if not np.isfinite(corners).all():
        return None
    columns, rows = zip(*corners, strict=True)
    row_range = (max(0, math.floor(min(rows)) - WARP_MARGIN_PX), min(source.height, math.ceil(max(rows)) + WARP_MARGIN_PX))
    column_range = (max(0, math.floor(min(columns)) - WARP_MARGIN_PX), min(source.width, math.ceil(max(columns)) + WARP_MARGIN_PX))
    if row_range[0] >= row_range[1] or column_range[0] >= column_range[1]:
        return None
    return Window.from_slices(row_range, column_range)
