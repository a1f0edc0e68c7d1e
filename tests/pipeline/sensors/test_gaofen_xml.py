"""Words and numbers are found by their path; what is missing, no number or no XML is said with the file's name."""

import pytest

from sereno.pipeline.errors import DataError
from sereno.pipeline.sensors import gaofen_xml
from sereno.pipeline.sensors.gaofen_xml import find_number, find_text, parse_xml, read_number, read_text

ROOT = parse_xml("<a><b><c> 2.5 </c></b><word>x</word><none>NULL</none><empty/><wide>1e999</wide></a>", where="P")


def test_values_are_found_by_path() -> None:
    assert (find_text(ROOT, "b/c"), find_number(ROOT, "b/c", where="P"), read_number(ROOT, "b/c", where="P")) == ("2.5", 2.5, 2.5)


@pytest.mark.parametrize("path", ["none", "empty", "b", "gone"])
def test_what_is_absent_is_none_or_refused(path: str) -> None:
    assert find_text(ROOT, path) == ""
    assert find_number(ROOT, path, where="P") is None
    with pytest.raises(DataError, match=f"PRODUCT: lacks {path}"):
        read_text(ROOT, path, where="PRODUCT")


@pytest.mark.parametrize(("path", "words"), [("word", "'x', expected a number"), ("wide", "expected a finite number")])
def test_what_is_no_number_is_refused(path: str, words: str) -> None:
    with pytest.raises(DataError, match=f"PRODUCT: {path} is .*{words}"):
        find_number(ROOT, path, where="PRODUCT")


@pytest.mark.parametrize("text", ["<a>", "", b"\x00"])
def test_what_is_not_xml_is_refused(text: str | bytes) -> None:
    with pytest.raises(DataError, match="PRODUCT: not valid XML"):
        parse_xml(text, where="PRODUCT")


def test_text_that_is_too_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaofen_xml, "MAX_XML_BYTES", 10)
    with pytest.raises(DataError, match="11 bytes are too many"):
        parse_xml("<a>1234</a>", where="PRODUCT")
