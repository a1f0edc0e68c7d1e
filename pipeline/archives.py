"""Products as they are delivered: a folder, or an archive that is opened without trusting it.

Enters: a folder, `.tar.gz`, `.tgz`, `.tar` or `.zip`. Leaves: its members by name, the content of small ones, and large ones laid in a
folder where raster libraries can read them. An archive whose members would land outside of that folder is refused whole: no provider
makes such. So is one that is cut off anywhere, or whose checksum is wrong.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, NamedTuple, cast

from sereno.pipeline.errors import DataError, MissingError, SerenoError, StoreError, describe_fault

SUFFIXES: Final = (".tar.gz", ".tgz", ".tar", ".zip")
"""Endings of archives, in lower case."""
MAX_TEXT_BYTES: Final = 64 * 2**20
"""Largest member whose content is kept in memory; metadata have 0.2 MB."""
CHUNK_BYTES: Final = 8 * 2**20
"""Bytes that are unpacked at a time."""
GZIP: Final = b"\x1f\x8b"
"""How gzip files begin."""
TAR_BLOCK: Final = 512
"""Bytes of a block of a tar archive; at least one of zeros follows the last member."""
MAX_EXPANSION: Final = 100
"""An archive that unpacks to more than so many times its size is no product, whose images shrink to a half at best ..."""
MIN_EXPANDED_BYTES: Final = 2**30
"""... unless what it unpacks to is small."""
DAMAGES: Final = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError)
"""How Python's readers say that an archive is cut off, damaged, or of a kind they cannot read (encrypted, unknown compression)."""


class Contents(NamedTuple):
    """What a product holds."""

    sizes: dict[str, int]
    """Bytes of every file, by its path inside the product."""
    texts: dict[str, bytes]
    """Content of the wanted ones."""


class Member(NamedTuple):
    """A file of an archive while it is read."""

    name: str
    """Its path inside."""
    size: int
    """Its bytes."""
    stream: IO[bytes]
    """Its content; valid until the next member is asked for."""


def is_archive(path: Path) -> bool:
    """Whether `path` ends like an archive."""
    return path.name.lower().endswith(SUFFIXES)


