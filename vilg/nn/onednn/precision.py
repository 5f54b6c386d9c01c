"""Which arithmetic products run in: float32, or bf16 products of float32 tensors with float32 sums."""
import ctypes
import functools

from vilg.nn.onednn.library import Handle, Library, Unavailable, load

_AMX, _AVX512_BF16 = 0xC00, 0x80
_STRICT, _BF16 = 0, 1
BINARY_ADD, BINARY_MUL = 0x1FFF0, 0x1FFF1
"""dnnl_alg_kind_t of the binary operations."""


class _State:
    bf16 = False
    method = "none"


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


def bf16() -> bool:
    """Were bf16 products asked for?"""
    return _State.bf16


def gains() -> bool:
    """Do products run in bf16, whichever way?"""
    return _State.method != "none"


def casts() -> bool:
    """Are operands to be cast to bf16 before a product?"""
    return _State.method == "cast"


def fpmath() -> int:
    """The library's floating-point math mode."""
    return _BF16 if _State.method == "fpmath" else _STRICT


@functools.lru_cache(maxsize=8)
def attributes(mode: int, accumulate: bool = False) -> Handle:
    """Primitive attributes with the math mode set; ``accumulate`` adds to what the destination holds."""
    library = load()
    api = library.api
    result = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    Library.check(api.dnnl_primitive_attr_set_fpmath_mode(result.value, mode), "fpmath mode")
    if accumulate:
        chain = Handle("post_ops", api.dnnl_post_ops_create)
        Library.check(api.dnnl_post_ops_append_sum(chain.value, ctypes.c_float(1.0), ctypes.c_int32(0), 0), "sum")
        Library.check(api.dnnl_primitive_attr_set_post_ops(result.value, chain.value), "post-ops")
    return result


def then_binary(*steps: tuple[int, Handle]) -> Handle:
    """Attributes that apply binary operations (algorithm, descriptor of the other operand) to the result, in order."""
    library = load()
    api = library.api
    result = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    chain = Handle("post_ops", api.dnnl_post_ops_create)
    for algorithm, operand in steps:
        Library.check(api.dnnl_post_ops_append_binary(chain.value, algorithm, operand.value), "binary post-op")
    Library.check(api.dnnl_primitive_attr_set_post_ops(result.value, chain.value), "post-ops")
    return result


def post_operand(position: int) -> int:
    """The argument name of the other operand of the post-op at ``position``."""
    return 32768 * (position + 1) | 2
