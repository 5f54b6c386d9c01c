"""Public weights of other projects → our image tokenizers: names, layouts and configs.

Known layouts: the f = 8 VQGAN with a plain or a Gumbel quantizer (``encoder.down.0.block.0.norm1.weight`` …,
``quantize.embedding.weight`` or ``quantize.proj`` / ``quantize.embed``), and the public dVAE's two state dicts
(``blocks.group_1.block_1.res_path.conv_1.w`` …).
"""
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vilg import config as configs
from vilg.errors import CheckpointError, VilgError
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.dvae import DVAEConfig
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.vqvae import VQConfig
from vilg.weights.files import load_weights
from vilg.weights.foreign import read_foreign_weights, weights_beginning_with
from vilg.weights.limits import at_most

C = TypeVar("C")
VQGAN_FIRST, DVAE_FIRST = "encoder.conv_in.weight", "blocks.input.w"
"""The weights that a VQGAN, and either half of the dVAE, are known by."""


_BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "shortcut"}
_ATTENTION = {"norm": "norm", "q": "query", "k": "key", "v": "value", "proj_out": "out"}


def convert_vqgan(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A public VQGAN state dict → our names. The loss's weights (perceptual network, discriminator) are left out.

    Raises CheckpointError that names a key nobody knows.
    """
    levels = 1 + _highest(arrays, r"decoder\.up\.(\d{1,6})\.", "decoder.up.0.block.0.conv1.weight")
    return {_vqgan_name(name, levels): value for name, value in arrays.items() if not name.startswith("loss.")}


def _vqgan_name(name: str, levels: int) -> str:
    """Our name of a public VQGAN weight; its decoder numbers levels from the highest resolution,
    ours by their order."""
    fixed = {"quantize.embedding.weight": "quantizer.codebook", "quantize.embed.weight": "quantizer.codebook.weight"}
    if name in fixed:
        return fixed[name]
    head, _, leaf = name.rpartition(".")
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
    if match := re.fullmatch(r"(down|up)\.(\d{1,6})\.(block|attn)\.(\d{1,6})\.(\w+)", inner):
        names, part = (_ATTENTION, "attentions") if match[3] == "attn" else (_BLOCK, "blocks")
        if match[5] in names:
            return f"levels.{_level(match[1], match[2], levels)}.{part}.{match[4]}.{names[match[5]]}"
    if match := re.fullmatch(r"(down|up)\.(\d{1,6})\.(?:downsample|upsample)\.conv", inner):
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
    elif match := re.fullmatch(r"blocks\.group_(\d{1,6})\.block_(\d{1,6})\.(id_path|res_path\.conv_(\d{1,6}))", body):
        part = "skip" if match[3] == "id_path" else f"path.{int(match[4]) - 1}"
        inner = f"{prefix}.stages.{int(match[1]) - 1}.{int(match[2]) - 1}.{part}"
    if leaf is None or inner is None:
        raise CheckpointError(f"the checkpoint has {name}, which the public dVAE has not")
    return f"{inner}.{leaf}"


def infer_vqgan_config(arrays: dict[str, np.ndarray], image_size: int) -> VQConfig:
    """The config of a public VQGAN, read off the shapes of its weights; ``image_size`` is what it was trained on.

    Raises CheckpointError when a weight that tells a size is missing.
    """
    levels = 1 + _highest(arrays, r"encoder\.down\.(\d{1,6})\.", VQGAN_FIRST)
    widths = [_shape(arrays, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    channels = _shape(arrays, VQGAN_FIRST, 4)[0]
    gumbel = "quantize.proj.weight" in arrays
    codes, code_dim = _shape(arrays, "quantize.embed.weight" if gumbel else "quantize.embedding.weight", 2)
    return _config(
        VQConfig, image_size, kind="vqgan", channels=channels, multipliers=[width // channels for width in widths],
        blocks=1 + _highest(arrays, r"encoder\.down\.0\.block\.(\d{1,6})\.", "encoder.down.0.block.0.conv1.weight"),
        decoder_blocks=1 + _highest(arrays, r"decoder\.up\.0\.block\.(\d{1,6})\.",
                                    "decoder.up.0.block.0.conv1.weight"),
        attention_resolutions=[image_size // 2 ** level for level in range(levels)
                               if f"encoder.down.{level}.attn.0.q.weight" in arrays],
        norm_groups=math.gcd(32, *widths), code_dim=code_dim,
        z_channels=_shape(arrays, "encoder.conv_out.weight", 4)[0],
        quantizer={"kind": "gumbel" if gumbel else "straight_through", "codebook_size": codes})


def infer_dvae_config(encoder: dict[str, np.ndarray], decoder: dict[str, np.ndarray], image_size: int) -> DVAEConfig:
    """The config of the public dVAE, read off the shapes of its weights. Raises CheckpointError as above."""
    groups = _highest(encoder, r"blocks\.group_(\d{1,6})\.", "blocks.group_1.block_1.res_path.conv_1.w")
    widths = [_shape(encoder, f"blocks.group_{group}.block_1.res_path.conv_4.w", 4)[0]
              for group in range(1, groups + 1)]
    channels = _shape(encoder, DVAE_FIRST, 4)[0]
    decoder_channels, codes = _shape(decoder, DVAE_FIRST, 4)[:2]
    return _config(DVAEConfig, image_size, channels=channels, multipliers=[width // channels for width in widths],
                   blocks=_highest(encoder, r"blocks\.group_1\.block_(\d{1,6})\.",
                                   "blocks.group_1.block_1.res_path.conv_1.w"),
                   codebook_size=codes, decoder_channels=decoder_channels)


def import_vqgan(path: str | Path, image_size: int = 256) -> ImageTokenizer:
    """A public VQGAN checkpoint as a tokenizer ready for use. Raises CheckpointError when its layout is not known, or
    pictures of ``image_size`` do not suit it."""
    arrays = weights_beginning_with(read_foreign_weights(path), VQGAN_FIRST, str(path))
    arrays = {name: value for name, value in arrays.items() if not name.startswith("loss.")}
    return _import(lambda: infer_vqgan_config(arrays, image_size), lambda: convert_vqgan(arrays), str(path),
                   list(arrays.values()))


def import_dvae(encoder_path: str | Path, decoder_path: str | Path, image_size: int = 256) -> ImageTokenizer:
    """The public dVAE's two files as a tokenizer ready for use. Raises CheckpointError as :func:`import_vqgan`."""
    encoder, decoder = (weights_beginning_with(read_foreign_weights(path), DVAE_FIRST, str(path))
                        for path in (encoder_path, decoder_path))
    return _import(lambda: infer_dvae_config(encoder, decoder, image_size), lambda: convert_dvae(encoder, decoder),
                   f"{encoder_path} with {decoder_path}", [*encoder.values(), *decoder.values()])


def _import(infer: Callable[[], VQConfig | DVAEConfig], convert: Callable[[], dict[str, np.ndarray]], source: str,
            values: list[np.ndarray]) -> ImageTokenizer:
    """The tokenizer of the config that ``infer`` gives with the weights that ``convert`` gives; what is built is
    bounded by the ``values`` that the file holds."""
    try:
        config = infer()
        if max(config.blocks, len(config.multipliers), getattr(config, "decoder_blocks", 1)) > len(values):
            raise CheckpointError(f"the numbers in its weights' names are beyond the {len(values)} weights it has")
        weights = convert()
        with at_most(sum(value.size for value in values), source):
            tokenizer = build_image_tokenizer(config)
        load_weights(tokenizer, weights, source)
    except VilgError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(source) else f"{source}: {text}") from None
    tokenizer.eval()
    return tokenizer


def _config(cls: type[C], image_size: int, channels: int, multipliers: list[int], **values: Any) -> C:
    """A config read off weights. Raises ConfigError when the numbers do not go together."""
    values |= {"image_size": image_size, "channels": channels, "multipliers": multipliers}
    return configs.from_dict(cls, values, f"the sizes read off the weights, with an image size of {image_size}")


def _highest(arrays: dict[str, np.ndarray], pattern: str, example: str) -> int:
    """The highest number that ``pattern`` finds among the names. Raises CheckpointError that names the ``example`` of
    such a name when there is none."""
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, arrays) if match]
    if not numbers:
        raise CheckpointError(f"the checkpoint has no weight such as {example}, so its layout is not known here")
    return max(numbers)


def _shape(arrays: dict[str, np.ndarray], name: str, rank: int) -> tuple[int, ...]:
    """The shape of a weight of ``rank`` axes. Raises CheckpointError when there is none such."""
    if name not in arrays:
        raise CheckpointError(f"the checkpoint has no {name}, so its layout is not known here")
    shape = arrays[name].shape
    if len(shape) != rank or 0 in shape:
        raise CheckpointError(f"{name} of the checkpoint is {list(shape)}, where {rank} axes are due")
    return shape
