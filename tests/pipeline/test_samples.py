"""Laws of the arrays that samples are made of."""

import pytest

from sereno.pipeline.config import TaskName
from sereno.pipeline.pairs import AROUND
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS
from sereno.pipeline.samples import MASK_CHANNELS_OF, SAMPLES, list_roles, list_skies, name_dims, select_specs


def test_samples_of_cloud_removal_are_the_patches_as_they_were() -> None:
    names = {"bands": (), "sar_bands": ()}
    assert tuple(spec.name for spec in select_specs("cloud-removal", names)) == PATCH_ARRAYS
    assert tuple(spec.name for spec in SAMPLES["cloud-removal"] if not spec.is_optional) == PATCH_ARRAYS
    assert MASK_CHANNELS_OF["cloud-removal"] == MASK_CHANNELS


@pytest.mark.parametrize("task", SAMPLES)
def test_every_sample_says_which_pixels_are_usable(task: TaskName) -> None:
    names = [spec.name for spec in SAMPLES[task]]
    assert len(set(names)) == len(names)
    assert "mask" in names
    assert any(channel.startswith("valid") for channel in MASK_CHANNELS_OF[task])


def test_a_series_adds_two_arrays_before_the_mask_and_names_its_dates() -> None:
    names = {"bands": ("B02",), "sar_bands": ("VV",)}
    series = {**names, "dates": AROUND}
    assert tuple(spec.name for spec in select_specs("cloud-removal", series)) == (
        "sar",
        "cloudy",
        "clear",
        "around",
        "around_clear",
        "mask",
    )
    assert name_dims("cloud-removal", series) == {**name_dims("cloud-removal", names), "dates": ["before", "after"]}
    assert "dates" not in name_dims("cloud-removal", names)
    around, clear = SAMPLES["cloud-removal"][3:5]
    assert around.all_dims == ("patch", "date", "band", "row", "col")
    assert clear.all_dims == ("patch", "date", "row", "col")


def test_scenes_around_a_pair_stand_with_its_input_and_target_and_have_masks() -> None:
    assert list_roles("cloud-removal", ()) == (("sar",), ("cloudy", "clear"))
    assert list_roles("cloud-removal", AROUND) == (("sar",), ("cloudy", "clear", "before", "after"))
    assert list_skies("cloud-removal", ("sar", "cloudy", "clear")) == ("cloudy", "clear")
    assert list_skies("cloud-removal", ("sar", "cloudy", "clear", *AROUND)) == ("cloudy", "clear", "before", "after")
    assert list_skies("spatiotemporal-fusion", AROUND) == ("fine-1", "fine-2", "fine-3")
