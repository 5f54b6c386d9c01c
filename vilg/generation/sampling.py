"""From logits to tokens: temperature, top-k and top-p together, with random numbers that belong to a sample,
not a batch. A model that draws token by token takes :class:`SamplingConfig`, one that draws by mask-predict
:class:`MaskPredictConfig`."""
import operator
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, TypeVar

import numpy as np

from vilg import config as configs
from vilg.config import configclass, setting
from vilg.errors import ConfigError, ShapeError, VilgError

D = TypeVar("D", bound="DrawingConfig")


@configclass
class DrawingConfig:
    """What every way of drawing takes. Pipeline, tools, page and hub take their options from the fields of its
    subclasses."""

    temperature: float = setting(1.0, "below 1 safer, above 1 wilder; 0 takes the likeliest code",
                                 "温度：小则稳妥，大则多变", (0, 1.5, 0.05))
    """0, or from 1e-6 to 1e6."""
    guidance: float = setting(1.0, "how hard to follow the text; 1 is plain sampling",
                              "引导：越大越照着文字画，1 表示不用", (0, 5, 0.1))
    """text→image: logits = free + guidance · (told - free)."""
    guidance_min_p: float = setting(
        0.0, "guidance chooses among codes at least this likely beside the likeliest; 0 among all",
        "引导只在足够可能的里面选，0 表示不限", (0, 1, 0.05))

    def __post_init__(self) -> None:
        # Beyond these bounds nothing changes any more, until numbers overflow and all pictures become the same one.
        if self.temperature and not 1e-6 <= self.temperature <= 1e6:
            raise ValueError(f"temperature must be 0 or from 1e-6 to 1e6, not {self.temperature}")
        if not 0 <= self.guidance <= 1e6:
            raise ValueError(f"guidance must be from 0 to 1e6, not {self.guidance}")
        if not 0 <= self.guidance_min_p <= 1:
            raise ValueError(f"guidance_min_p must be from 0 to 1, not {self.guidance_min_p}")

    def over(self: D, given: dict[str, Any], name: str = "the model") -> D:
        """These settings with those of ``given`` that are not None over them, for the model ``name``. Raises
        ConfigError for a setting that there is not, that is another kind of model's, or out of its range."""
        said = {key: value for key, value in given.items() if value is not None}
        own = {field.name for field in fields(self)}
        for other in (kind for kind in WAYS if not isinstance(self, kind)):
            foreign = sorted(said.keys() & {field.name for field in fields(other)} - own)
            if foreign:
                raise ConfigError(f"sampling: {', '.join(foreign)} belongs to models that draw {WAYS[other]}, and "
                                  f"{name} draws {WAYS[type(self)]}, by "
                                  f"{', '.join(field.name for field in fields(self))}")
        return configs.from_dict(type(self), configs.to_dict(self) | said, "sampling")


@configclass
class SamplingConfig(DrawingConfig):
    """How tokens are drawn one by one. The filters apply one after another: temperature, then top_k,
    then top_p of what is left."""

    top_k: int = setting(0, "sample among the k likeliest codes; 0 among all",
                         "只在概率最大的 k 个里选，0 表示不限", (0, 256, 1))
    top_p: float = setting(1.0, "sample among the likeliest codes that hold this much probability; 1 among all",
                           "只在概率最大的一部分里选，1 表示不限", (0.05, 1, 0.05))

    def __post_init__(self) -> None:
        DrawingConfig.__post_init__(self)
        if self.top_k < 0:
            raise ValueError(f"top_k is a number of tokens, 0 for all, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@configclass
class MaskPredictConfig(DrawingConfig):
    """How a masked model draws: all tokens at once, of which the surest are kept, step after step.

    ``schedule`` linear is the paper's (Huang et al., ACM MM 2021; Mask-Predict, arXiv:1904.09324): every step settles
    equally many tokens, and one that was drawn with little confidence before may be guessed again. cosine is MaskGIT's
    (arXiv:2202.04200): few tokens at first, and what is kept once stays. ``choice_temperature`` times Gumbel noise,
    fading to 0 at the last step, is added to the log-probabilities by which tokens are kept.
    """

    steps: int = setting(8, "steps in which all codes are drawn; more are slower and mostly better",
                         "分几步画完：多则慢而好", (1, 64, 1))
    schedule: Literal["cosine", "linear"] = setting("cosine", "codes settled in a step: few at first, or equally many",
                                                    "每步定下多少：先少后多，或一样多")
    choice_temperature: float = setting(4.5, "chance in which codes are kept, fading step by step; 0 keeps the surest",
                                        "保留哪些的随机程度，逐步减小；0 只留最有把握的", (0, 10, 0.1))

    def __post_init__(self) -> None:
        DrawingConfig.__post_init__(self)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.choice_temperature <= 1e6:
            raise ValueError(f"choice_temperature must be from 0 to 1e6, not {self.choice_temperature}")


WAYS: dict[type[DrawingConfig], str] = {SamplingConfig: "token by token", MaskPredictConfig: "by mask-predict"}
"""The ways of drawing, in words."""


def as_int(value: Any, name: str) -> int:
    """A whole number of any kind, such as numpy's, as Python's own. Raises VilgError naming it."""
    try:
        return operator.index(value)
    except TypeError:
        raise VilgError(f"{name} is a whole number, not {value!r}") from None


def seed_each(seeds: Any, texts: int) -> list[int]:
    """The seed of every text from one for all or one each, whole numbers of any kind. Raises VilgError for another
    thing, and ShapeError for another number of seeds than texts."""
    if isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes)) and getattr(seeds, "ndim", 1):
        given = [as_int(seed, "a seed") for seed in seeds]
    else:  # an array without dimensions counts as one number
        given = [as_int(seeds, "a seed")] * texts
    if len(given) != texts:
        raise ShapeError(f"{len(given)} seeds for {texts} texts; give one for all or one each")
    return given


def uniforms(seed: int, sample: int, steps: int) -> np.ndarray:
    """Random numbers in [0, 1) for every step of one sample: float64 [steps].

    Counter-based, keyed by (seed, sample), so they depend on nothing else that is drawn in the same batch.
    """
    key = np.array([seed % 2 ** 64, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


def guide(told: np.ndarray, free: np.ndarray, config: DrawingConfig) -> np.ndarray:
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


def sample_token(logits: np.ndarray, config: SamplingConfig, uniform: np.ndarray) -> np.ndarray:
    """One token a row: logits [R, V] and uniform numbers [R] → int64 [R], by inverting the cumulative distribution."""
    if config.temperature == 0:
        return logits.argmax(axis=-1).astype(np.int64)
    tokens, weights = candidates(logits, config)
    cumulative = np.cumsum(weights, axis=-1, dtype=np.float64)
    total = cumulative[:, -1]
    point = np.minimum(uniform * total, np.nextafter(total, 0))  # below the total, so that some token exceeds it
    index = (cumulative <= point[:, None]).sum(axis=-1)
    return tokens[np.arange(len(tokens)), index]
