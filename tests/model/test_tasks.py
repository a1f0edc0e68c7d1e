"""Laws of tasks: which network may be asked what."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from sereno.model import __main__ as command_line
from sereno.model.config import AfsstSettings, CustomSettings, NetworkSettings, UnetSettings
from sereno.model.networks import NETWORKS
from sereno.model.tasks import CLOUD_REMOVAL, PRESETS, TASKS, Signature, check_task, create_network, describe_network
from sereno.pipeline.errors import ConfigError

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
        assert one.tasks == (CLOUD_REMOVAL,)
        assert len(one.provenance) > 80


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
    assert '"width":8' in said
    assert "Ronneberger" in said
