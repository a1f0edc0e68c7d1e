"""Clouds in visible and near infrared alone: bounds on what was found once in simulated scenes and in a real browse image."""

from pathlib import Path

import haze
import pytest
from real_files import find_samples

RECORD = Path(haze.__file__).parent / "results" / "masks.md"


@pytest.mark.parametrize("air", [True, False])
def test_thick_cloud_is_found_clear_ground_is_not_and_most_shadow_is(air: bool) -> None:
    found = haze.score(haze.make_scene(0, haze.MOMENTS[0], factor=2, air=air))
    assert found.thick is not None
    assert found.thick > 0.99
    assert found.false is not None
    assert found.false < 0.002
    assert found.shadow is not None
    assert found.shadow > 0.6
    assert found.right is not None
    assert found.right > 0.9


def test_the_recorded_table_is_what_comes_out() -> None:
    scene = haze.make_scene(0, haze.MOMENTS[0], factor=2, air=True)
    assert haze.to_table([(scene.name, haze.score(scene))]).splitlines()[-1] in RECORD.read_text()


@pytest.mark.real
def test_cloud_shadow_and_ground_of_a_real_browse_image_are_what_the_eye_sees() -> None:
    found = {path.stem: masks for path, masks in haze.look_at_browse(find_samples())}[haze.POINTS_OF]
    counts = haze.count_points(found)
    assert counts["cloud"][0] >= 13
    assert counts["shadow"][1] >= 12
    assert counts["clear"][0] == 0
    assert counts["clear"][1] <= 1  # a dark field beside a cloud
