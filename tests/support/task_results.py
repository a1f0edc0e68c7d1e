"""Tiny finished results of every task but cloud removal, made by the real steps from the dataset on.

Enters: a folder and a task. Leaves: a lock with one group, the group and its masks, a dataset, a run of one step, its scores and its image.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from task_samples import make_group, write_fusion, write_sharpening, write_snapshot

from sereno.model.config import EvaluateSettings, PredictSettings, TrainSettings
from sereno.model.evaluate import evaluate_checkpoint
from sereno.model.predict import predict_scene
from sereno.model.train import train_network
from sereno.pipeline.config import TaskName, load_settings
from sereno.pipeline.pairs import Lock
from sereno.pipeline.samples import ROLES_OF
from sereno.pipeline.store import save_dataset, write_json, write_text

COUNTS = {"train": 2, "val": 1, "test": 2}
QUICK: dict[str, Any] = {"steps": 1, "batch_size": 1, "crop_px": 16, "device": "cpu"}
SMALL = {"width": 8, "head_dim": 4, "stages": 1, "blocks": 1, "window_px": 4, "base": "open"}
WRITERS: dict[str, Any] = {
    "pansharpening": (partial(write_sharpening, size_px=128), {"name": "sfiin", "width": 4, "blocks": 1}),
    "spatiotemporal-fusion": (write_fusion, {"name": "stfnet", "width": 4}),
    "snapshot-reconstruction": (write_snapshot, {"name": "s2snapshot", **SMALL}),
}
FACTS = {
    "counts": COUNTS, "leakage": {"min_distance_m": None}, "areas": {"west": {"pairs": ["g"]}}, "size_px": 32, "resolution_m": 10.0,
    "bands": ["B1", "B2", "B3", "B4"],
}  # fmt: skip
SECTIONS = ["result", "images", "scores", "examples", "training", "groups", "ledger", "left-out", "making"]


def make_results(folder: Path, task: TaskName) -> Path:
    """A folder of results with one run, `mine`."""
    write, network = WRITERS[task]
    (folder / "pack").mkdir(parents=True)
    dataset = write(folder / "pack", COUNTS)
    described = json.loads(dataset.read_text())
    write_json(dataset, {**described, "summary": {**described["summary"], **FACTS}})
    write_group(folder, task)
    checkpoint = folder / "train/mine/checkpoint.safetensors"
    train_network(dataset, checkpoint, TrainSettings.model_validate({**QUICK, "network": network}))
    evaluate_checkpoint(dataset, checkpoint, folder / "evaluate/mine/scores.csv", EvaluateSettings(device="cpu", examples=2))
    inputs = folder / "align/west/g.json", folder / "mask/west/g.json"
    predict_scene(checkpoint, inputs, folder / "predict/mine/west/g.tif", PredictSettings(tile_px=96, overlap_px=16, device="cpu"))
    return folder


def write_group(folder: Path, task: TaskName) -> None:
    """A lock with one group, the group, and its masks."""
    group, masks = make_group(task, ratio=1 if task == "snapshot-reconstruction" else 4)
    roles = [role for together in ROLES_OF[task] for role in together]
    scenes = {f"s-{role}": make_scene(f"s-{role}", 8 + 5 * int(role[-1]) if role[-1].isdigit() else 8) for role in roles}
    grid = {"crs": "EPSG:32632", "transform": (10, 0, 498_400, 0, -10, 5_040_000), "shape": (96, 96)}
    together = {"id": "g", "scenes": {role: f"s-{role}" for role in roles}, "gaps_days": {}}
    values = {"area": "west", "catalogue": "here", "grid": grid, "scenes": scenes, "pairs": [], "groups": [together], "refused": []}
    write_text(folder / "query/west.json", load_settings(Lock, values | {"task": task}, where="test").to_json())
    provenance = group.attrs["provenance"]
    told = {key: provenance[key] for key in ("task", "ratio", "area", "pair")} | {"refused": None, "registration": {}}
    shares = {"bands": {role: ["B1", "B2"] for role in roles}, "valid_share": dict.fromkeys(roles, 1.0)}
    save_dataset(group, folder / "align/west/g.json", kind="group", summary=told | shares)
    save_dataset(masks, folder / "mask/west/g.json", kind="mask", summary={})


def make_scene(name: str, day: int) -> dict[str, Any]:
    """A scene as a lock holds it."""
    shared = {"time": f"2021-06-{day:02}T10:20:00Z", "sensor": "sentinel2-l2a"}
    item = shared | {"item": f"ITEM-{name}", "collection": "c", "crs": "EPSG:32632", "bbox": (9, 45, 10, 46), "assets": {}}
    return shared | {"id": name, "items": [item], "cloud_cover_pct": 4.0}
