"""The whole flow on a tiny world: undisturbed, killed again and again, and with faults planted."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio
import yaml
from rio_cogeo import cog_validate

pytestmark = pytest.mark.flow

ROOT = Path(__file__).parent.parent
SIDE_M = 4320.0
LEFT, BOTTOM = 498_400.0, 5_040_000.0
CONFIG = {
    "pathvars": {"results": "results"},
    "pipeline": {
        "simulate": {
            "seed": 3,
            "cloudy_dates": 2,
            "areas": {"tiny": {"epsg": 32632, "west_m": LEFT, "south_m": BOTTOM, "size_px": 432, "dialect": "earth-search"}},
        },
        "query": {
            "catalogue": "results/simulate",
            "areas": {"tiny": {"epsg": 32632, "bounds_m": [LEFT, BOTTOM, LEFT + SIDE_M, BOTTOM + SIDE_M]}},
        },
        "patch": {"size_px": 64, "buffer_px": 16},
        "pack": {"shard_patches": 8},
    },
    "model": {
        "train": {
            "network": {"width": 8, "head_dim": 8, "levels": 2, "blocks": 1},
            "steps": 40,
            "crop_px": 32,
            "warmup_steps": 4,
            "validate_every": 10,
            "save_every": 5,
        },
        "evaluate": {"examples": 2},
        "predict": {"tile_px": 64, "overlap_px": 16},
    },
}


GAOFEN_SIDE_M = 4320.0
GAOFEN_LEFT, GAOFEN_BOTTOM = 498_240.0, 5_040_000.0
GAOFEN = {
    "pathvars": {"results": "results"},
    "pipeline": {
        "simulate": {
            "seed": 6,
            "cloudy_dates": 1,
            "areas": {"tiny": {"epsg": 32632, "west_m": GAOFEN_LEFT, "south_m": GAOFEN_BOTTOM, "size_px": 432, "satellites": "gaofen-pms"}},
        },
        "query": {
            "source": "gaofen",
            "catalogue": "results/simulate/products",
            "dem_catalogue": "results/simulate",
            "areas": {
                "tiny": {
                    "epsg": 32632,
                    "bounds_m": [GAOFEN_LEFT, GAOFEN_BOTTOM, GAOFEN_LEFT + GAOFEN_SIDE_M, GAOFEN_BOTTOM + GAOFEN_SIDE_M],
                }
            },
            "resolution_m": 8,
            "polarisations": ["HH", "HV"],
        },
        "ingest": {"margin_px": 48, "check": "size"},
        "align": {"search_m": 300},
        "mask": {"method": "haze"},
        "patch": {"size_px": 64, "buffer_px": 52},
        "pack": {"shard_patches": 8},
    },
    "model": CONFIG["model"],
}
"""Products whose coefficients err by tens of metres, in three blocks of 1440 m along each side."""


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder / "cache")}


def command(*arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles/default"),
        "--configfile", "config.yaml", *arguments,
    ]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=900
    )


def sereno(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sereno", *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=300
    )


def prepare(folder: Path, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def kill_when(folder: Path, ready: Callable[[], bool]) -> bool:
    """Start the flow and kill the whole process group as soon as `ready`; False if it ended before."""
    with (folder / "output.txt").open("a") as output:
        flow = subprocess.Popen(command(), cwd=folder, env=environment(folder), start_new_session=True, stdout=output, stderr=output)
        deadline = time.monotonic() + 600
        while flow.poll() is None and time.monotonic() < deadline:
            if ready():
                os.killpg(flow.pid, signal.SIGKILL)
                flow.wait()
                return True
            time.sleep(0.005)
        flow.wait()
    return False


def digests(folder: Path, pattern: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "results").glob(pattern))
    }


def one_line(run: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed with one line of ours that holds all `words`, and no traceback."""
    assert run.returncode != 0
    text = run.stdout + run.stderr
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if re.search(r"sereno \w+: error: ", line)]
    assert len(lines) == 1, text
    assert not [word for word in words if word not in lines[0]], lines[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    done = run(folder)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


def test_the_flow_writes_a_report_without_outside_links(undisturbed: Path) -> None:
    page = (undisturbed / "results/report/index.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)


def test_the_predicted_scene_is_a_valid_cog_on_the_grid_of_its_pair(undisturbed: Path) -> None:
    images = sorted((undisturbed / "results/predict/afsst/tiny").glob("*.tif"))
    assert images
    for image in images:
        valid, errors, _ = cog_validate(image)
        assert valid, errors
        pair = json.loads((undisturbed / f"results/query/{image.parent.name}.json").read_text())
        with rasterio.open(image) as dataset:
            assert dataset.crs.to_string() == pair["grid"]["crs"]
            assert tuple(dataset.bounds) == (LEFT, BOTTOM, LEFT + SIDE_M, BOTTOM + SIDE_M)
            assert dataset.nodata == 65535
            assert dataset.descriptions[-1] == "provenance"
            assert set(dataset.read(dataset.count).ravel()) <= {0, 1, 2}


def test_no_job_leaves_a_temporary_file(undisturbed: Path) -> None:
    assert not list((undisturbed / "results").rglob("*.partial"))


def test_every_store_verifies(undisturbed: Path) -> None:
    manifests = [str(path) for step in ("ingest", "align", "mask", "patch") for path in undisturbed.glob(f"results/{step}/*/*.json")]
    done = sereno(undisturbed, "verify", *manifests, "results/pack/dataset.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("files as written") == len(manifests) + 1


@pytest.mark.parametrize("harm", ["deleted", "flipped"])
def test_verify_finds_a_harmed_shard(undisturbed: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(undisturbed / "results/pack", tmp_path / "pack")
    shard = next(path for path in sorted((tmp_path / "pack/dataset.zarr/train/cloudy").rglob("*")) if path.is_file() and "c" in path.parts)
    if harm == "deleted":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    one_line(sereno(tmp_path, "verify", "pack/dataset.json"), shard.name, "rebuild it with `snakemake pack`")


def test_a_scene_that_lost_a_band_costs_its_pair_and_nothing_else(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lossy"
    shutil.copytree(undisturbed, folder, symlinks=True)
    lock = json.loads((folder / "results/query/tiny.json").read_text())
    lost, other = lock["pairs"][0], lock["pairs"][1]
    [item] = lock["scenes"][lost["cloudy"]]["items"]
    (folder / "results/simulate" / item["assets"]["B04"]["href"]).unlink()
    done = run(folder, "--forcerun", f"results/ingest/tiny/{lost['cloudy']}.json")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    [left_out] = json.loads((folder / "results/pack/dataset.json").read_text())["summary"]["left_out"]
    assert (left_out["area"], left_out["pair"]) == ("tiny", lost["id"])
    assert "B04" in left_out["reason"]
    told = sereno(folder, "ledger", "results")
    assert any(line.startswith("missing: tiny") and "B04" in line for line in told.stdout.splitlines()), told.stdout
    page = (folder / "results/report/index.html").read_text()
    assert "Refused pairs" in page
    assert ">not used<" in page
    assert digests(folder, f"patch/tiny/{other['id']}.json") == digests(undisturbed, f"patch/tiny/{other['id']}.json")


def test_the_plan_of_a_run_bounds_what_it_reads_and_makes(undisturbed: Path) -> None:
    done = run(undisturbed, "--", "plan")
    assert done.returncode == 0, done.stderr
    told = next(line.split() for line in done.stdout.splitlines() if line.startswith("tiny"))
    counts = json.loads((undisturbed / "results/pack/dataset.json").read_text())["summary"]["counts"]
    lock = json.loads((undisturbed / "results/query/tiny.json").read_text())
    assert told[1] == str(len(lock["scenes"]))
    assert int(told[told.index("none") + 2]) >= sum(counts.values())


def test_the_same_lock_differs_in_nothing_and_an_edited_one_in_that(undisturbed: Path, tmp_path: Path) -> None:
    lock = undisturbed / "results/query/tiny.json"
    assert sereno(tmp_path, "diff", str(lock), str(lock)).returncode == 0
    content = json.loads(lock.read_text())
    gone = content["pairs"].pop()["id"]
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    done = sereno(tmp_path, "diff", str(lock), "tiny.json")
    assert (done.returncode, done.stdout) == (1, f"- pair {gone}\n1 x pair removed\n")


def test_killed_jobs_are_done_again_and_nothing_differs(undisturbed: Path, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "killed")
    results = folder / "results"
    moments: dict[str, Callable[[], bool]] = {
        "ingest": lambda: any(results.glob("ingest/tiny/.*.partial/data")),
        "pack": lambda: any(results.glob("pack/.dataset.zarr.partial")),
        "train": (results / "train/afsst/state.pt").exists,
    }
    for name, moment in moments.items():
        assert kill_when(folder, moment), f"{name} ended before it could be killed: {(folder / 'output.txt').read_text()[-3000:]}"
    done = run(folder)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for pattern in (
        "simulate/world.json",
        "query/*.json",
        "ingest/*/*.json",
        "align/*/*.json",
        "mask/*/*.json",
        "patch/*/*.json",
        "pack/*.json",
    ):
        assert digests(folder, pattern) == digests(undisturbed, pattern), pattern
    assert digests(folder, "train/*/history.csv") == digests(undisturbed, "train/*/history.csv")
    assert re.search(r"going on after step \d+", (results / "logs/train/afsst.log").read_text())


def test_a_second_run_in_the_same_results_is_refused(undisturbed: Path) -> None:
    import fcntl

    with (undisturbed / "results/.running").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = run(undisturbed, "--forcerun", "report")
    assert refused.returncode != 0
    assert "already at work in" in refused.stdout + refused.stderr


def test_an_empty_search_says_what_to_widen(undisturbed: Path, tmp_path: Path) -> None:
    settings = {**CONFIG["pipeline"]["query"], "start": "1999-01-01", "end": "1999-02-01"}  # type: ignore[dict-item]
    settings["catalogue"] = str(undisturbed / "results/simulate")
    failed = sereno(tmp_path, "query", "lock.json", "--area", "tiny", "--settings", json.dumps(settings))
    one_line(failed, "tiny")
    assert not (tmp_path / "lock.json").exists()


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    settings = {**CONFIG["pipeline"]["query"], "catalogue": "no/such/folder"}  # type: ignore[dict-item]
    one_line(sereno(tmp_path, "query", "lock.json", "--area", "tiny", "--settings", json.dumps(settings)), "no/such/folder")


def test_an_unfinished_store_is_not_read(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results/align/tiny", tmp_path / "align")
    pair = sorted((tmp_path / "align").glob("*.json"))[0]
    pair.unlink()
    one_line(sereno(tmp_path, "mask", str(pair), "mask.json"), pair.name)


def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path) -> None:
    one_line(sereno(tmp_path, "mask", "pair.json", "mask.json", "--settings", '{"dilate_px": "wide"}'), "dilate_px", "wide")


def test_a_full_disk_ends_in_one_line_and_keeps_the_old_result(undisturbed: Path, tmp_path: Path) -> None:
    pair = sorted((undisturbed / "results/align/tiny").glob("*.json"))[0]
    for name in (pair.name, pair.with_suffix(".zarr").name):
        source = undisturbed / "results/mask/tiny" / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    before = (tmp_path / pair.name).read_bytes()
    limited = f"ulimit -f 1; trap '' XFSZ; exec sereno mask '{pair}' {pair.name}"
    failed = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=120
    )
    one_line(failed, pair.with_suffix(".zarr").name, "run again")
    assert (tmp_path / pair.name).read_bytes() == before
    assert sereno(tmp_path, "verify", pair.name).returncode == 0


@pytest.fixture(scope="module")
def gaofen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from products of Gaofen to the report."""
    folder = prepare(tmp_path_factory.mktemp("flow") / "gaofen", GAOFEN)
    done = run(folder)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


def test_products_of_gaofen_are_cleared_on_the_grid_of_their_area(gaofen: Path) -> None:
    [image] = (gaofen / "results/predict/afsst/tiny").glob("*.tif")
    valid, errors, _ = cog_validate(image)
    assert valid, errors
    with rasterio.open(image) as dataset:
        assert (dataset.crs.to_epsg(), dataset.res, dataset.shape) == (32632, (8, 8), (540, 540))
        assert tuple(dataset.bounds)[:2] == (GAOFEN_LEFT, GAOFEN_BOTTOM)
        assert dataset.descriptions[:4] == ("B1", "B2", "B3", "B4")
        assert (dataset.read(dataset.count) > 0).mean() > 0.95


def test_errors_of_coefficients_of_tens_of_metres_are_taken_out(gaofen: Path) -> None:
    [area] = json.loads((gaofen / "results/simulate/world.json").read_text())["areas"].values()
    errors = {scene["item"]: scene["error_m"] for scene in (*area["optical"], *area["sar"])}
    lock = json.loads((gaofen / "results/query/tiny.json").read_text())
    [pair] = lock["pairs"]
    summary = json.loads((gaofen / f"results/align/tiny/{pair['id']}.json").read_text())["summary"]
    places = {role: errors[lock["scenes"][pair[role]]["items"][0]["item"]] for role in ("sar", "cloudy", "clear")}
    for role, name in (("sar", "registration"), ("cloudy", "registration_cloudy")):
        east, north = (there - here for there, here in zip(places[role], places["clear"], strict=True))
        true = (-north / 8, east / 8)
        assert math.hypot(*true) > 2, role
        assert summary[name]["verdict"] == "applied", (role, summary[name]["reason"])
        assert math.dist(true, (summary[name]["dy_px"], summary[name]["dx_px"])) < 0.5, role


def test_the_report_states_the_errors_before_and_after_registration(gaofen: Path) -> None:
    page = (gaofen / "results/report/index.html").read_text()
    for image in ("SAR", "The cloudy image"):
        assert re.search(rf"{image} lay [\d.]+ to [\d.]+ m from the clear image before registration and lies [\d.]+ to [\d.]+ m", page)
    assert "against the truth, cloudy pixels" in page


def test_finished_products_are_not_read_again(gaofen: Path) -> None:
    again = run(gaofen)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
