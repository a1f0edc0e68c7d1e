"""Example patches of the other tasks in the report: what a network was given, what it and others made of it, the truth, and errors.

Patches that `evaluate` kept enter; blocks of the page leave. Answers without weights are made again from the stored patches. Those of a
network are stored, but at full resolution where it sharpens: at reduced resolution, which alone has a truth, its weights answer again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sereno.model.apertures import see_cubes
from sereno.model.batches import find_base, make_sharpening_batch, scale_optical, store_optical
from sereno.model.checkpoint import CheckpointMeta, load_checkpoint
from sereno.model.colours import Colours, choose_colours, describe_levels, measure_levels, read_wavelengths, to_colours
from sereno.model.config import ApertureSettings
from sereno.model.findings import LABELS, find_rival, list_scored, name_run
from sereno.model.making import read_meta
from sereno.model.page import Block, Heading, Legend, Shot, Shots, Text, show_day, show_share
from sereno.model.pictures import (
    Line,
    Picture,
    assign_colours,
    draw_panels,
    encode_png,
    list_error_colours,
    mark_places,
    paint_mask,
    to_error_colours,
)
from sereno.model.results import Array, Results, RunResults, read_examples
from sereno.model.scoring import CHANGED, SHARPENERS, Case, mark_changed
from sereno.model.tasks import TASKS
from sereno.pipeline.errors import MissingError, TrainingError
from sereno.pipeline.samples import SAMPLES
from sereno.pipeline.scene import REFLECTANCE_SCALE

PICTURE_PX: Final = 192
"""Smallest side of the picture of a patch; coarse images are shown with larger pixels."""
ERROR_PERCENTILE: Final = 99.0
"""Of all errors shown: errors from there on are shown brightest."""
N_SPECTRA: Final = 4
"""Pixels whose spectra are drawn."""
PIXEL_COLOURS: Final = ((230, 40, 40), (40, 120, 255), (250, 190, 0), (200, 60, 220))
"""Marks of those pixels, in their order."""
DATE_WORDS: Final = ("first date", "middle date", "last date")
"""Dates of a series."""
WITHOUT_WEIGHTS: Final = (
    "{run}: its answers at reduced resolution are not shown, since {path} is not there, damaged, or holds other weights than those that "
    "were scored: run `sereno train` and `sereno evaluate`."
)
"""What is said where weights are missing."""
STALE: Final = "{methods}: made again it is not what was scored, so it is not shown; scores are of another version: run `sereno evaluate`."
"""What is said where baselines changed since."""
SAME_SCORE: Final = 1e-3
"""Scores of the same answer differ by no larger share, whatever the machine."""


class Answers(NamedTuple):
    """What all methods made of the patches."""

    networks: dict[str, Array]
    """(patch, band, y, x) stored integers by the name of the run."""
    simple: dict[str, Array]
    """The same by method, of those that need no weights."""
    truth: Array | None
    """What is true; None where nobody knows."""
    trusted: Array
    """(patch, y, x) bool, where it is."""


class Kept(NamedTuple):
    """Example patches of all runs."""

    arrays: Mapping[str, Array]
    """Of the first run: patches as they are stored, ids and names."""
    runs: Mapping[str, tuple[RunResults, Mapping[str, Array], CheckpointMeta]]
    """Runs that have the same patches, by the name they have on the page, each with its arrays and what its checkpoint says."""
    rivals: tuple[str, ...]
    """Methods without weights that are shown, the best one among them and first."""
    results: Results
    """All results."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Optical bands."""
        return tuple(str(band) for band in self.arrays["bands"])


class Row(NamedTuple):
    """Pictures side by side that share one stretch."""

    heading: str
    """What they show."""
    shots: Sequence[Shot]
    """In reading order."""


Compose = Callable[[Kept], tuple[list[Block], list[list[Row]]]]
"""Gives words for all patches, and the rows of each patch."""


