"""A released model in int8, calibrated on what it draws for captions, or on nothing."""
from pathlib import Path

import numpy as np
import paddle

from vilg.app.pipeline import DRAWERS, Pipeline
from vilg.errors import DataError
from vilg.models.two_level.model import TwoLevelTransformer
from vilg.release.quantizing import Quantized, Watch, quantize, read_unquantized
from vilg.release.zoo import find_model

CAPTIONS = 64
"""That are read of a file at most: a pass each."""


def quantize_model(name_or_folder: str | Path, output: str | Path, captions: str | Path | None = None) -> Quantized:
    """Write a released model in int8 to ``output``; ``captions``: a text file, a caption a line, which are drawn to see
    activations. Raises VilgError for what cannot be read, drawn or written, and for a model in int8 already."""
    folder = find_model(name_or_folder, *DRAWERS)
    if Path(output).resolve() == folder.resolve():
        raise DataError(f"{output}: is the model itself, which would be lost; name another folder")
    released = read_unquantized(folder)
    seen = activations(Pipeline(released), read_captions(captions)) if captions else None
    return quantize(released, output, seen)


def read_captions(path: str | Path) -> list[str]:
    """The first lines of a text file that are not empty. Raises DataError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a UTF-8 text file of captions ({error})") from None
    captions = [line.strip() for line in lines if line.strip()][:CAPTIONS]
    if not captions:
        raise DataError(f"{path}: holds no captions; write one a line, or quantize without them")
    return captions


def activations(pipeline: Pipeline, captions: list[str]) -> dict[str, np.ndarray]:
    """What the model's maps read while it goes over its own drawings of ``captions``, in both directions."""
    model, words = pipeline.model, pipeline.text_tokenizer
    drawn = pipeline.text_to_image(captions, progress=True)
    codes = pipeline.encode([row[0] for row in drawn])
    read = pipeline.features.of_codes(codes)
    batch = words.encode_prompts(captions, model.config.text_length, strict=True)
    ids, length = paddle.to_tensor(batch.ids), paddle.to_tensor(batch.length)
    with paddle.no_grad(), Watch(model) as watch:
        if isinstance(model, TwoLevelTransformer):
            model.text_to_image_hidden(ids, length, codes, paddle.ones(codes.shape, "bool"))
        else:
            model.text_to_image_hidden(ids, length, codes)
        model.image_to_text_hidden(read, ids, length, paddle.zeros_like(length))
    return watch.seen()
