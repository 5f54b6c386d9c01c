"""Scenes of one to three objects, drawn from a seed; and which combinations training never sees."""
import hashlib
import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vilg.data.worlds.scenes.lexicon import COLOURS, MORE_COLOURS, MORE_SHAPES, SHAPES, SIZES

SPLITS = ("train", "test", "unseen")
CENTRES = (12.0, 32.0, 52.0)  # of rows and columns, in pixels of a 64-pixel image
GAP = 3.0  # between the bounding boxes of two objects
TINTS = ((252, 252, 252), (222, 224, 228), (252, 240, 214), (214, 232, 250))
Kind = tuple[str, str]  # colour, shape
# Kinds of wide scenes that look or are called nearly like one of those held out, so they are left out with it.
NEAR_HELD_OUT = frozenset({("red", "rectangle"), ("cyan", "semicircle"), ("lime", "heart"), ("yellow", "flower"),
                           ("gold", "star"), ("blue", "hourglass"), ("purple", "saltire"), ("cyan", "sector"),
                           ("black", "leaf")})


@dataclass(frozen=True)
class Object:
    """One object; ``x``, ``y`` (centre) and ``extent`` are pixels of a 64-pixel image.

    ``colour`` and ``shape`` are names of the lexicon. A reader puts ``"unknown"`` for a shape it cannot make out.
    """

    colour: str
    shape: str
    size: str
    x: float
    y: float
    extent: float

    @property
    def kind(self) -> Kind:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column of the 3×3 layout."""
        return _nearest_centre(self.y), _nearest_centre(self.x)


@dataclass(frozen=True)
class Background:
    """A light background that runs from ``start`` (RGB) to ``end`` downwards or rightwards;
    plain when they are equal."""

    start: tuple[int, int, int]
    end: tuple[int, int, int]
    direction: str = "down"


@dataclass(frozen=True)
class Scene:
    """Objects in reading order on a background."""

    objects: tuple[Object, ...]
    background: Background

    def facts(self) -> list[tuple]:
        """What two equal scenes share: colour, shape, size and cell of every object, sorted."""
        return sorted((item.colour, item.shape, item.size, item.cell) for item in self.objects)


def sides_of(first: Object, second: Object) -> dict[str, bool]:
    """Which of the four sides of ``second`` the object ``first`` is on, by rows and columns of the layout."""
    (row, column), (other_row, other_column) = first.cell, second.cell
    return {"left": column < other_column, "right": column > other_column,
            "above": row < other_row, "below": row > other_row}


@lru_cache
def held_out_kinds() -> frozenset[Kind]:
    """Colour–shape pairs that no scene of training shows: one of each colour and of each shape."""
    return frozenset((colour, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS))


@lru_cache
def held_out_pairs() -> frozenset[frozenset[Kind]]:
    """Pairs of seen kinds that training never shows together in one scene, in whatever relation: one in ten."""
    seen = [kind for kind in itertools.product(COLOURS, SHAPES) if kind not in held_out_kinds()]
    return frozenset(frozenset(pair) for pair in itertools.combinations(seen, 2)
                     if hashlib.sha256(repr(pair).encode()).digest()[0] % 10 == 0)


@lru_cache
def wide_kinds() -> tuple[Kind, ...]:
    """The colour–shape pairs that only wide scenes show: one of the two, or both, is not of COLOURS and SHAPES."""
    every = itertools.product(COLOURS | MORE_COLOURS, SHAPES + MORE_SHAPES)
    return tuple(kind for kind in every if kind not in NEAR_HELD_OUT and not (kind[0] in COLOURS and kind[1] in SHAPES))


def is_held_out(objects: tuple[Object, ...]) -> bool:
    """Whether a scene of these objects shows a combination that training never does."""
    kinds = {item.kind for item in objects}
    return bool(kinds & held_out_kinds()) or any(
        frozenset(pair) in held_out_pairs() for pair in itertools.combinations(kinds, 2))


def sample_scene(seed: int, split: str, kinds: int = 1, wide: bool = False) -> Scene:
    """The scene of ``seed`` in ``split``: a pure function of both (and of ``kinds`` and ``wide``).

    "train" and "test" show seen combinations only; in "unseen" every scene holds a held-out colour–shape pair (even
    seeds) or a held-out pair of objects (odd seeds). ``kinds``, at most 3, asks for at least so many different
    colour–shape pairs in the scene. ``wide`` scenes hold at least one of MORE_COLOURS or MORE_SHAPES; they are for
    training, as the reader does not know these. Raises ValueError for another split, or a wide one but "train".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if wide and split != "train":
        raise ValueError(f"wide scenes are for split train, not {split}: the reader does not know their shapes")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    while True:
        drawn = _unseen_kinds(rng, pair=bool(seed % 2)) if split == "unseen" else _seen_kinds(rng)
        drawn = _widened(rng, drawn) if wide else drawn
        objects = _place(rng, drawn) if len(set(drawn)) >= kinds else None
        if objects is None or is_held_out(objects) != (split == "unseen"):
            continue
        return Scene(objects, _background(rng))


