"""Laws of tasks: which network may be asked what."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from sereno.model import __main__ as command_line
from sereno.model.batches import Signature
from sereno.model.config import (
    AfsstSettings,
    CustomSettings,
    LossSettings,
    NetworkSettings,
    SfiinSettings,
    StfganSettings,
    TrainSettings,
    UnetSettings,
)
from sereno.model.networks import NETWORKS
from sereno.model.tasks import (
    CLOUD_REMOVAL,
    FUSION,
    PANSHARPENING,
    PRESETS,
    SNAPSHOT,
    TASKS,
    Task,
    check_loss,
    check_task,
    create_network,
    describe_network,
    to_text,
)
from sereno.pipeline.errors import ConfigError
from sereno.pipeline.samples import SAMPLES

SMALL = AfsstSettings(width=8, head_dim=4, levels=1, blocks=1, window_px=4)
FOUR = Signature(("B02", "B03", "B04", "B08"), ("VV", "VH"), (0.1,) * 4, (0.05,) * 4)


def test_every_task_is_served_by_known_networks() -> None:
    for task in TASKS.values():
        assert task.networks
        assert set(task.networks) <= NETWORKS.keys()


def test_every_network_that_may_be_asked_for_is_known_and_serves_a_task() -> None:
    arms = get_args(get_args(NetworkSettings)[0])
    names = {get_args(get_args(arm)[0].model_fields["name"].annotation)[0] for arm in arms}
    assert names == NETWORKS.keys() == {name for task in TASKS.values() for name in task.networks}


@pytest.mark.parametrize("settings", [SMALL, UnetSettings(name="unet", width=8, levels=2)])
def test_every_network_gives_what_its_task_asks_for(settings: NetworkSettings) -> None:
    network = create_network(CLOUD_REMOVAL, settings, FOUR).eval()
    assert network(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(1, 1, 8, 8)).shape == (1, 4, 8, 8)


def test_a_network_that_does_not_serve_the_task_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"'nonesuch' does not serve the task 'cloud-removal'.*afsst"):
        check_task(CLOUD_REMOVAL, SMALL.model_copy(update={"name": "nonesuch"}), FOUR)


def test_sar_that_is_not_there_is_asked_for_only_if_it_is_used() -> None:
    blind = FOUR._replace(sar_bands=())
    with pytest.raises(ConfigError, match=r"network\.use_sar"):
        check_task(CLOUD_REMOVAL, SMALL, blind)
    check_task(CLOUD_REMOVAL, SMALL.model_copy(update={"use_sar": False}), blind)


def test_dates_that_are_not_there_are_asked_for_only_if_they_are_looked_at(tmp_path: Path) -> None:
    dated = SMALL.model_copy(update={"base": "dates"})
    with pytest.raises(ConfigError, match=r"^network 'afsst' looks at clear images before and after.*`pipeline\.query\.series` to true"):
        check_task(CLOUD_REMOVAL, dated, FOUR)
    series = FOUR._replace(series=True)
    check_task(CLOUD_REMOVAL, SMALL, series)
    network = create_network(CLOUD_REMOVAL, dated, series).eval()
    around = torch.rand(1, 2, 4, 8, 8), torch.ones(1, 2, 1, 8, 8), torch.tensor([[-3.0, 4.0]])
    assert network(torch.rand(1, 4, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(1, 1, 8, 8), *around).shape == (1, 4, 8, 8)
    own = CustomSettings(name="custom", source=str(tmp_path / "own.py:make"), use_series=True)
    with pytest.raises(ConfigError, match="looks at clear images"):
        check_task(CLOUD_REMOVAL, own, FOUR)


def test_a_network_that_looks_at_dates_is_described_with_all_its_inputs() -> None:
    said = to_text(describe_network(SMALL.model_copy(update={"base": "dates"}), bands=4))
    assert "task cloud-removal: optical, sar, cloud, around, around_clear, days -> target\n" in said
    assert "  days (B, 2): days from the cloudy date, below and above 0\n" in said
    assert "around" not in to_text(describe_network(SMALL, bands=4)).split("settings:")[0]


def test_statistics_must_fit_the_bands() -> None:
    with pytest.raises(ConfigError, match="4 optical bands, but 3 means"):
        check_task(CLOUD_REMOVAL, SMALL, FOUR._replace(mean=(0.1,) * 3))
    with pytest.raises(ConfigError, match="needs optical bands"):
        check_task(CLOUD_REMOVAL, SMALL, FOUR._replace(bands=()))


def test_weights_depend_on_the_seed_alone() -> None:
    first = create_network(CLOUD_REMOVAL, SMALL, FOUR, seed=3).state_dict()
    torch.rand(5)
    second, other = (create_network(CLOUD_REMOVAL, SMALL, FOUR, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    create_network(CLOUD_REMOVAL, SMALL, FOUR, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_every_network_of_ours_is_described_with_where_it_comes_from() -> None:
    described = [describe_network(preset) for preset in PRESETS]
    assert {one.name for one in described} == NETWORKS.keys() - {"custom"}
    for one in described:
        assert len(one.tasks) == 1
        assert len(one.provenance) > 80
        assert len(one.docstring) > 80


def test_parameters_are_those_of_the_network_that_is_trained() -> None:
    described = describe_network(SMALL, bands=4)
    network = create_network(CLOUD_REMOVAL, SMALL, FOUR)
    assert described.parameters == sum(parameter.numel() for parameter in network.parameters())
    blind = SMALL.model_copy(update={"use_sar": False})
    assert describe_network(blind, bands=4, sar_bands=0).parameters == describe_network(blind, bands=4).parameters < described.parameters


def test_a_custom_network_is_described_by_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "peer.py"
    file.write_text('"""After Nobody (1999)."""\nfrom torch import nn\n\ndef make(**_):\n    return nn.Conv2d(3, 2, 1, bias=False)\n')
    described = describe_network(CustomSettings(name="custom", source=f"{file}:make"))
    assert (described.parameters, described.provenance) == (6, "After Nobody (1999).")
    file.write_text(file.read_text().partition("\n")[2])
    assert describe_network(described.settings).provenance == "Its file does not say."


def test_the_command_prints_all_of_ours_or_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.describe(settings=None, bands=4, sar_bands=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [preset.name for preset in PRESETS]
    command_line.describe(settings='{"network": {"name": "unet", "width": 8}}', bands=4, sar_bands=2)
    said = capsys.readouterr().out
    count = describe_network(UnetSettings(name="unet", width=8), bands=4).parameters
    assert said.startswith(
        f"unet: {count:,} parameters with 4 optical and 2 SAR bands\ntask cloud-removal: optical, sar, cloud -> target\n"
    )
    assert "  cloud (B, 1, H, W): probability of cloud or shadow\n" in said
    assert "beside: copy, mean, fill, dates (of a series)\n" in said
    assert '"width":8' in said
    assert "Ronneberger" in said


@pytest.mark.parametrize(
    ("name", "first", "task"),
    [
        ("sfiin", "sfiin: 85,270 parameters with 4 and 1 guiding bands", "task pansharpening: ms, pan -> sharp"),
        ("stfnet", "stfnet: 92,716 parameters with 6 bands", "task spatiotemporal-fusion: coarse, fine -> middle"),
        ("stfgan", "stfgan: 4,732,172 parameters with 6 bands", "  critic (training only): 5,217,153"),
        (
            "s2snapshot",
            "s2snapshot: 2,613,080 parameters with 28 bands",
            "task snapshot-reconstruction: estimate, aperture, picture -> cube",
        ),
    ],
)
def test_a_network_of_a_paper_is_described_with_the_parameters_it_is_known_with(
    name: str, first: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line.describe(network=name)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == first
    assert task in said.splitlines()
    assert "Ours" in said
    assert name != "stfgan" or "  generator 2: 2,366,086" in said.splitlines()


def test_what_is_described_is_named_once_and_known() -> None:
    with pytest.raises(ConfigError, match=r"there is no network 'nonesuch' of ours: take one of afsst, .*sfiin"):
        command_line.describe(network="nonesuch")
    with pytest.raises(ConfigError, match="give one of them"):
        command_line.describe(network="sfiin", settings="{}")


@pytest.mark.parametrize("task", [PANSHARPENING, FUSION, SNAPSHOT])
def test_every_misfit_of_task_and_network_is_one_line_with_the_pairs_there_are(task: Task) -> None:
    with pytest.raises(
        ConfigError, match=f"'afsst' does not serve the task '{task.name}'; allowed are cloud-removal: afsst.*pansharpening: sfiin;"
    ):
        check_task(task, SMALL, FOUR)
    with pytest.raises(ConfigError, match="'sfiin' does not serve the task 'cloud-removal'"):
        check_task(CLOUD_REMOVAL, SfiinSettings(name="sfiin"), FOUR)


def test_a_guide_and_a_ratio_are_asked_for_where_a_network_needs_them() -> None:
    with pytest.raises(ConfigError, match="needs a sharp image 'pan'"):
        check_task(PANSHARPENING, SfiinSettings(name="sfiin"), FOUR)
    with pytest.raises(ConfigError, match="2 stages makes pixels 16 times as small, but the dataset's ratio is 8"):
        check_task(FUSION, StfganSettings(name="stfgan"), FOUR._replace(ratio=8))
    check_task(FUSION, StfganSettings(name="stfgan", stages=1), FOUR._replace(ratio=4))


@pytest.mark.parametrize(("loss", "named"), [({"carl": 1.0}, "loss.carl"), ({"weighting": "learned"}, "loss.weighting: learned")])
def test_losses_about_clouds_are_refused_where_there_are_none(loss: dict[str, object], named: str) -> None:
    settings = TrainSettings(network=SfiinSettings(name="sfiin"), loss=LossSettings.model_validate(loss))
    with pytest.raises(ConfigError, match=f"'{named}' is about clouds of the input, which the task 'pansharpening' has not"):
        check_loss(PANSHARPENING, settings)
    check_loss(CLOUD_REMOVAL, settings)


def test_each_array_of_a_task_is_one_that_its_samples_have() -> None:
    for task in TASKS.values():
        assert {task.subject, task.guide} - {None} <= {spec.name for spec in SAMPLES[task.name]}
