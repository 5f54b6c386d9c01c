"""A decoding step on a CPU as a flat list of operations on fixed memory.

At a few rows the work of a step is reading the weights once; a Paddle operator with its tensor and its dispatch costs
as much as many of these products take. So the products, norms and casts of a stack's programs
(:mod:`vilg.nn.program`) are tied once to the buffers that they read and write
(:class:`vilg.kernels.onednn.library.Bound`), with bias, activation and residual sum as part of the product before them,
and a step calls them one after another. Attention stands between (:mod:`vilg.nn.attention.cached_host`), and so does
what maps with int8 weights need about them (:mod:`vilg.generation.decoding.int8_parts`).
"""
import ctypes
import functools
import itertools
from collections.abc import Callable

import numpy as np
from paddle import Tensor

from vilg.generation.decoding.int8_parts import Call, Finish, Normalise, Part, Round, Rows, joined
from vilg.kernels.jit import switch as loops
from vilg.kernels.onednn import int8, precision
from vilg.kernels.onednn.autograd import contiguous
from vilg.kernels.onednn.buffers import Buffer
from vilg.kernels.onednn.library import (
    BF16, DST, F32, FORWARD_INFERENCE, NO_ATTRIBUTES, S8, SCALE, SHIFT, SRC, Bound, Primitive, operation, plain,
    reorder, run,
)
from vilg.kernels.onednn.packed import PackedProduct
from vilg.kernels.onednn.precision import Step
from vilg.kernels.onednn.switch import active
from vilg.nn.layers import LayerNorm, Linear
from vilg.nn.program import Activation, Add, Attend, Fork, Map, Norm, Program, around
from vilg.nn.transformer import Block, Stack

_SCALE_AND_SHIFT = 2 | 4
ACTIVATION_STEPS: dict[str, Callable[[], Step]] = {"gelu": precision.gelu_step}
"""Activations as steps after a product."""
_FOLLOWS = {Fork: (Norm, Add), Norm: (Fork, Add), Map: (Fork, Norm, Attend, Activation), Attend: (Map,),
            Activation: (Map,), Add: (Map,)}
"""What an operation may follow in a program that is compiled."""
HostAttend = Callable[[int], None]
"""Attention of one new token a row, in a layer, from the buffer of packed qkv to that of its result."""
WORTH_LOOPS = 1 << 15
"""Maps to be computed in one drawing from which on loops are loaded for what is between them: they save some 30 µs a
map, and loading takes 0.8 s. Nothing but the model decides it, since their bits are others than without."""


def compilable(program: Program) -> bool:
    """Can a step of this program be compiled? Its norms read the residual stream, what a map gives goes to attention,
    to a known activation or into the residual, and the result is in the residual stream."""
    return isinstance(program[-1], (Add, Norm)) and all(
        (isinstance(before, _FOLLOWS[type(part)]) or before is None)
        and (not isinstance(part, Activation) or part.kind in ACTIVATION_STEPS)
        for before, part, _ in around(program))


