"""Paddle's AMP level O2 on the CPU, for tests only: real half-precision weights, masters and gradients.

``paddle.amp.decorate`` and ``auto_cast`` do nothing on a CPU, and most operators have no half-precision kernel there.
Here decorate does what it does on a device (it casts the layers and switches masters on), and inside ``auto_cast`` at
level O2 every operator that the models of these tests call rounds its operands and its result to half precision and
computes in float32 between, whatever their type, as tensor cores do. Outside it, half-precision operands are computed
in float32 and rounded likewise, and float32 ones are left alone. AdamW moves the masters, and the weights are their
rounding. What stays untested: the kernels of a device, and streams.
"""
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import paddle
import paddle.optimizer.adamw
from paddle import Tensor, _C_ops
from paddle.amp.auto_cast import _set_multi_precision, amp_initialize

HALF = (paddle.bfloat16, paddle.float16)
OPERATORS = ("linear", "layer_norm", "gelu", "matmul", "mean", "mean_all", "sum", "dropout", "add", "subtract",
             "multiply", "square", "softmax", "abs", "log", "exp", "cross_entropy_with_softmax")
MOVES = ("concat", "split", "split_with_num", "unbind", "slice", "gather", "embedding", "stack", "expand", "where",
         "transpose", "scatter", "scale", "strided_slice", "index_select")
"""What moves values and has no half-precision kernel, or gradient, on a CPU; transformers use it."""
METHODS = ("__add__", "__sub__", "__radd__", "__mul__", "__rmul__", "__truediv__", "square", "sum", "mean", "abs")


class Cast:
    """What ``auto_cast`` asks for now, and how often it was entered."""

    dtype: paddle.dtype | None = None
    entered = 0


@contextlib.contextmanager
def auto_cast(enable: bool = True, *_: Any, level: str = "O1", dtype: str = "float16", **__: Any) -> Iterator[None]:
    before, Cast.entered = Cast.dtype, Cast.entered + enable
    Cast.dtype = getattr(paddle, dtype) if enable and level == "O2" else None
    try:
        yield
    finally:
        Cast.dtype = before


def decorate(module: paddle.nn.Layer, optimizer: Any, level: str, dtype: str) -> tuple[paddle.nn.Layer, Any]:
    """What ``paddle.amp.decorate`` does where the device has half precision."""
    assert level == "O2"
    amp_initialize([module], dtype, None)
    if optimizer is not None:
        _set_multi_precision(optimizer, True)
    return module, optimizer


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (*HALF, paddle.float32)


def rounded(operator: Callable[..., Any]) -> Callable[..., Any]:
    """``operator`` as a device would run it in half precision."""
    def run(*arguments: Any, **options: Any) -> Any:
        given = [each for value in (*arguments, *options.values())
                 for each in (value if isinstance(value, (list, tuple)) else [value])]
        halves = [value.dtype for value in given if _floating(value) and value.dtype in HALF]
        dtype = Cast.dtype or (halves[0] if halves else None)
        if dtype is None or not any(map(_floating, given)):
            return operator(*arguments, **options)

        def operand(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(operand, value))
            if not _floating(value):
                return value
            return (value if value.dtype in HALF or Cast.dtype is None else value.astype(dtype)).astype("float32")

        out = operator(*map(operand, arguments), **{name: operand(value) for name, value in options.items()})
        if isinstance(out, (tuple, list)):
            return type(out)(value.astype(dtype) if _floating(value) else value for value in out)
        return out.astype(dtype) if _floating(out) else out

    return run


def adamw(plain: Callable[..., Any]) -> Callable[..., Any]:
    """AdamW's kernel for half-precision parameters: it moves the master, and the parameter is its rounding."""
    def run(parameter: Tensor, gradient: Tensor, *rest: Any) -> Any:
        if parameter.dtype not in HALF:
            return plain(parameter, gradient.astype("float32"), *rest)
        *states, master, found = rest[:8]
        settings = list(rest[8:])
        assert settings[8] and master is not None, "half-precision parameters need float32 masters"
        settings[8] = False
        result = plain(master, gradient.astype("float32"), *states, None, found, *settings)
        parameter.set_value(master.astype(parameter.dtype))
        return result

    return run


class _Operators:
    """Paddle's operators with AdamW replaced, for its optimizer's module alone."""

    adamw_ = staticmethod(adamw(_C_ops.adamw_))

    def __getattr__(self, name: str) -> Any:
        return getattr(_C_ops, name)


def install(put: Callable[[Any, str, Any], None] = setattr, moves: bool = False) -> None:
    """Replace the operators, by ``put(object, name, value)``: for the rest of this process unless it knows better.
    ``moves``: those of :data:`MOVES` too."""
    for name in OPERATORS:
        put(_C_ops, name, rounded(getattr(_C_ops, name)))
    for name in MOVES if moves else ():
        put(_C_ops, name, rounded(getattr(_C_ops, name)))
    for name in METHODS:
        put(paddle.Tensor, name, rounded(getattr(paddle.Tensor, name)))
    put(paddle, "add", rounded(paddle.add))
    put(paddle.optimizer.adamw, "_C_ops", _Operators())
    put(paddle.amp, "decorate", decorate)
    put(paddle.amp, "auto_cast", auto_cast)
