"""Does the model draw, describe and answer truthfully? Judged on held-out scenes by the scene reader.

The model comes in as functions, so that the protocol knows nothing of it: ``draw`` texts and a seed to pictures,
``rank`` a text and its pictures to the best one's index, ``describe`` pictures to texts, ``answer`` pictures and
questions to texts.
"""
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from vilg.app.pipeline import Pipeline
from vilg.data.worlds import scenes
from vilg.errors import ConfigError
from vilg.progress import progress
from vilg.run import build

SCENES = 500  # a split, unless the caller says how many
Pictures = list[np.ndarray]


@dataclass
class Model:
    """What is judged. ``draw(texts, num_images, seed)`` returns a list of pictures a text, each uint8 [H, W, 3]."""

    draw: Callable[[list[str], int, int], list[Pictures]]
    rank: Callable[[str, Pictures], list[float]]
    describe: Callable[[Pictures], list[str]]
    answer: Callable[[Pictures, list[str]], list[str]]


def evaluate_scenes(model: Model, count: int, seed: int, size: int, best_of: int = 8,
                    splits: tuple[str, ...] = ("test", "unseen"), trained: Collection[scenes.Scene] | None = None
                    ) -> Iterator[tuple[str, float]]:
    """Yield ``t2i_single``, ``t2i_best_of_8``, ``i2t`` and ``vqa`` as shares, and each again with ``_unseen``.

    Scenes of split test are other seeds than training's, but there are only so many scenes of one object: with the
    scenes that training showed (``trained``), ``scenes_new`` is the share of others, ``i2t_new`` and ``vqa_new`` are of
    those alone.

    ``count`` scenes a split; each gives one caption, one picture and one question. ``t2i_single`` judges the first of
    the ``best_of`` samples, so both figures come from one drawing.
    """
    for split in splits:
        suffix = "" if split == "test" else f"_{split}"
        truth = [scenes.sample_scene(seed * 1_000_003 + index, split) for index in range(count)]
        rng = np.random.default_rng([seed, len(split)])
        captions = [_one(scenes.captions(scene, rng), rng) for scene in truth]
        asked = [_one(scenes.questions(scene, rng), rng) for scene in truth]
        drawn = model.draw(captions, best_of, seed)
        satisfied = [[scenes.satisfies(picture, text) for picture in row] for text, row in zip(captions, drawn)]
        best = [int(np.argmax(model.rank(text, row))) for text, row in zip(captions, drawn)]
        yield f"t2i_single{suffix}", float(np.mean([row[0] for row in satisfied]))
        yield f"t2i_best_of_{best_of}{suffix}", float(np.mean([row[pick] for row, pick in zip(satisfied, best)]))
        pictures = [scenes.render(scene, size) for scene in truth]
        texts = model.describe(pictures)
        told = [scenes.describes(text, scene) for text, scene in zip(texts, truth)]
        yield f"i2t{suffix}", float(np.mean(told))
        answers = model.answer(pictures, [question for question, _ in asked])
        right = [scenes.answer_is_right(question, answer, scene)
                 for (question, _), answer, scene in zip(asked, answers, truth)]
        yield f"vqa{suffix}", float(np.mean(right))
        if trained is not None and split == "test":
            new = np.array([scene not in trained for scene in truth])
            yield "scenes_new", float(new.mean())
            for name, outcome in (("i2t_new", told), ("vqa_new", right)):
                yield name, float(np.mean(np.array(outcome)[new])) if new.any() else float("nan")


def scenes_figures(pipeline: Pipeline, count: int = SCENES, seed: int = 0, best_of: int = 8,
                   trained_on: str | None = None) -> Iterator[tuple[str, float]]:
    """The figures of :func:`evaluate_scenes` for a loaded model; ``trained_on`` is a run config whose scenes it learned
    from."""
    def draw(texts: list[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        # Seeds of their own: with one for all, every text would draw with the same luck, and the share would be that of
        # a few draws, not of hundreds.
        seeds = [seed * 1_000_003 + index for index in range(len(texts))]
        drawn = pipeline.text_to_image(texts, num_images=num_images, seed=seeds, progress=True)
        return [[np.asarray(picture) for picture in row] for row in drawn]

    model = Model(draw=draw, rank=lambda text, pictures: pipeline.rank(text, pictures)[0].tolist(),
                  describe=pipeline.image_to_text, answer=pipeline.answer)
    trained = trained_scenes(trained_on) if trained_on else None
    yield from evaluate_scenes(model, count, seed, pipeline.image_tokenizer.image_size, best_of, trained=trained)


def trained_scenes(path: str) -> set[scenes.Scene]:
    """The scenes of the scenes sources of a run config, without wide ones, which no test shows. Raises ConfigError."""
    sources = {(one.split, one.first, one.count, one.kinds) for one in build.load_run(path).data.sources
               if one.kind == "scenes" and not one.wide}
    if not sources:
        raise ConfigError(f"{path}: data.sources has no scenes to compare with")
    seeds = [(first + index, split, kinds) for split, first, count, kinds in sorted(sources) for index in range(count)]
    return {scenes.sample_scene(*seed) for seed in progress(seeds, desc="scenes of training", unit="scene")}


def _one(items: list, rng: np.random.Generator):
    return items[rng.integers(len(items))]
