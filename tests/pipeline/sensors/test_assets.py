"""Pixels are copied where grids fit, warped where not, and what cannot be read is named."""

import contextlib
import hashlib
import http.server
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import transform

from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.pairs import AssetRecord
from sereno.pipeline.sensors import assets
from sereno.pipeline.sensors.assets import Asset, Rule, match_grid, own_geobox, read_layer
from sereno.pipeline.signing import Resolver

UTM32 = "EPSG:32632"
WEST, NORTH = 500_040.0, 5_000_040.0  # multiples of 60 and not of 100: a 60 m grid need not begin where a 10 m area does


def known(values: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_]:
    return np.asarray(values != (nodata or 0))


RULE = Rule(known)
NEAREST = Rule(known, Resampling.nearest)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "BACKOFF_S", 0.0)


def to_asset(href: str, **facts: Any) -> Asset:
    return Asset("X", "B04", AssetRecord(href=href, **facts), Resolver("/"), attempts=2, check="checksum")


def write(
    path: Path, values: npt.NDArray[Any], step: float, *, crs: str = UTM32, origin: tuple[float, float] = (WEST, NORTH), **options: Any
) -> Asset:
    profile = {"driver": "GTiff", "dtype": values.dtype, "width": values.shape[1], "height": values.shape[0], "count": 1, "crs": crs}
    with rasterio.open(path, "w", **profile, transform=Affine(step, 0, origin[0], 0, -step, origin[1]), **options) as file:
        file.write(values, 1)
    return to_asset(str(path))


