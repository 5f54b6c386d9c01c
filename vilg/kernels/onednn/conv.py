"""Two-dimensional convolution; the library picks its own layouts and the plan reorders into them and back."""
from paddle import Tensor
from paddle.autograd import PyLayer

from vilg.kernels.onednn import precision
from vilg.kernels.onednn.autograd import contiguous, new, refuse_double_backward
from vilg.kernels.onednn.library import (
    BF16, BIAS, DIFF_BIAS, DIFF_DST, DIFF_SRC, DIFF_WEIGHTS, DST, F32, FORWARD_TRAINING, NOTHING, SRC, WEIGHTS, Cache,
    Descriptor, Dims, Handle, Primitive, load, operation, plain, query, reorder,
)

_DIRECT = 1
_QUERY = {SRC: 129, DIFF_SRC: 130, WEIGHTS: 131, DIFF_WEIGHTS: 132, DST: 133, DIFF_DST: 134}
_OUTPUTS = (DST, DIFF_SRC, DIFF_WEIGHTS, DIFF_BIAS)
_plans = Cache(512)


class _Reordered:
    """A primitive whose arguments are plain tensors, reordered into and out of the layouts that it prefers."""

    def __init__(self, descriptor: Handle, arguments: list[tuple[int, Descriptor]]):
        api = load().api
        self._before, self._after, layouts = [], [], []
        for position, (name, outside) in enumerate(arguments):
            inside = query(descriptor, _QUERY[name]) if name in _QUERY else outside.value
            if api.dnnl_memory_desc_equal(inside, outside.value):
                layouts.append((name, outside))
                continue
            layouts.append((name, inside))
            size = (api.dnnl_memory_desc_get_size(inside) + 3) // 4
            if name in _OUTPUTS:
                self._after.append((position, size, reorder(inside, outside)))
            else:
                self._before.append((position, size, reorder(outside, inside)))
        self._primitive = Primitive(descriptor, layouts)

    def __call__(self, *tensors: Tensor) -> None:
        outside = [tensor.data_ptr() for tensor in tensors]
        inside, buffers = list(outside), []
        for position, size, copy in self._before:
            buffers.append(new([size]))
            inside[position] = buffers[-1].data_ptr()
            copy(outside[position], inside[position])
        for position, size, _ in self._after:
            buffers.append(new([size]))
            inside[position] = buffers[-1].data_ptr()
        self._primitive(*inside)
        for position, _, copy in self._after:
            copy(inside[position], outside[position])


class _Plan:
    """Forward and both backward primitives of one convolution."""

    def __init__(self, x: tuple, w: tuple, stride: int, padding: tuple, bias: bool, dtype: int, fpmath: int):
        top, bottom, left, right = padding
        self.shape = [x[0], w[0], (x[2] + top + bottom - w[2]) // stride + 1,
                      (x[3] + left + right - w[3]) // stride + 1]
        y = self.shape
        b = plain([w[0]]) if bias else NOTHING
        window = (Dims(stride, stride), Dims(0, 0), Dims(top, left), Dims(bottom, right))
        attributes = precision.attributes(fpmath)

        def free(dims: tuple) -> Descriptor:
            return Descriptor(dims, None, dtype)

        def make(kind: str, *before, hint: tuple = ()) -> Handle:
            return operation(f"convolution_{kind}", *before, *window, *hint, attributes)

        forward = make("forward", FORWARD_TRAINING, _DIRECT, free(x), free(w), b, Descriptor(y, None, F32))
        data = make("backward_data", _DIRECT, Descriptor(x, None, F32), free(w), free(y), hint=(forward,))
        weights = make("backward_weights", _DIRECT, free(x), Descriptor(w, None, F32), b, free(y), hint=(forward,))
        xs, ws, ys = plain(x), plain(w), plain(y)
        self.forward = _Reordered(forward, [(SRC, xs), (WEIGHTS, ws), (DST, ys)] + ([(BIAS, b)] if bias else []))
        self.data = _Reordered(data, [(DIFF_DST, ys), (WEIGHTS, ws), (DIFF_SRC, xs)])
        self.weights = _Reordered(weights, [(SRC, xs), (DIFF_DST, ys), (DIFF_WEIGHTS, ws)]
                                  + ([(DIFF_BIAS, b)] if bias else []))


def _plan(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple) -> _Plan:
    dtype = BF16 if precision.casts() else F32
    key = (tuple(x.shape), tuple(weight.shape), stride, padding, bias is not None, dtype, precision.fpmath())
    return _plans.get(key, _Plan)


def _forward(plan: _Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = new(plan.shape)
    plan.forward(x, weight, y, *(() if bias is None else (bias,)))
    return y


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple) -> Tensor:
    """x [B, C, H, W] with weight [out, C, kh, kw]; padding (top, bottom, left, right); not recorded."""
    return _forward(_plan(x, weight, bias, stride, padding), contiguous(x), contiguous(weight), bias)


class Conv2D(PyLayer):
    """x [B, C, H, W] with weight [out, C, kh, kw]; padding (top, bottom, left, right)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple) -> Tensor:
        ctx.needs = [not tensor.stop_gradient for tensor in (x, weight, bias) if tensor is not None]
        x, weight = contiguous(x), contiguous(weight)
        ctx.plan = _plan(x, weight, bias, stride, padding)
        ctx.save_for_backward(x, weight)
        return _forward(ctx.plan, x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        refuse_double_backward()
        x, weight = ctx.saved_tensor()
        dy = contiguous(dy)
        gradients = [None] * len(ctx.needs)
        if ctx.needs[0]:
            gradients[0] = new(x.shape)
            ctx.plan.data(dy, weight, gradients[0])
        if any(ctx.needs[1:]):
            sums = [new(weight.shape)]
            if len(ctx.needs) == 3:
                sums.append(new([weight.shape[0]]))
            ctx.plan.weights(x, dy, *sums)
            gradients[1:] = [value if needed else None for value, needed in zip(sums, ctx.needs[1:])]
        return tuple(gradients)
