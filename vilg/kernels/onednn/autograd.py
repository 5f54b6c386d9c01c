"""What the operators share on Paddle's side: contiguous addresses, and the refusal of second derivatives."""
import ctypes
import math

import numpy as np
import paddle
from paddle import Tensor


_PLACE = paddle.CPUPlace()
FLOAT32, BFLOAT16 = paddle.float32, paddle.bfloat16


class DoubleBackwardError(RuntimeError):
    """A derivative of a derivative was asked of an operator that has none."""


def refuse_double_backward() -> None:
    """Raise DoubleBackwardError inside a backward that is itself being recorded (``create_graph=True``)."""
    if paddle.is_grad_enabled():
        raise DoubleBackwardError(
            "the CPU fast path has no second derivatives: wrap the forward in `vilg.runtime.stock_operators()`, or set "
            "VILG_ONEDNN=0, to use create_graph=True")


def new(shape: list[int], dtype: paddle.dtype = FLOAT32) -> Tensor:
    """An uninitialised tensor; ``paddle.empty`` does the same in three times as long, which small operators feel."""
    return paddle._C_ops.empty(shape, dtype, _PLACE)


def memory(x: Tensor) -> np.ndarray:
    """A contiguous CPU tensor's own memory (float32 or int64), flat, as NumPy sees it."""
    kind = ctypes.c_float if x.dtype == FLOAT32 else ctypes.c_int64
    size = math.prod(x.shape)  # x.size takes three times as long as all the rest
    return np.ctypeslib.as_array((kind * size).from_address(x.data_ptr()))


def contiguous(x: Tensor) -> Tensor:
    """``x`` itself when it lies densely in memory, else a copy."""
    return x if x.is_contiguous() else x.contiguous()


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Is autograd recording, and is any of the tensors part of it?"""
    if not paddle.is_grad_enabled():
        return False
    for x in tensors:  # any() over a generator takes twice as long, which small operators feel
        if x is not None and not x.stop_gradient:
            return True
    return False