def numbered(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """Every pixel holds its own number, so that a misplaced one shows."""
    return np.arange(1, rows * columns + 1, dtype=np.uint16).reshape(rows, columns)


def centres(geobox: GeoBox) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    affine = geobox.transform
    return affine.c + affine.a * (np.arange(geobox.shape.x) + 0.5), affine.f + affine.e * (np.arange(geobox.shape.y) + 0.5)


@pytest.mark.parametrize(("step", "skip"), [(10, 7), (20, 3), (60, 4), (60, 5)])
def test_each_pixel_is_the_one_of_the_file_under_its_centre(tmp_path: Path, step: int, skip: int) -> None:
    values = numbered(40, 50)
    asset = write(tmp_path / "a.tif", values, step)
    geobox = GeoBox((60, 71), Affine(10, 0, WEST + 10 * skip, 0, -10, NORTH - 10 * skip), UTM32)
    layer = read_layer(asset, geobox, RULE)
    x, y = centres(geobox)
    column, row = ((x - WEST) // step).astype(int), ((NORTH - y) // step).astype(int)
    inside = (row[:, None] < 40) & (column[None, :] < 50)
    expected = np.where(inside, values[np.minimum(row, 39)][:, np.minimum(column, 49)], 0)
    np.testing.assert_array_equal(layer.values, expected)
    np.testing.assert_array_equal(layer.has_data, inside)


def test_an_area_beyond_the_footprint_has_no_data_on_any_side(tmp_path: Path) -> None:
    asset = write(tmp_path / "a.tif", numbered(4, 4), 10)
    layer = read_layer(asset, GeoBox((8, 8), Affine(10, 0, WEST - 20, 0, -10, NORTH + 20), UTM32), RULE)
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(layer.has_data, expected)
    far = read_layer(asset, GeoBox((8, 8), Affine(10, 0, WEST + 9000, 0, -10, NORTH), UTM32), RULE)
    assert not far.has_data.any()


@pytest.mark.parametrize("nodata", [None, 65535])
def test_nodata_is_what_the_file_declares_or_zero(tmp_path: Path, nodata: int | None) -> None:
    values = np.array([[0, 1], [65535, 7]], np.uint16)
    asset = write(tmp_path / "a.tif", values, 10, nodata=nodata)
    layer = read_layer(asset, GeoBox((2, 2), Affine(10, 0, WEST, 0, -10, NORTH), UTM32), RULE)
    np.testing.assert_array_equal(layer.has_data, values != (nodata or 0))


def test_a_grid_between_the_pixels_or_rotated_or_of_another_zone_needs_interpolation() -> None:
    file = Affine(10, 0, WEST, 0, -10, NORTH)
    assert match_grid(UTM32, file, GeoBox((4, 4), file * Affine.translation(2, 3), UTM32)) is not None
    for other in (file * Affine.translation(0.5, 0), file * Affine.rotation(1), file * Affine.scale(2)):
        assert match_grid(UTM32, file, GeoBox((4, 4), other, UTM32)) is None
    assert match_grid(UTM32, file, GeoBox((4, 4), file, "EPSG:32633")) is None


def test_warping_puts_a_plane_where_it_belongs_in_the_neighbouring_zone(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:200, 0:200]
    plane = (1000 + 10 * columns + 5 * rows).astype(np.uint16)
    origin = (700_000.0, 5_000_000.0)
    asset = write(tmp_path / "a.tif", plane, 10, origin=origin)
    (x,), (y,) = transform(UTM32, "EPSG:32633", [701_000], [4_999_000])
    geobox = GeoBox((60, 60), Affine(10, 0, round(x), 0, -10, round(y)), "EPSG:32633")
    layer = read_layer(asset, geobox, RULE)
    assert layer.has_data.all()
    centre_x, centre_y = centres(geobox)
    back_x, back_y = transform("EPSG:32633", UTM32, np.repeat(centre_x[None], 60, 0).ravel(), np.repeat(centre_y[:, None], 60, 1).ravel())
    column, row = (np.array(back_x) - origin[0]) / 10 - 0.5, (origin[1] - np.array(back_y)) / 10 - 0.5
    expected = (1000 + 10 * column + 5 * row).reshape(60, 60)
    assert np.abs(layer.values - expected).max() < 0.5 + 0.05  # rounded to integers; a hundredth of a pixel is 0.1 here


def test_nodata_does_not_bleed_into_warped_pixels(tmp_path: Path) -> None:
    values = np.full((50, 50), 4000, np.uint16)
    values[:, 25:] = 0
    asset = write(tmp_path / "a.tif", values, 10)
    layer = read_layer(asset, GeoBox((40, 40), Affine(10, 0, WEST + 53, 0, -10, NORTH - 53), UTM32), RULE)
    assert np.unique(layer.values[layer.has_data]).tolist() == [4000]
    assert 0 < layer.has_data.mean() < 1


def test_classes_are_never_mixed_by_warping(tmp_path: Path) -> None:
    classes = np.random.default_rng(1).choice(np.array([3, 4, 9], np.uint8), (50, 50))
    asset = write(tmp_path / "a.tif", classes, 10)
    layer = read_layer(asset, GeoBox((30, 30), Affine(10, 0, WEST + 53, 0, -10, NORTH - 53), UTM32), NEAREST)
    assert set(np.unique(layer.values[layer.has_data])) == {3, 4, 9}


@pytest.fixture
def damaged(tmp_path: Path) -> Asset:
    values = np.random.default_rng(0).integers(1, 60_000, (64, 64), dtype=np.uint16)
    asset = write(tmp_path / "a.tif", values, 10, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    offsets = read_tile_offsets(Path(asset.record.href))
    with Path(asset.record.href).open("r+b") as stream:
        stream.seek(offsets[1 * 4 + 2])
        stream.write(b"\xff" * 40)
    return asset


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


def test_a_corrupt_tile_costs_its_own_pixels_and_is_named(damaged: Asset) -> None:
    layer = read_layer(damaged, GeoBox((60, 60), Affine(10, 0, WEST + 20, 0, -10, NORTH - 20), UTM32), RULE)
    lost = np.zeros((60, 60), bool)
    lost[16 - 2 : 32 - 2, 32 - 2 : 48 - 2] = True
    np.testing.assert_array_equal(layer.has_data, ~lost)
    assert len(layer.lost) == 1
    assert layer.lost[0].startswith("rows 16-31, columns 32-47: ")


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.7, 0.0), (4.2, 8.9)])
def test_a_files_own_grid_covers_the_area_and_its_margin_without_resampling(tmp_path: Path, shift: tuple[float, float]) -> None:
    asset = write(tmp_path / "a.tif", np.ones((100, 100), np.float32), 10, origin=(WEST + shift[0], NORTH + shift[1]))
    area = GeoBox((20, 30), Affine(10, 0, WEST + 200, 0, -10, NORTH - 300), UTM32)
    own = own_geobox(asset, area, 4)
    wanted, box = area.pad(4).boundingbox, own.boundingbox
    assert box.left <= wanted.left
    assert box.right >= wanted.right
    assert box.bottom <= wanted.bottom
    assert box.top >= wanted.top
    assert max(own.shape.y - 28, own.shape.x - 38) <= 1
    assert match_grid(UTM32, rasterio.open(asset.record.href).transform, own) is not None


