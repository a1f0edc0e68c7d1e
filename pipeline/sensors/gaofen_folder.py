"""Gaofen products on a disk: what a folder of folders and archives holds, as items that can be paired and read.

Enters: a folder. Leaves: an item and a footprint per usable product, and for every other one its name and what is wrong with it. Nothing is
unpacked to a disk, and no pixel is read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline.archives import Contents, is_archive, read_contents, strip_suffix
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.pairs import ItemRecord, is_sar
from sereno.pipeline.sensors import gaofen3, gaofen6
from sereno.pipeline.sensors.gaofen3_metadata import META
from sereno.pipeline.sensors.gaofen3_metadata import NAME as SAR_NAME
from sereno.pipeline.sensors.gaofen6_metadata import NAME as OPTICAL_NAME

logger = logging.getLogger(__name__)

Kind = Literal["sar", "optical"]

PREFIX: Final = "GF"
"""Names of products, and of their files, begin with it."""
OTHERS: Final = ("S1", "S2")
"""How archives begin that may lie beside them: those of Sentinel-1 and 2."""
LEVELS: Final = ("L1A", "LEVEL1A", "L1B", "L2")
"""Processing levels, the preferred one first where as many products are of one as of another."""


class Listing(NamedTuple):
    """What a folder holds."""

    items: list[tuple[ItemRecord, dict[str, Any]]]
    """Usable products in the order of their names, each with its footprint as GeoJSON in degrees."""
    refused: list[tuple[str, str]]
    """Names of the others, and why they cannot be used."""


def list_products(folder: Path, kind: Kind | None = None) -> Listing:
    """The Gaofen products in `folder`, in folders at any depth or in archives; only their metadata are read. `kind` None means both.

    Refused with their reason are products that are damaged, unsafe, incomplete or of a mode that is not known, archives beside their own
    unpacked folder or named like no product, and those whose processing level differs from that of most others of their kind: levels must
    not be mixed in one dataset. An archive must be decompressed to its end to be listed, so those of the other kind are not opened.

    Raises:
        MissingError: there is no such folder, or nothing in it is named like a product.
    """
    if not folder.is_dir():
        raise MissingError(f"folder {folder} of Gaofen products does not exist: correct pipeline.query.catalogue or sar_catalogue")
    places = list(_find_places(folder))
    if not places:
        raise MissingError(
            f"folder {folder} holds nothing named like a Gaofen product: put them there, as folders or archives, under the names they were "
            "delivered under, for example GF6_PMS_E117.4_N41.0_20230426_L1A1420312367.tar.gz"
        )
    wanted = [path for path in places if kind is None or path.is_dir() or read_kind(path.name) == kind]
    _tell_archives([path for path in wanted if path.is_file() and _is_named(path)])
    found = [_read_place(path, path.relative_to(folder).as_posix(), kind) for path in wanted]
    listing = Listing([item for one in found for item in one.items], [refused for one in found for refused in one.refused])
    return _keep_one_level(_keep_first(listing))


def _tell_archives(archives: list[Path]) -> None:
    if archives:
        size_gb = sum(path.stat().st_size for path in archives) / 1e9
        logger.info("decompressing %d archives of %.2f GB to list them; folders of unpacked products take no time", len(archives), size_gb)


def _is_named(path: Path) -> bool:
    return path.name.upper().startswith(PREFIX)


def _find_places(folder: Path) -> Iterator[Path]:
    """Archives, folders with files of products in them, and folders that are named like a product but are empty."""
    children = sorted(folder.iterdir())
    yield from (path for path in children if path.is_file() and is_archive(path) and not path.name.upper().startswith(OTHERS))
    has_files = any(path.is_file() and not is_archive(path) and _find_key(path.name) for path in children)
    if has_files or (_is_named(folder) and not any(path.is_dir() or is_archive(path) for path in children)):
        yield folder
    for path in children:
        if path.is_dir():
            yield from _find_places(path)


def _read_place(path: Path, root: str, kind: Kind | None) -> Listing:
    """The products of one kind, or of both, in an archive or directly in a folder."""
    name, listing = strip_suffix(path.name), Listing([], [])
    if not path.is_dir() and not _is_named(path):
        reason = "is not named like a Gaofen product, so it is not opened: give it the name it was delivered under"
        return Listing([], [(path.name, reason)])
    if not path.is_dir() and path.with_name(name).is_dir():
        return Listing([], [(path.name, f"{name} beside it is the same product, unpacked: one of them can be removed")])
    try:
        products = split_products(_read_files(path)) or {name: Contents({}, {})}
    except DataError as error:
        return Listing([], [_refuse(name, error)])
    for product, contents in products.items():
        if kind in (None, read_kind(product)):
            try:
                listing.items.append(_to_item(product, root, contents))
            except DataError as error:
                listing.refused.append(_refuse(product, error))
    return listing


def _refuse(name: str, error: DataError) -> tuple[str, str]:
    logger.warning("refused: %s", error)
    return name, str(error).removeprefix(f"{name}: ").removeprefix(f"{name} ")


def _read_files(path: Path) -> Contents:
    """All files of an archive, or those directly in a folder: what lies in folders below is another place."""
    is_folder = path.is_dir()
    contents = read_contents(path, lambda name: _is_text(name) and not (is_folder and "/" in name))
    return contents._replace(sizes={name: size for name, size in contents.sizes.items() if not (is_folder and "/" in name)})


def _is_text(name: str) -> bool:
    return gaofen3.is_text(name) or gaofen6.is_text(name)


def split_products(contents: Contents) -> dict[str, Contents]:
    """The files of each product apart, by the product's name: loose files of several may lie together.

    Left out are files of no product, and products of which there is neither metadata nor an image.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(contents.sizes):
        key = _find_key(PurePosixPath(path).name)
        if key:
            groups.setdefault(key, []).append(path)
    found = {}
    for key, paths in groups.items():
        meta = gaofen3.find_metadata(paths)
        if meta or any(_is_text(path) or path.lower().endswith(gaofen3.IMAGE_SUFFIXES) for path in paths):
            named = SAR_NAME.match(PurePosixPath(meta or paths[0]).name)
            found[key if named is None else named[0]] = Contents({path: contents.sizes[path] for path in paths}, contents.texts)
    return found


