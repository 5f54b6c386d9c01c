"""Does a dual encoder find the image for a text, and the text for an image? On scenes, styles and public benchmarks.

All figures are shares; ``…_t2i_…`` are texts that look for images, ``…_i2t_…`` the reverse, ``…_chance`` what recall at
1 would be of a model that knows nothing.
"""
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from vilg.app.search.index import Encoder
from vilg.app.search.nearest import Neighbours
from vilg.data.benchmarks.retrieval import (
    PREDICTED,
    Benchmark,
    normalised,
    read_predictions,
    read_retrieval,
    write_predictions,
)
from vilg.data.sample import BrokenSample
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds import scenes
from vilg.data.worlds.styles import SPLITS
from vilg.errors import DataError
from vilg.metrics.retrieval import Standing, joined, standing_of_vectors
from vilg.progress import progress

SCENES = 1000
HELD_OUT = {"cells": "cells", "styles": "style", "concepts": "concepts"}
"""Splits of the styles world that are tested, and what their figures are called."""
TEXT = "{style}的{name}"
_BATCH = 256


@dataclass(frozen=True)
class Search:
    """Unit vectors of ``queries`` [Q, D] and ``candidates`` [N, D], and of every query the true candidates."""

    queries: np.ndarray
    candidates: np.ndarray
    positives: list[list[int]]

    def standing(self) -> Standing:
        """Where the true candidates stand."""
        return standing_of_vectors(self.queries, self.candidates, self.positives)


def public_figures(model: Encoder, folder: str, benchmark: Benchmark, predictions: str | None = None
                   ) -> Iterator[tuple[str, float]]:
    """Recall at 1, 5 and 10 both ways and their mean, on the files of a public benchmark, as the published numbers are
    taken: texts in lower case with straight quotation marks. ``predictions``: also write the ten best images of every
    text to that file. Raises DataError for files that are missing or damaged."""
    task = read_retrieval(folder, benchmark)
    texts = embed_texts(model, [normalised(text) for text in task.texts], "texts")
    images = embed_images(model, task.images(), "images", len(task.image_ids))
    yield from Search(texts, images, task.positives).standing().figures("t2i").items()
    own = task.texts_of_images()
    asked = [number for number, true in enumerate(own) if true]  # an image that no text is about asks for none
    yield from Search(images[asked], texts, [own[number] for number in asked]).standing().figures("i2t").items()
    if predictions:
        write_predictions(predictions, task, Neighbours(images).top_k(texts, PREDICTED)[0])


def prediction_figures(file: str, folder: str, benchmark: Benchmark) -> Iterator[tuple[str, float]]:
    """``t2i_r1``, ``t2i_r5``, ``t2i_r10`` and ``t2i_mean_recall`` of a file of predictions that anybody wrote. Raises
    DataError."""
    task = read_retrieval(folder, benchmark)
    found = read_predictions(file, task)
    recalls = {k: float(np.mean([bool(set(row[:k]) & set(true)) for row, true in zip(found, task.positives)]))
               for k in (1, 5, 10)}
    yield from ((f"t2i_r{k}", recall) for k, recall in recalls.items())
    yield "t2i_mean_recall", float(np.mean(list(recalls.values())))


def scenes_searches(model: Encoder, count: int, seed: int, split: str, size: int) -> dict[str, Search]:
    """"t2i" and "i2t" among ``count`` scenes of a split, one caption each, by other seeds than training's.

    Captions leave things out, so one may be true of several scenes: true candidates are all scenes that the caption
    describes, whichever it was written for, and the other way round.
    """
    world = [scenes.sample_scene(seed * 1_000_003 + number, split) for number in range(count)]
    rng = np.random.default_rng([seed, len(split), 2])
    captions = [_one(scenes.captions(scene, rng), rng) for scene in world]
    claims = [scenes.parse_caption(caption) for caption in captions]
    true = np.array([[claim.hold(scene) for scene in world] for claim in progress(claims, desc="captions")])
    texts = embed_texts(model, captions, "texts")
    images = embed_images(model, (scenes.render(scene, size) for scene in world), "images", count)
    return {"t2i": Search(texts, images, [np.flatnonzero(row).tolist() for row in true]),
            "i2t": Search(images, texts, [np.flatnonzero(column).tolist() for column in true.T])}


