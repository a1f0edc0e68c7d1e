"""How delivered datasets lie in folders: file names in, areas and windows out.

The Snakefile imports this file to name its jobs, so nothing but the standard library and our errors is imported.
Names are compared whole, never by substring: `s1_1` is not part of `s1_139`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from sereno.pipeline.errors import ConfigError, MissingError

SEASON: Final = r"ROIs\d+_(?:spring|summer|fall|winter)"
KINDS: Final = ("s1", "s2_cloudy", "s2")
"""SAR, cloudy and clear, as SEN12MS-CR names them (Ebel et al. 2021)."""
CLEAR_FOLDER: Final = "s2_cloudfree"
"""Name of the clear folder where the dataset was sorted into three folders with equal file names (as GLF-CR reads it)."""

CUBE_SUFFIXES: Final = (".mat", ".npy", ".tif", ".tiff")
"""Files that hold hyperspectral cubes."""
MEASUREMENT_SUFFIXES: Final = (*CUBE_SUFFIXES, ".png")
"""Files that hold pictures of a snapshot camera."""
WAVELENGTHS_SUFFIX: Final = ".wavelengths.txt"
"""What follows the stem of a cube's name in that of the file with its wavelengths."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A name that may stand in a file name."""

_KIND = r"s1|s2_cloudy|s2"
_SEASON_FOLDER = re.compile(rf"(?P<season>{SEASON})_(?P<kind>{_KIND})")
_ROI_FOLDER = re.compile(rf"(?P<kind>{_KIND})_(?P<roi>\d+)")
_PUBLISHED_FILE = re.compile(rf"(?P<season>{SEASON})_(?P<kind>{_KIND})_(?P<roi>\d+)_(?P<window>p\d+)\.tif")
_SORTED_FILE = re.compile(rf"(?P<season>{SEASON})_(?P<roi>\d+)_(?P<window>p\d+)\.tif")
_SPLIT_ENTRY = re.compile(rf"(?P<season>{SEASON})_(?P<kind>{_KIND})/(?P=kind)_(?P<roi>\d+)")


@dataclass(frozen=True)
class WindowFiles:
    """The three files of one window, relative to the dataset's folder."""

    name: str
    """Name of the window in its ROI, for example `p839`."""
    s1: str
    """SAR."""
    s2_cloudy: str
    """Cloudy optical image."""
    s2: str
    """Clear optical image."""


@dataclass(frozen=True)
class Roi:
    """One region of interest: an area of the workflow."""

    area: str
    """Season and ROI, for example `ROIs1970_fall_139`."""
    windows: tuple[WindowFiles, ...]
    """Windows with all three files, by their number."""
    refused: tuple[tuple[str, str], ...]
    """Windows or files that are not used, each with its reason."""


class _Found(NamedTuple):
    area: str
    kind: str
    window: str
    """Empty where the file's name does not fit its folder."""
    path: str


def find_sen12mscr_rois(folder: Path) -> dict[str, Roi]:
    """The ROIs of a SEN12MS-CR folder by area name, in sorted order.

    Two layouts are known: the published one, `ROIs1158_spring_s1/s1_31/ROIs1158_spring_s1_31_p5.tif`, and three folders `s1`,
    `s2_cloudy`, `s2_cloudfree` with equal file names such as `ROIs1970_fall_139_p839.tif`.

    Raises:
        MissingError: there is no such folder, or it holds no window in either layout.
    """
    if not folder.is_dir():
        raise MissingError(f"SEN12MS-CR folder {folder} does not exist: set pipeline.query.catalogue to the dataset's folder")
    is_sorted = all((folder / name).is_dir() for name in ("s1", "s2_cloudy", CLEAR_FOLDER))
    found = sorted(_find_sorted(folder) if is_sorted else _find_published(folder))
    rois = {area: _collect_roi(area, files) for area, files in _group_by_area(found).items()}
    if not any(roi.windows for roi in rois.values()):
        raise MissingError(
            f"SEN12MS-CR folder {folder} holds no complete window: expected ROIs1158_spring_s1/s1_31/ROIs1158_spring_s1_31_p5.tif "
            f"and its _s2 and _s2_cloudy partners, or the folders s1, s2_cloudy and {CLEAR_FOLDER}"
        )
    return rois


