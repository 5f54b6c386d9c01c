"""The operators of the house: one linear, softmax, conv2d … that every model uses.

On a CPU, contiguous or not, float32 tensors go to the oneDNN that ships inside the Paddle wheel
(:mod:`vilg.kernels.onednn`), and some of them to compiled loops (:mod:`vilg.kernels.jit`) where those are on: SiLU,
group norm,
and, in a process that records gradients, GELU, layer norm, softmax and the gradients of biases. Other data types, empty
tensors, accelerators, and machines where the fast path is off go to stock Paddle. All give the same values and
gradients; the fast path has no second derivatives (:func:`stock_operators` does).
"""
import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from vilg.kernels.jit import elementwise as loop_maps, groups as loop_norms, rows as loop_rows, switch as loops
from vilg.kernels.onednn import (
    conv, elementwise, groups as group_norms, int8, losses, matmul as products, norm, precision, resampling,
)
from vilg.kernels.onednn.autograd import wants_gradient
from vilg.kernels.onednn.precision import full_precision
from vilg.kernels.onednn.switch import active, stock_operators
from vilg.machine import process
from vilg.nn import memory_savers

__all__ = ["linear", "linear_after_gelu", "takes_int8", "int8_is_on", "linear_int8", "matmul", "layer_norm", "softmax",
           "gelu", "quick_gelu", "silu", "group_norm", "conv2d", "nearest_twice", "cross_entropy",
           "linear_cross_entropy", "full_precision", "start_training", "stock_operators"]

_FLOAT32, _HALF = paddle.float32, (paddle.bfloat16, paddle.float16)
_ONLY_CPU = not (paddle.is_compiled_with_cuda() or paddle.is_compiled_with_xpu()
                 or paddle.device.get_all_custom_device_type())


def _fast(x: Tensor, *others: Tensor | None) -> bool:
    """May these operands take the fast path?"""
    if not (active() and _usable(x) and paddle.in_dynamic_mode()):
        return False
    if not (_ONLY_CPU or x.place.is_cpu_place()):
        return False
    return all(other is None or _usable(other) for other in others)


def _fits(x: Tensor, size: int) -> bool:
    """Is x a vector of ``size``? Kernels see addresses alone: what does not fit goes to stock Paddle, which refuses it.
    """
    return x.shape == [size]


def _usable(x: Tensor) -> bool:
    dtype = x.dtype
    return (dtype is _FLOAT32 or dtype == _FLOAT32) and 0 not in x.shape  # comparing takes longer than identity


def start_training() -> None:
    """Load now what the first recorded operator would load, so that a training's first step runs as its others do."""
    if _ONLY_CPU or paddle.device.get_device() == "cpu":
        loops.start_training()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] · weight [in, out] + bias [out] → [..., out]."""
    if not (_fast(x, weight, bias) and _maps(x, weight, bias)):
        return F.linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        sums = loop_rows.add_column_sums if bias is not None and loops.use_in_training(True) else None
        return products.Linear.apply(x, weight, bias, sums)
    return products.linear(x, weight, bias)


def takes_int8(x: Tensor, weight: Tensor) -> bool:
    """Are int8 products on, and is x one for them? Nothing is recorded then: gradients are those of float weights."""
    return precision.int8() and _fast(x) and not wants_gradient(x, weight) and x.shape[-1] == weight.shape[0]


def int8_is_on() -> bool:
    """Do maps that hold int8 weights beside float ones use them, where nothing is recorded?"""
    return precision.int8()


def linear_int8(x: Tensor, weight: int8.Int8Weight) -> Tensor:
    """x [..., in] · weight + bias → [..., out], for an x that :func:`takes_int8` takes."""
    return int8.linear(x, weight)


def linear_after_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear(gelu(x), weight, bias)``. The fast path, and half precision on a device, keep x alone for the gradient,
    and compute its GELU again."""
    if _saves_memory(x, weight, bias):
        return memory_savers.LinearAfterGelu.apply(x, weight, bias)
    if not (_fast(x, weight, bias) and _maps(x, weight, bias) and wants_gradient(x, weight, bias)):
        return linear(gelu(x), weight, bias)
    loop = loops.use_in_training(True)
    sums = loop_rows.add_column_sums if bias is not None and loop else None
    return products.LinearAfterGelu.apply(x, weight, bias, loop_maps if loop else elementwise, sums)


