"""Laws of scene prediction: tiles leave no trace, observed pixels stay, the file lies right and says where each pixel comes from."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate
from task_samples import BANDS as GROUND
from task_samples import make_group
from torch import Tensor, nn

from sereno.model import predict
from sereno.model.batches import Signature
from sereno.model.checkpoint import CheckpointMeta, Loaded, hash_file, save_checkpoint
from sereno.model.config import AfsstSettings, PredictSettings, TrainSettings
from sereno.model.predict import NODATA, NOTHING, RECONSTRUCTED, Clearing, GroupWalk, Scene, predict_scene
from sereno.model.tasks import CLOUD_REMOVAL, TASKS, create_network
from sereno.model.temporal import Dates, fill_from_dates
from sereno.pipeline.config import TaskName
from sereno.pipeline.errors import ConfigError, DataError, StoreError, TrainingError
from sereno.pipeline.scene import geobox_of, with_grid
from sereno.pipeline.store import save_dataset

BANDS, SAR = ("B02", "B03", "B04"), ("VV", "VH")
ROWS, COLUMNS = 150, 210
TINY = TrainSettings(network=AfsstSettings(width=8, head_dim=8, levels=1, blocks=1, window_px=8))
TILES = PredictSettings(tile_px=64, overlap_px=16, batch_size=3, device="cpu")
ALL = TILES.model_copy(update={"keep_observed": False})


class Fake(nn.Module):
    """A network that is one function of the optical input."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.seen = answer, 0

    def forward(self, optical: Tensor, *_: Tensor) -> Tensor:
        """Apply the function and count the tiles."""
        self.seen += len(optical)
        answered: Tensor = self.answer(optical)
        return answered


def make_loaded(answer: Any, *, use_sar: bool = True) -> Loaded:
    trained = TINY.model_copy(update={"network": TINY.network.model_copy(update={"use_sar": use_sar})})
    mean = torch.full((3,), 0.1)
    meta = CheckpointMeta(
        settings=trained, bands=BANDS, sar_bands=SAR, training_mean=(0.1,) * 3, training_std=(0.05,) * 3, dataset_sha256="0", step=1
    )
    return Loaded(Fake(answer), trained, BANDS, SAR, mean, meta)


def make_pair(rows: int = ROWS, columns: int = COLUMNS) -> xr.Dataset:
    generator = np.random.default_rng(3)
    geobox = GeoBox((rows, columns), Affine(10, 0, 498400, 0, -10, 5208000), "EPSG:32632")
    optical = {
        name: (("band", "y", "x"), generator.integers(1, 12000, (3, rows, columns)).astype(np.uint16)) for name in ("cloudy", "clear")
    }
    sar = {"sar": (("sar_band", "y", "x"), generator.integers(-2500, 0, (2, rows, columns)).astype(np.int16))}
    valid = {f"valid_{role}": (("y", "x"), np.ones((rows, columns), bool)) for role in ("sar", "cloudy", "clear")}
    items = {role: {"item": f"item-{role}", "time": "2021-06-03T10:00:00Z"} for role in ("sar", "cloudy", "clear")}
    provenance = {"pair": {"id": "p1", "sar_gap_days": 1.0}, "area": "west", "registration": {}, **items}
    coords = {"band": list(BANDS), "sar_band": list(SAR)}
    return with_grid(xr.Dataset({**optical, **sar, **valid}, coords=coords, attrs={"provenance": provenance}), geobox)


def make_masks(pair: xr.Dataset, *, cloud: tuple[slice, slice] | None = (slice(30, 60), slice(80, 130))) -> xr.Dataset:
    """Masks with one block of cloud."""
    shape = pair["valid_sar"].shape
    names = ("cloud_cloudy", "shadow_cloudy", "cloud_clear", "shadow_clear")
    masks = {name: (("y", "x"), np.zeros(shape, np.uint8)) for name in names}
    if cloud:
        masks["cloud_cloudy"][1][cloud] = 255
    masks |= {f"known_{role}": (("y", "x"), np.ones(shape, bool)) for role in ("cloudy", "clear")}
    geobox = GeoBox(shape, Affine(*pair.attrs["spatial:transform"]), pair.attrs["proj:code"])
    made_for = {key: pair.attrs["provenance"][key] for key in ("area", "pair")}
    return with_grid(xr.Dataset(masks, attrs={"provenance": {**made_for, "masks": {"method": "scl"}}}), geobox)


