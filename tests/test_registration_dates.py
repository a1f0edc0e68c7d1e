"""Products of Gaofen that err by up to 200 m are laid onto each other over hills, and what their benchmark knows of them is right."""

from pathlib import Path

import numpy as np
import pytest
from registration_dates import EDGE_PX, GROUND_PX, PIXEL_M, cover, make_area, to_field, write_set
from registration_scenes import Ground, measure_error

from sereno.pipeline.align import measure_field, without_cloud
from sereno.pipeline.config import AlignSettings

SETTINGS = AlignSettings(search_m=300.0)


def test_sar_and_a_cloudy_date_are_found_on_the_clear_one_over_hills_and_those_of_other_ground_are_not(tmp_path: Path) -> None:
    (fixed, clear), (first, sar), (second, cloudy) = write_set(tmp_path / "one", 2, 80.0)
    side = GROUND_PX - 2 * EDGE_PX
    for moved, scene in ((first, sar), (second, cloudy)):
        true = to_field(fixed.error_m, moved.error_m, (side, side))
        assert PIXEL_M * float(np.hypot(*true.evaluate(0, 0))) > 100
        found = measure_field(without_cloud(clear), scene, make_area(), SETTINGS)
        assert found.verdict == "applied", found.reason
        assert measure_error(found.field, true, side) <= 0.3
    for _, scene in write_set(tmp_path / "other", 3, 80.0)[1:]:
        found = measure_field(without_cloud(clear), scene, make_area(), SETTINGS)
        assert (found.verdict, found.field.is_zero) == ("refused", True)


def test_a_product_that_lies_east_and_north_is_found_at_higher_columns_and_lower_rows() -> None:
    assert to_field((8.0, 0.0), (24.0, 40.0), (9, 9)).evaluate(4, 4) == pytest.approx((-5, 2))


def test_clouds_hide_what_they_are_said_to() -> None:
    image = Ground(1, 128).draw_date()
    covered, cloud = cover(image, 0.4, seed=1)
    assert 0.2 < cloud.mean() < 0.6
    assert np.abs(covered - image)[:, cloud].mean() > 3 * np.abs(covered - image)[:, ~cloud].mean()
