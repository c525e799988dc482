"""The embedded data set: captioned scenes drawn with Pillow. `(seed, index)` determines a scene; no file is needed.

A scene has a main object and a clearly smaller second one, sometimes a third, before a background. The size word of a
caption always belongs to the main object, and a relation is stated from either side ("a big star above a ring", "a
ring below a big star"), so that colour, shape, size, background and relation can each be asked for by a caption.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from ncu_hf.data.noise import Noise, inject_noise
from ncu_hf.errors import InputError

_Color = tuple[int, int, int]
_Point = tuple[float, float]

SUPERSAMPLING = 2  # drawn at twice the size and averaged: smooth edges for 0.1 ms a scene

# class -> (its words, the first is the class itself; RGB)
COLORS: dict[str, tuple[tuple[str, ...], _Color]] = {
    "red": (("red", "scarlet"), (218, 32, 36)),
    "yellow": (("yellow", "golden"), (250, 222, 30)),
    "green": (("green", "emerald"), (28, 140, 52)),
    "blue": (("blue", "cobalt"), (30, 70, 215)),
    "pink": (("pink", "rosy"), (250, 140, 190)),
    "black": (("black", "dark"), (24, 24, 26)),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
}
SIZES: dict[str, tuple[tuple[str, ...], float]] = {  # half the width of the main object, as a share of the image
    "big": (("big", "large", "huge"), 0.27),
    "small": (("small", "little", "tiny"), 0.165),
}
OTHER_SIZE = 0.12
THIRD_SHARE = 0.1  # of the scenes have a third object
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "snow": ("in the snow", "on white snow"),
    "night": ("in the night", "at night"),
    "desert": ("in the desert", "on desert sand"),
    "ocean": ("in the ocean", "in the sea"),
    "meadow": ("in the meadow", "on the grass"),
    "sky": ("in the sky", "among the clouds"),
}
# relation of the main object to the second -> (its phrases, the opposite relation, step from the second to the main)
RELATIONS: dict[str, tuple[tuple[str, ...], str, tuple[int, int]]] = {
    "left of": (("left of", "to the left of"), "right of", (-1, 0)),
    "right of": (("right of", "to the right of"), "left of", (1, 0)),
    "above": (("above", "over"), "below", (0, -1)),
    "below": (("below", "under"), "above", (0, 1)),
}
IT_PHRASES = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}

# attribute -> (classes, templates): zero-shot classification in the words of the captions
ATTRIBUTES: dict[str, tuple[list[str], list[str]]] = {
    "color": (list(COLORS), ["a big {c} shape above another shape", "a small {c} shape left of another shape"]),
    "shape": (list(SHAPE_WORDS), ["a big {c} above another shape", "a small {c} left of another shape"]),
    "size": (list(SIZES), ["a {c} shape above another shape", "a {c} shape left of another shape"]),
    "background": (list(BACKGROUND_PHRASES), ["a shape above another shape in the {c}", "in the {c}, a shape"]),
    "relation": (list(RELATIONS), ["a big shape {c} another shape", "a small shape {c} another shape"]),
}


@dataclass
class Scene:
    """A drawn scene.

    Attributes:
        image (`PIL.Image.Image`): RGB, `size` x `size` pixels.
        caption (`str`): 6 to 16 words.
        attributes (`dict[str, str]`): The true class of every entry of `ATTRIBUTES`.
        key (`str`): `"scene-0000123"` for index 123.
    """

    image: Image.Image
    caption: str
    attributes: dict[str, str]
    key: str


@dataclass
class _Thing:
    color: str
    shape: str
    radius: float  # half the width; lengths and places are shares of the image's side until it is drawn
    x: float = 0.5
    y: float = 0.5


# --- shapes: outlines in [-1, 1] x [-1, 1], y down ---------------------------------------------------------------


def _polar(radii: list[float], start: float = -0.5) -> list[_Point]:
    """Closed outline with the given radii at equal angles; `start` in units of pi (-0.5 points up)."""
    angles = [(start + 2 * i / len(radii)) * math.pi for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[_Point]:
    """The classic parametric heart, scaled into the unit box."""
    steps = [2 * math.pi * i / 28 for i in range(28)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in steps
    ]


SHAPES: dict[str, list[list[_Point]]] = {  # each a list of contours: the edge of the shape and of the hole in it
    "circle": [_polar([0.95] * 24)],
    "square": [[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]],
    "triangle": [_polar([1.1] * 3)],
    "star": [_polar([1.1, 0.45] * 5)],
    "heart": [_heart()],
    "ring": [_polar([1.0] * 24), _polar([0.5] * 24)[::-1]],
}


def _draw_thing(draw: ImageDraw.ImageDraw, thing: _Thing, edge: _Color, rng: random.Random) -> None:
    """Fill and edge of one object, slightly turned and in a slightly different tone each time."""
    turn = rng.uniform(-0.2, 0.2)
    cos, sin = thing.radius * math.cos(turn), thing.radius * math.sin(turn)
    contours = [
        [(thing.x + x * cos - y * sin, thing.y + x * sin + y * cos) for x, y in contour]
        for contour in SHAPES[thing.shape]
    ]
    closed = [[*contour, contour[0]] for contour in contours]
    draw.polygon([point for contour in closed for point in contour], fill=_tone(COLORS[thing.color][1], rng))
    for contour in closed:
        draw.line(contour, fill=edge, width=SUPERSAMPLING)


def _tone(color: _Color, rng: random.Random, spread: int = 14) -> _Color:
    """The colour, a little off."""
    red, green, blue = (min(255, max(0, round(value + rng.uniform(-spread, spread)))) for value in color)
    return red, green, blue


# --- backgrounds -------------------------------------------------------------------------------------------------


def _dots(draw: ImageDraw.ImageDraw, side: int, rng: random.Random, count: int, fill: _Color) -> None:
    """Snow flakes or stars."""
    for _ in range(count):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.008, 0.02) * side
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _land(draw: ImageDraw.ImageDraw, side: int, rng: random.Random, fill: _Color, height: float) -> None:
    """A hill over the lower part of the image."""
    top, lean = side * rng.uniform(height - 0.06, height + 0.06), rng.uniform(-0.4, 0.4) * side
    draw.ellipse((lean - 0.7 * side, top, lean + 1.7 * side, top + 2.0 * side), fill=fill)


def _snow(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _land(draw, side, rng, _tone((250, 250, 255), rng, 5), 0.4)
    _dots(draw, side, rng, 10, (255, 255, 255))


def _night(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _dots(draw, side, rng, 9, (255, 250, 200))


def _desert(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _land(draw, side, rng, _tone((226, 190, 130), rng), 0.4)
    _land(draw, side, rng, _tone((205, 165, 105), rng), 0.75)


def _ocean(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for row in range(4):
        y, shift = side * (0.06 + 0.25 * row + rng.uniform(-0.03, 0.03)), rng.uniform(-0.25, 0) * side
        for wave in range(5):
            x = shift + wave * side * 0.28
            draw.arc((x, y, x + 0.28 * side, y + 0.12 * side), 0, 180, fill=(150, 215, 235), width=SUPERSAMPLING)


def _meadow(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _land(draw, side, rng, _tone((130, 200, 90), rng), 0.28)


def _sky(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(3):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        for step in (-1, 0, 1):
            r = side * (0.09 if step else 0.13)
            draw.ellipse((x + step * 0.11 * side - r, y - r, x + step * 0.11 * side + r, y + r), fill=(245, 249, 255))


_Painter = Callable[[ImageDraw.ImageDraw, int, random.Random], None]
BACKGROUNDS: dict[str, tuple[_Color, _Painter]] = {  # class -> (ground colour, what is painted on it)
    "snow": ((196, 206, 222), _snow),
    "night": ((22, 26, 70), _night),
    "desert": ((250, 228, 190), _desert),
    "ocean": ((38, 140, 175), _ocean),
    "meadow": ((190, 228, 245), _meadow),
    "sky": ((130, 185, 235), _sky),
}

# --- scenes ------------------------------------------------------------------------------------------------------


def draw_scene(seed: int, index: int, size: int = 64) -> Scene:
    """Draw one scene.

    Args:
        seed (`int`): Seed of the data set.
        index (`int`): Number of the scene in it.
        size (`int`, *optional*, defaults to 64): Width and height, in pixels.

    Returns:
        [`Scene`]: the same one for the same arguments; caption and attributes do not depend on `size`.

    Raises:
        InputError: if `size` is below 16, where the objects cannot be told apart.
    """
    if size < 16:
        raise InputError(f"scene size: {size} pixels are too few to draw on. Give at least 16.")
    rng = random.Random(f"ncu-scene/{seed}/{index}")
    attributes = {name: rng.choice(classes) for name, (classes, _) in ATTRIBUTES.items()}
    things = _arrange(attributes, rng)
    caption = _describe(attributes, things, rng)
    image = _paint(attributes["background"], things, size * SUPERSAMPLING, rng)
    return Scene(image.reduce(SUPERSAMPLING), caption, attributes, f"scene-{index:07d}")


def _arrange(attributes: dict[str, str], rng: random.Random) -> list[_Thing]:
    """Main object, second object and now and then a third; the stated relation holds for both others."""
    colors = rng.sample([color for color in COLORS if color != attributes["color"]], 2)
    shapes = rng.sample([shape for shape in SHAPES if shape != attributes["shape"]], 2)
    main = _Thing(attributes["color"], attributes["shape"], SIZES[attributes["size"]][1])
    others = [_Thing(c, s, OTHER_SIZE) for c, s in zip(colors, shapes, strict=True)]
    step = RELATIONS[attributes["relation"]][2]
    side = rng.choice((-1, 1))
    _place(main, step, rng.uniform(0.15, 0.2), rng.uniform(-0.12, 0.12))
    if rng.random() < THIRD_SHARE:
        _place(others[0], step, rng.uniform(-0.34, -0.28), side * rng.uniform(0.14, 0.3))
        _place(others[1], step, rng.uniform(-0.34, -0.28), -side * rng.uniform(0.14, 0.3))
        return [main, *others]
    _place(others[0], step, rng.uniform(-0.34, -0.28), side * rng.uniform(0, 0.16))
    return [main, others[0]]


def _place(thing: _Thing, step: tuple[int, int], along: float, across: float) -> None:
    """Centre `thing` at a distance from the middle, along the direction of the relation and across it."""
    thing.x = 0.5 + along * step[0] + across * step[1]
    thing.y = 0.5 + along * step[1] + across * step[0]


def _paint(background: str, things: list[_Thing], side: int, rng: random.Random) -> Image.Image:
    """The background and the objects on a canvas of `side` x `side` pixels."""
    ground, painter = BACKGROUNDS[background]
    image = Image.new("RGB", (side, side), _tone(ground, rng, 8))
    draw = ImageDraw.Draw(image)
    painter(draw, side, rng)
    edge = (235, 235, 240) if background == "night" else (40, 40, 40)
    for thing in things:
        scaled = _Thing(thing.color, thing.shape, thing.radius * side, thing.x * side, thing.y * side)
        _draw_thing(draw, scaled, edge, rng)
    return image


# --- captions ----------------------------------------------------------------------------------------------------

# {rel}, {inv}: relation of the main object to the second, and the opposite one; {it}: the same, said of "it"
SHORT_SENTENCE = "{main} {rel} {other} {bg}"
SENTENCES = (
    SHORT_SENTENCE,
    "{other} {inv} {main} {bg}",
    "{bg}, {main} {rel} {other}",
    "{bg}, {other} {inv} {main}",
    "there is {main} {rel} {other} {bg}",
    "picture of {other} {inv} {main} {bg}",
    "{other} with {main} {it} {bg}",
    "{main} sits {rel} {other} {bg}",
    "{rel} {other} is {main} {bg}",
)
MAX_WORDS = 16
LEFT_OUT = (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)  # how many facts a caption keeps to itself, each equally likely


def _describe(attributes: dict[str, str], things: list[_Thing], rng: random.Random) -> str:
    """A caption for the scene: one of the sentences, in one of the wordings, with up to two facts left out."""
    silent = set(rng.sample(("color", "shape", "size", "background", "other"), rng.choice(LEFT_OUT)))
    relations, opposite, _ = RELATIONS[attributes["relation"]]
    words = {
        "main": _main_phrase(attributes, silent, rng),
        "other": "another shape" if "other" in silent else " and ".join(_noun(t, rng) for t in things[1:]),
        "bg": "" if "background" in silent else rng.choice(BACKGROUND_PHRASES[attributes["background"]]),
        "rel": rng.choice(relations),
        "inv": rng.choice(RELATIONS[opposite][0]),
        "it": IT_PHRASES[attributes["relation"]],
    }
    caption = _tidy(rng.choice(SENTENCES).format(**words))
    if len(caption.split()) > MAX_WORDS:
        caption = _tidy(SHORT_SENTENCE.format(**words | {"rel": attributes["relation"]}))
    return caption


def _main_phrase(attributes: dict[str, str], silent: set[str], rng: random.Random) -> str:
    """E.g. "a big red star", less the facts to leave out."""
    size = "" if "size" in silent else rng.choice(SIZES[attributes["size"]][0])
    color = "" if "color" in silent else _synonym(COLORS[attributes["color"]][0], rng)
    shape = "shape" if "shape" in silent else _synonym(SHAPE_WORDS[attributes["shape"]], rng)
    return _with_article(f"{size} {color} {shape}")


def _noun(thing: _Thing, rng: random.Random) -> str:
    return _with_article(f"{_synonym(COLORS[thing.color][0], rng)} {_synonym(SHAPE_WORDS[thing.shape], rng)}")


def _synonym(words: tuple[str, ...], rng: random.Random) -> str:
    """Mostly the first word."""
    return words[0] if rng.random() < 0.7 else rng.choice(words)


def _with_article(phrase: str) -> str:
    phrase = phrase.strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _tidy(caption: str) -> str:
    """Single spaces, and no comma left over where the background is not mentioned."""
    return " ".join(caption.split()).removeprefix(", ")


# --- files -------------------------------------------------------------------------------------------------------


def write_scenes(
    folder: str | Path,
    count: int,
    *,
    seed: int,
    size: int = 64,
    noise_share: float = 0.0,
    noise_seed: int | None = None,
) -> Path:
    """Draw scenes 0 .. count-1 of a seed and write them to `folder/scenes.parquet`.

    Args:
        folder (`str` or `Path`): Created if missing.
        count (`int`): Number of pairs.
        seed (`int`): Seed of the scenes.
        size (`int`, *optional*, defaults to 64): Width and height of the images, in pixels.
        noise_share (`float`, *optional*, defaults to 0.0): Share of the pairs whose captions are shuffled among
            themselves, see [`~ncu_hf.data.noise.inject_noise`].
        noise_seed (`int`, *optional*): Seed of the noise; `seed` if not given.

    Returns:
        `Path`: the file, with columns `key`, `image` (PNG bytes), `caption`, `mismatched` (bool, the ground truth) and
        one for each of `ATTRIBUTES` (true of the image, whatever the caption says).

    Raises:
        InputError: if `count` is below 1, `size` too small or `noise_share` outside [0, 1].
    """
    if count < 1:
        raise InputError(f"number of scenes: {count}. Give at least 1.")
    scenes = [draw_scene(seed, index, size) for index in range(count)]
    noise = Noise(noise_share, seed if noise_seed is None else noise_seed)
    captions, mismatched, _ = inject_noise([scene.caption for scene in scenes], noise)
    columns = {
        "key": [scene.key for scene in scenes],
        "image": [_png(scene.image) for scene in scenes],
        "caption": captions,
        "mismatched": mismatched,
    } | {name: [scene.attributes[name] for scene in scenes] for name in ATTRIBUTES}
    path = Path(folder) / "scenes.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
