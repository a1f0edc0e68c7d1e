"""The whole config file: overlays of runs, cross-checks, and the shipped files."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from sereno.model.config import (
    AdversarialSettings,
    AfsstSettings,
    ApertureSettings,
    Config,
    CustomSettings,
    LossSettings,
    Pattern,
    S2SnapshotSettings,
    S2TransformerSettings,
    SarRange,
    SfiinSettings,
    StfganSettings,
    StfnetSettings,
    TrainSettings,
    UnetSettings,
    load_config,
    needs_series,
)
from sereno.model.losses import TERMS
from sereno.pipeline.config import load_settings
from sereno.pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
AREA = {"query": {"areas": {"a": {"bbox": [1, 2, 3, 4]}}}}


def merge(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What Snakemake makes of two config files."""
    both = dict(base)
    for key, value in other.items():
        both[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return both


def read(*names: str) -> Config:
    values: dict[str, Any] = {}
    for name in names:
        values = merge(values, yaml.safe_load((ROOT / name).read_text()))
    return load_config(values, where=" + ".join(names))


@pytest.mark.parametrize(
    "names",
    [
        ("config.yaml",),
        ("config.yaml", "recipes/long.yaml"),
        ("config.yaml", "recipes/ablations.yaml"),
        ("config.yaml", "recipes/quality.yaml"),
        ("recipes/earth-search.yaml",),
        ("recipes/planetary-computer.yaml",),
        ("recipes/cdse.yaml",),
        ("recipes/gaofen.yaml",),
        ("recipes/gaofen-demo.yaml",),
        ("recipes/pansharpening.yaml",),
        ("recipes/pansharpening-gaofen.yaml",),
        ("recipes/spatiotemporal-fusion.yaml",),
        ("recipes/landsat-modis.yaml",),
        ("recipes/snapshot-reconstruction.yaml",),
        ("recipes/sen12mscr.yaml",),
        ("recipes/sen12mscr.yaml", "recipes/overfit.yaml"),
    ],
)
def test_every_shipped_file_is_valid(names: tuple[str, ...]) -> None:
    config = read(*names)
    assert all(config.model.run_settings(run) for run in config.model.runs)


def test_every_recipe_is_tried_above() -> None:
    overlays = {"ablations.yaml", "long.yaml", "quality.yaml", "overfit.yaml"}
    whole = {
        "earth-search.yaml",
        "planetary-computer.yaml",
        "cdse.yaml",
        "gaofen.yaml",
        "gaofen-demo.yaml",
        "sen12mscr.yaml",
        "pansharpening.yaml",
        "pansharpening-gaofen.yaml",
        "spatiotemporal-fusion.yaml",
        "landsat-modis.yaml",
        "snapshot-reconstruction.yaml",
    }
    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} == whole | overlays


@pytest.mark.parametrize("recipe", ["recipes/gaofen-demo.yaml", "recipes/pansharpening-gaofen.yaml"])
def test_demos_of_gaofen_work_on_the_world_that_they_make(recipe: str) -> None:
    text = yaml.safe_load((ROOT / recipe).read_text())
    pipeline = read(recipe).pipeline
    assert pipeline.simulate is not None
    world = f"{text['pathvars']['results']}/simulate"
    assert (pipeline.query.catalogue, pipeline.query.dem_catalogue) == (f"{world}/products", world)
    assert pipeline.simulate.areas.keys() == pipeline.query.areas.keys()
    block_m = pipeline.query.resolution_m * (pipeline.patch.size_px * pipeline.patch.block_patches + pipeline.patch.buffer_px)
    for name, area in pipeline.simulate.areas.items():
        side_m = 10 * area.size_px
        assert pipeline.query.areas[name].bounds_m == (area.west_m, area.south_m, area.west_m + side_m, area.south_m + side_m)
        assert [place % block_m for place in (area.west_m, area.south_m, side_m)] == [0, 0, 0]


def test_the_demo_of_gaofen_searches_as_far_as_its_products_err() -> None:
    pipeline = read("recipes/gaofen-demo.yaml").pipeline
    assert pipeline.simulate is not None
    reach_px = 2 * pipeline.simulate.rpc_error_m[1] / pipeline.query.resolution_m
    assert pipeline.ingest.margin_px >= reach_px
    assert pipeline.align.search_m * 0.8 >= 2 * pipeline.simulate.rpc_error_m[1]


