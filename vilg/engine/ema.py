"""The exponential moving average (EMA) of weights that is shipped instead of the last step's."""
import paddle
from paddle import Tensor

from vilg.engine.checkpoints.tensor_shards import TensorShard


class WeightEMA:
    """Moving average, in float32, of the ``shards`` of parameters that this rank looks after.

    ema ← d·ema + (1 − d)·p after each step, with d = min(``decay``, (1 + t) / (10 + t)), so that early weights are
    forgotten quickly.
    """

    def __init__(self, shards: list[TensorShard], decay: float):
        self.decay = decay
        self._pairs = [(shard, _float32(shard).clone()) for shard in shards]

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for shard, ema in self._pairs:
            ema.scale_(decay)
            ema.add_(_float32(shard) * (1 - decay))

    def tensor_shards(self, prefix: str = "") -> list[TensorShard]:
        """The EMA as shards under ``prefix`` + the names of their parameters."""
        return [shard.renamed(prefix + shard.name, lambda ema=ema: ema) for shard, ema in self._pairs]


def _float32(shard: TensorShard) -> Tensor:
    return shard.tensor().detach().astype("float32")
