"""The assets of an item: one file each, its address, and whether it is still the file that the lock names.

Enters: an item's record and the resolver of its catalogue. Leaves: assets, and what their server or disk says of them; what will not heal
is a `LossError`, what may heal a `CatalogueError`. Pixels are read in `access`.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from sereno.pipeline.config import IngestSettings
from sereno.pipeline.errors import CatalogueError
from sereno.pipeline.http import RETRIED, TIMEOUT_S
from sereno.pipeline.pairs import AssetRecord, ItemRecord, Status
from sereno.pipeline.signing import Resolver, strip_signature

logger = logging.getLogger(__name__)

BACKOFF_S: Final = 0.5
"""Pause before the second attempt, seconds, on average; doubled before each further one."""
DENIED: Final = (401, 403)
"""Answers to a signature that has run out, or to none."""
HASHES: Final = {"1220": "sha256", "1114": "sha1", "d50110": "md5"}
"""Beginning of a multihash in hexadecimal digits (function and length), and the function."""
MD5_DIGITS: Final = 32
"""Length of a bare MD5."""


class Asset(NamedTuple):
    """One file of an item; small and picklable."""

    item: str
    """Id of the item."""
    name: str
    """Band, for example `B04`."""
    record: AssetRecord
    """Address, band number and what the lock knows of the file."""
    resolver: Resolver
    """Makes the address readable."""
    attempts: int = 1
    """How often reading is tried before it counts as failed."""
    check: Literal["checksum", "size", "none"] = "none"
    """Whether the file is compared with the lock."""

    @property
    def place(self) -> str:
        """Item, band and address for messages, without signature."""
        return f"item {self.item}, {self.name} ({strip_signature(self.resolver.to_address(self.record.href))})"

    @property
    def is_local(self) -> bool:
        """Whether it is a file on a disk of this machine."""
        return not urlsplit(self.resolver.to_address(self.record.href)).scheme


class LossError(Exception):
    """Something that will not heal: a file that is not there, no image, or changed.

    Whoever opens an asset turns it into a line of the ledger: no step and no user sees it.
    """

    def __init__(self, status: Status, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


def select_assets(record: ItemRecord, names: tuple[str, ...], resolver: Resolver, settings: IngestSettings) -> dict[str, Asset]:
    """Those of the assets `names` that the item has, by name."""
    return {
        name: Asset(record.item, name, record.assets[name], resolver, settings.attempts, settings.check)
        for name in names
        if name in record.assets
    }


def pause(attempt: int) -> None:
    """Wait after the failed attempt of that number, counted from 1: longer each time, and not in step with others."""
    time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


def ask_bytes(asset: Asset, first: int, last: int, *, renew: bool = False) -> Any:
    """The answer to a request for some bytes, whatever its status, its body not read yet.

    Raises:
        requests.RequestException: there is none.
        CatalogueError: no signature is given.
    """
    import requests

    headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    return requests.get(asset.resolver.to_web(asset.record.href, renew=renew), headers=headers, timeout=TIMEOUT_S, stream=True)


def check_unchanged(asset: Asset) -> None:
    """Check that the file is still that of the lock: a local one by size and checksum, a remote one by size and ETag, as far as stated.

    A server that refuses is not judged here: reading will say so.

    Raises:
        LossError: it has changed; a file that is gone is named when it is opened.
        CatalogueError: the server does not say.
    """
    record = asset.record
    if asset.check == "none" or (record.size_bytes, record.etag, record.checksum) == (None, None, None):
        return
    if asset.is_local:
        _check_local(Path(asset.resolver(record.href)), record, asset.check == "checksum")
    elif record.size_bytes is not None or record.etag is not None:
        _check_remote(asset)


def _check_local(path: Path, record: AssetRecord, whole: bool) -> None:
    if not path.is_file():
        return
    size = path.stat().st_size
    if record.size_bytes is not None and size != record.size_bytes:
        raise LossError("unreadable", f"size differs from the lock: {size} bytes, expected {record.size_bytes}")
    if not whole or not record.checksum:
        return
    function, expected = parse_checksum(record.checksum)
    if not function:
        logger.warning("%s: its checksum %s is of no known kind and is not compared", path, record.checksum)
        return
    with path.open("rb") as stream:
        seen = hashlib.file_digest(stream, function).hexdigest()
    if seen != expected:
        raise LossError("unreadable", f"checksum differs from the lock: {function} {seen[:12]}, expected {expected[:12]}")


def parse_checksum(text: str) -> tuple[str, str]:
    """Hash function and digits of a checksum: a multihash in hexadecimal digits, or bare MD5; the function is empty if it is not known."""
    digits = text.lower()
    if len(digits) == MD5_DIGITS:
        return "md5", digits
    for mark, function in HASHES.items():
        if digits.startswith(mark) and len(digits) == len(mark) + 2 * hashlib.new(function, usedforsecurity=False).digest_size:
            return function, digits.removeprefix(mark)
    return "", digits


def _check_remote(asset: Asset) -> None:
    record, stated = asset.record, _ask_facts(asset)
    if stated is None:
        return
    size, etag = stated
    if record.size_bytes is not None and size.isdigit() and int(size) != record.size_bytes:
        raise LossError("unreadable", f"size differs from the lock: {size} bytes, expected {record.size_bytes}")
    if asset.check == "checksum" and record.etag and etag and _bare(etag) != _bare(record.etag):
        raise LossError("unreadable", f"ETag differs from the lock: {etag}, expected {record.etag}")


def _ask_facts(asset: Asset) -> tuple[str, str | None] | None:
    """Size and ETag as the server states them, asked for until it does, or a bad moment would let a changed file pass; None if it refuses.

    Raises:
        CatalogueError: no answer in spite of all attempts.
    """
    import requests

    renew, words = False, ""
    for attempt in range(max(2, asset.attempts)):  # a refused signature is renewed in any case
        if attempt:
            pause(attempt)
        try:
            with ask_bytes(asset, 0, 0, renew=renew) as answer:
                status, headers = answer.status_code, answer.headers
                _ = answer.content if status == requests.codes.partial else b""
        except requests.RequestException as error:
            words = f"no whole answer ({type(error).__name__})"
            continue
        if status in (requests.codes.ok, requests.codes.partial):
            return headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", ""), headers.get("ETag")
        renew, words = status in DENIED, f"the server answers HTTP {status}"
        if status not in (*DENIED, *RETRIED):
            return None
    if renew:
        return None
    raise CatalogueError(f"{asset.place} cannot be compared with the lock after {attempt + 1} attempts: {words}; run again later")


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')
