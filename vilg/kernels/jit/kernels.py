"""The loops themselves, as numba compiles them for the processor at hand. Importing this module needs numba.

Every kernel is a C function of one address: that of a row of 64-bit numbers. The first counts the portions that have
been taken, the second is how many threads there are; all of them run the function and take a portion after another
(:func:`_portion`). The others are sizes, addresses of float32 values and, by its bits, a float64.

The sums may be reordered and multiplications fused with additions, but infinities and NaN are what they always are.

All stand in one file, since numba compiles a kernel anew when the file that it stands in has changed, whatever has
become of what it calls.
"""
import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

_OPTIONS = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}
_KERNEL = types.void(types.CPointer(types.int64))
_FLOAT, _HALF = 4, 2
_PIECE = 1 << 14
"""Values of a piece, where pieces are not runs of channels."""
_SHARED = 16
"""One in so many pieces is left for the thread that is done first."""
_BLOCK = 1 << 12
"""Values whose sum is made in float32, a lane of the vectors at a time; the sums of blocks are added in float64."""
_COLUMNS = 256
"""Columns that are added up together."""
_LINE = 64
"""Bytes that the cache takes at a time."""
_AHEAD = 1024
"""Values that are asked for before they are needed."""
_LOSES_THREE = binding.get_host_cpu_name() != "znver4"
"""Does the processor's own look-ahead lose the thread where three arrays are gone through at once? Zen 5's does; Zen
4's does not, and being asked all the same costs it a tenth. Others are taken to be like Zen 5."""
_LARGEST, _PER_STEP, _SMALLEST = np.float32(127), np.float32(1) / np.float32(127), np.float32(1e-30)
"""Of int8, its inverse, and the least that a row's largest is taken to be, so that one of zeros has a scale as well."""
_LEVELS, _PER_LEVEL = np.float32(255), np.float32(1) / np.float32(255)
"""Steps from the least of int8 to its largest, and their inverse."""
_INFINITY = np.int32(0x7F800000)
"""The bits of infinity; those of NaN are beyond."""
_LARGEST_HALF = np.float32(65504)
_FAR = np.float32(16)
"""The square of so many standard deviations from the mean is too far to measure the variance from."""


@intrinsic
def _take(context, counter):
    """How many portions were taken before this one."""
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
def _integers(context, address):
    """The bits of the float32 values at an address, as integers."""
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
    return types.CPointer(types.int32)(types.int64), generate


@intrinsic
def _bytes(context, address):
    """The int8 values at an address."""
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
    return types.CPointer(types.int8)(types.int64), generate


@intrinsic
def _halves(context, address):
    """The float16 values at an address, by their bits."""
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
    return types.CPointer(types.uint16)(types.int64), generate


@intrinsic
def _wide(context, half):
    """The float32 of a float16's bits."""
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
    return types.float32(types.uint16), generate


@intrinsic
def _narrow(context, value):
    """The bits of the float16 that is nearest to a float32."""
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))
    return types.uint16(types.float32), generate


def _prefetching(caches: int):
    @intrinsic
    def prefetch(context, address):
        def generate(context, builder, signature, arguments):
            pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            fetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            to_read, data = number(0), number(1)
            builder.call(fetch, [builder.inttoptr(arguments[0], pointer), to_read, number(caches), data])
            return context.get_dummy_value()
        return types.void(types.int64), generate
    return prefetch


_prefetch, _prefetch_once = _prefetching(3), _prefetching(0)
"""Ask for the cache line at an address, which need not be anybody's; the second for one that nobody will need again."""


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


