"""The shape of the house: who may import whom, the file map, and one word per step in seven places."""

import ast
import re
from pathlib import Path

import pytest

from sereno.model.config import ModelSettings
from sereno.pipeline.config import PipelineSettings
from sereno.pipeline.fingerprint import imported_modules, source_of

ROOT = Path(__file__).parent.parent
DATA_VERBS = ("simulate", "query", "dem", "ingest", "align", "mask", "patch", "pack")
MODEL_VERBS = ("train", "evaluate", "predict", "report")
PIPELINE_LANES = (
    {"errors", "fingerprint"},
    {"arrays", "averages"},
    {"config"},
    {"bands", "http"},
    {"pairs", "patches", "layouts"},
    {"presets", "signing", "areas", "polygons", "mgrs", "imagers", "items", "scheduler"},
    {"scene"},
    {"samples"},
    {"statistics"},
    {"store"},
    {"groups"},
    {"ledger", "outcomes", "comparison", "safe", "archives", "rpc", "sun"},
    {
        "radiometry",
        "offset",
        "geometry",
        "descriptors",
        "shiftfield",
        "matching",
        "registration",
        "clouds",
        "splits",
        "datacard",
        "acquisitions",
        "pairing",
        "table",
        "search",
        "server",
        "noise",
        "speckle",
    },
    {"catalogue", "detectors", "mosaic", "estimate", "probes", "plates", "advice", "grouping", "material"},
    {"clearing_samples", "cube_samples", "fusion_samples", "sharpening_samples"},
    {"ground", "atmosphere", "elevation", "views"},
    {"radar", "stac", "world", "overlay", "skies", "overflights", "twins"},
    {"sensors"},
    {"cover", "products", "scouting"},
    set(DATA_VERBS),
    {"__main__"},
)
MODEL_LANES = (
    {"config"},
    {"flow"},
    {"metrics", "layers", "pictures", "results", "faults", "sharpening", "indices", "temporal", "fusion", "snapshot", "images"},
    {"attention", "frequency", "page", "apertures", "colours"},
    {"gallery", "accounts", "alignment", "holdout", "curves", "verdicts"},
    {"findings", "shifts", "refusals", "members"},
    {"clearing", "predicted"},
    {"networks"},
    {"weighting"},
    {"losses", "adversarial"},
    {"batches"},
    {"scoring", "lessons", "strips"},
    {"tasks"},
    {"data", "schedule", "ranks"},
    {"checkpoint", "monitor", "run"},
    {"measurements"},
    {"validation", "making"},
    {"examples"},
    set(MODEL_VERBS),
    {"__main__"},
)
CONTRACTS = {"arrays", "errors", "config", "bands", "pairs", "patches", "scene", "samples", "store", "groups", "ledger"}
"""What the model may know of the pipeline; `flow` also uses what the Snakefile needs, `train` asks whether a saved state is of this code,
`__main__` joins the command lines."""
EXCEPTIONS = {"flow": {"fingerprint", "layouts"}, "train": {"fingerprint"}, "__main__": {"__main__"}}


def room(module: str) -> str:
    """The first part of a module's name inside its package."""
    return module.split(".")[2] if module.count(".") > 1 else "__init__"


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def lane_of(lanes: tuple[set[str], ...], name: str) -> int:
    for number, lane in enumerate(lanes):
        if name in lane:
            return number
    pytest.fail(f"{name} has no lane: give it one in tests/test_architecture.py and a line in the README's file map")


@pytest.mark.parametrize(("package", "lanes"), [("pipeline", PIPELINE_LANES), ("model", MODEL_LANES)])
def test_imports_run_one_way(package: str, lanes: tuple[set[str], ...]) -> None:
    for path in modules(package):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in imported_modules(path):
            target = room(module)
            if module.startswith(f"sereno.{package}.") and target not in {"__init__", own}:
                assert lane_of(lanes, target) <= lane_of(lanes, own), f"{path} imports {module}: against the lanes"
                both_verbs = {own, target} <= {*DATA_VERBS, *MODEL_VERBS}
                assert not both_verbs, f"{path} imports {module}: verbs meet only through files"


