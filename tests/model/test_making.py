"""What somebody needs to make the page again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sereno.model.making import describe_making
from sereno.model.page import Table
from sereno.model.results import RunResults, read_results


def make_run(name: str, lr: float) -> RunResults:
    checkpoint = {"settings": {"lr": lr, "loss": {"pixel": 1.0}}, "weights_sha256": 64 * "a", "sereno": "1"}
    summary: dict[str, Any] = {"checkpoint": checkpoint, "settings": {"split": "test"}}
    return RunResults(name, [], summary, [], None, {}, {})


def test_settings_have_their_whole_path_and_are_bold_where_runs_differ(tmp_path: Path) -> None:
    runs = (make_run("one", 0.1), make_run("two", 0.2))
    table = describe_making(replace(read_results(tmp_path, ()), runs=runs))[-1]
    assert isinstance(table, Table)
    rows = {row[0].words: row[1:] for row in table.rows}
    assert [(cell.words, cell.is_best) for cell in rows["train.lr"]] == [("0.1", True), ("0.2", True)]
    assert [(cell.words, cell.is_best) for cell in rows["train.loss.pixel"]] == [("1.0", False), ("1.0", False)]
    assert rows["weights (SHA-256)"][0].words == 16 * "a"
