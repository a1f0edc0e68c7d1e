"""Areas stated in every way become one grid; footprints are measured on it, also across 180 degrees and zone borders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from sereno.pipeline.areas import Ground, compute_common_share, compute_share, cut_footprint, to_bboxes, to_ground
from sereno.pipeline.config import Area
from sereno.pipeline.errors import ConfigError, DataError

AREA = {"epsg": 32632, "bounds_m": (500_000, 5_000_000, 510_000, 5_005_000)}
SEAM = Area(bbox=(179.9, -17.0, -179.9, -16.9))
"""A box across 180 degrees, in Fiji."""


def to_area(**values: Any) -> Area:
    return Area.model_validate(values)


def share_of(footprint: Any, ground: Ground) -> float:
    return compute_share(cut_footprint(footprint, ground), ground)


def box(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]]}


def test_bounds_in_metres_are_taken_as_they_are() -> None:
    ground = to_ground(to_area(**AREA), 10)
    geobox = ground.geobox
    assert (geobox.shape, geobox.boundingbox.bbox, str(geobox.crs)) == ((500, 1000), AREA["bounds_m"], "EPSG:32632")
    assert ground.outline is None
    assert ground.outline_json is None
    with pytest.raises(ConfigError, match=r"are 333.333 x 166.667 pixels of 30 m"):
        to_ground(to_area(**AREA), 30)
    for epsg, words in ((4326, "not a projected CRS in metres"), (999_999, "is not known")):
        with pytest.raises(ConfigError, match=words):
            to_ground(to_area(**{**AREA, "epsg": epsg}), 10)


@pytest.mark.parametrize(
    ("bbox", "epsg"),
    [
        ((8.9, 45.0, 9.1, 45.1), 32632),
        ((11.9, 45.0, 12.3, 45.1), 32633),
        ((-70.1, -20.1, -69.9, -20.0), 32719),
        ((179.8, -1.0, 180.0, -0.9), 32760),
        ((-180.0, 0.0, -179.9, 0.1), 32601),
        ((4.0, 60.0, 4.2, 60.1), 32632),  # Bergen: 32V is wider
        ((4.0, 55.8, 4.2, 55.9), 32631),
        ((8.0, 78.0, 8.3, 78.1), 32631),  # Svalbard: there are no zones 32, 34 and 36
        ((15.5, 78.0, 15.8, 78.1), 32633),
        ((35.0, 78.0, 35.3, 78.1), 32637),
    ],
)
def test_a_box_in_degrees_lies_inside_a_grid_of_its_utm_zone(bbox: tuple[float, float, float, float], epsg: int) -> None:
    geobox = to_ground(Area(bbox=bbox), 20).geobox
    assert str(geobox.crs) == f"EPSG:{epsg}"
    left, bottom, right, top = geobox.boundingbox.bbox
    assert all(edge % 20 == 0 for edge in (left, bottom, right, top))
    edge = shapely.segmentize(shapely.box(*bbox), 0.01).exterior.coords
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(*np.array(edge).T)
    assert left <= x.min() < left + 21
    assert right - 21 < x.max() <= right
    assert bottom <= y.min() < bottom + 21
    assert top - 21 < y.max() <= top


def test_an_area_across_two_zones_gets_the_zone_of_its_centre_or_the_one_asked_for() -> None:
    bbox = (11.8, 45.0, 12.3, 45.2)
    assert str(to_ground(Area(bbox=bbox), 10).geobox.crs) == "EPSG:32633"
    assert str(to_ground(Area(bbox=bbox, epsg=32632), 10).geobox.crs) == "EPSG:32632"


def test_a_box_across_180_degrees_is_one_grid_and_two_searches() -> None:
    geobox = to_ground(SEAM, 10).geobox
    assert str(geobox.crs) in ("EPSG:32760", "EPSG:32701")
    # 0.2 degrees at 17 S: 0.2 * 111.32 km * cos(17 deg) = 21.3 km; 0.1 degrees of latitude: 11.1 km.
    assert geobox.shape.x * 10 == pytest.approx(21_300, rel=0.03)
    assert geobox.shape.y * 10 == pytest.approx(11_100, rel=0.05)
    (west, south, east, north), (west_2, south_2, east_2, north_2) = to_bboxes(geobox)
    assert (east, west_2) == (180, -180)
    assert (south, north) == (south_2, north_2)
    assert west == pytest.approx(179.9, abs=0.01)
    assert east_2 == pytest.approx(-179.9, abs=0.01)
    assert len(to_bboxes(to_ground(to_area(**AREA), 10).geobox)) == 1


@pytest.mark.parametrize("west", [179.9, -179.9])
def test_whichever_zone_the_seam_is_seen_from_the_boxes_are_the_same(west: float) -> None:
    epsg = 32760 if west > 0 else 32701
    first, second = to_bboxes(to_ground(Area(bbox=SEAM.bbox, epsg=epsg), 10).geobox)
    assert first[0] == pytest.approx(179.9, abs=0.01)
    assert second[2] == pytest.approx(-179.9, abs=0.01)


@pytest.mark.parametrize(
    "footprint",
    [
        {"type": "MultiPolygon", "coordinates": [box(179, -18, 180, -16)["coordinates"], box(-180, -18, -179, -16)["coordinates"]]},
        box(179, -18, 181, -16),
        box(-181, -18, -179, -16),
        {"type": "Polygon", "coordinates": [[[179, -18], [-179, -18], [-179, -16], [179, -16], [179, -18]]]},
        {"type": "Polygon", "coordinates": [[[-179, -18], [-179, -16], [179, -16], [179, -18], [-179, -18]]]},
    ],
)
@pytest.mark.parametrize("epsg", [None, 32760, 32701])
def test_a_footprint_across_180_degrees_covers_the_area_however_it_is_written(footprint: dict[str, Any], epsg: int | None) -> None:
    assert share_of(footprint, to_ground(Area(bbox=SEAM.bbox, epsg=epsg), 10)) == pytest.approx(1, abs=1e-6)


def test_the_common_share_is_that_which_every_part_covers() -> None:
    ground = to_ground(Area(bounds_m=(500_000, 5_000_000, 510_000, 5_010_000), epsg=32632), 10)
    strips = [
        shapely.box(500_000 + west, 5_000_000, 500_000 + east, 5_010_000) for west, east in ((0, 6_000), (2_000, 8_000), (4_000, 1e4))
    ]
    assert compute_common_share(strips[:1], ground) == pytest.approx(0.6)
    assert compute_common_share(strips[:2], ground) == pytest.approx(0.4)
    assert compute_common_share(strips, ground) == pytest.approx(0.2)
    assert compute_common_share([strips[0], strips[2].difference(strips[0])], ground) == pytest.approx(0)  # they share an edge
    assert compute_common_share([shapely.Polygon()], ground) == 0


def test_half_a_footprint_across_180_degrees_covers_half() -> None:
    ground = to_ground(SEAM, 10)
    halves = [share_of(half, ground) for half in (box(179, -18, 180, -16), box(-180, -18, -179, -16))]
    assert sum(halves) == pytest.approx(1, abs=1e-6)
    assert halves[0] == pytest.approx(0.5, abs=0.01)
    assert share_of(box(-1, -18, 1, -16), ground) == 0  # the other side of the globe


def to_footprint(share: float = 1.0) -> dict[str, Any]:
    """A footprint in degrees over the left `share` of AREA."""
    to_degrees = Transformer.from_crs(32632, 4326, always_xy=True).transform
    left, bottom, right, top = 499_000, 4_999_000, 511_000, 5_006_000
    outline = shapely.segmentize(shapely.box(left, bottom, right if share == 1 else 500_000 + share * 10_000, top), 500)
    return dict(json.loads(shapely.to_geojson(shapely.transform(outline, lambda xy: np.stack(to_degrees(xy[:, 0], xy[:, 1]), axis=1)))))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_overlap_is_the_share_of_ground(share: float) -> None:
    footprint = to_footprint(share) if share else box(20, 45, 21, 46)
    assert share_of(footprint, to_ground(to_area(**AREA), 10)) == pytest.approx(share, abs=1e-4)


def test_overlap_is_measured_against_the_outline() -> None:
    triangle = {"type": "Polygon", "coordinates": [[[9, 45], [9.1, 45], [9, 45.1], [9, 45]]]}
    ground = to_ground(Area(geojson=triangle), 10)
    whole = ground.geobox.extent.geom.area
    assert ground.geometry.area == pytest.approx(whole / 2, rel=0.02)
    assert share_of(box(8, 44, 10, 46), ground) == pytest.approx(1, abs=1e-6)
    assert share_of(box(8, 44, 9.05, 46), ground) == pytest.approx(0.75, abs=0.01)
    # The corner of the box that the triangle leaves out counts for nothing.
    assert share_of(box(9.06, 45.06, 9.2, 45.2), ground) == 0


def test_a_footprint_that_crosses_itself_is_mended_and_none_is_refused() -> None:
    ground = to_ground(to_area(**AREA), 10)
    ring = [[8, 44.17], [10, 46.17], [10, 44.17], [8, 46.17], [8, 44.17]]  # a bow tie whose two halves meet near the area
    assert 0 < share_of({"type": "Polygon", "coordinates": [ring]}, ground) < 1
    round_the_pole = {"type": "Polygon", "coordinates": [[[-120, 80], [0, 80], [120, 80], [-120, 80]]]}
    for faulty in (
        None,
        {},
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[9, 45], [9, 45]]]},
        {"type": "Polygon", "coordinates": [[[9, 45], [9, 45], [9, 45], [9, 45]]]},
        {"type": "Point", "coordinates": [9, 45]},
        {"type": "Blob", "coordinates": []},
        round_the_pole,
    ):
        with pytest.raises(DataError, match="footprint"):
            cut_footprint(faulty, ground)


def test_a_tile_in_another_zone_is_grown_to_a_grid_there() -> None:
    geobox = to_ground(Area(mgrs="32TQR", epsg=32633), 20).geobox
    assert str(geobox.crs) == "EPSG:32633"
    assert geobox.shape.x * 20 > 109_800


FIELD = {"type": "Polygon", "coordinates": [[[9, 45], [9.1, 45], [9.1, 45.1], [9, 45]]]}


@pytest.mark.parametrize(
    "value",
    [
        FIELD,
        {"type": "MultiPolygon", "coordinates": [FIELD["coordinates"]]},
        {"type": "Feature", "properties": {}, "geometry": FIELD},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": None, "geometry": FIELD}]},
        {"type": "GeometryCollection", "geometries": [FIELD]},
        {**FIELD, "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}},
    ],
)
def test_every_kind_of_geojson_gives_the_same_ground_from_config_and_file(value: dict[str, Any], tmp_path: Path) -> None:
    expected = to_ground(Area(geojson=FIELD), 10)
    (tmp_path / "field.geojson").write_text(json.dumps(value))
    for area in (Area(geojson=value), Area(file=tmp_path / "field.geojson")):
        assert to_ground(area, 10) == expected
    outline = expected.outline_json
    assert outline is not None
    assert outline["type"] == "Polygon"
    to_metres = Transformer.from_crs(4326, 32632, always_xy=True).transform
    corners = {tuple(np.round(to_metres(*place), 3)) for place in FIELD["coordinates"][0]}
    assert corners <= {tuple(place) for place in outline["coordinates"][0]}


@pytest.mark.parametrize(
    "value",
    [
        {
            "type": "MultiPolygon",
            "coordinates": [box(179.9, -17, 180, -16.9)["coordinates"], box(-180, -17, -179.9, -16.9)["coordinates"]],
        },
        box(179.9, -17, 180.1, -16.9),
        {"type": "Polygon", "coordinates": [[[179.9, -17], [-179.9, -17], [-179.9, -16.9], [179.9, -16.9], [179.9, -17]]]},
    ],
)
def test_geojson_across_180_degrees_is_one_piece(value: dict[str, Any]) -> None:
    ground = to_ground(Area(geojson=value), 10)
    assert ground.outline is not None
    assert ground.outline.geom_type == "Polygon"
    same_size = to_ground(SEAM, 10).geobox
    assert abs(ground.geobox.shape.x - same_size.shape.x) <= 1


@pytest.mark.parametrize(
    ("area", "words"),
    [
        ({"bbox": (5, 45, 9, 46)}, "the area is 31. x 1.. km, at most 200 km fit one grid: split it"),
        ({"bbox": (0, -5, 180, 5)}, "cannot be drawn in EPSG:32646: split it"),
        ({"bbox": (9, 45, 9.1, 45.1), "epsg": 32635}, "from the central meridian of EPSG:32635.*leave 'epsg' out"),
        ({"bbox": (9, 85, 9.1, 85.1)}, "no UTM zones: give 'epsg', for example 3413"),
        ({"bbox": (9, -81, 9.1, -80.5)}, "for example 3031"),
        ({"bbox": (99, 45, 99.1, 45.1), "epsg": 32632}, "EPSG:32632"),
    ],
)
def test_an_area_that_does_not_fit_a_grid_is_refused_with_advice(area: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        to_ground(to_area(**area), 10)
