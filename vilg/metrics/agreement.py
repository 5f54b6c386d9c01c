"""What people's ratings say and how far raters agree: means, bootstrap intervals, ordinal Krippendorff α, repeats.

Ratings are [raters, items], NaN where a rater has not seen an item.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vilg.errors import DataError

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the middle ``LEVEL`` of its bootstrap; ``undefined`` resamples had no value and are left out."""

    value: float
    low: float
    high: float
    undefined: int = 0


@dataclass(frozen=True)
class Repeats:
    """How raters rated what they saw twice: pairs, share equal, share at most one step apart, and mean distance."""

    pairs: int
    equal: float
    within_one: float
    distance: float


def item_means(ratings: np.ndarray) -> np.ndarray:
    """The mean rating of every item [items], each rater counting alike. Raises DataError for an item nobody rated."""
    ratings = _checked(ratings)
    seen = ~np.isnan(ratings)
    if not seen.any(0).all():
        raise DataError(f"item {int(np.flatnonzero(~seen.any(0))[0])} has no rating; leave unrated items out")
    return np.where(seen, ratings, 0).sum(0) / seen.sum(0)


def mean_rating(ratings: np.ndarray) -> float:
    """The mean over items of their mean ratings."""
    return float(item_means(ratings).mean())


def ordinal_alpha(ratings: np.ndarray) -> float:
    """Krippendorff's α for ordinal ratings: 1 where raters agree, 0 where they do as by chance.

    1 - observed / expected disagreement, where two ratings differ by the square of how many ratings lie between them
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"). Raises DataError where no item was rated twice or
    all ratings are the same, since chance alone then agrees as well.
    """
    ratings = _checked(ratings)
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[None] == values[:, None, None]).sum(1).astype("float64")  # [V, items]
    counts = counts[:, counts.sum(0) > 1]
    if not counts.size:
        raise DataError("agreement needs items that two raters have rated; here every item has one rating at most")
    raters = counts.sum(0)
    together = (counts / (raters - 1)) @ counts.T - np.diag((counts / (raters - 1)).sum(1))  # [V, V] pairs of ratings
    totals = together.sum(0)
    if np.count_nonzero(totals) < 2:
        raise DataError("all ratings are the same, so that agreement cannot be told from chance")
    ranks = np.cumsum(totals) - totals / 2
    apart = (ranks[:, None] - ranks[None]) ** 2
    expected = (totals @ apart @ totals) / (totals.sum() - 1)
    return float(1 - (together * apart).sum() / expected)


def bootstrap(statistic: Callable[[np.ndarray], float], ratings: np.ndarray, seed: int,
              resamples: int = RESAMPLES) -> Interval:
    """``statistic`` of ratings [raters, items], with its interval over items drawn again with replacement.

    A resample for which the statistic raises DataError is left out and counted. Raises DataError when the ratings
    themselves have no value, or no resample has.
    """
    ratings = _checked(ratings)
    value, generator, drawn = statistic(ratings), np.random.default_rng(seed), []
    for _ in range(resamples):
        chosen = generator.integers(0, ratings.shape[1], ratings.shape[1])
        try:
            drawn.append(statistic(ratings[:, chosen]))
        except DataError:
            continue
    if not drawn:
        raise DataError(f"none of {resamples} resamples of {ratings.shape[1]} items has a value; rate more items")
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), resamples - len(drawn))


def repeats_agreement(first: np.ndarray, second: np.ndarray) -> Repeats:
    """Agreement of the same raters' first and second ratings of the same items, [N] each. Raises DataError."""
    first, second = (np.asarray(ratings, "float64").reshape(-1) for ratings in (first, second))
    if len(first) != len(second) or not len(first) or not np.isfinite([first, second]).all():
        raise DataError(f"repeats come in pairs of ratings, got {len(first)} first and {len(second)} second ones; "
                        "export the sheets again")
    distance = np.abs(first - second)
    return Repeats(len(first), float((distance == 0).mean()), float((distance <= 1).mean()), float(distance.mean()))


def _checked(ratings: np.ndarray) -> np.ndarray:
    ratings = np.asarray(ratings, "float64")
    if ratings.ndim != 2 or not ratings.size:
        raise DataError(f"ratings are a table [raters, items], got {list(ratings.shape)}")
    if np.isinf(ratings).any():
        raise DataError("ratings must be finite; write NaN where a rater has not seen an item")
    return ratings
