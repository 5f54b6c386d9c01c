"""The moving average of weights that is shipped instead of the last step's."""
import paddle
from paddle import Tensor

from vilg.engine.checkpoints.tensor_shards import Piece


class WeightAverage:
    """Exponential moving average, in float32, of the ``pieces`` of parameters that this rank looks after.

    a ← d·a + (1 − d)·p after each step, with d = min(``decay``, (1 + t) / (10 + t)), so that early weights are
    forgotten quickly.
    """

    def __init__(self, pieces: list[Piece], decay: float):
        self.decay = decay
        self._pairs = [(piece, _float32(piece).clone()) for piece in pieces]

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for piece, average in self._pairs:
            average.scale_(decay)
            average.add_(_float32(piece) * (1 - decay))

    def pieces(self, prefix: str = "") -> list[Piece]:
        """The averages as pieces under ``prefix`` + the names of their parameters."""
        return [piece.renamed(prefix + piece.name, lambda average=average: average) for piece, average in self._pairs]


def _float32(piece: Piece) -> Tensor:
    return piece.tensor().detach().astype("float32")
