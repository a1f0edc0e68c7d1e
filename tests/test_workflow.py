"""What Snakemake plans after a change, with every verb replaced by a stand-in that only writes its outputs."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL_RULES = {"train_run", "evaluate_run", "predict_pair", "write_report"}

STAND_IN = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
verb, *arguments = sys.argv[1:]
time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
options, places, skip = {{}}, [], False
for index, word in enumerate(arguments):
    if skip:
        skip = False
    elif word.startswith("--"):
        options[word], skip = arguments[index + 1], True
    else:
        places.append(word)
output = Path(places[-1])
text = verb
if verb == "query":
    scenes = {{}}
    for name, sensor in (("s1", "sentinel1-rtc"), ("cloudy", "sentinel2-l2a"), ("clear", "sentinel2-l2a")):
        seen = dict(sensor=sensor, time="2021-06-01T00:00:00Z")
        item = dict(item=name, collection="c", crs="EPSG:32632", bbox=[0, 0, 1, 1], assets={{}}, **seen)
        scenes[name] = dict(id=name, items=[item], **seen)
    pair = dict(id="p1", sar="s1", cloudy="cloudy", clear="clear", sar_gap_days=0, clear_gap_days=1)
    grid = dict(crs="EPSG:32632", transform=[10, 0, 0, 0, -10, 0], shape=[1, 1])
    lock = dict(format="sereno-lock/2", area=options["--area"], catalogue="x", grid=grid, scenes=scenes, pairs=[pair], refused=[])
    settings = json.loads(options["--settings"])
    if settings["dem_catalogue"]:
        item = dict(item, item="d", sensor="dem")
        lock["dem"] = dict(id="dem", sensor="dem", time=item["time"], items=[item])
        lock["scenes"]["s1"]["sensor"] = "sentinel1-grd"
    frozen = Path(settings["catalogue"], options["--area"] + ".json")
    text = frozen.read_text() if settings["source"] == "lock" else json.dumps(lock)
elif verb in ("ingest", "align"):
    refused = "only 3 windows" if output.stem in os.environ.get("GIVE_UP", "").split() else None
    facts = dict(refused=refused, warnings=["no height on half of the ground"] if "LOSE" in os.environ else [])
    kind = dict(ingest="scene", align="pair")[verb]
    text = json.dumps(dict(format="sereno-store/1", kind=kind, store="", files={{}}, summary=facts))
ledger = [output.stem + ".ledger.csv"]
names = {{"query": ledger, "dem": [*ledger, output.stem + ".tif"], "ingest": ledger, "train": ["history.csv"],
         "evaluate": ["summary.json", "examples.npz"], "predict": [output.with_suffix(".json").name]}}
for path in (output, *(output.with_name(name) for name in names.get(verb, []))):
    loss = f"{{verb}},west,cloudy,i,B02,missing,HTTP 404,0,0,0\\n" if verb == "ingest" and "LOSE" in os.environ else ""
    head = "step,area,scene,item,asset,status,reason,retries,bytes_read,seconds\\n"
    path.write_text(head + loss if path.name.endswith(".ledger.csv") else text)
with Path("commands.txt").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""


def to_environment(project: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{project / 'bin'}:{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        "PYTHONPATH": str(project / "installed"),
        "XDG_CACHE_HOME": str(project / "cache"),
    }


def snakemake(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=project, env=to_environment(project), capture_output=True, text=True, check=False, timeout=300)


def planned(project: Path, *arguments: str) -> dict[str, int]:
    """Rules that a dry run would execute, with the number of jobs of each."""
    run = snakemake(project, "-n", *arguments)
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    if "Nothing to be done" in text:
        return {}
    table = text[text.index("Job stats:") :].split("\n\n")[0]
    counts = dict(re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE))
    targets = {
        "total",
        "all",
        "simulate",
        "query",
        "dem",
        "ingest",
        "align",
        "mask",
        "patch",
        "pack",
        "train",
        "evaluate",
        "predict",
        "report",
    }
    return {rule: int(count) for rule, count in counts.items() if rule not in targets}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project on which the whole flow has run with stand-in verbs."""
    project = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "config.yaml", "environment.yaml", "README.md"):
        shutil.copy(ROOT / name, project / name)
    shutil.copytree(ROOT / "profiles", project / "profiles")
    for package in ("pipeline", "model"):
        shutil.copytree(ROOT / package, project / "installed/sereno" / package, ignore=shutil.ignore_patterns("__pycache__"))
    stand_in = project / "bin/sereno"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IEXEC)
    run = snakemake(project)
    assert run.returncode == 0, run.stderr
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "project"
    shutil.copytree(finished, copy, symlinks=True)  # copy2 keeps modification times, so nothing looks newer
    return copy


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{old!r} is not in {file}"
    file.write_text(text.replace(old, new, 1))