def strip_suffix(name: str) -> str:
    """The name of a product without the ending of an archive."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def split_href(path: str) -> tuple[str, str]:
    """A path as that of an archive and that of the member in it; the second is empty if the path leads into none."""
    parts = PurePosixPath(path).parts
    for depth in range(1, len(parts)):
        head = PurePosixPath(*parts[:depth])
        if head.name.lower().endswith(SUFFIXES) and Path(head).is_file():
            return str(head), str(PurePosixPath(*parts[depth:]))
    return path, ""


def read_contents(path: Path, is_wanted: Callable[[str], bool]) -> Contents:
    """Sizes of all files of the product at `path`, and the content of those whose name `is_wanted`.

    An archive is read once, from end to end.

    Raises:
        MissingError: there is no such file or folder.
        DataError: the archive is cut off or damaged, or holds a member that leads out of it, a link, or a name twice.
    """
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        sizes = {name: file.stat().st_size for name, file in files.items()}
        wanted = [name for name in files if is_wanted(name)]
        for name in wanted:
            _check_size(name, sizes[name], path)
        return Contents(sizes, {name: files[name].read_bytes() for name in wanted})
    contents = Contents({}, {})
    with _tell_damage(path):
        for member in _read_members(path):
            contents.sizes[member.name] = member.size
            if is_wanted(member.name):
                _check_size(member.name, member.size, path)
                contents.texts[member.name] = member.stream.read()
    return contents


@contextlib.contextmanager
def _tell_damage(path: Path) -> Iterator[None]:
    """Say of whatever fails while an archive is read that it is damaged."""
    try:
        yield
    except SerenoError:
        raise
    except (*DAMAGES, OSError) as error:
        raise DataError(f"{path.name}: the archive is cut off or damaged ({error}); its copy may be unfinished, fetch it again") from error


def _check_size(name: str, size: int, path: Path) -> None:
    if size > MAX_TEXT_BYTES:
        raise DataError(f"{path.name}: {name} has {size} bytes, too many for metadata; fetch the product again")


@contextlib.contextmanager
def lay_out(path: Path, names: tuple[str, ...]) -> Iterator[dict[str, Path]]:
    """The files `names` of the product at `path` as paths on a disk, as long as the block lasts.

    Those of a folder stay where they are; those of an archive are unpacked to the folder for temporary files (environment variable TMPDIR).

    Raises:
        MissingError: the product lacks one of them.
        DataError: the archive cannot be trusted or is damaged.
        StoreError: there is no room to unpack it.
    """
    if path.is_dir():
        yield _check_all({name: path / name for name in names if (path / name).is_file()}, names, path)
        return
    with tempfile.TemporaryDirectory(prefix="sereno-") as folder:
        laid: dict[str, Path] = {}
        with _tell_damage(path):
            for member in _read_members(path):
                if member.name in names:
                    laid[member.name] = _unpack(member, Path(folder) / f"{len(laid)}{PurePosixPath(member.name).suffix}", path)
        yield _check_all(laid, names, path)


def _check_all(laid: dict[str, Path], names: tuple[str, ...], path: Path) -> dict[str, Path]:
    missing = [name for name in names if name not in laid]
    if missing:
        raise MissingError(f"{path.name} holds no {', '.join(missing)}: its copy may be unfinished, fetch it again")
    return laid


def _unpack(member: Member, target: Path, path: Path) -> Path:
    try:
        with target.open("wb") as stream:
            while chunk := member.stream.read(CHUNK_BYTES):
                stream.write(chunk)
    except OSError as error:
        if error.errno is None:  # not the disk: the archive's own reader
            raise
        raise StoreError(
            f"{path.name}: {member.name} ({member.size} bytes) cannot be unpacked to {target.parent}: {describe_fault(error)}; "
            "the environment variable TMPDIR names another folder"
        ) from error
    return target


def _read_members(path: Path) -> Iterator[Member]:
    """The files of an archive in its order, each checked before it is given; reading all of them reads the archive to its end."""
    if not path.is_file():
        raise MissingError(f"{path} does not exist: correct the folder of products in pipeline.query")
    seen, size, limit = set(), 0, max(MIN_EXPANDED_BYTES, MAX_EXPANSION * path.stat().st_size)
    for member in _read_zip(path) if path.name.lower().endswith(".zip") else _read_tar(path):
        if member.name in seen:
            raise DataError(f"{path.name}: holds {member.name} twice, so it is not clear which one is meant; fetch the product again")
        seen.add(member.name)
        size += member.size
        if size > limit:
            raise _distrust(path, member.name, f"unpacks to {member.size} bytes, all to more than {MAX_EXPANSION} times the archive's size")
        yield member
    if not seen:
        raise DataError(f"{path.name}: the archive holds no files; its copy may be unfinished, fetch it again")


def _read_tar(path: Path) -> Iterator[Member]:
    """The files of a tar archive, read as a stream: a `.tar.gz` cannot be read from the middle.

    NOTE: tarfile's own reader of gzip passes over a wrong checksum and a missing end; the module gzip tells both, once all is read.
    """
    with _open_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        end = 0
        for entry in archive:
            if entry.issym() or entry.islnk():
                raise _distrust(path, entry.name, f"is a link to {entry.linkname}")
            if not entry.isdir() and (not entry.isfile() or entry.issparse()):
                raise _distrust(path, entry.name, "is neither a plain file nor a folder")
            name, content = _check_name(path, entry.name), archive.extractfile(entry)
            if content is not None:
                yield Member(name, entry.size, content)
            end = entry.offset_data + -(-entry.size // TAR_BLOCK) * TAR_BLOCK
        while stream.read(CHUNK_BYTES):
            pass
        if stream.tell() < end + TAR_BLOCK:
            raise EOFError("the mark at its end is missing")


def _open_stream(path: Path) -> IO[bytes]:
    """The bytes of a tar archive, whether it is compressed or not."""
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
    return cast("IO[bytes]", gzip.open(path)) if is_compressed else path.open("rb")


def _read_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if (entry.external_attr >> 16) & 0o170000 == 0o120000:  # the type that Unix writes for a symbolic link
                raise _distrust(path, entry.filename, "is a link")
            name = _check_name(path, entry.filename)
            if not entry.is_dir():
                with archive.open(entry) as stream:
                    yield Member(name, entry.file_size, stream)


def _check_name(path: Path, name: str) -> str:
    """The member's path inside the product.

    Raises:
        DataError: it leads out of it.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise _distrust(path, name, "leads out of the archive")
    return PurePosixPath(*parts).as_posix()


def _distrust(path: Path, name: str, fault: str) -> DataError:
    return DataError(f"{path.name}: member {name!r} {fault}, which no product needs: nothing is unpacked; fetch it again from its provider")
