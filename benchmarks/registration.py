"""How well SAR is laid onto optical, by us and by others: error, false accepts and seconds on the same scenes.

python benchmarks/registration.py --scenes 5 --samples FOLDER

Simulated ground gives the truth; real files, if their folder is named, give shifts that were added. Prints the tables of
benchmarks/results/registration.md. Packages that are not installed are named and left out. One thread: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from scipy import ndimage

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".mypy"), str(ROOT / "benchmarks")]  # the links in .mypy lay the folders out as they are installed

from registration_peers import PEERS, Peer, Scene, make_ours  # noqa: E402 - found only now
from registration_scenes import Ground, draw_clouds, draw_field, measure_error, to_decibel  # noqa: E402

from sereno.pipeline.registration import Layer  # noqa: E402
from sereno.pipeline.shiftfield import ShiftField  # noqa: E402

SIDE: Final = 512
"""Side of a simulated scene, pixels."""
WRONG_PX: Final = 1.0
"""A field accepted with a larger error is worse than none."""
CASES: Final = {
    "shift": ("shift", 4.0, 0.0),
    "affine": ("affine", 4.0, 0.0),
    "affine, 1 look": ("affine", 1.0, 0.0),
    "quadratic": ("quadratic", 4.0, 0.0),
    "affine, 30 % cloud": ("affine", 4.0, 0.3),
}
"""Field, looks of SAR, share of clouds (masked)."""
PICTURE_SEARCH_M: Final = 200.0
"""How far is searched in the hand-aligned pictures."""

Array = npt.NDArray[np.float32]


class Trial(NamedTuple):
    """One scene with what is known of it."""

    name: str
    """Which case it belongs to."""
    scene: Scene
    """Its images."""
    true: ShiftField | None
    """The field that was put in; None if the images have nothing in common."""


@dataclass
class Score:
    """What one method did."""

    errors_px: dict[str, list[float]] = field(default_factory=dict)
    """Errors of accepted fields by case."""
    refused: dict[str, int] = field(default_factory=dict)
    """Scenes refused by case."""
    n_nulls: int = 0
    """Scenes with nothing in common."""
    n_false: int = 0
    """How many of them were accepted."""
    seconds: list[float] = field(default_factory=list)
    """CPU time per scene."""

    def add(self, trial: Trial, found: ShiftField | None, seconds: float) -> None:
        """Count one trial."""
        self.seconds.append(seconds)
        if trial.true is None:
            self.n_nulls += 1
            self.n_false += found is not None
        elif found is None:
            self.refused[trial.name] = self.refused.get(trial.name, 0) + 1
        else:
            self.errors_px.setdefault(trial.name, []).append(measure_error(found, trial.true, trial.scene.sar.valid.shape[0]))


def draw_trials(n_scenes: int) -> Iterator[Trial]:
    """Scenes with a known field, then scenes with nothing in common."""
    everywhere = np.ones((SIDE, SIDE), bool)
    grounds = [Ground(seed, SIDE) for seed in range(1, n_scenes + 1)]
    views = [(ground.draw_optical(), ground.draw_sar()) for ground in grounds]
    for number, (ground, (optical, _)) in enumerate(zip(grounds, views, strict=True)):
        for name, (degree, looks, share) in CASES.items():
            true = draw_field(degree, SIDE, seed=100 * number + len(name))  # type: ignore[arg-type]
            sar = ground.draw_sar(true, looks=looks, seed=number)
            clouds = draw_clouds(SIDE, share, seed=number) if share else ~everywhere
            covered = np.where(clouds, np.random.default_rng(number).normal(0.6, 0.05, clouds.shape), optical).astype(np.float32)
            yield Trial(name, Scene(Layer(covered, ~clouds), Layer(sar, everywhere, "sar")), true)
    for number, (optical, sar) in enumerate(views):
        others = (sar[:, :, ::-1], np.rot90(sar, axes=(1, 2)), views[(number + 1) % len(views)][1], np.roll(sar, (97, 141), axis=(1, 2)))
        for other in others:
            yield Trial("null", Scene(Layer(optical, everywhere), Layer(np.ascontiguousarray(other), everywhere, "sar")), None)


def make_peers(wanted: list[str]) -> dict[str, Peer]:
    """The methods whose packages are there."""
    peers = {}
    for name, make in PEERS.items():
        if wanted and not any(word in name for word in wanted):
            continue
        try:
            peers[name] = make()
        except ImportError as err:
            print(f"left out: {name}: {err}", file=sys.stderr)
    return peers


def run_trials(peers: dict[str, Peer], n_scenes: int) -> dict[str, Score]:
    """Every method on every trial."""
    scores = {name: Score() for name in peers}
    for trial in draw_trials(n_scenes):
        for name, peer in peers.items():
            began = time.process_time()
            found = peer(trial.scene)
            scores[name].add(trial, found, time.process_time() - began)
    return scores


def show_scores(scores: dict[str, Score]) -> None:
    """Print the table of simulated ground."""
    print(f"| method | {' | '.join(CASES)} | refused | wrong by more than {WRONG_PX:g} px | false accepts | CPU-s |")
    print("| --- " * (len(CASES) + 5) + "|")
    for name, score in scores.items():
        cells = [show_errors(score.errors_px.get(case, [])) for case in CASES]
        errors = [error for case in score.errors_px.values() for error in case]
        wrong = sum(error > WRONG_PX for error in errors)
        false = f"{score.n_false} of {score.n_nulls}"
        print(
            f"| {name} | {' | '.join(cells)} | {sum(score.refused.values())} | {wrong} | {false} | {statistics.median(score.seconds):.2f} |"
        )


def show_errors(errors_px: list[float]) -> str:
    """Median and largest error."""
    return f"{statistics.median(errors_px):.2f} / {max(errors_px):.2f}" if errors_px else "-"


def read_triplet(folder: Path) -> Scene:
    """The real SEN12MS-CR tile: clear Sentinel-2 and Sentinel-1."""
    import rasterio

    base, name = folder / "sen12mscr" / "glfcr", "ROIs1970_fall_139_p839.tif"
    with rasterio.open(base / "s2_cloudfree" / name) as clear, rasterio.open(base / "s1" / name) as sar:
        optical, decibel = clear.read((3, 4, 8)).astype(np.float32) / 10_000, sar.read().astype(np.float32)
    everywhere = np.ones(optical.shape[1:], bool)
    return Scene(Layer(optical, everywhere), Layer(decibel, everywhere, "sar"))


def run_triplet(peers: dict[str, Peer], scene: Scene) -> None:
    """Print what becomes of shifts added to real SAR, relative to none added, and of SAR turned, mirrored or moved away."""
    shifts = [tuple(pair) for pair in np.random.default_rng(0).uniform(-5.5, 5.5, (12, 2)).round(2)]
    print(
        "| method | at rest, px | added shifts recovered | error, median / largest px | turned or moved away: accepted |\n|" + " --- |" * 5
    )
    for name, peer in peers.items():
        rest = peer(scene)
        moved = [peer(Scene(scene.optical, move_sar(scene.sar, shift))) for shift in shifts]
        nulls = [peer(Scene(scene.optical, Layer(np.ascontiguousarray(other), scene.sar.valid, "sar"))) for other in turn(scene.sar.values)]
        false = f"{sum(found is not None for found in nulls)} of {len(nulls)}"
        if rest is None:
            print(f"| {name} | refused | - | - | {false} |")
            continue
        start = np.array(rest.evaluate(*rest.centre))
        known = [(found, shift) for found, shift in zip(moved, shifts, strict=True) if found is not None]
        errors = [float(np.hypot(*(np.array(found.evaluate(*found.centre)) - start - shift))) for found, shift in known]
        recovered = sum(error <= 0.15 for error in errors)
        print(f"| {name} | ({start[0]:+.2f}, {start[1]:+.2f}) | {recovered} of {len(shifts)} | {show_errors(errors)} | {false} |")


def move_sar(sar: Layer, shift: tuple[float, ...]) -> Layer:
    """SAR with its content moved, as power; what comes in from outside is not valid."""
    power = np.stack([ndimage.shift(band, shift, order=1, cval=np.nan) for band in 10 ** (sar.values / 10)])
    valid = np.isfinite(power).all(axis=0)
    return Layer(to_decibel(np.where(valid, power, 1).astype(np.float32)), valid, "sar")


def turn(values: Array) -> list[Array]:
    """Twelve ways to spoil SAR."""
    turned = [np.rot90(values, quarter, axes=(1, 2)) for quarter in (1, 2, 3)]
    turned += [values[:, ::-1], values[:, :, ::-1], values.transpose(0, 2, 1), np.rot90(values, axes=(1, 2))[:, ::-1]]
    return turned + [np.roll(values, far, axis=(1, 2)) for far in ((128, 0), (0, 128), (128, 128), (64, 0), (0, 64))]


def run_pictures(folder: Path) -> None:
    """Print how many of the hand-aligned pictures are accepted with each field, and how many swapped ones."""
    scenes = [read_picture(path) for path in sorted((folder / "volkov_s1s2_512" / "opt").glob("*.png"))]
    swapped = [Scene(scene.optical, scenes[(number + 5) % len(scenes)].sar) for number, scene in enumerate(scenes)]
    print("| descriptor | field at most | accepted | swapped: accepted |\n| --- | --- | --- | --- |")
    for descriptor in ("self-similarity", "orientations"):
        for degree in ("shift", "affine"):
            ours = make_ours(descriptor, degree, PICTURE_SEARCH_M)  # type: ignore[arg-type]
            counts = [f"{sum(ours(scene) is not None for scene in some)} of {len(some)}" for some in (scenes, swapped)]
            print(f"| {descriptor} | {degree} | {' | '.join(counts)} |")


def read_picture(path: Path) -> Scene:
    """A hand-aligned pair: pictures of reflectance and of backscatter, both divided by their 99 % quantile."""
    from PIL import Image

    with Image.open(path) as optical, Image.open(path.parent.parent / "sar" / path.name) as sar:
        colours, power = np.asarray(optical.convert("RGB"), np.float32), np.asarray(sar.convert("L"), np.float32)
    everywhere = np.ones(power.shape, bool)
    return Scene(
        Layer(colours.transpose(2, 0, 1) / 255 * 0.3, everywhere), Layer(to_decibel(np.maximum(power, 0.5) / 255)[None], everywhere, "sar")
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=5, help="simulated grounds; each gives five scenes and four with nothing in common")
    parser.add_argument("--samples", type=Path, help="folder of real files")
    parser.add_argument("--only", nargs="*", default=[], help="words of the methods to run")
    chosen = parser.parse_args()
    peers = make_peers(chosen.only)
    if chosen.scenes:
        show_scores(run_trials(peers, chosen.scenes))
    if chosen.samples is not None:
        print()
        run_triplet(peers, read_triplet(chosen.samples))
        if not chosen.only:
            print()
            run_pictures(chosen.samples)


if __name__ == "__main__":
    main()
