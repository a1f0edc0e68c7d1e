"""Laws of the arrays that samples are made of."""

import pytest

from sereno.pipeline.config import TaskName
from sereno.pipeline.patches import MASK_CHANNELS, PATCH_ARRAYS
from sereno.pipeline.samples import MASK_CHANNELS_OF, SAMPLES


def test_samples_of_cloud_removal_are_the_patches_as_they_were() -> None:
    assert tuple(spec.name for spec in SAMPLES["cloud-removal"]) == PATCH_ARRAYS
    assert MASK_CHANNELS_OF["cloud-removal"] == MASK_CHANNELS


@pytest.mark.parametrize("task", SAMPLES)
def test_every_sample_says_which_pixels_are_usable(task: TaskName) -> None:
    names = [spec.name for spec in SAMPLES[task]]
    assert len(set(names)) == len(names)
    assert "mask" in names
    assert any(channel.startswith("valid") for channel in MASK_CHANNELS_OF[task])
