"""How much memory a training step of the bidirectional transformer takes, part by part, from its shape alone.

Counts what the code keeps, tensor by tensor, operation by operation of a block's program (:mod:`vilg.nn.program`):
between forward and backward the inputs of every linear map, of the normalisations and of GELU, and the attention
weights; in backward, the gradients about the block at hand. (On a CPU's fast path the input of the map after a GELU is
not kept, but computed again from GELU's own.)
``benchmarks/memory_model.py`` holds it against measured peaks.
"""
from dataclasses import dataclass
from typing import Protocol

from vilg.engine.parallel.tensor_parallel import cut_sizes
from vilg.nn.attention.blocks.layout import block_layout
from vilg.nn.attention.patterns import SOURCE, TARGET, Layout, Pattern, Role
from vilg.nn.memory_savers import CHUNK
from vilg.nn.program import Activation, Attend, Map, Norm, Program, around

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
    dropout: float

    @property
    def layout(self) -> Layout:
        """Text slots, rows and columns of the stream."""

    @property
    def patterns(self) -> list[Pattern]:
        """What the image slots of every layer see."""

    @property
    def program(self) -> Program:
        """What a block computes."""


@dataclass(frozen=True)
class StepPlan:
    """How a step is computed on one device.

    ``batch``: samples a micro-batch and device. ``roles``: the directions trained in it. ``half``: activations in two
    bytes. ``flash``: attention that keeps no weights (FlashMask on a GPU) for every pattern that
    fits it. ``recompute_every``: every k-th block forgets its activations (0: none). ``gelu_again``: what
    GELU gives is not kept (``linear_after_gelu`` on a CPU, and in half precision on a device). ``logits_again``: nor
    are logits (``linear_cross_entropy`` in half precision on a device); a chunk of them is there at a time, in float32.
    ``divided``: how many devices compute every layer together, each its part of what a block has between the map
    into attention or the feed-forward part and the map out of it.
    """

    batch: int
    roles: tuple[Role, ...] = (TARGET, SOURCE)
    half: bool = False
    flash: bool = False
    recompute_every: int = 0
    gelu_again: bool = False
    logits_again: bool = False
    divided: int = 1

    def recomputes(self, layer: int) -> bool:
        """Whether layer number ``layer`` (from 0) forgets its activations."""
        return bool(self.recompute_every) and layer % self.recompute_every == 0


def attention_keys(shape: Shape, pattern: Pattern, role: Role) -> tuple[int, int]:
    """Keys that each image query and each text query of a layer are compared with."""
    return block_layout(pattern, role, shape.layout).keys, role.text_keys(shape.layout)


def attention_elements(shape: Shape, step: StepPlan, pattern: Pattern, role: Role) -> int:
    """Attention weights that a layer keeps for one direction: N·B·(n·keys of the image + M·keys of the text)."""
    if step.flash and pattern.runs(shape.layout) is not None:
        return step.batch * shape.heads * shape.layout.length // step.divided  # the log-sum-exp of each row
    image, text = attention_keys(shape, pattern, role)
    copies = 2 if shape.dropout else 1  # weights, and the factors that dropped some of them
    compared = shape.layout.image * image + shape.layout.text * text
    return copies * step.batch * shape.heads * compared // step.divided


def block_elements(shape: Shape, step: StepPlan, pattern: Pattern) -> dict[str, int]:
    """What one block keeps from forward to backward, by what keeps it (elements)."""
    slots = len(step.roles) * step.batch * shape.layout.length
    stream, attention, inner = "residual stream and norms", "queries, keys, values", "feed-forward"
    kept = {stream: 0, attention: 0, inner: 0}
    for before, operation, _ in around(shape.program):
        match operation:
            case Norm(width=width):
                kept[stream] += slots * (width + 2)  # its input, and the mean and variance of each slot
            case Attend(width=width):
                kept[attention] += slots * 3 * width // step.divided
            case Activation(width=width):
                kept[inner] += slots * width // step.divided
            case Map(inputs=inputs):
                if not (isinstance(before, Activation) and step.gelu_again):
                    part = step.divided if isinstance(before, Attend | Activation) else 1
                    kept[{Attend: attention, Activation: inner}.get(type(before), stream)] += slots * inputs // part
    return kept | {"attention weights": sum(attention_elements(shape, step, pattern, role) for role in step.roles)}


def head_elements(shape: Shape, step: StepPlan) -> dict[str, int]:
    """Embeddings, final norm and logits: what lies outside the blocks from forward to backward (elements)."""
    layout, batch = shape.layout, step.batch
    image = batch * layout.image if any(role.image_is_target for role in step.roles) else 0
    text = batch * layout.text if any(not role.image_is_target for role in step.roles) else 0
    return {"embeddings and final norm": _stream(shape, step) + 2 * (image + text) * shape.width,
            "logits": image * shape.codebook_size + text * shape.vocab_size if not _logits_again(step) else 0}


def _logits_again(step: StepPlan) -> bool:
    return step.logits_again or step.divided > 1  # a divided head never keeps them


def kept_bytes(shape: Shape, step: StepPlan) -> dict[str, int]:
    """What a micro-batch's forward pass leaves for the backward pass, by part and by kind of layer.

    Recomputed blocks keep their input alone.
    """
    size = 2 if step.half else FLOAT
    parts = {name: elements * size for name, elements in head_elements(shape, step).items()}
    for number, pattern in enumerate(shape.patterns):
        if step.recomputes(number):
            kept = {"recomputed blocks' inputs": _stream(shape, step)}
        else:
            kept = block_elements(shape, step, pattern)
        for name, elements in kept.items():
            key = f"{pattern.name} {name}" if name == "attention weights" else name
            parts[key] = parts.get(key, 0) + elements * size
    return parts


