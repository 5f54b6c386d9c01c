"""The folder of an image tokenizer (VQVAE, VQGAN, dVAE): its config and weights."""
from typing import Any

import numpy as np

from vilg.release.folder import DESCRIPTION, Opened
from vilg.release.registry import Contents, Kind, chosen, register
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.kinds import build_image_tokenizer, image_tokenizer_config


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
