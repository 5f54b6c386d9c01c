"""What the image tokenizer keeps of a picture."""
from collections.abc import Iterator

import numpy as np

from vilg.app.pipeline import Pipeline
from vilg.data.worlds import scenes
from vilg.evaluation.emoji import read_emoji
from vilg.evaluation.scenes import SCENES
from vilg.metrics.pictures import psnr, ssim


def tokenizer_figures(pipeline: Pipeline, folder: str, seed: int = 0, count: int = SCENES
                      ) -> Iterator[tuple[str, float]]:
    """PSNR and SSIM of reconstructions, mean over ``count`` held-out scenes and the emoji of ``folder``, and the share
    of the codebook that both sets use."""
    size, used = pipeline.image_tokenizer.image_size, set()
    held_out = [scenes.render(scenes.sample_scene(seed * 1_000_003 + index, "test"), size)
                for index in range(count)]
    for name, pictures in (("scenes", held_out), ("emoji", list(read_emoji(folder, size)[1]))):
        codes = pipeline.encode(pictures)
        used |= set(np.unique(codes.numpy()).tolist())
        rebuilt = pipeline.decode(codes)
        yield f"psnr_{name}", float(np.mean([psnr(*pair) for pair in zip(pictures, rebuilt)]))
        yield f"ssim_{name}", float(np.mean([ssim(*pair) for pair in zip(pictures, rebuilt)]))
    yield "codebook_usage", len(used) / pipeline.image_tokenizer.codebook_size
