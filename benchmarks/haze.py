"""How well clouds are found in visible and near infrared alone: `haze` against the truth of simulated scenes, and on real browse images.

python benchmarks/haze.py [SAMPLES]

Prints one row per simulated scene at 10 m (near the 8 m of Gaofen-6 PMS) and at 20 m (near the 16 m of WFV; the rules use the four bands
that both have), with and without air between ground and satellite. With SAMPLES, the folder that holds `gaofen`, it also looks at the
browse images of Gaofen-1 and 2 and writes what it found into the folder `haze` of the present one. On real level 1C: `benchmarks/masks.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture

from sereno.pipeline import atmosphere, clouds
from sereno.pipeline.averages import average_blocks
from sereno.pipeline.bands import GAOFEN_BANDS
from sereno.pipeline.clouds import CloudShadow, Visible, find_by_haze
from sereno.pipeline.ground import compute_spectra, make_ground
from sereno.pipeline.noise import blur_image
from sereno.pipeline.overlay import Air, compute_air
from sereno.pipeline.scene import Bool2d
from sereno.pipeline.world import draw_sky, make_rng

SIZE_PX: Final = 640
"""Side of a simulated scene at 10 m."""
MOMENTS: Final = (datetime(2021, 4, 20, 3), datetime(2021, 6, 25, 3), datetime(2021, 9, 15, 3), datetime(2021, 11, 10, 3))
"""When they are seen, UTC."""
PLACE: Final = (117.4, 41.0)
"""Where, degrees east and north."""
L2A_PLACES: Final = (1, 2, 3, 7)
"""Places of Gaofen's first four bands among L2A_BANDS, in whose order the world has its colours."""
NOISE: Final = 0.002
"""Noise of the camera in reflectance."""
THIN: Final = 0.2
"""Share of the red light that does not come from the ground, from which on cloud counts as thin cloud ..."""
CLEAR: Final = 0.05
"""... and up to which as none."""
BROWSE_BLACK: Final = (0.06, 0.04, 0.05)
"""Guessed reflectance of green, red and NIR at 0, ..."""
BROWSE_WHITE: Final = (0.30, 0.28, 0.50)
"""... and at 255: how the browse images were stretched is not known."""
BROWSE_BLUE: Final = 0.03
"""Browse images have no blue: it is taken for green and this, what air alone adds."""
POINTS_OF: Final = "GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969-MSS1"
"""The browse image that was looked at by eye."""
POINTS: Final = {
    "cloud": (
        (418, 730),
        (622, 680),
        (882, 748),
        (1048, 860),
        (678, 928),
        (415, 1080),
        (408, 870),
        (575, 1143),
        (415, 937),
        (770, 655),
        (158, 475),
        (645, 240),
        (215, 570),
        (565, 405),
    ),
    "veil": ((1250, 1200), (1200, 1240), (30, 60), (40, 150)),
    "shadow": (
        (385, 738),
        (592, 682),
        (852, 753),
        (1018, 865),
        (648, 932),
        (382, 1082),
        (382, 872),
        (382, 942),
        (430, 1265),
        (732, 1070),
        (127, 480),
        (617, 240),
        (188, 572),
        (545, 410),
    ),
    "clear": (
        (515, 1210),
        (790, 1140),
        (945, 700),
        (990, 790),
        (1115, 790),
        (950, 1000),
        (1040, 740),
        (1250, 910),
        (685, 825),
        (340, 775),
        (415, 820),
        (265, 340),
        (330, 610),
        (400, 280),
    ),
}
"""Places (column, row) in that browse image where the eye sees cloud, veil, the shadow of a cloud, and sunlit ground, a third of it dark
fields. Chosen by eye, on the image."""


class Browse(NamedTuple):
    """What is known of a browse image."""

    pixel_m: float
    """About how many metres a pixel is."""
    sun: clouds.Sun
    """Where the sun stands, by the zenith and azimuth of its XML."""


BROWSES: Final = {
    "GF1_WFV3*.jpg": Browse(160.0, clouds.Sun(100.7, 90 - 13.7)),
    "GF2_PMS1*MSS1.jpg": Browse(17.5, clouds.Sun(86.7, 90 - 13.6)),
}
"""Browse images by the pattern of their names."""


class Scene(NamedTuple):
    """A simulated image and what is true of it; arrays (y, x)."""

    name: str
    """Day, kind of sky, pixel, air."""
    seen: Visible
    """What the satellite sees."""
    sun: clouds.Sun
    """Where the sun stands."""
    pixel_m: float
    """Side of a pixel, metres."""
    thick: Bool2d
    """Thick cloud hides more than half of the ground."""
    thin: Bool2d
    """Haze or cirrus hides a fifth or more, thick cloud does not."""
    none: Bool2d
    """Nothing to speak of hides it."""
    shadow: Bool2d
    """More than half of the sunlight is kept from it, and no cloud hides it."""


def make_scenes() -> Iterator[Scene]:
    """Four days under broken cloud, each at two resolutions with and without air, and a clear one."""
    for index, moment in enumerate(MOMENTS):
        for factor in (1, 2):
            for air in (True, False):
                yield make_scene(index, moment, factor=factor, air=air)
    yield make_scene(len(MOMENTS), MOMENTS[1], factor=1, air=True, cloudless=True)


