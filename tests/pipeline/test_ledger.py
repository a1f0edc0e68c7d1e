"""The ledger: what is written is what is read, and sums and losses leave nothing out."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sereno.pipeline.errors import DataError
from sereno.pipeline.ledger import (
    Entry,
    describe_losses,
    find_ledgers,
    ledger_of,
    list_losses,
    read_ledger,
    sum_entries,
    to_size,
    write_ledger,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
STATUS = st.sampled_from(("used", "partly", "duplicate", "refused", "missing", "unreadable"))
NUMBERS = {"retries": st.integers(0, 9), "bytes_read": st.integers(0, 10**12), "seconds": st.integers(0, 10**6).map(lambda ms: ms / 1000)}
ENTRIES = st.builds(Entry, st.sampled_from(("query", "ingest")), WORDS, WORDS, WORDS, WORDS, STATUS, WORDS, **NUMBERS)


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=12))
def test_entries_come_back_as_they_were_written_whatever_their_words(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "west.ledger.csv"
    write_ledger(path, entries)
    assert read_ledger(path) == sorted(entries)


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=12))
def test_sums_leave_nothing_out(entries: list[Entry]) -> None:
    sums = sum_entries(entries)
    assert sum(row.items + row.assets for row in sums) == len(entries)
    assert sum(row.bytes_read for row in sums) == sum(entry.bytes_read for entry in entries)
    assert sum(row.seconds for row in sums) == pytest.approx(sum(entry.seconds for entry in entries))
    assert len({(row.step, row.status) for row in sums}) == len(sums)
    assert [row.step for row in sums] == sorted((row.step for row in sums), reverse=True), "query comes before ingest"


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(ENTRIES, max_size=12))
def test_what_was_not_plainly_used_is_a_loss(entries: list[Entry]) -> None:
    losses = list_losses(entries)
    assert len(losses) == sum(entry.status != "used" or entry.reason != "" for entry in entries)


def test_a_ledger_lies_beside_its_manifest() -> None:
    assert ledger_of(Path("query/west.v2.json")) == Path("query/west.v2.ledger.csv")


@pytest.mark.parametrize("text", ["", "a,b\n", ",".join(Entry._fields) + "\nquery,west\n"])
def test_what_is_no_ledger_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "west.ledger.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"west\.ledger\.csv has not the columns step, area"):
        read_ledger(path)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (999_499, "999 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_sizes_are_said_with_two_or_three_digits(size: float, words: str) -> None:
    assert to_size(size) == words


def test_elevation_models_that_could_not_be_read_are_told_with_what_reads_them_again(tmp_path: Path) -> None:
    lost = Entry("dem", "west", "dem", "d", "dem", "missing", "HTTP 404")
    (line,) = describe_losses([lost, lost._replace(area="east", status="used")], Path("results"))
    assert line.startswith("elevation models of 1 area could not be read whole")
    assert "delete results/dem/AREA.json" in line
    write_ledger(tmp_path / "dem" / "west.ledger.csv", [lost])
    assert find_ledgers(tmp_path) == [tmp_path / "dem" / "west.ledger.csv"]
