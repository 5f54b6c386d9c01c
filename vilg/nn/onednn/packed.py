"""Linear maps of a few rows with weights laid out once, for decoding.

A product of few rows reads far more weights than anything else, so their layout (and, in bf16, their size) decides its
time. Nothing tells reliably that a tensor was overwritten, so weights are packed only inside :func:`packed_weights`.
"""
import contextlib
import threading
from collections.abc import Iterator

from paddle import Tensor

from vilg.nn.onednn import precision
from vilg.nn.onednn.autograd import contiguous, new
from vilg.nn.onednn.library import (
    BF16, BIAS, DST, F32, NO_ATTRIBUTES, NOTHING, SRC, WEIGHTS, Cache, Descriptor, Primitive, descriptor_bytes,
    operation, plain, query, reorder,
)
from vilg.nn.onednn.matmul import to_bf16
from vilg.nn.onednn.precision import Step

MOST_ROWS = 256
"""Above this many rows a product is limited by arithmetic and packing gains nothing."""
_WEIGHTS_OF_DESCRIPTOR = 131


class _Scope(threading.local):
    packs: dict[tuple, tuple[Tensor, Tensor]] | None = None


_scope, _plans = _Scope(), Cache(512)


class PackedProduct:
    """x [rows, inputs] times weights [inputs, outputs] of one shape: how to pack the weights, and what reads them packed.

    ``dtype`` is that of x and of the packed weights, ``target`` the result's; ``after`` is done to the result. ``run``
    takes x, the packed weights (``size`` bytes), the result and, if there is one, the bias.
    """

    def __init__(self, rows: int, inputs: int, outputs: int, bias: bool, dtype: int, after: tuple[Step, ...] = (),
                 target: int = F32):
        source, result = plain([rows, inputs], dtype), plain([rows, outputs], target)
        offset = plain([1, outputs]) if bias else NOTHING
        descriptor = operation("matmul", source, Descriptor([inputs, outputs], None, dtype), offset, result,
                               precision.chain(*after) if after else NO_ATTRIBUTES)
        layout = query(descriptor, _WEIGHTS_OF_DESCRIPTOR)
        self.size = descriptor_bytes(layout)
        self.pack = reorder(plain([inputs, outputs]), layout)
        self.run = Primitive(descriptor, [(SRC, source), (WEIGHTS, layout), (DST, result)]
                             + ([(BIAS, offset)] if bias else []))


@contextlib.contextmanager
def packed_weights() -> Iterator[None]:
    """Inside this context, linear maps of up to :data:`MOST_ROWS` rows that record no gradient pack their weights once.

    The weights must not change in it. Costs a second copy of them (half a copy in bf16), freed at the end.
    """
    outer = _scope.packs
    _scope.packs = {} if outer is None else outer
    try:
        yield
    finally:
        _scope.packs = outer


def packing(rows: int) -> bool:
    """Should a linear map of ``rows`` rows use packed weights here?"""
    return _scope.packs is not None and rows <= MOST_ROWS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """x [..., in] · weight [in, out] + bias [out], not recorded; ``rows`` is the product of x's leading axes."""
    inputs, outputs = weight.shape
    dtype = BF16 if precision.gains() else F32
    shape = (rows, inputs, outputs, bias is not None, dtype)
    plan = _plans.get(shape, PackedProduct)
    key = (id(weight), shape)
    entry = _scope.packs.get(key)
    if entry is None:
        buffer = new([(plan.size + 3) // 4])
        plan.pack(contiguous(weight).data_ptr(), buffer.data_ptr())
        entry = _scope.packs[key] = (buffer, weight)  # the weight is kept so that its id stays its own
    x = contiguous(x)
    source = to_bf16(x) if dtype == BF16 else x
    y = new([*x.shape[:-1], outputs])
    if bias is None:
        plan.run(source.data_ptr(), entry[0].data_ptr(), y.data_ptr())
    else:
        plan.run(source.data_ptr(), entry[0].data_ptr(), y.data_ptr(), bias.data_ptr())
    return y
