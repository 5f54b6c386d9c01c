"""A model filled from a folder in int8 one matrix at a time, so that no more than one of them is there twice."""
import numpy as np
import paddle
from paddle import nn

from vilg.nn.layers import Linear
from vilg.weights import int8
from vilg.weights.files import check_fit, refuse_non_finite


def fill(layer: nn.Layer, weights: int8.Restored, alone: bool) -> None:
    """Fill ``layer`` with ``weights`` as float32; or, where they are to stand ``alone``, its linear maps with their
    int8 values and no others, of a layer that was made under ``paddle.LazyGuard`` without any memory. Raises
    CheckpointError when the two do not fit."""
    check_fit(layer, weights.found(), weights.source)
    maps = {f"{name}.weight": each for name, each in layer.named_sublayers() if isinstance(each, Linear)}
    in_int8 = maps.keys() & weights.matrices if alone else set()
    for name, parameter in layer.state_dict().items():
        if name not in in_int8:
            _set(parameter, name, weights, alone)
    for name in in_int8:  # after the biases, which they take with them
        values, scales = weights.integers(name)
        maps[name].hold_int8(values, scales[0])


def _set(parameter: paddle.Tensor, name: str, weights: int8.Restored, lazy: bool) -> None:
    array: np.ndarray = weights[name]
    refuse_non_finite({name: array}, weights.source)
    if lazy:
        parameter.initialize()
    parameter.set_value(array)
