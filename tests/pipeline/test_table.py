"""A table's rows become pairs, or say why they do not."""

from datetime import UTC, datetime, timedelta

import pytest
import shapely

from sereno.pipeline.acquisitions import Candidate
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.pairing import to_pairs
from sereno.pipeline.pairs import ItemRecord, SceneRecord
from sereno.pipeline.table import Row, choose_by_table, parse_table


def to_candidate(name: str, day: int, sensor: str) -> Candidate:
    moment = f"{datetime(2021, 6, 1, tzinfo=UTC) + timedelta(days=day):%Y-%m-%dT%H:%M:%SZ}"
    item = ItemRecord.model_validate(
        {"item": name, "collection": "c", "sensor": sensor, "time": moment, "crs": "", "bbox": (9, 45, 10, 46), "assets": {}}
    )
    return Candidate(SceneRecord(id=name, sensor=item.sensor, time=moment, items=(item,)), shapely.box(0, 0, 1, 1))


OPTICAL = [to_candidate(name, day, "gaofen-pms") for day, name in enumerate(("a", "b", "c"))] + [to_candidate("w", 4, "gaofen-wfv")]
SAR = [to_candidate("s", 2, "gaofen3"), to_candidate("t", 9, "gaofen3")]


def test_rows_become_pairs_in_order_of_time_and_once() -> None:
    chosen, refused = choose_by_table(OPTICAL, SAR, [Row("s", "b", "a"), Row("t", "a", "c"), Row("s", "b", "a")])
    assert [tuple(part.scene.id for part in triplet.scenes) for triplet in chosen] == [("a", "c", "t"), ("b", "a", "s")]
    assert [(one.items, one.reason) for one in refused] == [(("w",), "no row of the table names it")]


def test_rows_that_form_no_pair_are_refused_with_the_reason() -> None:
    chosen, refused = choose_by_table(OPTICAL, SAR, [Row("x", "a", "b"), Row("s", "b", "w"), Row("c", "b", "a")])
    assert chosen == []
    reasons = [one.reason for one in refused]
    assert "names x, which cannot be used in this area" in reasons[0]
    assert "input gaofen-pms, target gaofen-wfv" in reasons[1]
    assert "SAR gaofen-pms" in reasons[2]


def test_a_table_is_read_with_further_columns_and_endings_of_archives() -> None:
    text = "note,clear, cloudy,sar\nfine,a.tar.gz,b,s.zip\n"
    assert parse_table(text, where="t") == (Row("s", "b", "a"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column sar, cloudy, clear"),
        ("sar,cloudy,clear\n", "no rows"),
        ("sar,cloudy,clear\na,b\n", "line 2"),
        ("sar;cloudy;clear\na;b;c\n", r"pairs\.csv: the first line is 'sar;cloudy;clear': columns are parted by commas"),
        ("sar\tcloudy\tclear\na\tb\tc\n", "save the table with commas"),
        ("sar,cloudy\na,b\n", "no column clear"),
    ],
)
def test_a_table_that_says_too_little_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_table(text, where="pairs.csv")


def test_a_row_without_an_input_becomes_its_target_under_so_many_skies() -> None:
    chosen, refused = choose_by_table(OPTICAL, SAR, [Row("s", "b", "a"), Row("t", "", "c"), Row("s", "", "a")], skies=2)
    assert [(*(part.scene.id for part in triplet.scenes), triplet.sky) for triplet in chosen] == [
        ("a", "a", "s", 1),
        ("a", "a", "s", 2),
        ("b", "a", "s", None),
        ("c", "c", "t", 1),
        ("c", "c", "t", 2),
    ]
    assert [pair.id for pair in to_pairs(chosen)] == ["20210601-sky1", "20210601-sky2", "20210602", "20210603-sky1", "20210603-sky2"]
    assert [one.items for one in refused] == [("w",)]


def test_a_row_whose_input_is_its_target_says_how_to_simulate() -> None:
    chosen, refused = choose_by_table(OPTICAL, SAR, [Row("s", "a", "a"), Row("x", "", "b")])
    assert chosen == []
    reasons = {one.items: (one.role, one.reason) for one in refused}
    assert "leave cloudy empty" in reasons["a",][1]
    assert reasons["b",] == ("clear", "its row in the table also names x, which cannot be used in this area")


def test_the_column_of_inputs_may_be_empty_or_absent_where_clouds_may_be_simulated() -> None:
    text = "sar,cloudy,clear\ns,b,a\nt,,c\n"
    assert parse_table(text, where="t", inputs="either") == (Row("s", "b", "a"), Row("t", "", "c"))
    assert parse_table(text, where="t", inputs="simulated") == (Row("s", "", "a"), Row("t", "", "c"))
    assert parse_table("sar,clear\nt,c\n", where="t", inputs="either") == (Row("t", "", "c"),)
    for faulty in (text, "sar,clear\nt,c\n"):
        with pytest.raises(ConfigError, match=r"set pipeline\.query\.inputs to either"):
            parse_table(faulty, where="t")
    with pytest.raises(ConfigError, match=r"line 2 lacks a product$"):
        parse_table("sar,clear\n,c\n", where="t", inputs="either")
