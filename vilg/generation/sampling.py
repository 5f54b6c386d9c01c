"""From logits to tokens: temperature, top-k and top-p together, with random numbers that belong to a sample,
not a batch."""
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from vilg.config import configclass
from vilg.errors import ShapeError, VilgError


@configclass
class SamplingConfig:
    """How tokens are drawn. The filters apply one after another: temperature, then top_k,
    then top_p of what is left."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # how many of the likeliest tokens may be drawn, 0 for all
    top_p: float = 1.0  # the smallest set of likeliest tokens that holds this much probability, 1 for all
    guidance: float = 1.0  # text→image: logits = free + guidance · (told - free); 1 is the plain model
    guidance_min_p: float = 0.0  # guidance chooses among tokens whose told probability is this share of the likeliest's

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k is a number of tokens, 0 for all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.guidance < 0:
            raise ValueError(f"guidance must be 0 or more, not {self.guidance}")
        if not 0 <= self.guidance_min_p <= 1:
            raise ValueError(f"guidance_min_p must be from 0 to 1, not {self.guidance_min_p}")


def whole(value: Any, name: str) -> int:
    """A whole number of any kind, such as numpy's, as Python's own. Raises VilgError naming it."""
    try:
        return operator.index(value)
    except TypeError:
        raise VilgError(f"{name} is a whole number, not {value!r}") from None


def seed_each(seeds: Any, texts: int) -> list[int]:
    """The seed of every text from one for all or one each, whole numbers of any kind. Raises VilgError for another
    thing, and ShapeError for another number of seeds than texts."""
    if isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes)) and getattr(seeds, "ndim", 1):
        given = [whole(seed, "a seed") for seed in seeds]
    else:  # an array without dimensions counts as one number
        given = [whole(seeds, "a seed")] * texts
    if len(given) != texts:
        raise ShapeError(f"{len(given)} seeds for {texts} texts; give one for all or one each")
    return given


def uniforms(seed: int, sample: int, steps: int) -> np.ndarray:
    """Random numbers in [0, 1) for every step of one sample: float64 [steps].

    Counter-based, keyed by (seed, sample), so they depend on nothing else that is drawn in the same batch.
    """
    key = np.array([seed % 2 ** 64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


def guide(told: np.ndarray, free: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Logits with the text [R, V] and without it → guided logits [R, V] (-inf excludes a token).

    Strong guidance lifts tokens that are merely less unlikely with the text than without, such as one more object where
    the background belongs; ``guidance_min_p`` keeps those out (the plausibility constraint of contrastive decoding,
    Li et al. 2022) and lets guidance decide where the model itself is in doubt.
    """
    guided = free + np.float32(config.guidance) * (told - free)
    if config.guidance_min_p:
        least = told.max(axis=-1, keepdims=True) + np.float32(np.log(config.guidance_min_p))
        guided = np.where(told >= least, guided, np.float32(-np.inf))
    return guided


def candidates(logits: np.ndarray, config: SamplingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Logits [R, V] → tokens that may be drawn, ascending, and their weights, [R, C] each; weight 0 excludes a token.

    Weights of a row need not sum to one. ``config.temperature`` must be above 0.
    """
    # Between two steps the caches are full of weights, so that each call costs more than what it computes: few of them.
    vocabulary = logits.shape[-1]
    if 0 < config.top_k < vocabulary:
        tokens, logits = _likeliest(logits, config.top_k)
    else:
        tokens = np.broadcast_to(np.arange(vocabulary), logits.shape)
    scaled = logits.astype(np.float32, copy=False) / np.float32(config.temperature)
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    if config.top_p < 1:
        ordered = np.sort(weights, axis=-1)[:, ::-1].astype(np.float64)
        before = np.cumsum(ordered, axis=-1) - ordered
        kept = (before < config.top_p * ordered.sum(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
        weights[weights < np.take_along_axis(ordered, kept - 1, axis=-1)] = 0
    return tokens, weights


def _likeliest(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` likeliest tokens of every row, ascending, and their logits: [R, count] each."""
    rows, vocabulary = logits.shape
    # Values sort twice as fast as places, and tokens at or above the last kept value come out in order.
    least = np.partition(logits, vocabulary - count, axis=-1)[:, vocabulary - count, None]
    places = np.flatnonzero(logits >= least)
    if len(places) == rows * count:
        tokens = places.reshape(rows, count)
        return tokens - vocabulary * np.arange(rows)[:, None], logits.reshape(-1)[tokens]
    best = np.argpartition(logits, vocabulary - count, axis=-1)[:, vocabulary - count:]  # several are the last alike
    tokens = np.sort(best, axis=-1)
    return tokens, np.take_along_axis(logits, tokens, axis=-1)


def draw(logits: np.ndarray, config: SamplingConfig, uniform: np.ndarray) -> np.ndarray:
    """One token a row: logits [R, V] and uniform numbers [R] → int64 [R], by inverting the cumulative distribution."""
    if config.temperature == 0:
        return logits.argmax(axis=-1).astype(np.int64)
    tokens, weights = candidates(logits, config)
    cumulative = np.cumsum(weights, axis=-1, dtype=np.float64)
    total = cumulative[:, -1]
    point = np.minimum(uniform * total, np.nextafter(total, 0))  # below the total, so that some token exceeds it
    index = (cumulative <= point[:, None]).sum(axis=-1)
    return tokens[np.arange(len(tokens)), index]
