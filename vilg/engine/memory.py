"""How much memory a training step of the bidirectional transformer takes, part by part, from its shape alone.

Counts what the code keeps, tensor by tensor: between forward and backward the inputs of every linear map, of the
normalisations and of GELU, and the attention weights; in backward, the workspace of the block at hand; and for the whole run
weights, gradients, optimizer states and the moving average. ``benchmarks/memory_model.py`` holds it against measured peaks.
"""
from dataclasses import dataclass
from math import prod
from typing import Protocol

from vilg.nn.block_layout import block_layout
from vilg.nn.masks import Layout, Pattern, Role, layer_patterns

FLOAT = 4


class Shape(Protocol):
    """The fields of a model's config that memory depends on."""

    layers: int
    width: int
    heads: int
    vocab_size: int
    codebook_size: int
    sparse: bool
    conv_window: int
    mlp_ratio: int
    dropout: float

    @property
    def layout(self) -> Layout:
        """Text slots, rows and columns of the stream."""


@dataclass(frozen=True)
class StepPlan:
    """How a step is computed on one device.

    ``batch``: samples a micro-batch and device. ``roles``: the directions trained in it. ``half``: activations and weights in
    two bytes. ``flash``: attention that keeps no weights (FlashMask on a GPU) for every pattern but the
    convolutional one. ``recompute_every``: every k-th block forgets its activations (0: none).
    """

    batch: int
    roles: tuple[Role, ...] = (Role.TARGET, Role.SOURCE)
    half: bool = False
    flash: bool = False
    recompute_every: int = 0


def attention_keys(shape: Shape, pattern: Pattern, role: Role) -> tuple[int, int]:
    """Keys that each image query and each text query of a layer are compared with."""
    layout = shape.layout
    text = layout.text if role is Role.TARGET else layout.length
    return block_layout(pattern, role, layout, shape.conv_window).keys, text


def attention_elements(shape: Shape, step: StepPlan, pattern: Pattern, role: Role) -> int:
    """Attention weights that a layer keeps for one direction: N·B·(n·keys of the image + M·keys of the text)."""
    if step.flash and pattern is not Pattern.CONV:
        return step.batch * shape.heads * shape.layout.length  # the log-sum-exp of each row
    image, text = attention_keys(shape, pattern, role)
    copies = 2 if shape.dropout else 1  # weights, and the factors that dropped some of them
    return copies * step.batch * shape.heads * (shape.layout.image * image + shape.layout.text * text)


def block_elements(shape: Shape, step: StepPlan, pattern: Pattern) -> dict[str, int]:
    """What one block keeps from forward to backward, by what keeps it (elements)."""
    slots = len(step.roles) * step.batch * shape.layout.length
    stream = slots * shape.width
    return {"residual stream and norms": 4 * stream + 4 * slots,
            "queries, keys, values": 4 * stream,
            "feed-forward": 2 * shape.mlp_ratio * stream,
            "attention weights": sum(attention_elements(shape, step, pattern, role) for role in step.roles)}


def backward_workspace(shape: Shape, step: StepPlan, pattern: Pattern) -> int:
    """Elements that the backward pass of one block needs at once beside what is kept.

    Either the two gradients about GELU, or those of attention weights and packed queries, keys and values; with the gradient
    that arrives and the one of the residual stream.
    """
    stream = len(step.roles) * step.batch * shape.layout.length * shape.width
    weights = max(attention_elements(shape, step, pattern, role) for role in step.roles)
    return 2 * stream + max(2 * shape.mlp_ratio * stream, 5 * stream + weights)


def head_elements(shape: Shape, step: StepPlan) -> dict[str, int]:
    """Embeddings, final norm and logits: what lies outside the blocks from forward to backward (elements)."""
    layout, batch = shape.layout, step.batch
    stream = len(step.roles) * batch * layout.length * shape.width
    image = batch * layout.image if Role.TARGET in step.roles else 0
    text = batch * layout.text if Role.SOURCE in step.roles else 0
    return {"embeddings and final norm": stream + 2 * (image + text) * shape.width,
            "logits": image * shape.codebook_size + text * shape.vocab_size}


def activation_bytes(shape: Shape, step: StepPlan) -> dict[str, int]:
    """Peak of what a micro-batch's activations take, by part and by kind of layer.

    Recomputed blocks keep their input alone; one of them at a time is there in full during backward.
    """
    size = 2 if step.half else FLOAT
    patterns = layer_patterns(shape.layers, shape.sparse)
    stream = len(step.roles) * step.batch * shape.layout.length * shape.width
    parts = {name: elements * size for name, elements in head_elements(shape, step).items()}
    again = 0
    for number, pattern in enumerate(patterns):
        whole = block_elements(shape, step, pattern)
        if step.recompute_every and number % step.recompute_every == 0:
            parts["recomputed blocks' inputs"] = parts.get("recomputed blocks' inputs", 0) + stream * size
            again = max(again, sum(whole.values()) - stream)
            continue
        for name, elements in whole.items():
            key = f"{pattern.value} {name}" if name == "attention weights" else name
            parts[key] = parts.get(key, 0) + elements * size
    if again:
        parts["one block computed again"] = again * size
    parts["backward workspace"] = max(backward_workspace(shape, step, pattern) for pattern in set(patterns)) * size
    return parts


def parameter_count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of parameters from their shapes."""
    return sum(prod(shape) for shape in shapes.values())
