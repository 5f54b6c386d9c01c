"""A decoding step on a CPU as a flat list of operations on fixed memory.

At a few rows the work of a step is reading the weights once; a Paddle operator with its tensor and its dispatch costs
as much as many of these products take. So the products, norms and casts of a stack are tied once to the buffers that
they read and write (:class:`vilg.kernels.onednn.library.Bound`), with bias, GELU and residual sum as part of the
product
before them, and a step calls them one after another. Attention stands between (:mod:`vilg.nn.attention.cached`).
"""
import ctypes
from collections.abc import Callable

import numpy as np
from paddle import Tensor

from vilg.kernels.onednn import precision
from vilg.kernels.onednn.autograd import contiguous
from vilg.kernels.onednn.buffers import Buffer
from vilg.kernels.onednn.library import (
    BF16, DST, F32, FORWARD_INFERENCE, NO_ATTRIBUTES, SCALE, SHIFT, SRC, Bound, Primitive, operation, plain, reorder,
    run,
)
from vilg.kernels.onednn.packed import PackedProduct
from vilg.kernels.onednn.precision import Step
from vilg.nn.layers import LayerNorm, Linear
from vilg.nn.transformer import Block, Stack

_SCALE_AND_SHIFT = 2 | 4
HostAttend = Callable[[int], None]
"""Attention of one new token a row, in a layer, from the buffer of packed qkv to that of its result."""


class CompiledStack:
    """The blocks of a stack and its final norm for R rows of one token each, as they are now.

    Holds a copy of the weights, laid out for the products (half as large in bf16): weights that change later are not
    seen. Write the embeddings to ``x`` [R, D], call, read ``hidden`` [R, D] or ask :meth:`project` for a linear map of
    it. Between, attention finds ``qkv`` [R, 3, N, H] and leaves ``attended`` [R, N, H]. Not for two threads at a time.
    """

    def __init__(self, stack: Stack, norm: LayerNorm, qkv: Buffer, attended: Buffer):
        first: Block = stack.blocks[0]
        width, inner, rows = first.qkv.weight.shape[0], first.fc1.weight.shape[1], qkv.shape[0]
        self._rows, self._dtype = rows, BF16 if precision.gains() else F32
        self._constants: list[Buffer] = []
        self._heads: dict[int, tuple[Linear, list[Bound], np.ndarray]] = {}
        self._x, self._hidden = Buffer((rows, width)), Buffer((rows, width))
        self._normed, self._operand, self._inner = (Buffer((rows, size), self._dtype)
                                                    for size in (width, width, inner))
        self.x, self.hidden = self._x.array, self._hidden.array
        before, self._segments = [], []
        for block in stack.blocks:
            before += [self._norm(block.norm1, self._normed), self._product(block.qkv, self._normed, qkv)]
            self._segments.append(before)
            before = [*self._from_float(attended, block.proj, self._x, precision.sum_step()),
                      self._norm(block.norm2, self._normed),
                      self._product(block.fc1, self._normed, self._inner, precision.gelu_step()),
                      self._product(block.fc2, self._inner, self._x, precision.sum_step())]
        self._segments.append([*before, self._norm(norm, self._hidden)])

    def __call__(self, attend: HostAttend) -> None:
        """One step of all blocks, with ``attend`` between."""
        *layers, last = self._segments
        for layer, operations in enumerate(layers):
            run(operations)
            attend(layer)
        run(last)

    def project(self, head: Linear) -> np.ndarray:
        """A linear map of the hidden vectors [R, D] → [R, out], in memory that the next call writes again."""
        if id(head) not in self._heads:
            target = Buffer((self._rows, head.weight.shape[1]))
            operations = self._from_float(self._hidden, head, target)
            self._heads[id(head)] = head, operations, target.array
        _, operations, result = self._heads[id(head)]
        run(operations)
        return result

    def _norm(self, norm: LayerNorm, target: Buffer) -> Bound:
        rows, width = self._x.shape
        vector, statistics = plain([width]), plain([rows])
        source, to = plain([rows, width]), plain([rows, width], target.dtype)
        descriptor = operation("layer_normalization_forward", FORWARD_INFERENCE, source, to, statistics,
                               ctypes.c_float(norm.epsilon), _SCALE_AND_SHIFT, NO_ATTRIBUTES)
        primitive = Primitive(descriptor, [(SRC, source), (SCALE, vector), (SHIFT, vector), (DST, to)])
        return primitive.at(self._x.address, self._copy(norm.weight), self._copy(norm.bias), target.address)

    def _from_float(self, source: Buffer, linear: Linear, target: Buffer, *after: Step) -> list[Bound]:
        """A product of float32 values, R rows of D, which are cast first if they must be."""
        if self._dtype == F32:
            return [self._product(linear, source, target, *after)]
        shape = self._operand.shape
        cast = reorder(plain(shape), plain(shape, BF16))
        return [cast.at(source.address, self._operand.address), self._product(linear, self._operand, target, *after)]

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
