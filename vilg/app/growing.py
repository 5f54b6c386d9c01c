"""Pictures as they grow: what is drawn so far, over grey."""
import time
from collections.abc import Callable

import numpy as np
import paddle

from vilg.app.serving.engine import Drawing

UNDRAWN = 128
_GAP_SECONDS = 0.15
"""At least so long between two looks, so that to show a picture never takes as long as to draw it."""
Show = Callable[[int, int, list[np.ndarray]], object]


class Growing:
    """What an engine calls at each row of a drawing's grid: shows ``(rows done, rows, pictures)``, all of the drawing's
    pictures, uint8 [H, W, 3], grey where nothing is known yet."""

    def __init__(self, drawing: Drawing, show: Show):
        self._drawing, self._show, self._last = drawing, show, 0.0

    def __call__(self, first: np.ndarray) -> None:
        """``first``: codes of the first picture so far; the others are as far."""
        if time.monotonic() - self._last < _GAP_SECONDS:
            return
        drawing = self._drawing
        rows, columns = drawing.pipeline.image_tokenizer.grid
        self._show(len(first) // columns, rows, pictures_so_far(drawing))
        self._last = time.monotonic()


def pictures_so_far(drawing: Drawing) -> list[np.ndarray]:
    """All pictures of a drawing, uint8 [H, W, 3], grey where no token is drawn or kept yet; on the engine's thread."""
    tokenizer, first = drawing.pipeline.image_tokenizer, drawing.rows[0]
    rows, columns = tokenizer.grid
    codes = np.stack([np.where(row.mask, row.known, row.codes) for row in drawing.rows])  # [B, n]
    seen = ((np.arange(rows * columns) < first.drawn) | first.mask).reshape(rows, columns)
    side = tokenizer.image_size // rows, tokenizer.image_size // columns
    pixels = np.kron(seen, np.ones(side, bool))[..., None]  # [H, W, 1]
    return [np.where(pixels, picture, np.uint8(UNDRAWN))
            for picture in drawing.pipeline.decode(paddle.to_tensor(codes))]
