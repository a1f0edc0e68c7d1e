"""Polygons in degrees are in one piece wherever the seam is, and what is none is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS

from sereno.pipeline.errors import ConfigError, DataError, MissingError
from sereno.pipeline.polygons import DEGREES, list_parts, list_polygons, parse_geojson, project, read_geojson, unwrap

FIELD = {"type": "Polygon", "coordinates": [[[9, 45], [9.1, 45], [9.1, 45.1], [9, 45]]]}


def box(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]]}


@settings(max_examples=40, deadline=None)
@given(west=st.integers(-180, 179), width=st.integers(1, 90), middle=st.integers(-180, 180))
def test_a_polygon_is_one_piece_near_the_middle_however_its_longitudes_are_written(west: int, width: int, middle: int) -> None:
    whole = shapely.segmentize(shapely.box(west, -10, west + width, 10), 5)
    jumping = shapely.transform(whole, lambda xy: np.stack([(xy[:, 0] + 180) % 360 - 180, xy[:, 1]], axis=1))
    for written in (whole, jumping):
        found = unwrap(written, float(middle))
        left, _, right, _ = found.bounds
        assert abs((left + right) / 2 - middle) <= 180
        assert (left - west) / 360 == pytest.approx(round((left - west) / 360), abs=1e-12)
        assert found.equals_exact(shapely.transform(whole, lambda xy, by=left - west: np.add(xy, (by, 0))), 1e-9)


def test_a_hole_moves_with_its_polygon() -> None:
    ring, hole = shapely.box(179, -1, 181, 1).exterior.coords, shapely.box(-180.5, -0.5, -179.5, 0.5).exterior.coords
    found = unwrap(shapely.Polygon(ring, [hole]), 180.0)
    assert found.bounds == (179, -1, 181, 1)
    assert found.area == pytest.approx(3)


def test_a_polygon_that_crosses_itself_becomes_those_it_encloses_and_lines_are_left_out() -> None:
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    mixed = shapely.GeometryCollection([shapely.MultiPolygon([bow]), shapely.LineString([(0, 0), (1, 1)])])
    assert [one.geom_type for one in list_parts(mixed)] == ["Polygon", "LineString"]
    found = list_polygons(mixed)
    assert [one.geom_type for one in found] == ["Polygon", "Polygon"]
    assert sum(one.area for one in found) == pytest.approx(2)


def test_a_polygon_round_a_pole_is_refused() -> None:
    with pytest.raises(DataError, match="round a pole: cut it into parts"):
        unwrap(shapely.Polygon([(-120, 80), (0, 80), (120, 80)]), 0.0)


def test_what_is_projected_comes_back() -> None:
    there = project(shapely.box(9, 45, 9.1, 45.1), CRS(DEGREES), CRS("EPSG:32632"))
    assert there.bounds[0] == pytest.approx(500_000)
    back = project(there, CRS("EPSG:32632"), CRS(DEGREES))
    assert back.equals_exact(shapely.box(9, 45, 9.1, 45.1), 1e-9)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"type": "Point", "coordinates": [9, 45]}, "needs polygons with some ground, seen Point"),
        ({"type": "LineString", "coordinates": [[9, 45], [9, 46]]}, "seen LineString"),
        ({"type": "Polygon", "coordinates": [[[9, 45], [9, 46], [9, 45]]]}, "area geojson"),
        ({"type": "FeatureCollection", "features": []}, "seen nothing"),
        ({"type": "Feature", "geometry": None}, "no GeoJSON polygon"),
        ({"kind": "Polygon"}, "no GeoJSON polygon"),
        (box(500_000, 5_000_000, 510_000, 5_010_000), r"degrees, seen 500000 5e\+06 510000 5.01e\+06: convert it with `ogr2ogr -t_srs"),
        ({**FIELD, "crs": {"properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}}, "in urn:ogc:def:crs:EPSG::32632: convert it"),
        ({"type": "Polygon", "coordinates": [[[-120, 80], [0, 80], [120, 80], [-120, 80]]]}, "round a pole"),
    ],
)
def test_geojson_that_is_no_ground_is_refused_in_one_line(value: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_geojson(value, "geojson")
    assert "\n" not in str(caught.value)


def test_other_files_get_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "field.gpkg").write_bytes(b"SQLite format 3\x00\xff\xfe")
    (tmp_path / "field.kml").write_text("<kml/>")
    for name in ("field.gpkg", "field.kml"):
        with pytest.raises(ConfigError, match=rf"ogr2ogr -f GeoJSON -t_srs EPSG:4326 -lco RFC7946=YES area.geojson .*{name}"):
            read_geojson(tmp_path / name)
    with pytest.raises(MissingError, match="does not exist"):
        read_geojson(tmp_path / "none.geojson")
