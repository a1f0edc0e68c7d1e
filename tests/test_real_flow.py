"""A real pair of Sentinel-2 scenes goes the way of the data, from files to patches, and every number can be found again in the files.

The lake of Barbellino on a cloudy and on a clear day, as sen2r wrote it: many bands in one file, 24 x 42 px of the grid, nodata 65535. No
Sentinel-1 scene of it is at hand: a simulated one is laid over it.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from sereno.pipeline.align import align_pair
from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS
from sereno.pipeline.clouds import SCL_CLOUD, SCL_SHADOW
from sereno.pipeline.config import AlignSettings, CloudMethod, IngestSettings, MaskSettings, PatchSettings
from sereno.pipeline.ingest import ingest_scene
from sereno.pipeline.ledger import ledger_of, read_ledger
from sereno.pipeline.mask import mask_pair
from sereno.pipeline.pairs import AssetRecord, GridRecord, ItemRecord, Lock, Pair, SceneRecord, Sensor
from sereno.pipeline.patch import patch_pair
from sereno.pipeline.store import open_dataset, read_manifest, verify_store

SAMPLES = os.environ.get("SERENO_SAMPLES")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(SAMPLES is None, reason="set SERENO_SAMPLES to the folder of sample files"),
]
FOLDER = Path(str(SAMPLES)) / "s2" / "sen2r"
DAYS = {"cloudy": "20170703", "clear": "20190723"}
GRID = GeoBox((96, 96), Affine(10, 0, 580_160, 0, -10, 5_102_400), "EPSG:32632")
"""Three by three blocks of 32 px around the files; only the middle one lies in them with more than a few rows."""
FILE = (slice(28, 70), slice(40, 64))
"""Where the files lie in the grid."""
BBOX = (10.04, 46.05, 10.06, 46.08)
PATCH = (slice(32, 64), slice(32, 64))
PATCHES = PatchSettings(size_px=32, block_patches=1, buffer_px=0, min_valid=0.7)


class Level(NamedTuple):
    sensor: Sensor
    stem: str
    bands: tuple[str, ...]
    method: CloudMethod


LEVELS = {
    "L2A": Level("sentinel2-l2a", "S2A2A_{day}_022_Barbellino_BOA_10.tif", tuple(b for b in L2A_BANDS if b != "B8A"), "scl"),
    "L1C": Level("sentinel2-l1c", "S2A1C_{day}_022_Barbellino_TOA_10.tif", tuple(b for b in L1C_BANDS if b != "B8A"), "threshold"),
}
"""What sen2r's files hold: it leaves B8A out at 10 m."""


def read(name: str) -> npt.NDArray[Any]:
    with rasterio.open(FOLDER / name) as file:
        values: npt.NDArray[Any] = file.read()
        return values


def read_classes(day: str) -> npt.NDArray[Any]:
    """SCL at 10 m."""
    classes: npt.NDArray[Any] = read(f"S2A2A_{day}_022_Barbellino_SCL_10.tif")[0].repeat(2, axis=0).repeat(2, axis=1)
    return classes


def to_optical(role: str, level: Level) -> SceneRecord:
    day = DAYS[role]
    assets = {band: AssetRecord(href=level.stem.format(day=day), index=place) for place, band in enumerate(level.bands, start=1)}
    if level.method == "scl":
        assets["SCL"] = AssetRecord(href=f"S2A2A_{day}_022_Barbellino_SCL_10.tif")
    return to_scene(role, level.sensor, f"{day[:4]}-{day[4:6]}-{day[6:]}T10:10:00Z", assets, baseline="02.05")


def to_scene(name: str, sensor: Sensor, time: str, assets: dict[str, AssetRecord], baseline: str | None = None) -> SceneRecord:
    shared: dict[str, Any] = {"sensor": sensor, "time": time}
    item = ItemRecord(
        item=f"{name}-item", collection="c", crs="EPSG:32632", bbox=BBOX, assets=assets, processing_baseline=baseline, **shared
    )
    return SceneRecord(id=name, items=(item,), **shared)