def _find_key(name: str) -> str:
    """What all files of one product have in common in their names; empty if the file belongs to none.

    Files of Gaofen-3 name their own polarisation where the product's name has the tag of all.
    """
    found = SAR_NAME.match(name)
    if found:
        return name[: found.start("tag")] + found["serial"]
    optical = OPTICAL_NAME.match(name)
    if optical:
        return name[: optical.end("serial")]
    return name[: -len(META)] if gaofen3.find_metadata([name]) else ""


def _to_item(name: str, root: str, contents: Contents) -> tuple[ItemRecord, dict[str, Any]]:
    """The product `name` in folder or archive `root` as an item whose addresses begin with that, and its footprint.

    Raises:
        DataError: it is damaged or incomplete, or no product that can be read.
    """
    names = list(contents.sizes)
    if gaofen3.find_metadata(names):
        return gaofen3.to_item(root, contents)
    if gaofen6.find_metadata(names):
        return gaofen6.to_item(root, contents)
    raise DataError(f"{name} holds no metadata (.xml) of a product of Gaofen-1, 2, 3 or 6: its copy may be unfinished, fetch it again")


def read_kind(name: str) -> Kind:
    """Whether a product is SAR, by its name."""
    return "sar" if name.upper().startswith("GF3") else "optical"


def _keep_first(listing: Listing) -> Listing:
    """The listing with each product once: copies in other folders are refused."""
    kept: dict[str, tuple[ItemRecord, dict[str, Any]]] = {}
    refused = list(listing.refused)
    for entry in listing.items:
        first = kept.setdefault(entry[0].item, entry)
        if first is not entry:
            refused.append(
                (entry[0].item, f"is there twice, also in {_folder_of(first[0])}: {_folder_of(entry[0])} is not used: remove one of them")
            )
    return Listing(sorted(kept.values(), key=lambda entry: entry[0].item), refused)


def _folder_of(item: ItemRecord) -> str:
    return str(PurePosixPath(item.assets["MTD"].href).parent)


def _keep_one_level(listing: Listing) -> Listing:
    """The listing without products whose level is not that of most others of their kind, SAR or optical."""
    counts: dict[bool, Counter[str]] = {kind: Counter() for kind in (True, False)}
    for item, _ in listing.items:
        counts[is_sar(item.sensor)][item.properties["processing_level"]] += 1
    chosen = {kind: max(found, key=lambda level: (found[level], -LEVELS.index(level))) for kind, found in counts.items() if found}
    kept, refused = [], list(listing.refused)
    for item, footprint in listing.items:
        level, wanted = item.properties["processing_level"], chosen[is_sar(item.sensor)]
        if level == wanted:
            kept.append((item, footprint))
        else:
            words = f"is of level {level}, most others are {wanted}: levels are not mixed in one dataset, put it into a folder of its own"
            refused.append((item.item, words))
    return Listing(kept, refused)