def test_the_pipeline_never_imports_the_model() -> None:
    for path in modules("pipeline"):
        assert not [module for module in imported_modules(path) if module.startswith("sereno.model")], path


def test_the_model_knows_only_the_contracts_of_the_pipeline() -> None:
    for path in modules("model"):
        allowed = CONTRACTS | EXCEPTIONS.get(path.stem, set())
        used = {room(module) for module in imported_modules(path) if module.startswith("sereno.pipeline.")}
        assert used <= allowed, f"{path} uses {used - allowed}"


@pytest.mark.parametrize("module", ["sereno.model.flow", "sereno.pipeline.config", "sereno.pipeline.pairs", "sereno.pipeline.layouts"])
def test_what_the_snakefile_imports_is_light(module: str) -> None:
    heavy = {"torch", "rasterio", "xarray", "zarr", "numpy", "odc", "dask", "matplotlib"}
    path = source_of(module)
    assert path is not None
    for node in ast.parse(path.read_text()).body:  # only the top level: what is imported inside functions costs nothing here
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & heavy, f"{path} imports {names}"


@pytest.mark.parametrize("verb", [*DATA_VERBS, *MODEL_VERBS])
def test_one_word_in_seven_places(verb: str) -> None:
    package, settings = ("pipeline", PipelineSettings) if verb in DATA_VERBS else ("model", ModelSettings)
    snakefile = (ROOT / "Snakefile").read_text()
    assert re.search(rf"^\s*rule {verb}:", snakefile, flags=re.MULTILINE), "rule"
    assert (ROOT / package / f"{verb}.py").is_file(), "file"
    assert verb in settings.model_fields, "config section"
    assert f"{verb.capitalize()}Settings" in str(settings.model_fields[verb].annotation), "settings class"
    commands = (ROOT / package / "__main__.py").read_text()
    assert f"def {verb}(" in commands, "sub-command"
    assert f"<results>/{verb}/" in snakefile, "results folder"
    assert (ROOT / "tests" / package / f"test_{verb}.py").is_file(), "tests"


def test_the_file_map_in_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("## File map") :].split("\n## ")[0]
    present = {str(path.relative_to(ROOT)) for package in ("pipeline", "model") for path in modules(package)}
    present -= {path for path in present if path.endswith("__init__.py") and "networks" not in path}
    present |= {
        str(path.relative_to(ROOT)) for folder in ("recipes", "benchmarks", "benchmarks/results") for path in (ROOT / folder).glob("*.*")
    }
    named = set(re.findall(r"`((?:pipeline|model|recipes|benchmarks)/[\w./-]+\.\w+)`", block))
    assert named == present, f"missing in the map: {sorted(present - named)}; no longer there: {sorted(named - present)}"


def test_every_module_has_a_test_file() -> None:
    without = {"__main__", "__init__"}
    for package in ("pipeline", "model"):
        for path in modules(package):
            if path.stem not in without:
                place = ROOT / "tests" / package / path.relative_to(ROOT / package).parent / f"test_{path.stem}.py"
                assert place.is_file(), f"{path} has no {place}"


def test_nothing_configures_tools_but_pyproject() -> None:
    for name in ("setup.cfg", "tox.ini", "pytest.ini", "mypy.ini", "ruff.toml", ".flake8"):
        assert not (ROOT / name).exists(), name


def test_no_command_in_words_for_users_lets_configfile_swallow_a_target() -> None:
    """`--configfile` takes every word up to the next option: a target has to stand before it."""
    texts = [(ROOT / "README.md").read_text(), *(path.read_text() for path in (ROOT / "recipes").glob("*.yaml"))]
    given = [match for text in texts for match in re.findall(r"snakemake [^\n`]*?--configfile((?: [\w./-]+)+)", text)]
    words = [word for words in given for word in re.split(" -", words)[0].split()]
    assert len(words) > 8
    assert [word for word in words if not word.endswith(".yaml")] == []
