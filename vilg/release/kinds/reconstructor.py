"""The ``reconstructor/`` part of a bidirectional model's folder: the end-to-end path's map and network."""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vilg.errors import CheckpointError
from vilg.models.bidirectional import BidirectionalTransformer
from vilg.models.end_to_end import EndToEndReconstructor, ReconstructorConfig
from vilg.release.folder import Opened
from vilg.release.registry import Contents, Kind, chosen, register
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.weights.files import Arrays, fingerprint


@dataclass
class Trained:
    """A reconstructor, and the weights of the transformer and the image tokenizer that it was trained with."""

    reconstructor: EndToEndReconstructor
    transformer: Arrays
    image_tokenizer: ImageTokenizer


@register("reconstructor")
class ReconstructorFolder(Kind):
    """``kind: reconstructor`` ← :class:`Trained`, → :class:`~vilg.models.end_to_end.EndToEndReconstructor`.

    It is read beside the transformer and the image tokenizer that it goes with: hidden vectors of another transformer
    would be drawn as noise. ``transformer``: the weights it was trained with, where they are the model's no longer (a
    wider vocabulary gave it more rows).
    """

    title = "a reconstructor"

    def pack(self, thing: Trained, replaced: dict[str, np.ndarray]) -> Contents:
        made = thing.reconstructor
        return Contents("reconstructor", {
            "reconstructor": made.config, "width": made.width, "grid": list(made.grid), "code_dim": made.code_dim,
            "image_tokenizer": fingerprint(thing.image_tokenizer.state_dict()),
            "transformer": fingerprint(thing.transformer)}, chosen(made, replaced))

    def restore(self, opened: Opened, model: BidirectionalTransformer | None = None,
                image_tokenizer: ImageTokenizer | None = None, transformer: Arrays | None = None,
                **beside: Any) -> EndToEndReconstructor:
        if model is None or image_tokenizer is None:
            raise CheckpointError(f"{opened.folder}: a reconstructor is a part of a bidirectional model; load the "
                                  f"folder that it lies in, {opened.folder.absolute().parent}")
        opened.refuse_others({
            "width": ("transformer width", model.config.width), "code_dim": ("code width", image_tokenizer.code_dim),
            "grid": ("grid", [model.layout.rows, model.layout.columns]),
            "image_tokenizer": ("image tokenizer", fingerprint(image_tokenizer.state_dict())),
            "transformer": ("transformer", fingerprint(transformer or model.state_dict()))})
        config = opened.section("reconstructor", ReconstructorConfig)
        # The network is made with an image tokenizer around it, so those numbers are asked for too.
        spare = sum(value.size for value in image_tokenizer.state_dict().values())
        made = opened.build(lambda: EndToEndReconstructor(replace(config, start="fresh"), model.config.width,
                                                          image_tokenizer), int(spare))
        made.config = config
        return made
