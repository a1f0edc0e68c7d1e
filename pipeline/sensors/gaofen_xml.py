"""What stands in the XML of Gaofen products: texts and numbers by their path, each fault said with the file's name.

XML text enters, words and numbers leave. A value that a product does not have is an empty element or the text `NULL`.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Final

from sereno.pipeline.errors import DataError

ABSENT: Final = "NULL"
"""What the metadata of Gaofen-3 write where there is no value."""
MAX_XML_BYTES: Final = 64 * 2**20
"""Largest metadata that are parsed; real ones have at most 0.2 MB."""


def parse_xml(text: str | bytes, *, where: str) -> ET.Element:
    """The root; expat refuses entities that grow without end (since 2.4.1), and external ones are never read.

    Raises:
        DataError: it is too large, or not XML.
    """
    if len(text) > MAX_XML_BYTES:
        raise DataError(f"{where}: {len(text)} bytes are too many for metadata")
    try:
        return ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise DataError(f"{where}: not valid XML ({error}); the file is damaged, fetch the product again") from None


def find_text(root: ET.Element, path: str) -> str:
    """What stands at `path`; empty if that is nothing."""
    text = (root.findtext(path) or "").strip()
    return "" if text == ABSENT else text


def find_number(root: ET.Element, path: str, *, where: str) -> float | None:
    """The number at `path`; None if there is nothing.

    Raises:
        DataError: it is none.
    """
    text = find_text(root, path)
    return to_number(text, path, where=where) if text else None


def read_text(root: ET.Element, path: str, *, where: str) -> str:
    """What stands at `path`.

    Raises:
        DataError: that is nothing.
    """
    text = find_text(root, path)
    if not text:
        raise DataError(f"{where}: lacks {path}, which Gaofen products state; fetch the product again")
    return text


def read_number(root: ET.Element, path: str, *, where: str) -> float:
    """The number at `path`.

    Raises:
        DataError: there is none.
    """
    return to_number(read_text(root, path, where=where), path, where=where)


def to_number(text: str | None, name: str, *, where: str) -> float:
    """`text`, which stands at `name`, as a finite number.

    Raises:
        DataError: it is none.
    """
    try:
        number = float(text or "")
    except ValueError:
        raise DataError(f"{where}: {name} is {text!r}, expected a number; the file is damaged, fetch the product again") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is {text!r}, expected a finite number; the file is damaged, fetch the product again")
    return number
