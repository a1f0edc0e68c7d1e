"""Who finds clouds: one function per method. One image of a pair enters, probabilities leave, with the version of what made them.

The methods are the scene classification, our own rules for images with and without cirrus, and two packages that come as extras: they
are imported only when used, and where one is not installed or has no weights, one line says what was looked for, where, and what mends
it. For `auto` the first of them that a pair has everything for is chosen.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from safetensors import SafetensorError, safe_open

from sereno.pipeline.clouds import (
    CLOUDY,
    HAZE_VERSION,
    SCL_NODATA,
    SHADOW_BANDS,
    THRESHOLD_BANDS,
    VERSION,
    Float2d,
    Sun,
    Visible,
    find_by_haze,
    find_by_thresholds,
    find_in_scl,
    find_shadow,
)
from sereno.pipeline.config import CloudMethod, MaskSettings
from sereno.pipeline.errors import CatalogueError, DataError, MissingError
from sereno.pipeline.geometry import measure_pixel
from sereno.pipeline.imagers import IMAGERS
from sereno.pipeline.pairs import is_gaofen
from sereno.pipeline.radiometry import to_reflectance
from sereno.pipeline.scene import Bool2d, bands_of, geobox_of

S2CLOUDLESS_BANDS: Final = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12")
"""What s2cloudless looks at, in its order."""
BLOCK_ROWS: Final = 256
"""Rows that s2cloudless judges at a time: it copies what it is given to float64, 80 bytes per pixel."""
OMNICLOUDMASK_BANDS: Final = ("B04", "B03", "B8A")
"""Red, green and near infrared, in the order of OmniCloudMask; its authors read B8A."""
NARROW_NIR, NIR = "B8A", "B08"
"""Where B8A was not kept, B08 stands for it."""
GAOFEN_OMNICLOUDMASK_BANDS: Final = ("B3", "B2", "B4")
"""The same of Gaofen, PMS and WFV alike."""
OMNICLOUDMASK_PIXEL_M: Final = 10.0
"""Finer images are averaged to this or the next coarser whole multiple: OmniCloudMask was made for 10 to 50 m (Wright et al. 2025)."""
VISIBLE_BANDS: Final = (("B1", "B2", "B3", "B4"), ("B02", "B03", "B04", "B08"))
"""Blue, green, red and near infrared: of Gaofen, of Sentinel-2."""
EXPERIMENTAL: Final = "experimental"
"""Stands in the version of what no real masks have tested."""
MIN_SIDE_PX: Final = 32
"""Smallest image that OmniCloudMask takes."""
OMNICLOUDMASK_FLOOR: Final = 0.001
"""OmniCloudMask adds this to the confidence of every class."""
MIN_WEIGHTS_BYTES: Final = 1024 * 1024
"""Weights not larger than this count as torn, and OmniCloudMask would fetch them again."""
L2A: Final = "sentinel2-l2a"
"""The sensor of Sentinel whose reflectance is that of the ground, as is that of all imagers."""


class Image(NamedTuple):
    """One image of a pair."""

    pair: xr.Dataset
    """The pair, read on demand."""
    role: str
    """`cloudy` or `clear`."""
    where: str
    """Names the pair in messages."""
    setting: str = "pipeline.mask.method"
    """The setting that asks for the method, for messages."""


class Detection(NamedTuple):
    """What a method says of one image."""

    cloud: Float2d
    """(y, x), probability of cloud in 0..1; 0 and 1 alone where the method knows nothing between."""
    shadow: Float2d
    """(y, x), likewise for shadows of clouds."""
    version: str
    """Version of the rules, or of the package; two names if cloud and shadow come from two methods."""
    weights: dict[str, str]
    """SHA-256 of each file of weights; empty where there are none."""
    known: Bool2d | None = None
    """(y, x), False where the method could not decide; None = it could everywhere."""
    unknown: str | None = None
    """Why it could not, and the remedy; None if it could everywhere."""


class Choice(NamedTuple):
    """The method that `auto` comes to."""

    method: CloudMethod
    """It decides."""
    why: str
    """What those before it lack, in words without a path."""


def choose_method(images: Sequence[Image], settings: MaskSettings) -> Choice:
    """The best method that all `images` of a pair can be masked by, so that both get theirs alike; nothing is fetched for it.

    Surface reflectance whose classification is lost, and for which no other method is there, stays with `scl`, which then knows nothing.

    Raises:
        DataError: no method can mask them; the message says what each lacks.
    """
    passed: list[str] = []
    for method, find_lack in CHOICES:
        lack = next(filter(None, (find_lack(image, settings) for image in images)), None)
        if lack is None:
            return Choice(method, "; ".join(passed) or "each image has a scene classification")
        passed.append(lack)
    if any(_is_surface(image) for image in images):
        return Choice("scl", "; ".join(passed))
    raise DataError(
        f"{images[0].where}: no cloud method can mask this pair ({'; '.join(passed)}): keep all bands in pipeline.ingest.bands, or install "
        "the extra omnicloudmask and name the folder of its weights in pipeline.mask.weights"
    )


def _tell_no_classes(image: Image, _settings: MaskSettings) -> str | None:
    return None if f"scl_{image.role}" in image.pair else f"the {image.role} image has no scene classification"


def _tell_no_omnicloudmask(image: Image, settings: MaskSettings) -> str | None:
    """What OmniCloudMask lacks to work on the image as things are."""
    missing = find_missing(image, _choose_bands(image))
    if missing:
        return f"the {image.role} image has no band {', '.join(missing)} for omnicloudmask"
    try:
        package = import_extra("omnicloudmask", image.setting)
    except MissingError:
        return "omnicloudmask is not installed or cannot be imported"
    whole = all(is_whole(file) for file in list_weights(package, settings.weights))
    place = "the folder of pipeline.mask.weights" if settings.weights else "its cache"
    return None if whole else f"weights of omnicloudmask are not in {place} or not whole"


def _tell_no_haze(image: Image, _settings: MaskSettings) -> str | None:
    missing = find_missing(image, VISIBLE_BANDS[0]) if _is_gaofen(image) else ()
    if missing:
        return f"the {image.role} image has no band {', '.join(missing)} for haze"
    return None if _is_gaofen(image) else "haze is for Gaofen"


def _tell_no_thresholds(image: Image, _settings: MaskSettings) -> str | None:
    missing = find_missing(image, THRESHOLD_BANDS)
    return f"the {image.role} image has no band {', '.join(missing)} for threshold" if missing else None


CHOICES: Final[tuple[tuple[CloudMethod, Callable[[Image, MaskSettings], str | None]], ...]] = (
    ("scl", _tell_no_classes),
    ("omnicloudmask", _tell_no_omnicloudmask),
    ("haze", _tell_no_haze),
    ("threshold", _tell_no_thresholds),
)
"""The order of `auto`: a method, and what an image lacks for it in words, None if nothing."""


def detect_clouds(image: Image, method: CloudMethod, settings: MaskSettings) -> Detection:
    """Cloud and shadow of `image` by `method`. Pixels that are not valid get a verdict too, which means nothing.

    A classification that is lost, of the whole image or of a part, is no fault of the settings: what it says there is not known.

    Raises:
        DataError: the image is of a product that never has the classification, or lacks the bands, that the method needs, or is of a
            level that it does not know.
        MissingError: the package of the method, or its weights, are not there.
        CatalogueError: weights cannot be fetched now.
    """
    return DETECTORS[method](image, settings)


def _detect_by_scl(image: Image, _settings: MaskSettings) -> Detection:
    name = f"scl_{image.role}"
    if name not in image.pair and not _is_surface(image):
        others = "'haze' or 'omnicloudmask'" if _is_gaofen(image) else "'threshold' for L1C products"
        raise DataError(
            f"{image.where}: the {image.role} image has no scene classification, which method 'scl' needs: set {image.setting} to {others}"
        )
    shape = image.pair[f"valid_{image.role}"].shape
    classes = image.pair[name].values if name in image.pair else np.full(shape, SCL_NODATA, np.uint8)
    reason = f"the {image.role} image has no scene classification, so its clouds are not known: set {image.setting} to 'omnicloudmask'"
    return _from_masks(*find_in_scl(classes))._replace(known=classes != SCL_NODATA, unknown=reason)


def _detect_by_thresholds(image: Image, _settings: MaskSettings) -> Detection:
    check_bands(image, "threshold", THRESHOLD_BANDS)
    found = find_by_thresholds(read_bands(image, THRESHOLD_BANDS), sun=_sun_of(image), pixel_m=_pixel_of(image))
    return _from_masks(*found)


def _from_masks(cloud: Bool2d, shadow: Bool2d) -> Detection:
    return Detection(cloud.astype(np.float32), shadow.astype(np.float32), str(VERSION), {})


def _detect_by_s2cloudless(image: Image, _settings: MaskSettings) -> Detection:
    """The probability of s2cloudless (Zupanc 2017), pixel by pixel and not smoothed; shadows, which it does not look for, by our rules."""
    if _is_surface(image):
        raise DataError(
            f"{image.where}: the {image.role} image is {_sensor_of(image)}, and s2cloudless is meant for L1C alone: in its maintainers' "
            f"words it won't work on L2A (sentinel2-cloud-detector, issue 79); set {image.setting} to 'scl' or 'omnicloudmask'"
        )
    check_bands(image, "s2cloudless", tuple(dict.fromkeys((*S2CLOUDLESS_BANDS, *SHADOW_BANDS))))
    package = import_extra("s2cloudless", image.setting)
    detector = package.S2PixelCloudDetector(all_bands=False)
    valid = image.pair[f"valid_{image.role}"].values
    cloud = np.zeros(valid.shape, np.float32)
    for rows in _list_blocks(valid.shape[0]):
        inside = valid[rows]
        if inside.any():
            bands = read_bands(image, S2CLOUDLESS_BANDS, rows)
            pixels = np.stack([band[inside] for band in bands.values()], axis=-1)
            cloud[rows][inside] = detector.get_cloud_probability_maps(pixels[None, :, None, :])[0, :, 0]
    shadow = find_shadow(read_bands(image, SHADOW_BANDS), (cloud >= CLOUDY) & valid, sun=_sun_of(image), pixel_m=_pixel_of(image))
    version = f"{package.__version__}; shadow by threshold {VERSION}"
    return Detection(cloud, shadow.astype(np.float32), version, _describe_files([Path(detector.model_filename)]))


def _detect_by_omnicloudmask(image: Image, settings: MaskSettings) -> Detection:
    """The confidences of OmniCloudMask (Wright et al. 2025): thin and thick cloud together, and shadow.

    It runs on the CPU in float32, so that equal images get equal masks wherever it runs.
    """
    names = _choose_bands(image)
    check_bands(image, "omnicloudmask", names)
    package = import_extra("omnicloudmask", image.setting)
    files = find_weights(package, settings.weights)
    valid = image.pair[f"valid_{image.role}"].values
    # It takes pixels that are 0 in all bands for missing ones: dark ground must not look like that.
    values = np.stack([np.where(valid, np.maximum(image.pair[image.role].sel(band=name).values, 1), 0) for name in names])
    factor = max(math.ceil(OMNICLOUDMASK_PIXEL_M / _pixel_of(image) - 1e-6), 1)
    coarse = average_valid(values, valid, factor)
    lacking = [max(MIN_SIDE_PX - side, 0) for side in coarse.shape[1:]]
    padded = np.pad(coarse, ((0, 0), (0, lacking[0]), (0, lacking[1])))
    with warnings.catch_warnings():  # they are about patches made smaller to fit the image, which is what we want
        warnings.simplefilter("ignore", UserWarning)
        confidence = package.predict_from_array(
            padded, inference_device="cpu", export_confidence=True, destination_model_dir=files[0].parent
        )
    fine = confidence.repeat(factor, axis=1).repeat(factor, axis=2)[:, : valid.shape[0], : valid.shape[1]].astype(np.float32)
    _clear, thick, thin, shadow = np.clip(fine - np.float32(OMNICLOUDMASK_FLOOR), 0, 1) * valid
    version = f"{package.__version__}; {EXPERIMENTAL} on Gaofen" if names == GAOFEN_OMNICLOUDMASK_BANDS else package.__version__
    return Detection(np.minimum(thick + thin, 1), shadow, version, _describe_files(files))


def _choose_bands(image: Image) -> tuple[str, ...]:
    """Names of red, green and near infrared for OmniCloudMask."""
    bands = bands_of(image.pair)
    if _is_gaofen(image):
        return GAOFEN_OMNICLOUDMASK_BANDS
    return tuple(NIR if name == NARROW_NIR and NARROW_NIR not in bands else name for name in OMNICLOUDMASK_BANDS)


def average_valid(values: npt.NDArray[Any], valid: Bool2d, factor: int) -> npt.NDArray[np.float32]:
    """Mean of the valid pixels of each `factor` x `factor` block, (band, y, x) to (band, y / factor, x / factor) rounded up, float32.

    A block without a valid pixel is 0.
    """
    if factor == 1:
        return values.astype(np.float32)
    lacking = [(0, -side % factor) for side in valid.shape]
    inside = np.pad(valid, lacking)
    rows, columns = (side // factor for side in inside.shape)
    blocks = (rows, factor, columns, factor)
    sums = np.pad(np.where(valid, values, 0), ((0, 0), *lacking)).astype(np.float64).reshape(-1, *blocks).sum(axis=(2, 4))
    mean: npt.NDArray[np.float32] = (sums / np.maximum(inside.reshape(blocks).sum(axis=(1, 3)), 1)).astype(np.float32)
    return mean


def _detect_by_haze(image: Image, _settings: MaskSettings) -> Detection:
    if _is_surface(image):
        raise DataError(
            f"{image.where}: the {image.role} image is {_sensor_of(image)}, and method 'haze' is for reflectance at the top of the "
            f"atmosphere: set {image.setting} to 'scl' or 'omnicloudmask'"
        )
    names = VISIBLE_BANDS[0 if _is_gaofen(image) else 1]
    check_bands(image, "haze", names)
    bands = read_bands(image, names)
    found = find_by_haze(Visible(*(bands[name] for name in names)), sun=_sun_of(image), pixel_m=_pixel_of(image))
    return _from_masks(*found)._replace(version=f"{HAZE_VERSION}; {EXPERIMENTAL}")


DETECTORS: Final[Mapping[CloudMethod, Callable[[Image, MaskSettings], Detection]]] = {
    "scl": _detect_by_scl,
    "threshold": _detect_by_thresholds,
    "haze": _detect_by_haze,
    "s2cloudless": _detect_by_s2cloudless,
    "omnicloudmask": _detect_by_omnicloudmask,
}
"""A new method is one function, one line here and one word in `config.CloudMethod`."""


def check_bands(image: Image, method: str, names: tuple[str, ...]) -> None:
    """Refuse an image that lacks a band that `method` needs.

    Raises:
        DataError: it does; the message names what to set.
    """
    missing = find_missing(image, names)
    if missing:
        remedy = (
            f"Gaofen never has it: set {image.setting} to 'haze' or 'omnicloudmask'"
            if _is_gaofen(image) and method not in ("haze", "omnicloudmask")
            else f"{_sensor_of(image)} never has it: set {image.setting} to 'scl' or 'omnicloudmask'"
            if _is_surface(image) and "B10" in missing
            else f"keep all bands in pipeline.ingest.bands, or set {image.setting} to another method"
        )
        raise DataError(f"{image.where}: the {image.role} image has no band {', '.join(missing)}, which method '{method}' needs: {remedy}")


def find_missing(image: Image, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the bands `names` an image lacks."""
    bands = bands_of(image.pair)
    return tuple(name for name in names if name not in bands)


