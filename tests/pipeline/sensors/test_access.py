"""What may heal is tried again, what will not costs its own pixels and is named."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasters import EXPECTED, GRID, GROUND, NORTH, RULE, UTM32, WEST, Mood, Remote, read_tile_offsets, serving, to_asset, write

from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.sensors import access, assets
from sereno.pipeline.sensors.assets import Asset
from sereno.pipeline.sensors.layers import read_layer


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "BACKOFF_S", 0.0)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    write(tmp_path / "a.tif", GROUND, 10, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with serving(tmp_path / "a.tif") as server:
        yield server


@pytest.fixture
def damaged(tmp_path: Path) -> Asset:
    values = np.random.default_rng(0).integers(1, 60_000, (64, 64), dtype=np.uint16)
    asset = write(tmp_path / "a.tif", values, 10, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    offsets = read_tile_offsets(Path(asset.record.href))
    with Path(asset.record.href).open("r+b") as stream:
        stream.seek(offsets[1 * 4 + 2])
        stream.write(b"\xff" * 40)
    return asset


def test_a_corrupt_tile_costs_its_own_pixels_and_is_named(damaged: Asset) -> None:
    layer = read_layer(damaged, GeoBox((60, 60), Affine(10, 0, WEST + 20, 0, -10, NORTH - 20), UTM32), RULE)
    lost = np.zeros((60, 60), bool)
    lost[16 - 2 : 32 - 2, 32 - 2 : 48 - 2] = True
    np.testing.assert_array_equal(layer.has_data, ~lost)
    assert len(layer.lost) == 1
    assert layer.lost[0].startswith("rows 16-31, columns 32-47: ")


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


def test_each_pause_before_another_try_is_longer_and_not_in_step_with_others(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(assets, "BACKOFF_S", 0.5)
    monkeypatch.setattr(assets, "time", SimpleNamespace(sleep=waited.append))
    remote.server.mood = lambda *_: 503
    for _ in range(2):
        with pytest.raises(CatalogueError, match="after 4 attempts"):
            read_layer(to_asset(remote.url)._replace(attempts=4), GRID, RULE)
    assert len(waited) == 6
    assert waited[:3] != waited[3:]
    for pause, mean in zip(waited, (0.5, 1, 2, 0.5, 1, 2), strict=True):
        assert 0.5 * mean <= pause <= 1.5 * mean


@pytest.mark.parametrize("mood", [503, 429, "slow"])
def test_a_server_that_stays_down_fails_the_job_and_not_the_pixels(remote: Remote, mood: Mood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "GDAL_OPTIONS", access.GDAL_OPTIONS | {"GDAL_HTTP_TIMEOUT": 0.3})
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