def clear(pair: xr.Dataset, masks: xr.Dataset, loaded: Loaded, how: PredictSettings) -> tuple[Clearing, Any, Any]:
    """The walk, the cleared image (C, H, W) and the provenance (H, W)."""
    geobox = GeoBox(pair["valid_sar"].shape, Affine(*pair.attrs["spatial:transform"]), pair.attrs["proj:code"])
    clearing = Clearing(predict.Scene(pair, masks, geobox), loaded, how)
    image = np.concatenate([part.image for part in clearing.walk()], axis=1)
    return clearing, image[:-1], image[-1]


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (64, 64), (65, 63), (20, 200), (1, 9)])
def test_a_network_that_returns_its_input_gives_back_the_scene_exactly(shape: tuple[int, int]) -> None:
    pair = make_pair(*shape)
    _, image, provenance = clear(pair, make_masks(pair, cloud=None), make_loaded(lambda optical: optical), ALL)
    assert np.array_equal(image, pair["cloudy"].values)
    assert (provenance == predict.RECONSTRUCTED).all()


def test_a_constant_network_leaves_no_seam() -> None:
    pair = make_pair()
    _, image, _ = clear(pair, make_masks(pair), make_loaded(lambda optical: torch.full_like(optical, 0.1234)), ALL)
    assert (image == 1234).all()


def test_tiles_that_disagree_are_faded_into_each_other() -> None:
    pair = make_pair(64, 112)  # two tiles, 48 px apart
    levels = iter((0.2, 0.4))
    one_by_one = ALL.model_copy(update={"batch_size": 1})
    _, image, _ = clear(pair, make_masks(pair), make_loaded(lambda optical: torch.full_like(optical, next(levels))), one_by_one)
    profile = image[0, 5].astype(int)
    assert (profile[:48] == 2000).all()
    assert (profile[64:] == 4000).all()
    assert np.abs(np.diff(profile)).max() <= 2000 / 16 + 1


def test_what_is_seen_of_a_pixelwise_network_does_not_depend_on_the_tiles() -> None:
    pair = make_pair()
    loaded = make_loaded(lambda optical: optical.square() / 2)
    large = ALL.model_copy(update={"tile_px": 256, "overlap_px": 0})
    tiled, whole = (clear(pair, make_masks(pair), loaded, how)[1].astype(int) for how in (ALL, large))
    assert np.abs(tiled - whole).max() <= 1  # values that end in .5 may round either way


def test_clear_pixels_are_kept_and_tiles_without_cloud_are_not_run() -> None:
    pair, loaded = make_pair(), make_loaded(lambda optical: torch.full_like(optical, 0.3))
    masks = make_masks(pair)
    clearing, image, provenance = clear(pair, masks, loaded, TILES)
    cloudy = masks["cloud_cloudy"].values > 0
    assert np.array_equal(image[:, ~cloudy], pair["cloudy"].values[:, ~cloudy])
    assert (image[:, cloudy] == 3000).all()
    assert np.array_equal(provenance, np.where(cloudy, predict.RECONSTRUCTED, predict.OBSERVED))
    tiles = clearing.rows.n_tiles * clearing.columns.n_tiles
    assert clearing.tally["tiles_run"] == loaded.network.seen == 2 * 2  # rows 30..60 meet tile rows 0 and 1, columns 80..130 tiles 1 and 2
    assert clearing.tally["tiles_skipped"] == tiles - 4


def test_a_scene_without_cloud_runs_nothing_and_is_copied() -> None:
    pair, loaded = make_pair(), make_loaded(lambda optical: optical * float("nan"))
    _, image, provenance = clear(pair, make_masks(pair, cloud=None), loaded, TILES)
    assert loaded.network.seen == 0
    assert np.array_equal(image, pair["cloudy"].values)
    assert (provenance == predict.OBSERVED).all()