@pytest.mark.flow
def test_a_finished_flow_has_nothing_to_do(project: Path) -> None:
    assert planned(project) == {}
    assert planned(project, "train") == {}


@pytest.mark.flow
def test_a_new_learning_rate_reruns_the_model_steps_and_no_data_step(project: Path) -> None:
    edit(project / "config.yaml", "    steps: 600", "    steps: 600\n    lr: 0.0123")
    assert planned(project) == {"train_run": 1, "evaluate_run": 1, "predict_pair": 2, "write_report": 1}
    assert planned(project, "train") == {"train_run": 1}


HOW_TO_RUN = "    max_requests: 77\n  ingest: {readers: 3, attempts: 2, scheduler: 'tcp://here:8786'}\nmodel:"


@pytest.mark.flow
def test_how_to_run_reruns_nothing_and_reaches_the_commands(project: Path) -> None:
    edit(project / "config.yaml", "model:", HOW_TO_RUN)
    assert planned(project) == {}
    (project / "commands.txt").unlink()
    run = snakemake(project, "ingest", "--forcerun", "query_area", "ingest_scene")
    assert run.returncode == 0, run.stderr
    commands = (project / "commands.txt").read_text().splitlines()
    searched, read = ([line for line in commands if line.startswith(verb)] for verb in ("query", "ingest"))
    assert all(line.endswith("--max-requests 77 --tries 3") for line in searched)
    assert all(line.endswith("--readers 3 --attempts 2 --scheduler tcp://here:8786 --tries 3") for line in read)
    assert (len(searched), len(read)) == (2, 6)
    edit(project / "config.yaml", "readers: 3", "bands: [B02, B03], readers: 3")
    assert planned(project, "ingest") == {"ingest_scene": 6}


@pytest.mark.flow
def test_elevation_models_are_joined_for_the_scenes_that_need_them(project: Path) -> None:
    edit(project / "config.yaml", "    catalogue: results/simulate", "    catalogue: results/simulate\n    dem_catalogue: results/simulate")
    (project / "commands.txt").unlink()
    run = snakemake(project, "ingest")
    assert run.returncode == 0, run.stderr
    commands = (project / "commands.txt").read_text().splitlines()
    assert all(" --dem-margin 2000.0 " in line for line in commands if line.startswith("query"))
    joined = [line for line in commands if line.startswith("dem results/query/west.json results/dem/west.json ")]
    assert len(joined) == 1
    assert joined[0].endswith("--attempts 4 --tries 3")
    assert [line.split()[2] for line in commands if " --dem results/dem/west.tif " in line] == ["s1"], "only SAR is placed by heights"
    assert planned(project, "ingest", "dem") == {}
    edit(project / "config.yaml", "model:", "  dem: {attempts: 9}\nmodel:")
    assert planned(project, "ingest") == {}
    edit(project / "config.yaml", "  dem: {attempts: 9}", "  dem: {pixel_m: 10}")
    assert planned(project, "dem") == {"dem_area": 2}
    assert {"dem_area", "ingest_scene"} <= set(planned(project))
    run = snakemake(project, "ingest")
    assert run.returncode == 0, run.stderr
    lines = (project / "commands.txt").read_text().splitlines()[len(commands) :]
    assert sorted(line.split()[0] for line in lines) == ["dem", "dem", "ingest", "ingest"], "optical scenes do not wait for heights"


@pytest.mark.flow
def test_a_misspelt_scheduler_stops_the_parse(project: Path) -> None:
    edit(project / "config.yaml", "model:", "  ingest: {scheduler: thread}\nmodel:")
    words = to_words(snakemake(project))
    assert "pipeline.ingest.scheduler: seen 'thread'" in words
    assert "did you mean 'threads'?" in words
    assert (project / "results/ingest/west/s1.json").is_file()


