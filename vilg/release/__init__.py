"""Released folders by kind: :func:`write`, :func:`read`, :func:`find_model`; a kind is one class in ``kinds/``."""
from vilg.release.folder import describe, open_folder, read, write
from vilg.release.kinds import (
    bidirectional, dual_encoder, image_tokenizer, image_tower, reconstructor, scene_features, two_level,
)
from vilg.release.zoo import find_model

KNOWN = (bidirectional, dual_encoder, image_tokenizer, image_tower, reconstructor, scene_features, two_level)
"""The modules that make kinds known."""

__all__ = ["KNOWN", "describe", "find_model", "open_folder", "read", "write"]