def _saves_memory(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Is this a training in half precision on a device, whose memory is worth computing things twice?"""
    return (x.dtype in _HALF and x.dtype == weight.dtype and not x.place.is_cpu_place() and _maps(x, weight, bias)
            and 0 not in x.shape and paddle.in_dynamic_mode() and wants_gradient(x, weight, bias))


def _maps(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    shape = weight.shape
    return len(shape) == 2 and x.shape[-1:] == shape[:1] and (bias is None or _fits(bias, shape[1]))


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Batched product over the last two axes; the leading axes must be equal."""
    if not (_fast(x, y) and _multiply(x.shape, y.shape, transpose_x, transpose_y)):
        return paddle.matmul(x, y, transpose_x, transpose_y)
    if wants_gradient(x, y):
        return products.Matmul.apply(x, y, transpose_x, transpose_y)
    return products.matmul(x, y, transpose_x, transpose_y)


def _multiply(x: list[int], y: list[int], transpose_x: bool, transpose_y: bool) -> bool:
    if len(x) < 2 or len(y) < 2 or x[:-2] != y[:-2]:
        return False
    return x[-2 if transpose_x else -1] == y[-1 if transpose_y else -2]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Normalise the last axis of x [..., D]; weight and bias are [D]."""
    if not (_fast(x, weight, bias) and weight.shape == bias.shape == x.shape[-1:]):
        return _stock_layer_norm(x, weight, bias, epsilon)
    gradient = wants_gradient(x, weight, bias)
    normalise = loop_rows.normalise if loops.use_in_training(gradient) else norm.normalise
    operator = norm.LayerNorm.apply if gradient else norm.layer_norm
    return operator(x, weight, bias, epsilon, normalise)


def _stock_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    if not weight.stop_gradient or x.stop_gradient:
        return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon)
    # On a CPU Paddle 3.3 gives x the gradient of weights that are 1 where the weight itself asks for none.
    return F.layer_norm(x, [x.shape[-1]], None, None, epsilon) * weight + bias


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last axis."""
    if not _fast(x) or not x.ndim:
        return F.softmax(x, axis=-1)
    gradient = wants_gradient(x)
    how = loop_rows if loops.use_in_training(gradient) else elementwise
    return elementwise.Softmax.apply(x, how.softmax, how.softmax_gradient) if gradient else how.softmax(x)


def gelu(x: Tensor, approximate: bool = False) -> Tensor:
    """Gaussian error linear unit, by erf, or by tanh when ``approximate``."""
    if not _fast(x):
        return F.gelu(x, approximate)
    gradient = wants_gradient(x)
    if not approximate and loops.use_in_training(gradient):
        return loop_maps.Map.apply(x, loop_maps.GELU) if gradient else loop_maps.mapped(x, loop_maps.GELU)
    return _mapped(x, elementwise.GELU_TANH if approximate else elementwise.GELU_ERF)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), also called swish."""
    if not _fast(x):
        return F.silu(x)
    gradient = wants_gradient(x)
    if loops.use(math.prod(x.shape), gradient):
        return loop_maps.Map.apply(x, loop_maps.SILU) if gradient else loop_maps.mapped(x, loop_maps.SILU)
    return _mapped(x, elementwise.SWISH)


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), as in CLIP."""
    if not _fast(x):
        return F.silu(x * elementwise.QUICK) * (1 / elementwise.QUICK)
    gradient = wants_gradient(x)
    if loops.use_in_training(gradient):
        return loop_maps.Map.apply(x, loop_maps.QUICK_GELU) if gradient else loop_maps.mapped(x, loop_maps.QUICK_GELU)
    return _mapped(x, elementwise.QUICK_GELU)


