"""Image tokenizers by kind: the one table of names, configs and classes."""
from typing import Any

from vilg import config as configs
from vilg.errors import ConfigError
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.dvae import DVAE, DVAEConfig
from vilg.tokenizers.image.vqvae import VQGAN, VQVAE, VQConfig

KINDS = {"vqvae": (VQConfig, VQVAE), "vqgan": (VQConfig, VQGAN), "dvae": (DVAEConfig, DVAE)}


def build_image_tokenizer(config: VQConfig | DVAEConfig) -> ImageTokenizer:
    """A fresh tokenizer of the class that ``config.kind`` names (vqvae, vqgan or dvae)."""
    return KINDS[config.kind][1](config)


def image_tokenizer_config(values: dict[str, Any], source: str) -> VQConfig | DVAEConfig:
    """The config of the kind that ``values`` name. Raises ConfigError that begins with ``source``."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{source}: kind is {kind!r}; known kinds: {', '.join(KINDS)}")
    return configs.from_dict(KINDS[kind][0], values, source=source)