def read_bands(image: Image, names: tuple[str, ...], rows: slice = slice(None)) -> dict[str, Float2d]:
    """Reflectance of the bands `names`, each (y, x) float32, of all rows or of some."""
    return {name: to_reflectance(image.pair[image.role].sel(band=name).isel(y=rows).values) for name in names}


def import_extra(name: str, setting: str) -> Any:
    """The package of the extra `name`; `setting` asks for it.

    Raises:
        MissingError: it is not installed, or fails when imported; the message names the command that mends it.
    """
    remedy = f"run `pip install 'sereno[{name}]'`, or choose another {setting}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(f"{setting} asks for '{name}', but {error.name} is not installed in {sys.prefix}: {remedy}") from None
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
        raise MissingError(f"{setting} asks for '{name}', which cannot be imported ({_first_line(error)}): {remedy}") from error


def find_weights(package: Any, folder: Path | None) -> list[Path]:
    """The files of weights that OmniCloudMask will load: in `folder`, or else in its own cache, fetched there if need be.

    Raises:
        MissingError: they are not in `folder`, or not whole.
        CatalogueError: they are not in the cache and cannot be fetched now.
    """
    files = list_weights(package, folder)
    lacking = [file.name for file in files if not is_whole(file)]
    if lacking and folder is None:
        _fetch_weights(package, files[0].parent)
        lacking = [file.name for file in files if not is_whole(file)]
    if lacking:
        raise MissingError(
            f"weights of omnicloudmask {package.__version__} are not in {files[0].parent} or not whole: {', '.join(lacking)}; where there "
            f"is a network run `{_fetching_command(folder)}` and name that folder in pipeline.mask.weights"
        )
    return files