def _mapped(x: Tensor, algorithm: elementwise.Algorithm) -> Tensor:
    return elementwise.Map.apply(x, algorithm) if wants_gradient(x) else elementwise.mapped(x, algorithm)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float = 1e-6,
               silu: bool = False) -> Tensor:
    """Normalise x [B, C, H, W] over each of ``groups`` runs of channels, then apply SiLU if asked.

    weight and bias are [C]. With ``silu`` the fast path does both at once and keeps only x for the backward.
    """
    if not (_fast(x, weight, bias) and x.ndim == 4 and x.shape[1] % groups == 0
            and _fits(weight, x.shape[1]) and _fits(bias, x.shape[1])):
        y = F.group_norm(x, groups, epsilon, weight, bias)
        return F.silu(y) if silu else y
    gradient = wants_gradient(x, weight, bias)
    # A loop takes a run of channels at a time: fewer runs than threads are better shared by the library.
    looped = x.shape[0] * groups >= process.threads() and loops.use(math.prod(x.shape), gradient)
    norms = loop_norms if looped else group_norms
    operator = norms.GroupNorm.apply if gradient else norms.group_norm
    return operator(x, groups, weight, bias, epsilon, silu)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1,
           padding: int | tuple[int, int, int, int] = 0) -> Tensor:
    """x [B, C, H, W] with weight [out, C, kh, kw]; padding is one number or (top, bottom, left, right)."""
    if not (_fast(x, weight, bias) and x.ndim == weight.ndim == 4 and x.shape[1] == weight.shape[1]
            and (bias is None or _fits(bias, weight.shape[0]))):
        return F.conv2d(x, weight, bias, stride, padding if isinstance(padding, int) else list(padding))
    sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
    if wants_gradient(x, weight, bias):
        return conv.Conv2D.apply(x, weight, bias, stride, sides)
    return conv.conv2d(x, weight, bias, stride, sides)


def nearest_twice(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, C, 2H, 2W], every value four times."""
    if not _fast(x):
        batch, channels, height, width = x.shape
        x = x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2])
        return x.reshape([batch, channels, 2 * height, 2 * width])
    return resampling.NearestTwice.apply(x) if wants_gradient(x) else resampling.nearest_twice(x)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of labels [...] under logits [..., V], not reduced: [...].

    A label of -100 has no loss; any other that is not a class raises ValueError. Half-precision logits are taken as
    float32, and so is the loss: its logarithm of a sum wants the digits, whatever precision is on around it.
    """
    if not _fast(logits) or labels.dtype != paddle.int64 or labels.shape != logits.shape[:-1]:
        logits = logits.astype("float32") if logits.dtype in _HALF else logits
        with paddle.amp.auto_cast(enable=False):
            return F.cross_entropy(logits, labels, reduction="none")
    if wants_gradient(logits):
        return losses.CrossEntropy.apply(logits, labels)
    return losses.cross_entropy(logits, labels)


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """``cross_entropy(linear(x, weight, bias), labels)`` of x [T, D], labels [T] → [T].

    The logits are held once at most (not at all when no gradient is asked for, nor where half precision on a device
    computes them again), and never their gradient.
    """
    if _saves_memory(x, weight, bias) and labels.shape == x.shape[:-1] and x.ndim == 2:
        return memory_savers.LinearCrossEntropy.apply(x, weight, bias, labels)
    if not (_fast(x, weight, bias) and _maps(x, weight, bias)) or labels.dtype != paddle.int64 \
            or labels.shape != x.shape[:-1]:
        return cross_entropy(linear(x, weight, bias), labels)
    if wants_gradient(x, weight, bias):
        sums = (loop_rows if loops.use_in_training(True) else products).add_column_sums
        return losses.LinearCrossEntropy.apply(x, weight, bias, labels, sums)
    return losses.linear_cross_entropy(x, weight, bias, labels)