def _seen_kinds(rng: np.random.Generator) -> list[Kind]:
    number = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    first, second, third = (_kind(rng) for _ in range(3))
    draw = rng.random()
    if number == 2:
        return [first, first] if draw < 0.3 else [first, second]
    if number == 3:
        return [first] * 3 if draw < 0.35 else [first, first, second] if draw < 0.6 else [first, second, third]
    return [first]


def _widened(rng: np.random.Generator, kinds: list[Kind]) -> list[Kind]:
    """The first kind, wherever it stands, and half of the others become kinds of wide scenes."""
    every = wide_kinds()
    other = {kind: every[int(rng.integers(len(every)))] for kind in kinds if kind == kinds[0] or rng.random() < 0.5}
    return [other.get(kind, kind) for kind in kinds]


def _unseen_kinds(rng: np.random.Generator, pair: bool) -> list[Kind]:
    if pair:
        pairs = _sorted_pairs()
        return list(pairs[int(rng.integers(len(pairs)))])
    kinds = _seen_kinds(rng)
    novel = sorted(held_out_kinds())[int(rng.integers(len(held_out_kinds())))]
    return [novel if kind == kinds[0] else kind for kind in kinds]


@lru_cache
def _sorted_pairs() -> tuple[tuple[Kind, Kind], ...]:
    return tuple(sorted(tuple(sorted(pair)) for pair in held_out_pairs()))


def _kind(rng: np.random.Generator) -> Kind:
    return list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))]


def _place(rng: np.random.Generator, kinds: list[Kind]) -> tuple[Object, ...] | None:
    """Objects of one size a kind, in cells of their own and apart from each other; None when the draw does not fit."""
    sizes = {kind: list(SIZES)[int(rng.integers(2))] for kind in kinds}
    cells = rng.choice(9, size=len(kinds), replace=False)
    objects = [Object(*kind, sizes[kind], CENTRES[cell % 3], CENTRES[cell // 3], SIZES[sizes[kind]])
               for kind, cell in zip(kinds, cells.tolist(), strict=True)]
    for first, second in itertools.combinations(objects, 2):
        distance = max(abs(first.x - second.x), abs(first.y - second.y))
        if distance < (first.extent + second.extent) / 2 + GAP:
            return None
    return tuple(sorted(objects, key=lambda item: item.cell))


def _background(rng: np.random.Generator) -> Background:
    start, end = rng.choice(len(TINTS), size=2, replace=False).tolist()
    if rng.random() < 0.5:
        return Background(TINTS[start], TINTS[start])
    return Background(TINTS[start], TINTS[end], ("down", "right")[int(rng.integers(2))])


def _nearest_centre(position: float) -> int:
    return min(range(3), key=lambda index: abs(CENTRES[index] - position))
