"""Runs of one to four words, counted: what BLEU and CIDEr are made of."""
from collections import Counter
from collections.abc import Hashable, Sequence

LONGEST = 4


def count_ngrams(words: Sequence[Hashable]) -> Counter[tuple[Hashable, ...]]:
    """How often each run of 1 … 4 words stands in ``words``."""
    return Counter(gram for length in range(1, LONGEST + 1)
                   for gram in zip(*(words[start:] for start in range(length))))
