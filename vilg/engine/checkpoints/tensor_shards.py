"""A shard: the part of a named tensor that this rank holds, and where it lies in the whole.

Checkpoints, the EMA and the gradient norm all work on shards, and so never ask which parallel level is on.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import paddle
from paddle import Tensor


@dataclass(frozen=True)
class TensorShard:
    """Elements [``start``, ``stop``) of the flattened tensor ``name`` of ``shape``; ``tensor()`` holds them now.

    Sharding pads slices, so ``tensor()`` may hold more than ``stop − start`` elements; the rest is ignored.
    ``owned`` says that this rank writes the shard to checkpoints and counts it in sums over ranks.
    """

    name: str
    tensor: Callable[[], Tensor]
    shape: tuple[int, ...]
    start: int
    stop: int
    owned: bool = True

    @property
    def whole(self) -> bool:
        """Whether the shard is all of the tensor."""
        return self.start == 0 and self.stop == prod(self.shape)

    def renamed(self, name: str, tensor: Callable[[], Tensor]) -> "TensorShard":
        """The same range of another tensor of the same shape."""
        return replace(self, name=name, tensor=tensor)

    def read(self) -> np.ndarray:
        """A host copy of the elements, flat; half precision comes as float32, which numpy and safetensors can hold."""
        tensor = self.tensor()
        if tensor.dtype in (paddle.bfloat16, paddle.float16):
            tensor = tensor.astype("float32")
        return np.array(tensor.numpy()).reshape(-1)[:self.stop - self.start]

    @paddle.no_grad()
    def write(self, values: np.ndarray) -> None:
        """Put flat ``values`` (stop − start elements) into the tensor; padding becomes zero."""
        tensor = self.tensor()
        count = prod(tensor.shape)
        if count > values.size:
            values = np.concatenate([values, np.zeros(count - values.size, values.dtype)])
        tensor.set_value(paddle.to_tensor(values.reshape(tensor.shape), place=tensor.place).astype(tensor.dtype))


def whole(name: str, tensor: Tensor, owned: bool = True) -> TensorShard:
    """All of ``tensor`` as one shard."""
    return TensorShard(name, lambda: tensor, tuple(tensor.shape), 0, prod(tensor.shape), owned)