def test_the_edge_of_a_cloud_goes_over_evenly_from_observed_to_reconstructed() -> None:
    pair, masks = make_pair(64, 64), None
    masks = make_masks(pair, cloud=None)
    pair["cloudy"].values[:] = 1000
    masks["shadow_cloudy"].values[:] = np.linspace(0, 255, 64).astype(np.uint8)
    _, image, provenance = clear(pair, masks, make_loaded(lambda optical: torch.full_like(optical, 0.3)), TILES)
    profile = image[1, 7].astype(int)
    assert (np.diff(profile) >= 0).all()
    assert np.abs(np.diff(profile)).max() < 2000 / (0.45 * 63) + 40
    assert (profile[:4] == 1000).all()
    assert (profile[32:] == 3000).all()
    assert np.array_equal(provenance[7] == predict.OBSERVED, profile == 1000)  # a blended pixel counts as reconstructed


def test_beyond_the_input_and_where_a_cloud_has_no_sar_there_is_nodata() -> None:
    pair = make_pair()
    pair["valid_cloudy"].values[:, :20] = False
    pair["valid_sar"].values[40:] = False
    masks = make_masks(pair)
    cloudy = masks["cloud_cloudy"].values > 0
    wedge, blind = ~pair["valid_cloudy"].values, cloudy & ~pair["valid_sar"].values
    clearing, image, provenance = clear(pair, masks, make_loaded(lambda optical: torch.full_like(optical, 0.3)), TILES)
    assert np.array_equal(provenance == predict.NOTHING, wedge | blind)
    assert np.array_equal((image == NODATA).all(axis=0), wedge | blind)
    assert np.array_equal((image == NODATA).any(axis=0), wedge | blind)
    assert clearing.tally["nodata_input"] == wedge.sum()
    assert clearing.tally["nodata_sar"] == blind.sum() > 0
    without_sar = make_loaded(lambda optical: torch.full_like(optical, 0.3), use_sar=False)
    assert np.array_equal(clear(pair, masks, without_sar, TILES)[2] == predict.NOTHING, wedge)


def test_ground_whose_clouds_are_not_known_is_never_passed_off_as_observed_clear() -> None:
    pair, loaded = make_pair(), make_loaded(lambda optical: torch.full_like(optical, 0.3))
    pair["valid_sar"].values[:, 100:] = False
    pair["valid_cloudy"].values[:, :20] = False
    masks = make_masks(pair, cloud=None)
    masks["known_cloudy"].values[:60] = False
    masks["known_cloudy"].values[:, :20] = False  # as of all that is not valid
    _, image, provenance = clear(pair, masks, loaded, TILES)
    expected = np.full((ROWS, COLUMNS), predict.OBSERVED)
    expected[:60] = predict.RECONSTRUCTED
    expected[:60, 100:] = expected[:, :20] = predict.NOTHING
    np.testing.assert_array_equal(provenance, expected)
    assert (image[:, :60, 20:100] == 3000).all()
    strip = predict.read_strip(predict.Scene(pair, masks, GeoBox((ROWS, COLUMNS), Affine.identity(), "EPSG:32632")), 0, ROWS)
    assert not strip.mask[predict.CLOUD][:, :20].any()  # the network is shown no cloud where there is no pixel, as in training


def test_values_outside_the_stored_range_are_clamped_and_counted() -> None:
    pair = make_pair(64, 64)
    clearing, image, _ = clear(pair, make_masks(pair, cloud=None), make_loaded(lambda optical: torch.full_like(optical, -0.2)), ALL)
    assert (image == 0).all()
    assert clearing.tally["clamped"] == image.size


def test_rows_come_at_most_a_tile_high_whatever_the_height_of_the_scene() -> None:
    pair = make_pair(400, 40)
    clearing = Clearing(
        predict.Scene(pair, make_masks(pair, cloud=None), GeoBox((400, 40), Affine.identity(), "EPSG:32632")), make_loaded(abs), ALL
    )
    assert max(part.image.shape[1] for part in clearing.walk()) <= 64


