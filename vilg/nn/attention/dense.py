"""Dense attention over a stream, the reference that every faster form is held to, and what a step's layers share."""
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.errors import ShapeError
from vilg.nn import functional
from vilg.nn.attention.patterns import Layout, Pattern, Role, dense_mask

# Added to the score of a key that must not be seen: exp() of it is zero, and half precision can hold it.
HIDDEN = -3e4


@dataclass
class StreamContext:
    """What all layers of one forward pass share: the stream's shape, its role, and the masks built from them once.

    ``length`` and ``prefix`` are int64 [B]: each sample's real text tokens, and those of them that are source. Anything
    derived from them (additive masks, gather indices) goes through :meth:`once`, so that it is built by the first layer
    that asks and found by the others.
    """

    layout: Layout
    role: Role
    length: Tensor
    prefix: Tensor
    built: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, build: Callable[[], Any]) -> Any:
        """The value under ``key``, built by ``build()`` the first time."""
        if key not in self.built:
            self.built[key] = build()
        return self.built[key]

    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """``length`` and ``prefix`` as arrays; a device is asked for them once a stream."""
        return self.once("on_host", lambda: (self.length.numpy(), self.prefix.numpy()))

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.length.shape[0]


def additive(visible: np.ndarray) -> np.ndarray:
    """Booleans of any shape → float32 to add to scores: 0 where visible, :data:`HIDDEN` elsewhere."""
    return np.where(visible, np.float32(0), np.float32(HIDDEN))


def check_stream(q: Tensor, *contexts: StreamContext) -> None:
    """Refuse q [ΣB, L, …] whose L or ΣB is not that of the contexts, naming both numbers."""
    for layout in (context.layout for context in contexts):
        if q.shape[1] != layout.length:
            raise ShapeError(
                f"the stream has {q.shape[1]} slots but its layout says {layout.length} "
                f"({layout.text} text + {layout.rows}×{layout.columns} image)")
    batch = sum(context.batch for context in contexts)
    if q.shape[0] != batch:
        raise ShapeError(f"the stream has a batch of {q.shape[0]} but its context was made for {batch}")


def dense_attention(q: Tensor, k: Tensor, v: Tensor, context: StreamContext, pattern: Pattern,
                    dropout: float = 0.0) -> Tensor:
    """Attention with the whole L×L mask of ``pattern``: q, k, v [B, L, N, H] → [B, L, N, H].

    Costs L² whatever the pattern. ``dropout`` is the probability applied to the attention weights (0 when evaluating).
    Raises ShapeError when the stream does not fit the context.
    """
    check_stream(q, context)
    heads = q.shape[2]

    def build() -> Tensor:
        visible = dense_mask(context.layout, context.role, pattern, *context.on_host())
        # Expanded over the heads: adding a broadcast mask is several times slower on a CPU.
        mask = paddle.to_tensor(additive(visible)).astype(q.dtype).unsqueeze(1)  # [B, 1, L, L]
        return paddle.expand(mask, [-1, heads, -1, -1]).contiguous()  # [B, N, L, L]

    mask = context.once(("dense", pattern, heads, q.dtype), build)
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # [B, N, L, H]
    scores = functional.matmul(q * (1 / math.sqrt(q.shape[-1])), k, transpose_y=True)  # [B, N, L, L]
    weights = functional.softmax(scores + mask)
    if dropout:
        weights = F.dropout(weights, dropout)
    return functional.matmul(weights, v).transpose([0, 2, 1, 3])  # [B, L, N, H]
