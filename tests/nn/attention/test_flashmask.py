"""FlashMask's intervals, expanded into a mask, must say what the rule says; the kernel itself needs a GPU."""
import numpy as np
import paddle
import pytest

from vilg.nn.attention import flashmask
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import MASKED, SOURCE, TARGET, Column, Convolution, Dense, Layout, Row, dense_mask
from vilg.nn.transformer import StreamAttention



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
    hidden = flashmask.hidden_rows(runs, role, layout, paddle.to_tensor(length), paddle.to_tensor(prefix))
    visible = expand(hidden.numpy())
    expected = dense_mask(layout, role, pattern, length, prefix)
    if runs.across:
        back = flashmask.turned(paddle.arange(layout.length).unsqueeze(0), text, grid[1], grid[0])[0].numpy()
        visible = visible[:, back][:, :, back]
    np.testing.assert_array_equal(visible, expected)


@pytest.mark.parametrize("text", [0, 3])
def test_turning_a_stream_is_undone_by_turning_it_back(text):
    x = paddle.randn([2, text + 5 * 7, 3, 4])
    there = flashmask.turned(x, text, 5, 7)
    np.testing.assert_array_equal(there[:, text + 1].numpy(), x[:, text + 7].numpy())  # the second slot of a column
    np.testing.assert_array_equal(flashmask.turned(there, text, 7, 5).numpy(), x.numpy())


def test_the_kernels_limits():
    assert flashmask.fits(64, 0.1, 2) and flashmask.fits(256, 0.0, 3)
    assert not flashmask.fits(64, 0.1, 3) and not flashmask.fits(264, 0.0, 2) and not flashmask.fits(60, 0.0, 2)
    assert flashmask.kernel_version() in (2, 3)


def dense_by_intervals(q, k, v, startend_row_indices, dropout, causal):
    """What FlashMask is documented to compute, in float32."""
    visible = expand(startend_row_indices.squeeze(1).numpy())
    scores = np.einsum("bqnh,bknh->bnqk", q.numpy(), k.numpy()) / np.sqrt(q.shape[-1])
    scores = np.where(visible[:, None], scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return paddle.to_tensor(np.einsum("bnqk,bknh->bqnh", weights, v.numpy()).astype("float32"))


@pytest.mark.parametrize("role", [TARGET, SOURCE], ids=lambda role: role.name)
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column()], ids=lambda pattern: pattern.name)
def test_layers_that_take_flashmask_give_what_dense_attention_gives(monkeypatch, pattern, role):
    layout, length, prefix = Layout(4, 3, 5), paddle.to_tensor([4, 2]), paddle.to_tensor([2, 0])
    contexts = [StreamContext(layout, role, length, prefix)]
    qkv = paddle.randn([2, layout.length, 3, 2, 8])
    expected = dense_attention(*paddle.unbind(qkv, axis=2), StreamContext(layout, role, length, prefix), pattern)
    asked = []
    monkeypatch.setattr(flashmask, "usable", lambda *arguments: asked.append(arguments) or True)
    monkeypatch.setattr(paddle.nn.functional, "flashmask_attention", dense_by_intervals)
    monkeypatch.setattr("vilg.nn.attention.blocks.fused.usable", lambda qkv: False)
    found = StreamAttention(contexts, [pattern])(0, qkv)
    assert asked
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-6)


def test_the_cpu_and_unfitting_cases_stay_block_wise():
    layout = Layout(2, 4, 4)
    assert not flashmask.usable(paddle.zeros([1], "float16"), Row(), layout)
    assert Convolution().runs(layout) is None
