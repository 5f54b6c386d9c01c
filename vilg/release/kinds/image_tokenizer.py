"""The folder of an image tokenizer (VQVAE, VQGAN, dVAE): its config and weights."""
from pathlib import Path
from typing import Any

import numpy as np

from vilg.release.folder import DESCRIPTION, WEIGHTS, Opened, open_folder
from vilg.release.registry import Contents, Kind, chosen, register
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.kinds import build_image_tokenizer, image_tokenizer_config
from vilg.weights.files import load_weights


@register("image_tokenizer")
class ImageTokenizerFolder(Kind):
    """``kind: image_tokenizer`` ↔ :class:`~vilg.tokenizers.image.base.ImageTokenizer`."""

    title = "an image tokenizer"

    def pack(self, thing: ImageTokenizer, replaced: dict[str, np.ndarray]) -> Contents:
        return Contents("image_tokenizer", {"tokenizer": thing.config}, chosen(thing, replaced))

    def restore(self, opened: Opened, **beside: Any) -> ImageTokenizer:
        values, source = opened.values("tokenizer"), f"{opened.folder / DESCRIPTION}: tokenizer"
        config = image_tokenizer_config(values, source)
        quantizer = getattr(config, "quantizer", None)
        # Codes learned by averages are a table beside the parameters.
        opened.claim(quantizer.codebook_size * config.code_dim if quantizer else 0)
        return opened.build(lambda: build_image_tokenizer(config))


def start_image_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Give ``tokenizer`` the weights of a released folder, to train it further. Raises CheckpointError when they do not
    fit."""
    opened = open_folder(folder, "image_tokenizer")
    load_weights(tokenizer, opened.weights, str(opened.folder / WEIGHTS))
    quantizer = getattr(tokenizer, "quantizer", None)
    if hasattr(quantizer, "hold"):
        quantizer.hold()
