"""The loops themselves, as numba compiles them for the processor at hand. Importing this module needs numba.

Every kernel is a C function of one address: that of a row of 64-bit numbers. The first counts the pieces that have been
taken; the threads of a team all run the function and take a piece after another until none is left, so that a thread
that is late, or has its core taken away, does less. The others are sizes, addresses of float32 values and, by its bits,
a float64.

The sums may be reordered and multiplications fused with additions, but infinities and NaN are what they always are.
"""
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

_OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
_KERNEL = types.void(types.CPointer(types.int64))
_FLOAT = 4
_PIECE = 1 << 14
"""Values that a thread takes at a time where there are no runs of channels."""
_BLOCK = 1 << 12
"""Values whose sum is made in float32, a lane of the vectors at a time; the sums of blocks are added in float64."""


@intrinsic
def _take(context, counter):
    """The number of the next piece, which is then taken."""
    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")
    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def _floats(context, address):
    """The float32 values at an address."""
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def _float_of_bits(context, bits):
    """The float32 that has these bits."""
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())
    return types.float32(types.int32), generate


@intrinsic
def _double_of_bits(context, bits):
    """The float64 that has these bits."""
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())
    return types.float64(types.int64), generate


def _kernel(function):
    """The function as a C function, compiled now or read from where numba keeps what it has compiled."""
    try:
        return cfunc(_KERNEL, cache=True, **_OPTIONS)(function)
    except (RuntimeError, OSError):  # there is no directory that this user may write to
        return cfunc(_KERNEL, **_OPTIONS)(function)


_ONE = np.float32(1)
_LIMIT, _LOG2_E = np.float32(87), np.float32(1.4426950408889634)
# Of 2^f for f in [-½, ½], fitted for the least relative error (7.5e-8, and 2.3e-7 with the rounding of its steps).
_P1, _P2, _P3, _P4, _P5 = map(np.float32, (0.69314694, 0.2402212, 0.05550713, 0.009675541, 0.0013276471))


@njit(**_OPTIONS)
def _logistic(x):
    """1 / (1 + exp(−x)), written so that it becomes vector instructions."""
    power = min(max(-x, -_LIMIT), _LIMIT) * _LOG2_E
    whole = np.rint(power)
    f = power - whole
    part = ((((_P5 * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _ONE
    return _ONE / (_ONE + part * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23)))


@njit(**_OPTIONS)
def _silu_slope(x):
    """The derivative of x · logistic(x)."""
    s = _logistic(x)
    return s * (_ONE + x * (_ONE - s))


@_kernel
def silu(a):
    """Size, x, y."""
    size = a[1]
    start = _take(a) * _PIECE
    while start < size:
        x, y = _floats(a[2] + start * _FLOAT), _floats(a[3] + start * _FLOAT)
        for j in range(min(_PIECE, size - start)):
            y[j] = x[j] * _logistic(x[j])
        start = _take(a) * _PIECE


@_kernel
def silu_gradient(a):
    """Size, x, dy, dx."""
    size = a[1]
    start = _take(a) * _PIECE
    while start < size:
        x, dy, dx = _floats(a[2] + start * _FLOAT), _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT)
        for j in range(min(_PIECE, size - start)):
            dx[j] = dy[j] * _silu_slope(x[j])
        start = _take(a) * _PIECE


@njit(**_OPTIONS)
def _moments(values, size):
    """The mean, and the mean square distance from it."""
    total = 0.0
    for start in range(0, size, _BLOCK):
        part = np.float32(0)
        for j in range(start, min(size, start + _BLOCK)):
            part += values[j]
        total += part
    mean, total = np.float32(total / size), 0.0
    for start in range(0, size, _BLOCK):
        part = np.float32(0)
        for j in range(start, min(size, start + _BLOCK)):
            part += (values[j] - mean) * (values[j] - mean)
        total += part
    return mean, total / size


@_kernel
def group_norm(a):
    """Pictures, groups, channels of a group, pixels, SiLU, x, y, weight, bias, means, 1/σ, ε."""
    runs, groups, each, pixels, with_silu = a[1] * a[2], a[2], a[3], a[4], a[5]
    weight, bias, means, scales = _floats(a[8]), _floats(a[9]), _floats(a[10]), _floats(a[11])
    epsilon = _double_of_bits(a[12])
    run = _take(a)
    while run < runs:
        place, first = run * each * pixels * _FLOAT, run % groups * each
        mean, variance = _moments(_floats(a[6] + place), each * pixels)
        scale = np.float32(1 / np.sqrt(variance + epsilon))
        means[run], scales[run] = mean, scale
        for c in range(each):
            x, y = _floats(a[6] + place + c * pixels * _FLOAT), _floats(a[7] + place + c * pixels * _FLOAT)
            factor = weight[first + c] * scale
            offset = bias[first + c] - mean * factor
            if with_silu:
                for j in range(pixels):
                    h = x[j] * factor + offset
                    y[j] = h * _logistic(h)
            else:
                for j in range(pixels):
                    y[j] = x[j] * factor + offset
        run = _take(a)


@_kernel
def group_norm_gradient(a):
    """Pictures, groups, channels of a group, pixels, SiLU, x, dy, dx, weight, bias, means, 1/σ, and where Σ dy·x̂ and
    Σ dy of every picture's channels go, dy being the gradient before the SiLU."""
    runs, groups, each, pixels, with_silu = a[1] * a[2], a[2], a[3], a[4], a[5]
    weight, bias, means, scales = _floats(a[9]), _floats(a[10]), _floats(a[11]), _floats(a[12])
    by_x, by_one = _floats(a[13]), _floats(a[14])
    run = _take(a)
    while run < runs:
        place, first, mean, scale = run * each * pixels * _FLOAT, run % groups * each, means[run], scales[run]
        # With a SiLU the gradient before it is kept where dx will be, and read there again.
        incoming = a[8] if with_silu else a[7]
        sum_x = sum_one = 0.0
        for c in range(each):
            here = place + c * pixels * _FLOAT
            x, dy, dx = _floats(a[6] + here), _floats(a[7] + here), _floats(a[8] + here)
            factor = weight[first + c] * scale
            offset = bias[first + c] - mean * factor
            lane_x = lane_one = 0.0
            for start in range(0, pixels, _BLOCK):
                part_x = part_one = np.float32(0)
                if with_silu:
                    for j in range(start, min(pixels, start + _BLOCK)):
                        d = dy[j] * _silu_slope(x[j] * factor + offset)
                        dx[j] = d
                        part_one += d
                        part_x += d * (x[j] - mean)
                else:
                    for j in range(start, min(pixels, start + _BLOCK)):
                        part_one += dy[j]
                        part_x += dy[j] * (x[j] - mean)
                lane_x += part_x
                lane_one += part_one
            by_x[run * each + c] = lane_x * scale
            by_one[run * each + c] = lane_one
            sum_x += lane_x * factor
            sum_one += lane_one * factor
        # dx = w·r·dy − r·⟨w·dy⟩ − r·x̂·⟨w·dy·x̂⟩ with r = 1/σ and ⟨⟩ the mean over the run.
        size = each * pixels
        slope = np.float32(-sum_x * scale * scale / size)
        offset = np.float32(-sum_one / size) - slope * mean
        for c in range(each):
            here = place + c * pixels * _FLOAT
            x, dy, dx = _floats(a[6] + here), _floats(incoming + here), _floats(a[8] + here)
            factor = weight[first + c] * scale
            for j in range(pixels):
                dx[j] = dy[j] * factor + x[j] * slope + offset
        run = _take(a)
