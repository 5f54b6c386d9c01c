"""The paper's filters of alt-texts (ERNIE-ViLG, section 3: data): short, with a noun, clean, and like the image."""
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from vilg.data.sample import Sample
from vilg.errors import DataError, VilgError

# Punctuation of ordinary sentences; any other symbol makes a text "special".
PLAIN_MARKS = frozenset("，。、！？；：“”‘’（）《》—…·,.!?;:'\"()-% ")
Similarity = Callable[[Sequence[str], Sequence[np.ndarray]], np.ndarray]


class TextFilter(Protocol):
    """What decides about captions one by one."""

    def keeps(self, text: str) -> bool:
        """Whether the caption may stay."""


class PaperFilter:
    """Fewer than 15 words, at least one noun, no special characters. ``dropped`` counts by reason.

    Words and their kinds are jieba's; raises DataError when it is not installed.
    """

    def __init__(self, longest: int = 14):
        try:
            import jieba
            from jieba import posseg
        except ImportError:
            raise DataError("filtering captions needs jieba; install it with `pip install jieba`") from None
        jieba.setLogLevel("WARNING")
        self._cut = posseg.cut
        self.longest = longest
        self.dropped: Counter[str] = Counter()

    def keeps(self, text: str) -> bool:
        """Whether the caption passes; the first reason against it is counted."""
        reason = self.reason(text)
        if reason:
            self.dropped[reason] += 1
        return reason is None

    def reason(self, text: str) -> str | None:
        """Why a caption is dropped, or None: "special characters", "too long" or "no noun"."""
        if has_special_characters(text):
            return "special characters"
        words = [(pair.word, pair.flag) for pair in self._cut(text) if any(map(str.isalnum, pair.word))]
        if len(words) > self.longest:
            return "too long"
        return None if any(kind.startswith("n") for _, kind in words) else "no noun"


def has_special_characters(text: str) -> bool:
    """Whether a text holds anything but letters, digits and the marks of ordinary sentences: emoji,
    URLs' signs, control codes."""
    return any(unicodedata.category(letter)[0] not in "LN" and letter not in PLAIN_MARKS for letter in text)


class SimilarityFilter:
    """The paper's last rule: captions more similar to their image than ``threshold`` (0 to 1).

    ``similarity`` scores texts against images, every pair: [texts, images] in 0–1, as a dual encoder's does. A caption
    that it cannot read (a VilgError) fits no image. ``dropped`` counts by reason.
    """

    def __init__(self, similarity: Similarity, threshold: float = 0.5):
        if not 0 <= threshold <= 1:
            raise DataError(f"a similarity lies from 0 to 1, so a threshold of {threshold} tells no captions apart")
        self.similarity, self.threshold = similarity, threshold
        self.dropped: Counter[str] = Counter()

    def kept(self, captions: Sequence[str], image: np.ndarray) -> list[str]:
        """The captions that fit the image uint8 [H, W, 3], in their order."""
        return [text for text, score in zip(captions, self._scores(captions, image)) if self._fits(score)]

    def _scores(self, captions: Sequence[str], image: np.ndarray) -> list[float | None]:
        try:
            return np.asarray(self.similarity(captions, [image]))[:, 0].tolist() if captions else []
        except VilgError:
            if len(captions) == 1:
                return [None]
            return [score for text in captions for score in self._scores([text], image)]

    def _fits(self, score: float | None) -> bool:
        if score is not None and score > self.threshold:
            return True
        self.dropped["cannot be read" if score is None else "not like the image"] += 1
        return False


def keep_similar(samples: Sequence[Sample], rule: SimilarityFilter) -> list[Sample]:
    """Samples with their captions cut to those that ``rule`` keeps; one that keeps none is left out."""
    cut = [replace(sample, captions=rule.kept(sample.captions, sample.image)) for sample in samples]
    return [sample for sample in cut if sample.captions]
