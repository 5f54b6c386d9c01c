"""Layers that own their parameters and run on :mod:`vilg.nn.functional`."""
import numpy as np
import paddle
from paddle import Tensor, nn

from vilg.kernels.onednn.int8 import GELU_LEAST, Int8Weight
from vilg.nn import functional


def as_table(parameter: Tensor) -> Tensor:
    """Mark ``parameter`` as a table, whose rows are looked up or added and never multiplied with; returns it.

    The layer that creates a parameter says so, for weight decay, which would only pull such rows towards zero.
    """
    parameter.is_table = True
    return parameter


def is_table(parameter: Tensor) -> bool:
    """Whether the layer that created ``parameter`` marked it by :func:`as_table`."""
    return getattr(parameter, "is_table", False)


class Linear(nn.Layer):
    """A linear map [..., in] → [..., out] whose weight [in, out] starts as N(0, std²) and whose bias starts at zero.

    ``int8``: its weight in int8, which it uses where :func:`vilg.nn.functional.takes_int8` says so
    (:meth:`round_to_int8`), or always, where it holds no other (:meth:`hold_int8`).
    """

    least = 0.0
    """What it reads is never below this, where it is not 0."""

    def __init__(self, in_features: int, out_features: int, std: float = 0.02, bias: bool = True):
        super().__init__()
        self.inputs, self.outputs = in_features, out_features
        self.weight = self.create_parameter(
            [in_features, out_features], default_initializer=nn.initializer.Normal(std=std))
        self.bias = self.create_parameter([out_features], is_bias=True) if bias else None
        self.int8: Int8Weight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._takes_int8(x):
            return functional.linear_int8(x, self.int8)
        return functional.linear(x, self.weight, self.bias)

    def round_to_int8(self) -> None:
        """Hold the weight in int8 as it is now, for drawing; a weight that changes later is not seen."""
        if self.weight is not None:
            bias = None if self.bias is None else self.bias.numpy()
            self.int8 = Int8Weight.of(self.weight.numpy(), bias, self.least)

    def hold_int8(self, values: np.ndarray, scales: np.ndarray) -> None:
        """Hold int8 values [in, out] and scales [out] alone from here on, beside the bias as it is now: for drawing
        from a folder in int8. The float weight is let go."""
        self.int8 = Int8Weight(values, scales, None if self.bias is None else self.bias.numpy(), self.least)
        self.weight = None

    def in_int8(self) -> bool:
        """Does it compute in int8 where nothing is recorded?"""
        return self.int8 is not None and (self.weight is None or functional.int8_is_on())

    def _takes_int8(self, x: Tensor) -> bool:
        return self.int8 is not None and (self.weight is None or functional.takes_int8(x, self.weight))


class LinearAfterGelu(Linear):
    """The linear map of GELU(x): [..., in] → [..., out]."""

    least = GELU_LEAST

    def forward(self, x: Tensor) -> Tensor:
        if self._takes_int8(x):
            return functional.linear_int8(functional.gelu(x), self.int8)
        return functional.linear_after_gelu(x, self.weight, self.bias)


class OutputHead(Linear):
    """A linear map to the logits of a vocabulary: [..., D] → [..., V]; or, where labels are given, to the loss.

    A training reaches parameters by calling the layer that owns them: where they are sharded, that is when they are
    gathered.
    """

    def forward(self, x: Tensor, labels: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Logits, or with ``labels`` [T] (-100: none) the cross-entropy of x [T, D] at them: [T].

        ``smoothing`` ε gives 1 - ε of the target to the label and ε evenly to the vocabulary (arXiv:1512.00567).
        """
        if labels is None:
            return super().forward(x)
        if self._takes_int8(x):
            return functional.cross_entropy(functional.linear_int8(x, self.int8), labels)
        loss = functional.linear_cross_entropy(x, self.weight, self.bias, labels)
        return loss + smoothing * self._above_the_mean(x, labels) if smoothing else loss

    def _above_the_mean(self, x: Tensor, labels: Tensor) -> Tensor:
        """How far the label's logit lies above the mean of all, [T]; 0 where there is no label. The part of a smoothed
        loss that is linear in the logits needs but one column of the weight a row, and the columns' mean."""
        rows = paddle.clip(labels, min=0)
        with paddle.amp.auto_cast(enable=False):
            weight = self.weight.astype("float32")
            column = paddle.gather(weight, rows, axis=1).transpose([1, 0]) - weight.mean(1)  # [T, D]
            above = (x.astype("float32") * column).sum(-1)
            if self.bias is not None:
                bias = self.bias.astype("float32")
                above = above + paddle.gather(bias, rows) - bias.mean()
            return paddle.where(labels >= 0, above, paddle.zeros_like(above))


class LayerNorm(nn.Layer):
    """Layer normalisation over the last axis [..., D]."""

    def __init__(self, width: int, epsilon: float = 1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([width], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight, self.bias, self.epsilon)


class GroupNorm(nn.Layer):
    """Group normalisation of [B, C, H, W], followed by SiLU where the call asks for it (cheaper than on its own)."""

    def __init__(self, channels: int, groups: int = 32, epsilon: float = 1e-6):
        super().__init__()
        self.groups, self.epsilon = groups, epsilon
        self.weight = self.create_parameter([channels], default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([channels], is_bias=True)

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.epsilon, silu)


class Conv2D(nn.Layer):
    """A convolution [B, C, H, W] → [B, out, H', W']; padding is one number or (top, bottom, left, right).

    Weight and bias start uniform in ±1/√fan-in, or, with ``std``, the weight as N(0, std²) and the bias as zero.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1,
                 padding: int | tuple[int, int, int, int] = 0, bias: bool = True, std: float | None = None):
        super().__init__()
        self.stride, self.padding = stride, padding
        bound = (in_channels * kernel * kernel) ** -0.5
        uniform = nn.initializer.Uniform(-bound, bound)
        start, bias_start = (uniform, uniform) if std is None else (nn.initializer.Normal(std=std),
                                                                    nn.initializer.Constant(0.0))
        self.weight = self.create_parameter([out_channels, in_channels, kernel, kernel], default_initializer=start)
        self.bias = self.create_parameter([out_channels], default_initializer=bias_start) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Embedding(nn.Layer):
    """A table [rows, D] looked up by integer ids of any shape."""

    def __init__(self, rows: int, width: int, std: float = 0.02):
        super().__init__()
        self.weight = as_table(
            self.create_parameter([rows, width], default_initializer=nn.initializer.Normal(std=std)))

    def forward(self, ids: Tensor) -> Tensor:
        return paddle.nn.functional.embedding(ids, self.weight)
