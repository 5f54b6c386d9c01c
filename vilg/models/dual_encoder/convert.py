"""Public ERNIE-ViL 2.0 weights → a :class:`DualEncoder`: both schemes of names that they come in.

PaddleNLP's (``text_model.encoder.layers.0.self_attn.q_proj.weight`` …, from its ``ernie_vil-2.0-base-zh``) and Baidu's
own (``text_model.encoder_stack.block.0.attn.q.weight`` …, ``OPEN_ERNIE_VIL2_BASE_ViT.pdparams``). Shapes are read off
the weights. What weights do not tell is known of the scheme: the two compute the text tower with another eps.
"""
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilg.errors import CheckpointError
from vilg.models.dual_encoder.image import ImageTowerConfig
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.models.dual_encoder.text import TextTowerConfig
from vilg.weights.files import load_weights, read_weights
from vilg.weights.pdparams import read_pdparams

HEAD_WIDTH = 64  # of every ViT and ERNIE that was released; the weights do not tell it
_PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Scheme:
    """One way of naming: ``layers`` and ``inner`` map what stands before ``.weight`` and ``.bias``, without and inside
    the stacks of blocks; ``tables`` are whole names. ``mark`` is a name that only this scheme has."""

    name: str
    mark: str
    text_eps: float
    tables: dict[str, str]
    layers: dict[str, str]
    stacks: dict[str, str]
    inner: dict[str, str]


_ATTENTION = {f"self_attn.{part}_proj": f"qkv.{part}" for part in _PARTS} | {"self_attn.out_proj": "proj"}

PADDLENLP = Scheme(
    name="PaddleNLP", mark="temperature", text_eps=1e-12,
    tables={"temperature": "temperature.log",
            "text_model.embeddings.word_embeddings.weight": "text_tower.word_embedding.weight",
            "text_model.embeddings.position_embeddings.weight": "text_tower.position_embedding.weight",
            "vision_model.class_embedding": "image_tower.class_embedding.weight",
            "vision_model.positional_embedding.weight": "image_tower.position_embedding.weight",
            "vision_model.conv1.weight": "image_tower.patch_map.weight"},
    layers={"text_model.embeddings.layer_norm": "text_tower.norm", "text_model.pooler.dense": "text_tower.pooler",
            "vision_model.ln_pre": "image_tower.norm", "vision_model.ln_post": "image_tower.stack.norm"},
    stacks={"text_model.encoder.layers": "text_tower.stack.blocks",
            "vision_model.transformer.layers": "image_tower.stack.blocks"},
    inner=_ATTENTION | {"linear1": "fc1", "linear2": "fc2", "norm1": "norm1", "norm2": "norm2"})

BAIDU = Scheme(
    name="Baidu", mark="contrastive_loss_mm.temperature_b", text_eps=1e-5,
    tables={"contrastive_loss_mm.temperature_b": "temperature.log",
            "text_model.word_emb.weight": "text_tower.word_embedding.weight",
            "text_model.pos_emb.weight": "text_tower.position_embedding.weight",
            "visual.class_embedding": "image_tower.class_embedding.weight",
            "visual.positional_embedding": "image_tower.position_embedding.weight",
            "visual.patch_embed.proj.weight": "image_tower.patch_map.weight"},
    layers={"text_model.ln": "text_tower.norm", "text_model.pooler": "text_tower.pooler",
            "visual.norm_pre": "image_tower.norm", "visual.norm_post": "image_tower.stack.norm"},
    stacks={"text_model.encoder_stack.block": "text_tower.stack.blocks",
            "visual.blocks": "image_tower.stack.blocks"},
    inner={f"attn.{part}": f"qkv.{part}" for part in _PARTS}
    | {"attn.o": "proj", "ffn.i": "fc1", "ffn.o": "fc2", "ln1": "norm1", "ln2": "norm2",  # the text tower's
       "attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2", "norm1": "norm1", "norm2": "norm2"})

SCHEMES = (PADDLENLP, BAIDU)


def scheme_of(arrays: dict[str, np.ndarray]) -> Scheme:
    """The scheme that the names follow. Raises CheckpointError when they follow neither."""
    for scheme in SCHEMES:
        if scheme.mark in arrays:
            return scheme
    raise CheckpointError(f"has neither {PADDLENLP.mark} ({PADDLENLP.name}) nor {BAIDU.mark} ({BAIDU.name}), so these "
                          "are not the weights of an ERNIE-ViL 2.0")


