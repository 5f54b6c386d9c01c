"""The reader: from pixels alone back to the scene, tolerant of blur, noise and shifted colours.

The background is a plane fitted to each channel; what differs from it falls apart into regions; each region's colour is
the nearest of the lexicon, its shape and size are those of the rendered template that fits its coverage best.
"""
import itertools
from functools import lru_cache

import numpy as np
from PIL import Image

from vilg.data.worlds.scenes.lexicon import COLOURS, SHAPES, SIZES
from vilg.data.worlds.scenes.parser import parse_caption
from vilg.data.worlds.scenes.renderer import REFERENCE_SIZE, coverage
from vilg.data.worlds.scenes.scene import Background, Object, Scene

DIFFERENT = 45.0  # RGB distance from the background that makes a pixel part of something
STRICTER = (0.45, 0.6, 0.75)  # shares of a region's strength above which touching objects may come apart
SMALLEST = 20  # pixels of a region that is an object; less is noise
WINDOW = 32  # side of the templates
SHIFTS = (-0.25, 0.25)  # sub-pixel positions of the templates
EXTENTS = {size: tuple(extent + step for step in (-1.5, -0.75, 0, 0.75, 1.5)) for size, extent in SIZES.items()}
SOFTNESS = (0, 2, 5, 8)  # passes of a small blur, which is what a tokenizer does to shapes finer than its codes
WORST_FIT = 0.3  # share of a template's energy left unexplained above which a shape is unknown


def read(image: np.ndarray) -> Scene:
    """Recover the scene from uint8 [H, W, 3] (H = W; resized to 64 when it is another size).

    Objects are in reading order. An object whose shape is none of the lexicon's comes back with shape "unknown".
    """
    if image.shape[:2] != (REFERENCE_SIZE, REFERENCE_SIZE):
        resized = Image.fromarray(image).resize((REFERENCE_SIZE, REFERENCE_SIZE), Image.Resampling.BOX)
        image = np.asarray(resized)
    pixels = image.astype(np.float32)
    plane = _background(pixels)
    distance = np.sqrt(((pixels - plane) ** 2).sum(-1))
    objects = [_object(pixels, plane, region) for region in _regions(distance)]
    ends = [tuple(int(level) for level in np.clip(np.rint(plane[at]), 0, 255)) for at in ((0, 0), (-1, 0), (0, -1))]
    downwards = np.abs(plane[-1, 0] - plane[0, 0]).sum() >= np.abs(plane[0, -1] - plane[0, 0]).sum()
    background = Background(ends[0], ends[1] if downwards else ends[2], "down" if downwards else "right")
    return Scene(tuple(sorted(objects, key=lambda item: item.cell)), background)


def satisfies(image: np.ndarray, caption: str) -> bool:
    """Whether the scene read from an image is what the caption says; False for a caption outside the grammar."""
    return describes(caption, read(image))


def describes(caption: str, scene: Scene) -> bool:
    """Whether a caption, a model's for instance, is true of a scene; False for a caption outside the grammar."""
    constraints = parse_caption(caption)
    return constraints is not None and constraints.hold(scene)


def _background(pixels: np.ndarray) -> np.ndarray:
    """A plane a channel [H, W, 3], fitted by least squares that leaves out what lies far off, time and again."""
    size = pixels.shape[0]
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    design = np.stack([np.ones_like(rows), rows, columns], -1).reshape(-1, 3)
    flat = pixels.reshape(-1, 3)
    # The backgrounds are light: start from what is lighter than the middle of all pixels.
    keep = flat.min(-1) >= np.median(flat.min(-1)) - 40
    for limit in (60.0, 40.0, 25.0, 25.0):
        chosen = design[keep]
        solution = np.linalg.lstsq(chosen, flat[keep], rcond=None)[0]
        fitted = design @ solution
        closer = np.sqrt(((flat - fitted) ** 2).sum(-1)) < limit
        if closer.sum() < len(flat) // 10:
            break
        keep = closer
    return fitted.reshape(pixels.shape)


def _regions(distance: np.ndarray) -> list[np.ndarray]:
    """Masks [H, W] of connected regions; one too wide for an object is cut with stricter and stricter thresholds."""
    widest = max(EXTENTS["large"]) + 4
    waiting, found = [(mask, 0) for mask in _components(distance > DIFFERENT)], []
    while waiting:
        mask, cuts = waiting.pop()
        rows, columns = np.nonzero(mask)
        if max(np.ptp(rows), np.ptp(columns)) + 1 <= widest or cuts == len(STRICTER):
            found.append(mask)
            continue
        core = distance > STRICTER[cuts] * np.percentile(distance[mask], 90)
        waiting += [(part, cuts + 1) for part in _components(mask & core)]
    return found


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions (8 neighbours) of at least SMALLEST pixels."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    regions = []
    steps = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]
    while left:
        region = frontier = [left.pop()]
        while frontier:
            neighbours = []
            for (row, column), (down, right) in itertools.product(frontier, steps):
                place = row + down, column + right
                if place in left:
                    left.remove(place)
                    neighbours.append(place)
            frontier = neighbours
            region = region + neighbours
        if len(region) >= SMALLEST:
            found = np.zeros(mask.shape, bool)
            found[tuple(np.array(region).T)] = True
            regions.append(found)
    return regions


