"""Splits of styles × concepts that cannot leak, and the likeness of pictures that they rest on.

Likeness is the correlation of two pictures' colours at 32 pixels a side, 1 for the same picture. Styles that draw most
things alike are one family, concepts that several styles draw alike (or whose texts differ in gender or skin tone
alone) one group; families and groups never lie on both sides of a split. What still looks like a picture of training
afterwards is tested by nobody.
"""
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from vilg.config import configclass
from vilg.data.worlds.emoji import SKIN_TONES

SPLITS = ("train", "cells", "styles", "concepts", "both", "copies")
THUMBNAIL = 32  # pixels a side; likeness does not depend on the size that is written
ALIKE = 0.95  # two pictures of this correlation and above count as copies of each other
FAMILY = 0.8  # two styles are a family from this median correlation; measured: 0.94 for twins, 0.60 for the next pair
_BLOCK = 1024  # rows of likeness at a time
# Characters that differ in gender or age of the same person, by the one that stands for all.
_PERSONS = {letter: persons[0] for persons in ("🧑👨👩", "🧒👦👧", "🧓👴👵", "🫅🤴👸", "🎅🤶", "🕺💃", "👫👬👭")
            for letter in persons}
_MARKS = {"\u200d", "\ufe0f", "♀", "♂", *map(chr, SKIN_TONES)}


@configclass
class SplitConfig:
    """What is held out of training: whole styles, a share of the concepts, a share of the (concept × style) cells."""

    held_styles: list[str] = Field(default_factory=lambda: ["fxemoji"])
    held_concepts: float = Field(0.1, ge=0, lt=1)
    held_cells: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


@dataclass
class Splits:
    """The split of every picture, the family of every style, the group of every concept's text (its first text), and by
    two styles the median likeness of their pictures."""

    splits: list[str]
    families: dict[str, str]
    groups: dict[str, str]
    likeness: dict[tuple[str, str], float]


