"""A shard: the part of a named tensor that this rank holds, and where it lies in the whole.

Checkpoints, the EMA and the gradient norm all work on shards, and so never ask which parallel level is on.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import Tensor


class Cut(Protocol):
    """How the ranks of one model divide a parameter of ``shape`` among them; its layer's owner puts it there as
    ``parameter.cut``."""

    shape: tuple[int, ...]

    @property
    def divided(self) -> bool:
        """Whether each rank holds a part, or all the whole."""

    @property
    def counts(self) -> bool:
        """Whether what this rank holds is counted in sums over ranks."""

    @property
    def writes(self) -> bool:
        """Whether this rank writes the whole to checkpoints."""

    def part(self, values: Any) -> Any:
        """This rank's part of the whole (an array or a tensor)."""

    def whole(self, tensor: Tensor) -> np.ndarray:
        """The whole of which ``tensor`` is this rank's part; all ranks of the model call it."""


@dataclass(frozen=True)
class TensorShard:
    """Elements [``start``, ``stop``) of the flattened tensor ``name`` of ``shape``; ``tensor()`` holds them now.

    Sharding pads slices, so ``tensor()`` may hold more than ``stop − start`` elements; the rest is ignored.
    ``owned`` says that this rank writes the shard to checkpoints and counts it in sums over ranks. With a ``cut``,
    ``tensor()`` is a part of the tensor, every rank of the model owns its own, and :meth:`read` is called by all.
    """

    name: str
    tensor: Callable[[], Tensor]
    shape: tuple[int, ...]
    start: int
    stop: int
    owned: bool = True
    cut: Cut | None = None

    @property
    def written(self) -> bool:
        """Whether this rank writes it to checkpoints."""
        return self.owned and (self.cut is None or self.cut.writes)

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
        if self.cut is not None:
            return self.cut.whole(tensor).reshape(-1)
        return np.array(tensor.numpy()).reshape(-1)[:self.stop - self.start]

    @paddle.no_grad()
    def write(self, values: np.ndarray) -> None:
        """Put flat ``values`` (stop − start elements) into the tensor; padding becomes zero."""
        tensor = self.tensor()
        if self.cut is not None:
            values = np.ascontiguousarray(self.cut.part(values)).reshape(-1)
        count = prod(tensor.shape)
        if count > values.size:
            values = np.concatenate([values, np.zeros(count - values.size, values.dtype)])
        tensor.set_value(paddle.to_tensor(values.reshape(tensor.shape), place=tensor.place).astype(tensor.dtype))


def whole(name: str, tensor: Tensor, owned: bool = True) -> TensorShard:
    """All of ``tensor`` as one shard; of one that the ranks of a model divide, this rank's part."""
    cut: Cut | None = getattr(tensor, "cut", None)
    if cut is not None:
        return TensorShard(name, lambda: tensor, cut.shape, 0, prod(cut.shape), owned and cut.counts,
                           cut if cut.divided else None)
    return TensorShard(name, lambda: tensor, tuple(tensor.shape), 0, prod(tensor.shape), owned)
