"""What both towers of a dual encoder are made of: blocks in either order of norms, and attention under a key mask."""
from typing import Literal

import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.nn import functional
from vilg.nn.attention.packed import HiddenKeys, packed_attention
from vilg.nn.layers import LayerNorm, Linear, LinearAfterGelu

# Added to the score of a padded key, as ERNIE does: exp() of it is zero, and half precision can hold it.
MASKED_KEY = -1e4


@configclass
class TowerConfig:
    """What both towers have in common; ``activation: quick_gelu`` is x · sigmoid(1.702 x)."""

    layers: int
    width: int
    heads: int
    mlp_ratio: int = 4
    norm_order: Literal["pre", "post"] = "pre"  # post: LN(x + f(x)), as in BERT; pre adds one norm behind the stack
    norm_eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    dropout: float = 0.0  # on embeddings, attention weights and both residual branches
    frozen: bool = False  # no gradient, no dropout: the tower stays as it was loaded

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps must be above 0, not {self.norm_eps}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def dropout_rate(self) -> float:
        """The dropout that is applied in training: none in a frozen tower."""
        return 0.0 if self.frozen else self.dropout


class LinearAfterQuickGelu(Linear):
    """The linear map of quick-GELU(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        return super().forward(functional.quick_gelu(x))


_AFTER = {"gelu": LinearAfterGelu, "quick_gelu": LinearAfterQuickGelu}


class TowerBlock(nn.Layer):
    """Attention, then a two-layer perceptron, each with its residual, on x [B, L, D]; norms before or after them."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.heads, self.dropout, self.post = config.heads, config.dropout_rate, config.norm_order == "post"
        width, eps, inner = config.width, config.norm_eps, config.mlp_ratio * config.width
        into_residual = 0.02 / (2 * config.layers) ** 0.5
        self.norm1 = LayerNorm(width, eps)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width, std=into_residual)
        self.norm2 = LayerNorm(width, eps)
        self.fc1 = Linear(width, inner)
        self.fc2 = _AFTER[config.activation](inner, width, std=into_residual)

    def forward(self, x: Tensor, hidden: HiddenKeys | None = None, first_only: bool = False) -> Tensor:
        """x [B, L, D] → [B, L, D], seeing all keys but ``hidden`` ones.

        With ``first_only`` the first row's result alone: [B, 1, D]. In a last block it costs a quarter of the whole.
        """
        rows = 1 if first_only else x.shape[1]
        if self.post:
            x = self.norm1(x[:, :rows] + self._drop(self._attention(x, hidden, rows)))
            return self.norm2(x + self._drop(self.fc2(self.fc1(x))))
        x = x[:, :rows] + self._drop(self._attention(self.norm1(x), hidden, rows))
        return x + self._drop(self.fc2(self.fc1(self.norm2(x))))

    def _attention(self, x: Tensor, hidden: HiddenKeys | None, rows: int) -> Tensor:
        """What the first ``rows`` queries R of x [B, L, D] see: [B, R, D]."""
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape([batch, length, 3, self.heads, width // self.heads])  # [B, L, 3, N, H]
        seen = packed_attention(qkv, rows, hidden, self.dropout if self.training else 0.0)  # [B, R, N, H]
        return self.proj(seen.reshape([batch, rows, width]))  # [B, R, D]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class TowerStack(nn.Layer):
    """The blocks of a tower, and behind those in pre order the norm that post order has in its last block."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.blocks = nn.LayerList([TowerBlock(config) for _ in range(config.layers)])
        self.norm = LayerNorm(config.width, config.norm_eps) if config.norm_order == "pre" else None

    def forward(self, x: Tensor, padded: Tensor | None = None, first_only: bool = False) -> Tensor:
        """x [B, L, D] → [B, L, D], or with ``first_only`` [B, 1, D]; keys are hidden where ``padded`` [B, L] holds."""
        hidden = None if padded is None else HiddenKeys(padded.astype(x.dtype) * MASKED_KEY)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block(x, hidden, first_only and number == last)
        return x if self.norm is None else self.norm(x)


class Tower(nn.Layer):
    """A tower that its config can freeze."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.config = config

    def freeze(self) -> None:
        """Called by a tower once its parameters are made: they take no gradient where the config freezes them."""
        for parameter in self.parameters() if self.config.frozen else ():
            parameter.stop_gradient = True

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on the embeddings [B, L, D]."""
        return F.dropout(x, self.config.dropout_rate) if self.config.dropout_rate and self.training else x
