"""Released model folders: one folder holds all that drawing and describing need.

``model.yaml`` (kind, configs, fingerprints), ``model.safetensors``, ``image_tokenizer/`` (a folder of the same form)
and ``vocab.txt``. The fingerprints tie the transformer to the image tokenizer and vocabulary it was trained on: codes
or ids of another one would load without complaint and draw noise.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from vilg import config as configs
from vilg.errors import CheckpointError
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.tokenizers.image import ImageTokenizer, load_image_tokenizer, save_image_tokenizer
from vilg.tokenizers.wordpiece import WordPieceTokenizer
from vilg.weights import fingerprint, load_weights, read_weights, save_weights


@dataclass
class ReleasedModel:
    """A transformer with the two tokenizers it was trained on, and the sampling settings that suit it."""

    model: BidirectionalTransformer
    image_tokenizer: ImageTokenizer
    words: WordPieceTokenizer
    sampling: dict[str, Any]
    name: str


def save_bidirectional(directory: str | Path, config: BidirectionalConfig, weights: dict[str, Any],
                       image_tokenizer: ImageTokenizer, words: WordPieceTokenizer, sampling: Any,
                       dtype: str = "float16") -> None:
    """Write a released folder; weights are stored as ``dtype``. The yaml is written last,
    so half a folder never loads."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_image_tokenizer(image_tokenizer, directory / "image_tokenizer")
    words.save(directory)
    save_weights(directory / "model.safetensors", weights, {"format": "vilg"}, dtype=dtype)
    description = {"kind": "bidirectional", "model": configs.to_dict(config), "sampling": configs.to_dict(sampling),
                   "image_tokenizer": fingerprint(image_tokenizer.state_dict()), "vocabulary": words.fingerprint()}
    (directory / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False, allow_unicode=True),
                                          encoding="utf-8")


def load_bidirectional(directory: str | Path) -> ReleasedModel:
    """Read a released folder. Raises CheckpointError when a part is missing, cut short, or of another model."""
    directory = Path(directory)
    description = _describe(directory)
    image_tokenizer = load_image_tokenizer(directory / "image_tokenizer")
    words = WordPieceTokenizer.from_folder(directory)
    _check_parts(directory, description, image_tokenizer, words)
    config = configs.from_dict(BidirectionalConfig, description["model"], source=f"{directory / 'model.yaml'}: model")
    model = BidirectionalTransformer(config)
    load_weights(model, read_weights(directory / "model.safetensors"), str(directory / "model.safetensors"))
    model.eval()
    image_tokenizer.eval()
    return ReleasedModel(model, image_tokenizer, words, description.get("sampling", {}), directory.name)


def load_bidirectional_weights(model: BidirectionalTransformer, directory: str | Path, image_tokenizer: ImageTokenizer,
                               words: WordPieceTokenizer) -> None:
    """Start ``model`` from a released folder (fine-tuning); refused when the tokenizers are not the ones in use."""
    directory = Path(directory)
    _check_parts(directory, _describe(directory), image_tokenizer, words)
    load_weights(model, read_weights(directory / "model.safetensors"), str(directory / "model.safetensors"))


def _describe(directory: Path) -> dict[str, Any]:
    path = directory / "model.yaml"
    if not path.is_file():
        raise CheckpointError(f"{directory}: not a released model folder (it has no model.yaml); "
                              "`tools/train.py` writes one at the end of a run")
    description = configs.read_yaml(path)
    if description.get("kind") != "bidirectional":
        raise CheckpointError(f"{path}: holds a {description.get('kind')!r} model, a bidirectional one is wanted here")
    return description


def _check_parts(directory: Path, description: dict[str, Any], image_tokenizer: ImageTokenizer,
                 words: WordPieceTokenizer) -> None:
    for part, wanted, found in (
            ("image tokenizer", description.get("image_tokenizer"), fingerprint(image_tokenizer.state_dict())),
            ("vocabulary", description.get("vocabulary"), words.fingerprint())):
        if wanted != found:
            raise CheckpointError(f"{directory}: was trained with the {part} {wanted}, but {found} is in use; "
                                  f"use the {part} that lies in that folder")
