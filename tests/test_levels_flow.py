"""Gaofen-6 WFV and Gaofen-3 of each level become a dataset of eight bands, and the errors of their coefficients are taken out.

Level 2 was projected at one height. On a plain its displacement is found like that of level 1; in hills it is another in each place, up to
cot(incidence) times the height, so that no field is right and the pair is refused with what helps.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
from scipy.ndimage import shift

from sereno.pipeline.align import align_pair
from sereno.pipeline.config import (
    AlignSettings,
    DemSettings,
    IngestSettings,
    MaskSettings,
    PackSettings,
    PatchSettings,
    QuerySettings,
    SimulateSettings,
)
from sereno.pipeline.dem import join_elevations
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.pack import pack_patches
from sereno.pipeline.pairs import Lock
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.query import query_pairs
from sereno.pipeline.simulate import simulate_world
from sereno.pipeline.store import open_dataset, read_json, read_manifest, verify_store

LEFT, BOTTOM, PIXEL_M = 499_200.0, 5_040_000.0, 16
PLAIN = 0.1
"""Relief of a plain: heights differ by some metres, which displaces SAR by less than a pixel of 16 m."""


class Run(NamedTuple):
    """One pair on its way."""

    folder: Path
    lock: Path
    pair: str

    @property
    def summary(self) -> dict[str, Any]:
        return read_manifest(self.folder / f"align/{self.pair}.json", kind="pair")["summary"]

    def measure_error(self, role: str) -> float:
        """Distance in pixels between the shift that was taken out of `sar` or `cloudy` and the true one."""
        [area] = read_json(self.folder / "simulate/world.json")["areas"].values()
        placed = {scene["item"]: scene["error_m"] for scene in (*area["optical"], *area["sar"])}
        content = Lock.read(self.lock)
        pair = content.pair(self.pair)
        (east, north), (clear_east, clear_north) = (
            placed[content.scenes[name].items[0].item] for name in ({"sar": pair.sar, "cloudy": pair.cloudy}[role], pair.clear)
        )
        found = self.summary[{"sar": "registration", "cloudy": "registration_cloudy"}[role]]
        assert math.hypot(east - clear_east, north - clear_north) > 8  # there was something to find
        return math.dist(((clear_north - north) / PIXEL_M, (east - clear_east) / PIXEL_M), (found["dy_px"], found["dx_px"]))


def align_world(folder: Path, level: str, relief: float, size: int) -> Run:
    """The verbs from `simulate` to `align` one after the other, for one pair of WFV with SAR of `level`."""
    area = {"epsg": 32632, "west_m": LEFT, "south_m": BOTTOM, "size_px": size, "satellites": "gaofen-wfv", "relief": relief}
    world = {"cloudy_dates": 1, "radar_level": level, "areas": {"a": area}}
    simulate_world(folder / "simulate/world.json", SimulateSettings.model_validate(world))
    lock, side = folder / "query/a.json", 10 * size
    query = {
        "source": "gaofen",
        "catalogue": str(folder / "simulate/products"),
        "areas": {"a": {"epsg": 32632, "bounds_m": [LEFT, BOTTOM, LEFT + side, BOTTOM + side]}},
        "resolution_m": PIXEL_M,
        "dem_catalogue": str(folder / "simulate"),
        "polarisations": ("HH", "HV"),
    }
    query_pairs("a", lock, QuerySettings.model_validate(query))
    join_elevations(lock, folder / "dem/a.json", DemSettings())
    [dem] = (folder / "dem").rglob("*.tif")
    content = Lock.read(lock)
    for scene in content.scenes:
        ingest_scene(lock, scene, folder / f"ingest/{scene}.json", IngestSettings(dem=str(dem), margin_px=24, check="size"))
    [pair] = content.pairs
    sar, cloudy, clear = (folder / f"ingest/{name}.json" for name in (pair.sar, pair.cloudy, pair.clear))
    align_pair((lock, pair.id), (sar, cloudy, clear), folder / f"align/{pair.id}.json", AlignSettings(search_m=300))
    return Run(folder, lock, pair.id)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Level 2 on a plain, up to the dataset."""
    run = align_world(tmp_path_factory.mktemp("plain"), "L2", PLAIN, 480)
    align, mask, patch = (run.folder / f"{step}/{run.pair}.json" for step in ("align", "mask", "patch"))
    mask_pair(align, mask, MaskSettings(method="haze"))
    patch_pair(align, mask, patch, PatchSettings(size_px=64, buffer_px=12))
    pack_patches([patch], run.folder / "pack/dataset.json", PackSettings(shard_patches=8))
    return run


def test_level_2_on_a_plain_is_laid_right(plain: Run) -> None:
    assert plain.summary["refused"] is None
    assert plain.measure_error("cloudy") < 0.5
    assert plain.measure_error("sar") < 0.5


def test_the_dataset_holds_the_eight_bands_of_wfv_and_both_polarisations(plain: Run) -> None:
    bands = [f"B{number}" for number in range(1, 9)]
    summary = read_manifest(plain.folder / "pack/dataset.json", kind="dataset")["summary"]
    assert (summary["bands"], summary["sar_bands"]) == (bands, ["HH", "HV"])
    assert sum(summary["counts"].values()) > 10
    assert min(summary["counts"].values()) > 0
    assert len(set(summary["training_mean"])) == 8
    verify_store(plain.folder / "pack/dataset.json")


def test_every_band_of_the_three_joined_tiles_shows_the_ground_where_the_clear_image_has_it(plain: Run) -> None:
    """The cloudy image, laid onto the clear one, under open sky: the truth moved by what the coefficients of the clear image err."""
    [area] = read_json(plain.folder / "simulate/world.json")["areas"].values()
    clear, cloudy = (next(scene for scene in area["optical"] if scene["role"] == role) for role in ("clear", "cloudy"))
    images = []
    for name in ("truth", "cloud"):
        with rasterio.open(plain.folder / "simulate" / cloudy[name]) as file:
            images.append(file.read().astype(float))
    east, north = (metres / PIXEL_M for metres in clear["error_m"])
    truth, hidden = (np.stack([shift(layer, (-north, east), order=1, mode="nearest") for layer in image]) for image in images)
    pair = open_dataset(plain.folder / f"align/{plain.pair}.json")
    assert pair["valid_clear"].values.all()  # no ground is lost between tiles
    open_sky = pair["valid_cloudy"].values & (hidden < 10).all(axis=0)
    assert open_sky.mean() > 0.05
    for seen, expected in zip(pair["cloudy"].values.astype(float), truth, strict=True):
        error = (seen - expected)[open_sky]
        assert np.corrcoef(seen[open_sky], expected[open_sky])[0, 1] > 0.98
        assert abs(np.median(error)) < 40
        assert np.percentile(np.abs(error), 99) < 0.6 * expected[open_sky].std()


def test_level_1_in_hills_is_laid_right(tmp_path: Path) -> None:
    run = align_world(tmp_path, "L1A", 1.0, 240)
    assert run.summary["refused"] is None
    assert run.measure_error("sar") < 0.5
    assert run.measure_error("cloudy") < 0.5


def test_level_2_in_hills_is_refused_with_what_helps(tmp_path: Path) -> None:
    run = align_world(tmp_path, "L2", 1.0, 240)
    assert run.summary["registration"]["verdict"] == "refused"
    assert "use level 1 with a DEM" in run.summary["refused"]
    assert run.summary["valid_share"] == {"sar": 0.0, "cloudy": 0.0, "clear": 0.0}
    assert run.measure_error("cloudy") < 0.5  # coefficients and a DEM bring the optical image right there too