def describe_patches(results: Results) -> list[Block]:
    """Example patches of the page's task, a part for each patch."""
    kept, blocks = _gather(results)
    if kept is None:
        return blocks or [Text("No example patches were kept: set `evaluate.examples` above 0 and run `sereno evaluate`.", "missing")]
    words, rows = COMPOSERS[results.task](kept)
    blocks += words
    for name, of_patch in zip(kept.arrays["id"].tolist(), rows, strict=True):
        blocks.append(Heading(name))
        for row in of_patch:
            blocks += [Text(row.heading, "small")] if row.heading else []
            blocks.append(Shots(row.shots, "wide" if len(row.shots) == 1 else "patch", len(row.shots)))
    return blocks


def _gather(results: Results) -> tuple[Kept | None, list[Block]]:
    """Patches of all runs that have the same ones, and words on runs that are left out."""
    runs: dict[str, tuple[RunResults, Mapping[str, Array], CheckpointMeta]] = {}
    blocks: list[Block] = []
    for run in list_scored(results):
        arrays = read_examples(run)
        if not arrays:
            continue
        first = next(iter(runs.values()))[1] if runs else arrays
        meta = read_meta(run)
        if meta is None or not {"prediction", *(spec.name for spec in SAMPLES[meta.task])} <= arrays.keys():
            blocks.append(Text(f"{name_run(run)}: its example patches are of another version: run `sereno evaluate` again.", "missing"))
        elif arrays["id"].tolist() != first["id"].tolist():
            blocks.append(Text(f"{name_run(run)}: its example patches are others: run `sereno evaluate` for all runs again.", "missing"))
        else:
            runs[name_run(run)] = run, arrays, meta
    if not runs:
        return None, blocks
    run, shared, meta = next(iter(runs.values()))
    assert run.summary is not None
    best = find_rival(run.summary) if "network_minus" in run.summary else TASKS[meta.task].scoring.baselines[0]
    shown = [method for method in SHOWN[results.task] if method in run.summary["methods"]]
    return Kept(shared, runs, tuple(dict.fromkeys((best, *shown))), results), blocks


