"""Which arithmetic products run in: float32, or bf16 products of float32 tensors with float32 sums; and whether maps
that hold int8 weights (:mod:`vilg.kernels.onednn.int8`) use them."""
import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator

from vilg.kernels.onednn.library import Handle, Library, Unavailable, load

_AMX, _AVX512_BF16 = 0xC00, 0x80
_STRICT, _BF16 = 0, 1
BINARY_ADD, BINARY_MUL = 0x1FFF0, 0x1FFF1
"""dnnl_alg_kind_t of the binary operations."""
_LINEAR, _SWISH, _GELU_ERF = 0x26, 0x2C, 0x31
_SUM = -1


class _State:
    bf16 = False
    method = "none"
    int8 = False


class _Scope(threading.local):
    exact = False


_scope = _Scope()


def bf16_method() -> str:
    """How this machine gains from bf16: "fpmath" (AMX: the kernels convert as they load), "cast" (AVX-512 BF16: the
    operands are cast first) or "none"."""
    try:
        isa = load().isa
    except Unavailable:
        return "none"
    if isa & _AMX == _AMX:
        return "fpmath"
    return "cast" if isa & _AVX512_BF16 else "none"


def use_bf16(on: bool) -> None:
    """Turn bf16 products on or off, for the whole process."""
    _State.method = bf16_method() if on else "none"
    _State.bf16 = on


def use_int8(on: bool) -> None:
    """Let linear maps that hold int8 weights use them, or not, for the whole process."""
    _State.int8 = on


def int8() -> bool:
    """Do linear maps that hold int8 weights use them?"""
    return _State.int8 and not _scope.exact


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Inside this context products of this thread run in float32, whatever was asked for. For what a rounding would
    turn into another answer: the code of a picture's patch has to be the same in every run."""
    before, _scope.exact = _scope.exact, True
    try:
        yield
    finally:
        _scope.exact = before


def exact() -> bool:
    """Is this within :func:`full_precision`?"""
    return _scope.exact


@contextlib.contextmanager
def as_forward(was_exact: bool) -> Iterator[None]:
    """A gradient is computed as its forward was, within :func:`full_precision` or not, wherever it is asked for."""
    before, _scope.exact = _scope.exact, was_exact
    try:
        yield
    finally:
        _scope.exact = before


def _method() -> str:
    return "none" if _scope.exact else _State.method


def bf16() -> bool:
    """Were bf16 products asked for?"""
    return _State.bf16


def gains() -> bool:
    """Do products run in bf16, whichever way?"""
    return _method() != "none"


def casts() -> bool:
    """Are operands to be cast to bf16 before a product?"""
    return _method() == "cast"


def fpmath() -> int:
    """The library's floating-point math mode."""
    return _BF16 if _method() == "fpmath" else _STRICT


@functools.lru_cache(maxsize=8)
def attributes(mode: int, accumulate: bool = False) -> Handle:
    """Primitive attributes with the math mode set; ``accumulate`` adds to what the destination holds."""
    library = load()
    api = library.api
    result = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    Library.check(api.dnnl_primitive_attr_set_fpmath_mode(result.value, mode), "fpmath mode")
    if accumulate:
        sums = Handle("post_ops", api.dnnl_post_ops_create)
        Library.check(api.dnnl_post_ops_append_sum(sums.value, ctypes.c_float(1.0), ctypes.c_int32(0), 0), "sum")
        Library.check(api.dnnl_primitive_attr_set_post_ops(result.value, sums.value), "post-ops")
    return result


Step = tuple[int] | tuple[int, Handle] | tuple[int, float, float]
"""What a chain does to the result: a sum with what the destination holds, a binary operation with the operand of a
descriptor, or a map with (α, β)."""


def linear_step(alpha: float, beta: float) -> Step:
    """α · result + β."""
    return _LINEAR, alpha, beta


def swish_step() -> Step:
    """result · sigmoid(result)."""
    return _SWISH, 1.0, 0.0


def gelu_step() -> Step:
    """GELU by erf."""
    return _GELU_ERF, 0.0, 0.0


def sum_step() -> Step:
    """result + what the destination holds."""
    return (_SUM,)


def chain(*steps: Step) -> Handle:
    """Attributes that apply ``steps`` to the result of a primitive, in order."""
    library = load()
    api = library.api
    result = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    operations = Handle("post_ops", api.dnnl_post_ops_create)
    for algorithm, *details in steps:
        if algorithm == _SUM:
            status = api.dnnl_post_ops_append_sum(operations.value, ctypes.c_float(1.0), ctypes.c_int32(0), 0)
        elif isinstance(details[0], Handle):
            status = api.dnnl_post_ops_append_binary(operations.value, algorithm, details[0].value)
        else:
            status = api.dnnl_post_ops_append_eltwise(operations.value, algorithm, *map(ctypes.c_float, details))
        Library.check(status, "post-op")
    Library.check(api.dnnl_primitive_attr_set_post_ops(result.value, operations.value), "post-ops")
    return result


def post_operand(position: int) -> int:
    """The argument name of the other operand of the step at ``position``."""
    return 32768 * (position + 1) | 2
