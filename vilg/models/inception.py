"""Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567), whose features the Fréchet distance is taken in.

Two networks have that name, and their distances are two numbers, never one:

* ``torchvision``: 1000 classes, average pools that count the padding; DM-GAN's evaluation, which ERNIE-ViLG names
  (arXiv 2112.15283, section 4), uses it.
* ``tf``: ``pt_inception-2015-12-05``, 1008 classes, average pools that leave the padding out and a max pool in the last
  block; pytorch-fid, torch-fidelity and clean-fid use it.

It is only ever read and never trained, so batch norms are folded into the convolutions when weights are loaded.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.data.resize import SIDE
from vilg.errors import CheckpointError, ConfigError, ShapeError
from vilg.nn import functional
from vilg.weights.files import fingerprint
from vilg.weights.foreign import read_foreign_weights

Variant = Literal["torchvision", "tf"]
CLASSES: dict[str, int] = {"torchvision": 1000, "tf": 1008}
NAMES: dict[str, str] = {"torchvision": "torchvision's Inception-v3 (1000 classes)",
                         "tf": "pt_inception-2015-12-05 (1008 classes)"}
FEATURES = 2048
EPSILON = 1e-3
"""Of every batch norm."""
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# Also in the public files, and without a part in features: a head for training, and counters.
_SET_ASIDE = ("AuxLogits.",), ("num_batches_tracked",)

Kernel = int | tuple[int, int]
Step = tuple[str, int, Kernel]  # the public name, output channels, kernel


@dataclass(frozen=True)
class InceptionOutputs:
    """``pool`` [B, 2048], the mean over places of the last block; ``logits`` [B, classes] without their bias, as the
    Inception Score takes them."""

    pool: Tensor
    logits: Tensor


class ConvolutionReLU(nn.Layer):
    """relu(convolution), [B, C, H, W] → [B, out, H', W']: of one size where stride is 1 and ``padded``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1, padded: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride = stride
        rows, columns = (height // 2, width // 2) if padded and stride == 1 else (0, 0)
        self.padding = (rows, rows, columns, columns)
        self.weight = self.create_parameter([out_channels, in_channels, height, width])
        self.bias = self.create_parameter([out_channels], is_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(functional.conv2d(x, self.weight, self.bias, self.stride, self.padding))


class Mixed(nn.Layer):
    """Branches side by side, joined along channels: [B, C, H, W] → [B, Σ, H', W'].

    A branch is a chain of convolutions, which may end in a tuple of steps: two side by side on what came before.
    ``pool`` is the width of the last branch, a pool and a 1×1 convolution, or 0 for a max pool alone. Where ``halves``,
    the last convolution of every branch and the pool have stride 2.
    """

    def __init__(self, channels: int, branches: list[list[Step | tuple[Step, ...]]], pool: int,
                 average: Literal["padded", "inside", "max"], halves: bool = False):
        super().__init__()
        self.average, self.halves, self.chains, self.width = average, halves, [], 0
        for branch in branches:
            width, chain = channels, []
            for number, part in enumerate(branch):
                steps = (part,) if isinstance(part[0], str) else part
                stride = 2 if halves and number == len(branch) - 1 else 1
                for name, out, kernel in steps:
                    self.add_sublayer(name, ConvolutionReLU(width, out, kernel, stride))
                chain.append([name for name, *_ in steps])
                width = sum(out for _, out, _ in steps)
            self.chains.append(chain)
            self.width += width
        if pool:
            self.branch_pool = ConvolutionReLU(channels, pool, 1)
        self.width += pool or channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = [x]
            for names in chain:
                y = [getattr(self, name)(y[0]) for name in names]
            outputs += y
        return paddle.concat([*outputs, self._pool(x)], axis=1)

    def _pool(self, x: Tensor) -> Tensor:
        if self.halves:
            return F.max_pool2d(x, 3, stride=2)
        if self.average == "max":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        # A mean and a 1×1 convolution commute, and behind it there are a fourth of the channels to take means of.
        y = functional.conv2d(x, self.branch_pool.weight, None, 1, (0, 0, 0, 0))
        y = F.avg_pool2d(y, 3, stride=1, padding=1, exclusive=self.average == "inside")
        return F.relu_(y + self.branch_pool.bias.reshape([1, -1, 1, 1]))  # [out] → [1, out, 1, 1]


class Inception(nn.Layer):
    """Images [B, 3, 299, 299] in (-1, 1) → :class:`InceptionOutputs`; in eval mode for good.

    ``fingerprint`` names the weights that were loaded, for signatures. Raises ConfigError for another variant,
    ShapeError for images of another size.
    """

    def __init__(self, variant: Variant):
        super().__init__()
        if variant not in CLASSES:
            raise ConfigError(f"there is no Inception-v3 called {variant}; choose one of {', '.join(CLASSES)}")
        self.fingerprint = ""
        for number, (name, out, kernel) in enumerate(_STEM):
            stride, padded = (2 if number == 0 else 1), name == "Conv2d_2b_3x3"
            before = _STEM[number - 1][1] if number else 3
            self.add_sublayer(name, ConvolutionReLU(before, out, kernel, stride, padded))
        self.mixed = []
        width = _STEM[-1][1]
        for name, branches, pool, halves in _mixed_blocks():
            average = "padded" if variant == "torchvision" else "max" if name == "Mixed_7c" else "inside"
            self.add_sublayer(name, block := Mixed(width, branches, pool, average, halves))
            self.mixed.append(name)
            width = block.width
        self.fc_weight = self.create_parameter([width, CLASSES[variant]])
        self.eval()

    @paddle.no_grad()
    def forward(self, images: Tensor) -> InceptionOutputs:
        if images.ndim != 4 or list(images.shape[1:]) != [3, SIDE, SIDE]:
            raise ShapeError(f"Inception-v3 takes images [B, 3, {SIDE}, {SIDE}], got {list(images.shape)}; resize them "
                             "by the protocol first")
        x = images
        for name, _, _ in _STEM:
            x = getattr(self, name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, stride=2)
        for name in self.mixed:
            x = getattr(self, name)(x)
        pool = x.mean([2, 3])  # [B, 2048, 8, 8] → [B, 2048]
        return InceptionOutputs(pool, functional.matmul(pool, self.fc_weight))


_STEM: tuple[Step, ...] = (("Conv2d_1a_3x3", 32, 3), ("Conv2d_2a_3x3", 32, 3), ("Conv2d_2b_3x3", 64, 3),
                           ("Conv2d_3b_1x1", 80, 1), ("Conv2d_4a_3x3", 192, 3))


def _mixed_blocks() -> list[tuple[str, list[list[Step | tuple[Step, ...]]], int, bool]]:
    """(name, branches, width of the pool's convolution, whether sides are halved) of the eleven blocks."""
    wide, high = (1, 7), (7, 1)
    blocks = [(name, [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
                      [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]], pool, False)
              for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64))]
    blocks.append(("Mixed_6a", [[("branch3x3", 384, 3)], [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3),
                                                          ("branch3x3dbl_3", 96, 3)]], 0, True))
    for name, c in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        blocks.append((name, [
            [("branch1x1", 192, 1)], [("branch7x7_1", c, 1), ("branch7x7_2", c, wide), ("branch7x7_3", 192, high)],
            [("branch7x7dbl_1", c, 1), ("branch7x7dbl_2", c, high), ("branch7x7dbl_3", c, wide),
             ("branch7x7dbl_4", c, high), ("branch7x7dbl_5", 192, wide)]], 192, False))
    blocks.append(("Mixed_7a", [[("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
                                [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, wide), ("branch7x7x3_3", 192, high),
                                 ("branch7x7x3_4", 192, 3)]], 0, True))
    for name in ("Mixed_7b", "Mixed_7c"):
        blocks.append((name, [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))],
            [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3),
             (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1)))]], 192, False))
    return blocks


