"""A released model in int8: its matrices rounded, large channels moved into the weights first where that helps.

A row of activations has one scale, so a channel that is far larger than the others leaves few steps for them. The norm
before a linear map can be divided by a factor a channel, and the map's rows multiplied by it, without a change in exact
arithmetic (SmoothQuant, arXiv:2211.10438). It is done where the errors of the rounded map become smaller on activations
that were seen.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from vilg import release
from vilg.errors import CheckpointError
from vilg.models.bidirectional import TextImageTransformer
from vilg.nn.layers import LayerNorm, Linear
from vilg.nn.program import Map, Norm, around
from vilg.release.folder import open_folder
from vilg.release.kinds.bidirectional import BidirectionalFolder, ReleasedModel
from vilg.release.registry import KINDS
from vilg.weights import int8

ROWS_KEPT = 256
"""Of the activations of every map."""
_HALF = 0.5
"""How much of a channel's size goes into the weights: the square root, as arXiv:2211.10438 has it."""


@dataclass
class Quantized:
    """What :func:`quantize` did: the new folder's fingerprint, maps whose channels were moved, and maps looked at."""

    fingerprint: str
    shifted: int
    maps: int


def read_unquantized(folder: str | Path) -> ReleasedModel:
    """A released model that draws and describes. Raises CheckpointError when it is of another kind or in int8 already.
    """
    opened = open_folder(folder)
    if not isinstance(opened.kind, BidirectionalFolder):
        raise CheckpointError(f"{folder}: is {opened.kind.title}; int8 is for models that draw and describe")
    if opened.int8:
        raise CheckpointError(f"{folder}: is in int8 already; quantize the float16 release that it was made of")
    return opened.kind.restore(opened)


def quantize(released: ReleasedModel, output: str | Path, seen: dict[str, np.ndarray] | None = None) -> Quantized:
    """Write ``released`` to the folder ``output`` in int8. Its model is the rounded one afterwards.

    ``seen``: activations [rows, in] by the name of the map that reads them, from :class:`Watch`; without them no
    channel is moved. Raises CheckpointError when the folder cannot be written.
    """
    model, seen = released.model, seen or {}
    shifted = sum(shift(norm, linear, seen[name]) for name, norm, linear in normed_maps(model) if name in seen)
    kind = next(name for name, kind in KINDS.items() if getattr(kind, "network", None) is type(model))
    for layer_name, axis in KINDS[kind].pack(released, {}).matrices.items():
        parameter = model.state_dict()[layer_name]
        values, scales = int8.rounded(parameter.numpy(), axis)
        parameter.set_value(values.astype("float32") * scales)
    return Quantized(release.write(output, kind, released, dtype="int8"), shifted, len(seen))


def normed_maps(model: TextImageTransformer) -> Iterator[tuple[str, LayerNorm, Linear]]:
    """Linear maps that alone read the result of a norm: name, norm, map."""
    for block in model.stack.blocks:
        for _, part, after in around(block.program):
            if isinstance(part, Norm) and isinstance(after, Map):
                yield f"{block.index}.{after.name}", getattr(block, part.name), getattr(block, after.name)


class Watch:
    """A context in which the activations that a model's normed maps read are kept, up to ROWS_KEPT rows each pass."""

    def __init__(self, model: TextImageTransformer):
        self._model, self._hooks, self._kept = model, [], {}

    def __enter__(self) -> "Watch":
        for name, _, linear in normed_maps(self._model):
            self._hooks.append(linear.register_forward_pre_hook(
                lambda layer, inputs, name=name: self._keep(name, inputs[0])))
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, x: paddle.Tensor) -> None:
        rows = x.numpy().reshape(-1, x.shape[-1])  # [B · L, D]
        self._kept.setdefault(name, []).append(rows[::max(1, -(-len(rows) // ROWS_KEPT))])

    def seen(self) -> dict[str, np.ndarray]:
        """Activations [rows, in] by the map's name."""
        return {name: np.concatenate(parts) for name, parts in self._kept.items()}


def shift(norm: LayerNorm, linear: Linear, x: np.ndarray) -> bool:
    """Move large channels of x [rows, in] from the norm into the map, if the rounded map comes nearer to the exact one
    by it; tells whether."""
    weight = linear.weight.numpy()
    size, reach = np.abs(x).max(axis=0), np.abs(weight).max(axis=1)  # [in] each
    factors = np.where((size > 0) & (reach > 0), size ** _HALF / np.maximum(reach, 1e-12) ** (1 - _HALF), 1)
    factors = (factors / np.exp(np.log(factors).mean())).astype("float32")
    exact = x @ weight
    moved = weight * factors[:, None]
    if not _error(x / factors, moved, exact) < _error(x, weight, exact):
        return False
    norm.weight.set_value(norm.weight.numpy() / factors)
    norm.bias.set_value(norm.bias.numpy() / factors)
    linear.weight.set_value(moved)
    return True


def _error(x: np.ndarray, weight: np.ndarray, exact: np.ndarray) -> float:
    """Mean square error of the product of rounded rows and rounded columns."""
    rows, of_rows = int8.rounded(x.astype("float32"), 0)
    columns, of_columns = int8.rounded(weight, 1)
    return float(np.square((rows.astype("float32") @ columns.astype("float32")) * of_rows * of_columns - exact).mean())