class CompiledStack:
    """The blocks of a stack and its final norm for R rows of one token each, as they are now.

    Holds a copy of the weights, laid out for the products (half as large in bf16): weights that change later are not
    seen. Write the embeddings to ``x`` [R, D], call, read ``hidden`` [R, D] or ask :meth:`project` for a linear map of
    it. Between, attention finds ``qkv`` [R, 3, N, H] and leaves ``attended`` [R, N, H]. Not for two threads at a time.
    ``used``: how many of the rows are of any use; ``looped``: compiled loops do what is between products of
    int8.
    """

    def __init__(self, stack: Stack, norm: LayerNorm, qkv: Buffer, attended: Buffer, used: int,
                 looped: bool = False):
        rows, width = qkv.shape[0], norm.weight.shape[0]
        self._rows, self._used, self._dtype = rows, used, BF16 if precision.gains() else F32
        self._looped = looped
        self._constants: list[Buffer] = []
        self._kept: list[int8.Int8Weight] = []
        self._heads: dict[int, tuple[Linear, list[Call], np.ndarray]] = {}
        self._scratch: dict[tuple[str, int, int], Buffer] = {}
        self._x, self._hidden = Buffer((rows, width)), Buffer((rows, width))
        self.x, self.hidden = self._x.array, self._hidden.array
        segments: list[list[Part]] = [[]]
        for block in stack.blocks:
            self._compile(block, qkv, attended, segments)
        segments[-1].append(self._norm(norm, self._hidden))
        self._segments = [_calls(joined(segment, self._looped)) for segment in segments]

    def _compile(self, block: Block, qkv: Buffer, attended: Buffer, segments: list[list[Part]]) -> None:
        """Append what a block does up to its attention to the last segment, and what follows to a new one.

        Between two blocks, and wherever a branch leaves, the value is in ``x``.
        """
        source = self._x
        for place, (_, part, after) in enumerate(around(block.program), 1):
            reader = next((getattr(block, one.name) for one in block.program[place:] if isinstance(one, Map)), None)
            match part:
                case Norm(name, width):
                    target = self._operands("normed", width, reader) if isinstance(after, Map) else self._x
                    segments[-1].append(self._norm(getattr(block, name), target))
                    source = target
                case Map(name, _, outputs):
                    target, steps = self._x, (precision.sum_step(),)  # an Add is part of the map before it
                    if isinstance(after, Attend):
                        target, steps = qkv, ()
                    elif isinstance(after, Activation):
                        target = self._operands("inner", outputs, reader)
                        steps = (ACTIVATION_STEPS[after.kind](),)
                    segments[-1] += self._map(source, getattr(block, name), target, *steps)
                    source = target
                case Attend():
                    segments.append([])
                    source = attended

    def __call__(self, attend: HostAttend) -> None:
        """One step of all blocks, with ``attend`` between."""
        *layers, last = self._segments
        for layer, calls in enumerate(layers):
            for call in calls:
                call()
            attend(layer)
        for call in last:
            call()

    def project(self, head: Linear) -> np.ndarray:
        """A linear map of the hidden vectors [R, D] → [R, out], in memory that the next call writes again."""
        if id(head) not in self._heads:
            target = Buffer((self._rows, head.outputs))
            calls = _calls(joined(self._map(self._hidden, head, target), self._looped))
            self._heads[id(head)] = head, calls, target.array
        _, calls, result = self._heads[id(head)]
        for call in calls:
            call()
        return result

    def _norm(self, norm: LayerNorm, target: Buffer) -> Normalise:
        rows, width = self._x.shape
        vector, statistics = plain([width]), plain([rows])
        source, to = plain([rows, width]), plain([rows, width], target.dtype)
        descriptor = operation("layer_normalization_forward", FORWARD_INFERENCE, source, to, statistics,
                               ctypes.c_float(norm.epsilon), _SCALE_AND_SHIFT, NO_ATTRIBUTES)
        primitive = Primitive(descriptor, [(SRC, source), (SCALE, vector), (SHIFT, vector), (DST, to)])
        factors, shift = self._copy(norm.weight), self._copy(norm.bias)
        return Normalise(self._x, target, factors, shift, norm.epsilon,
                         primitive.at(self._x.address, factors, shift, target.address))

    def _operands(self, use: str, width: int, reader: Linear) -> Buffer:
        """The buffer of what products of this width read, in the type that ``reader`` runs in (or rounds itself)."""
        return self._buffer(use, width, F32 if reader.in_int8() else self._dtype)

    def _buffer(self, use: str, width: int, dtype: int) -> Buffer:
        key = use, width, dtype
        if key not in self._scratch:
            self._scratch[key] = Buffer((self._rows, width), dtype)
        return self._scratch[key]

    def _map(self, source: Buffer, linear: Linear, target: Buffer, *after: Step) -> list[Part]:
        """A product of R rows, which are cast or rounded first if they are not yet of the type that it runs in."""
        if linear.in_int8():
            return self._int8_map(source, linear.int8, target, *after)
        if source.dtype == self._dtype:
            return [self._product(linear, source, target, *after)]
        operand = self._operands("cast", linear.weight.shape[0], linear)
        cast = reorder(plain(operand.shape), plain(operand.shape, self._dtype))
        return [cast.at(source.address, operand.address), self._product(linear, operand, target, *after)]

    def _int8_map(self, source: Buffer, weight: int8.Int8Weight, target: Buffer, *after: Step) -> list[Part]:
        width = weight.inputs
        rows = Rows(self._buffer("rounded", width, S8), self._buffer("scales", 1, F32), self._used)
        product = int8.product_of(self._rows, width, weight.outputs, after, target.dtype, bool(weight.least))
        self._kept.append(weight)
        sums = self._buffer("sums", weight.outputs, F32)
        return [Round(source, rows, self._buffer("scaled", width, F32), weight.least),
                product.multiply.at(*weight.multiply(product, rows.values.address, sums.address)),
                Finish(product, sums, rows.scales, target, weight.bias, after)]

    def _product(self, linear: Linear, source: Buffer, target: Buffer, *after: Step) -> Bound:
        inputs, outputs = linear.weight.shape
        biased = linear.bias is not None
        product = PackedProduct(self._rows, inputs, outputs, biased, self._dtype, after, target.dtype)
        weights = Buffer((-(-product.size // 4),))
        product.pack(contiguous(linear.weight).data_ptr(), weights.address)
        self._constants.append(weights)
        bias = (self._copy(linear.bias),) if biased else ()
        return product.run.at(source.address, weights.address, target.address, *bias)

    def _copy(self, parameter: Tensor) -> int:
        """The address of a copy of a vector."""
        buffer = Buffer(tuple(parameter.shape))
        buffer.array[...] = parameter.numpy()
        self._constants.append(buffer)
        return buffer.address


def in_loops(stack: Stack, steps: int) -> bool:
    """Are so many maps of a stack to be computed in int8, in a drawing of ``steps``, that compiled loops between them
    are worth loading, and can they be had?"""
    maps = sum(isinstance(layer, Linear) and layer.in_int8() for layer in stack.sublayers())
    if maps * steps < WORTH_LOOPS or stack.training or not active():
        return False
    return all(compilable(block.program) for block in stack.blocks) and loops.active()


def _calls(operations: list[Bound | Call]) -> list[Call]:
    """The operations as calls; those of the library that follow one another are one."""
    calls: list[Call] = []
    for of_library, group in itertools.groupby(operations, lambda operation: isinstance(operation, Bound)):
        together = list(group)
        calls += [functools.partial(run, together)] if of_library else together
    return calls
