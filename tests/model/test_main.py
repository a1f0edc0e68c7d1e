"""Laws of the command line of the model verbs."""

from pathlib import Path

import pytest

from sereno.model.__main__ import app
from sereno.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    "verb", [["train", "data.json"], ["evaluate", "data.json", "c"], ["predict", "c", "pair", "mask"], ["report", "r"]]
)
def test_a_place_where_no_file_can_be_written_is_refused_before_any_work(verb: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a folder: name a file in it"):
        app([*verb, str(tmp_path)], standalone_mode=False)
    with pytest.raises(ConfigError, match=r"file is a file, not a folder"):
        app([*verb, str(tmp_path / "file" / "sub" / "out")], standalone_mode=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_misspelt_setting_is_named_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'stepps', did you mean 'steps'\?"):
        app(["train", str(tmp_path / "none.json"), str(tmp_path), "--settings", '{"stepps": 3}'], standalone_mode=False)
