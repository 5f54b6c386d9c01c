"""BLEU-1 … BLEU-4 (Papineni et al. 2002) to the digits of coco-caption."""
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vilg.metrics.captions.ngrams import LONGEST

SIGNATURE = "bleu n 4, closest length, tiny 1e-15, small 1e-9"
# Added to counts so that nothing divides by zero; a set without a single match stays at 0 to fifteen places.
TINY, SMALL = 1e-15, 1e-9

Counts = Counter[tuple[str, ...]]


def bleu(hypotheses: Sequence[Counts], references: Sequence[Sequence[Counts]]) -> tuple[np.ndarray, np.ndarray]:
    """BLEU-1 … 4 of the whole set [4] and of each hypothesis [N, 4], from counted n-grams.

    The set's is not the mean of the others: matches and lengths are summed first. The reference length is the closest
    one, of two equally close the shorter.
    """
    matches = np.zeros([len(hypotheses), LONGEST])
    lengths = np.zeros([len(hypotheses), 2])  # of the hypothesis, of its closest reference
    for number, (counts, wanted) in enumerate(zip(hypotheses, references, strict=True)):
        for gram, count in counts.items():
            most = max(reference.get(gram, 0) for reference in wanted)
            matches[number, len(gram) - 1] += min(count, most)
        own = _words(counts)
        lengths[number] = own, min((_words(reference) for reference in wanted),
                                   key=lambda length: (abs(length - own), length))
    possible = np.clip(lengths[:, :1] - np.arange(LONGEST), 0, None)
    whole = _score(matches.sum(0)[None], possible.sum(0)[None], lengths.sum(0)[None])[0]
    return whole, _score(matches, possible, lengths)


def _words(counts: Counts) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def _score(matches: np.ndarray, possible: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N, 4], [N, 4], [N, 2] → [N, 4]: geometric means of the precisions, times the penalty for being short."""
    precisions = (matches + TINY) / (possible + SMALL)
    means = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (lengths[:, 0] + TINY) / (lengths[:, 1] + SMALL)
    return means * np.exp(np.minimum(0.0, 1 - 1 / ratio))[:, None]
