"""From logits to tokens: temperature, top-k and top-p together, with random numbers that belong to a sample,
not a batch."""
import numpy as np

from vilg.config import configclass


@configclass
class SamplingConfig:
    """How tokens are drawn. The filters apply one after another: temperature, then top_k,
    then top_p of what is left."""

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # how many of the likeliest tokens may be drawn, 0 for all
    top_p: float = 1.0  # the smallest set of likeliest tokens that holds this much probability, 1 for all
    guidance: float = 1.0  # text→image: logits = free + guidance · (told - free); 1 is the plain model

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k is a number of tokens, 0 for all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.guidance < 0:
            raise ValueError(f"guidance must be 0 or more, not {self.guidance}")


def uniforms(seed: int, sample: int, steps: int) -> np.ndarray:
    """Random numbers in [0, 1) for every step of one sample: float64 [steps].

    Counter-based, keyed by (seed, sample), so they depend on nothing else that is drawn in the same batch.
    """
    key = np.array([seed % 2 ** 64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


def filtered_probabilities(logits: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """Logits [R, V] → probabilities [R, V], zero for tokens that the filters exclude; rows need not sum to one.

    Tokens that tie with the last one kept are kept as well. ``config.temperature`` must be above 0.
    """
    scaled = logits.astype(np.float32) / np.float32(config.temperature)
    vocabulary = scaled.shape[-1]
    if 0 < config.top_k < vocabulary:
        least = np.partition(scaled, vocabulary - config.top_k, axis=-1)[:, vocabulary - config.top_k, None]
        scaled[scaled < least] = -np.inf
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    if config.top_p < 1:
        ordered = np.sort(weights, axis=-1)[:, ::-1].astype(np.float64)
        before = np.cumsum(ordered, axis=-1) - ordered
        kept = (before < config.top_p * ordered.sum(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
        least = np.take_along_axis(ordered, kept - 1, axis=-1)
        weights[weights < least] = 0
    return weights


def draw(logits: np.ndarray, config: SamplingConfig, uniform: np.ndarray) -> np.ndarray:
    """One token a row: logits [R, V] and uniform numbers [R] → int64 [R], by inverting the cumulative distribution."""
    if config.temperature == 0:
        return logits.argmax(axis=-1).astype(np.int64)
    cumulative = np.cumsum(filtered_probabilities(logits, config), axis=-1, dtype=np.float64)
    total = cumulative[:, -1]
    # Below the total, so that a token that may be drawn is found.
    point = np.minimum(uniform * total, np.nextafter(total, 0))
    return (cumulative <= point[:, None]).sum(axis=-1).astype(np.int64)
