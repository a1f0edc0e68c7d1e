"""The page's blocks: text is escaped, the best is marked, what is no number is a dash."""

import math
import re

import pytest

from sereno.model import page


def cells(*words: str) -> list[page.Cell]:
    return [page.Cell(word) for word in words]


def best(rows: list[list[page.Cell]]) -> list[tuple[int, int]]:
    return [(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell.is_best]


def test_every_kind_of_block_is_shown_with_its_words_escaped() -> None:
    blocks = [
        page.Text("a < b & c", "missing"),
        page.Heading("<h1>"),
        page.Table(("<th>", "n"), [cells("<td>", "1")]),
        page.Shots([page.Shot("data:image/png;base64,AA==", "<img>", "<b>")], "patch", 2),
        page.Legend([("rgb(1, 2, 3)", "<i>")]),
    ]
    text = page.render_page("<script>alert(1)</script>", [page.Section("first", "<title>", blocks)])
    for words in ("a &lt; b &amp; c", "&lt;h1&gt;", "&lt;th&gt;", "&lt;td&gt;", "&lt;img&gt;", "&lt;b&gt;", "&lt;i&gt;", "&lt;title&gt;"):
        assert words in text, words
    assert "<script" not in text
    assert 'class="missing"' in text
    assert 'src="data:image/png;base64,AA=="' in text


def test_every_link_of_the_page_leads_to_a_place_in_it() -> None:
    text = page.render_page("t", [page.Section("one", "One", []), page.Section("two", "Two", [])])
    links = re.findall(r'href="([^"]*)"', text)
    assert links == ["#one", "#two"]
    assert all(f'id="{link[1:]}"' in text for link in links)


def test_a_table_without_head_has_none() -> None:
    text = page.render_page("t", [page.Section("s", "S", [page.Table((), [cells("a", "b")])])])
    assert "<thead>" not in text
    assert "<td" in text


def test_the_best_of_each_column_is_marked_in_its_own_direction() -> None:
    rows = [cells("a", "20.1", "0.3"), cells("b", "25.0", "0.1"), cells("c", page.NOTHING, "0.2")]
    assert best(page.mark_best(rows, (True, False))) == [(1, 1), (1, 2)]
    assert best(page.mark_best(rows, (False, True))) == [(0, 1), (0, 2)]


def test_what_looks_equal_is_marked_alike() -> None:
    assert best(page.mark_best([cells("a", "1.00"), cells("b", "1.00"), cells("c", "0.99")], (True,))) == [(0, 1), (1, 1)]


def test_infinite_is_better_than_any_number_and_nothing_is_never_best() -> None:
    assert best(page.mark_best([cells("a", "inf"), cells("b", "50")], (True,))) == [(0, 1)]
    assert best(page.mark_best([cells("a", page.NOTHING), cells("b", page.NOTHING)], (True,))) == []


def test_a_single_row_has_no_best() -> None:
    assert best(page.mark_best([cells("a", "1")], (True,))) == []


@pytest.mark.parametrize("value", [None, math.nan])
def test_no_number_is_a_dash(value: float | None) -> None:
    assert page.show_number(value, 2) == page.NOTHING
    assert page.show_range({"low": value, "high": value}, 2) == "too few blocks"


def test_numbers_have_the_digits_and_the_sign_asked_for() -> None:
    assert page.show_number(1.2345, 2) == "1.23"
    assert page.show_number(1.2345, 1, sign=True) == "+1.2"
    assert page.show_range({"low": -0.5, "high": 2.0}, 1) == "-0.5 to +2.0"
    assert page.show_share(0.1234) == "12.3 %"
    assert [page.show_count(count) for count in (999, 85_270, 2_366_086)] == ["999", "85\u202f270", "2\u202f366\u202f086"]


def test_what_stands_between_backticks_is_shown_as_code() -> None:
    text = page.render_page("t", [page.Section("s", "S", [page.Text("run `sereno <x>` now")])])
    assert "run <code>sereno &lt;x&gt;</code> now" in text


def test_a_nominal_day_is_marked() -> None:
    assert page.show_day("2018-10-01T00:00:00Z", {"time": "nominal: the season of the ROI"}) == "2018-10-01 (nominal)"
    assert page.show_day("2021-06-08T10:20:07Z", {}) == "2021-06-08"
    assert page.show_day("1970-01-01T00:00:00Z", {"time": "nominal: files of cubes do not say when"}) == page.NOTHING
