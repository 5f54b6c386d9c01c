"""The Fréchet distance of two sets of feature vectors."""
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError


@dataclass
class Gaussian:
    """Mean [D] and covariance [D, D] of a set of features; ``factor`` [N, D], where N < D, has the covariance as its
    product with itself."""

    mean: np.ndarray
    covariance: np.ndarray
    factor: np.ndarray | None = None


def gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, D]. Raises DataError for fewer than two, or for values that are not finite."""
    if features.ndim != 2 or len(features) < 2:
        raise DataError(f"a Fréchet distance needs at least two feature vectors [N, D] a set, got "
                        f"{list(features.shape)}")
    if not np.isfinite(features).all():
        raise DataError("a Fréchet distance needs finite features; some are not")
    features = features.astype("float64")
    mean, (count, width) = features.mean(0), features.shape
    factor = (features - mean) / np.sqrt(count - 1) if count < width else None
    return Gaussian(mean, np.cov(features, rowvar=False).reshape(width, -1), factor)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 √(Σ₁ Σ₂)), never below zero.

    tr √(Σ₁ Σ₂) is the sum of the square roots of the eigenvalues of √Σ₁ Σ₂ √Σ₁, which is symmetric: it stays real when
    a covariance has no full rank. Of N images, fewer than dimensions, A Σ₂ Aᵀ [N, N] has the same ones but for zeros,
    where Σ₁ = Aᵀ A. Raises DataError when the two sets have features of different widths.
    """
    if first.mean.shape != second.mean.shape:
        raise DataError(f"features of {first.mean.shape[0]} and {second.mean.shape[0]} dimensions have no Fréchet "
                        "distance; take both with the same network")
    one, other = (second, first) if first.factor is None and second.factor is not None else (first, second)
    root = one.factor
    if root is None:
        values, vectors = np.linalg.eigh(one.covariance)
        root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ other.covariance @ root.T), 0, None)).sum()
    apart = ((first.mean - second.mean) ** 2).sum()
    return float(max(0.0, apart + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross))
