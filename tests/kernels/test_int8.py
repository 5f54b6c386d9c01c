"""Products of int8 rows with int8 weights, against float64."""
import numpy as np
import paddle
import pytest

from vilg.kernels.onednn import int8, switch
from vilg.kernels.onednn.library import load

needs_int8 = pytest.mark.skipif(bool(int8.missing()), reason=int8.missing() or "int8 works")


def rounded_rows(x):
    values, scales = np.empty(x.shape, "int8"), np.empty((len(x), 1), "float32")
    int8.quantize_rows(x, np.empty_like(x), values, scales)
    return values, scales


def test_rows_and_columns_are_rounded_by_their_largest():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 40)) * np.array([[1e-3], [1], [50], [0], [1], [1]])).astype("float32")
    values, scales = rounded_rows(x)
    assert (np.abs(values[:3]).max(axis=1) == 127).all() and not values[3].any()
    assert np.abs(values * scales - x).max(axis=1) == pytest.approx(scales[:, 0] / 2, rel=0.3, abs=1e-20)
    columns, of_columns = int8.quantize_columns(x.T.copy())
    assert (np.abs(columns.astype("int64") - values.T) <= 1).all()
    assert of_columns == pytest.approx(scales[:, 0], rel=1e-4)


@needs_int8
@pytest.mark.parametrize("rows,inputs,outputs", [(1, 64, 96), (8, 256, 40), (72, 48, 33), (3, 1000, 7)])
def test_products_are_those_of_float64(rows, inputs, outputs):
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((rows, inputs), "float32"), rng.standard_normal(outputs, "float32")
    values, scales = rng.integers(-127, 128, (inputs, outputs)).astype("int8"), rng.random(outputs, "float32")
    x[0], values[:, 0] = 3.0, 127  # where sums of 16 bits overflow
    found = int8.linear(paddle.to_tensor(x), int8.Int8Weight(values, scales, bias)).numpy()
    of_rows, row_scales = rounded_rows(x)
    exact = (of_rows.astype("float64") @ values.astype("float64")) * row_scales * scales + bias
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


@needs_int8
@pytest.mark.parametrize("rows", [1, 8, 72])
def test_rows_with_a_least_use_all_steps_and_multiply_as_in_float64(rows):
    rng = np.random.default_rng(3)
    x = np.maximum(rng.standard_normal((rows, 200), "float32") * 4, int8.GELU_LEAST)
    matrix, bias = rng.standard_normal((200, 70), "float32"), rng.standard_normal(70, "float32")
    weight = int8.Int8Weight.of(matrix, bias, int8.GELU_LEAST)
    found = int8.linear(paddle.to_tensor(x), weight).numpy()
    values, scales = np.empty(x.shape, "int8"), np.empty((rows, 1), "float32")
    int8.quantize_rows(x, np.empty_like(x), values, scales, int8.GELU_LEAST)
    assert (values.min(axis=1) == -128).all() and (values.max(axis=1) == 127).all()
    columns, of_columns = int8.quantize_columns(matrix)
    near = (values.astype("float64") + 128) * scales + int8.GELU_LEAST
    assert np.abs(near - x).max() <= scales.max() * 0.51
    exact = near @ (columns.astype("float64") * of_columns) + bias
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


@needs_int8
def test_a_weight_is_held_once_and_can_be_read_back():
    rng = np.random.default_rng(4)
    values, scales = rng.integers(-127, 128, (256, 512)).astype("int8"), rng.random(512, "float32")
    weight = int8.Int8Weight(values, scales)
    for rows in (8, 64, 280):
        int8.linear(paddle.ones([rows, 256]), weight)
    np.testing.assert_array_equal(weight.values, values)
    assert weight.nbytes() <= 1.1 * values.nbytes


@needs_int8
def test_a_row_has_the_same_bits_whatever_stands_beside_it():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((280, 96), "float32") * rng.random((280, 1), "float32")
    weight = int8.Int8Weight.of(rng.standard_normal((96, 80), "float32"), rng.standard_normal(80, "float32"))
    together = int8.linear(paddle.to_tensor(x), weight).numpy()
    for rows in (1, 3, 8, 16, 72):
        np.testing.assert_array_equal(int8.linear(paddle.to_tensor(x[:rows]), weight).numpy(), together[:rows])


def test_a_machine_with_vnni_has_int8():
    if not switch.active() or not load().isa & int8._VNNI:
        pytest.skip("no fast path, or no VNNI")
    assert int8.missing() == ""  # the other tests would be skipped


def test_a_machine_without_vnni_or_the_library_says_so(monkeypatch):
    monkeypatch.setattr(load(), "isa", 0x27)
    assert "VNNI" in int8._found.__wrapped__()
    monkeypatch.setattr(switch._State, "allowed", False)
    monkeypatch.setattr(switch._State, "decided", None)
    assert "turned off" in int8.missing()


@needs_int8
def test_a_product_that_is_off_is_found_by_the_self_test(monkeypatch):
    linear = int8.linear
    monkeypatch.setattr(int8, "linear", lambda x, weight: linear(x, weight) * 1.001)
    assert "differ from float64" in int8._found.__wrapped__()
