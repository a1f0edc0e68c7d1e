"""Pictures: colours mean what they say, nothing depends on what was drawn before, and files stay small."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from sereno.model import pictures
from sereno.pipeline.errors import MissingError, StoreError

BANDS = ("B02", "B03", "B04", "B08")


def decode(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def ramp(low: int, high: int, *, bands: int = 4, side: int = 64) -> np.ndarray:
    return np.broadcast_to(np.linspace(low, high, side * side).reshape(side, side), (bands, side, side)).astype(np.uint16)


def everywhere(side: int = 64) -> np.ndarray:
    return np.ones((side, side), bool)


def test_the_stretch_is_the_percentiles_of_valid_pixels_alone() -> None:
    image, valid = ramp(1000, 2000), everywhere()
    image[:, :8] = 60_000
    valid[:8] = False
    stretch = pictures.measure_stretch([(image, valid)], BANDS)
    expected = np.percentile(image[0][valid] / 10_000, [1, 99])
    assert stretch == pytest.approx(tuple(expected))


def test_a_few_bright_pixels_do_not_move_the_stretch() -> None:
    image = ramp(1000, 2000)
    spoilt = image.copy()
    spoilt[:, 0, :3] = 60_000
    plain, robust = (pictures.measure_stretch([(one, everywhere())], BANDS) for one in (image, spoilt))
    assert robust == pytest.approx(plain, abs=0.002)


def test_a_stretch_without_pixels_still_shows_land() -> None:
    stretch = pictures.measure_stretch([(ramp(0, 1), ~everywhere())], BANDS)
    assert stretch.low == 0 < stretch.high < 1


def test_a_flat_image_has_a_stretch_of_some_width() -> None:
    stretch = pictures.measure_stretch([(ramp(500, 500), everywhere())], BANDS)
    assert stretch.high > stretch.low


def test_true_colour_shows_red_green_and_blue_of_the_bands_so_named() -> None:
    optical = np.zeros((4, 3, 3), np.uint16)
    optical[2, 0], optical[1, 1], optical[0, 2] = 3000, 3000, 3000  # B04, B03, B02
    shown = pictures.to_true_colour(optical, np.ones((3, 3), bool), bands=BANDS, stretch=pictures.Stretch(0.0, 0.3))
    assert shown[:, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_brighter_ground_is_never_shown_darker() -> None:
    shown = pictures.to_true_colour(ramp(0, 4000), everywhere(), bands=BANDS, stretch=pictures.Stretch(0.05, 0.3))
    grey = shown[..., 0].ravel().astype(int)
    assert (np.diff(grey) >= 0).all()
    assert (grey[0], grey[-1]) == (0, 255)


def test_true_colour_without_its_bands_names_them() -> None:
    with pytest.raises(MissingError, match="B04"):
        pictures.to_true_colour(ramp(0, 1), everywhere(), bands=("B08", "B8A", "B11", "B12"), stretch=pictures.Stretch(0, 1))


def test_what_was_not_observed_has_one_colour_in_every_picture() -> None:
    valid = everywhere()
    valid[5, 7] = False
    sar = np.full((2, 64, 64), -1000, np.int16)
    shown = [
        pictures.to_true_colour(ramp(0, 4000), valid, bands=BANDS, stretch=pictures.Stretch(0, 0.3)),
        pictures.to_sar_composite(sar, valid, sar_bands=("VV", "VH")),
        pictures.to_error_colours(np.zeros((64, 64)), valid, top=0.1),
        pictures.to_provenance_colours(valid.astype(np.uint8)),
    ]
    assert {tuple(picture[5, 7].tolist()) for picture in shown} == {pictures.NOT_OBSERVED}


def test_the_sar_composite_is_vv_vh_and_their_difference() -> None:
    sar = np.zeros((2, 1, 2), np.int16)
    sar[:, 0, 0] = -1200, -1800  # VV -12 dB is the middle of -22..-2, VH -18 dB that of -28..-8, 6 dB is a third of 2..14
    sar[:, 0, 1] = -300, -2700
    shown = pictures.to_sar_composite(sar, np.ones((1, 2), bool), sar_bands=("VV", "VH"))
    assert shown[0, 0].tolist() == [128, 128, 85]
    assert shown[0, 1, 0] > 230
    assert shown[0, 1, 1] < 20
    assert shown[0, 1, 2] == 255
    swapped = pictures.to_sar_composite(sar[::-1], np.ones((1, 2), bool), sar_bands=("VH", "VV"))
    assert np.array_equal(swapped, shown)


def test_one_polarisation_is_shown_in_grey() -> None:
    shown = pictures.to_sar_composite(np.full((1, 2, 2), -1200, np.int16), np.ones((2, 2), bool), sar_bands=("VV",))
    assert shown[0, 0].tolist() == [128, 128, 128]


def test_provenance_colours_follow_their_legend() -> None:
    codes = np.array([[0, 1, 2]], np.uint16)
    assert [tuple(colour) for colour in pictures.to_provenance_colours(codes)[0].tolist()] == [
        pictures.PROVENANCE[code][1] for code in (0, 1, 2)
    ]


def test_larger_errors_are_brighter() -> None:
    shown = pictures.to_error_colours(np.linspace(0, 0.1, 16)[None], np.ones((1, 16), bool), top=0.1)
    assert (np.diff(shown[0].astype(int).sum(-1)) > 0).all()


def test_shrinking_keeps_the_mean_and_the_shape() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (120, 80, 3)).astype(np.uint8)
    shrunk = pictures.shrink_picture(picture, 40)
    assert shrunk.shape == (40, 26, 3)
    assert shrunk.mean() == pytest.approx(picture.mean(), abs=1.0)
    assert pictures.shrink_picture(picture, 120) is picture


def test_a_long_thin_picture_keeps_at_least_one_pixel() -> None:
    assert pictures.shrink_picture(np.zeros((1000, 3, 3), np.uint8), 100).shape == (100, 1, 3)


def test_a_picture_of_few_colours_survives_the_png_exactly() -> None:
    picture = pictures.to_provenance_colours(np.random.default_rng(1).integers(0, 3, (50, 40)).astype(np.uint8))
    assert np.array_equal(decode(pictures.encode_png(picture)), picture)


def test_a_photograph_is_a_third_of_its_bytes_and_looks_the_same() -> None:
    rng = np.random.default_rng(2)
    smooth = np.stack([np.add.outer(np.linspace(0, 150, 128), np.linspace(0, 60 + 20 * k, 128)) for k in range(3)], -1)
    picture = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    uri = pictures.encode_png(picture)
    assert len(uri) < 0.6 * picture.size
    assert np.abs(decode(uri).astype(int) - picture).mean() < 8


def test_joined_pictures_stand_where_their_rows_say() -> None:
    shades = [[np.full((3, 5, 3), 40 * (3 * row + column), np.uint8) for column in range(3)] for row in range(2)]
    joined = pictures.join_pictures([shades[0], shades[1][:2]])
    down, right = 3 + pictures.GAP_PX, 5 + pictures.GAP_PX
    assert joined.shape == (down + 3, 2 * right + 5, 3)
    for row, column in ((0, 0), (0, 2), (1, 1)):
        assert (joined[row * down : row * down + 3, column * right : column * right + 5] == shades[row][column]).all()
    assert (joined[3:down] == 255).all()
    assert (joined[down:, 2 * right :] == 255).all(), "a shorter row leaves its place empty"


def test_a_written_picture_is_read_as_it_was(tmp_path: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    (tmp_path / "p.png").write_bytes(pictures.to_png(picture))
    assert np.array_equal(pictures.read_png(tmp_path / "p.png"), picture)


@pytest.mark.parametrize("content", [b"", b"no picture", pictures.to_png(np.zeros((40, 40, 3), np.uint8))[:60]])
def test_a_damaged_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(StoreError, match=r"p\.png is no readable picture"):
        pictures.read_png(tmp_path / "p.png")


def draw_all() -> dict[str, Callable[[], str]]:
    nan = float("nan")
    plots = [pictures.Plot((0, 0, 5600, 5600), "train"), pictures.Plot((5600, 0, 11200, 5600), "test")]
    field = pictures.Arrows("a pair", (100, 200), [pictures.Arrow(10, 20, 1.5, -2, True), pictures.Arrow(50, 60, 0, 0, False)])
    return {
        "lines": lambda: pictures.draw_lines(
            [pictures.Line("a", [0, 1, 2], [3, 2, 1], "#0072B2")], x_label="step", y_label="loss", log=True
        ),
        "bars": lambda: pictures.draw_bars(["0-20 %"], [pictures.Bars("a", [nan], "#000")], x_label="x", y_label="y", digits=1),
        "map": lambda: pictures.draw_map(plots, (0, 0, 11200, 5600), title="west"),
        "arrows": lambda: pictures.draw_arrows([field] * 4),
        "histogram": lambda: pictures.draw_histogram([0.1, 0.2, 0.9], x_label="px", y_label="windows"),
    }


@pytest.mark.parametrize("name", ["lines", "bars", "map", "arrows", "histogram"])
def test_a_chart_has_the_same_bytes_each_time_and_leaves_no_figure_behind(name: str) -> None:
    settings = dict(mpl.rcParams)
    first = draw_all()[name]()
    assert draw_all()[name]() == first
    assert dict(mpl.rcParams) == settings
    assert decode(first).std() > 5, "the chart is empty"
    assert len(first) < 150_000


def test_the_map_shows_each_split_in_its_colour() -> None:
    shown = decode(draw_all()["map"]())
    for split in ("train", "test"):
        wanted = np.array([int(pictures.SPLIT_COLOURS[split][place : place + 2], 16) for place in (1, 3, 5)])
        assert (np.abs(shown.astype(int) - wanted).max(-1) <= 6).mean() > 0.02, split


def test_arrows_point_where_content_lies() -> None:
    """A shift of (+dy, 0) is an arrow downwards: its tip, the widest part, lies below its tail."""
    shown = decode(pictures.draw_arrows([pictures.Arrows("t", (100, 100), [pictures.Arrow(50, 50, 3, 0, True)])]))
    blue = (shown[..., 2] > shown[..., 0].astype(int) + 60)[: int(0.8 * len(shown))]
    widths = blue.sum(1)
    rows = np.flatnonzero(widths)
    head = np.average(rows, weights=np.maximum(widths[rows] - np.median(widths[rows]), 0))
    assert head > rows.mean()


def test_every_method_has_a_colour_of_its_own() -> None:
    colours = pictures.assign_colours(["copy", "mean", "fill"], ["a", "b", "c"])
    assert len(set(colours.values())) == 6


def test_a_checkerboard_shows_both_pictures_in_turn_each_in_its_place() -> None:
    first, second = (np.random.default_rng(seed).integers(0, 256, (70, 50, 3)).astype(np.uint8) for seed in (1, 2))
    board = pictures.join_checkerboard(first, second, field_px=20)
    for top, left in ((0, 0), (0, 20), (20, 0), (60, 40)):
        shown = first if (top + left) // 20 % 2 == 0 else second
        assert np.array_equal(board[top : top + 20, left : left + 20], shown[top : top + 20, left : left + 20])
    assert np.array_equal(pictures.join_checkerboard(first, first, field_px=7), first)
