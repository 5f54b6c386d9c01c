"""A run's images as codes, once, so that training need not run the image tokenizer."""
from pathlib import Path

import numpy as np
import paddle

from vilg import release, runtime
from vilg.data.config import build_source
from vilg.data.sample import Reading
from vilg.data.sources.codes import write_codes
from vilg.data.transforms import to_model
from vilg.errors import ConfigError
from vilg.run.build import RunConfig
from vilg.weights.files import fingerprint


def encode_images(run: RunConfig, output: str | Path, batch_size: int) -> str:
    """Write the codes of every data source of a run, a folder each under ``output``; returns the sources to train on.

    Raises ConfigError for a run whose task has no image tokenizer to encode with, and for a source of codes.
    """
    if not hasattr(run.task, "image_tokenizer"):
        raise ConfigError("task.kind: encoding needs a task with an image tokenizer, such as bidirectional, "
                          f"got {run.task.kind}")
    for number, source in enumerate(run.data.sources):
        if source.kind == "codes":
            raise ConfigError(f"data.sources.{number}: holds codes already; name the images that they were made from")
    runtime.configure(run.runtime)
    tokenizer = release.read(run.task.image_tokenizer, "image_tokenizer")
    tokenizer.eval()
    mark = fingerprint(tokenizer.state_dict())

    def encode(images: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            return tokenizer.encode(paddle.to_tensor(to_model(images))).numpy()

    lines = []
    for number, source in enumerate(run.data.sources):
        folder = Path(output) / f"{number}_{source.kind}"
        reading = Reading(tokenizer.image_size, max_pixels=run.data.max_pixels)
        report = write_codes(folder, build_source(source, mark, reading), encode, tokenizer.image_size, mark,
                             batch_size, run.data.loader.max_broken)
        lines.append(f"- {{kind: codes, path: {folder}, repeat: {getattr(source, 'repeat', 1)}}}  # {report.written} "
                     f"images, {report.broken} broken")
    return "data.sources to train on these codes:\n" + "\n".join(lines)
