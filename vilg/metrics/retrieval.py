"""Retrieval: is what was meant among the nearest? Recall at 1, 5 and 10, with ties at chance; nearest neighbours."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vilg.errors import DataError

KS = (1, 5, 10)
TIE = 1e-6
"""Cosines of float32 vectors that differ by no more are equal: a product's last bit hangs on where in a block it is."""
_BLOCK_SCORES = 2 ** 24
BLOCK = 1024  # rows of truth whose distances are held at once


@dataclass(frozen=True)
class Standing:
    """Where the best true candidate of every query stands, each field int64 [Q]: ``above`` candidates score higher,
    ``tied`` score the same, itself included, ``true`` of those are true; ``total`` are all true ones of the query."""

    above: np.ndarray
    tied: np.ndarray
    true: np.ndarray
    total: np.ndarray
    candidates: int

    def recall(self, k: int) -> float:
        """Share of queries with a true candidate among the first ``k``: the expectation over all orders of ties."""
        return float(np.mean(_hit(k - self.above, self.tied, self.true)))

    def chance(self, k: int) -> float:
        """The recall of scores that say nothing, such as a collapsed model's."""
        return float(np.mean(_hit(np.full(len(self.total), k), np.full(len(self.total), self.candidates), self.total)))

    @cached_property
    def mean_recall(self) -> float:
        """The mean of recall at 1, 5 and 10."""
        return float(np.mean([self.recall(k) for k in KS]))

    def figures(self, name: str) -> dict[str, float]:
        """``{name}_r1``, ``_r5``, ``_r10``, ``_mean_recall``, and ``_chance`` of recall at 1; shares."""
        return {**{f"{name}_r{k}": self.recall(k) for k in KS}, f"{name}_mean_recall": self.mean_recall,
                f"{name}_chance": self.chance(1)}


def standing(scores: np.ndarray, positives: Sequence[Sequence[int]], tie: float = 0.0) -> Standing:
    """Where the true candidates of ``scores`` [Q, N] stand. ``positives``: the true columns of every query, one or more
    each. Scores within ``tie`` of each other are equal. Raises DataError, as :func:`standing_of_vectors` does."""
    _check(len(scores), scores.shape[1], positives)
    return _joined([_standing(scores, positives, tie)], positives, scores.shape[1])


def standing_of_vectors(queries: np.ndarray, candidates: np.ndarray, positives: Sequence[Sequence[int]],
                        tie: float = TIE) -> Standing:
    """The same for unit vectors ``queries`` [Q, D] and ``candidates`` [N, D], whose products are made block by block.

    Raises DataError for no query, a query without a true candidate, one that is not there, and scores that are not
    finite.
    """
    _check(len(queries), len(candidates), positives)
    blocks = [_standing(scores, positives[rows], tie) for rows, scores in _products(queries, candidates)]
    return _joined(blocks, positives, len(candidates))


def joined(parts: Sequence[Standing]) -> list[float]:
    """Recall at 1 over the queries of several searches, each among candidates of its own, and its chance."""
    counts = np.array([len(part.total) for part in parts], float)
    return [float(np.dot(counts, [value(part) for part in parts]) / counts.sum())
            for value in (lambda part: part.recall(1), lambda part: part.chance(1))]


def best_scores(queries: np.ndarray, candidates: np.ndarray, left_out: Sequence[Sequence[int]]) -> np.ndarray:
    """The highest product of every query [Q, D] with ``candidates`` [N, D] other than those ``left_out`` for it: [Q];
    -inf where none is left."""
    best = []
    for rows, scores in _products(queries, candidates):
        for row, columns in zip(scores, left_out[rows]):
            row[list(columns)] = -np.inf
        best.append(scores.max(1))
    return np.concatenate(best)


def nearest_share(drawn: np.ndarray, truth: np.ndarray, chunk: int = 256) -> float:
    """Share of rows of ``drawn`` [N, D] whose nearest row of ``truth`` [N, D] (Euclidean)
    is the one of the same index."""
    return float((nearest(drawn, truth, chunk) == np.arange(len(drawn))).mean())


def nearest(drawn: np.ndarray, truth: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Of every row of ``drawn`` [Q, …] the index of the nearest row of ``truth`` [N, …] (Euclidean), the first of equal
    ones: int64 [Q]."""
    truth, drawn = truth.reshape(len(truth), -1), drawn.reshape(len(drawn), -1)
    # Squared distances come as differences of squares that may be far larger than they are, in float32 beyond all
    # digits: float64, and the middle of all rows taken for zero.
    centre = truth.mean(0, dtype="float64")
    best = np.full(len(drawn), np.inf)
    found = np.zeros(len(drawn), dtype="int64")
    for first in range(0, len(truth), BLOCK):
        rows = truth[first:first + BLOCK].astype("float64") - centre
        norms = (rows ** 2).sum(1)
        for start in range(0, len(drawn), chunk):
            part = slice(start, start + chunk)
            distance = norms[None] - 2 * (drawn[part].astype("float64") - centre) @ rows.T  # [chunk, BLOCK]
            index = distance.argmin(1)
            least = np.take_along_axis(distance, index[:, None], 1)[:, 0]
            closer = least < best[part]
            found[part] = np.where(closer, first + index, found[part])
            best[part] = np.minimum(least, best[part])
    return found


def _products(queries: np.ndarray, candidates: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(1, _BLOCK_SCORES // max(1, len(candidates)))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, queries[rows] @ candidates.T  # [rows, N]


def _check(queries: int, candidates: int, positives: Sequence[Sequence[int]]) -> None:
    if len(positives) != queries or not queries:
        raise DataError(f"{queries} queries and true candidates of {len(positives)} do not make a retrieval task; give "
                        "at least one query, and a list of true candidates for each")
    for number, true in enumerate(positives):
        if not len(true) or min(true) < 0 or max(true) >= candidates or len(set(true)) != len(true):
            raise DataError(f"query {number}: its true candidates are {list(true)[:5]}, where one or more different "
                            f"numbers from 0 to {candidates - 1} are needed")


def _standing(scores: np.ndarray, positives: Sequence[Sequence[int]], tie: float) -> np.ndarray:
    """above, tied and true of every row: [3, Q]."""
    if not np.isfinite(scores).all():
        raise DataError("the scores hold values that are not finite; the model that gave them is damaged")
    found = []
    for row, true in zip(scores, positives):
        own = row[list(true)]
        best = own.max()
        above = np.count_nonzero(row > best + tie)
        found.append((above, np.count_nonzero(row >= best - tie) - above, np.count_nonzero(own >= best - tie)))
    return np.array(found).T


def _joined(blocks: list[np.ndarray], positives: Sequence[Sequence[int]], candidates: int) -> Standing:
    return Standing(*np.concatenate(blocks, axis=1), np.array([len(true) for true in positives]), candidates)


def _hit(room: np.ndarray, tied: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Chance that of ``tied`` candidates in any order, ``true`` of them true, one of the true is among the first
    ``room``: 1 - C(tied - true, room) / C(tied, room), a product of ``room`` factors."""
    room = np.clip(room, 0, tied)
    missed = np.ones(len(room))
    for taken in range(int(room.max(initial=0))):
        false = np.maximum(tied - true - taken, 0)
        missed = np.where(taken < room, missed * false / np.maximum(tied - taken, 1), missed)
    return 1 - missed
