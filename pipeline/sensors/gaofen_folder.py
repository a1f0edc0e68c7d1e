"""Gaofen products on a disk: what a folder of folders and archives holds, as items that can be paired and read.

Enters: a folder. Leaves: an item and a footprint per usable product, and for every other one its name and what is wrong with it. Nothing is
unpacked, and no pixel is read.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from sereno.pipeline.archives import is_archive, read_contents, strip_suffix
from sereno.pipeline.errors import DataError, MissingError
from sereno.pipeline.pairs import ItemRecord, is_sar
from sereno.pipeline.sensors import gaofen3, gaofen6
from sereno.pipeline.sensors.gaofen3_metadata import META

logger = logging.getLogger(__name__)

PREFIX: Final = "GF"
"""Names of products, and of their files, begin with it."""
LEVELS: Final = ("L1A", "LEVEL1A", "L1B", "L2")
"""Processing levels, the preferred one first where as many products are of one as of another."""


class Listing(NamedTuple):
    """What a folder holds."""

    items: list[tuple[ItemRecord, dict[str, Any]]]
    """Usable products in the order of their names, each with its footprint as GeoJSON in degrees."""
    refused: list[tuple[str, str]]
    """Names of the others, and why they cannot be used."""


def list_products(folder: Path) -> Listing:
    """The Gaofen products in `folder`, in folders of their own at any depth or in archives; only their metadata are read.

    Refused with their reason are products that are damaged, unsafe, incomplete or of a mode that is not known, archives beside their own
    unpacked folder, and those whose processing level differs from that of most others of their kind: levels must not be mixed in one
    dataset.

    Raises:
        MissingError: there is no such folder.
    """
    if not folder.is_dir():
        raise MissingError(f"folder {folder} of Gaofen products does not exist: correct pipeline.query.catalogue or sar_catalogue")
    listing = Listing([], [])
    for path in _find_products(folder):
        root = path.relative_to(folder).as_posix()
        if is_archive(path) and path.with_name(strip_suffix(path.name)).is_dir():
            listing.refused.append((path.name, f"{strip_suffix(path.name)} beside it is the same product, unpacked"))
            continue
        try:
            listing.items.append(read_product(path, root))
        except (DataError, MissingError) as error:
            logger.warning("%s is refused: %s", path, error)
            listing.refused.append((strip_suffix(path.name), str(error)))
    return _keep_one_level(_keep_first(listing))


def _find_products(folder: Path) -> Iterator[Path]:
    """Archives, and folders that are named like a product or hold the metadata of one."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            if is_archive(path) and path.name.startswith(PREFIX):
                yield path
        elif path.is_dir():
            names = [child.name for child in path.iterdir() if child.is_file()]
            if gaofen3.find_metadata(names) or gaofen6.find_metadata(names):
                yield path
            elif any(child.is_dir() or is_archive(child) for child in path.iterdir()):
                yield from _find_products(path)
            elif path.name.startswith(PREFIX):
                yield path


def read_product(path: Path, root: str) -> tuple[ItemRecord, dict[str, Any]]:
    """The product at `path` as an item whose addresses begin with `root`, and its footprint.

    Raises:
        DataError: it is damaged, unsafe, incomplete, or no product of Gaofen.
    """
    contents = read_contents(path, lambda name: gaofen3.is_text(name) or gaofen6.is_text(name))
    names = list(contents.sizes)
    products = {name.split(".")[0] for name in map(_name_of, names) if name.startswith("GF3") and name.endswith(META)}
    if len(products) > 1:
        raise DataError(f"{path.name} holds {len(products)} products ({', '.join(sorted(products))}): give each a folder of its own")
    if gaofen3.find_metadata(names):
        return gaofen3.to_item(root, contents)
    if gaofen6.find_metadata(names):
        return gaofen6.to_item(root, contents)
    raise DataError(f"{strip_suffix(path.name)} holds no metadata of a Gaofen product: its copy may be unfinished, fetch it again")


def read_kind(name: str) -> Literal["sar", "optical"]:
    """Whether a product is SAR, by its name."""
    return "sar" if name.upper().startswith("GF3") else "optical"


def _name_of(path: str) -> str:
    return PurePosixPath(path).name


def _keep_first(listing: Listing) -> Listing:
    """The listing with each product once: copies in other folders are refused."""
    kept: dict[str, tuple[ItemRecord, dict[str, Any]]] = {}
    refused = list(listing.refused)
    for entry in listing.items:
        first = kept.setdefault(entry[0].item, entry)
        if first is not entry:
            refused.append((entry[0].item, f"is there twice, also in {_folder_of(first[0])}: {_folder_of(entry[0])} is not used"))
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
