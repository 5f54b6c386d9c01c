"""Puts a loaded model before the evaluations: the model's methods become the functions that the protocols ask for."""
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vilg.app.pipeline import Pipeline
from vilg.data.sample import BrokenSample
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.transforms import centre_crop
from vilg.data.worlds import scenes
from vilg.errors import ConfigError, DataError
from vilg.evaluation.scenes import Model, evaluate_scenes
from vilg.metrics.pictures import psnr, ssim
from vilg.metrics.retrieval import nearest_share
from vilg.run import build

log = logging.getLogger("vilg.evaluation.judge")
SCENES = 500  # unless the caller says how many


def scenes_figures(pipeline: Pipeline, settings: Any) -> Iterator[tuple[str, float]]:
    """The figures of :func:`vilg.evaluation.scenes.evaluate_scenes` for a pipeline; ``settings`` has count,
    seed, best_of and trained_on."""
    def draw(texts: list[str], num_images: int, seed: int) -> list[list[np.ndarray]]:
        # Seeds of their own: with one for all, every text would draw with the same luck, and the share would be that of
        # a few draws, not of hundreds.
        seeds = [seed * 1_000_003 + index for index in range(len(texts))]
        drawn = pipeline.text_to_image(texts, num_images=num_images, seed=seeds, progress=True)
        return [[np.asarray(picture) for picture in row] for row in drawn]

    model = Model(draw=draw, rank=lambda text, pictures: pipeline.rank(text, pictures)[0].tolist(),
                  describe=pipeline.image_to_text, answer=pipeline.answer)
    trained = trained_scenes(settings.trained_on) if settings.trained_on else None
    yield from evaluate_scenes(model, settings.count or SCENES, settings.seed, pipeline.image_tokenizer.image_size,
                               settings.best_of, trained=trained)


def trained_scenes(path: str) -> set[scenes.Scene]:
    """The scenes of the scenes sources of a run config, without wide ones, which no test shows. Raises ConfigError."""
    sources = {(one.split, one.first, one.count, one.kinds) for one in build.load_run(path).data.sources
               if one.kind == "scenes" and not one.wide}
    if not sources:
        raise ConfigError(f"{path}: data.sources has no scenes to compare with")
    seeds = [(first + index, split, kinds) for split, first, count, kinds in sorted(sources) for index in range(count)]
    return {scenes.sample_scene(*seed) for seed in tqdm(seeds, desc="scenes of training", unit="scene")}


def emoji_figures(pipeline: Pipeline, settings: Any) -> Iterator[tuple[str, float]]:
    """``t2i_nearest`` in the tokenizer's reconstruction space, ``t2i_nearest_pixels``, ``i2t_exact``,
    over every emoji."""
    names, pictures = _emoji(settings.data, pipeline.image_tokenizer.image_size)
    names_asked = names[:settings.count] if settings.count else names
    drawn = pipeline.text_to_image(names_asked, seed=settings.seed, progress=True)
    drawn = np.stack([np.asarray(row[0]) for row in drawn])
    codes = pipeline.encode(list(pictures))
    reconstructed = np.stack(pipeline.decode(codes))
    yield "t2i_nearest", nearest_share(drawn, reconstructed)
    yield "t2i_nearest_pixels", nearest_share(drawn, pictures)
    told = pipeline.image_to_text(list(pictures[:len(names_asked)]))
    yield "i2t_exact", float(np.mean([text == pipeline.words.normalise(name) for text, name in zip(told, names_asked)]))


def tokenizer_figures(pipeline: Pipeline, settings: Any) -> Iterator[tuple[str, float]]:
    """PSNR and SSIM of reconstructions, mean over pictures, and the share of the codebook that both sets use."""
    size, used = pipeline.image_tokenizer.image_size, set()
    held_out = [scenes.render(scenes.sample_scene(settings.seed * 1_000_003 + index, "test"), size)
                for index in range(settings.count or SCENES)]
    for name, pictures in (("scenes", held_out), ("emoji", list(_emoji(settings.data, size)[1]))):
        codes = pipeline.encode(pictures)
        used |= set(np.unique(codes.numpy()).tolist())
        rebuilt = pipeline.decode(codes)
        yield f"psnr_{name}", float(np.mean([psnr(*pair) for pair in zip(pictures, rebuilt)]))
        yield f"ssim_{name}", float(np.mean([ssim(*pair) for pair in zip(pictures, rebuilt)]))
    yield "codebook_usage", len(used) / pipeline.image_tokenizer.codebook_size


def _emoji(folder: str, size: int) -> tuple[list[str], np.ndarray]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: there is no such folder; run `python tools/prepare_emoji.py --output {folder}` "
                        "first")
    source = FolderSource(FolderConfig(path=folder))
    samples = []
    for index in range(len(source)):
        try:
            samples.append(source[index])
        except BrokenSample as broken:
            log.warning("left out: %s", broken)
    if not samples:
        raise DataError(f"{folder}: has no picture that can be read; write it again with tools/prepare_emoji.py")
    return [sample.captions[0] for sample in samples], np.stack([centre_crop(s.image, size) for s in samples])
