"""Is every emoji drawn so that it is told from all others, and named by its exact name?"""
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vilg.app.pipeline import Pipeline
from vilg.data.sample import BrokenSample
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.transforms import centre_crop
from vilg.errors import DataError
from vilg.metrics.retrieval import nearest_share

log = logging.getLogger("vilg.evaluation")


def emoji_figures(pipeline: Pipeline, folder: str, seed: int = 0, count: int | None = None
                  ) -> Iterator[tuple[str, float]]:
    """``t2i_nearest`` in the tokenizer's reconstruction space, ``t2i_nearest_pixels``, ``i2t_exact``,
    over every emoji of ``folder`` or the first ``count``."""
    names, pictures = read_emoji(folder, pipeline.image_tokenizer.image_size)
    names_asked = names[:count]
    drawn = pipeline.text_to_image(names_asked, seed=seed, progress=True)
    drawn = np.stack([np.asarray(row[0]) for row in drawn])
    codes = pipeline.encode(list(pictures))
    reconstructed = np.stack(pipeline.decode(codes))
    yield "t2i_nearest", nearest_share(drawn, reconstructed)
    yield "t2i_nearest_pixels", nearest_share(drawn, pictures)
    told = pipeline.image_to_text(list(pictures[:len(names_asked)]))
    exact = [text == pipeline.text_tokenizer.normalise(name) for text, name in zip(told, names_asked)]
    yield "i2t_exact", float(np.mean(exact))


def read_emoji(folder: str, size: int) -> tuple[list[str], np.ndarray]:
    """Names and images uint8 [N, size, size, 3] of a folder of tools/prepare_emoji.py. Raises DataError."""
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
