"""Does a model draw the thing that it is asked for, in the style that it is asked for, and name both when it sees them?

On the world of styles (tools/prepare_styles.py): cells (a thing in a style) that were trained, and cells that never
were, though their thing and their style were. A drawing counts by the picture of the world that it is nearest to.
"""
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vilg.app.image_files import save_whole
from vilg.app.pipeline import Pipeline
from vilg.app.sheet import table
from vilg.data.transforms import centre_crop
from vilg.data.worlds.styles.world import MORE_TEMPLATES, TEMPLATES
from vilg.errors import DataError
from vilg.evaluation.retrieval import TEXT, StylesWorld, embed_images
from vilg.metrics.retrieval import nearest
from vilg.progress import progress

log = logging.getLogger("vilg.evaluation")
SIDE = 32
"""Pixels a side at which drawings and pictures of the world are compared."""
KINDS = {"seen": "train", "unseen": "cells"}
NAME, STYLE = "这是什么？", "什么风格？"
ON_SHEET = 8


@dataclass
class Asked:
    """Cells that are asked for: their ``numbers`` in the world, their facts, the text that asks for each, and their
    pictures as they are stored."""

    numbers: np.ndarray
    facts: list[dict[str, Any]]
    texts: list[str]
    pictures: list[np.ndarray]


def drawn_figures(pipeline: Pipeline, folder: str, seed: int = 0, count: int = 500, encoder: Any = None,
                  sheet: str | Path | None = None) -> Iterator[tuple[str, float]]:
    """Figures of ``count`` trained and ``count`` never trained cells, or all where there are fewer, asked for as
    "线描风格的红苹果". Each is a share, followed by its ``…_chance``.

    ``t2i_cell_seen``, ``t2i_concept_seen``, ``t2i_style_seen`` and the same ``_unseen``: the picture of the whole world
    that is nearest to the drawing (Euclidean, 32 pixels a side) is of that cell, of that thing, in that style. The
    pictures asked for, through the image tokenizer and back, would reach ``…_ceiling``. With a dual ``encoder``,
    nearest by the cosine of its vectors: ``…_encoder``. ``i2t_name_seen``, ``i2t_style_seen`` …: exact answers to
    这是什么？ and 什么风格？ about the cells' own pictures; ``i2t_style``: of both kinds together. ``i2t_caption_seen`` …:
    the sentence written is one of the world's about this picture. Chance of an answer: what the commonest one gets.
    ``sheet``: a PNG of drawings that were right and wrong. Raises DataError for a folder that holds no such world.
    """
    world = StylesWorld(folder)
    thumbnails = np.stack([centre_crop(image, SIDE) for image in progress(
        world.images(), total=len(world.facts), desc="reading", unit="picture")])
    vectors = None if encoder is None else embed_images(encoder, world.images(), "comparing", len(world.facts))
    rows, style_right = [], []
    for kind, split in KINDS.items():
        asked = choose(world, split, count, seed, lambda text: fits(pipeline, text))
        drawn = [np.asarray(row[0]) for row in pipeline.text_to_image(asked.texts, seed=seed, progress=True)]
        near = nearest(_small(drawn), thumbnails)
        yield from judged(world.facts, asked.numbers, near, kind)
        again = pipeline.decode(pipeline.encode(asked.pictures))
        ceiling = nearest(_small(again), thumbnails)
        yield from ((f"{name}_ceiling", value) for name, value in judged(world.facts, asked.numbers, ceiling, kind)
                    if not name.endswith("_chance"))
        if vectors is not None:
            seen = embed_images(encoder, drawn, "", len(drawn))
            found = np.concatenate([(seen[start:start + 256] @ vectors.T).argmax(1)
                                    for start in range(0, len(seen), 256)])
            yield from ((f"{name}_encoder", value) for name, value in judged(world.facts, asked.numbers, found, kind)
                        if not name.endswith("_chance"))
        figures, right = _written(pipeline, asked, kind)
        style_right += right
        yield from figures.items()
        rows += sheet_rows(world, asked, drawn, near, kind) if sheet else []
    yield "i2t_style", float(np.mean(style_right))
    if sheet:
        save_whole(table(rows), Path(sheet))


