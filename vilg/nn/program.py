"""A transformer block as a program: its operations in order, with names and sizes and without weights.

Whoever needs to know what a block does reads it here: the block that trains (:mod:`vilg.nn.transformer`), the compiled
decoding step (:mod:`vilg.generation.decoding.compiled`) and the memory plan (:mod:`vilg.planning.memory`). One value
[..., D] passes through; :class:`Fork` remembers it, and :class:`Add` gives it back as the residual. So a block with its
norms behind the sums is written with the same operations as one with its norms before the branches.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Fork:
    """A residual branch leaves here: the value is remembered for the next :class:`Add`."""


@dataclass(frozen=True)
class Add:
    """The branch ends: dropout, and the remembered value is added."""


@dataclass(frozen=True)
class Norm:
    """Layer normalisation of [..., width]; the block calls the layer that has its parameters ``name``."""

    name: str
    width: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Map:
    """A linear map with bias, [..., inputs] → [..., outputs]; the block calls the layer that has its parameters
    ``name``."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Activation:
    """A function of every element [..., width] between two maps, which may compute it as part of theirs."""

    kind: str
    width: int


@dataclass(frozen=True)
class Attend:
    """Attention of packed queries, keys and values: [..., 3·width] → [..., width] with ``heads`` heads."""

    heads: int
    width: int


Operation = Fork | Add | Norm | Map | Activation | Attend
Program = tuple[Operation, ...]


def pre_norm(width: int, heads: int, mlp_ratio: int = 4) -> Program:
    """x + Attention(LN(x)), then x + FFN(LN(x)), on x [..., width] (paper 1, arXiv:2112.15283)."""
    inner = mlp_ratio * width
    return (Fork(), Norm("norm1", width), Map("qkv", width, 3 * width), Attend(heads, width),
            Map("proj", width, width), Add(),
            Fork(), Norm("norm2", width), Map("fc1", width, inner), Activation("gelu", inner),
            Map("fc2", inner, width), Add())


def around(program: Program) -> list[tuple[Operation | None, Operation, Operation | None]]:
    """Every operation with the one before it and the one after it, None at the ends."""
    return list(zip((None, *program), program, (*program[1:], None)))
