"""FlashMask's intervals, expanded into a mask, must say what the rule says; the kernel itself needs a GPU."""
import numpy as np
import paddle
import pytest

from vilg.nn.attention import flashmask
from vilg.nn.attention.patterns import MASKED, SOURCE, TARGET, Column, Convolution, Dense, Layout, Row, dense_mask



def expand(hidden: np.ndarray) -> np.ndarray:
    """Intervals [B, L, 4] → visible [B, L, L], True where query i sees key j."""
    i = np.arange(hidden.shape[1])[None, :, None]
    j = np.arange(hidden.shape[1])[None, None, :]
    below_start, below_end, above_start, above_end = (hidden[:, None, :, part] for part in range(4))
    below = (i > j) & (i >= below_start) & (i < below_end)
    above = (i < j) & (i >= above_start) & (i < above_end)
    return ~(below | above)


@pytest.mark.parametrize("text,length,prefix", [(0, [0], [0]), (1, [1, 0], [0, 0]), (6, [6, 4, 1, 0], [2, 0, 1, 0])])
@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 3)], ids=str)
@pytest.mark.parametrize("role", [TARGET, SOURCE, MASKED], ids=lambda role: role.name)
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column()], ids=lambda pattern: pattern.name)
def test_intervals_equal_the_rule(pattern, role, grid, text, length, prefix):
    layout = Layout(text, *grid)
    length, prefix = np.array(length), np.array(prefix)
    runs = pattern.runs(layout)
    visible = expand(flashmask.hidden_rows(runs, role, layout, length, prefix))
    expected = dense_mask(layout, role, pattern, length, prefix)
    if runs.order is not None:
        order, back = flashmask.slot_order(runs.order, layout)
        np.testing.assert_array_equal(order[back], np.arange(layout.length))
        visible = visible[:, back][:, :, back]
    np.testing.assert_array_equal(visible, expected)


def test_the_cpu_and_unfitting_cases_stay_block_wise():
    layout = Layout(2, 4, 4)
    assert not flashmask.usable(paddle.zeros([1], "float16"), Row(), layout)
    assert Convolution().runs(layout) is None
