"""All data steps of a small world in this process, for tests of what the steps make together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sereno.pipeline.align import align_job
from sereno.pipeline.config import PipelineSettings
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.pack import pack_patches
from sereno.pipeline.pairs import Lock
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.query import query_pairs
from sereno.pipeline.simulate import simulate_world


def run_steps(folder: Path, values: dict[str, Any], catalogue: str) -> tuple[Lock, Path]:
    """Everything from the world to the dataset; the lock and the dataset's manifest."""
    values = values | {"query": values["query"] | {"catalogue": str(folder / catalogue)}}
    chosen = PipelineSettings.model_validate(values)
    assert chosen.simulate is not None
    simulate_world(folder / "simulate/world.json", chosen.simulate)
    query_pairs("a", folder / "query/a.json", chosen.query, task=chosen.task)
    lock = Lock.read(folder / "query/a.json")
    for scene in lock.scenes:
        ingest_scene(folder / "query/a.json", scene, folder / f"ingest/{scene}.json", chosen.ingest)
    for job in lock.jobs:
        pair, masks, patches = (folder / f"{step}/{job.id}.json" for step in ("align", "mask", "patch"))
        align_job((folder / "query/a.json", job.id), [folder / f"ingest/{scene}.json" for scene in job.scene_ids], pair, chosen.align)
        mask_pair(pair, masks, chosen.mask)
        patch_pair(pair, masks, patches, chosen.patch)
    pack_patches([folder / f"patch/{job.id}.json" for job in lock.jobs], folder / "pack/dataset.json", chosen.pack)
    return lock, folder / "pack/dataset.json"
