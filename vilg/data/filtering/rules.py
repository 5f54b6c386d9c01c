"""The paper's filters of alt-texts (ERNIE-ViLG, section 3: data): short, with a noun, clean, and like the image."""
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from vilg.data.sample import Sample
from vilg.errors import DataError

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


def keep_similar(samples: Sequence[Sample], similarity: Similarity, threshold: float = 0.5) -> list[Sample]:
    """Samples with their captions cut to those more similar to the image than ``threshold`` (0 to 1).

    ``similarity`` scores N texts against N images (uint8 [H, W, 3]) pair by pair and returns [N], as a dual encoder
    does. A sample that keeps no caption is left out.
    """
    pairs = [(number, text) for number, sample in enumerate(samples) for text in sample.captions]
    if not pairs:
        return []
    scores = similarity([text for _, text in pairs], [samples[number].image for number, _ in pairs])
    kept: dict[int, list[str]] = {}
    for (number, text), score in zip(pairs, np.asarray(scores).tolist(), strict=True):
        if score > threshold:
            kept.setdefault(number, []).append(text)
    return [replace(samples[number], captions=texts) for number, texts in kept.items()]
