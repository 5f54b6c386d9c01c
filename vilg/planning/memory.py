"""How much memory a training step of the bidirectional transformer takes, part by part, from its shape alone.

Counts what the code keeps, tensor by tensor: between forward and backward the inputs of every linear map, of the
normalisations and of GELU, and the attention weights; in backward, the gradients about the block at hand. (On a CPU's
fast path the input of the map after a GELU is not kept, but computed again from GELU's own.)
``benchmarks/memory_model.py`` holds it against measured peaks.
"""
from dataclasses import dataclass
from typing import Protocol

from vilg.nn.attention.blocks.layout import block_layout
from vilg.nn.attention.patterns import Layout, Pattern, Role, layer_patterns

FLOAT = 4
# Elements of logits whose gradient is held at once.
LOGIT_CHUNK = 2**21


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

    ``batch``: samples a micro-batch and device. ``roles``: the directions trained in it. ``half``: activations in two
    bytes. ``flash``: attention that keeps no weights (FlashMask on a GPU) for every pattern but the
    convolutional one. ``recompute_every``: every k-th block forgets its activations (0: none). ``gelu_again``: what
    GELU gives is not kept (``linear_after_gelu`` on a CPU).
    """

    batch: int
    roles: tuple[Role, ...] = (Role.TARGET, Role.SOURCE)
    half: bool = False
    flash: bool = False
    recompute_every: int = 0
    gelu_again: bool = False

    def recomputes(self, layer: int) -> bool:
        """Whether layer number ``layer`` (from 0) forgets its activations."""
        return bool(self.recompute_every) and layer % self.recompute_every == 0


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
    stream = _stream(shape, step)
    return {"residual stream and norms": 4 * stream + 4 * slots,
            "queries, keys, values": 4 * stream,
            "feed-forward": (1 if step.gelu_again else 2) * shape.mlp_ratio * stream,
            "attention weights": sum(attention_elements(shape, step, pattern, role) for role in step.roles)}


def head_elements(shape: Shape, step: StepPlan) -> dict[str, int]:
    """Embeddings, final norm and logits: what lies outside the blocks from forward to backward (elements)."""
    layout, batch = shape.layout, step.batch
    image = batch * layout.image if Role.TARGET in step.roles else 0
    text = batch * layout.text if Role.SOURCE in step.roles else 0
    return {"embeddings and final norm": _stream(shape, step) + 2 * (image + text) * shape.width,
            "logits": image * shape.codebook_size + text * shape.vocab_size}


def kept_bytes(shape: Shape, step: StepPlan) -> dict[str, int]:
    """What a micro-batch's forward pass leaves for the backward pass, by part and by kind of layer.

    Recomputed blocks keep their input alone.
    """
    size = 2 if step.half else FLOAT
    parts = {name: elements * size for name, elements in head_elements(shape, step).items()}
    for number, pattern in enumerate(layer_patterns(shape.layers, shape.sparse)):
        if step.recomputes(number):
            kept = {"recomputed blocks' inputs": _stream(shape, step)}
        else:
            kept = block_elements(shape, step, pattern)
        for name, elements in kept.items():
            key = f"{pattern.value} {name}" if name == "attention weights" else name
            parts[key] = parts.get(key, 0) + elements * size
    return parts


def backward_peak(shape: Shape, step: StepPlan, gradient_size: int = FLOAT, whole_gradients: bool = True) -> int:
    """The most bytes that activations and fresh gradients take together, at any moment of the backward pass.

    Gradients arrive while activations go, so neither sum says it. ``gradient_size``: bytes of a gradient's element.
    ``whole_gradients`` False: gradients leave for their owner at once and only the block at hand's are there.
    """
    size, stream, heads = 2 if step.half else FLOAT, _stream(shape, step), head_elements(shape, step)
    patterns = layer_patterns(shape.layers, shape.sparse)
    blocks = [sum(block_elements(shape, step, pattern).values()) for pattern in patterns]
    kept = [stream if step.recomputes(number) else whole for number, whole in enumerate(blocks)]
    gradients = (shape.codebook_size + shape.vocab_size) * shape.width * gradient_size
    peak = (sum(kept) + sum(heads.values()) + min(LOGIT_CHUNK, heads["logits"])) * size + gradients
    outside, block_gradient = heads["embeddings and final norm"], block_parameters(shape) * gradient_size
    for number in reversed(range(shape.layers)):
        live = sum(kept[:number]) + blocks[number] + outside
        # The gradient behind GELU, while that before it takes the place of what was kept; or both, and GELU once more.
        feed_forward = live + (2 + (3 if step.gelu_again else 1) * shape.mlp_ratio) * stream
        weights = max(attention_elements(shape, step, patterns[number], role) for role in step.roles)
        attention = live - (1 if step.gelu_again else 2) * shape.mlp_ratio * stream + 5 * stream + weights
        peak = max(peak, max(feed_forward, attention) * size + gradients + block_gradient)
        gradients = gradients + block_gradient if whole_gradients else 0
    if whole_gradients:
        # At the end embeddings have gradients too, and the norm squares the largest one in a tensor of its own.
        gradients += _embedding_parameters(shape) * gradient_size
        peak = max(peak, gradients + max(_largest_parameter(shape), outside) * gradient_size)
    return peak


def block_parameters(shape: Shape) -> int:
    """Parameters of one block: four D×D of attention, two D×rD of the feed-forward, biases and norms."""
    return (4 + 2 * shape.mlp_ratio) * shape.width ** 2 + (9 + shape.mlp_ratio) * shape.width


def parameter_count(shape: Shape) -> int:
    """Parameters of the whole model: blocks, embeddings and positions, final norm, two heads with their biases."""
    heads = (shape.vocab_size + shape.codebook_size) * (shape.width + 1)
    return shape.layers * block_parameters(shape) + _embedding_parameters(shape) + 2 * shape.width + heads


def _embedding_parameters(shape: Shape) -> int:
    layout = shape.layout
    rows = shape.vocab_size + layout.text + shape.codebook_size + layout.rows + layout.columns + 1
    return rows * shape.width


def _largest_parameter(shape: Shape) -> int:
    return shape.width * max(shape.vocab_size, shape.codebook_size, shape.mlp_ratio * shape.width)


def _stream(shape: Shape, step: StepPlan) -> int:
    """Elements of one [ΣB, L, D]."""
    return len(step.roles) * step.batch * shape.layout.length * shape.width