def load_inception(path: str | Path, variant: Variant) -> Inception:
    """The network of ``variant`` with the weights of a local file in its public format, which is not unpickled.

    Raises CheckpointError when the file is missing or damaged, or holds the other variant or another network; the
    message names what was found and what is due.
    """
    arrays = {name: array for name, array in read_foreign_weights(path).items()
              if not name.startswith(_SET_ASIDE[0]) and not name.endswith(_SET_ASIDE[1])}
    network = Inception(variant)
    layers = {name: layer for name, layer in network.named_sublayers() if isinstance(layer, ConvolutionReLU)}
    _refuse_others(path, arrays, layers, variant)
    for name, layer in layers.items():
        weight, bias = _folded(arrays, name)
        layer.weight.set_value(weight)
        layer.bias.set_value(bias)
    network.fc_weight.set_value(arrays["fc.weight"].T.astype("float32"))
    network.fingerprint = fingerprint(arrays)
    for parameter in network.parameters():
        parameter.stop_gradient = True
    return network


def _refuse_others(path: str | Path, arrays: dict[str, np.ndarray], layers: dict[str, ConvolutionReLU],
                   variant: Variant) -> None:
    found = {classes: NAMES[name] for name, classes in CLASSES.items()}.get(len(arrays.get("fc.weight", ())))
    if found and found != NAMES[variant]:
        raise CheckpointError(f"{path}: holds {found}, and this protocol takes {NAMES[variant]}; give it that file, or "
                              "choose the protocol of this one")
    due = {"fc.weight": [CLASSES[variant], FEATURES], "fc.bias": [CLASSES[variant]]}
    for name, layer in layers.items():
        due[f"{name}.conv.weight"] = list(layer.weight.shape)
        due |= {f"{name}.bn.{part}": list(layer.bias.shape) for part in _BATCH_NORM}
    missing, unknown = sorted(due.keys() - arrays.keys()), sorted(arrays.keys() - due.keys())
    shapes = [f"{name} {list(arrays[name].shape)} where {shape} is due" for name, shape in due.items()
              if name in arrays and list(arrays[name].shape) != shape]
    problems = [f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
                for what, names in (("lacks", missing), ("also has", unknown), ("has", shapes)) if names]
    if problems:
        raise CheckpointError(f"{path}: holds {len(arrays)} weights of another network than {NAMES[variant]}, which "
                              f"has {len(due)}: {', '.join(problems)}; give it the public file")


def _folded(arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a convolution that does what it and its batch norm do."""
    scale, shift, mean, variance = (arrays[f"{name}.bn.{part}"].astype("float64") for part in _BATCH_NORM)
    factor = scale / np.sqrt(variance + EPSILON)
    weight = arrays[f"{name}.conv.weight"].astype("float64") * factor[:, None, None, None]
    return weight.astype("float32"), (shift - mean * factor).astype("float32")
