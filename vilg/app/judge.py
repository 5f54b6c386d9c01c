"""Who chooses among pictures that were drawn from one text, where that is not the model that drew them."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vilg.errors import VilgError


class Judge(Protocol):
    """A dual encoder, or anything that knows how well images fit texts."""

    def similarity(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """How well every text fits every image (uint8 [H, W, 3]): [texts, images], higher is better."""


def ready_judge(judge: Judge | str | Path | None, texts: Sequence[str], best_of: int | None,
                load: Callable[[str | Path], Judge]) -> Judge | None:
    """The judge of ``best_of`` pictures, by ``load`` where it is named, after it read the texts: what it cannot read is
    told before anything is drawn. Raises VilgError."""
    if judge is None:
        return None
    if not best_of:
        raise VilgError("judge chooses among pictures, so say how many to draw for each text with best_of")
    ready: Any = load(judge) if isinstance(judge, (str, Path)) else judge
    if not hasattr(ready, "similarity"):
        raise VilgError("judge is a dual encoder's name or folder, or an object with similarity(texts, images); got "
                        f"{type(ready).__name__}")
    ready.similarity(texts, [np.full([16, 16, 3], 255, "uint8")])
    return ready


def name_of(judge: Judge) -> str:
    """What a picture's metadata call a judge."""
    return str(getattr(judge, "name", type(judge).__name__))