def backward_peak(shape: Shape, step: StepPlan, gradient_size: int = FLOAT, whole_gradients: bool = True) -> int:
    """The most bytes that activations and fresh gradients take together, at any moment of the backward pass.

    Gradients arrive while activations go, so neither sum says it. ``gradient_size``: bytes of a gradient's element.
    ``whole_gradients`` False: gradients leave for their owner at once and only the block at hand's are there.
    """
    size, stream, heads = 2 if step.half else FLOAT, _stream(shape, step), head_elements(shape, step)
    blocks = [sum(block_elements(shape, step, pattern).values()) for pattern in shape.patterns]
    kept = [stream if step.recomputes(number) else whole for number, whole in enumerate(blocks)]
    inner, packed = _widest(shape, step, Activation), 3 * _widest(shape, step, Attend)
    gradients = _head_parameters(shape, step.divided) * gradient_size
    peak = (sum(kept) + sum(heads.values()) + min(LOGIT_CHUNK, heads["logits"])) * size + gradients
    if _logits_again(step):
        # Three chunks (logits, the right classes, the change), and a float32 gradient of the larger head.
        peak += (3 * CHUNK + max(shape.codebook_size, shape.vocab_size) * shape.width // step.divided) * FLOAT
    outside = heads["embeddings and final norm"]
    block_gradient = block_parameters(shape, step.divided) * gradient_size
    for number in reversed(range(shape.layers)):
        live = sum(kept[:number]) + blocks[number] + outside
        # The gradient behind GELU, while that before it takes the place of what was kept; or both, and GELU once more.
        feed_forward = live + 2 * stream + (3 if step.gelu_again else 1) * inner
        weights = max(attention_elements(shape, step, shape.patterns[number], role) for role in step.roles)
        attention = live - (1 if step.gelu_again else 2) * inner + 2 * stream + packed + weights
        peak = max(peak, max(feed_forward, attention) * size + gradients + block_gradient)
        gradients = gradients + block_gradient if whole_gradients else 0
    if whole_gradients:
        # At the end embeddings have gradients too, and the norm squares the largest one in a tensor of its own.
        gradients += _embedding_parameters(shape) * gradient_size
        peak = max(peak, gradients + max(largest_parameter(shape), outside) * gradient_size)
    return peak


def block_parameters(shape: Shape, divided: int = 1) -> int:
    """Parameters of one block: the matrices and biases of its maps, two vectors a norm; or what one of ``divided``
    devices has of them."""
    program = cut_sizes(shape.program, divided)
    maps = [operation for operation in program if isinstance(operation, Map)]
    norms = [operation for operation in program if isinstance(operation, Norm)]
    return sum((each.inputs + 1) * each.outputs for each in maps) + sum(2 * each.width for each in norms)


def parameter_count(shape: Shape, divided: int = 1) -> int:
    """Parameters of the whole model, or what one of ``divided`` devices has of them: blocks, embeddings and positions,
    final norm, two heads with their biases."""
    around_blocks = _embedding_parameters(shape) + 2 * shape.width + _head_parameters(shape, divided)
    return shape.layers * block_parameters(shape, divided) + around_blocks


def _head_parameters(shape: Shape, divided: int) -> int:
    """Of both heads; one whose vocabulary does not divide is whole on every device."""
    return sum(classes // (1 if classes % divided else divided) * (shape.width + 1)
               for classes in (shape.codebook_size, shape.vocab_size))


def _embedding_parameters(shape: Shape) -> int:
    layout = shape.layout
    rows = shape.vocab_size + layout.text + shape.codebook_size + layout.rows + layout.columns + 1
    return rows * shape.width


def divided_traffic(shape: Shape, step: StepPlan) -> int:
    """Bytes that the devices of one model send each for one micro-batch: a sum behind attention and one behind the
    feed-forward part forward, one before each backward, and forward's again where a block is computed again."""
    if step.divided == 1:
        return 0
    sums = sum(2 + (1 + step.recomputes(number)) * 2 for number in range(shape.layers))
    heads = len(step.roles) * step.batch * shape.layout.length * shape.width  # before the heads, at most
    size, share = 2 if step.half else FLOAT, 2 * (step.divided - 1) / step.divided
    return int((sums * _stream(shape, step) + heads) * size * share)


def largest_parameter(shape: Shape) -> int:
    """Elements of the largest tensor of the model."""
    maps = [operation.inputs * operation.outputs for operation in shape.program if isinstance(operation, Map)]
    return max(shape.width * shape.vocab_size, shape.width * shape.codebook_size, *maps)


def _widest(shape: Shape, step: StepPlan, kind: type[Activation] | type[Attend]) -> int:
    """Elements of the widest value [ΣB, L, ·] of one kind of operation in a block."""
    widths = [operation.width for operation in shape.program if isinstance(operation, kind)]
    return len(step.roles) * step.batch * shape.layout.length * max(widths) // step.divided


def _stream(shape: Shape, step: StepPlan) -> int:
    """Elements of one [ΣB, L, D]."""
    return len(step.roles) * step.batch * shape.layout.length * shape.width
