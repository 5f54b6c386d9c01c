"""CIDEr and CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726), CIDEr-D to the digits of coco-caption.

What coco-caption and therefore papers print as "CIDEr" is :attr:`Cider.clipped`: CIDEr-D's clipping and length penalty
with σ = 6. Its lengths count pairs of neighbouring words, not words.
"""
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError
from vilg.metrics.captions.ngrams import LONGEST

SIGMA = 6.0
SCALE = 10.0
SIGNATURE = f"cider-d n {LONGEST} σ {SIGMA:g}, lengths in pairs of words, frequencies of the references, ×{SCALE:g}"

Counts = Counter[tuple[Hashable, ...]]


@dataclass(frozen=True)
class Cider:
    """CIDEr-D (``clipped``) and CIDEr (``plain``) of every hypothesis: [N] each; a set's score is the mean."""

    clipped: np.ndarray
    plain: np.ndarray


@dataclass(frozen=True)
class Frequencies:
    """How many of ``images`` images have an n-gram in one of their references: what CIDEr weighs n-grams by."""

    images: int
    counts: Counter[tuple[Hashable, ...]]

    def __post_init__(self) -> None:
        if self.images < 2:
            raise DataError("CIDEr weighs words by how many images have them, and is 0 for any single image; score at "
                            "least two images at once")

    @classmethod
    def of(cls, references: Sequence[Sequence[Counts]]) -> "Frequencies":
        """Those of the references of every image."""
        return cls(len(references), Counter(gram for wanted in references for gram in set().union(*wanted)))


@dataclass(frozen=True)
class _Vector:
    """Weighted n-grams by length, their norms [4], and the number of pairs of words."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    pairs: int


def cider(hypotheses: Sequence[Counts], references: Sequence[Sequence[Counts]],
          frequencies: Frequencies | None = None) -> Cider:
    """CIDEr-D and CIDEr from counted n-grams, weighted by how few images' references have them: those of
    ``references``, where ``frequencies`` does not bring those of another corpus.

    Raises DataError for fewer than two images: each n-gram is then in all of them and weighs nothing.
    """
    frequencies = frequencies or Frequencies.of(references)
    most = math.log(frequencies.images)
    weigh = {gram: most - math.log(count) for gram, count in frequencies.counts.items()}
    clipped, plain = np.zeros(len(hypotheses)), np.zeros(len(hypotheses))
    for number, (counts, wanted) in enumerate(zip(hypotheses, references, strict=True)):
        own = _vector(counts, weigh, most)
        pairs = [_compare(own, _vector(reference, weigh, most)) for reference in wanted]
        clipped[number], plain[number] = SCALE * np.mean(pairs, axis=0)
    return Cider(clipped, plain)


def _vector(counts: Counts, weigh: dict[tuple[str, ...], float], unseen: float) -> _Vector:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * weigh.get(gram, unseen)
    norms = [math.sqrt(sum(value * value for value in part.values())) for part in weights]
    return _Vector(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))


def _compare(own: _Vector, other: _Vector) -> tuple[float, float]:
    """(CIDEr-D, CIDEr) of two vectors, between 0 and 1: mean cosines, of the first with clipped weights."""
    clipped = plain = 0.0
    for mine, theirs, norm in zip(own.weights, other.weights, (a * b for a, b in zip(own.norms, other.norms))):
        if norm:
            shared = [(value, theirs[gram]) for gram, value in mine.items() if gram in theirs]
            clipped += sum(min(value, wanted) * wanted for value, wanted in shared) / norm
            plain += sum(value * wanted for value, wanted in shared) / norm
    short = math.exp(-(own.pairs - other.pairs) ** 2 / (2 * SIGMA ** 2))
    return clipped * short / LONGEST, plain / LONGEST
