"""Nearest-neighbour accuracy: is what was drawn nearest to what was meant, among all candidates?"""
import numpy as np


def nearest_share(drawn: np.ndarray, truth: np.ndarray, chunk: int = 256) -> float:
    """Share of rows of ``drawn`` [N, D] whose nearest row of ``truth`` [N, D] (Euclidean)
    is the one of the same index."""
    truth = truth.astype("float32").reshape(len(truth), -1)
    drawn = drawn.astype("float32").reshape(len(drawn), -1)
    norms = (truth ** 2).sum(1)
    hits = 0
    for start in range(0, len(drawn), chunk):
        distance = norms[None] - 2 * drawn[start:start + chunk] @ truth.T
        hits += int((distance.argmin(1) == np.arange(start, min(start + chunk, len(drawn)))).sum())
    return hits / len(drawn)
