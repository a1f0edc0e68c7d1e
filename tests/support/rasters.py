"""Raster files for tests whose pixels say where they belong, and a server that gives one of them in any mood.

Enters: values. Leaves: assets of files on the disk, or the address of a server that counts what it sends.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.pairs import AssetRecord
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.layers import Rule
from sereno.pipeline.signing import Resolver

UTM32: Final = "EPSG:32632"
WEST: Final = 500_040.0
NORTH: Final = 5_000_040.0
"""Multiples of 60 and not of 100: a 60 m grid need not begin where a 10 m area does."""
GROUND: Final = np.random.default_rng(0).integers(1, 60_000, (320, 320), dtype=np.uint16)
"""Pixels of 10 m from WEST and NORTH on."""
GRID: Final = GeoBox((300, 290), Affine(10, 0, WEST + 100, 0, -10, NORTH - 50), UTM32)
"""An area within GROUND."""
EXPECTED: Final = GROUND[5:305, 10:300]
"""What GROUND holds there."""
Mood = int | str | tuple[int] | None
"""How a server answers: with an error status, `reset` or `short` (the body breaks off), never beyond a byte `(N,)`, `slow`, or well."""


def known(values: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_]:
    """Which values are data."""
    return np.asarray(values != (nodata or 0))


RULE: Final = Rule(known)
"""Values are data unless they are the file's nodata value, or 0 where it declares none."""


def to_asset(href: str, **facts: Any) -> Asset:
    """The asset at `href`, tried twice and compared with what the lock would state in `facts`."""
    return Asset("X", "B04", AssetRecord(href=href, **facts), Resolver("/"), attempts=2, check="checksum")


def write_raster(path: Path, values: npt.NDArray[Any], geobox: GeoBox, **options: Any) -> Path:
    """The path of a GeoTIFF written with `values` (y, x) on `geobox`."""
    profile = {"driver": "GTiff", "dtype": values.dtype, "width": geobox.shape.x, "height": geobox.shape.y, "count": 1}
    with rasterio.open(path, "w", **profile, crs=str(geobox.crs), transform=geobox.transform, **options) as file:
        file.write(values, 1)
    return path


def to_geobox(values: npt.NDArray[Any], step: float, *, crs: str = UTM32, origin: tuple[float, float] = (WEST, NORTH)) -> GeoBox:
    """A grid of the shape of `values` (y, x), pixels of `step` metres from its upper left corner `origin` on."""
    return GeoBox(values.shape, Affine(step, 0, origin[0], 0, -step, origin[1]), crs)


def write(
    path: Path, values: npt.NDArray[Any], step: float, *, crs: str = UTM32, origin: tuple[float, float] = (WEST, NORTH), **options: Any
) -> Asset:
    """The asset of a file written with `values` (y, x), pixels of `step` metres."""
    return to_asset(str(write_raster(path, values, to_geobox(values, step, crs=crs, origin=origin), **options)))


def numbered(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Every pixel holds its own number, so that a misplaced one shows."""
    return np.arange(1, rows * columns + 1, dtype=np.uint16).reshape(rows, columns)


def read_tile_offsets(path: Path) -> list[int]:
    """Tag 324 of a little-endian classic TIFF (TIFF 6.0, section 15)."""
    content = path.read_bytes()
    directory = int.from_bytes(content[4:8], "little")
    for entry in range(int.from_bytes(content[directory : directory + 2], "little")):
        start = directory + 2 + 12 * entry
        if int.from_bytes(content[start : start + 2], "little") == 324:
            count, place = (int.from_bytes(content[start + at : start + at + 4], "little") for at in (4, 8))
            return np.frombuffer(content, "<u4", count, place).tolist()
    raise AssertionError("no tiles")


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves one file by byte range, in the mood that the test wants."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        place: Any = self.server
        content, wanted = place.content, self.headers.get("Range")
        place.log.append((self.command, self.path, wanted))
        mood = place.mood(self.command, self.path, wanted)
        if isinstance(mood, int):
            self.send_response(mood)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if mood == "slow":
            place.held.wait(4)
        first, last = (
            (int(text) if text else len(content) - 1 for text in wanted.removeprefix("bytes=").split("-")) if wanted else (0, None)
        )
        piece = content[first : None if last is None else last + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(piece) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"e1"')
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = mood in ("reset", "short") or isinstance(mood, tuple)
        with contextlib.suppress(OSError):
            self.wfile.write(piece[: max(0, mood[0] - first)] if isinstance(mood, tuple) else piece[: len(piece) // 2] if broken else piece)
            place.n_bytes += len(piece)
        if mood == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = broken


class Remote:
    """A file behind a server whose mood can be set."""

    def __init__(self, content: bytes) -> None:
        self.server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
        self.server.content, self.server.log, self.server.n_bytes, self.server.held = content, [], 0, threading.Event()
        self.server.handle_error = lambda *_: None
        self.server.mood = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/a.tif"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, *moods: Mood, then: Mood = None) -> None:
        """The data requests get these moods in order, then always `then`; the header comes well."""
        queue = list(moods)

        def mood(command: str, _path: str, wanted: str | None) -> Mood:
            if command == "HEAD" or wanted in ("bytes=0-32767", "bytes=0-0"):
                return None
            return queue.pop(0) if queue else then

        self.server.mood = mood

    def close(self) -> None:
        self.server.held.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Remote]:
    """A server of the file at `path` as long as the block lasts."""
    server = Remote(path.read_bytes())
    try:
        yield server
    finally:
        server.close()
