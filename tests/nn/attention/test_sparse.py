"""Block-wise attention against the dense reference: every pattern, role, grid and text length, outputs and
gradients."""
import numpy as np
import paddle
import pytest

from vilg.errors import ShapeError
from vilg.nn.attention import sparse as block_sparse
from vilg.nn.attention.blocks import fused as block_fused
from vilg.nn.attention.blocks.layout import block_layout, image_scores_mask
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import (
    MASKED, SOURCE, TARGET, Column, Convolution, Dense, Layout, Pattern, Role, Row, dense_mask,
)
from vilg.nn.functional import stock_operators

GRIDS = [(4, 4), (8, 8), (16, 16), (5, 7)]
TEXTS = {"none": (0, [0, 0]), "one": (1, [1, 0]), "ragged": (6, [6, 2])}
HEADS, HEAD = 2, 4
every_role = pytest.mark.parametrize("role", [TARGET, SOURCE, MASKED], ids=lambda role: role.name)
needs_fast_path = pytest.mark.skipif(
    not block_fused.usable(paddle.zeros([1])), reason="the CPU fast path is off or not available here")


def make_context(layout: Layout, role: Role, length: list[int]) -> StreamContext:
    prefix = [min(value, 2 * (i % 2)) for i, value in enumerate(length)]
    return StreamContext(layout, role, paddle.to_tensor(length, "int64"), paddle.to_tensor(prefix, "int64"))


def random_qkv(batch: int, layout: Layout, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, layout.length, 3, HEADS, HEAD)).astype(dtype)


