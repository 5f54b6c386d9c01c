"""Training on whole captions: self-critical sequence training (arXiv:1612.00563) with CIDEr-D as the reward.

A caption is its tokens up to and with its end token, so that one that stops too early or never is told from one that
ends. What a token weighs comes from the training corpus: the frequencies of a batch would make every word of a picture
that stands in it twice common.
"""
from collections.abc import Iterable, Sequence

import numpy as np
import paddle
from paddle import Tensor

from vilg.errors import DataError
from vilg.metrics.captions.cider import Frequencies, cider
from vilg.metrics.captions.ngrams import count_ngrams


class CaptionReward:
    """CIDEr-D of token sequences under the document frequencies of ``corpus``: an image's reference captions each, as
    token ids with their end token. Raises DataError for a corpus of fewer than two images."""

    def __init__(self, corpus: Iterable[Sequence[Sequence[int]]]):
        counted = [[count_ngrams(caption) for caption in captions] for captions in corpus if captions]
        if len(counted) < 2:
            raise DataError(f"the training corpus has {len(counted)} images with captions, but document frequencies "
                            "need at least 2; add captioned images to data.sources")
        self.frequencies = Frequencies.of(counted)

    def __call__(self, captions: Sequence[Sequence[int]], references: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        """Float64 [B] of B captions, each against its own references."""
        return cider([count_ngrams(caption) for caption in captions],
                     [[count_ngrams(reference) for reference in given] for given in references],
                     self.frequencies).clipped


def self_critical_loss(nll: Tensor, reward: np.ndarray, baseline: np.ndarray) -> Tensor:
    """mean over captions of (reward - baseline) · Σ NLL of the sampled tokens; ``nll`` [B, T] is 0 behind a caption's
    end, the two rewards are plain numbers [B]. Its gradient is the policy gradient of the reward."""
    with paddle.amp.auto_cast(enable=False):
        advantage = paddle.to_tensor(np.asarray(reward - baseline, "float32"))  # [B]
        return (advantage * nll.astype("float32").sum(axis=1)).mean()


def up_to_end(ids: np.ndarray, end: int) -> list[list[int]]:
    """Rows [B, T] of new tokens → each up to and with its first ``end``; whole where it has none."""
    found = []
    for row in ids.tolist():
        found.append(row[:row.index(end) + 1] if end in row else row)
    return found
