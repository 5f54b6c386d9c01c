"""Masked products against numpy, with every layout that block-wise attention gives them."""
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from vilg.kernels.onednn.strided import View
from vilg.kernels.onednn.switch import active
from vilg.nn.attention.blocks import scores as block_scores

pytestmark = pytest.mark.skipif(not active(), reason="the CPU fast path is off or not available here")
MARGIN = 3000


def operand(random, dims, strides):
    """A view, and the same memory as an array, with a margin on both sides."""
    extent = 1 + sum((size - 1) * step for size, step in zip(dims, strides))
    memory = random.standard_normal(extent + 2 * MARGIN).astype("float32")
    view = View(memory.ctypes.data + 4 * MARGIN, dims, strides)
    return view, as_strided(memory[MARGIN:], dims, [4 * step for step in strides]), memory


@pytest.mark.parametrize("seed", range(4))
def test_masked_products_equal_numpys_and_touch_nothing_else(seed):
    random = np.random.default_rng(seed)
    for _ in range(60):
        batch, heads, groups = (int(random.integers(1, 4)) for _ in range(3))
        size, head = (int(random.choice([1, 2, 4, 5, 8])) for _ in range(2))
        text, shifts = int(random.integers(0, 4)), int(random.integers(1, 4))
        across, own = bool(random.integers(2)), bool(random.integers(2))
        slot, slots, keys, n = 3 * heads * head, text + groups * size, text + shifts * size, groups * size
        group, cell = (1, groups) if across else (size, 1)
        dims, steps = (batch, heads, groups, size, head), (slots * slot, head, group * slot, cell * slot, 1)
        a, a_array, _ = operand(random, dims, steps)
        b, b_array, _ = operand(random, dims, steps)
        out, out_array, memory = operand(random, (batch, heads, groups, size, size),
                                         (heads * n * keys, n * keys, group * keys, cell * keys, 1))
        mask = random.standard_normal((batch if own else 1, random.choice([1, size]), size)).astype("float32")
        expected = memory.copy()
        place = as_strided(expected[MARGIN:], out.dims, [4 * step for step in out.strides])
        place[...] = 0.3 * (a_array @ b_array.swapaxes(-1, -2)) + mask[:, None, None]
        laid = block_scores.spread(mask, cell * keys)
        block_scores.masked_product(a, b.transposed, out, 0.3, laid)
        np.testing.assert_allclose(memory, expected, atol=1e-5)


def test_the_library_agrees_here():
    assert block_scores.agrees()