_ZERO, _ONE = np.float32(0), np.float32(1)
_LIMIT, _LOG2_E = np.float32(87), np.float32(1.4426950408889634)
_FLUSHED = np.float32(-88)
"""exp of this is written as 0, and so, by the formula of :func:`_exp`, would be anything down to it from −87.7."""
# Of 2^f for f in [-½, ½], fitted for the least relative error (7.5e-8, and 2.3e-7 with the rounding of its steps).
_P1, _P2, _P3, _P4, _P5 = map(np.float32, (0.69314694, 0.2402212, 0.05550713, 0.009675541, 0.0013276471))
# Half of 1 − erf(|x| / √2) is a polynomial in 1 / (1 + r·|x|), times exp(−x²/2): Abramowitz and Stegun, 7.1.26, whose
# error is below 0.8e-7 when halved.
_E0 = np.float32(0.3275911 * 0.5 ** 0.5)
_E1, _E2, _E3, _E4, _E5 = (np.float32(factor / 2) for factor in (
    0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
_MINUS_HALF, _NORMAL = np.float32(-0.5), np.float32((2 * np.pi) ** -0.5)
_QUICK = np.float32(1.702)


@njit(**_OPTIONS)
def _portion(a, size, each):
    """Begin and end of what this thread is to do next, of ``size`` things in pieces of ``each``; begins at ``size`` or
    after when nothing is left.

    Every thread's first portion is a large one, and of two threads always of the same place, since the caller comes
    first: what lies there is in its own core's cache, from the operator before or from the last time. Of the rest a
    thread that is late, or has its core taken away, does less.
    """
    threads, number = a[1], _take(a)
    large = size // each * (_SHARED - 1) // (_SHARED * threads) * each
    if number < threads:
        return number * large, (number + 1) * large
    start = threads * large + (number - threads) * each
    return start, min(start + each, size)


@njit(**_OPTIONS)
def _exp(x):
    """exp of a number between −88 and 88, written so that it becomes vector instructions."""
    power = x * _LOG2_E
    whole = np.rint(power)
    f = power - whole
    part = ((((_P5 * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _ONE
    return part * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(**_OPTIONS)
def _logistic(x):
    """1 / (1 + exp(−x))."""
    return _ONE / (_ONE + _exp(min(max(-x, -_LIMIT), _LIMIT)))


@njit(**_OPTIONS)
def _silu(x):
    return x * _logistic(x)


@njit(**_OPTIONS)
def _silu_slope(x):
    """The derivative of x · logistic(x)."""
    s = _logistic(x)
    return s * (_ONE + x * (_ONE - s))


@njit(**_OPTIONS)
def _normal(x):
    """Of the normal distribution, the share below x, and exp(−x²/2)."""
    bell = _exp(max(_MINUS_HALF * x * x, _FLUSHED))
    t = _ONE / (_ONE + _E0 * abs(x))
    tail = ((((_E5 * t + _E4) * t + _E3) * t + _E2) * t + _E1) * t * bell
    return (_ONE - tail if x > _ZERO else tail), bell


@njit(**_OPTIONS)
def _gelu(x):
    """x times the share of the normal distribution below x."""
    return x * _normal(x)[0]


@njit(**_OPTIONS)
def _gelu_slope(x):
    """The derivative of that."""
    share, bell = _normal(x)
    return share + x * bell * _NORMAL


# Written out one by one: numba does not keep the compiled code of a function that was made by a function.
@_kernel
def silu(a):
    """Size, x, y."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, y = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT)
        for j in range(stop - start):
            y[j] = _silu(x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def silu_gradient(a):
    """Size, x, dy, dx."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, dy, dx = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT), _floats(a[5] + start * _FLOAT)
        for j in range(stop - start):
            dx[j] = dy[j] * _silu_slope(x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def quick_gelu(a):
    """Size, x, y."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, y = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT)
        for j in range(stop - start):
            y[j] = x[j] * _logistic(_QUICK * x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def quick_gelu_gradient(a):
    """Size, x, dy, dx."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, dy, dx = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT), _floats(a[5] + start * _FLOAT)
        for j in range(stop - start):
            dx[j] = dy[j] * _silu_slope(_QUICK * x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def gelu(a):
    """Size, x, y."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, y = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT)
        for j in range(stop - start):
            y[j] = _gelu(x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def gelu_gradient(a):
    """Size, x, dy, dx."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        x, dy, dx = _floats(a[3] + start * _FLOAT), _floats(a[4] + start * _FLOAT), _floats(a[5] + start * _FLOAT)
        for j in range(stop - start):
            dx[j] = dy[j] * _gelu_slope(x[j])
        start, stop = _portion(a, size, _PIECE)


@_kernel
def gelu_and_gradient(a):
    """Size, x, dy, y, dx."""
    size = a[2]
    start, stop = _portion(a, size, _PIECE)
    while start < size:
        place = start * _FLOAT
        x, dy, y, dx = _floats(a[3] + place), _floats(a[4] + place), _floats(a[5] + place), _floats(a[6] + place)
        for j in range(stop - start):
            share, bell = _normal(x[j])
            y[j] = x[j] * share
            dx[j] = dy[j] * (share + x[j] * bell * _NORMAL)
        start, stop = _portion(a, size, _PIECE)


@njit(**_OPTIONS)
def _ordered(bits):
    """The bits of a float32 as an integer of the same order (NaN at the ends), and back again. The largest of a row is
    found among integers: that of floats, which NaN would have a say in, does not become vector instructions."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@_kernel
def softmax(a):
    """Rows, columns, scores, weights."""
    rows, columns = a[2], a[3]
    each = max(1, _PIECE // columns)
    start, stop = _portion(a, rows, each)
    while start < rows:
        for row in range(start, stop):
            place = row * columns * _FLOAT
            scores, bits, weights = _floats(a[4] + place), _integers(a[4] + place), _floats(a[5] + place)
            for ahead in range(place + _AHEAD * _FLOAT, place + (_AHEAD + columns) * _FLOAT, _LINE):
                _prefetch_once(a[4] + ahead)  # the gradient needs the weights alone
            largest = np.int32(-0x80000000)
            for j in range(columns):
                largest = max(largest, _ordered(bits[j]))
            largest, total = _float_of_bits(_ordered(largest)), np.float32(0)
            for j in range(columns):
                weights[j] = _exp(max(scores[j] - largest, _FLUSHED))
                total += weights[j]
            for j in range(columns):
                weights[j] /= total
        start, stop = _portion(a, rows, each)


@_kernel
def softmax_gradient(a):
    """Rows, columns, weights, dy, dx."""
    rows, columns = a[2], a[3]
    each = max(1, _PIECE // columns)
    start, stop = _portion(a, rows, each)
    while start < rows:
        for row in range(start, stop):
            place = row * columns * _FLOAT
            weights, dy, dx = _floats(a[4] + place), _floats(a[5] + place), _floats(a[6] + place)
            if _LOSES_THREE:
                for ahead in range(place + _AHEAD * _FLOAT, place + (_AHEAD + columns) * _FLOAT, _LINE):
                    _prefetch(a[4] + ahead)
                    _prefetch(a[5] + ahead)
            mean = np.float32(0)
            for j in range(columns):
                mean += weights[j] * dy[j]
            for j in range(columns):
                dx[j] = weights[j] * (dy[j] - mean)
        start, stop = _portion(a, rows, each)


@njit(**_OPTIONS)
def _spread(values, size, near):
    """How far the mean is from ``near``, and the variance, from one reading; they lose digits where that is far."""
    distance = square = np.float32(0)
    for j in range(size):
        distance += values[j] - near
        square += (values[j] - near) * (values[j] - near)
    distance /= np.float32(size)
    return distance, square / np.float32(size) - distance * distance


@njit(**_OPTIONS)
def _centre(x, width):
    """The mean of a row in two parts, near and the distance from there, and the variance."""
    near = x[0]
    distance, variance = _spread(x, width, near)
    if distance * distance > _FAR * variance:  # most digits went with a value that is like no other
        near += distance
        distance, variance = _spread(x, width, near)
    return near, distance, variance


@njit(fastmath={"contract"}, error_model="numpy")
def _apart(x, near, distance):
    """x less the mean, which is ``near`` and a little: added up first, as others may be, they would lose that."""
    return x - near - distance


@_kernel
def layer_norm(a):
    """Rows, width, x, y, weight, bias, means, variances, ε."""
    rows, width = a[2], a[3]
    weight, bias, means, variances = _floats(a[6]), _floats(a[7]), _floats(a[8]), _floats(a[9])
    epsilon = np.float32(_double_of_bits(a[10]))
    each = max(1, _PIECE // width)
    start, stop = _portion(a, rows, each)
    while start < rows:
        for row in range(start, stop):
            place = row * width * _FLOAT
            x, y = _floats(a[4] + place), _floats(a[5] + place)
            near, distance, variance = _centre(x, width)
            for ahead in range(place + width * _FLOAT, place + 2 * width * _FLOAT, _LINE):
                _prefetch(a[4] + ahead)  # the next row comes while this one is written
            means[row], variances[row] = near + distance, variance
            scale = _ONE / np.sqrt(variance + epsilon)
            for j in range(width):
                y[j] = _apart(x[j], near, distance) * scale * weight[j] + bias[j]
        start, stop = _portion(a, rows, each)


@_kernel
def column_sums(a):
    """Rows, columns, values, sums, whether to add to what these are."""
    rows, columns, onto = a[2], a[3], a[6]
    start, stop = _portion(a, columns, _COLUMNS)
    while start < columns:
        for first in range(start, stop, _COLUMNS):
            width = min(_COLUMNS, stop - first)
            sums = _floats(a[5] + first * _FLOAT)
            if not onto:
                for j in range(width):
                    sums[j] = np.float32(0)
            whole = rows // 4 * 4
            for row in range(0, whole, 4):  # four at a time: the sums are read and written a quarter as often
                place = a[4] + (row * columns + first) * _FLOAT
                one, two = _floats(place), _floats(place + columns * _FLOAT)
                three, four = _floats(place + 2 * columns * _FLOAT), _floats(place + 3 * columns * _FLOAT)
                for j in range(width):
                    sums[j] += (one[j] + two[j]) + (three[j] + four[j])
            for row in range(whole, rows):
                one = _floats(a[4] + (row * columns + first) * _FLOAT)
                for j in range(width):
                    sums[j] += one[j]
        start, stop = _portion(a, columns, _COLUMNS)


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
    runs, groups, each, pixels, with_silu = a[2] * a[3], a[3], a[4], a[5], a[6]
    weight, bias, means, scales = _floats(a[9]), _floats(a[10]), _floats(a[11]), _floats(a[12])
    epsilon = _double_of_bits(a[13])
    begin, end = _portion(a, runs, 1)
    while begin < runs:
        for run in range(begin, end):
            place, first = run * each * pixels * _FLOAT, run % groups * each
            mean, variance = _moments(_floats(a[7] + place), each * pixels)
            scale = np.float32(1 / np.sqrt(variance + epsilon))
            means[run], scales[run] = mean, scale
            for c in range(each):
                x, y = _floats(a[7] + place + c * pixels * _FLOAT), _floats(a[8] + place + c * pixels * _FLOAT)
                factor = weight[first + c] * scale
                offset = bias[first + c] - mean * factor
                if with_silu:
                    for j in range(pixels):
                        h = x[j] * factor + offset
                        y[j] = h * _logistic(h)
                else:
                    for j in range(pixels):
                        y[j] = x[j] * factor + offset
        begin, end = _portion(a, runs, 1)


@_kernel
def group_norm_gradient(a):
    """Pictures, groups, channels of a group, pixels, SiLU, x, dy, dx, weight, bias, means, 1/σ, and where Σ dy·x̂ and
    Σ dy of every picture's channels go, dy being the gradient before the SiLU."""
    runs, groups, each, pixels, with_silu = a[2] * a[3], a[3], a[4], a[5], a[6]
    weight, bias, means, scales = _floats(a[10]), _floats(a[11]), _floats(a[12]), _floats(a[13])
    by_x, by_one = _floats(a[14]), _floats(a[15])
    begin, end = _portion(a, runs, 1)
    while begin < runs:
        for run in range(begin, end):
            place, first, mean, scale = run * each * pixels * _FLOAT, run % groups * each, means[run], scales[run]
            # With a SiLU the gradient before it is kept where dx will be, and read there again.
            incoming = a[9] if with_silu else a[8]
            sum_x = sum_one = 0.0
            for c in range(each):
                here = place + c * pixels * _FLOAT
                x, dy, dx = _floats(a[7] + here), _floats(a[8] + here), _floats(a[9] + here)
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
                x, dy, dx = _floats(a[7] + here), _floats(incoming + here), _floats(a[9] + here)
                factor = weight[first + c] * scale
                for j in range(pixels):
                    dx[j] = dy[j] * factor + x[j] * slope + offset
        begin, end = _portion(a, runs, 1)


@njit(error_model="numpy")
def _rounded(address, values, width):
    """Round the float32 row at an address to int8 ``values``, and give its scale: to the bit what
    :func:`vilg.kernels.onednn.int8.quantize_rows` does in numpy. NaN has the largest bits, and stays in the scale."""
    x, bits = _floats(address), _integers(address)
    largest = np.int32(0)
    for j in range(width):
        largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
    size = max(_float_of_bits(largest), _SMALLEST) if largest <= _INFINITY else _float_of_bits(largest)
    factor = _LARGEST / size
    for j in range(width):
        values[j] = np.int8(np.int32(np.rint(x[j] * factor)))
    return size * _PER_STEP


@_kernel
def round_rows(a):
    """Rows, width, x, int8 values, scales."""
    rows, width, scales = a[2], a[3], _floats(a[6])
    begin, end = _portion(a, rows, 1)
    while begin < rows:
        for row in range(begin, end):
            scales[row] = _rounded(a[4] + row * width * _FLOAT, _bytes(a[5] + row * width), width)
        begin, end = _portion(a, rows, 1)


@njit(error_model="numpy")
def _rounded_from(least, address, values, width):
    """The same of a row of which nothing is below ``least``."""
    x, bits = _floats(address), _integers(address)
    largest = np.int32(-0x80000000)
    for j in range(width):
        largest = max(largest, _ordered(bits[j]))
    size = _float_of_bits(_ordered(largest)) - least
    factor = _LEVELS / size
    for j in range(width):
        values[j] = np.int8(np.int32(np.rint((x[j] - least) * factor)) - np.int32(128))
    return size * _PER_LEVEL


@_kernel
def gelu_round(a):
    """Rows, width, sums, bias, int8 values, scales, the least of GELU: of GELU(sums · scales + bias), which takes the
    place of sums."""
    rows, width, bias, scales = a[2], a[3], _floats(a[5]), _floats(a[7])
    least = np.float32(_double_of_bits(a[8]))
    begin, end = _portion(a, rows, 1)
    while begin < rows:
        for row in range(begin, end):
            place = a[4] + row * width * _FLOAT
            sums, scale = _floats(place), scales[row]
            for j in range(width):
                sums[j] = max(_gelu(sums[j] * scale + bias[j]), least)
            scales[row] = _rounded_from(least, place, _bytes(a[6] + row * width), width)
        begin, end = _portion(a, rows, 1)


@_kernel
def add_norm_round(a):
    """Rows, width, sums, bias, int8 values, scales, x, weight, shift, ε: x + sums · scales + bias takes the place of x,
    its layer normalisation that of sums, and is rounded."""
    rows, width, bias, scales = a[2], a[3], _floats(a[5]), _floats(a[7])
    weight, shift, epsilon = _floats(a[9]), _floats(a[10]), np.float32(_double_of_bits(a[11]))
    begin, end = _portion(a, rows, 1)
    while begin < rows:
        for row in range(begin, end):
            place = a[4] + row * width * _FLOAT
            sums, x, scale = _floats(place), _floats(a[8] + row * width * _FLOAT), scales[row]
            for j in range(width):
                x[j] += sums[j] * scale + bias[j]
            near, distance, variance = _centre(x, width)
            scale = _ONE / np.sqrt(variance + epsilon)
            for j in range(width):
                sums[j] = _apart(x[j], near, distance) * scale * weight[j] + shift[j]
            scales[row] = _rounded(place, _bytes(a[6] + row * width), width)
        begin, end = _portion(a, rows, 1)


@njit(error_model="numpy")
def _keep(place, source, head):
    """Write the float32 values at ``source`` as float16; what is finite and beyond it becomes its largest."""
    halves, values, bits = _halves(place), _floats(source), _integers(source)
    for j in range(head):
        x = values[j]
        if bits[j] & np.int32(0x7FFFFFFF) < _INFINITY:
            x = min(max(x, -_LARGEST_HALF), _LARGEST_HALF)
        halves[j] = _narrow(x)


@njit(**_OPTIONS)
def _compare(q, keys, count, head, scores):
    """Products of a query with ``count`` keys; four at a time, whose sums do not wait for one another."""
    whole = count // 4 * 4
    for j in range(0, whole, 4):
        place = keys + j * head * _HALF
        one, two = _halves(place), _halves(place + head * _HALF)
        three, four = _halves(place + 2 * head * _HALF), _halves(place + 3 * head * _HALF)
        a = b = c = d = np.float32(0)
        for h in range(head):
            a += q[h] * _wide(one[h])
            b += q[h] * _wide(two[h])
            c += q[h] * _wide(three[h])
            d += q[h] * _wide(four[h])
        scores[j], scores[j + 1], scores[j + 2], scores[j + 3] = a, b, c, d
    for j in range(whole, count):
        one, a = _halves(keys + j * head * _HALF), np.float32(0)
        for h in range(head):
            a += q[h] * _wide(one[h])
        scores[j] = a


@njit(**_OPTIONS)
def _collect(weights, values, count, head, out):
    """Add ``count`` values by their weights to ``out``."""
    whole = count // 4 * 4
    for j in range(0, whole, 4):
        place = values + j * head * _HALF
        one, two = _halves(place), _halves(place + head * _HALF)
        three, four = _halves(place + 2 * head * _HALF), _halves(place + 3 * head * _HALF)
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for h in range(head):
            out[h] += (a * _wide(one[h]) + b * _wide(two[h])) + (c * _wide(three[h]) + d * _wide(four[h]))
    for j in range(whole, count):
        one, a = _halves(values + j * head * _HALF), weights[j]
        for h in range(head):
            out[h] += a * _wide(one[h])


@_kernel
def attend(a):
    """Attention of one new token a row over its prompt's source and its cache, which keep keys and values as float16.

    Rows, heads, samples of a prompt, values of a head, keys of the source, entries of a cache; the first entry that is
    read, how many, and the one that is written; what is added to scores (an address or 0), from which score on and to
    how many; qkv, result, keys and values of the source, those of the cache, room for scores, and the factor of
    queries.
    """
    rows, heads, samples, head, source, entries, near, width, entry = (
        a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10])
    factor, total, step = np.float32(_double_of_bits(a[21])), a[6] + a[9], a[5] * _HALF
    begin, end = _portion(a, rows * heads, 1)
    while begin < rows * heads:
        for pair in range(begin, end):
            row, number = pair // heads, pair % heads
            prompt = row // samples
            new = a[14] + (row * 3 * heads + number) * head * _FLOAT
            keys, values = a[18] + pair * entries * step, a[19] + pair * entries * step
            _keep(keys + entry * step, new + heads * head * _FLOAT, head)
            _keep(values + entry * step, new + 2 * heads * head * _FLOAT, head)
            q, place = _floats(new), a[20] + pair * total * _FLOAT
            known = (prompt * heads + number) * source * step
            scores, bits = _floats(place), _integers(place)
            _compare(q, a[16] + known, source, head, scores)
            _compare(q, keys + near * step, width, head, _floats(place + source * _FLOAT))
            for j in range(total):
                scores[j] *= factor
            if a[11]:
                hidden, first = _floats(a[11] + prompt * a[13] * _FLOAT), a[12]
                for j in range(a[13]):
                    scores[first + j] += hidden[j]
            largest = np.int32(-0x80000000)
            for j in range(total):
                largest = max(largest, _ordered(bits[j]))
            most, whole = _float_of_bits(_ordered(largest)), np.float32(0)
            for j in range(total):
                scores[j] = _exp(max(scores[j] - most, _FLUSHED))
                whole += scores[j]
            out = _floats(a[15] + pair * head * _FLOAT)
            for h in range(head):
                out[h] = np.float32(0)
            _collect(scores, a[17] + known, source, head, out)
            _collect(_floats(place + source * _FLOAT), values + near * step, width, head, out)
            for h in range(head):
                out[h] /= whole
        begin, end = _portion(a, rows * heads, 1)
