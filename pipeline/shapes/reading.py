"""Read a picture back: colours from pixels, shape from geometry. No network, so it can judge one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.shapes.pictures import PALETTE, SHAPES, outline_radii

_ANGLES = 90
_JUDGED_SIZE_PX = 192
_CLEARLY_APART = 40.0
"""Distance in RGB at which two colours of the palette are different things."""
_TOLERANCE = 0.075
"""How far the outline may be from a shape's own, in radii; drawn pictures stay below 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """None where the picture shows nothing clear."""

    shape: str | None
    colour: str | None
    background: str | None


def read_picture(pixels: NDArray[np.uint8]) -> Reading:
    """What (height, width, 3) RGB 0..255 shows."""
    picture = _enlarged(pixels).astype(np.float64)
    border = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3), picture[:, :3].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    mask = np.linalg.norm(picture - ground, axis=2) > _CLEARLY_APART
    background = _nearest_colour(ground)
    if not 0.01 < mask.mean() < 0.7:
        return Reading(shape=None, colour=None, background=background)
    # Half way between the two colours, so that the soft edge is divided evenly.
    thing = np.median(picture[mask], axis=0)
    mask = np.linalg.norm(picture - thing, axis=2) < np.linalg.norm(picture - ground, axis=2)
    if not 0.01 < mask.mean() < 0.7:
        return Reading(shape=None, colour=None, background=background)
    return Reading(shape=_nearest_shape(mask), colour=_nearest_colour(thing), background=background)


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Small pictures grown, so that an outline's place is known to less than a pixel."""
    factor = math.ceil(_JUDGED_SIZE_PX / min(pixels.shape[:2]))
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _nearest_colour(colour: NDArray[np.float64]) -> str:
    return min(PALETTE, key=lambda name: float(np.linalg.norm(np.array(PALETTE[name]) - colour)))


def _nearest_shape(mask: NDArray[np.bool_]) -> str | None:
    """The shape whose outline fits best at its best angle, if it fits at all."""
    profile, filled = _profile(mask)
    fits = {shape: _misfit(profile, filled, template) for shape, template in _TEMPLATES.items()}
    best = min(fits, key=lambda shape: fits[shape])
    return best if fits[best] < _TOLERANCE else None


def _profile(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """The outline's radius at 90 angles round the centroid over its mean, and how full the outline is (0..1)."""
    y, x = np.nonzero(mask)
    dy, dx = y - y.mean(), x - x.mean()
    angle = (np.arctan2(dy, dx) / math.tau * _ANGLES).round().astype(int) % _ANGLES
    radius = np.zeros(_ANGLES)
    np.maximum.at(radius, angle, np.hypot(dx, dy))
    inside = math.pi * float(np.square(radius + 0.5).mean())
    return radius / max(1e-9, float(radius.mean())), len(y) / inside


def _misfit(profile: NDArray[np.float64], filled: float, template: tuple[NDArray[np.float64], float]) -> float:
    outline, template_filled = template
    turned = np.stack([np.roll(outline, turn) for turn in range(_ANGLES)])
    distance = float(np.abs(turned - profile).mean(axis=1).min())
    return distance + 0.5 * max(0.0, abs(filled - template_filled) - 0.08)


def _drawn(shape: str) -> tuple[NDArray[np.float64], float]:
    """The profile of an ideal shape, large."""
    image = Image.new("1", (401, 401))
    pen = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        pen.ellipse((40, 40, 360, 360), fill=1)
        if shape == "ring":
            pen.ellipse((107, 107, 293, 293), fill=0)
    else:
        pen.polygon(
            [(200 + 160 * r * math.cos(a), 200 + 160 * r * math.sin(a)) for a, r in outline_radii(shape)], fill=1
        )
    return _profile(np.asarray(image))


_TEMPLATES: Mapping[str, tuple[NDArray[np.float64], float]] = {shape: _drawn(shape) for shape in SHAPES}
