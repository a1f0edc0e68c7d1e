"""A file that is not the one of the lock any more is not used."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rasters import GRID, GROUND, RULE, Remote, serving, to_asset, write

from sereno.pipeline.sensors.assets import LossError, check_unchanged, parse_checksum
from sereno.pipeline.sensors.layers import read_layer


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    write(tmp_path / "a.tif", GROUND, 10)
    with serving(tmp_path / "a.tif") as server:
        yield server


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


def test_a_local_file_of_another_size_is_refused_whatever_its_checksum(tmp_path: Path) -> None:
    asset = write(tmp_path / "a.tif", GROUND, 10)
    size = (tmp_path / "a.tif").stat().st_size
    check_unchanged(asset._replace(record=asset.record.model_copy(update={"size_bytes": size})))
    other = asset._replace(record=asset.record.model_copy(update={"size_bytes": size + 1, "checksum": "0" * 32}))
    with pytest.raises(LossError, match=f"size differs from the lock: {size} bytes, expected {size + 1}"):
        check_unchanged(other)


@pytest.mark.parametrize("text", ["", "9999" + "a" * 64, "1220" + "a" * 62, "a" * 31])
def test_a_checksum_of_no_known_kind_or_length_names_no_function(text: str) -> None:
    assert parse_checksum(text)[0] == ""
