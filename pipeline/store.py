"""How results lie on disk: written under a temporary name, verified, renamed, and described by a small manifest.

A store is a Zarr v3 folder `NAME.zarr` beside its manifest `NAME.json`. The manifest is written last and lists size and SHA-256
of every file, so a store without a manifest is unfinished and a damaged one is found. No time or host name is recorded:
equal content gives equal manifests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from sereno.pipeline.errors import MissingError, StoreError, describe_fault

FORMAT: Final = "sereno-store/1"
WRITERS: Final = {"scene": "ingest", "pair": "align", "group": "align", "mask": "mask", "patches": "patch", "dataset": "pack"}
"""The step that writes each kind of store; as a target it makes what is missing, which the final page would not ask for."""
TILE: Final = 1024
"""Rows and columns of a chunk in scene and pair stores, which hold one band each: steps read few bands, and large chunks write faster
(measured: 0.16 against 0.23 CPU-s for 39 Mpx in chunks of 512)."""
SCENE_CHUNK: Final = {"band": 1, "sar_band": 1, "pan_band": 1}
"""A chunk where the caller names none, of TILE rows and columns."""
NUMBERED: Final = re.compile(r"_\d+$")
"""How the dims of one plate of many end, after the name that says what they are."""
SCENE_CODEC: Final = ("lz4", 1)
"""Scenes and pairs are written and read once or twice: lz4 takes half the CPU time of zstd (measured: 0.03 against 0.06 s for 17 Mpx)
for 1.06 (noisy ground) to 1.4 times (scenes of the demo) the size."""
PIPELINE: Final = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
"""Chunks are coded by zarrs, in parallel outside the interpreter: a scene is saved in 0.48 instead of 1.06 CPU-s (91 Mpx)."""
OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
"""How Rust words a refusal of the system."""
SYNC_THREADS: Final = 16
"""Files synced at a time: the file system commits them together, many small files ten times faster than one by one."""


def codec_for(dtype: np.dtype[Any], name: Literal["lz4", "zstd"] = "lz4", level: int = 5) -> BloscCodec:
    """Blosc with bitshuffle for `dtype`; measured in the design: plain zstd without shuffle is dominated."""
    return BloscCodec(cname=name, clevel=level, shuffle=BloscShuffle.bitshuffle, typesize=dtype.itemsize)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block ends well, what was written there is synced and renamed to `path`.

    Leftovers of a killed job are removed first; if the block fails, its own are. A folder gives way to a folder only: what lies in one is
    never lost to a file of its name.

    Raises:
        StoreError: the place cannot be written, for example because the disk is full, or a folder is there where a file should be.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        with ThreadPoolExecutor(SYNC_THREADS) as executor:
            list(executor.map(_sync, (partial, *partial.rglob("*"))))
        if path.is_dir() and not partial.is_dir():
            raise StoreError(f"cannot write {path}: it is a folder; name a file, for example in it")
        if partial.is_dir():  # a file is replaced in one step, a folder cannot be
            remove(path)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(partial)
        if error.errno is None:  # ours, which says more already, or of a library that gives no cause
            raise
        raise StoreError(f"cannot write {path}: {describe_fault(error)}") from error
    except BaseException:
        remove(partial)
        raise


def _sync(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk, so that a name never outlives its content in a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete the file or folder `path` if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON to `path`, whole or not at all; keys sorted, so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with staged(path) as partial:
        partial.write_text(text)


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        MissingError: there is no such file.
        StoreError: it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist: run the step that writes it first") from None
    except IsADirectoryError:
        raise StoreError(f"{path} is a folder, expected a JSON file that a step has written (for a dataset: pack/dataset.json)") from None
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}): name another file, or if a step wrote it, run that step again") from None


def store_of(manifest: Path) -> Path:
    """The store that belongs to `manifest`: the same name with `.zarr`."""
    return manifest.with_suffix(".zarr")


def save_dataset(
    dataset: xr.Dataset, manifest: Path, *, kind: str, summary: Mapping[str, Any], chunks: Mapping[str, int] | None = None
) -> None:
    """Write a scene, a pair or patches as Zarr v3 and then its manifest; until that has succeeded, what was there before stays.

    `kind` says what it is (`scene`, `pair`, `mask`, ...); `summary` is copied into the manifest for people and for the report.
    `chunks` gives the extent of a chunk along the dims it names; along the others it is `TILE` for y and x, and for rows and columns of
    plates, else the whole extent.
    Without `chunks` a chunk holds one band.
    Band names go into attributes, since Zarr v3 has no settled type for text.

    Raises:
        StoreError: the store cannot be written, or does not read back as it was written.
    """
    names = {f"names:{dim}": [str(v) for v in dataset[dim].values] for dim in dataset.dims if dataset[dim].dtype.kind == "U"}
    plain = dataset.drop_vars([key.removeprefix("names:") for key in names]).assign_attrs(names)
    encoding: dict[Any, dict[str, Any]] = {name: _encoding(variable, chunks or SCENE_CHUNK) for name, variable in plain.data_vars.items()}
    encoding |= {name: {"_FillValue": None} for name in ("y", "x") if name in plain.coords}
    with staged(store_of(manifest)) as partial, zarr.config.set(PIPELINE), _translate_faults():
        plain.to_zarr(partial, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        _check_equal(plain, _open(partial), partial)
        manifest.unlink(missing_ok=True)
    write_manifest(manifest, kind=kind, summary=summary)


@contextlib.contextmanager
def _translate_faults() -> Iterator[None]:
    """Give what the system refused its own type: zarrs reports it as a RuntimeError with the system's number in its words."""
    try:
        yield
    except RuntimeError as error:
        number = OS_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _encoding(variable: xr.DataArray, chunks: Mapping[str, int]) -> dict[str, Any]:
    limits = {**dict.fromkeys(("y", "x", "y_coarse", "x_coarse", "plate_row", "plate_col"), TILE), **chunks}
    shape = tuple(max(1, min(size, limits.get(NUMBERED.sub("", str(dim)), size))) for dim, size in variable.sizes.items())
    unfilled = {"_FillValue": None} if variable.dtype.kind == "f" else {}  # else NaN is declared to be no value
    return {"chunks": shape, "compressors": [codec_for(variable.dtype, *SCENE_CODEC)], **unfilled}


