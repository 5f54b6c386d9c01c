"""The operators of the house: one linear, softmax, conv2d … that every model uses."""
import paddle
import paddle.nn.functional as F
from paddle import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] · weight [in, out] + bias [out] → [..., out]."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched product over the last two axes; the leading axes must be equal."""
    return paddle.matmul(x, y, transpose_x, transpose_y)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Normalise the last axis of x [..., D]; weight and bias are [D]."""
    return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return F.softmax(x, axis=-1)


def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """Gaussian error linear unit, by erf, or by tanh when ``approximate``."""
    return F.gelu(x, approximate)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called swish."""
    return F.silu(x)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Normalise x [B, C, H, W] over each of ``groups`` runs of channels; weight and bias are [C]."""
    return F.group_norm(x, groups, epsilon, weight, bias)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1,
           padding: int | tuple[int, int, int, int] = 0) -> Tensor:
    """x [B, C, H, W] with weight [out, C, kh, kw]; padding is one number or (top, bottom, left, right)."""
    return F.conv2d(x, weight, bias, stride, padding if isinstance(padding, int) else list(padding))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of labels [...] under logits [..., V], not reduced: [...]."""
    return F.cross_entropy(logits, labels, reduction="none")


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """``cross_entropy(linear(x, weight, bias), labels)`` of x [T, D], labels [T] → [T], without keeping all logits."""
    return cross_entropy(linear(x, weight, bias), labels)