def save_inputs(folder: Path, *, pair: xr.Dataset | None = None) -> tuple[Path, Path, Path]:
    """Checkpoint, pair and masks on disk."""
    pair = make_pair() if pair is None else pair
    save_dataset(pair, folder / "pair.json", kind="pair", summary={})
    save_dataset(make_masks(pair), folder / "masks.json", kind="mask", summary={})
    signature = Signature(BANDS, SAR, (0.1,) * 3, (0.05,) * 3)
    network = create_network(CLOUD_REMOVAL, TINY.network, signature, seed=1)
    meta = make_loaded(abs).meta
    save_checkpoint(folder / "checkpoint.safetensors", network.state_dict(), meta)
    return folder / "checkpoint.safetensors", folder / "pair.json", folder / "masks.json"


def test_the_image_is_a_valid_cog_that_lies_on_the_pair_and_names_its_bands(tmp_path: Path) -> None:
    checkpoint, pair, masks = save_inputs(tmp_path, pair=make_pair(700, 600))  # large enough for an overview
    output = tmp_path / "out" / "p1.tif"
    predict_scene(checkpoint, (pair, masks), output, TILES.model_copy(update={"tile_px": 128}))
    valid, errors, warnings = cog_validate(output)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(output) as image:
        assert image.crs.to_epsg() == 32632
        assert tuple(image.bounds) == (498400, 5208000 - 7000, 498400 + 6000, 5208000)
        assert image.descriptions == (*BANDS, "provenance")
        assert [colour.name for colour in image.colorinterp] == ["blue", "green", "red", "undefined"], "viewers show true colour"
        assert image.dtypes == ("uint16",) * 4
        assert image.nodata == NODATA
        assert image.scales == (1e-4, 1e-4, 1e-4, 1.0)
        assert image.overviews(1) == [2]
        tags = image.tags()
        assert {key: tags[key] for key in ("pair", "area", "cloudy_item", "sar_item", "units", "scale")} == {
            "pair": "p1",
            "area": "west",
            "cloudy_item": "item-cloudy",
            "sar_item": "item-sar",
            "units": "reflectance x 10000",
            "scale": "0.0001",
        }
        assert set(np.unique(image.read(4))) == {predict.OBSERVED, predict.RECONSTRUCTED}
        assert set(np.unique(image.read(4, out_shape=(350, 300)))) <= {predict.OBSERVED, predict.RECONSTRUCTED}
    assert sorted(path.name for path in output.parent.iterdir()) == ["p1.json", "p1.tif"]


