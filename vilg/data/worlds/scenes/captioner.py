"""Chinese captions of a scene, from a grammar with synonyms and varied word order.

Every caption names every object of the scene, so that it can be checked, but seldom everything about it.
"""
import itertools
from collections.abc import Sequence

import numpy as np

from vilg.data.worlds.scenes.constraints import Description
from vilg.data.worlds.scenes.lexicon import (
    ANY_SHAPE, CELL_WORDS, COLOUR_WORDS, COUNT_WORDS, SHAPE_WORDS, SIDE_WORDS, SIZE_WORDS,
)
from vilg.data.worlds.scenes.scene import Object, Scene, is_held_out, sides_of

LONGEST = 24  # characters


def captions(scene: Scene, rng: np.random.Generator, number: int = 4) -> list[str]:
    """Up to ``number`` different true captions of ``scene``, each of at most 24 characters.

    Captions of a held-out scene always name colour and shape, so that what is new about it is asked for.
    """
    groups = _groups(scene)
    found: dict[str, None] = {}
    for _ in range(number * 4):
        text = _caption(scene, groups, rng)
        if len(text) <= LONGEST:
            found.setdefault(text)
        if len(found) == number:
            break
    return list(found)


def noun_phrase(item: Description, rng: np.random.Generator, counted: bool = False) -> str:
    """Say a description's count (when ``counted``), size, colour and shape; its cell is left out."""
    size = pick(rng, SIZE_WORDS[item.size]) if item.size else ""
    colour = pick(rng, COLOUR_WORDS[item.colour]) if item.colour else ""
    noun = pick(rng, SHAPE_WORDS[item.shape], 0.65) if item.shape else ANY_SHAPE
    size_first = bool(size and colour) and rng.random() < 0.5
    if size_first:
        words = size + "的" + colour + noun
    else:
        words = colour + ("的" if colour and rng.random() < 0.5 else "") + size + noun
    if not counted:
        return words
    measure = "颗" if item.shape in ("star", "heart") and rng.random() < 0.4 else "个"
    return COUNT_WORDS[item.count] + measure + words


def pick(rng: np.random.Generator, words: Sequence[str], first: float = 0.5) -> str:
    """One of the words, the first of them with probability ``first``."""
    if len(words) == 1 or rng.random() < first:
        return words[0]
    return words[1 + int(rng.integers(len(words) - 1))]


def _groups(scene: Scene) -> list[list[Object]]:
    kinds: dict[tuple, list[Object]] = {}
    for item in scene.objects:
        kinds.setdefault((item.kind, item.size), []).append(item)
    return list(kinds.values())


def _caption(scene: Scene, groups: list[list[Object]], rng: np.random.Generator) -> str:
    """One draw from the grammar; it may come out too long."""
    groups = [groups[index] for index in rng.permutation(len(groups))]
    draw = rng.random()
    if len(scene.objects) > 1 and draw < 0.08 and not is_held_out(scene.objects):
        shared = _shared(scene, rng)
        if shared is not None:
            return _opening(rng) + noun_phrase(shared, rng, counted=True)
    if len(groups) > 1 and draw < 0.5:
        related = _relation(groups, rng)
        if related:
            return related
    if all(len(group) == 1 for group in groups) and draw < (0.9 if len(groups) == 2 else 0.7):
        return "，".join(_placed(group[0], rng) for group in groups)
    return _listing(groups, rng)


def _describe(group: list[Object], rng: np.random.Generator, sized: float = 0.3) -> Description:
    item = group[0]
    return Description(len(group), item.colour, item.shape, item.size if rng.random() < sized else None)


def _shared(scene: Scene, rng: np.random.Generator) -> Description | None:
    """All objects at once, by the shape or the colour that they share."""
    colours, shapes = ({getattr(item, name) for item in scene.objects} for name in ("colour", "shape"))
    count = len(scene.objects)
    if len(shapes) == 1 and (len(colours) > 1 or rng.random() < 0.5):
        return Description(count, shape=next(iter(shapes)))
    return Description(count, colour=next(iter(colours))) if len(colours) == 1 else None


def _opening(rng: np.random.Generator) -> str:
    return ("", "", "有", "图中有", "画面里有", "画着")[int(rng.integers(6))]


def _listing(groups: list[list[Object]], rng: np.random.Generator) -> str:
    opening = _opening(rng)
    counted = bool(opening) or any(len(group) > 1 for group in groups) or rng.random() < 0.5
    words = [noun_phrase(_describe(group, rng), rng, counted) for group in groups]
    last = pick(rng, ("和", "与", "，还有"))
    return opening + (last.join(words) if len(words) < 3 else f"{words[0]}、{words[1]}{last}{words[2]}")


def _placed(item: Object, rng: np.random.Generator) -> str:
    """One object with its place."""
    words = noun_phrase(_describe([item], rng), rng, counted=(counted := rng.random() < 0.5))
    place = pick(rng, CELL_WORDS[item.cell], 0.6)
    draw = rng.random()
    if draw < 0.4:
        return f"{words}{'位于' if rng.random() < 0.25 else '在'}{place}"
    if draw < 0.75 or counted:
        return f"{place}{pick(rng, ('有', '是'), 0.7)}{words}"
    return f"{place}的{words}"


def _relation(groups: list[list[Object]], rng: np.random.Generator) -> str | None:
    """One group on a side of another, and the rest;
    None when nothing holds between whole groups of which one is single."""
    candidates = []
    for first, second in itertools.permutations(range(len(groups)), 2):
        for side in SIDE_WORDS:
            pairs = itertools.product(groups[first], groups[second])
            if len(groups[second]) == 1 and all(sides_of(one, other)[side] for one, other in pairs):
                candidates.append((first, side, second))
    if not candidates:
        return None
    first, side, second = candidates[int(rng.integers(len(candidates)))]
    counted = len(groups[first]) > 1 or rng.random() < 0.4
    subject = noun_phrase(_describe(groups[first], rng, 0.2), rng, counted)
    ground = noun_phrase(_describe(groups[second], rng, 0.2), rng)
    where = pick(rng, ("的", "")) + pick(rng, SIDE_WORDS[side])
    text = f"{subject}在{ground}{where}" if rng.random() < 0.6 else f"{ground}{where}有{subject}"
    rest = [group for index, group in enumerate(groups) if index not in (first, second)]
    return text + "".join("，还有" + noun_phrase(_describe(group, rng, 0.1), rng, counted=True) for group in rest)
