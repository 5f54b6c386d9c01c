"""Compiled loops between two products of int8, against numpy."""
import importlib.util
import math

import numpy as np
import pytest

from vilg.kernels.jit import int8_rows
from vilg.kernels.onednn import int8, switch
from vilg.kernels.onednn.buffers import Buffer
from vilg.kernels.onednn.library import S8
from vilg.machine import process

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed (the jit extra)"),
    pytest.mark.skipif(not switch.active(), reason="the fast path is off"),
]
SHAPES = [(1, 1), (1, 64), (3, 43), (8, 1000), (9, 2048)]


def buffer(array):
    made = Buffer(array.shape)
    made.array[...] = array
    return made


def in_numpy(x, least=0.0):
    values, scales = np.empty(x.shape, "int8"), np.empty((len(x), 1), "float32")
    int8.quantize_rows(x, np.empty_like(x), values, scales, least)
    return values, scales


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = process.threads()
    process.set_threads(request.param)
    yield
    process.set_threads(before)


@pytest.mark.parametrize("rows, width", SHAPES)
def test_rows_are_rounded_to_the_bit_as_in_numpy(rows, width, threads):
    x = np.random.default_rng(0).standard_normal((rows, width), "float32") * 3
    x[0] = 0 if rows > 1 else x[0]
    source, values, scales = buffer(x), Buffer(x.shape, S8), Buffer((rows, 1))
    round_them = int8_rows.rounding(rows, width, source.address, values.address, scales.address)
    for _ in range(2):  # a row of numbers that is used again
        round_them()
        np.testing.assert_array_equal(values.array, in_numpy(x)[0])
        np.testing.assert_array_equal(scales.array, in_numpy(x)[1])
        values.array[...] = 0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_its_row_alone(odd):
    x = np.ones((3, 40), "float32")
    x[1, 7] = odd
    source, values, scales = buffer(x), Buffer(x.shape, S8), Buffer((3, 1))
    int8_rows.rounding(3, 40, source.address, values.address, scales.address)()
    assert not np.isfinite(scales.array[1, 0]) and (values.array[[0, 2]] == 127).all()


@pytest.mark.parametrize("rows, width", SHAPES)
def test_gelu_of_sums_is_rounded_from_its_least(rows, width, threads):
    rng = np.random.default_rng(1)
    sums, bias = rng.standard_normal((rows, width), "float32") * 90, rng.standard_normal(width, "float32")
    held, values, scales, shift = buffer(sums), Buffer(sums.shape, S8), Buffer((rows, 1)), buffer(bias)
    scales.array[...] = 0.02
    int8_rows.gelu_rounding(rows, width, held.address, shift.address, values.address, scales.address,
                            int8.GELU_LEAST)()
    exact = gelu(sums.astype("float64") * np.float32(0.02) + bias)
    near = (values.array.astype("float64") + int8.OFFSET) * scales.array + int8.GELU_LEAST
    assert np.abs(near - exact).max(axis=1) == pytest.approx(0, abs=float(scales.array.max()) * 0.51)
    np.testing.assert_array_equal(values.array, in_numpy(held.array, int8.GELU_LEAST)[0])
    assert (values.array.max(axis=1) == 127).all()


@pytest.mark.parametrize("rows, width", SHAPES[1:])
def test_sums_go_into_the_residual_and_its_norm_is_rounded(rows, width, threads):
    rng = np.random.default_rng(2)
    sums, x = (rng.standard_normal((rows + 1, width), "float32") * size for size in (50, 1))
    bias, weight, shift = (buffer(rng.standard_normal(width, "float32")) for _ in range(3))
    held, stream, values, scales = buffer(sums), buffer(x), Buffer(sums.shape, S8), Buffer((rows + 1, 1))
    scales.array[...] = 0.03
    int8_rows.norm_rounding(rows, width, held.address, bias.address, values.address, scales.address, stream.address,
                            weight.address, shift.address, 1e-5)()
    added = x + sums.astype("float64") * np.float32(0.03) + bias.array
    np.testing.assert_allclose(stream.array[:rows], added[:rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(stream.array[rows:], x[rows:])  # a row of no use
    normed = (added - added.mean(1, keepdims=True)) / np.sqrt(added.var(1, keepdims=True) + 1e-5)
    normed = normed * weight.array + shift.array
    assert np.abs(values.array[:rows] * scales.array[:rows] - normed[:rows]).max() <= scales.array[:rows].max() * 0.51
    assert not values.array[rows:].any()