def list_weights(package: Any, folder: Path | None) -> list[Path]:
    """The files that the newest model of the installed package consists of, in `folder` or else in its own cache, there or not."""
    download = _import_download(package)
    newest, place = download.get_latest_model_version(), folder or download.get_model_data_dir()
    with download.model_index_path.open() as stream:
        return [place / row["file_name"] for row in csv.DictReader(stream) if float(row["version"]) == newest]


def _import_download(package: Any) -> Any:
    return importlib.import_module(f"{package.__name__}.download_models")


def is_whole(file: Path) -> bool:
    """Whether `file` is there, of a size that weights have, and has the structure of a safetensors file."""
    if not file.is_file() or file.stat().st_size <= MIN_WEIGHTS_BYTES:
        return False
    try:
        with safe_open(file, framework="numpy"):
            return True
    except SafetensorError:
        return False


def _fetch_weights(package: Any, place: Path) -> None:
    try:
        _import_download(package).get_models(force_download=True, model_dir=place)
    except list_download_faults() as error:
        raise CatalogueError(
            f"weights of omnicloudmask {package.__version__} are not in its cache {place} and cannot be fetched from huggingface.co "
            f"({_first_line(error.__cause__ or error)}): run again where there is a network, or there run "
            f"`{_fetching_command(None)}` and name that folder in pipeline.mask.weights"
        ) from error


