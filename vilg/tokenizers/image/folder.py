"""Image tokenizers by kind: built from a config, written to a folder and read from one."""
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vilg import config as config_system
from vilg.errors import CheckpointError
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.dvae import DVAE, DVAEConfig
from vilg.tokenizers.image.vqvae import VQGAN, VQVAE, VQConfig
from vilg.weights.files import as_array, fingerprint, load_weights, read_weights, save_weights
from vilg.yaml_files import read_yaml


def build_image_tokenizer(config: Any) -> ImageTokenizer:
    """A fresh tokenizer of the class that ``config.kind`` names (vqvae, vqgan or dvae)."""
    return {"vqvae": VQVAE, "vqgan": VQGAN, "dvae": DVAE}[config.kind](config)


def save_image_tokenizer(tokenizer: ImageTokenizer, directory: str | Path, average: dict[str, np.ndarray] | None = None,
                         dtype: str | None = "float16") -> str:
    """Write ``model.yaml`` and ``model.safetensors`` to ``directory``; returns the fingerprint of the weights.

    ``average`` replaces weights by name; ``dtype`` is what floating-point values are stored as.
    """
    directory = Path(directory)
    state = {name: as_array(value) for name, value in tokenizer.state_dict().items()}
    state.update({name: value for name, value in (average or {}).items() if name in state})
    mark = fingerprint(state)
    save_weights(directory / "model.safetensors", state, metadata={"fingerprint": mark}, dtype=dtype)
    content = {"kind": "image_tokenizer", "fingerprint": mark, "tokenizer": config_system.to_dict(tokenizer.config)}
    (directory / "model.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return mark


def load_image_tokenizer(directory: str | Path) -> ImageTokenizer:
    """Read a folder written by :func:`save_image_tokenizer`, ready for use (eval mode). Raises CheckpointError."""
    path = Path(directory) / "model.yaml"
    content = read_yaml(path)
    values = content.get("tokenizer")
    if content.get("kind") != "image_tokenizer" or not isinstance(values, dict):
        raise CheckpointError(f"{path}: does not describe an image tokenizer (kind: {content.get('kind')})")
    configs = {"vqvae": VQConfig, "vqgan": VQConfig, "dvae": DVAEConfig}
    if values.get("kind") not in configs:
        raise CheckpointError(f"{path}: tokenizer.kind is {values.get('kind')!r}; known kinds: {', '.join(configs)}")
    tokenizer = build_image_tokenizer(config_system.from_dict(configs[values["kind"]], values, source=str(path)))
    weights = Path(directory) / "model.safetensors"
    state = read_weights(weights)
    if content.get("fingerprint") and fingerprint(state) != content["fingerprint"]:
        raise CheckpointError(f"{weights}: its fingerprint is {fingerprint(state)} but model.yaml says "
                              f"{content['fingerprint']}; the two files belong to different tokenizers")
    load_weights(tokenizer, state, source=str(weights))
    tokenizer.eval()
    return tokenizer