def test_the_record_describes_the_image_and_its_shares_sum_to_one(tmp_path: Path) -> None:
    checkpoint, pair, masks = save_inputs(tmp_path)
    output = tmp_path / "p1.tif"
    predict_scene(checkpoint, (pair, masks), output, TILES)
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["kind"] == "prediction"
    assert record["sha256"] == hash_file(output)
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert record["shares"]["reconstructed"] == pytest.approx(30 * 50 / (ROWS * COLUMNS))
    assert record["tiles"] == {"run": 4, "skipped": 11}
    assert record["bands"] == [*BANDS, "provenance"]
    assert record["bounds_m"] == [498400, 5208000 - 1500, 498400 + 2100, 5208000]
    assert record["pair"]["id"] == "p1"
    assert record["checkpoint"]["bands"] == list(BANDS)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    checkpoint, pair, masks = save_inputs(tmp_path)
    for name in ("a", "b"):
        predict_scene(checkpoint, (pair, masks), tmp_path / name / "p1.tif", TILES)
    for name in ("p1.tif", "p1.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_pair_that_was_given_up_is_cleared_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = make_pair()
    pair = pair.assign({f"valid_{role}": pair[f"valid_{role}"] & False for role in ("sar", "cloudy", "clear")})
    pair.attrs["provenance"]["refused"] = "SAR: only 3 windows"
    checkpoint, manifest, masks = save_inputs(tmp_path, pair=pair)
    predict_scene(checkpoint, (manifest, masks), tmp_path / "p1.tif", TILES)
    assert "pair.json holds no valid pixel, so nothing is made: SAR: only 3 windows" in caplog.text
    assert json.loads((tmp_path / "p1.json").read_text())["shares"]["nodata"] == 1


def test_a_network_that_gives_no_numbers_ends_in_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, pair, masks = save_inputs(tmp_path)
    monkeypatch.setattr(predict, "load_checkpoint", lambda *_: make_loaded(lambda optical: optical / 0))
    output = tmp_path / "out" / "p1.tif"
    with pytest.raises(TrainingError, match="no numbers"):
        predict_scene(checkpoint, (pair, masks), output, TILES)
    assert list(output.parent.iterdir()) == []


def test_other_bands_than_the_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    pair = make_pair().assign_coords(band=["B02", "B03", "B08"])
    checkpoint, pair_file, masks = save_inputs(tmp_path, pair=pair)
    with pytest.raises(DataError, match=r"B08.*trained with.*B04"):
        predict_scene(checkpoint, (pair_file, masks), tmp_path / "p1.tif", TILES)


def test_masks_of_another_grid_or_pair_are_refused(tmp_path: Path) -> None:
    checkpoint, pair, _ = save_inputs(tmp_path)
    other_grid, other_pair = make_masks(make_pair(90, 90)), make_masks(make_pair())
    other_pair.attrs["provenance"]["pair"] = {"id": "p2"}
    for masks in (other_grid, other_pair):
        save_dataset(masks, tmp_path / "other.json", kind="mask", summary={})
        with pytest.raises(DataError, match="was not made from"):
            predict_scene(checkpoint, (pair, tmp_path / "other.json"), tmp_path / "p1.tif", TILES)


@pytest.mark.parametrize("largest_file", [20_000, 200_000])
def test_a_disk_that_takes_no_more_ends_in_one_line_and_leaves_nothing(tmp_path: Path, largest_file: int) -> None:
    checkpoint, pair, masks = save_inputs(tmp_path)
    output = tmp_path / "out" / "p1.tif"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        with pytest.raises(StoreError, match="free space"):
            predict_scene(checkpoint, (pair, masks), output, TILES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(output.parent.iterdir()) == []


GROUPS: list[tuple[TaskName, int, dict[str, Any]]] = [
    ("pansharpening", 4, {"name": "sfiin", "width": 4, "blocks": 1}),
    ("spatiotemporal-fusion", 16, {"name": "stfnet", "width": 4}),
    ("snapshot-reconstruction", 1, {"name": "s2snapshot", "base": "open"}),
]


def make_group_loaded(task: TaskName, ratio: int, network: dict[str, Any], answer: Any) -> Loaded:
    """A checkpoint of another task whose network is `answer`."""
    guide = (("PAN",), (0.2,), (0.1,)) if task == "pansharpening" else ((), (), ())
    signature = Signature(GROUND, (), (0.2,) * 4, (0.1,) * 4, task, ratio, *guide)
    facts = dict(zip(("guide_bands", "guide_mean", "guide_std"), guide, strict=True))
    settings = TrainSettings.model_validate({"network": network})
    statistics = {"training_mean": signature.mean, "training_std": signature.std}
    meta = CheckpointMeta(
        settings=settings, bands=GROUND, sar_bands=(), dataset_sha256="0", step=0, task=task, ratio=ratio, **statistics, **facts
    )
    return Loaded(answer, settings, GROUND, (), torch.tensor(signature.mean), meta)


def make_image(task: TaskName, ratio: int, network: dict[str, Any], answer: Any, change: Any = None) -> tuple[xr.Dataset, Any]:
    """A group and the whole image (C + 1, H, W) that is made of it, tile by tile."""
    group, masks = make_group(task, ratio=ratio)
    if change is not None:
        change(group, masks)
    walk = GroupWalk(Scene(group, masks, geobox_of(group)), make_group_loaded(task, ratio, network, answer), MAKING)
    parts = list(walk.walk())
    assert [part.first for part in parts] == [0, 32, 64][: len(parts)]
    return group, np.concatenate([part.image for part in parts], axis=1)


MAKING = PredictSettings(tile_px=64, overlap_px=32, device="cpu")


def test_tiles_of_a_sharpened_image_lie_where_they_belong() -> None:
    group, image = make_image(*GROUPS[0], lambda ms, pan: pan.expand(-1, ms.shape[1], -1, -1))
    assert np.abs(image[:4].astype(int) - group["pan"].values.astype(int)).max() <= 1
    assert (image[4] == RECONSTRUCTED).all()
    _, flat = make_image(*GROUPS[0], lambda ms, _pan: torch.nn.functional.interpolate(ms, scale_factor=4.0))
    assert np.abs(flat[:4].astype(int) - group["ms"].values.repeat(4, 1).repeat(4, 2)).max() <= 1


def test_a_made_image_has_nothing_where_an_input_has_nothing() -> None:
    def hide(group: xr.Dataset, _masks: xr.Dataset) -> None:
        group["valid_ms"].values[3, 20] = False

    _, image = make_image(*GROUPS[0], lambda ms, pan: pan.expand(-1, ms.shape[1], -1, -1), hide)
    nothing = np.zeros((96, 96), bool)
    nothing[12:16, 80:84] = True
    assert np.array_equal(image[4] == NOTHING, nothing)
    assert (image[:4, nothing] == NODATA).all()


def test_tiles_of_a_group_in_which_nothing_is_usable_are_not_run() -> None:
    asked: list[torch.Tensor] = []

    def answer(ms: torch.Tensor, pan: torch.Tensor) -> torch.Tensor:
        asked.append(pan)
        return pan.expand(-1, ms.shape[1], -1, -1)

    group, masks = make_group("pansharpening", ratio=4)
    whole = [part.image for part in GroupWalk(Scene(group, masks, geobox_of(group)), make_group_loaded(*GROUPS[0], answer), MAKING).walk()]
    group["valid_ms"].values[:, :16] = False
    asked.clear()
    walk = GroupWalk(Scene(group, masks, geobox_of(group)), make_group_loaded(*GROUPS[0], answer), MAKING)
    image = np.concatenate([part.image for part in walk.walk()], axis=1)
    assert (walk.tally["tiles_run"], walk.tally["tiles_skipped"]) == (len(asked), 2) == (2, 2)
    assert (image[4, :, :64] == NOTHING).all()
    assert np.array_equal(image[..., 64:], np.concatenate(whole, axis=1)[..., 64:])


def test_clouds_of_the_outer_dates_leave_nothing_and_those_of_the_middle_one_are_not_asked_for() -> None:
    def cover(_group: xr.Dataset, masks: xr.Dataset) -> None:
        masks["cloud_fine-1"].values[1, 2] = 255
        masks["cloud_fine-2"].values[10, 20] = 255
        masks["shadow_fine-3"].values[3, 4] = 255

    group, image = make_image(*GROUPS[1], lambda _coarse, fine: fine[:, 1], cover)
    assert np.argwhere(image[4] == NOTHING).tolist() == [[1, 2], [3, 4]]
    there = image[4] == RECONSTRUCTED
    assert np.abs(image[:4, there].astype(int) - group["fine-3"].values[:, there].astype(int)).max() <= 1


def test_tiles_begin_and_end_with_coarse_pixels_or_are_refused() -> None:
    group, masks = make_group("spatiotemporal-fusion", ratio=16)
    loaded = make_group_loaded(*GROUPS[1], abs)
    with pytest.raises(ConfigError, match=r"'predict\.tile_px' \d+ and 'overlap_px' \d+ must be multiples of 16"):
        GroupWalk(Scene(group, masks, geobox_of(group)), loaded, PredictSettings(tile_px=64, overlap_px=24, device="cpu"))


@pytest.mark.parametrize(("task", "ratio", "network"), GROUPS)
def test_the_image_of_a_group_is_written_with_what_it_was_made_of(
    task: TaskName, ratio: int, network: dict[str, Any], tmp_path: Path
) -> None:
    group, masks = make_group(task, ratio=ratio)
    save_dataset(group, tmp_path / "group.json", kind="group", summary={})
    save_dataset(masks, tmp_path / "masks.json", kind="mask", summary={})
    if task == "snapshot-reconstruction":
        network = {**network, "width": 8, "head_dim": 4, "stages": 1, "blocks": 1, "window_px": 4}
    meta = make_group_loaded(task, ratio, network, abs).meta
    save_checkpoint(tmp_path / "c.safetensors", create_network(TASKS[task], meta.settings.network, meta.signature).state_dict(), meta)
    predict_scene(tmp_path / "c.safetensors", (tmp_path / "group.json", tmp_path / "masks.json"), tmp_path / "made.tif", MAKING)
    with rasterio.open(tmp_path / "made.tif") as image:
        assert image.descriptions == (*GROUND, "provenance")
        assert image.shape == (96, 96)
        assert image.read(5).min() == RECONSTRUCTED
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["items"] == {role: role for role in group if f"valid_{role}" in group}
    assert record["shares"] == {"nodata": 0, "observed": 0, "reconstructed": 1}
    other = meta.model_copy(update={"bands": GROUND[::-1]})
    save_checkpoint(tmp_path / "d.safetensors", create_network(TASKS[task], other.settings.network, other.signature).state_dict(), other)
    with pytest.raises(DataError, match=r"group\.json has bands"):
        predict_scene(tmp_path / "d.safetensors", (tmp_path / "group.json", tmp_path / "masks.json"), tmp_path / "made.tif", MAKING)


def add_dates(pair: xr.Dataset, masks: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The pair as one of a series: a date before with clouds and a date after, of flat reflectance."""
    for role, level in (("before", 1000), ("after", 5000)):
        pair[role] = pair["clear"].dims, np.full(pair["clear"].shape, level, np.uint16)
        pair[f"valid_{role}"] = ("y", "x"), np.ones(pair["valid_sar"].shape, bool)
        masks[f"cloud_{role}"] = masks[f"shadow_{role}"] = ("y", "x"), np.zeros(pair["valid_sar"].shape, np.uint8)
        masks[f"known_{role}"] = ("y", "x"), np.ones(pair["valid_sar"].shape, bool)
    masks["cloud_before"].values[:, 100:110] = 255
    pair["valid_after"].values[:, 110:120] = False
    pair.attrs["provenance"]["pair"] |= {"before_gap_days": -15.0, "after_gap_days": 5.0}
    return pair, masks


class Line(nn.Module):
    """What lies between the dates, and nothing else."""

    def forward(self, optical: Tensor, _sar: Tensor, cloud: Tensor, *dates: Tensor) -> Tensor:
        """The straight line in time."""
        return fill_from_dates(optical, cloud, Dates(*dates), torch.zeros(3))


def test_a_scene_of_a_series_is_cleared_from_its_dates_and_their_days() -> None:
    pair = make_pair()
    pair, masks = add_dates(pair, make_masks(pair))
    dated = TINY.model_copy(update={"network": TINY.network.model_copy(update={"base": "dates"})})
    loaded = make_loaded(lambda optical: optical)
    loaded = loaded._replace(network=Line(), settings=dated, meta=loaded.meta.model_copy(update={"settings": dated}))
    _, image, _ = clear(pair, masks, loaded, TILES)
    assert np.array_equal(image[:, :30], pair["cloudy"].values[:, :30])
    assert (image[:, 30:60, 80:100] == 4000).all(), "three quarters of the way"
    assert (image[:, 30:60, 100:110] == 5000).all(), "the date before is cloudy there"
    assert (image[:, 30:60, 110:120] == 1000).all(), "the date after is not valid there"
    assert (image[:, 30:60, 120:130] == 4000).all()
    masks["known_after"].values[:] = False
    assert (clear(pair, masks, loaded, TILES)[1][:, 30:60, 80:100] == 1000).all(), "nobody knows whether the date after is clear"


def test_a_scene_without_dates_is_refused_by_a_network_that_looks_at_them(tmp_path: Path) -> None:
    dated = TINY.model_copy(update={"network": TINY.network.model_copy(update={"base": "dates"})})
    meta = make_loaded(None).meta.model_copy(update={"settings": dated})
    save_checkpoint(tmp_path / "c.safetensors", create_network(CLOUD_REMOVAL, dated.network, meta.signature).state_dict(), meta)
    pair = make_pair(64, 64)
    for name, dataset in (("pair", pair), ("mask", make_masks(pair))):
        save_dataset(dataset, tmp_path / f"{name}.json", kind=name, summary={})
    with pytest.raises(DataError, match=r"pair\.json has no clear images before and after .*`pipeline\.query\.series: true`"):
        predict_scene(tmp_path / "c.safetensors", (tmp_path / "pair.json", tmp_path / "mask.json"), tmp_path / "o.tif", TILES)