def simulate_sar(folder: Path) -> SceneRecord:
    """Linear gamma0 with the borders of the clear scene and speckle of 4.4 looks, over the grid and its margin."""
    brightness = np.pad(read(LEVELS["L2A"].stem.format(day=DAYS["clear"]))[7] / 10_000, 60, mode="reflect")
    speckle = np.random.default_rng(5).gamma(4.4, 1 / 4.4, (2, *brightness.shape))
    power = (np.array([0.4, 0.08])[:, None, None] * brightness * speckle).astype(np.float32)
    west, north = 580_560 - 600, 5_102_120 + 600
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": "EPSG:32632", "transform": Affine(10, 0, west, 0, -10, north)}
    assets = {}
    for name, band in zip(("VV", "VH"), power, strict=True):
        with rasterio.open(folder / f"{name}.tif", "w", height=band.shape[0], width=band.shape[1], nodata=0, **profile) as file:
            file.write(band, 1)
        assets[name] = AssetRecord(href=f"{name}.tif")
    return to_scene("sar", "sentinel1-rtc", "2017-07-03T05:30:00Z", assets).model_copy(update={"catalogue": str(folder)})


def write_lock(folder: Path, level: Level) -> Path:
    pair = Pair(id="barbellino", sar="sar", cloudy="cloudy", clear="clear", sar_gap_days=-0.19, clear_gap_days=750)
    scenes = {"sar": simulate_sar(folder), "cloudy": to_optical("cloudy", level), "clear": to_optical("clear", level)}
    grid = GridRecord.from_geobox(GRID)
    lock = Lock(area="alps", catalogue=str(FOLDER), grid=grid, scenes=scenes, pairs=(pair,), refused=())
    (folder / "alps.json").write_text(lock.to_json())
    return folder / "alps.json"


def run(folder: Path, level: Level) -> dict[str, Path]:
    """Manifests by step."""
    return run_lock(folder, write_lock(folder, level), level)


def run_lock(folder: Path, lock: Path, level: Level) -> dict[str, Path]:
    """Manifests by step of the pair in `lock`."""
    outputs = {name: folder / f"{name}.json" for name in ("sar", "cloudy", "clear", "pair", "mask", "patches")}
    for name in ("sar", "cloudy", "clear"):
        settings = IngestSettings(margin_px=8) if name == "sar" else IngestSettings(bands=level.bands)
        ingest_scene(lock, name, outputs[name], settings)
    align_pair((lock, "barbellino"), (outputs["sar"], outputs["cloudy"], outputs["clear"]), outputs["pair"], AlignSettings())
    mask_pair(outputs["pair"], outputs["mask"], MaskSettings(method=level.method, dilate_px=0, feather_px=0))
    patch_pair(outputs["pair"], outputs["mask"], outputs["patches"], PATCHES)
    for manifest in outputs.values():
        verify_store(manifest)
    return outputs


@pytest.fixture(scope="module", params=LEVELS)
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Level, dict[str, Path]]:
    level = LEVELS[request.param]
    return level, run(tmp_path_factory.mktemp(request.param), level)


def test_scenes_hold_the_numbers_of_the_files_and_nothing_around_them(flow: tuple[Level, dict[str, Path]]) -> None:
    level, outputs = flow
    for role, day in DAYS.items():
        scene = open_dataset(outputs[role], kind="scene")
        expected = np.zeros((len(level.bands), *GRID.shape), np.uint16)
        expected[:, *FILE] = read(level.stem.format(day=day))
        np.testing.assert_array_equal(scene["data"], expected)
        valid = np.zeros(tuple(GRID.shape), bool)
        valid[FILE] = True
        np.testing.assert_array_equal(scene["valid"], valid)
        facts = scene.attrs["provenance"]
        assert (facts["offset"], facts["refused"], facts["lost"], facts["n_clamped"]) == (0, None, [], 0)
        assert facts["offset_reason"].startswith("processing baseline 02.05")
        assert {entry.status for entry in read_ledger(ledger_of(outputs[role]))} == {"used"}


def test_classes_of_twenty_metres_are_repeated_not_interpolated(flow: tuple[Level, dict[str, Path]]) -> None:
    level, outputs = flow
    for role, day in DAYS.items():
        scene = open_dataset(outputs[role])
        assert ("scl" in scene) == (level.method == "scl")
        if "scl" in scene:
            np.testing.assert_array_equal(scene["scl"].values[FILE], read_classes(day))


