"""What a step of masked training asks for: which tokens of an image are hidden, and which word of a caption is one."""
import math
from typing import Literal

import numpy as np

from vilg.data.noise import MASKS, TARGETS

MaskRatio = Literal["uniform", "cosine"]


def token_masks(seeds: list[int], tokens: int, ratio: MaskRatio, least: float) -> np.ndarray:
    """Booleans [B, tokens], one seed a sample, True where a token is masked; at least one is.

    ``ratio`` uniform: any number from ⌈least · tokens⌉ to all is as likely (Huang et al., ACM MM 2021: 6 to 64 of 64);
    cosine: the share cos(π/2 · u) for u uniform in [0, 1), of at least ``least`` (MaskGIT, arXiv:2202.04200).
    """
    masks = np.zeros((len(seeds), tokens), dtype=bool)
    fewest = max(1, math.ceil(least * tokens - 1e-9))
    for row, seed in zip(masks, seeds):
        rng = np.random.default_rng([seed, MASKS])
        if ratio == "uniform":
            count = rng.integers(fewest, tokens + 1)
        else:
            count = max(fewest, math.ceil(tokens * math.cos(math.pi / 2 * rng.random())))
        row[rng.permutation(tokens)[:count]] = True
    return masks


def one_target(seeds: list[int], length: np.ndarray, prefix: np.ndarray) -> np.ndarray:
    """One position of every text to be predicted: int64 [B], from ``prefix`` (at least 1) to ``length`` - 1."""
    low = np.maximum(prefix, 1)
    return np.array([np.random.default_rng([seed, TARGETS]).integers(first, max(first, last - 1) + 1)
                     for seed, first, last in zip(seeds, low, length)], dtype=np.int64)