SHARED = [
    "model/train.py",
    "model/run.py",
    "model/schedule.py",
    "model/data.py",
    "model/ranks.py",
    "model/monitor.py",
    "model/validation.py",
    "model/batches.py",
    "model/apertures.py",
]
READERS = {
    TrainSettings: SHARED,
    ApertureSettings: ["model/apertures.py"],
    Pattern: ["model/apertures.py", "model/measurements.py"],
    LossSettings: [*SHARED, "model/losses.py", "model/lessons.py", "model/weighting.py"],
    SarRange: ["model/batches.py"],
    AdversarialSettings: ["model/adversarial.py", "model/train.py", "model/run.py"],
    AfsstSettings: ["model/networks/afsst.py", "model/networks/clearing.py", "model/tasks.py"],
    S2TransformerSettings: ["model/networks/s2transformer.py", "model/networks/clearing.py", "model/tasks.py"],
    UnetSettings: ["model/networks/unet.py", "model/networks/clearing.py", "model/tasks.py"],
    SfiinSettings: ["model/networks/sfiin.py", "model/tasks.py"],
    CustomSettings: ["model/networks/custom.py", "model/tasks.py", "model/config.py"],
    StfganSettings: ["model/networks/stfgan.py", "model/tasks.py"],
    StfnetSettings: ["model/networks/stfnet.py", "model/lessons.py", "model/tasks.py"],
    S2SnapshotSettings: ["model/networks/s2transformer.py", "model/batches.py", "model/lessons.py", "model/tasks.py"],
}
"""The files in which the settings of each section have their effect."""
DERIVED = {AfsstSettings: {"size": "channels", "width": "channels", "blocks": "depth"}, CustomSettings: {"source": "file"}}
"""Settings that are read through a property."""


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.__name__)
def test_no_setting_of_training_is_dead(kind: type[BaseModel]) -> None:
    trees = [ast.parse((ROOT / name).read_text()) for name in READERS[kind]]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {term.part for term in TERMS.values()} if kind is LossSettings else set()
    wanted = {DERIVED.get(kind, {}).get(name, name) for name in kind.model_fields}
    assert wanted <= read, wanted - read


def test_the_longer_recipe_leaves_the_data_as_they_are() -> None:
    assert read("config.yaml", "recipes/long.yaml").pipeline == read("config.yaml").pipeline


def test_a_run_differs_from_the_base_only_where_it_says() -> None:
    runs = {"base": {}, "bare": {"network": {"use_sar": False}, "lr": 0.5}}
    config = load_config({"pipeline": AREA, "model": {"runs": runs, "train": {"network": {"width": 48, "head_dim": 16}}}})
    bare = config.model.run_settings("bare")
    assert (bare.lr, bare.network.use_sar, bare.network.width) == (0.5, False, 48)
    assert config.model.run_settings("base") == config.model.train


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"train": {"network": {"width": 24, "head_dim": 16}}}, "'head_dim' 16 does not divide 'width' 24"),
        ({"predict": {"tile_px": 64, "overlap_px": 40}}, "'overlap_px' may be at most half of 'tile_px'"),
        ({"train": {"sar_range": {"vh_db": [0, -25]}}}, "'vh_db' must be two rising values in dB, not 0.0 and -25.0"),
        ({"runs": {}}, "'runs' is empty"),
        ({"runs": {"a": {"lr": "fast"}}}, "model.runs.a: 'lr'"),
        ({"evaluate": {"split": "tset"}}, "'model.evaluate.split'"),
    ],
)
def test_a_contradiction_is_named(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"pipeline": AREA, "model": model})
    assert words in str(error.value)


def test_a_run_with_another_network_starts_from_that_networks_defaults() -> None:
    train = {"network": {"width": 64, "blocks": 1}}
    config = load_config({"pipeline": AREA, "model": {"train": train, "runs": {"unet": {"network": {"name": "unet", "levels": 2}}}}})
    assert config.model.run_settings("unet").network == UnetSettings(name="unet", levels=2)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"loss": {"temporal": 1}}, "it needs a network for cloud removal with 'base: dates'"),
        ({"loss": {"temporal": 1}, "network": {"name": "stfnet"}}, "it needs a network for cloud removal with 'base: dates'"),
        (
            {"loss": {"temporal": 1, "stages": 1}, "network": {"name": "s2transformer", "base": "dates", "pins": True}},
            "'loss.stages' and 'loss.temporal' ask for different answers",
        ),
        ({"network": {"widht": 8}}, "unknown key 'model.train.network.widht', did you mean 'width'?"),
        ({"network": {"name": "s2transformer", "stagse": 8}}, "unknown key 'model.train.network.stagse', did you mean 'stages'?"),
        ({"network": {"name": "nonesuch"}}, "'name' must be afsst, s2transformer, unet, custom, sfiin, stfgan, stfnet or s2snapshot"),
        ({"network": {"name": "custom", "source": "net.py"}}, "'model.train.network.source'"),
        ({"batch_size": 6, "accumulate": 2, "processes": 2}, "'batch_size' 6 cannot be shared evenly among 2 'processes' times 2"),
        ({"loss": {"pixel": 0, "spatial": 0, "spectral": 0}}, "every part of the loss has weight zero"),
        ({"ema": 1.0}, "'model.train.ema'"),
        ({"betas": [0.9, 1.0]}, "'model.train.betas.1'"),
        ({"lr": float("inf")}, "'model.train.lr'"),
    ],
)
def test_a_faulty_network_or_loss_is_named_where_it_stands(train: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"pipeline": AREA, "model": {"train": train}})
    assert words in str(error.value)


