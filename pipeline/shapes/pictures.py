"""The world of the built-in model: captioned pictures of one coloured shape on a coloured background.

Drawing and wording are pure functions of a ``Scene`` and a ``random.Random``; nothing here knows a network.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PICTURE_SIZE_PX = 96

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (42, 157, 70),
    "blue": (40, 84, 206),
    "yellow": (246, 208, 50),
    "purple": (130, 56, 176),
    "orange": (244, 132, 36),
    "white": (246, 246, 244),
    "black": (24, 24, 28),
}

# Size as the circumscribed radius over half the picture; position as the centre's offset in the same unit.
SIZES: dict[str, tuple[float, float]] = {"small": (0.36, 0.42), "": (0.54, 0.62), "large": (0.74, 0.82)}
POSITIONS: dict[str, tuple[int, int]] = {"": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

_SUPERSAMPLING = 3
_COLOUR_JITTER = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows; the words a caption may use."""

    shape: str
    colour: str
    background: str
    size: str = ""
    position: str = ""

    @property
    def triple(self) -> tuple[str, str, str]:
        return (self.shape, self.colour, self.background)


def triples() -> Iterator[tuple[str, str, str]]:
    """Every (shape, colour, background) whose two colours differ: 6 x 8 x 7 = 336."""
    for shape in SHAPES:
        for colour in PALETTE:
            yield from ((shape, colour, background) for background in PALETTE if background != colour)


def is_held_out(triple: tuple[str, str, str]) -> bool:
    """One triple in eight is never shown in training, spread so that each pair of its words still is."""
    shape, colour, background = triple
    colours = list(PALETTE)
    return (SHAPES.index(shape) + 3 * colours.index(colour) + 2 * colours.index(background)) % 8 == 1


def training_scene(random: Random) -> Scene:
    """A scene whose triple is not held out; two in three say nothing about size or position."""
    trained = [triple for triple in triples() if not is_held_out(triple)]
    shape, colour, background = random.choice(trained)
    size = random.choice(["", "", "small", "large"])
    position = random.choice(["", "", *POSITIONS]) if size != "large" else ""
    return Scene(shape=shape, colour=colour, background=background, size=size, position=position)


def held_out_prompts(count: int) -> list[Scene]:
    """``count`` scenes over the held-out triples, in turn and without further words."""
    held_out = [triple for triple in triples() if is_held_out(triple)]
    chosen = (held_out[index % len(held_out)] for index in range(count))
    return [Scene(shape=shape, colour=colour, background=background) for shape, colour, background in chosen]


def plain_caption(scene: Scene) -> str:
    """The wording everything else varies: "a small red circle at the top on a white background"."""
    size = f"{scene.size} " if scene.size else ""
    where = f" {_where(scene.position)}" if scene.position else ""
    article = "an" if (size + scene.colour)[0] in "aeiou" else "a"
    return f"{article} {size}{scene.colour} {scene.shape}{where} on a {scene.background} background"


def caption(scene: Scene, random: Random) -> str:
    """One of several wordings of the scene."""
    plain = plain_caption(scene)
    if random.random() < 0.4:
        return plain
    size = f"{scene.size} " if scene.size else ""
    where = f" {_where(scene.position)}" if scene.position else ""
    thing = f"{size}{scene.colour} {scene.shape}"
    return random.choice(
        [
            f"{thing}{where}, {scene.background} background",
            f"a picture of a {thing}{where} on {scene.background}",
            f"a {scene.background} background with a {thing}{where}",
            f"{thing} on {scene.background}{where}",
            f"the {thing}{where} against a {scene.background} background",
        ]
    )


def _where(position: str) -> str:
    return f"at the {position}" if position in ("top", "bottom") else f"on the {position}"


def draw(scene: Scene, random: Random, size_px: int = PICTURE_SIZE_PX) -> NDArray[np.uint8]:
    """Draw the scene; place, radius, angle and shade vary with ``random``.

    Returns (size_px, size_px, 3), RGB 0..255.
    """
    side = size_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), _shade(PALETTE[scene.background], random))
    radius = random.uniform(*SIZES[scene.size]) * side / 2
    room = side / 2 - radius * 1.06
    x, y = (side / 2 + room * _offset(direction, random) for direction in POSITIONS[scene.position])
    fill = _shade(PALETTE[scene.colour], random)
    pen = ImageDraw.Draw(image)
    if scene.shape == "circle":
        radius *= 0.86
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif scene.shape == "ring":
        radius *= 0.9
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=fill, width=round(radius * 0.42))
    else:
        pen.polygon(_outline(scene.shape, x, y, radius, random.uniform(-0.08, 0.08)), fill=fill)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BOX))


def _offset(direction: int, random: Random) -> float:
    return direction * random.uniform(0.8, 1.0) if direction else random.uniform(-0.12, 0.12)


def _shade(colour: tuple[int, int, int], random: Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + random.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for c in colour)
    return red, green, blue


def outline_radii(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape as (angle in radians, radius over the circumscribed radius)."""
    if shape == "square":
        return [(math.pi / 4 + k * math.pi / 2, 1.0) for k in range(4)]
    if shape == "triangle":
        return [(-math.pi / 2 + k * math.tau / 3, 1.0) for k in range(3)]
    if shape == "star":
        return [(-math.pi / 2 + k * math.pi / 5, 1.0 if k % 2 == 0 else 0.42) for k in range(10)]
    half = 0.33  # half an arm's width of the cross, over its arm's length
    arm, notch = math.atan2(half, 1.0), half * math.sqrt(2) / math.hypot(1, half)
    return [(k * math.pi / 2 + a, r) for k in range(4) for a, r in ((-arm, 1.0), (arm, 1.0), (math.pi / 4, notch))]


def _outline(shape: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    corners = outline_radii(shape)
    return [(x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn)) for a, r in corners]