def _object(pixels: np.ndarray, plane: np.ndarray, region: np.ndarray) -> Object:
    offset = pixels - plane
    strength = np.sqrt((offset ** 2).sum(-1))
    core = region & (strength >= np.percentile(strength[region], 60))
    seen = np.median(pixels[core], axis=0)
    names = list(COLOURS)
    colour = names[int(np.argmin([np.abs(np.array(COLOURS[name]) - seen).astype(np.float32).sum() for name in names]))]
    towards = np.median(offset[core], axis=0)
    cover = np.clip(offset @ towards / max(float(towards @ towards), 1.0), 0, 1)
    near = _grown(region)
    cover = np.where(near, cover, 0)
    shape, size, extent, x, y = _match(cover)
    return Object(colour, shape, size, round(x, 2), round(y, 2), extent)


def _grown(region: np.ndarray) -> np.ndarray:
    """The region and its neighbouring pixels: the soft edge."""
    padded = np.pad(region, 1)
    size = region.shape[0]
    return np.logical_or.reduce([padded[1 + down:1 + down + size, 1 + right:1 + right + size]
                                 for down, right in itertools.product((-1, 0, 1), repeat=2)])


def _match(cover: np.ndarray) -> tuple[str, str, float, float, float]:
    """Shape, size, extent and centre (x, y) of the template that explains a coverage [H, W] best."""
    templates, energies, labels = _templates()
    total = float(cover.sum())
    position = np.arange(cover.shape[0], dtype=np.float32) + 0.5
    x, y = float(cover.sum(0) @ position) / total, float(cover.sum(1) @ position) / total
    left, top = round(x) - WINDOW // 2, round(y) - WINDOW // 2
    padded = np.pad(cover, WINDOW)
    steps = list(itertools.product((-1, 0, 1), repeat=2))
    windows = np.stack([padded[top + down + WINDOW:, left + right + WINDOW:][:WINDOW, :WINDOW].reshape(-1)
                        for down, right in steps], 1)
    errors = energies[:, None] - 2 * (templates @ windows)  # [T, 9], but for the coverage's own energy
    index, step = np.unravel_index(int(np.argmin(errors)), errors.shape)
    error, (down, right) = float(errors[index, step]), steps[step]
    shape, size, extent, shift_x, shift_y = labels[index]
    if error + float((cover ** 2).sum()) > WORST_FIT * float(energies[index]):
        shape = "unknown"
    return (shape, size, extent, left + right + WINDOW / 2 + shift_x, top + down + WINDOW / 2 + shift_y)


@lru_cache
def _templates() -> tuple[np.ndarray, np.ndarray, list[tuple[str, str, float, float, float]]]:
    """Every shape at every extent and sub-pixel place, sharp and softened: float32 [T, WINDOW²], the sum of each one's
    squares [T], and what each one is."""
    templates, labels = [], []
    for shape, size, shift_x, shift_y in itertools.product(SHAPES, SIZES, SHIFTS, SHIFTS):
        for extent in EXTENTS[size]:
            drawn = np.zeros((WINDOW, WINDOW), np.float32)
            cover, top, left = coverage(shape, WINDOW / 2 + shift_x, WINDOW / 2 + shift_y, extent, WINDOW)
            drawn[top:top + cover.shape[0], left:left + cover.shape[1]] = cover
            for passes in SOFTNESS:
                templates.append(_softened(drawn, passes).reshape(-1))
                labels.append((shape, size, extent, shift_x, shift_y))
    stacked = np.stack(templates)
    return stacked, (stacked ** 2).sum(1), labels


def _softened(cover: np.ndarray, passes: int) -> np.ndarray:
    """A coverage blurred by (1, 2, 1)/4 along both axes, again and again, and scaled as the reader scales what it sees:
    by the strength of the core."""
    for axis in (0, 1) * passes:
        cover = (np.roll(cover, 1, axis) + 2 * cover + np.roll(cover, -1, axis)) / 4
    inside = cover[cover > 0.2]
    core = np.median(inside[inside >= np.percentile(inside, 60)])
    return np.clip(cover / core, 0, 1).astype(np.float32)
