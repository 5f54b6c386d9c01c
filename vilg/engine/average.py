"""The moving average of weights that is shipped instead of the last step's."""
import numpy as np
import paddle

from vilg.engine.pieces import Piece


class WeightAverage:
    """Exponential moving average of the pieces of parameters that this rank holds.

    a ← d·a + (1 − d)·p after each step, with d = min(``decay``, (1 + t) / (10 + t)), so that early weights are forgotten
    quickly. Kept in float32.
    """

    def __init__(self, pieces: list[Piece], decay: float):
        self.decay = decay
        self._pairs = [(piece, piece.tensor().detach().astype("float32").clone()) for piece in pieces]

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for piece, average in self._pairs:
            average.scale_(decay)
            average.add_(piece.tensor().detach().astype("float32") * (1 - decay))

    def pieces(self) -> list[Piece]:
        """The averages as pieces under the names of their parameters."""
        return [piece.renamed(piece.name, lambda average=average: average) for piece, average in self._pairs]

    def values(self) -> dict[str, np.ndarray]:
        """Name → averaged weight, of the parameters that this rank holds whole."""
        return {piece.name: average.numpy().reshape(piece.shape) for piece, average in self._pairs if piece.whole}