def _check_equal(written: xr.Dataset, read: xr.Dataset, path: Path) -> None:
    for name in written.data_vars:
        if not _are_same_bytes(written[name].values, read[name].values):
            raise StoreError(f"{path}: {name!r} does not read back as it was written; the disk may be failing, run again")


def _are_same_bytes(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are equal bit for bit, compared eight bytes at a time: a quarter of the time that pixels of two bytes take."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    left, right = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other))
    whole = left.size // 8 * 8
    return np.array_equal(left[:whole].view(np.uint64), right[:whole].view(np.uint64)) and np.array_equal(left[whole:], right[whole:])


def write_manifest(manifest: Path, *, kind: str, summary: Mapping[str, Any]) -> None:
    """Describe the finished store beside `manifest`: size and SHA-256 of every file, and `summary`."""
    store = store_of(manifest)
    files = {str(file.relative_to(store)): _describe(file) for file in sorted(store.rglob("*")) if file.is_file()}
    write_json(manifest, {"format": FORMAT, "kind": kind, "store": store.name, "files": files, "summary": dict(summary)})


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def read_manifest(manifest: Path, *, kind: str | None = None) -> dict[str, Any]:
    """The manifest as a mapping; `kind`, if given, must match.

    Raises:
        MissingError: there is no manifest, so the store is unfinished.
        StoreError: it is no manifest of ours, or of another kind.
    """
    content = read_json(manifest)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{manifest} is not a {FORMAT} manifest")
    if not {"kind", "store", "files", "summary"} <= content.keys():
        raise StoreError(f"{manifest} lacks a part of a manifest: delete it and run the step that writes it again")
    if kind is not None and content["kind"] != kind:
        raise StoreError(f"{manifest} describes a {content['kind']!r}, expected a {kind!r}")
    return content


def verify_store(manifest: Path) -> int:
    """Compare every file of the store with the manifest; the number of files.

    Raises:
        MissingError: there is no manifest.
        StoreError: files are missing, changed or unknown; the message names the first ones.
    """
    content, store = read_manifest(manifest), store_of(manifest)
    present = {str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()}
    _check_files(manifest, content, unknown=present - content["files"].keys())
    return len(present)


def _check_files(manifest: Path, content: Mapping[str, Any], *, unknown: Iterable[str] = ()) -> None:
    store, faults = store_of(manifest), [f"{name} is not in the manifest" for name in sorted(unknown)]
    for name, entry in sorted(content["files"].items()):
        if not (store / name).is_file():
            faults.append(f"{name} is missing")
        elif _describe(store / name) != entry:
            faults.append(f"{name} has changed")
    if faults:
        more = f" (+{len(faults) - 3} more)" if len(faults) > 3 else ""
        raise StoreError(f"{store}: {'; '.join(faults[:3])}{more}; delete {manifest} and rebuild it with `{_remedy(content)}`")


def _remedy(content: Mapping[str, Any]) -> str:
    return f"snakemake {WRITERS.get(content['kind'], '')}".strip()


def open_dataset(manifest: Path, *, kind: str | None = None) -> xr.Dataset:
    """The scene or pair described by `manifest`, read on demand, never written to.

    Raises:
        MissingError: there is no manifest, so the store is unfinished.
        StoreError: a file is not as the manifest says; checked whole, since a flipped bit may well decode to wrong values.
    """
    _check_files(manifest, read_manifest(manifest, kind=kind))
    dataset = _open(store_of(manifest))
    names = {key.removeprefix("names:"): value for key, value in dataset.attrs.items() if key.startswith("names:")}
    for dim in names:
        del dataset.attrs[f"names:{dim}"]
    return dataset.assign_coords(names)


def _open(store: Path) -> xr.Dataset:
    opened: xr.Dataset = xr.open_zarr(store, consolidated=False, chunks=None, mask_and_scale=False)
    return opened
