"""The Fréchet distance of two sets of feature vectors."""
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError


@dataclass
class Gaussian:
    """Mean [D] and covariance [D, D] of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, D]. Raises DataError for fewer than two, or for values that are not finite."""
    if features.ndim != 2 or len(features) < 2:
        raise DataError(f"a Fréchet distance needs at least two feature vectors [N, D] a set, got "
                        f"{list(features.shape)}")
    if not np.isfinite(features).all():
        raise DataError("a Fréchet distance needs finite features; some are not")
    features = features.astype("float64")
    return Gaussian(features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 √(Σ₁ Σ₂)), never below zero.

    tr √(Σ₁ Σ₂) is the sum of the square roots of the eigenvalues of √Σ₁ Σ₂ √Σ₁, which is symmetric: it stays real when
    a covariance has no full rank. Raises DataError when the two sets have features of different widths.
    """
    if first.mean.shape != second.mean.shape:
        raise DataError(f"features of {first.mean.shape[0]} and {second.mean.shape[0]} dimensions have no Fréchet "
                        "distance; take both with the same network")
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second.covariance @ root), 0, None)).sum()
    apart = ((first.mean - second.mean) ** 2).sum()
    return float(max(0.0, apart + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross))
