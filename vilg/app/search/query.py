"""Questions to an index: the images that fit a text, or that are like an image."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vilg.app.search.index import Encoder, SearchIndex
from vilg.errors import DataError

LEAST_SIMILARITY = 0.5
"""The paper's threshold for a text that fits an image (ERNIE-ViLG, arXiv 2112.15283, section 3)."""


class TextEncoder(Encoder, Protocol):
    """An encoder that says what its cosines mean."""

    def calibrated(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines of texts and images → similarities in 0–1, of the same shape."""


@dataclass(frozen=True)
class Hit:
    """An image that was found: its name in the index and path; ``cosine`` with the query, and for a text the
    ``similarity`` in 0–1 that it stands for."""

    name: str
    path: str
    cosine: float
    similarity: float | None = None


def search_texts(index: SearchIndex, encoder: TextEncoder, texts: Sequence[str], k: int = 10,
                 least: float = LEAST_SIMILARITY) -> list[list[Hit]]:
    """The ``k`` images that fit each text best, best first, of those with a similarity of ``least`` or more: an empty
    list means that nothing matches.

    Raises DataError for an index of another model, and what ``embed_text`` raises: VilgError for a text that is empty,
    too long, or of no word that the model knows.
    """
    found = _search(index, encoder, encoder.embed_text(list(texts)), k)
    hits = []
    for row in found:
        similarities = encoder.calibrated(np.array([hit.cosine for hit in row], "float32"))
        hits.append([Hit(hit.name, hit.path, hit.cosine, float(similarity))
                     for hit, similarity in zip(row, similarities) if similarity >= least])
    return hits


def search_images(index: SearchIndex, encoder: Encoder, images: Sequence[Any], k: int = 10,
                  least: float = -1.0) -> list[list[Hit]]:
    """The ``k`` images most like each image, best first, with a cosine of ``least`` or more. (Similarities in
    0–1 are of texts and images; two images have their cosine alone.) Raises DataError, as :func:`search_texts`."""
    found = _search(index, encoder, encoder.embed_image(list(images)), k)
    return [[hit for hit in row if hit.cosine >= least] for row in found]


def _search(index: SearchIndex, encoder: Encoder, queries: np.ndarray, k: int) -> list[list[Hit]]:
    if index.fingerprint != encoder.fingerprint:
        raise DataError(f"{index.folder}: is an index by the model {index.fingerprint}, and {encoder.name} is "
                        f"{encoder.fingerprint}; search with the model that it was built by")
    rows, cosines = index.neighbours.top_k(queries, k)
    return [[Hit(index.names[row], str(index.root / index.names[row]), float(cosine)) for row, cosine in zip(*pair)]
            for pair in zip(rows.tolist(), cosines.tolist())]