def list_download_faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when it cannot connect, as a ValueError where a file is wanted afresh, or when a transfer breaks off."""
    httpx: Any = sys.modules.get("httpx")  # its HTTP library; earlier ones raise an OSError
    return (OSError, ValueError, httpx.HTTPError) if httpx else (OSError, ValueError)


def _fetching_command(folder: Path | None) -> str:
    return f"python -c \"from omnicloudmask.download_models import get_models; get_models(model_dir='{folder or 'weights'}')\""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _describe_files(files: list[Path]) -> dict[str, str]:
    described = {}
    for file in files:
        with file.open("rb") as stream:
            described[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return described


def _list_blocks(n_rows: int) -> Iterator[slice]:
    return (slice(top, min(top + BLOCK_ROWS, n_rows)) for top in range(0, n_rows, BLOCK_ROWS))


def _facts_of(image: Image) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = image.pair.attrs["provenance"].get(image.role, {})
    return facts


def _is_surface(image: Image) -> bool:
    return _sensor_of(image) in (L2A, *IMAGERS)


def _sensor_of(image: Image) -> str:
    return str(_facts_of(image).get("sensor"))


def _is_gaofen(image: Image) -> bool:
    return is_gaofen(str(_facts_of(image).get("sensor")))


def _sun_of(image: Image) -> Sun | None:
    azimuth, elevation = (_facts_of(image).get(name) for name in ("sun_azimuth_deg", "sun_elevation_deg"))
    return None if azimuth is None or elevation is None else Sun(azimuth, elevation)


def _pixel_of(image: Image) -> float:
    return measure_pixel(geobox_of(image.pair))
