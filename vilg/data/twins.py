"""Which samples of a source show the same thing (a concept in several styles): each other's twins, by an index."""
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from vilg.data.sample import Sample

TWIN = "twin"
"""The fact that holds a sample's :class:`Twin`, where its source has an index and there is another sample."""


class TwinIndex:
    """Row numbers of a source by what the rows show. ``shown`` holds one value a row, None for a row that has none."""

    def __init__(self, shown: Iterable[Any]):
        rows: dict[str, list[int]] = defaultdict(list)
        self._place: dict[int, tuple[str, int]] = {}
        for number, value in enumerate(shown):
            if value is not None:
                self._place[number] = str(value), len(rows[str(value)])
                rows[str(value)].append(number)
        self._rows = {value: np.array(numbers) for value, numbers in rows.items()}

    def count(self, row: int) -> int:
        """How many other rows show what ``row`` shows."""
        return len(self._rows[self._place[row][0]]) - 1 if row in self._place else 0

    def other(self, row: int, seed: int) -> int:
        """One of the other rows that show what ``row`` shows, chosen by ``seed``; there must be one."""
        value, place = self._place[row]
        rows = self._rows[value]
        step = 1 + int(np.random.default_rng([seed, row]).integers(len(rows) - 1))
        return int(rows[(place + step) % len(rows)])


class Twin:
    """A sample's twins, none of which is read before it is asked for."""

    def __init__(self, source: Any, index: TwinIndex, row: int):
        self._source, self._index, self._row = source, index, row

    def sample(self, seed: int) -> Sample:
        """Another sample that shows the same, chosen by ``seed``. Raises BrokenSample when it cannot be read."""
        return self._source[self._index.other(self._row, seed)]
