"""Strided products against numpy, with every layout that block-wise attention uses."""
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from vilg.kernels.onednn import strided
from vilg.kernels.onednn.switch import active

pytestmark = pytest.mark.skipif(not active(), reason="the CPU fast path is off or not available here")
MARGIN = 3000


def random_case(random: np.random.Generator) -> list[tuple[tuple, tuple, bool]]:
    """Dims, strides and whether transposed, of two operands and the result, on a random token grid."""
    batch, heads, groups, parts = (int(random.integers(1, 4)) for _ in range(4))
    size, head = (int(random.choice([1, 2, 4, 5, 8])) for _ in range(2))
    text, shifts = int(random.integers(0, 4)), int(random.integers(1, 4))
    slot, slots, keys = parts * heads * head, text + groups * size, text + shifts * size
    group, cell = ((1, groups) if random.integers(2) else (size, 1))
    n = groups * size
    tokens = ((batch, heads, groups, size, head), (slots * slot, head, group * slot, cell * slot, 1))
    scores = ((batch, heads, groups, size, size), (heads * n * keys, n * keys, group * keys, cell * keys, 1))
    forms = [((*tokens, False), (*tokens, True), (*scores, False)),
             ((*scores, False), (*tokens, False), (*tokens, False)),
             ((*scores, True), (*tokens, False), (*tokens, False))]
    return forms[int(random.integers(3))]


@pytest.mark.parametrize("seed", range(4))
def test_products_equal_numpys_and_touch_nothing_else(seed):
    random = np.random.default_rng(seed)
    for _ in range(100):
        views, arrays, buffers = [], [], []
        for dims, strides, transposed in random_case(random):
            extent = 1 + sum((size - 1) * step for size, step in zip(dims, strides))
            buffers.append(random.standard_normal(extent + 2 * MARGIN).astype("float32"))
            view = strided.View(buffers[-1].ctypes.data + 4 * MARGIN, dims, strides)
            array = as_strided(buffers[-1][MARGIN:], dims, [4 * step for step in strides])
            views.append(view.transposed if transposed else view)
            arrays.append(array.swapaxes(-1, -2) if transposed else array)
        add = bool(random.integers(2))
        expected = buffers[2].copy()
        target = as_strided(expected[MARGIN:], views[2].dims, [4 * step for step in views[2].strides])
        target[...] = 0.5 * (arrays[0] @ arrays[1]) + (target if add else 0)
        strided.multiply(*views, scale=0.5, add=add)
        np.testing.assert_allclose(buffers[2], expected, atol=1e-4)


def test_self_check_passes_here():
    assert strided.agrees()