def _to_tensors(kept: Kept, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """The patches as they are stored."""
    return {spec.name: torch.from_numpy(arrays[spec.name]) for spec in SAMPLES[_meta_of(kept).task] if spec.name in arrays}


def _meta_of(kept: Kept) -> CheckpointMeta:
    return next(iter(kept.runs.values()))[2]


def _split_runs(kept: Kept) -> list[Kept]:
    """The same patches once for each camera and initial estimate, on which baselines rest, with the runs that have these."""
    parts: dict[tuple[ApertureSettings, str], list[str]] = {}
    for name, (_, _, meta) in kept.runs.items():
        parts.setdefault((meta.settings.aperture or ApertureSettings(), find_base(meta.settings)), []).append(name)
    return [kept._replace(arrays=kept.runs[names[0]][1], runs={name: kept.runs[name] for name in names}) for names in parts.values()]


def _tell_apart(label: str, part: Kept) -> str:
    """What belongs to the runs of a part alone, as it is called on the page."""
    return f"{label} (of {', '.join(part.runs)})"


def _answer_again(kept: Kept) -> tuple[Answers, list[Block]]:
    """Answers of tasks whose truth is part of the patch, and words on baselines that are no longer what was scored.

    Baselines of runs with another camera or initial estimate stand beside those of the first run where they differ.
    """
    first, *others = _split_runs(kept)
    answers, lost = _answer_part(first)
    simple = dict(answers.simple)
    for part in others:
        own, missing = _answer_part(part)
        lost += [_tell_apart(label, part) for label in missing]
        for name, images in own.simple.items():
            if name not in answers.simple or not np.array_equal(images, answers.simple[name]):
                simple[_tell_apart(LABELS.get(name, name), part)] = images
    networks = {name: arrays["prediction"] for name, (_, arrays, _) in kept.runs.items()}
    words: list[Block] = [Text(STALE.format(methods=", ".join(lost)), "missing")] if lost else []
    return answers._replace(networks=networks, simple=simple), words


@torch.inference_mode()
def _answer_part(kept: Kept) -> tuple[Answers, list[str]]:
    """The same of runs whose baselines are the same, and what the lost ones are called.

    Stored answers are taken as they are. Others are made again, and left out where their scores are not those that are stored.
    """
    networks = {name: arrays["prediction"] for name, (_, arrays, _) in kept.runs.items()}
    meta, tensors = _meta_of(kept), _to_tensors(kept, kept.arrays)
    stored = scale_optical(next(iter(networks.values())))
    task = TASKS[meta.task]
    judged = task.scoring.judge(Case(tensors, meta.signature, meta.settings, lambda *_: stored, 0.5))
    batch = task.make_batch(tensors, meta.signature, meta.settings)
    stored_as = {method: name for name, method in task.scoring.shown.items() if name in kept.arrays}
    stale = _find_stale(kept, judged.scores)
    simple = {
        name: kept.arrays[stored_as[name]] if name in stored_as else store_optical(judged.answers[name])
        for name in kept.rivals
        if name in stored_as or name not in stale
    }
    lost = [LABELS.get(name, name) for name in kept.rivals if name not in simple]
    return Answers(networks, simple, store_optical(batch.target), batch.weight[:, 0].numpy() > 0), lost


def _find_stale(kept: Kept, scores: Tensor) -> set[str]:
    """Methods whose scores (patch, method, region, column) are no longer those that were stored."""
    scoring = TASKS[_meta_of(kept).task].scoring
    methods, columns = (kept.arrays[name].tolist() for name in ("methods", "columns"))
    regions, metrics = kept.arrays["regions"].tolist(), [name for name in scoring.metrics if name in columns]
    stale = set()
    for place, method in enumerate(scoring.methods):
        ours = scores[:, place, list(scoring.regions).index(scoring.compared[0])][:, [scoring.columns.index(name) for name in metrics]]
        if method not in methods or scoring.compared[0] not in regions:
            stale.add(method)
            continue
        theirs = kept.arrays["scores"][:, methods.index(method), regions.index(scoring.compared[0])]
        if not np.allclose(ours.numpy(), theirs[:, [columns.index(name) for name in metrics]], rtol=SAME_SCORE, equal_nan=True):
            stale.add(method)
    return stale


@torch.inference_mode()
def _sharpen_coarse(kept: Kept) -> tuple[Answers, Array, Array, list[Block]]:
    """Answers at reduced resolution, the images they were made of, and words on weights that are missing."""
    meta = _meta_of(kept)
    batch = make_sharpening_batch(_to_tensors(kept, kept.arrays), meta.signature, meta.settings)
    networks, blocks = {}, []
    for name, (run, _, own) in kept.runs.items():
        path = kept.results.folder / "train" / run.name / "checkpoint.safetensors"
        try:
            loaded = load_checkpoint(path, torch.device("cpu"))
        except (MissingError, TrainingError):
            loaded = None
        if loaded is None or loaded.meta.weights_sha256 != own.weights_sha256:
            said = WITHOUT_WEIGHTS.format(run=name, path=path.relative_to(kept.results.folder))
            blocks.append(Text(said, "missing"))
            continue
        networks[name] = store_optical(loaded.network(*batch.inputs).float())
    simple = {name: store_optical(SHARPENERS[name](*batch.inputs)) for name in kept.rivals}
    answers = Answers(networks, simple, store_optical(batch.target), batch.weight[:, 0].numpy() > 0)
    return answers, store_optical(batch.inputs[0]), store_optical(batch.inputs[1]), list(blocks)


def _measure_top(answers: Answers, rival: str) -> float:
    """The error that is shown brightest on the whole page, rounded to one digit: reflectance."""
    assert answers.truth is not None
    shown = [*answers.networks.values(), answers.simple[rival]]
    errors = [_measure_error(image, answers.truth)[answers.trusted] for image in shown]
    joined = np.concatenate(errors)
    top = float(np.percentile(joined, ERROR_PERCENTILE)) if joined.size else 0.0
    digits = 10 ** math.floor(math.log10(top)) if top > 0 else 0.01
    return math.ceil(top / digits) * digits if top > 0 else 0.01


def _measure_error(image: Array, truth: Array) -> Array:
    """Absolute errors, mean over bands: (patch, band, y, x) twice -> (patch, y, x) reflectance."""
    error: Array = np.abs(image.astype(np.float32) - truth.astype(np.float32)).mean(axis=1) / REFLECTANCE_SCALE
    return error


def _explain_errors(top: float) -> list[Block]:
    words = "Errors are absolute differences from the truth, means over all bands, on one scale for the whole page; what is not trusted is "
    words += f"grey. Black is 0, yellow {top:g} and more:"
    return [Text(words, "small"), Legend([(colour, f"{share * top:.3g}") for share, colour in list_error_colours(5)])]


def _show_errors(answers: Answers, place: int, rival: str, top: float) -> list[Shot]:
    """Error maps of the best baseline and of the networks."""
    assert answers.truth is not None
    named = {LABELS.get(rival, rival): answers.simple[rival], **answers.networks}
    shots = []
    for name, images in named.items():
        error = _measure_error(images[place : place + 1], answers.truth[place : place + 1])[0]
        trusted = answers.trusted[place]
        mean = f"mean {error[trusted].mean():.4f}" if trusted.any() else "nothing is trusted"
        shots.append(Shot(encode_png(_enlarge(to_error_colours(error, trusted, top=top)), colours=64), f"error of {name}", mean))
    return shots


class Painter(NamedTuple):
    """Paints stored images of one patch alike."""

    colours: Colours
    """Bands that are shown."""
    paint: Callable[[Array], Picture]
    """(band, y, x) -> picture."""
    words: str
    """Colours and stretch."""

    def show(self, image: Array, label: str, note: str = "") -> Shot:
        """A picture of at least `PICTURE_PX` with its words."""
        return Shot(encode_png(_enlarge(self.paint(image))), label, note)


def _make_painter(images: Sequence[Array], bands: Sequence[str]) -> Painter:
    """One stretch for pictures like these (band, y, x)."""
    colours = choose_colours(bands)
    levels = measure_levels([(image, _find_answered(image)) for image in images], colours)
    return Painter(colours, lambda image: to_colours(image, _find_answered(image), colours, levels), describe_levels(colours, levels))


def _find_answered(image: Array) -> Array:
    """Where there is something at all, (band, y, x) -> (y, x): what is not known is 0 in all bands."""
    answered: Array = np.any(image, axis=0)
    return answered


def _enlarge(picture: Picture) -> Picture:
    """Pixels repeated until the picture is large enough to be seen."""
    factor = max(1, -(-PICTURE_PX // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _list_answers(painter: Painter, answers: Answers, place: int) -> list[Shot]:
    """Pictures of what all methods made of a patch, the networks last."""
    shots = [painter.show(images[place], LABELS.get(name, name)) for name, images in answers.simple.items()]
    return shots + [painter.show(images[place], name) for name, images in answers.networks.items()]


def _compose_sharpening(kept: Kept) -> tuple[list[Block], list[list[Row]]]:
    """Patches at reduced resolution with truth and errors, and as they were taken."""
    answers, ms, pan, blocks = _sharpen_coarse(kept)
    full = _sharpen_full(kept)
    top, guides = _measure_top(answers, kept.rivals[0]), [str(band) for band in kept.arrays.get("guide_bands", np.array(["sharp"]))]
    assert answers.truth is not None
    rows, words = [], ""
    for place in range(len(ms)):
        painter, guide = _make_painter([answers.truth[place]], kept.bands), _make_painter([kept.arrays["pan"][place]], guides)
        words = f"{painter.colours.words}. The sharp image: {guide.colours.words[:1].lower()}{guide.colours.words[1:]}."
        coarse = [painter.show(ms[place], "multispectral, made coarser"), guide.show(pan[place], "sharp, made coarser")]
        coarse += [*_list_answers(painter, answers, place), painter.show(answers.truth[place], "truth")]
        coarse += _show_errors(answers, place, kept.rivals[0], top)
        taken = [
            painter.show(kept.arrays["ms"][place], "multispectral, as taken"),
            guide.show(kept.arrays["pan"][place], "sharp, as taken"),
        ]
        taken += _list_answers(painter, full, place)
        rows.append([Row("At reduced resolution:", coarse), Row("At full resolution, where nobody knows the truth:", taken)])
    said = f"{words} Both rows of a patch share one stretch, that of the multispectral image as it was taken."
    return [*blocks, Text(said), *_explain_errors(top)], rows


@torch.inference_mode()
def _sharpen_full(kept: Kept) -> Answers:
    """Answers at full resolution; those of the networks are stored."""
    networks = {name: arrays["prediction"] for name, (_, arrays, _) in kept.runs.items()}
    ms, pan = (scale_optical(kept.arrays[name]) for name in ("ms", "pan"))
    simple = {name: store_optical(SHARPENERS[name](ms, pan)) for name in kept.rivals}
    return Answers(networks, simple, None, np.ones(kept.arrays["pan"].shape[::2], bool))


def _compose_fusion(kept: Kept) -> tuple[list[Block], list[list[Row]]]:
    """Three dates, fine and coarse, where land changed, and what was made of them."""
    answers, missing = _answer_again(kept)
    rival = next(iter(answers.simple))
    top, fine, coarse = _measure_top(answers, rival), kept.arrays["fine"], kept.arrays["coarse"]
    assert answers.truth is not None
    rows, words = [], ""
    for place in range(len(fine)):
        painter, days = _make_painter(list(fine[place]), kept.bands), _find_days(kept, place)
        words = painter.colours.words
        given = [painter.show(fine[place, date], f"fine, {name}", days[date]) for date, name in enumerate(DATE_WORDS)]
        given[1] = given[1]._replace(title="fine, middle date: the truth")
        given.append(_show_change(fine[place], answers.trusted[place]))
        given += [painter.show(coarse[place, date], f"coarse, {name}", days[date]) for date, name in enumerate(DATE_WORDS)]
        made = [*_list_answers(painter, answers, place), painter.show(answers.truth[place], "truth")]
        made += _show_errors(answers, place, rival, top)
        rows.append([Row("What there is; the middle fine image is what is to be made:", given), Row("What was made:", made)])
    said = f"{words}; one stretch for all pictures of a patch, from its three fine dates. Orange is land that changed: where the middle "
    said += (
        f"date lies off the mean of both outer dates by more than {CHANGED:g} reflectance, mean over bands; white land did not, grey is "
    )
    said += "not clear on all dates."
    return [*missing, Text(said), *_explain_errors(top)], rows


def _show_change(fine: Array, trusted: Array) -> Shot:
    """Where a patch changed: fine images (date, band, y, x), trusted (y, x)."""
    dates = scale_optical(fine)[None]
    changed = mark_changed(dates[:, ::2], dates[:, 1])[0].numpy() & trusted
    share = show_share(changed.sum() / trusted.sum()) if trusted.any() else "nothing is clear"
    return Shot(encode_png(_enlarge(paint_mask(changed, trusted)), colours=4), "changed", share)


def _find_days(kept: Kept, place: int) -> tuple[str, str, str]:
    """Days of the fine dates of a patch; empty where no lock has its group."""
    area, group = (*str(kept.arrays["id"][place]).split("/"), "", "")[:2]
    lock = kept.results.locks.get(area)
    found = next((one for one in lock.groups if one.id == group), None) if lock else None
    if lock is None or found is None or not all(f"fine-{date}" in found.scenes for date in (1, 2, 3)):
        return "", "", ""
    scenes = [lock.scene(found.scenes[f"fine-{date}"]) for date in (1, 2, 3)]
    days = [show_day(scene.time, scene.items[0].properties) for scene in scenes]
    return days[0], days[1], days[2]


def _compose_reconstruction(kept: Kept) -> tuple[list[Block], list[list[Row]]]:
    """Pictures, cubes in colour, errors, and spectra of some pixels."""
    answers, missing = _answer_again(kept)
    rival = next(iter(answers.simple))
    top, pictures = _measure_top(answers, rival), _take_pictures(kept)
    assert answers.truth is not None
    rows, words = [], ""
    for place in range(len(answers.truth)):
        truth, trusted = answers.truth[place], answers.trusted[place]
        painter, seen = _make_painter([truth], kept.bands), {title: images[place] for title, images in pictures.items()}
        grey = _make_painter(list(seen.values()), ["picture"])
        words, marked = painter.colours.words, choose_pixels(truth, trusted, N_SPECTRA)
        shots = [grey.show(image, title, "what the camera sees") for title, image in seen.items()] + _list_answers(painter, answers, place)
        spots = mark_places(_enlarge(painter.paint(truth)), _scale_places(marked, truth.shape[1:]), PIXEL_COLOURS)
        shots += [Shot(encode_png(spots), "truth", "with the pixels whose spectra are below")]
        shots += _show_errors(answers, place, rival, top)
        rows.append([Row("", shots), Row("Spectra of the marked pixels:", [_draw_spectra(kept, answers, place, marked)])])
    said = f"{words}; one stretch for all pictures of a patch but grey ones. Pixels are chosen so that their true spectra differ most."
    if len(_split_runs(kept)) > 1:
        said += " What runs with another camera or initial estimate start from is said to be theirs; all else is that of the first run."
    return [*missing, Text(said), *_explain_errors(top)], rows


def _take_pictures(kept: Kept) -> dict[str, Array]:
    """What the cameras of the runs see of each patch, as it is simulated in training, by title: (patch, 1, y, x)."""
    cube = torch.from_numpy(kept.arrays["cube"].astype(np.float32))
    first, *others = _split_runs(kept)
    pictures: dict[str, Array] = {"picture": see_cubes(cube, _meta_of(first).settings).picture[:, None].numpy()}
    for part in others:
        seen = see_cubes(cube, _meta_of(part).settings).picture[:, None].numpy()
        if not np.array_equal(seen, pictures["picture"]):
            pictures[_tell_apart("picture", part)] = seen
    return pictures


def _scale_places(places: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> list[tuple[float, float]]:
    """Middles of pixels in an enlarged picture."""
    factor = max(1, -(-PICTURE_PX // min(shape)))
    return [((row + 0.5) * factor, (column + 0.5) * factor) for row, column in places]


def choose_pixels(cube: Array, trusted: Array, count: int) -> list[tuple[int, int]]:
    """At most so many trusted pixels whose spectra differ most from those before, the most usual one first: (band, y, x), (y, x) bool."""
    places = np.argwhere(trusted)
    if not len(places):
        return []
    spectra = cube[:, trusted].T.astype(np.float64)
    chosen = [int(np.abs(spectra - np.median(spectra, axis=0)).sum(axis=1).argmin())]
    distance = np.full(len(places), np.inf)
    for _ in range(min(count, len(places)) - 1):
        distance = np.minimum(distance, np.abs(spectra - spectra[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return [(int(row), int(column)) for row, column in places[chosen]]


def _draw_spectra(kept: Kept, answers: Answers, place: int, marked: Sequence[tuple[int, int]]) -> Shot:
    """Spectra of the marked pixels: the truth, the initial estimate or the best baseline, and the networks."""
    assert answers.truth is not None
    waves = read_wavelengths(kept.bands)
    x, label = (waves, "wavelength, nm") if waves else (list(range(1, len(kept.bands) + 1)), "band")
    simple = {LABELS.get(name, name): images for name, images in answers.simple.items()}
    colours = assign_colours(list(simple), list(answers.networks))
    named = {"truth": answers.truth, **simple, **answers.networks}
    order = sorted(range(len(x)), key=lambda band: x[band])
    panels = []
    for number, (row, column) in enumerate(marked, 1):
        curves = [
            Line(
                name,
                [x[band] for band in order],
                [float(images[place, band, row, column]) / REFLECTANCE_SCALE for band in order],
                colours.get(name, "#000000"),
                name in simple,
            )
            for name, images in named.items()
        ]
        mark = "#{:02x}{:02x}{:02x}".format(*PIXEL_COLOURS[(number - 1) % len(PIXEL_COLOURS)])
        panels.append((f"pixel {number}", mark, curves))
    return Shot(draw_panels(panels, x_label=label, y_label="light"), "spectra")


COMPOSERS: Final[Mapping[str, Compose]] = {
    "pansharpening": _compose_sharpening,
    "spatiotemporal-fusion": _compose_fusion,
    "snapshot-reconstruction": _compose_reconstruction,
}
"""What shows patches, by task."""
SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "pansharpening": ("bicubic", "gsa"),
    "spatiotemporal-fusion": ("linear", "starfm"),
    "snapshot-reconstruction": ("estimate", "gap-tv"),
}
"""Baselines that are always shown beside the best one, by task."""
