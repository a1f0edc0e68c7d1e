"""Laws of strips: rows of a group put together are the group, and what is not valid in any image is not valid."""

from __future__ import annotations

import numpy as np
import pytest
from task_samples import BANDS, make_group

from sereno.model.strips import describe_group, read_rows
from sereno.pipeline.config import TaskName
from sereno.pipeline.errors import DataError
from sereno.pipeline.samples import MASK_CHANNELS_OF, SAMPLES

CASES: list[tuple[TaskName, int]] = [("pansharpening", 4), ("spatiotemporal-fusion", 16), ("snapshot-reconstruction", 1)]


@pytest.mark.parametrize(("task", "ratio"), CASES)
def test_strips_put_together_are_the_whole(task: TaskName, ratio: int) -> None:
    group, masks = make_group(task, ratio=ratio)
    whole = read_rows(group, masks, 0, 96)
    strips = [read_rows(group, masks, first, first + 32) for first in (0, 32, 64)]
    assert list(whole) == [spec.name for spec in SAMPLES[task]]
    for spec in SAMPLES[task]:
        assert np.array_equal(np.concatenate([strip[spec.name] for strip in strips], axis=-2), whole[spec.name])
        assert whole[spec.name].shape[-1] == (96 // ratio if spec.is_coarse else 96)
        assert whole[spec.name].dtype == spec.dtype
    assert whole["mask"].shape[-3] == len(MASK_CHANNELS_OF[task])
    assert (whole["mask"][..., MASK_CHANNELS_OF[task].index("valid"), :, :] == 255).all()


@pytest.mark.parametrize(("task", "ratio"), CASES)
def test_a_group_says_what_it_is_of(task: TaskName, ratio: int) -> None:
    signature = describe_group(make_group(task, ratio=ratio)[0])
    assert (signature.bands, signature.task, signature.ratio) == (BANDS, task, ratio)
    assert signature.guide_bands == (("PAN",) if task == "pansharpening" else ())


def test_a_pixel_is_valid_where_every_image_of_its_date_is() -> None:
    group, masks = make_group("pansharpening", ratio=4)
    group["valid_pan"].values[9, 22] = False
    valid = read_rows(group, masks, 0, 96)["mask"][2]
    assert np.argwhere(valid == 0).tolist() == [[2, 5]]
    group, masks = make_group("spatiotemporal-fusion", ratio=16)
    group["valid_coarse-1"].values[1, 2] = False
    group["valid_fine-2"].values[0, 0] = False
    masks["known_fine-3"].values[5, 5] = False
    valid = read_rows(group, masks, 0, 96)["mask"][:, 2] > 0
    assert not valid[0, 16:32, 32:48].any()
    assert valid[0].sum() == 96 * 96 - 256
    assert [np.argwhere(~valid[date]).tolist() for date in (1, 2)] == [[[0, 0]], [[5, 5]]]


def test_masks_that_do_not_say_what_is_known_are_refused() -> None:
    group, masks = make_group("spatiotemporal-fusion", ratio=16)
    with pytest.raises(DataError, match="run `sereno mask` again"):
        read_rows(group, masks.drop_vars("known_fine-2"), 0, 96)