def make_scene(number: int, moment: datetime, *, factor: int, air: bool, cloudless: bool = False) -> Scene:
    """Scene `number`; its ground and sky depend on `number` alone."""
    shape = (SIZE_PX, SIZE_PX)
    sun = atmosphere.compute_sun(moment, *PLACE)
    settings = draw_sky(make_rng("haze", number, "draw"), "clear" if cloudless else "cloudy", SIZE_PX)
    sky = atmosphere.make_sky(make_rng("haze", number, "sky"), shape, settings=settings, sun=sun)
    ground = make_ground(make_rng("haze", number, "ground"), shape)
    mean, contrast = compute_spectra(ground.units, moment.timetuple().tm_yday)
    rng = make_rng("haze", number, "noise")
    seen = []
    for band, place in zip(GAOFEN_BANDS, L2A_PLACES, strict=False):
        clear = blur_image(mean[ground.unit, place] + contrast[ground.unit, place] * ground.texture)
        light = atmosphere.apply_sky(clear, sky, band=place, wavelength_nm=band.wavelength_nm)
        through, path = compute_air(band.wavelength_nm, sun.elevation_deg) if air else Air(1.0, 0.0)
        image = average_blocks(light * np.float32(through) + np.float32(path), factor)
        seen.append(image + rng.normal(0, NOISE, image.shape).astype(np.float32))
    thick, veil, shade = (average_blocks(part, factor) for part in (sky.thick, sky.cloud, sky.shadow))
    name = f"{moment:%m-%d} {'clear' if cloudless else 'cloudy'}, {10 * factor} m, {'air' if air else 'no air'}"
    covered = thick > 0.5
    return Scene(
        name=name,
        seen=Visible(*seen),
        sun=clouds.Sun(*sun),
        pixel_m=10.0 * factor,
        thick=covered,
        thin=~covered & (veil > THIN),
        none=veil < CLEAR,
        shadow=(shade > 0.5) & (veil < THIN) & ~covered,
    )


class Score(NamedTuple):
    """Shares of what is true that were found, and the other way round; None where there is none."""

    thick: float | None
    """Of thick cloud, found as cloud."""
    thin: float | None
    """Of thin cloud."""
    false: float | None
    """Of what no cloud hides, called cloud."""
    shadow: float | None
    """Of shadow, found as shadow."""
    right: float | None
    """Of what is called shadow, shadow."""
    false_shadow: float | None
    """Of what no cloud hides and no cloud shades, called shadow."""


def score(scene: Scene) -> Score:
    """How `haze` does on a scene, before anything is grown."""
    found = find_by_haze(scene.seen, sun=scene.sun, pixel_m=scene.pixel_m)
    return Score(
        _share(found.cloud, scene.thick),
        _share(found.cloud, scene.thin),
        _share(found.cloud, scene.none),
        _share(found.shadow, scene.shadow),
        _share(scene.shadow, found.shadow),
        _share(found.shadow, scene.none & ~scene.shadow),
    )


def _share(part: Bool2d, whole: Bool2d) -> float | None:
    total = int(whole.sum())
    return int((part & whole).sum()) / total if total else None


def read_browse(path: Path) -> Visible:
    """A false-colour browse image (NIR, red, green) with reflectance guessed."""
    with Picture.open(path) as picture:
        counts = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[::-1] / 255
    black, white = (np.array(level, np.float32)[:, None, None] for level in (BROWSE_BLACK, BROWSE_WHITE))
    green, red, nir = black + (white - black) * counts
    return Visible(green + np.float32(BROWSE_BLUE), green, red, nir)


def look_at_browse(samples: Path) -> Iterator[tuple[Path, CloudShadow]]:
    """Each browse image and what `haze` finds in it."""
    for pattern, browse in BROWSES.items():
        for path in sorted((samples / "gaofen").rglob(pattern)):
            yield path, find_by_haze(read_browse(path), sun=browse.sun, pixel_m=browse.pixel_m)


def count_points(found: CloudShadow) -> dict[str, tuple[int, int, int]]:
    """How many of each kind of POINTS are called cloud, are called shadow, and how many there are."""
    counts = {}
    for kind, places in POINTS.items():
        columns, rows = np.array(places).T
        counts[kind] = (int(found.cloud[rows, columns].sum()), int(found.shadow[rows, columns].sum()), len(places))
    return counts


def draw_masks(image: npt.NDArray[Any], found: CloudShadow) -> Picture.Image:
    """The image, and beside it the same with cloud in yellow and shadow in blue."""
    marked = image.copy()
    marked[found.cloud] = (255, 220, 0)
    marked[found.shadow] = (0, 90, 255)
    return Picture.fromarray(np.concatenate([image, marked], axis=1))


def to_table(rows: list[tuple[str, Score]]) -> str:
    """The rows in Markdown, in percent."""
    heads = ("scene", "thick found", "thin found", "clear called cloud", "shadow found", "shadow right", "sunlit called shadow")
    lines = [heads, tuple("---" for _ in heads)]
    lines += [(name, *("none" if share is None else f"{100 * share:.1f} %" for share in found)) for name, found in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table; with samples, what was found in the browse images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, nargs="?", help="folder of sample files")
    samples = parser.parse_args().samples
    print(to_table([(scene.name, score(scene)) for scene in make_scenes()]))
    output = Path("haze")
    for path, found in look_at_browse(samples) if samples else ():
        output.mkdir(exist_ok=True)
        with Picture.open(path) as picture:
            draw_masks(np.asarray(picture.convert("RGB")), found).save(output / f"{path.stem}.png")
        print(f"{path.stem}: cloud {found.cloud.mean():.1%}, shadow {found.shadow.mean():.1%}")
        if path.stem == POINTS_OF:
            for kind, (cloud, shadow, total) in count_points(found).items():
                print(f"  of {total} points the eye calls {kind}: {cloud} cloud, {shadow} shadow")


if __name__ == "__main__":
    main()
