"""Nearest-neighbour accuracy: is what was drawn nearest to what was meant, among all candidates?"""
import numpy as np

BLOCK = 1024  # rows of truth whose distances are held at once


def nearest_share(drawn: np.ndarray, truth: np.ndarray, chunk: int = 256) -> float:
    """Share of rows of ``drawn`` [N, D] whose nearest row of ``truth`` [N, D] (Euclidean)
    is the one of the same index."""
    truth, drawn = truth.reshape(len(truth), -1), drawn.reshape(len(drawn), -1)
    # Squared distances come as differences of squares that may be far larger than they are, in float32 beyond all
    # digits: float64, and the middle of all rows taken for zero.
    centre = truth.mean(0, dtype="float64")
    best = np.full(len(drawn), np.inf)
    nearest = np.zeros(len(drawn), dtype="int64")
    for first in range(0, len(truth), BLOCK):
        rows = truth[first:first + BLOCK].astype("float64") - centre
        norms = (rows ** 2).sum(1)
        for start in range(0, len(drawn), chunk):
            part = slice(start, start + chunk)
            distance = norms[None] - 2 * (drawn[part].astype("float64") - centre) @ rows.T  # [chunk, BLOCK]
            index = distance.argmin(1)
            least = np.take_along_axis(distance, index[:, None], 1)[:, 0]
            closer = least < best[part]
            nearest[part] = np.where(closer, first + index, nearest[part])
            best[part] = np.minimum(least, best[part])
    return float((nearest == np.arange(len(drawn))).mean())
