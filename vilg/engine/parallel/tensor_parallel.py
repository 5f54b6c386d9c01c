"""Tensor parallelism (Megatron-LM, arXiv:1909.08053), put on from outside: ranks compute parts of the same layers.

A transformer block's heads and its feed-forward units are dealt out. The map before them is cut by its columns and the
one behind by its rows, so that a rank holds whole heads and units, and two sums over ranks make a block: the output of
attention and that of the feed-forward part; backward has two more. Output heads are cut by their vocabulary, and
the cross-entropy behind them never sees all logits. Everything else (embeddings, norms, biases behind a sum) is on
every rank, with the same gradient there. Plain collectives, so that it runs over gloo as over NCCL.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor, nn

from vilg.engine.checkpoints.tensor_shards import Cut
from vilg.engine.parallel.model_collectives import Copy, Join, Sum, vocabulary_loss, vocabulary_margin
from vilg.engine.parallel.topology import Topology
from vilg.errors import ConfigError
from vilg.nn import functional
from vilg.nn.layers import Linear, LinearAfterGelu, OutputHead
from vilg.nn.program import Activation, Attend, Map, Operation, Program, around
from vilg.nn.transformer import Block

QKV = 3  # queries, keys and values lie one after another in the columns of one map


def check_program(program: Program, degree: int) -> None:
    """Raise ConfigError when a block's heads or units cannot be dealt out to ``degree`` ranks."""
    for operation in program:
        name, size = {Attend: ("attention heads", getattr(operation, "heads", 0)),
                      Activation: ("feed-forward units", getattr(operation, "width", 0))}.get(type(operation), ("", 0))
        if size % degree:
            raise ConfigError(f"distributed.mp_degree: {size} {name} do not divide over {degree} ranks; use a divisor "
                              f"of {size}")