def find_cubes(folder: Path) -> dict[str, str]:
    """The cubes of a folder, name of the file by name of the area, which is its stem, in sorted order.

    Raises:
        MissingError: there is no such folder, or it holds no cube.
        ConfigError: two files have one stem, or a stem is no name.
    """
    return _find_stems(folder, CUBE_SUFFIXES, ("cube", "the name of an area", "pipeline.query.catalogue"))


def find_measurements(folder: Path) -> dict[str, str]:
    """The pictures of a snapshot camera in a folder, name of the file by its stem, which the cube will bear, in sorted order.

    Raises:
        MissingError, ConfigError: as `find_cubes`.
    """
    return _find_stems(folder, MEASUREMENT_SUFFIXES, ("measurement", "the name of a cube", "model.predict.measurements"))


def _find_stems(folder: Path, suffixes: tuple[str, ...], words: tuple[str, str, str]) -> dict[str, str]:
    """Names of files by their stems; `words` say what they are, what their stems become, and the setting that names the folder."""
    what, becomes, key = words
    if not folder.is_dir():
        raise MissingError(f"folder {folder} of {what}s does not exist: set {key} to it")
    found: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes):
        if path.stem in found or not NAME.fullmatch(path.stem):
            other = (
                f"{found[path.stem]} has the same stem" if path.stem in found else "a name has letters, digits, dot, hyphen and underscore"
            )
            raise ConfigError(f"{what} {path}: its stem becomes {becomes}, but {other}: rename it")
        found[path.stem] = path.name
    if not found:
        raise MissingError(f"folder {folder} holds no {what} ({', '.join(suffixes)}): correct {key}")
    return found


def area_of_split_entry(entry: str) -> str:
    """The area that a line of a published split list names: `ROIs1970_fall_s1/s1_3` gives `ROIs1970_fall_3`; all else names itself."""
    match = _SPLIT_ENTRY.fullmatch(entry)
    return f"{match['season']}_{match['roi']}" if match else entry


def _find_sorted(folder: Path) -> Iterator[_Found]:
    for kind, name in zip(KINDS, ("s1", "s2_cloudy", CLEAR_FOLDER), strict=True):
        for file in (folder / name).glob("*.tif"):
            match = _SORTED_FILE.fullmatch(file.name)
            if match is not None:
                yield _Found(f"{match['season']}_{match['roi']}", kind, match["window"], f"{name}/{file.name}")


def _find_published(folder: Path) -> Iterator[_Found]:
    for season_folder in folder.iterdir():
        season = _SEASON_FOLDER.fullmatch(season_folder.name)
        if season is None or not season_folder.is_dir():
            continue
        for roi_folder in season_folder.iterdir():
            roi = _ROI_FOLDER.fullmatch(roi_folder.name)
            if roi is None or roi["kind"] != season["kind"]:
                continue
            expected = (season["season"], season["kind"], roi["roi"])
            for file in roi_folder.glob("*.tif"):
                match = _PUBLISHED_FILE.fullmatch(file.name)
                fits = match is not None and match.group("season", "kind", "roi") == expected
                window = match["window"] if match is not None and fits else ""
                path = f"{season_folder.name}/{roi_folder.name}/{file.name}"
                yield _Found(f"{season['season']}_{roi['roi']}", season["kind"], window, path)


def _group_by_area(found: list[_Found]) -> dict[str, list[_Found]]:
    grouped: dict[str, list[_Found]] = {}
    for entry in found:
        grouped.setdefault(entry.area, []).append(entry)
    return grouped


def _collect_roi(area: str, found: list[_Found]) -> Roi:
    """The ROI of the files `found` in it: complete windows kept, the others refused with what they lack."""
    refused = [(entry.path, "its name does not fit the folder it lies in") for entry in found if not entry.window]
    files: dict[str, dict[str, str]] = {}
    for entry in found:
        if entry.window:
            files.setdefault(entry.window, {})[entry.kind] = entry.path
    windows = []
    for name in sorted(files, key=lambda window: int(window.removeprefix("p"))):
        missing = [kind for kind in KINDS if kind not in files[name]]
        if missing:
            refused.append((name, f"no {' and no '.join(missing)} file"))
        else:
            windows.append(WindowFiles(name, **files[name]))
    return Roi(area, tuple(windows), tuple(refused))
