"""Half-precision training state: weights in half, and in float32 their masters, their gradients and all buffers."""
import contextlib
from collections.abc import Callable, Iterator

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils.mix_precision_utils import MixPrecisionOptimizer

HALF = (paddle.bfloat16, paddle.float16)


def to_half(module: nn.Layer, optimizer: paddle.optimizer.Optimizer, dtype: str | None,
            float32_gradients: bool) -> paddle.optimizer.Optimizer:
    """Make the weights of ``module`` ``dtype`` ("bfloat16", "float16"), as Paddle's AMP level O2 does.

    Buffers stay as they are: running means and codebooks are averages, which half precision would stop from moving.
    With ``float32_gradients``, gradients add up in float32 (:func:`gradient_of`). ``dtype`` None: weights are cast
    where they are allocated (:func:`cast_to_half`). Returns the optimizer to step with.
    """
    if dtype is not None:
        with _without_buffers(module):
            _, optimizer = paddle.amp.decorate(module, optimizer, level="O2", dtype=dtype)
    if not float32_gradients:
        return optimizer
    for parameter in module.parameters():
        parameter.main_grad = None  # where Paddle's sharding looks for such gradients, on every parameter or on none
        if not parameter.stop_gradient:
            parameter._register_grad_hook(_adds_up(parameter))
    return MixPrecisionOptimizer(optimizer)


def cast_to_half(layer: nn.Layer, dtype: str) -> None:
    """Make the weights of ``layer`` itself ``dtype``, and leave those of its sublayers alone."""
    below, layer._sub_layers = layer._sub_layers, {}
    try:
        with _without_buffers(layer):
            paddle.amp.decorate(layer, None, level="O2", dtype=dtype)
    finally:
        layer._sub_layers = below


@contextlib.contextmanager
def _without_buffers(module: nn.Layer) -> Iterator[None]:
    kept = [(layer, dict(layer._buffers)) for layer in module.sublayers(include_self=True)]
    for layer, _ in kept:
        layer._buffers.clear()
    try:
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)


def _adds_up(parameter: Tensor) -> Callable[[Tensor], None]:
    @paddle.no_grad()
    def hook(gradient: Tensor | None) -> None:
        if gradient is None or not gradient._is_initialized():
            return
        # A copy in any case: what comes here is cleared, or it would go on to the parameter's own gradient.
        full = gradient.clone() if gradient.dtype == paddle.float32 else gradient.astype("float32")
        if parameter.main_grad is None:
            parameter.main_grad = full
        else:
            parameter.main_grad.add_(full)
        gradient._clear_data()

    return hook


def gradient_of(parameter: Tensor) -> Tensor | None:
    """The gradient that the optimizer will take: the float32 one where gradients add up in float32."""
    return parameter.main_grad if hasattr(parameter, "main_grad") else parameter.grad


def fill_gradient(parameter: Tensor) -> None:
    """Give a parameter that no data reached a gradient of zeros, for an exchange that all must take part in."""
    if gradient_of(parameter) is not None:
        return
    if hasattr(parameter, "main_grad"):
        parameter.main_grad = paddle.zeros(parameter.shape, "float32")
    else:
        parameter.grad = paddle.zeros_like(parameter)


def drop_gradient(parameter: Tensor) -> None:
    """Forget a gradient that another rank looks after."""
    if hasattr(parameter, "main_grad"):
        parameter.main_grad = None
    else:
        parameter.clear_gradient(False)
