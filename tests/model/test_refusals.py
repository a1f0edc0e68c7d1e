"""What was left out is told with its reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sereno.model.page import Table
from sereno.model.refusals import describe_losses
from sereno.model.results import read_results


def test_windows_are_counted_by_the_limit_they_missed(tmp_path: Path) -> None:
    missed: list[dict[str, Any]] = [{"setting": "min_valid", "limit": 0.9, "value": value} for value in (0.2, 0.5)]
    patched = {("west", "p1"): {"patches": [{}], "refused": missed}, ("west", "p2"): {"patches": [], "refused": missed[:1]}}
    blocks = describe_losses(replace(read_results(tmp_path, ()), patched=patched))
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert [cell.words for cell in table.rows[0]] == [
        "too little valid in SAR, input and target",
        "patch.min_valid 0.9",
        "3",
        "0.200 to 0.500",
    ]