def outcome(function, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output, and gradient of qkv, for a loss that weighs every output differently."""
    qkv = paddle.to_tensor(qkv, stop_gradient=False)
    out = function(qkv)
    weights = np.cos(np.arange(out.size)).reshape(out.shape).astype(str(qkv.numpy().dtype))
    (out * paddle.to_tensor(weights)).sum().backward()
    return out.numpy(), qkv.grad.numpy()


def by_reference(context: StreamContext, pattern: Pattern, **options):
    return lambda qkv: dense_attention(*paddle.unbind(qkv, axis=2), context, pattern, **options)


def by_blocks(context: StreamContext, pattern: Pattern, **options):
    return lambda qkv: block_sparse.block_sparse_attention(*paddle.unbind(qkv, axis=2), context, pattern, **options)


def in_place(context: StreamContext, pattern: Pattern, **options):
    return lambda qkv: block_sparse.stream_attention(qkv, [context], pattern, **options)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@every_role
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution()], ids=lambda pattern: pattern.name)
def test_blocks_equal_the_dense_reference(pattern, role, grid, text):
    slots, length = TEXTS[text]
    layout = Layout(slots, *grid)
    context, qkv = make_context(layout, role, length), random_qkv(len(length), layout)
    expected = outcome(by_reference(context, pattern), qkv)
    for form in (by_blocks, in_place):
        for mine, reference in zip(outcome(form(context, pattern), qkv), expected):
            np.testing.assert_allclose(mine, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(1, 6), (6, 1), (2, 9), (1, 1)], ids=str)
@every_role
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution(5)], ids=lambda pattern: pattern.name)
def test_narrow_grids(pattern, role, grid):
    layout = Layout(3, *grid)
    context, qkv = make_context(layout, role, [3]), random_qkv(1, layout)
    expected = outcome(by_reference(context, pattern), qkv)
    for form in (by_blocks, in_place):
        for mine, reference in zip(outcome(form(context, pattern), qkv), expected):
            np.testing.assert_allclose(mine, reference, atol=1e-5, rtol=1e-5)


@every_role
@pytest.mark.parametrize("pattern", [Dense(), Row(), Column(), Convolution()], ids=lambda pattern: pattern.name)
def test_float64_agrees_to_its_own_precision(pattern, role):
    layout = Layout(4, 5, 7)
    context, qkv = make_context(layout, role, [4, 1]), random_qkv(2, layout, "float64")
    with stock_operators():
        blocks = block_sparse.stream_attention(paddle.to_tensor(qkv), [context], pattern).numpy()
        q, k, v = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(HEAD)
    visible = dense_mask(layout, role, pattern, context.length.numpy(), context.prefix.numpy())[:, None]
    weights = np.where(visible, np.exp(scores), 0)
    expected = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
    assert blocks.dtype == np.float64
    np.testing.assert_allclose(blocks, expected, atol=1e-12)


def test_both_streams_in_one_call_equal_each_alone():
    layout = Layout(5, 4, 6)
    contexts = [make_context(layout, TARGET, [5, 2]), make_context(layout, SOURCE, [3, 5])]
    qkv = random_qkv(4, layout)
    for pattern in (Dense(), Row(), Column(), Convolution()):
        together = outcome(lambda x: block_sparse.stream_attention(x, contexts, pattern), qkv)
        alone = [outcome(lambda x: block_sparse.stream_attention(x, [context], pattern), qkv[2 * i:2 * i + 2])
                 for i, context in enumerate(contexts)]
        np.testing.assert_allclose(together[0], np.concatenate([out for out, _ in alone]), atol=1e-6)
        with stock_operators():
            stock = block_sparse.stream_attention(paddle.to_tensor(qkv), contexts, pattern).numpy()
        np.testing.assert_allclose(together[0], stock, atol=1e-5)


def test_masks_are_built_once_a_step():
    layout = Layout(2, 4, 4)
    context = make_context(layout, TARGET, [2])
    qkv = paddle.to_tensor(random_qkv(1, layout))
    for form in (by_blocks, in_place):
        form(context, Row())(qkv)
        before = {key: id(value) for key, value in context.built.items()}
        form(context, Row())(qkv)
        assert {key: id(value) for key, value in context.built.items()} == before


@every_role
@pytest.mark.parametrize("pattern", [Row(), Column(), Convolution(5)], ids=lambda pattern: pattern.name)
def test_block_masks_hold_exactly_what_the_rule_allows_and_stay_small(pattern, role):
    layout = Layout(3, 9, 7)
    blocks = block_layout(pattern, role, layout)
    seen, index, visible = np.zeros((63, 63), dtype=bool), blocks.index(), blocks.visible()
    for position, shift in enumerate(blocks.shifts):
        first, last = blocks.meeting(shift)
        for group in range(first, last):
            seen[index[group][:, None], index[group + shift][None]] = visible[group, :, position]
        assert not visible[:first, :, position].any() and not visible[last:, :, position].any()
    everywhere = np.arange(63)
    expected = pattern.sees(everywhere[:, None], everywhere[None, :], layout, role)
    np.testing.assert_array_equal(seen, expected)
    reach = {Row(): 2, Column(): 1, Convolution(5): 3} if role == TARGET else {Row(): 3, Column(): 1, Convolution(5): 5}
    side = layout.rows if pattern == Column() else layout.columns
    assert image_scores_mask(blocks, make_context(layout, role, [3])).shape == (1, 63, 3 + reach[pattern] * side)


@pytest.mark.parametrize("fast", [pytest.param(True, marks=needs_fast_path), False])
def test_dropout_keeps_the_mean_and_its_gradient_fits_its_output(fast):
    layout = Layout(3, 4, 4)
    context = make_context(layout, TARGET, [3])
    qkv = random_qkv(1, layout)

    def dropped(x):
        return block_sparse.stream_attention(x, [context], Row(), dropout=0.4)

    with paddle.no_grad() if fast else stock_operators():
        whole = block_sparse.stream_attention(paddle.to_tensor(qkv), [context], Row()).numpy()
        runs = []
        for seed in range(400):
            paddle.seed(seed)
            runs.append(dropped(paddle.to_tensor(qkv)).numpy())
    assert np.abs(np.mean(runs, axis=0) - whole).max() < 0.25
    assert np.std(runs, axis=0).max() > 0.1

    def loss(values: np.ndarray) -> float:
        paddle.seed(7)
        return float((dropped(paddle.to_tensor(values)) ** 2).sum())

    paddle.seed(7)
    x = paddle.to_tensor(qkv, stop_gradient=False)
    (dropped(x) ** 2).sum().backward()
    direction = np.random.default_rng(3).standard_normal(qkv.shape).astype("float32")
    step = 1e-3
    numeric = (loss(qkv + step * direction) - loss(qkv - step * direction)) / (2 * step)
    assert float((x.grad.numpy() * direction).sum()) == pytest.approx(numeric, rel=2e-2)


def test_recompute_gives_the_same_gradient():
    from paddle.distributed.fleet.utils import recompute
    layout = Layout(3, 4, 5)
    context = make_context(layout, SOURCE, [3, 1])
    qkv = random_qkv(2, layout)

    def attend(x):
        return block_sparse.stream_attention(x, [context], Convolution(), dropout=0.3)

    paddle.seed(5)
    plain = outcome(attend, qkv)
    paddle.seed(5)
    again = outcome(lambda x: recompute(attend, x), qkv)
    for mine, expected in zip(again, plain):
        np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_a_view_of_a_larger_tensor_is_read_correctly():
    layout = Layout(2, 4, 4)
    context = make_context(layout, TARGET, [2, 2])
    qkv = random_qkv(4, layout)
    view = paddle.to_tensor(qkv)[::2]
    np.testing.assert_allclose(in_place(context, Column())(view).numpy(),
                               by_reference(context, Column())(paddle.to_tensor(qkv[::2])).numpy(), atol=1e-5)


@pytest.mark.parametrize("form", [by_blocks, in_place])
def test_a_stream_that_does_not_fit_is_refused_with_both_numbers(form):
    context = make_context(Layout(2, 4, 4), TARGET, [2])
    with pytest.raises(ShapeError, match=r"22 slots.*18 .*4×4"):
        form(context, Row())(paddle.to_tensor(random_qkv(1, Layout(2, 4, 5))))
    with pytest.raises(ShapeError, match="batch of 3.*made for 1"):
        form(context, Row())(paddle.to_tensor(random_qkv(3, Layout(2, 4, 4))))