def test_a_run_whose_network_does_not_serve_the_task_of_the_data_is_refused_before_any_work() -> None:
    with pytest.raises(
        ConfigError, match=r"'model\.runs\.afsst': network 'afsst' does not serve the task 'pansharpening'; allowed are cloud-rem"
    ):
        load_config({"pipeline": AREA | {"task": "pansharpening"}})
    sharpening = {"train": {"network": {"name": "sfiin"}}, "runs": {"sfiin": {}, "plain": {"network": {"spatial": "convolution"}}}}
    config = load_config({"pipeline": AREA | {"task": "pansharpening"}, "model": sharpening})
    assert config.model.run_settings("plain").network.spatial == "convolution"


@pytest.mark.parametrize(
    ("query", "stages", "ratio"),
    [
        ({}, 1, 16),
        ({}, 2, None),
        ({"coarse_m": 160}, 2, None),
        ({"coarse_m": 40}, 2, 4),
        ({"coarse_m": 40}, 1, None),
        ({"coarse_m": 480, "resolution_m": 60}, 2, 8),
        ({"coarse_collections": ["modis-09A1-061"], "resolution_m": 60}, 2, None),  # the pixel of the product decides
        ({"source": "lock", "coarse_m": 480}, 1, None),
    ],
)
def test_stages_that_do_not_lead_to_the_fine_pixels_are_refused_before_any_work(
    query: dict[str, Any], stages: int, ratio: int | None
) -> None:
    values = {
        "pipeline": {"task": "spatiotemporal-fusion", "query": AREA["query"] | query},
        "model": {"train": {"network": {"name": "stfgan", "stages": stages}}, "runs": {"gan": {}}},
    }
    if ratio is None:
        load_config(values)
        return
    with pytest.raises(
        ConfigError, match=rf"'model\.runs\.gan': network 'stfgan' .* {4**stages} times as small, but .* ratio is {ratio}: set"
    ):
        load_config(values)


def test_a_network_of_a_paper_has_its_usual_loss_unless_another_is_given() -> None:
    usual = load_settings(TrainSettings, {"network": {"name": "sfiin"}, "loss": {"phase": 0.3}}, where="train").loss
    assert (usual.pixel, usual.amplitude, usual.phase, usual.spatial, usual.spectral) == (1, 0.1, 0.3, 0, 0)
    runs = {"runs": {"sfiin": {"network": {"name": "sfiin"}}}}
    task = AREA | {"task": "pansharpening"}
    assert load_config({"pipeline": task, "model": runs}).model.run_settings("sfiin").loss.amplitude == 0.1
    given = {"train": {"loss": {"sam": 0.5}}, **runs}
    chosen = load_config({"pipeline": task, "model": given}).model.run_settings("sfiin").loss
    assert (chosen.sam, chosen.amplitude, chosen.spatial) == (0.5, 0, 0.2), "what all runs were given counts for this one as well"
    assert TrainSettings().loss == LossSettings()


def test_a_network_that_looks_at_dates_is_refused_before_anything_is_made_without_them() -> None:
    model = {"runs": {"dated": {"network": {"base": "dates"}}, "plain": {}}}
    with pytest.raises(ConfigError, match=r"'model\.runs\.dated': its network looks at clear images .*'pipeline\.query\.series' to true"):
        load_config({"pipeline": AREA, "model": model})
    with_series = {"query": {**AREA["query"], "series": True}}
    assert load_config({"pipeline": with_series, "model": model}).pipeline.query.series


def test_what_a_series_adds_is_not_in_the_settings_of_a_run_without_one() -> None:
    plain = TrainSettings.model_validate({"network": {"name": "custom", "source": "a.py:make"}})
    assert "temporal" not in plain.to_json()
    assert "use_series" not in plain.to_json()
    series = TrainSettings.model_validate({"network": {"base": "dates"}, "loss": {"temporal": 0.5}})
    assert TrainSettings.model_validate_json(series.to_json()) == series
    assert '"temporal":0.5' in series.to_json()
    assert [needs_series(one.network) for one in (plain, series, TrainSettings())] == [False, True, False]
    assert needs_series(CustomSettings(name="custom", source="a.py:make", use_series=True))
