"""The methods that find clouds: what goes into them, what comes out, and one line that mends whatever is missing."""

import csv
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from safetensors.numpy import save_file

from sereno.pipeline.bands import L1C_BANDS, L2A_BANDS
from sereno.pipeline.config import CloudMethod, MaskSettings
from sereno.pipeline.detectors import (
    DETECTORS,
    OMNICLOUDMASK_BANDS,
    S2CLOUDLESS_BANDS,
    Choice,
    Detection,
    Image,
    average_valid,
    choose_method,
    detect_clouds,
    import_extra,
    is_whole,
    list_download_faults,
)
from sereno.pipeline.errors import CatalogueError, DataError, MissingError
from sereno.pipeline.scene import with_grid

SIZE = 40
GAOFEN_BANDS_4 = ("B1", "B2", "B3", "B4")
NAMES = ["newest_a.safetensors", "newest_b.safetensors"]


def make_pair(bands: tuple[str, ...] = L1C_BANDS, *, sensor: str = "sentinel2-l1c", size: int = SIZE, pixel_m: float = 10) -> xr.Dataset:
    """An input whose every pixel and band differ, with an invalid first row."""
    rng = np.random.default_rng(0)
    values = rng.integers(200, 6000, (len(bands), size, size), dtype=np.uint16)
    valid = np.ones((size, size), bool)
    valid[0] = False
    values[:, ~valid] = 0
    pair = xr.Dataset(
        {"cloudy": (("band", "y", "x"), values), "valid_cloudy": (("y", "x"), valid)},
        coords={"band": list(bands)},
        attrs={"provenance": {"cloudy": {"sensor": sensor, "sun_azimuth_deg": 160.0, "sun_elevation_deg": 40.0}}},
    )
    return with_grid(pair, GeoBox((size, size), Affine(pixel_m, 0, 500_000, 0, -pixel_m, 5_000_000), "EPSG:32632"))


def detect(pair: xr.Dataset, method: CloudMethod, settings: MaskSettings | None = None) -> Detection:
    return detect_clouds(Image(pair, "cloudy", "pair.json"), method, settings or MaskSettings(method=method))


def values_of(pair: xr.Dataset, *bands: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = pair["cloudy"].sel(band=list(bands)).values
    return values


def test_every_method_of_the_settings_has_its_detector() -> None:
    assert set(DETECTORS) == set(CloudMethod.__args__)


def test_rules_that_need_cirrus_say_that_surface_reflectance_never_has_it() -> None:
    with pytest.raises(DataError, match=r"no band B10.*sentinel2-l2a never has it: set pipeline.mask.method to 'scl' or 'omnicloudmask'"):
        detect(make_pair(L2A_BANDS, sensor="sentinel2-l2a"), "threshold")


def test_s2cloudless_gives_the_probability_of_the_package_where_pixels_are_valid() -> None:
    package = pytest.importorskip("s2cloudless", reason="install the extra s2cloudless")
    pair = make_pair(size=270)  # more than one block of rows
    image = values_of(pair, *L1C_BANDS).transpose(1, 2, 0)[None] / np.float32(10_000)
    expected = package.S2PixelCloudDetector(all_bands=True).get_cloud_probability_maps(image)[0]
    expected[0] = 0
    found = detect(pair, "s2cloudless")
    np.testing.assert_array_equal(found.cloud, expected)
    assert 0 < len(np.unique(found.cloud[found.cloud < 1]))  # a probability, not a mask
    assert found.version.startswith(package.__version__)
    assert all(len(digest) == 64 for digest in found.weights.values())
    assert len(found.weights) == 1


def test_the_order_of_bands_in_the_pair_does_not_matter_to_s2cloudless() -> None:
    pytest.importorskip("s2cloudless", reason="install the extra s2cloudless")
    pair = make_pair()
    turned = pair.isel(band=slice(None, None, -1))
    np.testing.assert_array_equal(detect(pair, "s2cloudless").cloud, detect(turned, "s2cloudless").cloud)


def test_s2cloudless_refuses_l2a_with_the_reason_and_a_way_out() -> None:
    with pytest.raises(DataError, match=r"pair.json: the cloudy image is sentinel2-l2a.*won't work on L2A.*pipeline.mask.method to 'scl'"):
        detect(make_pair(sensor="sentinel2-l2a"), "s2cloudless")


def test_s2cloudless_without_one_of_its_bands_names_it() -> None:
    with pytest.raises(DataError, match=r"no band B01, B10, which method 's2cloudless' needs"):
        detect(make_pair(tuple(name for name in L1C_BANDS if name not in ("B01", "B10"))), "s2cloudless")


def test_the_bands_of_s2cloudless_are_those_of_its_model() -> None:
    utils = pytest.importorskip("s2cloudless.utils", reason="install the extra s2cloudless")
    assert list(S2CLOUDLESS_BANDS) == utils.MODEL_BANDS


@pytest.mark.parametrize("method", ["s2cloudless", "omnicloudmask"])
def test_an_extra_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, method: CloudMethod) -> None:
    monkeypatch.setitem(sys.modules, method, None)
    with pytest.raises(MissingError, match=rf"pipeline.mask.method asks for '{method}'.*pip install 'sereno\[{method}\]'"):
        detect(make_pair(), method)


