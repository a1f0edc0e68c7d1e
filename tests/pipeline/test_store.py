"""Stores on disk: whole or not at all, verified, and equal for equal content."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.pipeline import store
from sereno.pipeline.errors import MissingError, StoreError
from sereno.pipeline.store import (
    open_dataset,
    read_json,
    read_manifest,
    save_dataset,
    staged,
    store_of,
    verify_store,
    write_json,
    write_manifest,
    write_text,
)


def make_dataset(value: int = 3) -> xr.Dataset:
    data = (np.arange(2 * 600 * 40, dtype=np.uint16) * value).reshape(2, 600, 40)
    variables = {"data": (("band", "y", "x"), data, {"units": "u"}), "valid": (("y", "x"), data[0] % 2 == 0)}
    coords = {"band": ["B02", "B03"], "y": np.arange(600.0), "x": np.arange(40.0)}
    return xr.Dataset(variables, coords=coords, attrs={"provenance": {"offset": None, "windows": [{"name": "p1"}]}})


def save(tmp_path: Path, value: int = 3) -> Path:
    manifest = tmp_path / "scene.json"
    save_dataset(make_dataset(value), manifest, kind="scene", summary={"value": value})
    return manifest


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_dataset_comes_back_with_values_names_types_and_attributes(tmp_path: Path) -> None:
    manifest, written = save(tmp_path), make_dataset()
    opened = open_dataset(manifest, kind="scene")
    xr.testing.assert_identical(opened.load(), written)
    assert {name: v.dtype for name, v in opened.data_vars.items()} == {"data": np.uint16, "valid": np.bool_}
    assert read_manifest(manifest)["summary"] == {"value": 3}


def test_plates_lie_in_tiles_of_one_band_and_nothing_declares_nan_to_be_no_value(tmp_path: Path) -> None:
    relief = np.full((2, 30, 40), np.nan, np.float32)
    variables = {
        "plate_0": (("band_0", "plate_row_0", "plate_col_0"), np.ones((2, 1500, 1100), np.uint16)),
        "plate_relief_0": (("axis", "y", "x"), relief),
    }
    save_dataset(xr.Dataset(variables, coords={"band_0": ["B1", "PAN"]}), tmp_path / "s.json", kind="scene", summary={})
    group: Any = zarr.open_group(store_of(tmp_path / "s.json"), mode="r")
    assert group["plate_0"].chunks == (1, store.TILE, store.TILE)
    opened = open_dataset(tmp_path / "s.json", kind="scene")
    assert opened["band_0"].values.tolist() == ["B1", "PAN"]
    assert opened["plate_relief_0"].attrs == {}
    np.testing.assert_array_equal(opened["plate_relief_0"].values, relief)


def test_scenes_lie_in_tiles_of_one_band_and_patches_one_by_one(tmp_path: Path) -> None:
    group: Any = zarr.open_group(store_of(save(tmp_path)), mode="r")
    assert group["data"].chunks == (1, 600, 40)
    patches = xr.Dataset({"cloudy": (("patch", "band", "row", "col"), np.ones((5, 2, 600, 8), np.uint16))})
    save_dataset(patches, tmp_path / "p.json", kind="patches", summary={}, chunks={"patch": 1})
    opened: Any = zarr.open_group(store_of(tmp_path / "p.json"), mode="r")
    assert opened["cloudy"].chunks == (1, 2, 600, 8)


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_any_shape_comes_back_also_an_empty_one(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int) -> None:
    manifest = tmp_path_factory.mktemp("shape") / "p.json"
    values = np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint16)
    save_dataset(xr.Dataset({"v": (("patch", "band", "row", "col"), values)}), manifest, kind="patches", summary={}, chunks={"patch": 1})
    np.testing.assert_array_equal(open_dataset(manifest)["v"].values, values)


def test_equal_content_gives_equal_bytes_everywhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def chunk_of(manifest: Path) -> Path:
    return store_of(manifest) / "data" / "c" / "1" / "0" / "0"


def delete(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def add(file: Path) -> None:
    file.with_name("99").write_bytes(b"unknown")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (delete, "data/c/1/0/0 is missing"),
        (flip, "data/c/1/0/0 has changed"),
        (truncate, "data/c/1/0/0 has changed"),
        (add, "data/c/1/0/99 is not in the manifest"),
    ],
)
def test_verify_names_every_kind_of_harm(tmp_path: Path, harm: Any, words: str) -> None:
    manifest = save(tmp_path)
    assert verify_store(manifest) == len(read_manifest(manifest)["files"])
    harm(chunk_of(manifest))
    with pytest.raises(StoreError, match=f"{words}; delete .*scene.json and rebuild it with `snakemake ingest`") as caught:
        verify_store(manifest)
    assert "\n" not in str(caught.value)


def test_verify_counts_what_it_does_not_name(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    for file in store_of(manifest).rglob("*"):
        if file.is_file():
            file.unlink()
    count = len(read_manifest(manifest)["files"])
    with pytest.raises(StoreError, match=rf"\(\+{count - 3} more\)"):
        verify_store(manifest)


@pytest.mark.parametrize("harm", [delete, truncate, flip])
def test_a_store_with_a_lost_short_or_flipped_file_is_not_opened(tmp_path: Path, harm: Any) -> None:
    manifest = save(tmp_path)
    harm(chunk_of(manifest))
    with pytest.raises(StoreError, match=r"is missing|has changed"):
        open_dataset(manifest)


def test_a_store_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    manifest.unlink()
    with pytest.raises(MissingError, match=r"scene\.json does not exist"):
        open_dataset(manifest)
    with pytest.raises(MissingError):
        verify_store(manifest)


def test_a_manifest_of_another_kind_or_form_is_refused(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    with pytest.raises(StoreError, match="describes a 'scene', expected a 'pair'"):
        open_dataset(manifest, kind="pair")
    write_json(manifest, {"format": "another/1"})
    with pytest.raises(StoreError, match=r"not a sereno-store/1 manifest"):
        open_dataset(manifest)
    manifest.write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        open_dataset(manifest)


def test_the_leftover_of_a_killed_job_is_not_used_and_is_replaced(tmp_path: Path) -> None:
    # What a job killed by SIGKILL leaves behind: half a store under the temporary name, and no manifest.
    folder = tmp_path / "harmed"
    partial = folder / ".scene.zarr.partial" / "data" / "c" / "7"
    partial.mkdir(parents=True)
    (partial / "0").write_bytes(b"half")
    with pytest.raises(MissingError):
        open_dataset(folder / "scene.json")
    assert verify_store(save(folder))
    save(tmp_path / "fresh")
    assert read_all(tmp_path / "fresh") == read_all(folder)


def test_a_finished_but_undescribed_store_is_replaced_whole(tmp_path: Path) -> None:
    old = tmp_path / "scene.zarr" / "old"
    old.mkdir(parents=True)
    (old / "file").write_bytes(b"")
    verify_store(save(tmp_path))
    assert not old.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from sereno.pipeline.store import staged
with staged(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_result_alone(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    before = read_all(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, store_of(manifest)], check=False)
    assert (tmp_path / ".scene.zarr.partial" / "half").is_file()
    verify_store(manifest)
    save(tmp_path)
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_gives_one_line_and_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    manifest = save(tmp_path)
    before = read_all(tmp_path)
    writes = []
    set_item = zarr.storage.LocalStore.set

    async def fail_on_the_fourth(self: Any, key: str, value: Any) -> None:
        writes.append(key)
        if len(writes) > 3:
            raise OSError(code, os.strerror(code))
        await set_item(self, key, value)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", fail_on_the_fourth)
    with pytest.raises(StoreError, match=f"cannot write .*scene.zarr: {os.strerror(code)}; .* or choose another folder") as caught:
        save(tmp_path, value=5)
    assert "\n" not in str(caught.value)
    assert read_all(tmp_path) == before
    verify_store(manifest)


FILL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np, xarray as xr
from sereno.pipeline.errors import StoreError
from sereno.pipeline.store import save_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 2**16, (4, 100, 100), dtype=np.uint16)
try:
    save_dataset(xr.Dataset({"data": (("band", "y", "x"), noise)}), Path(sys.argv[1]), kind="scene", summary={})
except StoreError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_write_that_the_system_refuses_gives_one_line_and_leaves_the_old_result(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    before = read_all(tmp_path)
    run = subprocess.run([sys.executable, "-c", FILL_DISK, manifest], capture_output=True, text=True, check=False)
    assert run.returncode == 6, run.stderr
    assert run.stdout.count("\n") == 1
    assert "File too large; free space or choose another folder" in run.stdout
    assert read_all(tmp_path) == before


def test_what_does_not_read_back_is_refused_and_the_old_result_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    before = read_all(tmp_path)
    monkeypatch.setattr(store, "_open", lambda _: make_dataset(9))
    with pytest.raises(StoreError, match="'data' does not read back"):
        save(tmp_path, value=5)
    assert read_all(tmp_path) == before


def test_an_error_of_the_writer_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with staged(tmp_path / "x") as partial:
            partial.write_text("half")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/below"):
        write_json(tmp_path / "file" / "below" / "x.json", {})


def test_json_is_sorted_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert path.read_text() == '{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(MissingError, match="run the step that writes it"):
        read_json(tmp_path / "nowhere.json")


def test_a_manifest_says_nothing_of_time_place_or_host(tmp_path: Path) -> None:
    manifest = save(tmp_path)
    assert str(tmp_path) not in manifest.read_text()
    for file in store_of(manifest).rglob("*"):
        os.utime(file, (0, 0))
    before = manifest.read_bytes()
    write_manifest(manifest, kind="scene", summary={"value": 3})
    assert manifest.read_bytes() == before
    assert set(json.loads(before)) == {"format", "kind", "store", "files", "summary"}


@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "lz4"), (np.int16, "zstd"), (np.uint8, "lz4")])
def test_bitshuffle_knows_the_size_of_the_numbers(dtype: type, name: Any) -> None:
    codec = store.codec_for(np.dtype(dtype), name).to_dict()["configuration"]
    assert isinstance(codec, dict)
    assert (codec["cname"], codec["shuffle"], codec["typesize"]) == (name, "bitshuffle", np.dtype(dtype).itemsize)


def test_a_folder_never_gives_way_to_a_file(tmp_path: Path) -> None:
    kept = tmp_path / "mine" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    with pytest.raises(StoreError, match="mine: it is a folder; name a file"):
        write_text(tmp_path / "mine", "two lines")
    assert kept.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is a folder, expected a JSON file.*pack/dataset\.json"):
        read_json(tmp_path)