def styles_searches(model: Encoder, folder: str) -> dict[tuple[str, str], list[Search]]:
    """Searches by (split, "t2i" or "i2t") in the styles world, one for every style that the split has images of.

    A held-out image is of a concept Y in a style X; its text is "X的Y", such as 线描风格的红苹果. As a text it looks among
    all images of style X, trained and held out, which are one a concept; only that of concept Y is right. As an image
    it looks among the texts "X的…" of all concepts of the world, whether or not X draws them. So the style, which all
    candidates share, says nothing, and the concept must be told in a drawing that training never showed.

    Splits are those of the folder: *cells* (style and concept were trained, never together), *styles* (the style is
    held out, and its description stands in no caption), *concepts* (the concept is held out). Raises DataError.
    """
    world = StylesWorld(folder)
    images = embed_images(model, world.images(), "images", len(world.facts))
    names = sorted({fact["name"] for fact in world.facts})
    place = {name: number for number, name in enumerate(names)}
    searches = defaultdict(list)
    for members in progress(world.by_style.values(), desc="styles"):
        said = world.facts[members[0]]["style_name"]
        texts = embed_texts(model, [TEXT.format(style=said, name=name) for name in names])
        for split in HELD_OUT:
            held = [row for row, member in enumerate(members) if world.facts[member]["split"] == split]
            if held:
                own = [place[world.facts[members[row]]["name"]] for row in held]
                shown = images[members]
                searches[split, "t2i"].append(Search(texts[own], shown, [[row] for row in held]))
                searches[split, "i2t"].append(Search(shown[held], texts, [[name] for name in own]))
    return searches


def embed_texts(model: Encoder, texts: Sequence[str], title: str | None = None) -> np.ndarray:
    """Vectors [N, D] of texts, with a bar called ``title``; long ones are cut, as the published protocols do."""
    return _embed(lambda batch: model.embed_text(batch, strict=False), texts, len(texts), title)


def embed_images(model: Encoder, images: Iterable[np.ndarray], title: str, count: int) -> np.ndarray:
    """Vectors [N, D] of ``count`` images that come one by one."""
    return _embed(model.embed_image, images, count, title)


def styles_figures(searches: dict[tuple[str, str], list[Search]]) -> Iterator[tuple[str, float]]:
    """``cells_t2i_r1``, ``style_t2i_r1``, ``concepts_t2i_r1`` and the same with ``i2t``, each with its chance, over the
    queries of all styles."""
    for split, name in HELD_OUT.items():
        for way in ("t2i", "i2t"):
            if (split, way) in searches:
                recall, chance = joined([search.standing() for search in searches[split, way]])
                yield f"{name}_{way}_r1", recall
                yield f"{name}_{way}_chance", chance


class StylesWorld:
    """The images of a folder of tools/prepare_styles.py over all its tables: ``facts`` of each, and their numbers by
    style, one a concept."""

    def __init__(self, folder: str):
        self.folder = folder
        tables = [path for name in SPLITS if (path := Path(folder) / f"{name}.jsonl").is_file()]
        if not tables:
            raise DataError(f"{folder}: holds no tables of styles; run `python tools/prepare_styles.py --output "
                            f"{folder}` first, or name its folder with --data")
        self._rows = [(source, row) for source in (TableSource(TableConfig(path=str(path))) for path in tables)
                      for row in range(len(source))]
        self.facts = [source.record(row)[0].facts for source, row in self._rows]
        self.by_style: dict[str, list[int]] = defaultdict(list)
        for number, fact in enumerate(self.facts):
            if not {"style", "style_name", "name", "split"} <= fact.keys():
                raise DataError(f"{folder}: image {number} has no style or name; write the folder again with "
                                "tools/prepare_styles.py")
            self.by_style[fact["style"]].append(number)

    def images(self) -> Iterator[np.ndarray]:
        """All images, in order."""
        return (self.image(number) for number in range(len(self.facts)))

    def image(self, number: int) -> np.ndarray:
        """One of them, uint8 [H, W, 3]. Raises DataError when it cannot be read."""
        source, row = self._rows[number]
        try:
            return source[row].image
        except BrokenSample as broken:
            raise DataError(f"{self.folder}: {broken}; write the folder again with tools/prepare_styles.py") from None


def _embed(encode: Callable[[list], np.ndarray], things: Iterable, count: int, title: str | None) -> np.ndarray:
    things, vectors = iter(things), []
    with progress(total=count, desc=title or "", shown=title is not None) as bar:
        while batch := list(islice(things, _BATCH)):
            vectors.append(encode(batch))
            bar.update(len(batch))
    return np.concatenate(vectors)


def _one(items: list, rng: np.random.Generator):
    return items[rng.integers(len(items))]