def test_an_extra_without_one_of_its_own_packages_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omnicloudmask.py").write_text("import a_package_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError, match=r"a_package_that_is_nowhere is not installed in .*pip install"):
        import_extra("omnicloudmask", "pipeline.mask.second")


def test_an_extra_that_breaks_when_imported_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "omnicloudmask.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nmore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError, match=r"^[^\n]*cannot be imported \(operator torchvision::nms does not exist\)[^\n]*$"):
        import_extra("omnicloudmask", "pipeline.mask.second")


def to_signature(*names: str) -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])


PREDICT = to_signature(
    *("input_array", "patch_size", "patch_overlap", "batch_size", "inference_device", "mosaic_device", "inference_dtype"),
    *("export_confidence", "softmax_output", "no_data_value", "apply_no_data_mask", "custom_models", "pred_classes"),
    *("destination_model_dir", "model_download_source", "compile_models", "compile_mode", "model_version"),
)
"""Parameters of `predict_from_array` of omnicloudmask 1.8.1."""
GET_MODELS = to_signature("force_download", "model_dir", "source", "model_version")
"""Those of its `download_models.get_models`."""


class Recorder:
    """A stand-in for omnicloudmask 1.8.1, which needs torchvision, and that must not be installed here: it takes no other arguments than
    the package does, gives a written answer, and keeps what it was asked."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.array: npt.NDArray[Any] = np.zeros(0)
        self.asked: dict[str, Any] = {}
        self.fetched: list[Path] = []
        self.fault: Exception | None = None

    def predict_from_array(self, *positional: Any, **named: Any) -> npt.NDArray[np.float32]:
        """Confidence of clear, thick, thin and shadow as the package clips it: cloud where red is high, shadow elsewhere."""
        self.asked = PREDICT.bind_partial(*positional, **named).arguments
        self.array = self.asked["input_array"]
        assert min(self.array.shape[1:]) >= 32  # the package refuses less
        bright = self.array[0] > 3000
        answer = np.stack(
            [np.full(bright.shape, 0.05), np.where(bright, 0.6, 0.05), np.where(bright, 0.25, 0.1), np.where(bright, 0.1, 0.8)]
        )
        answer = np.clip(answer + 0.001, 0.001, 0.999)
        return (answer * (self.array != 0).any(axis=0)).astype(np.float32)

    def get_models(self, *positional: Any, **named: Any) -> list[dict[str, Any]]:
        if self.fault:
            raise self.fault
        folder = GET_MODELS.bind_partial(*positional, **named).arguments.get("model_dir") or self.cache
        self.fetched = [write_weights(folder / name) for name in NAMES]
        return [{"Path": path} for path in self.fetched]


def write_weights(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full(300_000, seed, np.float32)}, path)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(tmp_path / "cache")
    index = tmp_path / "links.csv"
    with index.open("w", newline="") as stream:
        rows = csv.DictWriter(stream, ["file_name", "timm_model_name", "google_drive_id", "version", "model_library"])
        rows.writeheader()
        rows.writerow({"file_name": "older.pth", "version": 3})
        rows.writerows({"file_name": name, "version": 4} for name in NAMES)
    main, download = types.ModuleType("omnicloudmask"), types.ModuleType("omnicloudmask.download_models")
    main.__dict__.update(__version__="1.8.1", predict_from_array=recorder.predict_from_array, download_models=download)
    download.__dict__.update(
        get_models=recorder.get_models,
        get_model_data_dir=lambda: recorder.cache,
        get_latest_model_version=lambda: 4.0,
        model_index_path=index,
    )
    monkeypatch.setitem(sys.modules, "omnicloudmask", main)
    monkeypatch.setitem(sys.modules, "omnicloudmask.download_models", download)
    return recorder


def test_omnicloudmask_gets_red_green_and_nir_and_gives_cloud_and_shadow(package: Recorder) -> None:
    pair = make_pair()
    found = detect(pair, "omnicloudmask")
    np.testing.assert_array_equal(package.array, values_of(pair, *OMNICLOUDMASK_BANDS))
    assert package.array.dtype == np.float32
    assert package.asked["export_confidence"] is True
    assert package.asked["inference_device"] == "cpu"
    bright = values_of(pair, "B04")[0] > 3000
    valid = pair["valid_cloudy"].values
    np.testing.assert_allclose(found.cloud[valid], np.where(bright, 0.85, 0.15)[valid], atol=1e-6)
    np.testing.assert_allclose(found.shadow[valid], np.where(bright, 0.1, 0.8)[valid], atol=1e-6)
    assert not found.cloud[~valid].any()


def test_omnicloudmask_works_on_any_level_and_takes_b08_where_b8a_was_not_kept(package: Recorder) -> None:
    pair = make_pair(("B02", "B03", "B04", "B08"), sensor="sentinel2-l2a")
    detect(pair, "omnicloudmask")
    np.testing.assert_array_equal(package.array, values_of(pair, "B04", "B03", "B08"))
    with pytest.raises(DataError, match=r"no band B04, which method 'omnicloudmask' needs"):
        detect(make_pair(tuple(name for name in L2A_BANDS if name != "B04")), "omnicloudmask")


@pytest.mark.parametrize(("sensor", "bands"), [("gaofen-wfv", 8), ("gaofen-pms", 4), ("gaofen-wfv4", 4)])
def test_omnicloudmask_gets_red_green_and_nir_of_gaofen_and_says_that_nobody_tested_it(package: Recorder, sensor: str, bands: int) -> None:
    pair = make_pair(tuple(f"B{number}" for number in range(1, bands + 1)), sensor=sensor, pixel_m=16)
    found = detect(pair, "omnicloudmask")
    np.testing.assert_array_equal(package.array, values_of(pair, "B3", "B2", "B4"))
    assert found.version == "1.8.1; experimental on Gaofen"


def test_omnicloudmask_sees_images_finer_than_it_was_made_for_averaged(package: Recorder) -> None:
    pair = make_pair(GAOFEN_BANDS_4, sensor="gaofen-pms", size=75, pixel_m=8)
    found = detect(pair, "omnicloudmask")
    valid = pair["valid_cloudy"].values
    red = values_of(pair, "B3")[0].astype(float)
    assert package.array.shape == (3, 38, 38)  # 16 m
    assert package.array[0, 5, 7] == pytest.approx(red[10:12, 14:16].mean(), rel=1e-6)
    assert package.array[0, 0, 7] == pytest.approx(red[1, 14:16].mean(), rel=1e-6)  # the first row is not valid
    assert package.array[0, 37, 37] == pytest.approx(red[74, 74], rel=1e-6)
    assert found.cloud.shape == valid.shape
    assert not found.cloud[~valid].any()
    assert found.cloud[10, 14] == found.cloud[11, 15] == pytest.approx(0.85 if package.array[0, 5, 7] > 3000 else 0.15)


def test_means_of_blocks_count_valid_pixels_alone() -> None:
    values = np.array([[[1, 3, 50], [5, 99, 50]]], np.uint16)
    valid = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(average_valid(values, valid, 2), [[[3.0, 0.0]]])
    np.testing.assert_array_equal(average_valid(values, valid, 1), values)


def test_haze_takes_the_bands_of_gaofen_by_their_names_and_calls_itself_experimental() -> None:
    pair = make_pair(tuple(f"B{number}" for number in range(1, 9)), sensor="gaofen-wfv")
    pair["cloudy"][:] = 500
    pair["cloudy"][:4, 10:20, 10:20] = 5500  # cloud is bright in the four; the others do not matter
    found = detect(pair, "haze")
    assert found.cloud[10:20, 10:20].all()
    assert found.cloud.sum() == 100
    assert found.version == "1; experimental"
    assert not found.weights


def test_haze_finds_the_same_in_sentinel2_whose_bands_have_other_names() -> None:
    gaofen = make_pair(GAOFEN_BANDS_4, sensor="gaofen-pms")
    sentinel = gaofen.assign_coords(band=["B02", "B03", "B04", "B08"])
    sentinel.attrs = gaofen.attrs | {"provenance": {"cloudy": {**gaofen.attrs["provenance"]["cloudy"], "sensor": "sentinel2-l1c"}}}
    first, second = (detect(pair, "haze") for pair in (gaofen, sentinel))
    np.testing.assert_array_equal(first.cloud, second.cloud)
    np.testing.assert_array_equal(first.shadow, second.shadow)


@pytest.mark.parametrize("sensor", ["sentinel2-l2a", "landsat-oli"])
def test_haze_refuses_reflectance_of_the_ground(sensor: str) -> None:
    with pytest.raises(DataError, match=rf"{sensor}.*top of the atmosphere: set pipeline.mask.method to 'scl'"):
        detect(make_pair(L2A_BANDS, sensor=sensor), "haze")


@pytest.mark.parametrize("method", ["scl", "threshold", "s2cloudless"])
def test_methods_that_gaofen_can_never_have_name_those_that_it_can(method: CloudMethod) -> None:
    with pytest.raises(DataError, match=r"set pipeline.mask.method to 'haze' or 'omnicloudmask'"):
        detect(make_pair(GAOFEN_BANDS_4, sensor="gaofen-pms"), method)


def test_valid_ground_that_reflects_nothing_is_not_taken_for_missing(package: Recorder) -> None:
    pair = make_pair()
    pair["cloudy"][:, 5, 5] = 0
    found = detect(pair, "omnicloudmask")
    assert (package.array[:, 5, 5] == 1).all()
    assert found.shadow[5, 5] > 0.7
    assert not package.array[:, 0].any()


def test_images_that_are_too_small_for_omnicloudmask_are_filled_up_with_nothing(package: Recorder) -> None:
    found = detect(make_pair(size=20), "omnicloudmask")
    assert package.array.shape == (3, 32, 32)
    assert not package.array[:, 20:].any()
    assert found.cloud.shape == found.shadow.shape == (20, 20)


def test_weights_are_fetched_once_and_known_by_their_checksum(package: Recorder) -> None:
    first = detect(make_pair(), "omnicloudmask")
    assert [path.name for path in package.fetched] == NAMES
    package.fetched = []
    second = detect(make_pair(), "omnicloudmask")
    assert package.fetched == []
    assert package.asked["destination_model_dir"] == package.cache
    assert first.weights == second.weights
    assert sorted(first.weights) == sorted(NAMES)
    assert first.version == "1.8.1"
    write_weights(package.cache / NAMES[0], seed=1)
    assert detect(make_pair(), "omnicloudmask").weights[NAMES[0]] != first.weights[NAMES[0]]


def choose(pair: xr.Dataset, **settings: Any) -> Choice:
    return choose_method([Image(pair, "cloudy", "pair.json")], MaskSettings(method="auto", **settings))


def with_classes(pair: xr.Dataset) -> xr.Dataset:
    return pair.assign(scl_cloudy=pair["valid_cloudy"].astype(np.uint8))


def test_auto_takes_the_classification_where_each_image_has_one(package: Recorder) -> None:
    pair = with_classes(make_pair(L2A_BANDS, sensor="sentinel2-l2a"))
    assert choose(pair) == Choice("scl", "each image has a scene classification")
    clear = pair.drop_vars("scl_cloudy").rename(cloudy="clear", valid_cloudy="valid_clear")
    clear.attrs["provenance"] = {"clear": pair.attrs["provenance"]["cloudy"]}
    for name in NAMES:
        write_weights(package.cache / name)
    both = choose_method([Image(pair, "cloudy", "p"), Image(clear, "clear", "p")], MaskSettings(method="auto"))
    assert both == Choice("omnicloudmask", "the clear image has no scene classification")


@pytest.mark.parametrize("is_brought", [True, False])
def test_auto_takes_omnicloudmask_where_its_weights_are_at_hand(package: Recorder, tmp_path: Path, is_brought: bool) -> None:
    folder = tmp_path / "brought" if is_brought else package.cache
    files = [write_weights(folder / name) for name in NAMES]
    weights, pair = folder if is_brought else None, make_pair(GAOFEN_BANDS_4, sensor="gaofen-pms")
    assert choose(pair, weights=weights) == Choice("omnicloudmask", "the cloudy image has no scene classification")
    files[1].unlink()
    found = choose(pair, weights=weights)
    assert found.method == "haze"
    assert f"not in {'the folder of pipeline.mask.weights' if is_brought else 'its cache'} or not whole" in found.why
    assert str(tmp_path) not in found.why


def test_auto_fetches_nothing(package: Recorder) -> None:
    package.fault = ConnectionError("no route to host")
    assert choose(make_pair(GAOFEN_BANDS_4, sensor="gaofen-pms")).method == "haze"
    package.fault = None
    assert choose(make_pair()).method == "threshold"
    assert package.fetched == []
    assert not package.cache.exists()


@pytest.mark.parametrize(
    ("sensor", "bands", "method"),
    [("gaofen-wfv", GAOFEN_BANDS_4, "haze"), ("sentinel2-l1c", L1C_BANDS, "threshold"), ("sentinel2-l2a", L2A_BANDS, "scl")],
)
def test_auto_takes_the_rules_that_fit_the_sensor_where_omnicloudmask_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, sensor: str, bands: tuple[str, ...], method: CloudMethod
) -> None:
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    found = choose(make_pair(bands, sensor=sensor))
    assert found.method == method
    assert found.why.startswith("the cloudy image has no scene classification; omnicloudmask is not installed")


def test_auto_refuses_what_no_method_can_mask_and_says_what_each_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    with pytest.raises(
        DataError, match=r"pair.json: no cloud method .*no scene class.*not installed.*haze is for Gaofen; .*no band B10, B11"
    ):
        choose(make_pair(("B02", "B03", "B04", "B08")))
    with pytest.raises(DataError, match=r"no band B3 for omnicloudmask; .*no band B1, B3 for haze"):
        choose(make_pair(("B2", "B4"), sensor="gaofen-pms"))


def test_a_folder_of_weights_is_used_without_asking_the_network(package: Recorder, tmp_path: Path) -> None:
    for name in NAMES:
        write_weights(tmp_path / "brought" / name)
    detect(make_pair(), "omnicloudmask", MaskSettings(method="omnicloudmask", weights=tmp_path / "brought"))
    assert package.asked["destination_model_dir"] == tmp_path / "brought"
    assert package.fetched == []


@pytest.mark.parametrize("harm", ["missing", "torn", "another file", "small"])
def test_weights_that_are_not_in_their_folder_are_named_with_the_command_that_fetches_them(
    package: Recorder, tmp_path: Path, harm: str
) -> None:
    folder = tmp_path / "brought"
    files = [write_weights(folder / name) for name in NAMES]
    if harm == "missing":
        files[1].unlink()
    elif harm == "torn":
        files[1].write_bytes(files[1].read_bytes()[:-1000])
    elif harm == "another file":
        files[1].write_bytes(b"<html>" * 200_000)
    else:
        save_file({"weight": np.zeros(10, np.float32)}, files[1])
    with pytest.raises(MissingError) as caught:
        detect(make_pair(), "omnicloudmask", MaskSettings(method="omnicloudmask", weights=folder))
    message = str(caught.value)
    assert f"are not in {folder} or not whole: {NAMES[1]};" in message
    assert f"get_models(model_dir='{folder}')" in message
    assert "pipeline.mask.weights" in message
    assert package.fetched == []


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("no route to host"),
        TimeoutError("no route to host"),
        ValueError("Force download failed due to the above error."),
    ],
)
def test_without_a_network_one_line_says_what_was_looked_for_and_what_helps(package: Recorder, fault: Exception) -> None:
    fault.__cause__ = OSError("no route to host") if isinstance(fault, ValueError) else None
    package.fault = fault
    with pytest.raises(CatalogueError) as caught:
        detect(make_pair(), "omnicloudmask")
    message = str(caught.value)
    assert "\n" not in message
    assert f"not in its cache {package.cache} and cannot be fetched from huggingface.co (no route to host)" in message
    assert "get_models(model_dir=" in message
    assert "pipeline.mask.weights" in message


def test_a_transfer_that_breaks_off_counts_as_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class HTTPError(Exception):
        pass

    monkeypatch.setitem(sys.modules, "httpx", types.SimpleNamespace(HTTPError=HTTPError))
    assert issubclass(HTTPError, list_download_faults())
    monkeypatch.delitem(sys.modules, "httpx")
    assert not issubclass(HTTPError, list_download_faults())


def test_only_a_readable_file_of_the_right_size_is_whole(tmp_path: Path) -> None:
    assert is_whole(write_weights(tmp_path / "a.safetensors"))
    assert not is_whole(tmp_path / "b.safetensors")
    assert not is_whole(tmp_path)
