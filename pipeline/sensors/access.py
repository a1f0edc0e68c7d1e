"""One raster file under reading: opened, tried again where that may help, its costs counted, what cannot be read named.

Enters: an asset. Leaves: its pixels as they are stored, those of damaged tiles marked, and a line of the ledger. GDAL hides from its caller
much of what a server answers, so the server is asked again where its words do not tell what may heal.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.http import RETRIED, hide_secrets
from sereno.pipeline.ledger import Entry
from sereno.pipeline.pairs import Status
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.sensors.assets import DENIED, Asset, LossError, ask_bytes, check_unchanged, pause
from sereno.pipeline.signing import strip_signature

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
HTTP_STATUS: Final = re.compile(r"HTTP (?:response|error) code ?: ?(\d{3})")
"""How GDAL words an answer of a server when it opens a file."""
ABSENT: Final = re.compile("does not exist|No such file")
"""How GDAL words that a file inside an archive is not there."""

T = TypeVar("T")
Cause = Literal["transient", "denied", "missing", "unreadable"]
"""Why reading failed: may heal by itself; needs another signature; there is no such file; what is there cannot be read."""


class Fault(NamedTuple):
    """Why an attempt failed."""

    cause: Cause
    """What kind of fault it is."""
    words: str
    """One line, without signature."""


class Pixels(NamedTuple):
    """Values of one asset."""

    values: npt.NDArray[Any]
    """(band, y, x) in the file's dtype; 0 where not readable."""
    readable: Bool2d
    """(y, x), False where the file holds a tile that cannot be read."""
    lost: tuple[str, ...]
    """One line per unreadable tile."""


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
        for attempt in itertools.count(1):
            try:
                result = action()
            except RasterioIOError as error:
                fault = diagnose(self.asset, error, self._span_of(tile))
            else:
                self._renew = False
                return result
            self._close()
            self._check_retry(fault, attempt, tries or self.asset.attempts)
            self._renew |= fault.cause == "denied"
            self._fresh = True
            self.retries += 1
            pause(attempt)
        raise AssertionError("the loop above ends by itself")

    def _check_retry(self, fault: Fault, attempt: int, tries: int) -> None:
        """Raise, as `insist` does, if another attempt after that one would be in vain."""
        asset, words = self.asset, fault.words
        if fault.cause == "denied":
            if self._renew:
                advice = f", or {asset.resolver.advice}" if asset.resolver.advice else ""
                raise CatalogueError(
                    f"{asset.place} may not be read: {words}; check the keys in the environment and what the account may read{advice}"
                )
        elif fault.cause == "missing":
            raise LossError("missing", words)
        elif fault.cause == "unreadable" and (asset.is_local or attempt >= tries):
            raise LossError("unreadable", words)
        elif attempt >= asset.attempts:
            raise CatalogueError(f"{asset.place} cannot be read after {attempt} attempts: {words}; run again later")

    def _span_of(self, tile: Window | None) -> tuple[int, int] | None:
        """First and last byte of a storage tile in the file, if the format tells."""
        if tile is None or self._source is None or self._source.driver != "GTiff":
            return None
        height, width = self._source.block_shapes[0]
        place = f"{int(tile.col_off) // width}_{int(tile.row_off) // height}"
        first, size = (self._source.get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=1) for what in ("OFFSET", "SIZE"))
        return (int(first), int(first) + int(size) - 1) if first and size else None

    def count(self, window: Window, bands: tuple[int, ...], *, level: int | None = None) -> None:
        """Count the stored bytes under `window`: its tiles as a TIFF states them, else its share of the file, if the size is known.

        With `level` it is a window of that overview, from 0, whose tiles are as large as those of the image (so GDAL makes them).
        """
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
        for band, row, column in itertools.product(planes, rows, columns):
            self.bytes_read += int(source.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band, ovr=level) or 0)

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
        with ask_bytes(asset, first, last) as answer:
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
