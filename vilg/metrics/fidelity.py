"""Beside the Fréchet distance: kernel distance, Inception Score, precision and recall, on features taken before.

Values are equal to torch-fidelity's on the same features where its seed is used.
"""
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError

SEED = 2020
"""torch-fidelity's."""


@dataclass(frozen=True)
class MeanAndDeviation:
    """A score over subsets or splits."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of generated images among the real ones, and of real images among the generated ones."""

    precision: float
    recall: float


def kernel_distance(generated: np.ndarray, real: np.ndarray, subsets: int = 100, subset_size: int = 1000,
                    seed: int = SEED) -> MeanAndDeviation:
    """KID (Binkowski et al. 2018, arXiv 1801.01401): unbiased squared MMD under (x·y/d + 1)³, over random subsets.

    Features are [N, D] and [M, D]. Below zero is possible, and means "as near as chance". Raises DataError for fewer
    features than a subset holds.
    """
    generated, real = _pair(generated, real)
    if min(len(generated), len(real)) < subset_size:
        raise DataError(f"the kernel distance draws subsets of {subset_size} images, and there are {len(generated)} "
                        f"generated and {len(real)} real ones; use more images or a smaller subset_size")
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        first = generated[draw.choice(len(generated), subset_size, replace=False)]
        second = real[draw.choice(len(real), subset_size, replace=False)]
        within = _without_diagonal(_kernel(first, first)) + _without_diagonal(_kernel(second, second))
        values.append(within / (subset_size * (subset_size - 1)) - 2 * _kernel(first, second).mean())
    return MeanAndDeviation(float(np.mean(values)), float(np.std(values)))


def inception_score(logits: np.ndarray, splits: int = 10, shuffle_seed: int | None = SEED) -> MeanAndDeviation:
    """Inception Score (Salimans et al. 2016, arXiv 1606.03498) of logits [N, classes] that have no bias added.

    torch-fidelity shuffles the images first (``shuffle_seed``); DM-GAN takes them in their order (None). Raises
    DataError for fewer images than splits.
    """
    logits = _finite(logits)
    if len(logits) < splits:
        raise DataError(f"the Inception Score takes {splits} splits, and there are {len(logits)} images; generate more")
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(len(logits))]
    logits = logits - logits.max(1, keepdims=True)
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scores = []
    for split in range(splits):
        part = log_shares[split * len(logits) // splits:(split + 1) * len(logits) // splits]
        shares = np.exp(part)
        # A class too unlikely for its share to be held adds nothing: 0 · log 0 is 0.
        marginal = np.log(np.maximum(shares.mean(0), np.finfo("float64").tiny))
        scores.append(np.exp((shares * (part - marginal)).sum(1).mean()))
    return MeanAndDeviation(float(np.mean(scores)), float(np.std(scores)))


def precision_recall(generated: np.ndarray, real: np.ndarray, neighbours: int = 3, chunk: int = 1024
                     ) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) of features [N, D] and [M, D].

    An image lies among others where it is no farther from one of them than that one's ``neighbours``-th nearest. Raises
    DataError for too few images.
    """
    generated, real = _pair(generated, real)
    if min(len(generated), len(real)) <= neighbours:
        raise DataError(f"precision and recall look at {neighbours} neighbours, and there are {len(generated)} "
                        f"generated and {len(real)} real images; use more")
    return PrecisionRecall(precision=_share_within(generated, real, neighbours, chunk),
                           recall=_share_within(real, generated, neighbours, chunk))


def _share_within(points: np.ndarray, others: np.ndarray, neighbours: int, chunk: int) -> float:
    """Share of ``points`` that lie within reach of one of ``others``."""
    # The nearest of all is the point itself, at distance zero.
    reach = np.concatenate([
        np.partition(_squares(others[start:start + chunk], others), neighbours, axis=1)[:, neighbours]
        for start in range(0, len(others), chunk)])
    within = sum(int((_squares(points[start:start + chunk], others) <= reach).any(1).sum())
                 for start in range(0, len(points), chunk))
    return within / len(points)


def _squares(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances [N, M]."""
    return (first ** 2).sum(1)[:, None] + (second ** 2).sum(1)[None] - 2 * first @ second.T


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _without_diagonal(kernel: np.ndarray) -> float:
    return float(kernel.sum() - np.trace(kernel))


def _pair(generated: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    generated, real = _finite(generated), _finite(real)
    if generated.shape[1] != real.shape[1]:
        raise DataError(f"generated images have {generated.shape[1]} features and real ones {real.shape[1]}; take both "
                        "with the same network")
    return generated, real


def _finite(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, "float64")
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"features are a finite table [images, D], got {list(features.shape)}"
                        + (" with values that are not finite" if features.ndim == 2 else ""))
    return features
