"""Colours: what people expect where it is there, and words that say what is shown where it is not."""

import numpy as np
import pytest

from sereno.model.colours import Levels, choose_colours, describe_levels, measure_levels, read_wavelengths, to_colours
from sereno.model.pictures import NOT_OBSERVED, Stretch, measure_stretch, to_true_colour

WAVES = tuple(f"{wave}nm" for wave in range(450, 721, 10))


@pytest.mark.parametrize(
    ("bands", "shown"),
    [
        (("B02", "B03", "B04", "B08"), "True colours: B04 is shown red, B03 green, B02 blue"),
        (("B1", "B2", "B3", "B4"), "True colours: B3 is shown red, B2 green, B1 blue"),
        (("B03", "B04", "B08"), "False colours: B08 is shown red, B04 green, B03 blue"),
        (("B05", "B06", "B07", "B8A", "B11", "B12"), "False colours: B11 is shown red, B8A green, B05 blue"),
        (WAVES, "The bands nearest to what the eye sees: 650nm is shown red, 550nm green, 460nm blue"),
        (("1000nm", "900nm", "1100nm"), "False colours: 1100nm is shown red, 1000nm green, 900nm blue"),
        (("a", "b"), "False colours: b is shown red, b green, a blue"),
        (("PAN",), "Grey: PAN"),
    ],
)
def test_the_bands_shown_are_those_one_would_choose(bands: tuple[str, ...], shown: str) -> None:
    assert choose_colours(bands).words == shown


def test_wavelengths_are_read_only_if_all_bands_state_them() -> None:
    assert read_wavelengths(("450nm", "612.5 nm")) == [450.0, 612.5]
    assert read_wavelengths(("450nm", "B02")) is None
    assert read_wavelengths(()) is None


def test_true_colours_are_painted_as_everywhere_else() -> None:
    image = np.random.default_rng(1).integers(0, 4000, (4, 16, 16)).astype(np.uint16)
    valid = image[0] > 500
    bands = ("B02", "B03", "B04", "B08")
    colours = choose_colours(bands)
    levels, stretch = measure_levels([(image, valid)], colours), measure_stretch([(image, valid)], bands)
    assert Stretch(levels.low[0], levels.high[0]) == pytest.approx(stretch)
    assert len({*levels.low}) == len({*levels.high}) == 1
    assert np.array_equal(to_colours(image, valid, colours, levels), to_true_colour(image, valid, bands=bands, stretch=stretch))


def test_false_colours_have_a_stretch_each_so_that_none_drowns_the_others() -> None:
    image = np.stack([np.tile(np.linspace(low, 2 * low, 16), (16, 1)) for low in (100, 1000, 4000)]).astype(np.uint16)
    colours = choose_colours(("B05", "B8A", "B11"))
    levels = measure_levels([(image, np.ones((16, 16), bool))], colours)
    shown = to_colours(image, np.ones((16, 16), bool), colours, levels)
    assert shown[:, -1].min() == 255
    assert shown[:, 0].max() == 0
    assert "from black to white reflectances of 0.400 to" in describe_levels(colours, levels)


def test_nothing_valid_still_shows_land_and_unseen_ground_has_its_own_colour() -> None:
    colours, nowhere = choose_colours(("PAN",)), np.zeros((2, 2), bool)
    levels = measure_levels([(np.ones((1, 2, 2), np.uint16), nowhere)], colours)
    assert levels == Levels((0.0, 0.0, 0.0), (0.3, 0.3, 0.3))
    assert describe_levels(colours, levels) == "Grey: PAN; reflectance 0.000 is black, 0.300 white."
    assert (to_colours(np.ones((1, 2, 2), np.uint16), nowhere, colours, levels) == NOT_OBSERVED).all()