@pytest.mark.flow
def test_a_failed_job_is_not_run_again_by_the_workflow(project: Path) -> None:
    (project / "commands.txt").unlink()
    stand_in = project / "bin/sereno"
    stand_in.write_text(stand_in.read_text() + "sys.exit(2 if verb == 'ingest' else 0)\n")
    (project / "results/ingest/west/s1.json").unlink()
    assert snakemake(project, "ingest").returncode != 0
    assert len((project / "commands.txt").read_text().splitlines()) == 1


@pytest.mark.flow
def test_losses_are_told_at_the_end_with_what_helps(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSE", "1")
    for scene in ("cloudy", "clear"):
        (project / f"results/ingest/west/{scene}.json").unlink()
    run = snakemake(project, "ingest")
    assert run.returncode == 0, run.stderr
    words = run.stdout + run.stderr
    assert "2 assets of 1 scene could not be read whole: `sereno ledger results` gives the reasons" in words
    assert "delete results/ingest/AREA/SCENE.json and give the same command again" in words


def to_words(run: subprocess.CompletedProcess[str]) -> str:
    """What a run that stops says, which is no traceback and names no line of the package."""
    text = run.stdout + run.stderr
    assert run.returncode != 0, text
    assert "Traceback" not in text, text
    assert "installed/sereno" not in text, text
    return text


@pytest.mark.flow
def test_a_place_that_cannot_be_written_and_a_folder_without_locks_are_named_without_a_traceback(project: Path) -> None:
    plain = (project / "config.yaml").read_text()
    edit(project / "config.yaml", "pipeline:", "pathvars:\n  results: /proc/nowhere\npipeline:")
    assert "folder /proc/nowhere, for results, cannot be written" in to_words(snakemake(project, "query"))
    (project / "config.yaml").write_text(plain)
    edit(project / "config.yaml", "    catalogue: results/simulate", "    source: lock\n    catalogue: unknown")
    assert "there is no lock (AREA.json) in folder unknown" in to_words(snakemake(project))


@pytest.mark.flow
def test_a_new_patch_size_reruns_from_patch_on(project: Path) -> None:
    edit(project / "config.yaml", "model:", "  patch: {size_px: 128}\nmodel:")
    assert set(planned(project)) == {"patch_pair", "pack_patches"} | MODEL_RULES


@pytest.mark.flow
def test_an_edited_split_list_reruns_from_pack_on(project: Path) -> None:
    (project / "lists.json").write_text('{"train": ["west"], "val": [], "test": ["east"]}')
    edit(project / "config.yaml", "model:", "  pack: {split: {method: list, file: lists.json}}\nmodel:")
    run = snakemake(project)
    assert run.returncode == 0, run.stderr
    assert planned(project) == {}
    edit(project / "lists.json", "west", "east")
    assert set(planned(project)) == {"pack_patches"} | MODEL_RULES


@pytest.mark.flow
def test_touching_the_readme_reruns_nothing(project: Path) -> None:
    edit(project / "README.md", "sereno", "Sereno")
    assert planned(project) == {}


@pytest.mark.flow
def test_an_edit_in_the_model_reruns_no_data_step(project: Path) -> None:
    edit(project / "installed/sereno/model/losses.py", "\ndef ", "\nEDITED = 1\n\n\ndef ")
    assert set(planned(project)) == MODEL_RULES


@pytest.mark.flow
def test_an_edit_in_the_pipeline_reruns_from_that_step_on(project: Path) -> None:
    edit(project / "installed/sereno/pipeline/mask.py", "\ndef ", "\nEDITED = 1\n\n\ndef ")
    assert set(planned(project)) == {"mask_pair", "patch_pair", "pack_patches"} | MODEL_RULES


@pytest.mark.flow
def test_a_comment_or_docstring_reruns_nothing(project: Path) -> None:
    file = project / "installed/sereno/model/losses.py"
    file.write_text("# a remark\n" + file.read_text())
    edit(file, '"""', '"""Other words: ')
    assert planned(project) == {}


@pytest.mark.flow
@pytest.mark.parametrize("target", ["all", "pack", "train"])
def test_a_new_area_is_searched_and_the_others_stay_as_they_are(project: Path, target: str) -> None:
    edit(project / "config.yaml", "    start:", "      north: {bbox: [1, 2, 3, 4]}\n    start:")
    plan = planned(project, target)
    assert plan["query_area"] == 1
    assert not {"simulate_world", "ingest_scene", "align_pair"} & set(plan), "what the new area needs is known once the checkpoint has run"
    run = snakemake(project, target)
    assert run.returncode == 0, run.stderr
    assert (project / "results/patch/north/p1.json").is_file()
    executed = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", run.stdout + run.stderr)
    assert (executed.count("query_area"), executed.count("ingest_scene"), executed.count("pack_patches")) == (1, 3, 1)


@pytest.mark.flow
def test_a_new_pair_in_a_lock_is_worked_on(project: Path) -> None:
    lock = project / "results/query/west.json"
    content = json.loads(lock.read_text())
    content["pairs"].append(content["pairs"][0] | {"id": "p2"})
    lock.write_text(json.dumps(content))
    plan = planned(project)
    assert {rule: plan[rule] for rule in ("align_pair", "mask_pair", "patch_pair", "pack_patches")} == dict.fromkeys(
        ("align_pair", "mask_pair", "patch_pair", "pack_patches"), 1
    )


@pytest.mark.flow
def test_a_pair_that_is_given_up_is_not_cleared_but_the_next_one_in_a_fresh_run_and_in_the_next(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("align", "mask", "patch", "pack", "train", "evaluate", "predict", "report"):
        shutil.rmtree(project / "results" / step)
    lock = project / "results/query/west.json"
    content = json.loads(lock.read_text())
    content["pairs"].append(content["pairs"][0] | {"id": "p2"})
    lock.write_text(json.dumps(content))
    monkeypatch.setenv("GIVE_UP", "p1")
    run = snakemake(project)
    assert run.returncode == 0, run.stderr
    cleared = sorted((project / "results/predict").rglob("*.tif"))
    assert [path.relative_to(project / "results/predict/afsst").as_posix() for path in cleared] == ["west/p2.tif"]
    assert "2 of 3 pairs given up: `sereno ledger results` gives the reasons" in run.stdout + run.stderr
    assert planned(project) == {}
    for target, refused, chosen, search_m in (("all", "p2", "p1", 500), ("predict", "p1", "p2", 600)):
        monkeypatch.setenv("GIVE_UP", refused)
        (project / f"results/predict/afsst/west/{chosen}.tif").unlink(missing_ok=True)
        edit(project / "config.yaml", "model:", f"  align: {{search_m: {search_m}}}\nmodel:")
        run = snakemake(project, target)
        assert run.returncode == 0, run.stderr
        assert (project / f"results/predict/afsst/west/{chosen}.tif").is_file(), "the choice is made anew"
        edit(project / "config.yaml", f"  align: {{search_m: {search_m}}}\n", "")


@pytest.mark.flow
def test_a_misspelt_key_stops_the_parse_and_names_the_nearest(project: Path) -> None:
    edit(project / "config.yaml", "    steps: 600", "    stepps: 600")
    run = snakemake(project, "-n")
    assert run.returncode != 0
    line = next(line for line in (run.stdout + run.stderr).splitlines() if "stepps" in line)
    assert "Traceback" not in run.stdout + run.stderr
    assert "unknown key 'model.train.stepps', did you mean 'steps'?" in line


@pytest.mark.flow
def test_an_edited_lock_reruns_only_what_it_concerns(project: Path) -> None:
    lock = project / "results/query/west.json"
    content = json.loads(lock.read_text())
    content["scenes"]["s1"]["time"] = "2021-06-02T00:00:00Z"
    lock.write_text(json.dumps(content))
    assert planned(project, "ingest") == {"ingest_scene": 1}


@pytest.mark.flow
def test_a_changed_frozen_lock_reruns_what_it_concerns_and_needs_no_search(project: Path) -> None:
    shutil.copytree(project / "results/query", project / "locks")
    edit(project / "config.yaml", "    catalogue: results/simulate", "    source: lock\n    catalogue: locks\n    areas: {}")
    text = (project / "config.yaml").read_text()
    start = text.index("    areas:\n", text.index("  query:"))
    (project / "config.yaml").write_text(text[:start] + text[text.index("    start:", start) :])
    run = snakemake(project, "pack")
    assert run.returncode == 0, run.stderr
    executed = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", run.stdout + run.stderr)
    assert "ingest_scene" not in executed, "the locks name what they named before"
    assert planned(project, "pack") == {}
    lock = project / "locks/west.json"
    content = json.loads(lock.read_text())
    content["scenes"]["s1"]["items"][0]["assets"]["VV"] = {"href": "other.tif"}
    lock.write_text(json.dumps(content))
    run = snakemake(project, "pack")
    assert run.returncode == 0, run.stderr
    executed = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", run.stdout + run.stderr)
    counts = [executed.count(rule) for rule in ("query_area", "ingest_scene", "align_pair", "patch_pair", "pack_patches")]
    assert counts == [1, 1, 1, 1, 1], executed


@pytest.mark.flow
def test_a_dataset_made_elsewhere_can_be_trained_on(project: Path) -> None:
    for step in ("simulate", "query", "ingest", "align", "mask", "patch", "train"):
        shutil.rmtree(project / "results" / step)
    run = snakemake(project, "results/train/afsst/checkpoint.safetensors", "--allowed-rules", "train_run")
    assert run.returncode == 0, run.stderr
    assert re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", run.stdout + run.stderr) == ["train_run"]


@pytest.mark.flow
def test_a_run_of_several_processes_is_started_by_torchrun(project: Path) -> None:
    """On one machine with fewer GPUs than the run has processes, as the default profile says, it is not left waiting."""
    torchrun = project / "bin/torchrun"
    torchrun.write_text('#!/bin/sh\necho "$1 $2 $3 $4 $5" > started.txt\nshift 5\nexec sereno "$@"\n')
    torchrun.chmod(0o755)
    edit(project / "config.yaml", "    steps: 600", "    steps: 600\n    processes: 2")
    run = snakemake(project, "train")
    assert run.returncode == 0, run.stderr
    assert (project / "started.txt").read_text() == "--standalone --nproc-per-node 2 -m sereno.model\n"


RUNS = """
  runs:
    second: {start_from: results/train/first/checkpoint.safetensors}
    first: {}
    peer: {network: {name: custom, source: lib/peer.py:make}}
"""


@pytest.mark.flow
def test_runs_depend_on_the_checkpoint_they_start_from_and_on_the_file_of_their_network(project: Path) -> None:
    (project / "lib").mkdir()
    (project / "lib/peer.py").write_text("def make(): ...\n")
    (project / "config.yaml").write_text((project / "config.yaml").read_text().rstrip() + RUNS)
    assert planned(project, "results/train/second/checkpoint.safetensors") == {"train_run": 2}, "the other one first"
    run = snakemake(project, "evaluate")
    assert run.returncode == 0, run.stderr
    trained = re.findall(r"Finished jobid: (\d+) \(Rule: train_run\)", run.stdout + run.stderr)
    assert len(trained) == 3
    assert planned(project, "evaluate") == {}
    edit(project / "lib/peer.py", "make()", "make(**_)")
    assert planned(project, "evaluate") == {"train_run": 1, "evaluate_run": 1}
    assert planned(project, "--forcerun", "train_run", "--", "results/train/first/checkpoint.safetensors") == {"train_run": 1}


@pytest.mark.flow
def test_a_network_file_that_is_not_there_is_named(project: Path) -> None:
    (project / "config.yaml").write_text((project / "config.yaml").read_text().rstrip() + RUNS)
    run = snakemake(project, "-n", "train")
    assert run.returncode != 0
    assert "lib/peer.py" in run.stdout + run.stderr


@pytest.mark.flow
def test_a_second_run_in_the_same_results_is_refused_as_long_as_the_first_works(project: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--forcerun", "pack_patches", "write_report"]
    first = subprocess.Popen(command, cwd=project, env=to_environment(project) | {"STAND_IN_SECONDS": "8"}, stderr=subprocess.DEVNULL)
    running = project / "results/.running"
    while first.poll() is None and running.read_text() != str(first.pid):
        time.sleep(0.05)
    second = snakemake(project, "--forcerun", "write_report")
    assert first.poll() is None, "the first must still be at work"
    assert second.returncode != 0
    assert f"process {first.pid} is already at work in results" in second.stdout + second.stderr
    assert first.wait() == 0


@pytest.mark.flow
def test_results_may_lie_in_a_folder_with_a_space(project: Path) -> None:
    edit(project / "config.yaml", "pipeline:", "pathvars:\n  results: some place/results\npipeline:")
    run = snakemake(project)
    assert run.returncode == 0, run.stderr
    assert (project / "some place/results/report/index.html").is_file()
