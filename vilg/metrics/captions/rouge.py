"""ROUGE-L (Lin 2004) to the digits of coco-caption."""
from collections.abc import Sequence

import numpy as np

BETA = 1.2
SIGNATURE = f"rouge-l β {BETA}, best precision and best recall apart"


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    A row of the usual table is one integer whose zero bits are the places where the length grows (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for position, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << position
    full = row = (1 << len(first)) - 1
    for word in second:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & full
    return len(first) - row.bit_count()


def rouge_l(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """ROUGE-L of every hypothesis [N], given as words; a set's score is the mean.

    Precision and recall are each the best over the references, and need not come from the same one.
    """
    scores = np.zeros(len(hypotheses))
    for number, (words, wanted) in enumerate(zip(hypotheses, references, strict=True)):
        common = [longest_common(words, reference) for reference in wanted]
        if any(common):
            precision = max(common) / len(words)
            recall = max(count / len(reference) for count, reference in zip(common, wanted))
            scores[number] = (1 + BETA ** 2) * precision * recall / (recall + BETA ** 2 * precision)
    return scores