def cut_sizes(program: Program, degree: int) -> Program:
    """What one of ``degree`` ranks computes of a block."""
    def local(before: Operation | None, operation: Operation, after: Operation | None) -> Operation:
        match operation:
            case Attend(heads, width):
                return Attend(heads // degree, width // degree)
            case Activation(kind, width):
                return Activation(kind, width // degree)
            case Map(name, inputs, outputs) if isinstance(after, Attend | Activation):
                return Map(name, inputs, outputs // degree)
            case Map(name, inputs, outputs) if isinstance(before, Attend | Activation):
                return Map(name, inputs // degree, outputs)
        return operation

    return tuple(local(*each) for each in around(program))


def put_on(module: nn.Layer, topology: Topology) -> None:
    """Make the layers of ``module`` compute this rank's part. Each parameter is told its :class:`Cut`, and has still to
    be cut (:func:`cut_parameters`). Raises ConfigError for a module that cannot be dealt out."""
    blocks = [layer for layer in module.sublayers() if isinstance(layer, Block)]
    if not blocks:
        raise ConfigError("distributed.mp_degree: this task trains a model without transformer blocks, of which "
                          "nothing can be dealt out; leave it 1")
    if any(hasattr(layer, "gather") for layer in module.sublayers(include_self=True)):
        raise ConfigError("distributed.mp_degree: this task compares the samples of all ranks with each other, which "
                          "would compare each with itself; leave it 1")
    for parameter in module.parameters():
        parameter.cut = _Cut(tuple(parameter.shape), None, 1, topology)
    for block in blocks:
        check_program(block.program, topology.mp_degree)
        for before, operation, after in around(block.program):
            if isinstance(operation, Map) and isinstance(after, Attend | Activation):
                _by_columns(getattr(block, operation.name), QKV if isinstance(after, Attend) else 1, topology)
            elif isinstance(operation, Map) and isinstance(before, Attend | Activation):
                _by_rows(getattr(block, operation.name), topology)
        block.program = cut_sizes(block.program, topology.mp_degree)
    for layer in module.sublayers():
        # A vocabulary that does not divide stays whole on every rank.
        if isinstance(layer, OutputHead) and layer.weight.shape[1] % topology.mp_degree == 0:
            _head(layer, topology)


@paddle.no_grad()
def cut_parameters(layer: nn.Layer) -> None:
    """Keep of the parameters of ``layer`` itself, made equal on all ranks, this rank's part; its sublayers are left
    alone."""
    for tensor in [*layer.parameters(include_sublayers=False), *layer.buffers(include_sublayers=False)]:
        dist.broadcast(tensor, src=0)
        cut = getattr(tensor, "cut", None)
        if cut is not None and cut.divided:
            # In place: optimizer and task know the parameter by its identity.
            part = cut.part(tensor.detach()).clone()
            tensor.get_tensor()._share_data_with(part.get_tensor())


@dataclass(frozen=True)
class _Cut(Cut):
    """``axis`` of ``shape``, seen as ``runs`` runs, of each of which every rank has an equal part; None: not cut."""

    shape: tuple[int, ...]
    axis: int | None
    runs: int
    topology: Topology

    @property
    def divided(self) -> bool:
        return self.axis is not None

    @property
    def counts(self) -> bool:
        return self.divided or self.topology.model_rank == 0

    @property
    def writes(self) -> bool:
        return self.topology.model_rank == sum(self.shape) % self.topology.mp_degree if self.divided else self.counts

    def part(self, values: Any) -> Any:
        axis, runs, ranks = self.axis, self.runs, self.topology.mp_degree
        size = self.shape[axis] // runs // ranks
        seen = values.reshape([*self.shape[:axis], runs, ranks, size, *self.shape[axis + 1:]])
        own = seen[(slice(None),) * (axis + 1) + (self.topology.model_rank,)]
        return own.reshape([*self.shape[:axis], runs * size, *self.shape[axis + 1:]])

    def whole(self, tensor: Tensor) -> np.ndarray:
        axis, runs, ranks, parts = self.axis, self.runs, self.topology.mp_degree, []
        dist.all_gather(parts, tensor, group=self.topology.model_group)
        size = self.shape[axis] // runs // ranks
        split = [part.numpy().reshape([*self.shape[:axis], runs, size, *self.shape[axis + 1:]]) for part in parts]
        return np.stack(split, axis + 1).reshape(self.shape)


def _by_columns(layer: Linear, runs: int, topology: Topology) -> None:
    """Cut the outputs of ``layer``; what comes in is on every rank."""
    forward, group = layer.forward, topology.model_group
    layer.weight.cut = replace(layer.weight.cut, axis=1, runs=runs)
    if layer.bias is not None:
        layer.bias.cut = replace(layer.bias.cut, axis=0, runs=runs)
    layer.forward = lambda x: forward(Copy.apply(x, group))


def _by_rows(layer: Linear, topology: Topology) -> None:
    """Cut the inputs of ``layer``; what goes out is the sum over ranks, on every rank."""
    group = topology.model_group
    product: Callable[..., Tensor] = (functional.linear_after_gelu if isinstance(layer, LinearAfterGelu)
                                      else functional.linear)
    layer.weight.cut = replace(layer.weight.cut, axis=0)

    def forward(x: Tensor) -> Tensor:
        total = Sum.apply(product(x, layer.weight, None), group)
        return total if layer.bias is None else total + layer.bias

    layer.forward = forward


def _head(layer: OutputHead, topology: Topology) -> None:
    """Cut the vocabulary of ``layer``."""
    group, classes = topology.model_group, layer.weight.shape[1]
    first = topology.model_rank * (classes // topology.mp_degree)
    layer.weight.cut = replace(layer.weight.cut, axis=1)
    if layer.bias is not None:
        layer.bias.cut = replace(layer.bias.cut, axis=0)

    def forward(x: Tensor, labels: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        x = Copy.apply(x, group)
        if labels is None:
            return Join.apply(functional.linear(x, layer.weight, layer.bias), group)
        loss = vocabulary_loss(x, layer.weight, layer.bias, labels, first, group)
        if not smoothing:
            return loss
        return loss + smoothing * vocabulary_margin(x, layer.weight, layer.bias, labels, first, classes, group)

    layer.forward = forward
