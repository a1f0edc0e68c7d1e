"""One line says what was found, why nothing came of it, and what to change."""

from sereno.pipeline.acquisitions import Cause, Refused
from sereno.pipeline.advice import Aim, describe_failure
from sereno.pipeline.areas import to_ground
from sereno.pipeline.config import Area, QuerySettings

AREA = Area(bounds_m=(500_000, 5_000_000, 510_000, 5_010_000), epsg=32632)
SETTINGS = QuerySettings(areas={"a": AREA})
AIM = Aim("group for pansharpening", to_ground(AREA, 20), SETTINGS)
COVER = Refused(("C",), "cloudy", "cloud cover 50.0 %, needed at most 5 %", Cause.CLEAR_COVER)
LACK = Refused(("L",), "clear", "holds no panchromatic image", Cause.ITEM)


def test_the_most_frequent_cause_stands_with_an_example_and_its_remedy() -> None:
    words = describe_failure("a", AIM, {"optical": [COVER, COVER, LACK]}, [COVER, COVER, LACK])
    assert words == (
        "area 'a': no group for pansharpening among 3 optical items; 2 refused for one cause, for example C: cloud cover 50.0 %, needed at "
        "most 5 %; raise pipeline.query.clear_cover_pct"
    )


def test_of_pairs_both_kinds_are_counted() -> None:
    words = describe_failure("a", AIM._replace(what="pair"), {"optical": [COVER], "sar": []}, [COVER])
    assert words.startswith("area 'a': no pair among 1 optical and 0 SAR items; ")


def test_where_nothing_was_found_the_ground_and_the_time_are_said() -> None:
    words = describe_failure("a", AIM, {"optical": []}, [])
    assert "no group for pansharpening among 0 optical items in [9.0" in words
    assert "from ever to ever: widen the area or start..end" in words
