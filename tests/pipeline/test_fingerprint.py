"""The code fingerprint follows imports and ignores what cannot change a result."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sereno.pipeline.fingerprint import fingerprint, imported_modules, source_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    for package in ("pipeline", "model"):
        shutil.copytree(ROOT / package, tmp_path / "sereno" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def measure(installed: Path, module: str) -> str:
    code = f"from sereno.pipeline.fingerprint import fingerprint; print(fingerprint({module!r}))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_change_in_an_imported_module_changes_the_fingerprint(installed: Path) -> None:
    before = measure(installed, "sereno.pipeline.mask"), measure(installed, "sereno.pipeline.ingest")
    clouds = installed / "sereno/pipeline/clouds.py"
    clouds.write_text(clouds.read_text() + "\nEDITED = 1\n")
    after = measure(installed, "sereno.pipeline.mask"), measure(installed, "sereno.pipeline.ingest")
    assert before[0] != after[0]
    assert before[1] == after[1], "ingest does not import clouds"


def test_comments_docstrings_and_settings_classes_do_not_count(installed: Path) -> None:
    before = measure(installed, "sereno.pipeline.mask")
    clouds = installed / "sereno/pipeline/clouds.py"
    clouds.write_text("# remark\n" + clouds.read_text().replace('"""', '"""Other words. ', 1))
    settings = installed / "sereno/pipeline/config.py"
    settings.write_text(settings.read_text() + "\nEDITED = 1\n")
    assert measure(installed, "sereno.pipeline.mask") == before


def test_how_training_is_shown_does_not_count(installed: Path) -> None:
    before = measure(installed, "sereno.model.train"), measure(installed, "sereno.model.report")
    for name in ("monitor", "pictures"):
        file = installed / f"sereno/model/{name}.py"
        file.write_text(file.read_text() + "\nEDITED = 1\n")
    after = measure(installed, "sereno.model.train"), measure(installed, "sereno.model.report")
    assert before[0] == after[0]
    assert before[1] != after[1], "the report shows pictures"


def test_imports_inside_functions_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def read():\n    from sereno.pipeline import store\n    import sereno.pipeline.scene\n    import os\n")
    assert imported_modules(file) == {"sereno.pipeline", "sereno.pipeline.store", "sereno.pipeline.scene"}


def test_names_that_are_no_modules_have_no_source() -> None:
    assert source_of("sereno.pipeline.store.StoreError") is None
    assert source_of("os.path") is None
    assert source_of("sereno.pipeline.store") == ROOT / "pipeline/store.py"


def test_the_fingerprint_is_stable_within_a_checkout() -> None:
    assert fingerprint("sereno.pipeline.store") == fingerprint("sereno.pipeline.store")
    assert len(fingerprint("sereno.pipeline.store")) == 16
