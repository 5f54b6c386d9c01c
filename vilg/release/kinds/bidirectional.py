"""The folder of a bidirectional model: the transformer, the two tokenizers it was trained on, the sampling settings
that suit it and, for the end-to-end path, a reconstructor. Codes or ids of other tokenizers would load without
complaint and draw noise, so all are tied by fingerprints."""
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilg import config as configs
from vilg.errors import CheckpointError
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer, TextImageTransformer
from vilg.models.end_to_end import EndToEndReconstructor
from vilg.models.two_level.features import FeatureReader
from vilg.nn.layers import Embedding, Linear
from vilg.release.folder import DESCRIPTION, WEIGHTS, Opened, open_folder
from vilg.release.kinds.reconstructor import Trained
from vilg.release.registry import KINDS, Contents, Kind, chosen, register
from vilg.release.widening import widen
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import fingerprint, load_weights


@dataclass
class ReleasedModel:
    """A transformer with the two tokenizers it was trained on, the sampling settings that suit it (a config, or plain
    values when read), and the reconstructor of its end-to-end path if it has one. ``name`` is the folder's."""

    model: TextImageTransformer
    image_tokenizer: ImageTokenizer
    text_tokenizer: WordPieceTokenizer
    sampling: Any
    name: str = ""
    reconstructor: EndToEndReconstructor | None = None

    @property
    def reader(self) -> FeatureReader:
        """From images to what image→text reads."""
        return FeatureReader("codes", self.image_tokenizer)


@register("bidirectional")
class BidirectionalFolder(Kind):
    """``kind: bidirectional`` ↔ :class:`ReleasedModel`. Replaced weights of the reconstructor are named
    ``reconstructor.`` and their name."""

    name = "bidirectional"
    title = "a bidirectional model, which draws and describes"
    old_parts = ("image_tokenizer", "reconstructor")
    shape: type[BidirectionalConfig] = BidirectionalConfig
    network: type[TextImageTransformer] = BidirectionalTransformer

    def pack(self, thing: ReleasedModel, replaced: dict[str, np.ndarray]) -> Contents:
        weights = chosen(thing.model, replaced)
        parts = {"image_tokenizer": KINDS["image_tokenizer"].pack(thing.image_tokenizer, {})}
        if thing.reconstructor is not None:
            prefix = "reconstructor."
            own = {name.removeprefix(prefix): value for name, value in replaced.items() if name.startswith(prefix)}
            parts["reconstructor"] = KINDS["reconstructor"].pack(
                Trained(thing.reconstructor, weights, thing.image_tokenizer), own)
        sampling = configs.to_dict(thing.sampling) if is_dataclass(thing.sampling) else thing.sampling
        return Contents(self.name, {
            "model": thing.model.config, "sampling": sampling,
            "image_tokenizer": fingerprint(thing.image_tokenizer.state_dict())}, weights, parts, thing.text_tokenizer,
            _matrices(thing.model))

    def restore(self, opened: Opened, **beside: Any) -> ReleasedModel:
        image_tokenizer = opened.part("image_tokenizer", "image_tokenizer")
        if image_tokenizer is None:
            raise CheckpointError(f"{opened.folder}: has no image_tokenizer folder; fetch or write the whole again")
        opened.refuse_others(_identity(image_tokenizer))
        text_tokenizer, sampling = opened.text_tokenizer(), opened.said.get("sampling", {})
        if not isinstance(sampling, dict):
            raise CheckpointError(f"{opened.folder / DESCRIPTION}: sampling must be a mapping of settings")
        config = opened.section("model", self.shape)
        _check_fit(config, image_tokenizer, text_tokenizer, opened.folder / DESCRIPTION)
        model = opened.build(lambda: self.network(config), drawing=True)
        # A model that holds int8 alone has no float weights to tell whose reconstructor this is.
        trained = opened.weights if opened.int8 else None
        reconstructor = opened.part("reconstructor", "reconstructor", model=model, image_tokenizer=image_tokenizer,
                                    transformer=trained)
        return ReleasedModel(model, image_tokenizer, text_tokenizer, sampling, opened.folder.name, reconstructor)


def start_from(model: BidirectionalTransformer, folder: str | Path, image_tokenizer: ImageTokenizer,
               text_tokenizer: WordPieceTokenizer, other_codes: bool = False) -> None:
    """Give ``model`` the weights of a released folder (fine-tuning), as :func:`weights_of` reads them. Raises
    CheckpointError when they do not fit."""
    opened, weights = weights_of(folder, image_tokenizer, text_tokenizer, "bidirectional", other_codes)
    load_weights(model, weights, str(opened.folder / WEIGHTS))


def weights_of(folder: str | Path, image_tokenizer: ImageTokenizer, text_tokenizer: WordPieceTokenizer,
               kind: str | None = None, other_codes: bool = False) -> tuple[Opened, dict[str, np.ndarray]]:
    """A released folder (of ``kind``) to start from, and its weights for these tokenizers. ``text_tokenizer`` may hold
    more tokens than the folder's (:func:`~vilg.release.widening.widen`). Raises CheckpointError when the vocabulary
    lacks some of the folder's, or the image tokenizer is not the one in use, unless its codes may be others."""
    opened = open_folder(folder, kind)
    if not other_codes:
        opened.refuse_others(_identity(image_tokenizer))
    weights, theirs = dict(opened.weights), opened.text_tokenizer()
    if theirs.fingerprint() != text_tokenizer.fingerprint():
        weights = widen(weights, theirs, text_tokenizer, str(opened.folder))
    return opened, weights


def _identity(image_tokenizer: ImageTokenizer) -> dict[str, tuple[str, str]]:
    return {"image_tokenizer": ("image tokenizer", fingerprint(image_tokenizer.state_dict()))}


def _matrices(model: BidirectionalTransformer) -> dict[str, int]:
    """Weights of linear maps and tables, and the axis that their scales in int8 lie along."""
    return {f"{name}.weight": 0 if isinstance(layer, Embedding) else 1 for name, layer in model.named_sublayers()
            if isinstance(layer, (Embedding, Linear))}


def _check_fit(config: BidirectionalConfig, image_tokenizer: ImageTokenizer, text_tokenizer: WordPieceTokenizer,
               source: Path) -> None:
    for key, theirs in (("vocab_size", text_tokenizer.vocab_size), ("codebook_size", image_tokenizer.codebook_size),
                        ("rows", image_tokenizer.grid[0]), ("columns", image_tokenizer.grid[1])):
        if getattr(config, key) != theirs:
            raise CheckpointError(f"{source}: model.{key} is {getattr(config, key)}, but its tokenizers have {theirs}; "
                                  "fetch or write the whole again")
