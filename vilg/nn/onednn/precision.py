"""Which arithmetic products run in: float32, or bf16 products of float32 tensors with float32 sums."""
import functools

from vilg.nn.onednn.library import Handle, Unavailable, load

_AMX, _AVX512_BF16 = 0xC00, 0x80
_STRICT, _BF16 = 0, 1


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


def casts() -> bool:
    """Are operands to be cast to bf16 before a product?"""
    return _State.method == "cast"


def fpmath() -> int:
    """The library's floating-point math mode."""
    return _BF16 if _State.method == "fpmath" else _STRICT


@functools.lru_cache(maxsize=4)
def attributes(mode: int) -> Handle:
    """Primitive attributes with the math mode set."""
    api = load().api
    attributes = Handle("primitive_attr", api.dnnl_primitive_attr_create)
    api.dnnl_primitive_attr_set_fpmath_mode(attributes.value, mode)
    return attributes