def test_a_file_of_another_zone_or_step_has_no_grid_to_stay_on(tmp_path: Path) -> None:
    area = GeoBox((20, 30), Affine(10, 0, WEST, 0, -10, NORTH), UTM32)
    other_zone = write(tmp_path / "a.tif", np.ones((9, 9), np.float32), 10, crs="EPSG:32633")
    other_step = write(tmp_path / "b.tif", np.ones((9, 9), np.float32), 20)
    assert own_geobox(other_zone, area, 4) is None
    assert own_geobox(other_step, area, 4) is None


Mood = int | str | tuple[int] | None
"""How a server answers: with an error status, `reset` or `short` (the body breaks off), never beyond a byte `(N,)`, `slow`, or well."""


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


GROUND = np.random.default_rng(0).integers(1, 60_000, (320, 320), dtype=np.uint16)
GRID = GeoBox((300, 290), Affine(10, 0, WEST + 100, 0, -10, NORTH - 50), UTM32)
EXPECTED = GROUND[5:305, 10:300]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    write(tmp_path / "a.tif", GROUND, 10, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    server = Remote((tmp_path / "a.tif").read_bytes())
    yield server
    server.close()


def test_bytes_of_the_ledger_are_those_that_the_server_sent(remote: Remote) -> None:
    layer = read_layer(to_asset(remote.url), GeoBox((100, 100), Affine(10, 0, WEST + 700, 0, -10, NORTH - 700), UTM32), RULE)
    header = 32_768
    assert layer.entry.bytes_read > 2 * 64 * 64 * 2
    assert abs(remote.server.n_bytes - header - layer.entry.bytes_read) < 0.02 * remote.server.n_bytes
    assert (layer.entry.status, layer.entry.retries, layer.lost) == ("used", 0, ())


@pytest.mark.parametrize("mood", [500, 503, 429, "reset", "short"])
def test_what_fails_for_a_while_ends_as_if_nothing_had_been(remote: Remote, mood: Mood) -> None:
    asset = to_asset(remote.url)._replace(attempts=4)
    remote.answer(*[mood] * 8)  # GDAL itself asks for a range again, tile by tile, before it gives up
    layer = read_layer(asset, GRID, RULE)
    assert layer.has_data.all()
    np.testing.assert_array_equal(layer.values, EXPECTED)
    assert layer.lost == ()
    assert layer.entry.status == "used"
    assert layer.entry.retries >= 1


@pytest.mark.parametrize("mood", [500, 503, 429])
def test_a_file_that_cannot_be_opened_once_is_opened_anew(remote: Remote, mood: int) -> None:
    queue = [mood, mood]
    remote.server.mood = lambda *_: queue.pop(0) if queue else None
    layer = read_layer(to_asset(remote.url)._replace(attempts=4), GRID, RULE)
    np.testing.assert_array_equal(layer.values, EXPECTED)
    assert layer.entry.retries == 2


@pytest.mark.parametrize("mood", [503, 429, "slow"])
def test_a_server_that_stays_down_fails_the_job_and_not_the_pixels(remote: Remote, mood: Mood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "GDAL_OPTIONS", assets.GDAL_OPTIONS | {"GDAL_HTTP_TIMEOUT": 0.3})
    monkeypatch.setattr(assets, "TIMEOUT_S", 0.3)
    remote.server.mood = lambda *_: mood
    with pytest.raises(
        CatalogueError, match=r"item X, B04 \(http://127.0.0.1:.*/a.tif\) cannot be read after 2 attempts: .*; run again later"
    ):
        read_layer(to_asset(remote.url), GRID, RULE)


@pytest.mark.parametrize("mood", [500, 503])
def test_a_server_that_goes_down_in_the_middle_fails_the_job(remote: Remote, mood: Mood) -> None:
    remote.server.mood = lambda command, _path, wanted: None if command == "HEAD" or wanted == "bytes=0-32767" else mood
    with pytest.raises(CatalogueError, match=f"cannot be read after 2 attempts: the server answers HTTP {mood}"):
        read_layer(to_asset(remote.url), GRID, RULE)
    remote.answer(then=mood)  # what GDAL does not pass on is found by asking for the tile's own bytes
    with pytest.raises(CatalogueError, match=f"cannot be read after 2 attempts: the server answers HTTP {mood}"):
        read_layer(to_asset(remote.url), GRID, RULE)


def test_nobody_at_the_address_fails_the_job(remote: Remote) -> None:
    remote.close()
    with pytest.raises(CatalogueError, match="cannot be read after 2 attempts: CURL error: Failed to connect"):
        read_layer(to_asset(remote.url), GRID, RULE)


@pytest.mark.parametrize(("mood", "status"), [(404, "missing"), (410, "missing"), (400, "unreadable")])
def test_what_a_server_does_not_have_is_lost(remote: Remote, mood: int, status: str) -> None:
    remote.server.mood = lambda *_: mood
    layer = read_layer(to_asset(remote.url), GRID, RULE)
    assert not layer.has_data.any()
    assert (layer.entry.status, layer.entry.reason) == (status, f"the server answers HTTP {mood}")
    assert layer.lost == (layer.entry.reason,)


def test_a_file_that_goes_while_it_is_read_is_lost(remote: Remote) -> None:
    remote.answer(then=404)
    layer = read_layer(to_asset(remote.url), GRID, RULE)
    assert not layer.has_data.any()
    assert layer.entry.status == "missing"


def test_a_page_of_words_is_no_image(remote: Remote) -> None:
    remote.server.content = b"<html>not found</html>" * 9
    layer = read_layer(to_asset(remote.url), GRID, RULE)
    assert layer.entry.status == "unreadable"
    assert "not recognized as being in a supported file format" in layer.entry.reason


def test_a_tile_cut_off_by_the_end_of_the_file_costs_its_own_pixels(remote: Remote, tmp_path: Path) -> None:
    offsets = read_tile_offsets(tmp_path / "a.tif")
    remote.server.content = remote.server.content[: offsets[-1] + 100]
    layer = read_layer(to_asset(remote.url), GRID, RULE)
    kept = np.ones((300, 290), bool)
    kept[256 - 5 :, 256 - 10 :] = False
    np.testing.assert_array_equal(layer.has_data, kept)
    np.testing.assert_array_equal(layer.values[kept], EXPECTED[kept])
    (reason,) = layer.lost
    assert reason.startswith("rows 256-304, columns 256-299: ")
    assert layer.entry.status == "partly"


def test_a_range_that_always_breaks_off_is_no_loss_but_fails_the_job(remote: Remote, tmp_path: Path) -> None:
    spoilt = read_tile_offsets(tmp_path / "a.tif")[7]

    def mood(command: str, _path: str, wanted: str | None) -> Mood:
        first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-")) if wanted else (0, 0)
        return (spoilt,) if command == "GET" and first <= spoilt <= last and first > 0 else None

    remote.server.mood = mood
    with pytest.raises(CatalogueError, match="cannot be read after 2 attempts: no whole answer to a request for bytes"):
        read_layer(to_asset(remote.url), GRID, RULE)


class Signed(NamedTuple):
    """A resolver whose signature runs out: each renewal gives the next one."""

    url: str
    tokens: list[str]
    options: tuple[tuple[str, str], ...] = ()
    advice: str = "get a key at the desk"

    def __call__(self, href: str, *, renew: bool = False) -> str:  # noqa: ARG002 - as a Resolver
        if renew and len(self.tokens) > 1:
            self.tokens.pop(0)
        return f"{self.url}?sig={self.tokens[0]}"

    to_web = __call__

    def to_address(self, href: str) -> str:  # noqa: ARG002
        return self.url


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_signature_that_runs_out_is_renewed(remote: Remote, status: int, in_the_middle: bool) -> None:
    def mood(_command: str, path: str, wanted: str | None) -> Mood:
        good = path.endswith("sig=new") or (in_the_middle and wanted in (None, "bytes=0-32767"))
        return None if good else status

    remote.server.mood = mood
    asset = to_asset("a.tif")._replace(resolver=Signed(remote.url, ["old", "new"]), attempts=1)
    layer = read_layer(asset, GRID, RULE)
    np.testing.assert_array_equal(layer.values, EXPECTED)
    assert (layer.entry.status, layer.entry.retries) == ("used", 1)


def test_access_that_stays_refused_fails_the_job_with_advice_and_without_the_signature(remote: Remote) -> None:
    remote.server.mood = lambda *_: 403
    asset = to_asset("a.tif")._replace(resolver=Signed(remote.url, ["secret"]))
    with pytest.raises(
        CatalogueError, match=r"may not be read: the server answers HTTP 403; check the keys .*, or get a key at the desk"
    ) as error:
        read_layer(asset, GRID, RULE)
    assert "secret" not in str(error.value)


def test_a_file_that_changed_on_its_server_is_not_used(remote: Remote) -> None:
    size = len(remote.server.content)
    good = read_layer(to_asset(remote.url, etag='W/"e1"', size_bytes=size), GRID, RULE)
    assert good.has_data.all()
    for facts, words in (
        ({"etag": '"e0"'}, 'ETag differs from the lock: "e1", expected "e0"'),
        ({"size_bytes": 9}, "size differs from the lock"),
    ):
        layer = read_layer(to_asset(remote.url, **facts), GRID, RULE)
        assert layer.entry.status == "unreadable"
        assert layer.entry.reason.startswith(words)
    by_size = to_asset(remote.url, etag='"e0"', size_bytes=size)._replace(check="size")
    assert read_layer(by_size, GRID, RULE).has_data.all()
    unchecked = to_asset(remote.url, size_bytes=9)._replace(check="none")
    assert read_layer(unchecked, GRID, RULE).has_data.all()


@pytest.mark.parametrize(("mark", "function"), [("1220", "sha256"), ("1114", "sha1"), ("d50110", "md5"), ("", "md5")])
def test_a_local_file_is_compared_with_its_checksum(tmp_path: Path, mark: str, function: str) -> None:
    asset = write(tmp_path / "a.tif", GROUND, 10)
    checksum = mark + hashlib.new(function, (tmp_path / "a.tif").read_bytes()).hexdigest()
    asset = asset._replace(record=asset.record.model_copy(update={"checksum": checksum}))
    assert read_layer(asset, GRID, RULE).has_data.all()
    with (tmp_path / "a.tif").open("r+b") as stream:
        stream.seek(-5, 2)
        stream.write(b"x")
    layer = read_layer(asset, GRID, RULE)
    assert not layer.has_data.any()
    assert layer.entry.reason.startswith(f"checksum differs from the lock: {function} ")
    assert read_layer(asset._replace(check="size"), GRID, RULE).has_data.all()


def test_a_file_in_an_archive_is_read_and_one_that_is_not_in_it_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", GROUND, 10)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "in/a.tif")
        archive.writestr("in/b.tif", "no image")
    for name, status in (("a", "used"), ("b", "unreadable"), ("c", "missing")):
        layer = read_layer(to_asset(f"/vsizip/{tmp_path}/a.zip/in/{name}.tif"), GRID, RULE)
        assert layer.entry.status == status, layer.entry.reason
        assert layer.has_data.all() == (name == "a")


def test_jpeg_2000_is_read_too_and_counted_by_its_share(tmp_path: Path) -> None:
    options = {"REVERSIBLE": "YES", "QUALITY": "100", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64}
    profile = {"driver": "JP2OpenJPEG", "dtype": "uint16", "width": 320, "height": 320, "count": 1, "crs": UTM32}
    with rasterio.open(tmp_path / "a.jp2", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH), **options) as file:
        file.write(GROUND, 1)
    layer = read_layer(to_asset(str(tmp_path / "a.jp2")), GRID, RULE)
    np.testing.assert_array_equal(layer.values, EXPECTED)
    assert layer.entry.bytes_read == round((tmp_path / "a.jp2").stat().st_size * 300 * 290 / 320**2)


