"""The filters that packing uses: the paper's for alt-texts, and captions that are like their image."""
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from vilg.data.filtering.texts import MEANING, Reason, TextRules, TextRulesConfig
from vilg.data.sample import Sample
from vilg.errors import DataError

PairedSimilarity = Callable[[Sequence[str], Sequence[np.ndarray]], np.ndarray]


class TextFilter(Protocol):
    """What decides about captions one by one."""

    def keeps(self, text: str) -> bool:
        """Whether the caption may stay."""


class PaperFilter:
    """Fewer than 15 words, at least one noun, no special characters. ``dropped`` counts by reason.

    Words and their kinds are jieba's; raises DataError when it is not installed.
    """

    def __init__(self, longest: int = 14):
        self._rules = TextRules(TextRulesConfig(words=longest))
        self.dropped: Counter[str] = Counter()

    def keeps(self, text: str) -> bool:
        """Whether the caption passes; the first reason against it is counted."""
        reason = self.reason(text)
        if reason:
            self.dropped[reason] += 1
        return reason is None

    def reason(self, text: str) -> str | None:
        """Why a caption is dropped, or None: "special characters", "too long" or "no noun"."""
        reason = self._rules.reason(text)
        return None if reason is None else MEANING[reason.rule]


class SimilarityFilter:
    """The paper's last rule: captions more similar to their image than ``threshold`` (0 to 1).

    ``similarity`` scores pairs of texts and images, [N] in 0–1, as a dual encoder's ``paired_similarity`` does; a text
    that it cannot read has NaN and fits no image. ``dropped`` counts by reason.
    """

    def __init__(self, similarity: PairedSimilarity, threshold: float = 0.5):
        if not 0 <= threshold <= 1:
            raise DataError(f"a similarity lies from 0 to 1, so a threshold of {threshold} tells no captions apart")
        self.similarity, self.threshold = similarity, threshold
        self.dropped: Counter[str] = Counter()

    def kept(self, captions: Sequence[str], image: np.ndarray) -> list[str]:
        """The captions that fit the image uint8 [H, W, 3], in their order."""
        reasons = self.reasons(captions, [image] * len(captions))
        self.dropped.update(MEANING[reason.rule] for reason in reasons if reason)
        return [text for text, reason in zip(captions, reasons) if reason is None]

    def reasons(self, captions: Sequence[str], images: Sequence[np.ndarray]) -> list[Reason | None]:
        """Why each caption does not fit the image uint8 [H, W, 3] in its place, None where it does."""
        scores = np.asarray(self.similarity(captions, images)).tolist() if captions else []
        return [None if score > self.threshold else
                Reason("similarity", f"{score:.3f}") if score == score else Reason("unread", "no word that is known")
                for score in scores]


def keep_similar(samples: Sequence[Sample], rule: SimilarityFilter) -> list[Sample]:
    """Samples with their captions cut to those that ``rule`` keeps; one that keeps none is left out."""
    cut = [replace(sample, captions=rule.kept(sample.captions, sample.image)) for sample in samples]
    return [sample for sample in cut if sample.captions]
