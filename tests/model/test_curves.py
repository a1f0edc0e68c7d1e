"""What is said of training."""

from dataclasses import replace
from pathlib import Path

from sereno.model.config import TrainSettings
from sereno.model.curves import CONTEST, PART_WORDS, describe_training
from sereno.model.lessons import find_lesson
from sereno.model.losses import name_parts
from sereno.model.page import Shots, Text
from sereno.model.results import RunResults, read_results
from sereno.model.run import CONTEST as RECORDED

ROWS = [{"step": "0", "total": "", "val_loss": "0.5", "val_psnr_db": "20"}, {"step": "5", "total": "0.3", "pixel": "0.2", "phase": "0.1"}]


def make_run(rows: list[dict[str, str]]) -> RunResults:
    return RunResults("mine", rows, None, [], None, {}, {})


def test_parts_are_drawn_where_a_loss_has_several(tmp_path: Path) -> None:
    columns = dict.fromkeys(("step", "total", "pixel", "phase", "val_loss", "val_psnr_db"), "")
    rows = [{**columns, **row} for row in ROWS]
    (shots,) = describe_training(replace(read_results(tmp_path, ()), runs=(make_run(rows),)))
    assert isinstance(shots, Shots)
    assert [shot.title for shot in shots.shots] == ["Loss", "Validation", "Parts of the loss, mine"]


def test_a_run_without_a_history_is_named(tmp_path: Path) -> None:
    (said,) = describe_training(replace(read_results(tmp_path, ()), runs=(make_run([]),)))
    assert isinstance(said, Text)
    assert said.words == "mine has no history: run `sereno train`."


def test_the_contest_with_a_critic_has_a_chart_of_its_own_that_goes_below_zero(tmp_path: Path) -> None:
    assert CONTEST == RECORDED
    rows = [{"step": str(step), "total": "0.5", **dict.fromkeys(CONTEST, "-0.1"), "penalty": "0"} for step in range(3)]
    (shots, said) = describe_training(replace(read_results(tmp_path, ()), runs=(make_run(rows),)))[-2:]
    assert isinstance(shots, Shots)
    assert [shot.title for shot in shots.shots] == ["Loss", "Network against critic, mine"]
    assert isinstance(said, Text)
    assert "margin: mean score of true images less that of made ones" in said.words


def test_every_part_that_a_lesson_adds_to_the_loss_is_explained() -> None:
    kinds: list[dict[str, object]] = [
        {"network": {"name": "stfgan"}},
        {"network": {"name": "stfnet"}},
        {"network": {"name": "s2snapshot"}},
        {"network": {"base": "dates"}, "loss": {"temporal": 0.5}},
    ]
    added = set[str]()
    for kind in kinds:
        settings = TrainSettings.model_validate(kind)
        added |= set(find_lesson(settings).name_parts(settings)) - set(name_parts(settings.loss))
    assert {*added, *CONTEST} == PART_WORDS.keys()
