"""One training sample, and what a source of samples must offer."""
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass
class Sample:
    """A picture with what is said about it.

    ``picture`` is uint8 [H, W, 3] RGB, or None where ``codes`` (int [n], raster order) stand for it; ``captions`` holds
    at least one text; ``questions`` holds (question, answer) pairs and may be empty.
    """

    key: str
    picture: np.ndarray | None
    captions: list[str]
    questions: list[tuple[str, str]] = field(default_factory=list)
    codes: np.ndarray | None = None


class BrokenSample(Exception):
    """A sample that cannot be used; the loader counts it, names it once and goes on with another.

    ``place`` tells it apart from all others of a stream, whatever they are called: a stream of several sources sets it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.place: Hashable = name


class Source(Protocol):
    """Samples by number; ``source[i]`` is a pure function of ``i`` and may be called from several threads at once."""

    def __len__(self) -> int:
        """How many samples there are, broken ones included."""

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``. Raises BrokenSample when it cannot be used."""