def fingerprints(thumbnails: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N, S, S, 3] as unit vectors [N, D] without their mean: a product of two is their likeness."""
    vectors = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)  # [N, S, S, 3] -> [N, D]
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def split(images: list[tuple[str, str]], names: dict[str, str], vectors: np.ndarray, config: SplitConfig) -> Splits:
    """Deal pictures, given as (concept's text, style), to the splits.

    ``names`` holds the concepts' names, ``vectors`` [N, D] the pictures' :func:`fingerprints`. *train*; *cells*: style
    and concept were trained, never together; *styles*: a style held out, a trained concept; *concepts*: the reverse;
    *both*: neither was trained; *copies*: a held-out picture that looks like one of training. Which is which depends
    on hashes of the group, the family and the seed, so that it stays where other concepts come or go.
    """
    likeness = style_likeness(images, vectors)
    styles = {style for _, style in images}
    families = _components(styles, (pair for pair, value in likeness.items() if value >= FAMILY))
    groups = concept_groups(images, names, vectors)
    held_families = {families[style] for style in config.held_styles}
    held_groups = {group for group in groups.values()
                   if _share(config.seed, "concept", group) < config.held_concepts}
    held_cells = _held_cells([(groups[text], text, families[style]) for text, style in images
                              if families[style] not in held_families and groups[text] not in held_groups], config)
    splits = []
    for text, style in images:
        family, group = families[style], groups[text]
        new_style, new_concept = family in held_families, group in held_groups
        splits.append("both" if new_style and new_concept else "styles" if new_style else
                      "concepts" if new_concept else "cells" if (group, family) in held_cells else "train")
    trained = {text for (text, _), name in zip(images, splits) if name == "train"}
    # A concept that only held-out styles draw has never been trained.
    splits = ["both" if name == "styles" and text not in trained else name
              for (text, _), name in zip(images, splits)]
    return Splits(_without_copies(splits, vectors), families, groups, likeness)


def style_likeness(images: list[tuple[str, str]], vectors: np.ndarray) -> dict[tuple[str, str], float]:
    """Of every two styles that share concepts, the median likeness of their pictures of the same concept."""
    places: dict[str, dict[str, int]] = defaultdict(dict)
    for number, (text, style) in enumerate(images):
        places[style][text] = number
    result = {}
    for first in sorted(places):
        for second in sorted(places):
            shared = sorted(places[first].keys() & places[second].keys())
            if first < second and shared:
                one, other = ([places[style][text] for text in shared] for style in (first, second))
                result[first, second] = float(np.median((vectors[one] * vectors[other]).sum(1)))
    return result


def concept_groups(images: list[tuple[str, str]], names: dict[str, str], vectors: np.ndarray) -> dict[str, str]:
    """Text of a concept → the first text of its group.

    One group are texts that differ in gender or skin tone alone, names that differ in case, width or punctuation alone,
    and concepts that at least half of the styles that draw both draw alike.
    """
    styles_of: dict[str, set[str]] = defaultdict(set)
    by_style: dict[str, list[int]] = defaultdict(list)
    for number, (text, style) in enumerate(images):
        styles_of[text].add(style)
        by_style[style].append(number)
    votes: dict[tuple[str, str], int] = defaultdict(int)
    for numbers in by_style.values():
        for one, other in np.argwhere(np.triu(vectors[numbers] @ vectors[numbers].T >= ALIKE, 1)).tolist():
            votes[tuple(sorted((images[numbers[one]][0], images[numbers[other]][0])))] += 1
    links = [pair for pair, count in votes.items() if 2 * count >= len(styles_of[pair[0]] & styles_of[pair[1]])]
    for alias in (_neutral, lambda text: _folded(names[text])):
        firsts: dict[str, str] = {}
        links += [(firsts.setdefault(alias(text), text), text) for text in sorted(styles_of)]
    return _components(styles_of, links)


def _held_cells(cells: list[tuple[str, str, str]], config: SplitConfig) -> set[tuple[str, str]]:
    """(group, family) pairs to hold out, of all trained (group, text, family): those with the lowest hashes, as long as
    every text of the group stays in another family, and every family keeps a text."""
    left: dict[str, set[str]] = defaultdict(set)  # families by text
    kept: dict[str, set[str]] = defaultdict(set)  # texts by family
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for group, text, family in cells:
        left[text].add(family)
        kept[family].add(text)
        texts[group, family].add(text)
    shares = {cell: _share(config.seed, "cell", *cell) for cell in texts}
    held = set()
    for cell in sorted((cell for cell in texts if shares[cell] < config.held_cells), key=lambda cell: shares[cell]):
        family = cell[1]
        if all(len(left[text]) > 1 for text in texts[cell]) and len(kept[family]) > len(texts[cell]):
            held.add(cell)
            kept[family] -= texts[cell]
            for text in texts[cell]:
                left[text].discard(family)
    return held


def _without_copies(splits: list[str], vectors: np.ndarray) -> list[str]:
    trained = vectors[[number for number, name in enumerate(splits) if name == "train"]]
    held = [number for number, name in enumerate(splits) if name != "train"]
    result = list(splits)
    for start in range(0, len(held) if len(trained) else 0, _BLOCK):
        block = held[start:start + _BLOCK]
        alike = (vectors[block] @ trained.T).max(1) >= ALIKE
        for number, copy in zip(block, alike):
            result[number] = "copies" if copy else result[number]
    return result


def _share(seed: int, *names: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _neutral(text: str) -> str:
    return "".join(_PERSONS.get(letter, letter) for letter in text if letter not in _MARKS) or text


def _folded(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum()) or name


def _components(nodes: Iterable[Hashable], links: Iterable[tuple]) -> dict:
    """Every node → the least node that links lead to."""
    parents = {node: node for node in nodes}

    def root(node):
        while parents[node] != node:
            node = parents[node]
        return node

    for one, other in links:
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    return {node: root(node) for node in parents}
