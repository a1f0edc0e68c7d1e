"""UTM zones and tiles, against products, against real items, and against the letters written the other way round."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from real_files import find_samples

from sereno.pipeline.areas import to_ground
from sereno.pipeline.config import Area
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.mgrs import find_zone, is_utm, to_tile


@pytest.mark.parametrize(
    ("place", "epsg"),
    [
        ((9.0, 45.0), 32632),
        ((9.0, -45.0), 32732),
        ((185.0, -17.0), 32701),
        ((-185.0, -17.0), 32760),
        ((180.0, -17.0), 32701),
        ((-180.00000000000003, -17.0), 32701),  # as a mean of two numbers may come out
        ((179.99999999999997, -1e-14), 32601),
        ((11.999999999999998, 45.0), 32633),
        ((4.0, 60.0), 32632),  # the west of Norway
        ((8.0, 80.0), 32631),  # Svalbard has no zones 32, 34 and 36
        ((10.0, 80.0), 32633),
    ],
)
def test_a_place_lies_in_its_zone_also_beyond_180_and_in_norway(place: tuple[float, float], epsg: int) -> None:
    assert find_zone(*place) == epsg
    assert is_utm(f"EPSG:{epsg}")


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:32661", "EPSG:32600", "EPSG:2056"])
def test_other_grids_are_no_zones(crs: str) -> None:
    assert not is_utm(crs)


@pytest.mark.parametrize(
    ("tile", "epsg", "corner"),
    [
        # Upper left corners as the products state them: squares, moved outwards to multiples of 60 m from the equator.
        ("31TCJ", 32631, (300_000, 4_900_020)),
        ("33UUP", 32633, (300_000, 5_400_000)),
        ("13TDE", 32613, (399_960, 4_500_000)),
        ("47XML", 32647, (399_960, 9_100_020)),
        ("47XMJ", 32647, (399_960, 8_900_040)),
        ("46XES", 32646, (499_980, 9_200_040)),
        ("33XWJ", 32633, (499_980, 8_900_040)),
        ("35MNM", 32735, (499_980, 9_200_020)),
        ("22HBD", 32722, (199_980, 5_900_020)),
    ],
)
def test_a_tile_is_the_ground_of_its_product(tile: str, epsg: int, corner: tuple[int, int]) -> None:
    left, top = corner
    assert to_tile(tile) == (epsg, (left, top - 109_800, left + 109_800, top))
    geobox = to_ground(Area(mgrs=tile), 10).geobox
    assert (geobox.shape, geobox.boundingbox.bbox) == ((10_980, 10_980), (left, top - 109_800, left + 109_800, top))


@pytest.mark.parametrize("name", ["0TNR", "61TNR", "32TAR", "32TNA", "32XNR", "31CJA"])
def test_a_square_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no MGRS square {name}: "):
        to_tile(name)


@settings(max_examples=60, deadline=None)
@given(longitude=st.floats(-179.99, 179.99), latitude=st.floats(-79, 83.5))
def test_every_place_lies_in_the_square_that_its_letters_name(longitude: float, latitude: float) -> None:
    """The letters are written here the other way round, from the coordinates (DMA TM 8358.1), as an independent reference."""
    assume(abs(latitude) > 1e-3)  # the equator itself belongs to both hemispheres
    geobox = to_ground(Area(bbox=(longitude - 5e-5, latitude - 5e-5, longitude + 5e-5, latitude + 5e-5)), 1).geobox
    zone, north = int(str(geobox.crs)[-2:]), str(geobox.crs)[-3] == "6"
    x, y = (geobox.boundingbox.left + geobox.boundingbox.right) / 2, (geobox.boundingbox.bottom + geobox.boundingbox.top) / 2
    column = "ABCDEFGHJKLMNPQRSTUVWXYZ"[(zone - 1) % 3 * 8 + int(x // 100_000) - 1]
    row = "ABCDEFGHJKLMNPQRSTUV"[(int(y // 100_000) + (0 if zone % 2 else 5)) % 20]
    band = "CDEFGHJKLMNPQRSTUVWX"[min(19, int((latitude + 80) // 8))]
    epsg, (left, bottom, right, top) = to_tile(f"{zone}{band}{column}{row}")
    assert epsg == (32_600 if north else 32_700) + zone
    assert left <= x <= right
    assert bottom <= y <= top


@pytest.mark.real
def test_tiles_of_real_items_are_where_we_put_them() -> None:
    items = json.loads((find_samples() / "stac/stac_geoparquet/data/sentinel-2-l2a-pc.json").read_text())
    items += json.loads((find_samples() / "stac/odc_stac/site2-2020_jun_jul-35MNM.geojson").read_text())["features"]
    for item in items:
        epsg, bounds = to_tile(item["properties"]["s2:mgrs_tile"])
        assert (epsg, list(bounds)) == (item["properties"]["proj:epsg"], item["assets"]["B02"]["proj:bbox"])
