"""A decoding step on a CPU as a flat list of operations on fixed memory.

At a few rows the work of a step is reading the weights once; a Paddle operator with its tensor and its dispatch costs
as much as many of these products take. So the products, norms and casts of a stack are tied once to the buffers that
they read and write (:class:`vilg.nn.onednn.library.Bound`), with bias, GELU and residual sum as part of the product
before them, and a step calls them one after another. Attention stands between, in numpy
(:mod:`vilg.generation.attention`).
"""
import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from paddle import Tensor

from vilg.nn.layers import LayerNorm, Linear
from vilg.nn.onednn import precision
from vilg.nn.onednn.autograd import contiguous
from vilg.nn.onednn.library import (
    BF16, DST, F32, FORWARD_INFERENCE, NO_ATTRIBUTES, SCALE, SHIFT, SRC, Bound, Primitive, operation, plain, reorder,
    run,
)
from vilg.nn.onednn.packed import PackedProduct
from vilg.nn.onednn.precision import Step
from vilg.nn.transformer import Block, Stack

_ALIGNMENT = 64
_SCALE_AND_SHIFT = 2 | 4
_BYTES = {F32: 4, BF16: 2}
HostAttend = Callable[[int, np.ndarray, np.ndarray], None]
"""Attention of one new token a row: (layer, packed qkv [R, 3, N, H], where to write [R, N, H])."""


@dataclass
class _Buffer:
    """Memory for ``shape`` of a data type of the library, aligned as its kernels like it."""

    shape: tuple[int, ...]
    dtype: int = F32

    def __post_init__(self) -> None:
        size = math.prod(self.shape) * _BYTES[self.dtype]
        memory = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._bytes = memory[start:start + size]
        self.address = self._bytes.ctypes.data

    @property
    def array(self) -> np.ndarray:
        """The values, where they lie (float32 only)."""
        return self._bytes.view(np.float32).reshape(self.shape)


class CompiledStack:
    """The blocks of a stack and its final norm for R rows of one token each, as they are now.

    Holds a copy of the weights, laid out for the products (half as large in bf16): weights that change later are not
    seen. Write the embeddings to ``x`` [R, D], call, read ``hidden`` [R, D] or ask :meth:`project` for a linear map of
    it. Not for two threads at a time.
    """

    def __init__(self, stack: Stack, norm: LayerNorm, rows: int):
        first: Block = stack.blocks[0]
        width, inner = first.qkv.weight.shape[0], first.fc1.weight.shape[1]
        self._rows, self._dtype = rows, BF16 if precision.gains() else F32
        self._constants: list[_Buffer] = []
        self._heads: dict[int, tuple[Linear, list[Bound], np.ndarray]] = {}
        self._x, self._hidden = _Buffer((rows, width)), _Buffer((rows, width))
        self._qkv, self._attended = _Buffer((rows, 3, first.heads, width // first.heads)), _Buffer((rows, width))
        self._normed, self._operand, self._inner = (_Buffer((rows, size), self._dtype)
                                                    for size in (width, width, inner))
        self.x, self.hidden = self._x.array, self._hidden.array
        before, self._segments = [], []
        for block in stack.blocks:
            before += [self._norm(block.norm1, self._normed), self._product(block.qkv, self._normed, self._qkv)]
            self._segments.append(before)
            before = [*self._from_float(self._attended, block.proj, self._x, precision.sum_step()),
                      self._norm(block.norm2, self._normed),
                      self._product(block.fc1, self._normed, self._inner, precision.gelu_step()),
                      self._product(block.fc2, self._inner, self._x, precision.sum_step())]
        self._segments.append([*before, self._norm(norm, self._hidden)])

    def __call__(self, attend: HostAttend) -> None:
        """One step of all blocks, with ``attend`` between."""
        *layers, last = self._segments
        qkv, attended = self._qkv.array, self._attended.array.reshape(self._rows, *self._qkv.shape[2:])
        for layer, operations in enumerate(layers):
            run(operations)
            attend(layer, qkv, attended)
        run(last)

    def project(self, head: Linear) -> np.ndarray:
        """A linear map of the hidden vectors [R, D] → [R, out], in memory that the next call writes again."""
        if id(head) not in self._heads:
            target = _Buffer((self._rows, head.weight.shape[1]))
            operations = self._from_float(self._hidden, head, target)
            self._heads[id(head)] = head, operations, target.array
        _, operations, result = self._heads[id(head)]
        run(operations)
        return result

    def _norm(self, norm: LayerNorm, target: _Buffer) -> Bound:
        rows, width = self._x.shape
        vector, statistics = plain([width]), plain([rows])
        source, to = plain([rows, width]), plain([rows, width], target.dtype)
        descriptor = operation("layer_normalization_forward", FORWARD_INFERENCE, source, to, statistics,
                               ctypes.c_float(norm.epsilon), _SCALE_AND_SHIFT, NO_ATTRIBUTES)
        primitive = Primitive(descriptor, [(SRC, source), (SCALE, vector), (SHIFT, vector), (DST, to)])
        return primitive.at(self._x.address, self._copy(norm.weight), self._copy(norm.bias), target.address)

    def _from_float(self, source: _Buffer, linear: Linear, target: _Buffer, *after: Step) -> list[Bound]:
        """A product of float32 values [R, D], which are cast first if they must be."""
        if self._dtype == F32:
            return [self._product(linear, source, target, *after)]
        cast = reorder(plain(source.shape), plain(source.shape, BF16))
        return [cast.at(source.address, self._operand.address), self._product(linear, self._operand, target, *after)]

    def _product(self, linear: Linear, source: _Buffer, target: _Buffer, *after: Step) -> Bound:
        inputs, outputs = linear.weight.shape
        biased = linear.bias is not None
        product = PackedProduct(self._rows, inputs, outputs, biased, self._dtype, after, target.dtype)
        weights = _Buffer((-(-product.size // 4),))
        product.pack(contiguous(linear.weight).data_ptr(), weights.address)
        self._constants.append(weights)
        bias = (self._copy(linear.bias),) if biased else ()
        return product.run.at(source.address, weights.address, target.address, *bias)

    def _copy(self, parameter: Tensor) -> int:
        """The address of a copy of a vector."""
        buffer = _Buffer(tuple(parameter.shape))
        buffer.array[...] = parameter.numpy()
        self._constants.append(buffer)
        return buffer.address
