"""The k nearest of many vectors, exactly: products block by block, or faiss's flat index where it is asked for."""
from typing import Any, Literal

import numpy as np

from vilg.errors import ConfigError

Backend = Literal["numpy", "faiss"]
BACKENDS = ("numpy", "faiss")
_ROWS = 65_536  # vectors of one product: so many are read into memory at a time
_QUERIES = 256
_GROUP = 64


class Neighbours:
    """The rows of ``vectors`` [N, D] with the highest products with queries. Vectors may be mapped from a file: the
    backend "numpy" reads a block of them at a time, "faiss" copies them all.

    Raises ConfigError for another backend, and for faiss where it is not installed.
    """

    def __init__(self, vectors: np.ndarray, backend: Backend = "numpy"):
        if backend not in BACKENDS:
            raise ConfigError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
        self.vectors = vectors
        self._flat = _flat_index(vectors) if backend == "faiss" else None

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 and products float32, both [Q, min(k, N)], of ``queries`` [Q, D], best first; of equal products
        the lower row comes first (faiss has an order of its own). Raises ConfigError for a k below 1."""
        if k < 1:
            raise ConfigError(f"k is how many hits a query has, at least 1, not {k}")
        k, queries = min(k, len(self.vectors)), np.ascontiguousarray(queries, "float32")
        if self._flat is not None:
            scores, rows = self._flat.search(queries, k)
            return rows, scores
        parts = [_blocked(queries[start:start + _QUERIES], self.vectors, k)
                 for start in range(0, max(1, len(queries)), _QUERIES)]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([scores for _, scores in parts])


def _blocked(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, scores = np.zeros([len(queries), 0], "int64"), np.zeros([len(queries), 0], "float32")
    for start in range(0, len(vectors), _ROWS):
        block = np.ascontiguousarray(vectors[start:start + _ROWS], "float32")
        found, best = _highest(queries @ block.T, k)
        rows, scores = np.concatenate([rows, found + start], 1), np.concatenate([scores, best], 1)
        if rows.shape[1] > k:
            keep = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows, scores = np.take_along_axis(rows, keep, 1), np.take_along_axis(scores, keep, 1)
    return rows, scores


def _highest(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest columns of ``scores`` [Q, N], best first, and their scores; all of them where there are fewer.

    The k-th highest of the maxima of groups of columns is no more than the k-th highest of all, so only what reaches it
    need be sorted: maxima cost a fraction of a partition.
    """
    count = scores.shape[1]
    groups = count // _GROUP
    if groups < 2 * k:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(scores, order, 1)
    maxima = scores[:, :groups * _GROUP].reshape(len(scores), _GROUP, groups).max(1)  # [Q, groups]
    bound = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    row, column = np.nonzero(scores >= bound[:, None])  # in the order of rows, then of columns
    value = scores[row, column]
    order = np.lexsort((-value, row))  # stable: equal values stay in the order of columns
    starts = np.searchsorted(row, np.arange(len(scores)))
    picked = order[starts[:, None] + np.arange(k)]  # [Q, k]
    return column[picked], value[picked]


def _flat_index(vectors: np.ndarray) -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError("backend: faiss is not installed; run `pip install 'vilg[search]'`, or take numpy, which "
                          "finds the same") from None
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), _ROWS):
        index.add(np.ascontiguousarray(vectors[start:start + _ROWS], "float32"))
    return index
