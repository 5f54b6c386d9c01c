"""The figures of a dual encoder on the project's own worlds: retrieval, and whether similarities mean what they say."""
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from vilg.app.search.index import Encoder
from vilg.evaluation.retrieval import SCENES, Search, scenes_searches, styles_figures, styles_searches
from vilg.metrics.calibration import calibration_error, refused_share
from vilg.metrics.retrieval import best_scores

SIZE = 64  # pixels of a scene
FALSE_REFUSALS = 0.05
SPLITS = {"scenes": "test", "scenes_unseen": "unseen"}


class Calibrated(Encoder, Protocol):
    """An encoder that says what its cosines mean."""

    def calibrated(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines of texts and images → similarities in 0–1, of the same shape."""


def matching_figures(model: Calibrated, folder: str | None, count: int = SCENES, seed: int = 0
                     ) -> Iterator[tuple[str, float]]:
    """``scenes_t2i_r1`` …, ``scenes_unseen_…`` on ``count`` scenes each; with the styles world of ``folder`` also
    ``cells_t2i_r1``, ``style_…``, ``concepts_…``; then :func:`calibration_figures` on the scenes, the held-out cells,
    and on both together."""
    worlds: dict[str, list[Search]] = {}
    for name, split in SPLITS.items():
        searches = scenes_searches(model, count, seed, split, SIZE)
        for way, search in searches.items():
            yield from search.standing().figures(f"{name}_{way}").items()
        if split == "test":
            worlds[name] = [searches["t2i"]]
    if folder is not None:
        searches = styles_searches(model, folder)
        yield from styles_figures(searches)
        if ("cells", "t2i") in searches:
            worlds["cells"] = searches["cells", "t2i"]
    for name, found in worlds.items():
        yield from calibration_figures(model, found, seed, f"{name}_")
    yield from calibration_figures(model, [search for found in worlds.values() for search in found], seed)


def calibration_figures(model: Calibrated, searches: list[Search], seed: int, prefix: str = ""
                        ) -> Iterator[tuple[str, float]]:
    """``calibration_error`` over as many true pairs as shuffled ones, one of each a query. ``no_match_refused``: the
    share of queries that are refused when their true candidates are taken away from all others, at the threshold of
    best similarity (``no_match_threshold``) at which 5 % are refused with these."""
    rng = np.random.default_rng([seed, 5])
    true, shuffled = (np.concatenate(part) for part in zip(*(_pairs(search, rng) for search in searches)))
    similarities = model.calibrated(np.concatenate([true, shuffled]))
    yield f"{prefix}calibration_error", calibration_error(similarities, np.arange(2 * len(true)) < len(true))
    best = [np.concatenate([best_scores(search.queries, search.candidates, left_out(search)) for search in searches])
            for left_out in (lambda search: [[] for _ in search.positives], lambda search: search.positives)]
    share, threshold = refused_share(*best, FALSE_REFUSALS)
    yield f"{prefix}no_match_refused", share
    yield f"{prefix}no_match_threshold", float(model.calibrated(np.array([threshold]))[0])


def _pairs(search: Search, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of every query with one of its true candidates, and with one that is not: [Q] each. A query whose
    candidates are all true has none of the latter, and is left out of both."""
    true, shuffled = [], []
    for query, positives in zip(search.queries, search.positives):
        others = np.setdiff1d(np.arange(len(search.candidates)), positives)
        if len(others):
            true.append(query @ search.candidates[rng.choice(positives)])
            shuffled.append(query @ search.candidates[rng.choice(others)])
    return np.array(true, "float32"), np.array(shuffled, "float32")
