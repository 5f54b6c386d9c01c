"""The folder of a two-level model: the masked transformer, the tokenizers and features it goes with, its sampling."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilg.errors import CheckpointError
from vilg.models.two_level.features import FeatureReader
from vilg.models.two_level.model import TwoLevelConfig, TwoLevelTransformer
from vilg.release.folder import DESCRIPTION, WEIGHTS, Opened, describe
from vilg.release.kinds.bidirectional import BidirectionalFolder, ReleasedModel, weights_of
from vilg.release.kinds.image_tower import ReleasedTower
from vilg.release.registry import KINDS, Contents, register
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import load_weights


@dataclass
class ReleasedTwoLevel(ReleasedModel):
    """A two-level transformer with its tokenizers and sampling, and, for features of kind vit, their image tower."""

    tower: ReleasedTower | None = None

    @property
    def reader(self) -> FeatureReader:
        return feature_reader(self.model.config, self.image_tokenizer, self.tower)


def feature_reader(config: TwoLevelConfig, image_tokenizer: ImageTokenizer, tower: ReleasedTower | None
                   ) -> FeatureReader:
    """The reader of the features that a model's config names."""
    beside = (tower.tower, tower.preprocess) if tower is not None else ()
    return FeatureReader(config.features, image_tokenizer, *beside)


@register("two_level")
class TwoLevelFolder(BidirectionalFolder):
    """``kind: two_level`` ↔ :class:`ReleasedTwoLevel`."""

    name = "two_level"
    title = "a two-level model, which draws by mask-predict and describes"
    old_parts = ()
    shape, network = TwoLevelConfig, TwoLevelTransformer

    def pack(self, thing: ReleasedTwoLevel, replaced: dict[str, np.ndarray]) -> Contents:
        contents = super().pack(thing, replaced)
        if thing.tower is not None:
            contents.parts["image_tower"] = KINDS["image_tower"].pack(thing.tower, {})
        return contents

    def restore(self, opened: Opened, **beside: Any) -> ReleasedTwoLevel:
        tower = opened.part("image_tower", "image_tower")
        released = ReleasedTwoLevel(**vars(super().restore(opened)), tower=tower)
        if (tower is None) == (released.model.config.features == "vit"):
            raise CheckpointError(f"{opened.folder}: {DESCRIPTION} says features: {released.model.config.features}, "
                                  f"but there is {'no' if tower is None else 'an'} image_tower folder; fetch or write "
                                  "the whole again")
        released.reader.check(released.model.config, f"{opened.folder / DESCRIPTION}: model")
        return released


def start_from(model: TwoLevelTransformer, folder: str | Path, image_tokenizer: ImageTokenizer,
               text_tokenizer: WordPieceTokenizer) -> None:
    """Give ``model`` the weights of a released folder, of a two-level model or of a bidirectional one.

    Of the latter the begin-of-image vector becomes the mask vector. A map of features that the folder has not starts
    anew, as large as the embeddings of codes that it takes the place of. Raises CheckpointError when weights or
    tokenizers do not fit.
    """
    path = Path(folder) / DESCRIPTION
    said, _ = describe(folder)
    if said["kind"] not in ("bidirectional", "two_level"):
        raise CheckpointError(f"{path}: is of kind {said['kind']}; a two-level run starts from a two_level or a "
                              "bidirectional model")
    opened, weights = weights_of(folder, image_tokenizer, text_tokenizer)
    weights = {name.replace("begin_of_image.", "mask_vector."): value for name, value in weights.items()}
    own = {name: value.numpy() for name, value in model.state_dict().items() if name.startswith("feature_")}
    for name in [name for name in weights if name.startswith("feature_") and name not in own]:
        del weights[name]  # this model reads codes
    fresh = own.keys() - weights.keys()
    if fresh:
        size = float(np.sqrt(np.square(weights["image_embedding.weight"]).mean()))
        own["feature_norm.weight"] = np.full_like(own["feature_norm.weight"], size)
    load_weights(model, weights | {name: own[name] for name in fresh}, str(opened.folder / WEIGHTS))