def choose(world: StylesWorld, split: str, count: int, seed: int, fitting: Callable[[str], bool]) -> Asked:
    """``count`` cells of a split at random, whose text is ``fitting``. Raises DataError when there is none."""
    members = [number for number, fact in enumerate(world.facts) if fact["split"] == split]
    texts = {number: TEXT.format(style=world.facts[number]["style_name"], name=world.facts[number]["name"])
             for number in members}
    kept = [number for number in members if fitting(texts[number])]
    if not kept:
        raise DataError(f"{world.folder}: has no picture of the split {split!r} that the model could be asked for; "
                        "write the folder again with tools/prepare_styles.py")
    if len(kept) < len(members):
        log.warning("%d of %d cells of %s are left out: their text is longer than the model reads",
                    len(members) - len(kept), len(members), split)
    rng = np.random.default_rng([seed, len(split)])
    numbers = np.sort(rng.permutation(kept)[:count])
    return Asked(numbers, [world.facts[number] for number in numbers], [texts[number] for number in numbers],
                 [world.image(number) for number in numbers])


def judged(facts: Sequence[dict[str, Any]], asked: np.ndarray, found: np.ndarray, kind: str
           ) -> Iterator[tuple[str, float]]:
    """``t2i_cell_{kind}``, ``t2i_concept_…``, ``t2i_style_…`` of the pictures ``asked`` for and those ``found``
    nearest, both numbers [Q] in ``facts``, each with the chance of a picture that is taken blindly."""
    yield f"t2i_cell_{kind}", float(np.mean(asked == found))
    yield f"t2i_cell_{kind}_chance", 1 / len(facts)
    for part, key in (("concept", "name"), ("style", "style")):
        values = [fact[key] for fact in facts]
        many = Counter(values)
        yield f"t2i_{part}_{kind}", float(np.mean([values[one] == values[other] for one, other in zip(asked, found)]))
        yield f"t2i_{part}_{kind}_chance", float(np.mean([many[values[one]] for one in asked])) / len(facts)


def fits(pipeline: Pipeline, text: str) -> bool:
    """Whether the model reads all of the text."""
    return not pipeline.text_tokenizer.encode_batch([text], pipeline.model.config.text_length).cut[0]


def true_sentences(fact: dict[str, Any]) -> list[str]:
    """What the world may say about a picture."""
    told = [text.format(name=fact["name"], style=fact["style_name"]) for text in (*TEMPLATES, *MORE_TEMPLATES)]
    return [*told, "，".join([fact["name"], "、".join(fact["tags"])])] if fact.get("tags") else told


def sheet_rows(world: StylesWorld, asked: Asked, drawn: list[np.ndarray], near: np.ndarray, kind: str
               ) -> list[tuple[str, list[Image.Image]]]:
    """Rows of the sheet, right ones first: the text, with the drawing, the picture asked for, and the nearest."""
    right = asked.numbers == near
    chosen = [*np.flatnonzero(right)[:ON_SHEET], *np.flatnonzero(~right)[:ON_SHEET]]
    size = drawn[0].shape[0]
    rows = []
    for row in chosen:
        fact = world.facts[near[row]]
        got = "对 right" if right[row] else f"像 nearest: {fact['style_name']}的{fact['name']}"
        shown = (drawn[row], asked.pictures[row], world.image(near[row]))
        rows.append((f"{asked.texts[row]}（{kind}）\n{got}", [Image.fromarray(centre_crop(one, size)) for one in shown]))
    return rows


def _written(pipeline: Pipeline, asked: Asked, kind: str) -> tuple[dict[str, float], list[bool]]:
    """Figures of what is written about the pictures, and whose style was told rightly."""
    normal, figures, right = pipeline.text_tokenizer.normalise, {}, []
    for name, question, key in (("name", NAME, "name"), ("style", STYLE, "style_name")):
        true = [normal(fact[key]) for fact in asked.facts]
        right = [said == truth for said, truth in zip(pipeline.answer(asked.pictures, [question] * len(true)), true)]
        figures[f"i2t_{name}_{kind}"] = float(np.mean(right))
        figures[f"i2t_{name}_{kind}_chance"] = Counter(true).most_common(1)[0][1] / len(true)
    said = pipeline.image_to_text(asked.pictures)
    figures[f"i2t_caption_{kind}"] = float(np.mean([
        text in map(normal, true_sentences(fact)) for text, fact in zip(said, asked.facts)]))
    return figures, right


def _small(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([centre_crop(picture, SIDE) for picture in pictures])
