"""Pictures for the report: arrays and numbers in, PNG data URIs out.

All optical pictures of a page share one stretch, so that they can be compared by eye; ground that was not observed has one colour
everywhere. Figures are made with Matplotlib's objects alone, so nothing global changes and equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from sereno.pipeline.bands import rgb_indices
from sereno.pipeline.errors import StoreError
from sereno.pipeline.scene import CENTI_DB, REFLECTANCE_SCALE

STRETCH_PERCENTILES: Final = (1.0, 99.0)
"""Values below and above are shown black and white."""
DISPLAY_GAMMA: Final = 1.5
"""Exponent that lifts dark ground on a screen; the same for every picture."""
MAX_STRETCH_SAMPLES: Final = 200_000
"""Values per image that the stretch is measured on; more change nothing that an eye could see."""
SAR_DISPLAY_DB: Final = {"VV": (-22.0, -2.0), "VH": (-28.0, -8.0), "VV-VH": (2.0, 14.0)}
"""Range of each channel of the SAR composite in dB, about the 2nd to 98th percentile of C band over land.
HH and HV have those of VV and VH."""
NOT_OBSERVED: Final = (96, 96, 104)
"""Colour of ground without a value, in every picture."""
PROVENANCE: Final = {0: ("not observed", NOT_OBSERVED), 1: ("observed", (196, 222, 200)), 2: ("reconstructed", (214, 120, 40))}
"""Codes of the provenance band with their words and colours."""
ERROR_COLOURS: Final = "inferno"
"""Colour scale of error maps."""
SERIES_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
"""Colours that stay apart for colour-blind eyes (Okabe & Ito 2008), yellow darkened for white paper."""
BASELINE_COLOURS: Final = ("#8C8C8C", "#BDB39B", "#5E6B77", "#D9D9D9")
"""Quiet colours of methods that need no weights."""
SPLIT_COLOURS: Final = {"train": "#7FB2D6", "val": "#F0C75E", "test": "#D55E00"}
"""Colours of the splits on maps."""
GAP_PX: Final = 4
"""White lines between pictures that are joined into one."""
CHART_DPI: Final = 144
"""Twice the resolution of a plain screen, so that print is sharp."""
GRID_COLOUR: Final = "#D5D9DE"
"""Hairlines of charts."""
INK: Final = "#23303B"
"""Text and lines of charts."""

Array = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]
"""(y, x, 3) red, green, blue."""


class Stretch(NamedTuple):
    """Which reflectance is shown black and which white."""

    low: float
    """Shown black; reflectance, 1.0 = 100 %."""
    high: float
    """Shown white; reflectance."""


def measure_stretch(images: Iterable[tuple[Array, Array]], bands: tuple[str, ...]) -> Stretch:
    """One stretch for all pictures from (optical (band, y, x) stored integers, valid (y, x)) pairs; give clear images, not clouds.

    Red, green and blue share it, so that colours stay true. Without one valid pixel it is 0 to 0.3, which suits most land.

    Raises:
        MissingError: `bands` lack red, green or blue.
    """
    indices = list(rgb_indices(bands))
    samples = [np.zeros(0)]
    for optical, valid in images:
        values = optical[indices][:, valid].ravel()
        samples.append(values[:: max(1, values.size // MAX_STRETCH_SAMPLES)] / REFLECTANCE_SCALE)
    joined = np.concatenate(samples)
    if not joined.size:
        return Stretch(0.0, 0.3)
    low, high = (float(value) for value in np.percentile(joined, STRETCH_PERCENTILES))
    return Stretch(low, max(high, low + 0.01))


def to_true_colour(optical: Array, valid: Array, *, bands: tuple[str, ...], stretch: Stretch) -> Picture:
    """Red, green, blue as the eye would see them: stored (band, y, x), valid (y, x) -> (y, x, 3).

    Raises:
        MissingError: `bands` lack red, green or blue.
    """
    colours = optical[list(rgb_indices(bands))] / REFLECTANCE_SCALE
    return paint((colours - stretch.low) / (stretch.high - stretch.low), valid, gamma=DISPLAY_GAMMA)


def to_sar_composite(sar: Array, valid: Array, *, sar_bands: tuple[str, ...]) -> Picture:
    """SAR in colour over fixed ranges: centi-dB (sar_band, y, x), valid (y, x) -> (y, x, 3).

    VV, VH and VV - VH, or HH, HV and HH - HV, are red, green and blue; without such a pair the first polarisation is shown in grey.
    """
    decibel = dict(zip(sar_bands, sar.astype(np.float32) / CENTI_DB, strict=True))
    pair = next((names for names in (("VV", "VH"), ("HH", "HV")) if set(names) <= decibel.keys()), None)
    if pair is None:
        shown = [(decibel[sar_bands[0]], SAR_DISPLAY_DB.get(sar_bands[0], SAR_DISPLAY_DB["VV"]))] * 3
    else:
        like, cross = (decibel[name] for name in pair)
        shown = list(zip((like, cross, like - cross), SAR_DISPLAY_DB.values(), strict=True))
    return paint(np.stack([(values - low) / (high - low) for values, (low, high) in shown]), valid, gamma=1.0)


def paint(shares: Array, valid: Array, *, gamma: float) -> Picture:
    """(3, y, x) with 0 black and 1 white -> (y, x, 3), ground that is not valid in its own colour."""
    levels = np.round(255 * np.clip(np.nan_to_num(shares), 0, 1) ** (1 / gamma)).astype(np.uint8)
    picture: Picture = np.where(valid[..., None], np.moveaxis(levels, 0, -1), np.array(NOT_OBSERVED, np.uint8))
    return picture


def to_provenance_colours(provenance: Array) -> Picture:
    """Where each pixel comes from, in the colours of `PROVENANCE`: codes (y, x) -> (y, x, 3)."""
    table = np.tile(np.array(NOT_OBSERVED, np.uint8), (256, 1))
    for code, (_, colour) in PROVENANCE.items():
        table[code] = colour
    picture: Picture = table[provenance]
    return picture


def to_error_colours(error: Array, valid: Array, *, top: float) -> Picture:
    """Absolute error from 0 (dark) to `top` (bright): (y, x) in any unit, valid (y, x) -> (y, x, 3)."""
    shares = np.clip(np.nan_to_num(error) / top, 0, 1)
    levels = colormaps[ERROR_COLOURS](shares, bytes=True)[..., :3]
    picture: Picture = np.where(valid[..., None], levels, np.array(NOT_OBSERVED, np.uint8))
    return picture


def list_error_colours(count: int) -> list[tuple[float, str]]:
    """Shares of the brightest error, evenly from 0 to 1, with their colours for a legend."""
    shares = [number / (count - 1) for number in range(count)]
    return [(share, "#{:02x}{:02x}{:02x}".format(*colormaps[ERROR_COLOURS](share, bytes=True)[:3])) for share in shares]


def paint_mask(marked: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> Picture:
    """Marked ground in orange, other ground white, what is not known grey: (y, x) twice -> (y, x, 3)."""
    colours = np.array([(255, 255, 255), PROVENANCE[2][1], NOT_OBSERVED], np.uint8)
    picture: Picture = colours[np.where(known, marked.astype(np.intp), 2)]
    return picture


def mark_places(picture: Picture, places: Sequence[tuple[float, float]], colours: Sequence[tuple[int, int, int]]) -> Picture:
    """The picture with a ring around each place (row, column), in its colour between black and white lines, so that it shows anywhere."""
    marked = picture.copy()
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    for number, (row, column) in enumerate(places):
        distance = np.hypot(rows + 0.5 - row, columns + 0.5 - column)
        for inner, outer, colour in ((4, 5, (0, 0, 0)), (5, 8, colours[number % len(colours)]), (8, 9, (255, 255, 255))):
            marked[(distance >= inner) & (distance < outer)] = colour
    return marked


def shrink_picture(picture: Picture, longest_px: int) -> Picture:
    """`picture` with its longer side at most `longest_px`, pixels averaged over whole blocks; never enlarged.

    Rows and columns that do not fill a block are left out at the lower and right edge.
    """
    factor = math.ceil(max(picture.shape[:2]) / longest_px)
    if factor == 1:
        return picture
    rows, columns = (max(1, side // factor) for side in picture.shape[:2])
    tall, wide = min(factor, picture.shape[0]), min(factor, picture.shape[1])
    blocks = picture[: rows * tall, : columns * wide].reshape(rows, tall, columns, wide, 3)
    shrunk: Picture = np.round(blocks.mean((1, 3))).astype(np.uint8)
    return shrunk


def join_pictures(rows: Sequence[Sequence[Picture]]) -> Picture:
    """One picture with `rows` below each other and a row's pictures side by side, white lines between; all are of one size."""
    height, width = rows[0][0].shape[:2]
    down, right = height + GAP_PX, width + GAP_PX
    joined = np.full((down * len(rows) - GAP_PX, right * max(map(len, rows)) - GAP_PX, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            joined[row * down : row * down + height, column * right : column * right + width] = picture
    return joined


def to_png(picture: Picture) -> bytes:
    """(y, x, 3) as the content of a PNG file in full colour."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def read_png(path: Path) -> Picture:
    """(y, x, 3) from a PNG file.

    Raises:
        StoreError: it is damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow calls a broken header the second
        raise StoreError(f"{path} is no readable picture ({error}): delete it, or run `sereno train` again") from None


def encode_png(picture: Picture, *, colours: int = 256) -> str:
    """(y, x, 3) as a PNG data URI with a palette of at most `colours`: a third of the bytes of full colour."""
    palette = Image.fromarray(np.ascontiguousarray(picture)).quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    palette.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


class Line(NamedTuple):
    """One curve of a chart."""

    name: str
    """Its name in the legend."""
    x: Sequence[float]
    """Places along the axis."""
    y: Sequence[float]
    """Values; NaN leaves a gap."""
    colour: str
    """Its colour."""
    dashed: bool = False
    """Drawn dashed."""


def draw_lines(lines: Sequence[Line], *, x_label: str, y_label: str, log: bool = False) -> str:
    """A line chart as a data URI; single points are marked, so that a curve of one value can be seen."""
    figure, axes = _start_chart(5.2, 3.0)
    for line in lines:
        style = "--" if line.dashed else "-"
        axes.plot(
            line.x, line.y, style, color=line.colour, label=line.name, linewidth=1.6, marker="o" if len(line.x) < 40 else "", markersize=3
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log:
        axes.set_yscale("log")
    _add_legend(axes, len(lines))
    return _finish_chart(figure)


def draw_panels(panels: Sequence[tuple[str, str, Sequence[Line]]], *, x_label: str, y_label: str) -> str:
    """Small line charts side by side as a data URI, each with its title, the colour of it, and its lines; one legend and one height."""
    figure = Figure(figsize=(2.6 * max(1, len(panels)), 2.7), layout="constrained")
    grid = figure.subplots(1, max(1, len(panels)), squeeze=False, sharey=True)
    for axes, (title, colour, lines) in zip(grid.flat, panels, strict=False):
        for line in lines:
            axes.plot(line.x, line.y, "--" if line.dashed else "-", color=line.colour, label=line.name, linewidth=1.5)
        axes.set_title(title, fontsize=9, color=INK)
        axes.add_patch(Rectangle((0.02, 1.03), 0.07, 0.07, transform=axes.transAxes, facecolor=colour, clip_on=False))
        axes.set_xlabel(x_label, fontsize=8, color=INK)
        axes.tick_params(labelsize=7.5, colors=INK)
        axes.grid(color=GRID_COLOUR, linewidth=0.6)
    grid.flat[0].set_ylabel(y_label, fontsize=8, color=INK)
    handles, names = grid.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, fontsize=8, frameon=False, ncols=len(names), loc="outside upper center")
    return _finish_chart(figure, colours=256)


class Bars(NamedTuple):
    """One method's bars, one per group."""

    name: str
    """Its name in the legend."""
    heights: Sequence[float]
    """One per group; NaN leaves the place empty."""
    colour: str
    """Its colour."""


def draw_bars(groups: Sequence[str], bars: Sequence[Bars], *, x_label: str, y_label: str, digits: int) -> str:
    """Grouped bars as a data URI: one group per entry of `groups`, one bar per method in it, its value above it."""
    figure, axes = _start_chart(9.0, 3.1)
    width = 0.84 / max(1, len(bars))
    for number, bar in enumerate(bars):
        places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
        drawn = axes.bar(places, np.nan_to_num(bar.heights), width * 0.94, color=bar.colour, label=bar.name)
        words = ["" if math.isnan(height) else f"{height:.{digits}f}" for height in bar.heights]
        axes.bar_label(drawn, words, fontsize=6.5, color=INK, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.14)
    _add_legend(axes, len(bars), columns=max(1, min(len(bars), 5)))
    return _finish_chart(figure)


def join_checkerboard(first: Picture, second: Picture, *, field_px: int) -> Picture:
    """Fields of two pictures of one ground in turn, (y, x, 3) twice -> (y, x, 3); what goes on across their borders lies in place."""
    rows, columns = (np.arange(length) // field_px for length in first.shape[:2])
    joined: Picture = np.where((rows[:, None] + columns[None])[..., None] % 2 == 0, first, second)
    return joined


class Plot(NamedTuple):
    """One rectangle of ground on a map."""

    bounds_m: tuple[float, float, float, float]
    """Left, bottom, right, top in metres."""
    split: str
    """A key of `SPLIT_COLOURS`; anything else is drawn empty."""


def draw_map(plots: Sequence[Plot], outline_m: tuple[float, float, float, float], *, title: str) -> str:
    """A map of patches in the colours of their splits inside the outline of the area, axes in kilometres of the CRS."""
    figure, axes = _start_chart(3.9, 3.9)
    axes.add_patch(_to_rectangle(outline_m, facecolor="#F6F7F8", edgecolor="#8895A1", linewidth=0.9))
    for plot in plots:
        axes.add_patch(_to_rectangle(plot.bounds_m, facecolor=SPLIT_COLOURS.get(plot.split, "none"), edgecolor="white", linewidth=0.5))
    left, bottom, right, top = (value / 1000 for value in outline_m)
    margin = 0.04 * max(right - left, top - bottom)
    axes.set(xlim=(left - margin, right + margin), ylim=(bottom - margin, top + margin), aspect="equal")
    axes.set_xlabel("easting, km")
    axes.set_ylabel("northing, km")
    axes.set_title(title, fontsize=9, color=INK)
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=7)
    axes.grid(visible=False)
    present = [split for split in SPLIT_COLOURS if any(plot.split == split for plot in plots)]
    handles = [Rectangle((0, 0), 1, 1, facecolor=SPLIT_COLOURS[split], label=split) for split in present]
    if handles:
        figure.legend(handles=handles, fontsize=8, frameon=False, ncols=len(handles), loc="outside lower center")
    return _finish_chart(figure)


def _to_rectangle(bounds_m: tuple[float, float, float, float], **style: Any) -> Rectangle:
    left, bottom, right, top = (value / 1000 for value in bounds_m)
    return Rectangle((left, bottom), right - left, top - bottom, **style)


class Arrow(NamedTuple):
    """What one matching window says."""

    row: float
    """Centre, pixels of the grid."""
    col: float
    """Centre, pixels of the grid."""
    dy: float
    """Shift along rows, pixels."""
    dx: float
    """Shift along columns, pixels."""
    inlier: bool
    """Whether it agrees with the shift of the scene."""


class Arrows(NamedTuple):
    """The shift field of one pair."""

    title: str
    """Words above it."""
    shape: tuple[int, int]
    """Rows and columns of the grid."""
    arrows: Sequence[Arrow]
    """One per window."""


def draw_arrows(fields: Sequence[Arrows], *, columns: int = 3) -> str:
    """Shift fields side by side as a data URI, all with arrows of one scale; agreeing windows blue, the others orange."""
    columns = max(1, min(columns, len(fields)))
    rows = max(1, math.ceil(len(fields) / columns))
    figure = Figure(figsize=(2.7 * columns, 2.75 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    longest = max((math.hypot(arrow.dy, arrow.dx) for field in fields for arrow in field.arrows), default=1.0) or 1.0
    for axes, field in zip(grid.flat, fields, strict=False):
        _draw_field(axes, field, longest)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in (("agrees", "#0072B2"), ("does not agree", "#D55E00"))]
    label = f"longest arrow: {longest:.1f} px"
    figure.legend(handles=handles, title=label, title_fontsize=8, fontsize=8, frameon=False, ncols=2, loc="outside lower center")
    return _finish_chart(figure)


def _draw_field(axes: Axes, field: Arrows, longest: float) -> None:
    """One field; an arrow of `longest` pixels is an eighth of the scene wide."""
    rows, columns = field.shape
    for inlier, colour in ((False, "#D55E00"), (True, "#0072B2")):
        chosen = [arrow for arrow in field.arrows if arrow.inlier is inlier]
        rows_at, columns_at = [arrow.row for arrow in chosen], [arrow.col for arrow in chosen]
        down, right = [arrow.dy for arrow in chosen], [arrow.dx for arrow in chosen]
        scale = 8 * longest / max(field.shape)
        axes.quiver(columns_at, rows_at, right, down, color=colour, angles="xy", scale_units="xy", scale=scale, width=0.006, headwidth=4)
    margin = max(field.shape) / 8
    axes.set(xlim=(-margin, columns + margin), ylim=(rows + margin, -margin), aspect="equal", xticks=[], yticks=[])
    axes.set_title(field.title, fontsize=7.5, color=INK)
    axes.set_facecolor("#F6F7F8")
    for spine in axes.spines.values():
        spine.set_color(GRID_COLOUR)


def draw_histogram(values: Sequence[float], *, x_label: str, y_label: str, bins: int = 30) -> str:
    """How often values occur, as a data URI, with the median marked."""
    figure, axes = _start_chart(5.2, 2.8)
    axes.hist(values, bins=bins, color="#0072B2")
    median = float(np.median(values))
    axes.axvline(median, color="#D55E00", linewidth=1.4, label=f"median {median:.2f}")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _add_legend(axes, 1)
    return _finish_chart(figure)


def assign_colours(baselines: Sequence[str], networks: Sequence[str]) -> Mapping[str, str]:
    """A colour per method: quiet ones for the baselines, strong ones for the networks; they repeat when they run out."""
    quiet = {name: BASELINE_COLOURS[place % len(BASELINE_COLOURS)] for place, name in enumerate(baselines)}
    return quiet | {name: SERIES_COLOURS[place % len(SERIES_COLOURS)] for place, name in enumerate(networks)}


def _start_chart(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots()
    axes.grid(color=GRID_COLOUR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color("#8895A1")
    axes.xaxis.label.set(fontsize=8.5, color=INK)
    axes.yaxis.label.set(fontsize=8.5, color=INK)
    return figure, axes


def _add_legend(axes: Axes, entries: int, *, columns: int = 2) -> None:
    if entries:
        axes.figure.legend(fontsize=8, frameon=False, ncols=columns, loc="outside upper center")


def _finish_chart(figure: Figure, *, colours: int = 64) -> str:
    figure.set_dpi(CHART_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return encode_png(np.asarray(canvas.buffer_rgba())[..., :3], colours=colours)  # type: ignore[no-untyped-call]
