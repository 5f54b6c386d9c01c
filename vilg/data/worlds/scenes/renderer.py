"""Scenes to pixels, anti-aliased."""
import math

import numpy as np

from vilg.data.worlds.scenes.lexicon import COLOURS, MORE_COLOURS
from vilg.data.worlds.scenes.scene import Background, Scene

SUPERSAMPLING = 4
REFERENCE_SIZE = 64
INKS = COLOURS | MORE_COLOURS


def render(scene: Scene, size: int = REFERENCE_SIZE) -> np.ndarray:
    """Draw ``scene`` as uint8 [size, size, 3]."""
    scale = size / REFERENCE_SIZE
    image = _draw_background(scene.background, size)
    for item in scene.objects:
        cover, top, left = coverage(item.shape, item.x * scale, item.y * scale, item.extent * scale, size)
        window = image[top:top + cover.shape[0], left:left + cover.shape[1]]
        window += cover[..., None] * (np.array(INKS[item.colour], np.float32) - window)
    return np.rint(image).astype(np.uint8)


def coverage(shape: str, x: float, y: float, extent: float, size: int) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a shape covers: float32 [h, w] in 0..1 for a window of a ``size``² image,
    its top and left.

    ``x``, ``y`` is the centre and ``extent`` the width of the square that holds the shape, all in pixels.
    """
    half = extent / 2
    left, top = max(0, math.floor(x - half)), max(0, math.floor(y - half))
    right, bottom = min(size, math.ceil(x + half)), min(size, math.ceil(y + half))
    columns = (np.arange((right - left) * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING + left
    rows = (np.arange((bottom - top) * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING + top
    inside = OUTLINES[shape]((columns[None, :] - x) / half, (rows[:, None] - y) / half)
    cover = inside.reshape(bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING).mean(axis=(1, 3), dtype=np.float32)
    return cover, top, left


def _draw_background(background: Background, size: int) -> np.ndarray:
    start, end = (np.array(colour, np.float32) for colour in (background.start, background.end))
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    line = start + ramp * (end - start)
    lines = line[:, None] if background.direction == "down" else line[None]
    return np.broadcast_to(lines, (size, size, 3)).astype(np.float32)


def _disc(u: np.ndarray, v: np.ndarray, x: float, y: float, squared_radius: float) -> np.ndarray:
    return (u - x) ** 2 + (v - y) ** 2 <= squared_radius


def _inside_heart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * a + b * b - 1) ** 3 <= a * a * b ** 3


def _inside_star(u: np.ndarray, v: np.ndarray, inner: float = 0.45) -> np.ndarray:
    # By its symmetry the star is one edge, from a tip to the next notch, in the angle folded to half a point.
    sector = math.pi / 5
    angle = np.abs((np.arctan2(u, -v - 0.05) + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v + 0.05)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    notch = inner * math.cos(sector), inner * math.sin(sector)
    return (along - 1) * notch[1] + across * (1 - notch[0]) <= 0


# Whether points are inside a shape of the square [-1, 1]², by its name; ``v`` runs down.
OUTLINES = {
    "circle": lambda u, v: _disc(u, v, 0, 0, 0.96),
    "ring": lambda u, v: _disc(u, v, 0, 0, 1) & (u * u + v * v >= 0.25),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.88,
    "diamond": lambda u, v: np.abs(u) * 1.3 + np.abs(v) <= 1,
    "cross": lambda u, v: np.minimum(np.abs(u), np.abs(v)) <= 0.32,
    "triangle": lambda u, v: (v <= 0.8) & (np.abs(u) * 1.8 <= v + 1),
    "heart": lambda u, v: _inside_heart(u * 1.16, 0.12 - v * 1.12),
    "star": _inside_star,
    # of wide scenes
    "rectangle": lambda u, v: (np.abs(u) <= 0.95) & (np.abs(v) <= 0.48),
    "semicircle": lambda u, v: _disc(u, v, 0, 0.4, 0.96) & (v <= 0.4),
    "hexagon": lambda u, v: (np.abs(v) <= 0.84) & (np.abs(u) * 0.866 + np.abs(v) * 0.5 <= 0.84),
    "trapezoid": lambda u, v: (np.abs(v) <= 0.65) & (np.abs(u) <= 0.7 + v * 0.46),
    "parallelogram": lambda u, v: (np.abs(v) <= 0.6) & (np.abs(u + v * 0.45) <= 0.68),
    "crescent": lambda u, v: _disc(u, v, 0, 0, 0.96) & ~_disc(u, v, 0.5, 0, 0.6),
    "arrow": lambda u, v: np.where(u <= 0.1, (np.abs(v) <= 0.26) & (u >= -0.95), np.abs(v) * 1.2 <= 0.95 - u),
    "drop": lambda u, v: _disc(u, v, 0, 0.3, 0.42) | ((v <= 0.3) & (np.abs(u) <= (v + 0.95) * 0.5)),
    "flower": lambda u, v: np.hypot(u, v) <= 0.66 + 0.3 * np.cos(5 * np.arctan2(u, -v)),
    "cloud": lambda u, v: (_disc(u, v, -0.5, 0.2, 0.2) | _disc(u, v, 0.5, 0.2, 0.2) | _disc(u, v, 0, -0.1, 0.32)
                           | ((np.abs(u) <= 0.5) & (v >= 0) & (v <= 0.64))),
    "hourglass": lambda u, v: (np.abs(v) <= 0.85) & (np.abs(u) <= np.abs(v) * 0.9 + 0.04),
    "pentagon": lambda u, v: np.hypot(u, v) * np.cos((np.arctan2(u, v) + math.pi / 5) % (0.4 * math.pi)
                                                     - math.pi / 5) <= 0.76,
    "sector": lambda u, v: _disc(u, v, -0.8, 0.8, 2.6) & (u >= -0.8) & (v <= 0.8),
    "leaf": lambda u, v: _disc(u + v, u - v, 0.7, 0, 1.8) & _disc(u + v, u - v, -0.7, 0, 1.8),
    "fish": lambda u, v: (_disc(u / 0.72, v / 0.46, 0.32, 0, 1) | ((np.abs(u + 0.6) <= 0.35)
                                                                   & (np.abs(v) <= 0.1 - (u + 0.25) * 0.8))),
    "house": lambda u, v: np.where(v >= 0, (np.abs(u) <= 0.65) & (v <= 0.85), np.abs(u) <= (v + 0.92) * 1.05),
    "mushroom": lambda u, v: np.where(v <= 0, _disc(u, v, 0, 0, 0.9), (np.abs(u) <= 0.28) & (v <= 0.85)),
    "stairs": lambda u, v: ((np.maximum(np.abs(u), np.abs(v)) <= 0.85)
                            & (v >= np.where(u < -0.28, 0.28, np.where(u < 0.28, -0.28, -1)))),
    "saltire": lambda u, v: ((np.minimum(np.abs(u + v), np.abs(u - v)) <= 0.36)
                             & (np.maximum(np.abs(u), np.abs(v)) <= 0.85)),
    "crown": lambda u, v: ((np.abs(u) <= 0.87) & (v <= 0.65)
                           & (v >= 0.1 - 1.7 * np.abs((u / 0.58 + 0.5) % 1 - 0.5))),
    "bow tie": lambda u, v: (np.abs(u) <= 0.92) & (np.abs(v) <= np.abs(u) * 0.75 + 0.06),
    "flag": lambda u, v: ((np.abs(u + 0.72) <= 0.13) & (np.abs(v) <= 0.92)
                          | (np.abs(u - 0.1) <= 0.8) & (np.abs(v + 0.4) <= 0.5)),
    "bottle": lambda u, v: np.where(v >= -0.2, (np.abs(u) <= 0.48) & (v <= 0.9), (np.abs(u) <= 0.2) & (v >= -0.92)),
}
