"""Linear maps of a few rows with weights laid out once, for decoding.

A product of few rows reads far more weights than anything else, so their layout (and, in bf16, their size) decides its
time: laid out as the kernels read them, they come at the speed of the memory.
"""
from vilg.kernels.onednn.library import (
    BIAS, DST, F32, NO_ATTRIBUTES, NOTHING, SRC, WEIGHTS, Descriptor, Primitive, descriptor_bytes, operation, plain,
    query, reorder,
)
from vilg.kernels.onednn.precision import Step, chain

_WEIGHTS_OF_DESCRIPTOR = 131


class PackedProduct:
    """x [rows, inputs] · weights [inputs, outputs] (+ bias): how to pack the weights, and what reads them packed.

    ``dtype`` is that of x and of the packed weights, ``target`` the result's; ``after`` is done to the result. ``run``
    takes x, the packed weights (``size`` bytes), the result and, if there is one, the bias.
    """

    def __init__(self, rows: int, inputs: int, outputs: int, bias: bool, dtype: int, after: tuple[Step, ...] = (),
                 target: int = F32):
        source, result = plain([rows, inputs], dtype), plain([rows, outputs], target)
        offset = plain([1, outputs]) if bias else NOTHING
        descriptor = operation("matmul", source, Descriptor([inputs, outputs], None, dtype), offset, result,
                               chain(*after) if after else NO_ATTRIBUTES)
        layout = query(descriptor, _WEIGHTS_OF_DESCRIPTOR)
        self.size = descriptor_bytes(layout)
        self.pack = reorder(plain([inputs, outputs]), layout)
        self.run = Primitive(descriptor, [(SRC, source), (WEIGHTS, layout), (DST, result)]
                             + ([(BIAS, offset)] if bias else []))
