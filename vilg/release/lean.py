"""A model that holds a folder's int8 weights alone: made without memory, and filled one layer at a time."""
import numpy as np
import paddle
from paddle import nn

from vilg.nn.layers import Linear
from vilg.weights import int8
from vilg.weights.files import check_fit, refuse_non_finite


def hold_int8(layer: nn.Layer, weights: int8.Restored) -> None:
    """Fill ``layer``, made under ``paddle.LazyGuard``: its linear maps hold the int8 values of ``weights`` alone, what
    else it has is float32. No more than one of its matrices is there twice. Raises CheckpointError when the two do not
    fit."""
    check_fit(layer, weights.found(), weights.source)
    maps = {f"{name}.weight": each for name, each in layer.named_sublayers() if isinstance(each, Linear)}
    for name, parameter in layer.state_dict().items():
        if name not in maps or name not in weights.matrices:
            _fill(parameter, name, weights)
    for name, linear in maps.items():
        if name in weights.matrices:  # behind the biases, which it takes with it
            values, scales = weights.integers(name)
            linear.hold_int8(values, scales[0])


def _fill(parameter: paddle.Tensor, name: str, weights: int8.Restored) -> None:
    array: np.ndarray = weights[name]
    refuse_non_finite({name: array}, weights.source)
    parameter.initialize()
    parameter.set_value(array)
