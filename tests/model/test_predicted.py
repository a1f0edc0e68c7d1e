"""Whole images of groups: beside what went in, measured where they may be, and never taken for what they are not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from task_results import write_group

from sereno.model.page import Block, Shots, Table, Text
from sereno.model.predicted import describe_images
from sereno.model.results import read_results
from sereno.pipeline.config import TaskName
from sereno.pipeline.store import open_dataset, write_json

SIDE = 96


def write_image(folder: Path, task: TaskName, *, off: int = 100) -> None:
    """A group, and an image that is off its truth by so much everywhere but in a corner without an answer."""
    write_group(folder, task)
    role = {"spatiotemporal-fusion": "fine-2", "snapshot-reconstruction": "cube"}.get(task)
    group = open_dataset(folder / "align/west/g.json", kind="group")
    image = np.full((4, SIDE, SIDE), 2000, np.uint16) if role is None else group[role].values + np.uint16(off)
    image[:, :8, :8] = 65_535
    path = folder / "predict/mine/west/g.tif"
    path.parent.mkdir(parents=True)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint16", "count": 4, "height": SIDE, "width": SIDE, "nodata": 65_535}
    with rasterio.open(path, "w", **profile, crs="EPSG:32632", transform=rasterio.Affine(10, 0, 498_400, 0, -10, 5_040_000)) as file:
        file.write(image)
    shares = {"observed": 0.0, "reconstructed": 0.75, "nodata": 0.25}
    write_json(path.with_suffix(".json"), {"shape": [SIDE, SIDE], "shares": shares, "checkpoint": {"weights_sha256": "a"}})


def describe(folder: Path) -> list[Block]:
    return describe_images(read_results(folder, ("mine",)), picture_px=64)


@pytest.mark.parametrize(
    ("task", "titles"),
    [
        ("pansharpening", ["multispectral, as taken", "sharp, as taken", "made by mine"]),
        (
            "spatiotemporal-fusion",
            ["fine, first date", "fine, last date", "coarse, middle date", "made by mine", "fine, middle date: the truth"],
        ),
        ("snapshot-reconstruction", ["made by mine", "the cube: the truth"]),
    ],
)
def test_an_image_stands_between_what_went_in_and_what_is_true(tmp_path: Path, task: TaskName, titles: list[str]) -> None:
    write_image(tmp_path, task)
    blocks = describe(tmp_path)
    whole, detail = [[shot.title for shot in block.shots] for block in blocks if isinstance(block, Shots)]
    assert whole == detail == titles
    files = next(block for block in blocks if isinstance(block, Table))
    assert [cell.words for cell in files.rows[0]] == ["mine", "predict/mine/west/g.tif", "96 × 96", "75.0 %", "25.0 %"]


def test_errors_are_measured_only_where_there_is_an_answer(tmp_path: Path) -> None:
    write_image(tmp_path, "snapshot-reconstruction", off=100)
    errors = [block for block in describe(tmp_path) if isinstance(block, Table)][1]
    assert [cell.words for cell in errors.rows[0]] == ["mine", f"{20 * math.log10(100):.2f}", "0.0100", "–", "–"], "no ground was held out"


def test_what_nobody_knows_has_no_error(tmp_path: Path) -> None:
    write_image(tmp_path, "pansharpening")
    assert len([block for block in describe(tmp_path) if isinstance(block, Table)]) == 1


def test_an_image_of_other_weights_is_pointed_out(tmp_path: Path) -> None:
    write_image(tmp_path, "pansharpening")
    assert not [block for block in describe(tmp_path) if isinstance(block, Text) and "other weights" in block.words]
    write_json(tmp_path / "evaluate/mine/summary.json", {"checkpoint": {"weights_sha256": "b", "task": "pansharpening"}})
    assert [block for block in describe(tmp_path) if isinstance(block, Text) and "mine: made with other weights" in block.words]


def test_an_image_whose_group_is_gone_or_was_never_made_is_said_to_be(tmp_path: Path) -> None:
    write_image(tmp_path, "pansharpening")
    manifest = tmp_path / "align/west/g.json"
    described = json.loads(manifest.read_text())
    manifest.unlink()
    (said,) = describe(tmp_path)
    assert isinstance(said, Text)
    assert "run `sereno predict`" in said.words
    described["summary"]["refused"] = "the ms scene: nothing is valid"
    write_json(manifest, described)
    (said,) = describe(tmp_path)
    assert isinstance(said, Text)
    assert said.tone == "missing"