def test_a_file_without_crs_is_lost_since_its_place_is_unknown(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "dtype": "uint16", "width": 320, "height": 320, "count": 1}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH)) as file:
        file.write(GROUND, 1)
    asset = to_asset(str(tmp_path / "a.tif"))
    assert read_layer(asset, GRID, RULE).lost == ("the file has no CRS, so its place on the ground is unknown",)
    assert own_geobox(asset, GRID, 4) is None


def test_the_wanted_band_of_a_file_is_read_and_one_it_lacks_is_named(tmp_path: Path) -> None:
    stack = np.stack([GROUND, GROUND // 2])
    profile = {"driver": "GTiff", "dtype": "uint16", "width": 320, "height": 320, "count": 2, "crs": UTM32}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, transform=Affine(10, 0, WEST, 0, -10, NORTH)) as file:
        file.write(stack)
    second = read_layer(to_asset(str(tmp_path / "a.tif"), index=2), GRID, RULE)
    np.testing.assert_array_equal(second.values, EXPECTED // 2)
    third = read_layer(to_asset(str(tmp_path / "a.tif"), index=3), GRID, RULE)
    assert third.lost == ("the file has 2 bands, band 3 is wanted",)


@pytest.mark.parametrize("step", [10, 20, 60])
def test_a_given_array_is_filled_and_nothing_of_it_is_left_over(tmp_path: Path, step: int) -> None:
    asset = write(tmp_path / "a.tif", numbered(40, 50), step)
    for geobox in (
        GeoBox((60, 71), Affine(10, 0, WEST + 20, 0, -10, NORTH - 70), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST - 20, 0, -10, NORTH + 70), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST + 90_000, 0, -10, NORTH), UTM32),
        GeoBox((60, 71), Affine(10, 0, WEST + 23, 0, -10, NORTH - 77), UTM32),
    ):
        out = np.full((60, 71), 7777, np.uint16)
        filled, fresh = read_layer(asset, geobox, RULE, out), read_layer(asset, geobox, RULE)
        assert filled.values is out
        np.testing.assert_array_equal(out, fresh.values)
        np.testing.assert_array_equal(filled.has_data, fresh.has_data)
    lost = read_layer(to_asset(str(tmp_path / "gone.tif")), geobox, RULE, np.full((60, 71), 7777, np.uint16))
    assert not lost.values.any()
