"""Do similarities of 0 to 1 mean what they say, and can they say that nothing matches?"""
import numpy as np

from vilg.errors import DataError

BINS = 15


def calibration_error(similarities: np.ndarray, matches: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of ``similarities`` [N] in 0–1 against ``matches`` [N] (booleans): over equal bins,
    the mean distance between the mean similarity and the share that does match, weighted by how many are in the bin.
    Raises DataError for no pairs, and for similarities outside 0–1.
    """
    similarities, matches = np.asarray(similarities, "float64"), np.asarray(matches, "float64")
    if not similarities.size or similarities.shape != matches.shape:
        raise DataError(f"{similarities.shape} similarities and {matches.shape} answers do not make pairs to judge a "
                        "calibration by")
    if not ((similarities >= 0) & (similarities <= 1)).all():  # not a number is neither
        raise DataError(f"similarities lie from 0 to 1, and these from {similarities.min():g} to "
                        f"{similarities.max():g}; give a calibrated model")
    place = np.minimum((similarities * bins).astype(int), bins - 1)
    gaps = np.bincount(place, similarities - matches, bins)  # the distance of means, times the count
    return float(np.abs(gaps).sum() / len(similarities))


def refused_share(matching: np.ndarray, without: np.ndarray, false_refusals: float = 0.05) -> tuple[float, float]:
    """How often "nothing matches" is said rightly, and from which score on.

    ``matching`` [Q]: the best scores of queries that something matches; ``without`` [M]: of queries that nothing
    matches. The threshold is the highest that refuses at most the share ``false_refusals`` of ``matching``; a query is
    refused below it. Returns (share of ``without`` that is refused, threshold).
    """
    if not len(matching) or not len(without):
        raise DataError("a threshold wants queries that something matches and queries that nothing matches")
    ordered = np.sort(np.asarray(matching, "float64"))
    threshold = float(ordered[int(false_refusals * len(ordered))])
    return float(np.mean(np.asarray(without) < threshold)), threshold
