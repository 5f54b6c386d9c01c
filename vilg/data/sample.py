"""One training sample, and what a source of samples must offer."""
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass
class Sample:
    """An image, whole, with what is said about it; what becomes of it is the task's to choose.

    ``image`` is uint8 [H, W, 3] RGB, or None where ``codes`` (int64 [n], raster order) stand for it; ``captions`` holds
    at least one text where the run reads texts; ``questions`` holds (question, answer) pairs and may be empty.
    ``facts``: what else its source knows, under the source's names: the ``scene`` of a drawn scene, a style, a concept,
    tags, the further keys of a record.
    """

    key: str
    image: np.ndarray | None
    captions: list[str]
    questions: list[tuple[str, str]] = field(default_factory=list)
    codes: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a run takes of its samples, so that a source may spare it the rest.

    ``least_side``: an image may be decoded smaller than it is stored, but with no side below this (None: as stored).
    ``texts``: whether a sample needs a caption. ``max_pixels``: larger images are refused before they are decoded.
    """

    least_side: int | None = None
    texts: bool = True
    max_pixels: int = 50_000_000


class BrokenSample(Exception):
    """A sample that cannot be used; the loader counts it, names it once and goes on with another.

    ``place`` tells it apart from all others of a stream, whatever they are called: a stream of several sources sets it.
    ``kind`` is the reason without what is this sample's own, for counting.
    """

    def __init__(self, name: str, reason: str, kind: str | None = None):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.kind = kind or reason
        self.place: Hashable = name


class Source(Protocol):
    """Samples by number; ``source[i]`` is a pure function of ``i`` and may be called from several threads at once."""

    def __len__(self) -> int:
        """How many samples there are, broken ones included."""

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``. Raises BrokenSample when it cannot be used."""
