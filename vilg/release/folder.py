"""Released model folders: one folder holds all that drawing and describing need.

``model.yaml`` (kind, configs, fingerprints), ``model.safetensors``, ``image_tokenizer/`` (a folder of the same form),
``vocab.txt`` and, for the end-to-end path, ``reconstructor/``. The fingerprints tie the transformer to the image
tokenizer and vocabulary it was trained on: codes or ids of another one would load without complaint and draw noise.
"""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vilg import config as configs
from vilg.errors import CheckpointError
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.models.end_to_end import EndToEndReconstructor, ReconstructorConfig
from vilg.release.widening import widen
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.folder import load_image_tokenizer, save_image_tokenizer
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import fingerprint, load_weights, read_weights, save_weights
from vilg.yaml_files import read_yaml


@dataclass
class ReleasedModel:
    """A transformer with the two tokenizers it was trained on, the sampling settings that suit it, and the
    reconstructor of its end-to-end path if it has one."""

    model: BidirectionalTransformer
    image_tokenizer: ImageTokenizer
    words: WordPieceTokenizer
    sampling: dict[str, Any]
    name: str
    reconstructor: EndToEndReconstructor | None = None


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
    reconstructor = None
    if (directory / "reconstructor").is_dir():
        reconstructor = load_reconstructor(directory / "reconstructor", model, image_tokenizer)
        reconstructor.eval()
    model.eval()
    image_tokenizer.eval()
    return ReleasedModel(model, image_tokenizer, words, description.get("sampling", {}), directory.name, reconstructor)


def load_bidirectional_weights(model: BidirectionalTransformer, directory: str | Path, image_tokenizer: ImageTokenizer,
                               words: WordPieceTokenizer) -> None:
    """Start ``model`` from a released folder (fine-tuning). ``words`` may hold more tokens than the folder's vocabulary
    (:func:`~vilg.release.widening.widen`). Raises CheckpointError when it lacks some, and for another image tokenizer.
    """
    directory = Path(directory)
    theirs = WordPieceTokenizer.from_folder(directory)
    _check_parts(directory, _describe(directory), image_tokenizer, theirs)
    weights = read_weights(directory / "model.safetensors")
    if theirs.fingerprint() != words.fingerprint():
        weights = widen(weights, theirs, words, str(directory))
    load_weights(model, weights, str(directory / "model.safetensors"))


def save_reconstructor(directory: str | Path, reconstructor: EndToEndReconstructor, weights: dict[str, Any],
                       generator_weights: dict[str, Any], image_tokenizer: ImageTokenizer,
                       dtype: str = "float16") -> None:
    """Write the ``reconstructor/`` part of a released folder; ``weights`` are its own, ``generator_weights`` those of
    the transformer that it was trained with."""
    directory = Path(directory)
    save_weights(directory / "model.safetensors", weights, {"format": "vilg"}, dtype=dtype)
    description = {"kind": "reconstructor", "reconstructor": configs.to_dict(reconstructor.config),
                   "width": reconstructor.width, "grid": list(reconstructor.grid), "code_dim": reconstructor.code_dim,
                   "image_tokenizer": fingerprint(image_tokenizer.state_dict()),
                   "transformer": fingerprint(generator_weights)}
    (directory / "model.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")


def load_reconstructor(directory: str | Path, model: BidirectionalTransformer, image_tokenizer: ImageTokenizer,
                       transformer: dict[str, Any] | None = None) -> EndToEndReconstructor:
    """Read a ``reconstructor/`` folder for ``model`` and ``image_tokenizer``. ``transformer``: the weights that it was
    exported with, where they are no longer the model's own.

    Raises CheckpointError when it is not whole, or was made for another width, grid, tokenizer or transformer: hidden
    vectors of another one would be drawn as noise.
    """
    path = Path(directory) / "model.yaml"
    description = read_yaml(path)
    if description.get("kind") != "reconstructor":
        raise CheckpointError(f"{path}: does not describe a reconstructor (kind: {description.get('kind')})")
    layout = model.layout
    for part, theirs, ours in (
            ("transformer width", description.get("width"), model.config.width),
            ("grid", description.get("grid"), [layout.rows, layout.columns]),
            ("code width", description.get("code_dim"), image_tokenizer.code_dim),
            ("image tokenizer", description.get("image_tokenizer"), fingerprint(image_tokenizer.state_dict())),
            ("transformer", description.get("transformer"), fingerprint(transformer or model.state_dict()))):
        if theirs != ours:
            raise CheckpointError(f"{directory}: was trained for the {part} {theirs}, but {ours} is in use; take the "
                                  "reconstructor that was exported with this model, or remove that folder")
    config = configs.from_dict(ReconstructorConfig, description["reconstructor"], source=f"{path}: reconstructor")
    reconstructor = EndToEndReconstructor(replace(config, start="fresh"), model.config.width, image_tokenizer)
    reconstructor.config = config
    weights = Path(directory) / "model.safetensors"
    load_weights(reconstructor, read_weights(weights), str(weights))
    return reconstructor


def _describe(directory: Path) -> dict[str, Any]:
    path = directory / "model.yaml"
    if not path.is_file():
        raise CheckpointError(f"{directory}: not a released model folder (it has no model.yaml); "
                              "`tools/train.py` writes one at the end of a run")
    description = read_yaml(path)
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
