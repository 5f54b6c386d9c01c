"""Public weights of other projects → our image tokenizers: names, layouts and configs.

Known layouts: the f = 8 VQGAN with a plain or a Gumbel quantizer (``encoder.down.0.block.0.norm1.weight`` …,
``quantize.embedding.weight`` or ``quantize.proj`` / ``quantize.embed``), and the public dVAE's two state dicts
(``blocks.group_1.block_1.res_path.conv_1.w`` …).
"""
import re
from pathlib import Path
from typing import Any

import numpy as np

from vilg.errors import CheckpointError
from vilg.tokenizers.torch_checkpoint import StandIn, read_torch_checkpoint
from vilg.weights import read_weights


def read_foreign_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file or a PyTorch checkpoint (state dict, Lightning checkpoint or whole module).

    Nothing that the file asks for is run. Raises CheckpointError when the file is missing,
    cut short or holds no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    content = read_torch_checkpoint(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    arrays = _module_arrays(content) if isinstance(content, StandIn) else _arrays(content)
    if not arrays:
        raise CheckpointError(f"{path}: holds no named weights")
    return arrays


def _arrays(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}


def _module_arrays(module: StandIn, prefix: str = "") -> dict[str, np.ndarray]:
    """Weights of a module that was pickled whole: its parameters, buffers and those of its children, by path."""
    found = {}
    for part in ("_parameters", "_buffers"):
        found |= {f"{prefix}{name}": value for name, value in _arrays(vars(module).get(part)).items()}
    for name, child in (vars(module).get("_modules") or {}).items():
        if isinstance(child, StandIn):
            found |= _module_arrays(child, f"{prefix}{name}.")
    return found


_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "shortcut"}
_ATTENTION = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "out"}


def convert_vqgan(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A public VQGAN state dict → our names. The loss's weights (perceptual network, discriminator) are left out.

    Raises CheckpointError that names a key nobody knows.
    """
    levels = 1 + max((int(match[1]) for match in map(re.compile(r"decoder\.up\.(\d+)\.").match, arrays) if match),
                     default=-1)
    if not levels:
        raise CheckpointError("the checkpoint has no decoder.up.… weights, so it is not a VQGAN of the known layout")
    return {_vqgan_name(name, levels): value for name, value in arrays.items() if not name.startswith("loss.")}


def _vqgan_name(name: str, levels: int) -> str:
    """Our name of a public VQGAN weight; its decoder numbers levels from the highest resolution,
    ours by their order."""
    fixed = {"quantize.embedding.weight": "quantizer.codebook", "quantize.embed.weight": "quantizer.codebook.weight"}
    if name in fixed:
        return fixed[name]
    head, leaf = name.rsplit(".", 1)
    heads = {"quantize.proj": "quantizer.project", "quant_conv": "to_code", "post_quant_conv": "reconstructor.conv_in"}
    if head in heads:
        return f"{heads[head]}.{leaf}"
    half, _, inner = head.partition(".")
    prefix = {"encoder": "encoder", "decoder": "reconstructor.decoder"}.get(half)
    if prefix is None:
        raise CheckpointError(f"the checkpoint has {name}, which no known VQGAN has")
    return f"{prefix}.{_inner_name(inner, levels, name)}.{leaf}"


def _inner_name(inner: str, levels: int, name: str) -> str:
    if inner in ("conv_in", "conv_out", "norm_out"):
        return inner
    if match := re.fullmatch(r"mid\.(block_[12]|attn_1)\.(\w+)", inner):
        part = {"block_1": "block1", "block_2": "block2", "attn_1": "attention"}[match[1]]
        names = _ATTENTION if part == "attention" else _BLOCK
        if match[2] in names:
            return f"middle.{part}.{names[match[2]]}"
    if match := re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)", inner):
        names, part = (_ATTENTION, "attentions") if match[3] == "attn" else (_BLOCK, "blocks")
        if match[5] in names:
            return f"levels.{_level(match[1], match[2], levels)}.{part}.{match[4]}.{names[match[5]]}"
    if match := re.fullmatch(r"(down|up)\.(\d+)\.(?:downsample|upsample)\.conv", inner):
        return f"levels.{_level(match[1], match[2], levels)}.resize.conv"
    raise CheckpointError(f"the checkpoint has {name}, which no known VQGAN has")


def _level(direction: str, number: str, levels: int) -> int:
    return int(number) if direction == "down" else levels - 1 - int(number)


def convert_dvae(encoder: dict[str, np.ndarray], decoder: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The public dVAE's two state dicts → our names. Raises CheckpointError that names a key nobody knows."""
    ours = {}
    for source, prefix in ((encoder, "encoder"), (decoder, "reconstructor")):
        for name, value in source.items():
            ours[_dvae_name(name, prefix)] = value.reshape(-1) if name.endswith(".b") else value
    return ours


def _dvae_name(name: str, prefix: str) -> str:
    body, _, leaf = name.rpartition(".")
    leaf = {"w": "weight", "b": "bias"}.get(leaf)
    inner = None
    if body == "blocks.input":
        inner = "encoder.conv_in" if prefix == "encoder" else "code_in"
    elif body == "blocks.output.conv":
        inner = f"{prefix}.conv_out"
    elif match := re.fullmatch(r"blocks\.group_(\d+)\.block_(\d+)\.(id_path|res_path\.conv_(\d+))", body):
        part = "skip" if match[3] == "id_path" else f"path.{int(match[4]) - 1}"
        inner = f"{prefix}.stages.{int(match[1]) - 1}.{int(match[2]) - 1}.{part}"
    if leaf is None or inner is None:
        raise CheckpointError(f"the checkpoint has {name}, which the public dVAE has not")
    return f"{inner}.{leaf}"