def test_the_pair_keeps_the_optical_scenes_and_says_what_it_did_with_sar(flow: tuple[Level, dict[str, Path]]) -> None:
    level, outputs = flow
    pair = open_dataset(outputs["pair"], kind="pair")
    np.testing.assert_array_equal(pair["cloudy"].values[:, *FILE], read(level.stem.format(day=DAYS["cloudy"])))
    facts = pair.attrs["provenance"]
    assert facts["refused"] is None
    assert facts["registration"]["verdict"] == "refused"  # 24 px are too few to match, and that is what it says
    assert "no window" in facts["registration"]["reason"]
    assert pair["valid_sar"].values[FILE].all()


def test_masks_are_those_of_the_eye_and_of_the_scene_classification(flow: tuple[Level, dict[str, Path]]) -> None:
    level, outputs = flow
    masks = open_dataset(outputs["mask"], kind="mask")
    if level.method == "scl":
        for role, day in DAYS.items():
            for kind, classes in (("cloud", SCL_CLOUD), ("shadow", SCL_SHADOW)):
                np.testing.assert_array_equal(masks[f"{kind}_{role}"].values[FILE] == 255, np.isin(read_classes(day), classes))
    cloud = masks["cloud_cloudy"].values[FILE] == 255
    assert cloud[1:6, 16:20].all()  # the cloud at the upper end of the lake
    assert cloud[27:35, 22:24].all()  # the one on its right shore
    assert cloud[10:20, 14:20].mean() < 0.05  # open water between them
    assert not masks["cloud_clear"].values.any()


def test_one_patch_is_kept_with_what_the_files_hold_and_the_others_say_why_not(flow: tuple[Level, dict[str, Path]]) -> None:
    level, outputs = flow
    patches = open_dataset(outputs["patches"], kind="patches")
    summary = read_manifest(outputs["patches"])["summary"]
    assert [record["block"] for record in summary["patches"]] == ["EPSG:32632/1814/15943"]
    assert summary["patches"][0]["valid_share"] == pytest.approx(24 / 32)
    assert len(summary["refused"]) == 8
    assert all("valid in SAR, input and target" in refusal["reason"] for refusal in summary["refused"])
    for role in ("cloudy", "clear"):
        expected = read(level.stem.format(day=DAYS[role]))[:, 4:36]
        np.testing.assert_array_equal(patches[role].values[0][:, :, 8:], expected)
        assert not patches[role].values[0][:, :, :8].any()
    masks = open_dataset(outputs["mask"])
    channels = dict(zip(patches["mask_channel"].values.tolist(), patches["mask"].values[0], strict=True))
    np.testing.assert_array_equal(channels["cloud_input"], masks["cloud_cloudy"].values[PATCH])
    assert channels["valid_target"][:, 8:].all()
    assert not channels["valid_target"][:, :8].any()


@pytest.mark.parametrize("role", ["cloudy", "clear"])
@pytest.mark.parametrize("kind", ["gone", "not stated"])
def test_without_its_scene_classification_the_cloud_at_the_lake_is_not_clear(tmp_path: Path, role: str, kind: str) -> None:
    level = LEVELS["L2A"]
    lock = write_lock(tmp_path, level)
    content = json.loads(lock.read_text())
    assets = content["scenes"][role]["items"][0]["assets"]
    del assets["SCL"]
    if kind == "gone":
        assets["SCL"] = {"href": "gone.tif"}
    lock.write_text(json.dumps(content))
    outputs = run_lock(tmp_path, lock, level)
    pair, masks = open_dataset(outputs["pair"]), open_dataset(outputs["mask"])
    assert pair[f"valid_{role}"].values[FILE].all()
    assert not masks[f"known_{role}"].values.any()
    other = "clear" if role == "cloudy" else "cloudy"
    np.testing.assert_array_equal(masks[f"known_{other}"], pair[f"valid_{other}"])
    summary = read_manifest(outputs["patches"])["summary"]
    assert summary["patches"] == []
    assert summary["pair_refused"].startswith(f"the {role} image has no scene classification")
    assert {entry.asset: entry.status for entry in read_ledger(ledger_of(outputs[role]))}["SCL"] == "missing"