def convert_dual_encoder(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A public state dict → our names, in float32. Raises CheckpointError that names a weight nobody knows, one that
    comes twice, or a query, key or value that lacks the other two."""
    scheme, state, thirds = scheme_of(arrays), {}, {}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise CheckpointError(f"{name} holds {array.dtype} where weights are floating-point numbers")
        own, part = _own_name(scheme, name)
        target = state if part is None else thirds.setdefault(own, {})
        if (part or own) in target:
            raise CheckpointError(f"{name} comes twice, under two names")
        target[part or own] = array.astype("float32", copy=False)
    for own, parts in thirds.items():
        lacking = [part for part in _PARTS if part not in parts]
        if lacking or own in state or len({array.shape for array in parts.values()}) > 1:
            raise CheckpointError(f"queries, keys and values of {own} do not make one map "
                                  f"({', '.join(f'{part} {list(array.shape)}' for part, array in parts.items())})")
        state[own] = np.concatenate([parts[part] for part in _PARTS], axis=-1)  # [D, 3D] or [3D]
    return {own: _flattened(own, array) for own, array in state.items()}


def _own_name(scheme: Scheme, name: str) -> tuple[str, str | None]:
    """Our name of a weight, and which third of it this is ("q", "k", "v"; None for all of it)."""
    if name in scheme.tables:
        return scheme.tables[name], None
    head, _, leaf = name.rpartition(".")
    if leaf in ("weight", "bias"):
        if head in scheme.layers:
            return f"{scheme.layers[head]}.{leaf}", None
        match = re.fullmatch(r"(.+?)\.(\d{1,4})\.(.+)", head)
        if match and match[1] in scheme.stacks and match[3] in scheme.inner:
            layer, _, part = scheme.inner[match[3]].partition(".")
            return f"{scheme.stacks[match[1]]}.{int(match[2])}.{layer}.{leaf}", part or None
    raise CheckpointError(f"has {name}, which no ERNIE-ViL 2.0 in {scheme.name}'s names has")


def _flattened(own: str, array: np.ndarray) -> np.ndarray:
    """Tables as [rows, D], whichever axes of length one a scheme puts around them."""
    if own.endswith("embedding.weight") and array.ndim:
        return array.reshape([-1, array.shape[-1]])
    return array.reshape([1]) if own == "temperature.log" and array.size == 1 else array


def infer_dual_encoder_config(state: dict[str, np.ndarray], text_eps: float,
                              head_width: int = HEAD_WIDTH) -> DualEncoderConfig:
    """The config of converted weights. Raises CheckpointError when a weight that tells a size is missing or odd."""
    count, width = _shape(state, "image_tower.position_embedding.weight", 2)
    side, patch = math.isqrt(max(0, count - 1)), _shape(state, "image_tower.patch_map.weight", 4)[-1]
    if side < 1 or side * side != count - 1:
        raise CheckpointError(f"has {count} image positions, which are not one and those of a square of patches")
    rows, text_width = _shape(state, "text_tower.word_embedding.weight", 2)
    positions = _shape(state, "text_tower.position_embedding.weight", 2)[0]
    try:
        image = ImageTowerConfig(image_size=side * patch, patch_size=patch,
                                 **_stack_shape(state, "image_tower", width, head_width))
        text = TextTowerConfig(vocab_size=rows, positions=positions, norm_eps=text_eps,
                               **_stack_shape(state, "text_tower", text_width, head_width))
        return DualEncoderConfig(image=image, text=text)
    except ValueError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"its sizes make no model ({reason})") from None


def _stack_shape(state: dict[str, np.ndarray], tower: str, width: int, head_width: int) -> dict[str, int]:
    prefix = f"{tower}.stack.blocks."
    numbers = [int(name[len(prefix):].split(".")[0]) for name in state if name.startswith(prefix)]
    if not numbers:
        raise CheckpointError(f"has no blocks of the {tower.replace('_', ' ')}")
    inner = _shape(state, f"{prefix}0.fc1.weight", 2)[1]
    if width % head_width or inner % width:
        raise CheckpointError(f"the {tower.replace('_', ' ')} is {width} wide with {inner} inside its blocks; heads of "
                              f"{head_width} and whole multiples are known here")
    return {"layers": 1 + max(numbers), "width": width, "heads": width // head_width, "mlp_ratio": inner // width}


def _shape(state: dict[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in state or state[name].ndim != axes or 0 in state[name].shape:
        found = f"is {list(state[name].shape)}" if name in state else "is missing"
        raise CheckpointError(f"{name} {found}, where a table of {axes} axes tells the model's size")
    return state[name].shape


def import_dual_encoder(path: str | Path, text_eps: float | None = None, head_width: int = HEAD_WIDTH) -> DualEncoder:
    """A public checkpoint (.pdparams or .safetensors) as a model ready for use, in evaluation mode.

    ``text_eps`` is that of the scheme's own code unless given. Raises CheckpointError, which names the file.
    """
    arrays = read_weights(path) if Path(path).suffix == ".safetensors" else read_pdparams(path)
    try:
        eps = scheme_of(arrays).text_eps if text_eps is None else text_eps
        state = convert_dual_encoder(arrays)
        model = DualEncoder(infer_dual_encoder_config(state, eps, head_width))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    load_weights(model, state, str(path))
    model.eval()
    return model
