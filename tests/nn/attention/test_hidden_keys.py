"""What is hidden stays hidden whatever its score, and layers of different windows share nothing.

Every form of attention is held against a softmax over the visible keys alone, in float64.
"""
import contextlib

import numpy as np
import paddle
import pytest

from vilg.generation.decoding.caches import CachedAttention, LayerCache
from vilg.nn.attention.cached import DeviceMaths, Source
from vilg.nn.attention.cached_host import HostMaths
from vilg.nn.attention.dense import StreamContext, dense_attention
from vilg.nn.attention.patterns import MASKED, SOURCE, TARGET, Column, Convolution, Dense, Layout, Row, dense_mask
from vilg.nn.attention.sparse import block_sparse_attention, stream_attention
from vilg.nn.functional import stock_operators

PATTERNS = [Row(), Column(), Convolution(3), Convolution(5), Dense()]
HEADS, HEAD = 2, 4
FORMS = {"dense": lambda qkv, context, pattern: dense_attention(*paddle.unbind(qkv, axis=2), context, pattern),
         "blocks": lambda qkv, context, pattern: block_sparse_attention(*paddle.unbind(qkv, axis=2), context, pattern),
         "in place": lambda qkv, context, pattern: stream_attention(qkv, [context], pattern)}


def numbers(*shape) -> np.ndarray:
    """Scores of these lie some hundreds apart, so that a hidden key often has the largest by far."""
    return np.random.default_rng(0).standard_normal(shape).astype("float32") * 12


def visible_mean(q, k, v, visible):
    """q [.., Q, H], k and v [.., K, H], booleans [.., Q, K] → what a softmax over the visible keys gives."""
    scores = q.astype("float64") @ k.astype("float64").swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ v.astype("float64")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("role", [TARGET, SOURCE, MASKED], ids=lambda role: role.name)
def test_no_score_is_large_enough_to_be_seen(form, role):
    layout = Layout(4, 5, 6)
    context = StreamContext(layout, role, paddle.to_tensor([4, 2]), paddle.to_tensor([2, 1]))
    qkv = numbers(2, layout.length, 3, HEADS, HEAD)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # [B, N, L, H] each
    for pattern in PATTERNS:  # all of one context, as the layers of a stack are
        visible = dense_mask(layout, role, pattern, [4, 2], [2, 1])[:, None]
        got = FORMS[form](paddle.to_tensor(qkv), context, pattern).numpy().transpose(0, 2, 1, 3)
        np.testing.assert_allclose(got, visible_mean(q, k, v, visible), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("how,dtype", [("fast", "float32"), ("stock", "float32"), ("paddle", "float64")])
def test_cached_attention_sees_what_the_pattern_does(how, dtype):
    prompts, samples, text, layout = 2, 3, 4, Layout(0, 5, 6)
    rows = prompts * samples
    told = numbers(2, prompts, HEADS, text, HEAD)  # keys and values of the source
    visible = np.array([[True] * 4, [True, True, False, False]])
    new = numbers(layout.image, len(PATTERNS), rows, 3, HEADS, HEAD)
    keys, values = told[0].swapaxes(-1, -2).copy(), told[1].copy()
    if how == "paddle":
        keys, values = (paddle.to_tensor(side.astype(dtype)) for side in (keys, values))
    source = Source([keys] * len(PATTERNS), [values] * len(PATTERNS), visible)
    attention = CachedAttention(source, [LayerCache(pattern, layout) for pattern in PATTERNS], samples)
    assert isinstance(attention.maths, DeviceMaths if how == "paddle" else HostMaths)
    with stock_operators() if how == "stock" else contextlib.nullcontext():
        for step in range(layout.image):
            attention.step = step
            for layer, pattern in enumerate(PATTERNS):
                qkv = attention.pad(paddle.to_tensor(new[step, layer][:, None].astype(dtype)))
                got = attention(layer, qkv).numpy()[:rows, 0]
                seen = np.flatnonzero(pattern.sees(step, np.arange(layout.image), layout, TARGET))
                drawn = new[seen, layer].transpose(2, 1, 3, 0, 4)  # [3, R, N, seen, H]
                k, v = (np.concatenate([np.repeat(told[side], samples, axis=0), drawn[side + 1]], axis=2)
                        for side in range(2))
                mask = np.concatenate([np.repeat(visible, samples, axis=0), np.ones([rows, len(seen)], bool)], axis=1)
                expected = visible_mean(new[step, layer, :, 0][:, :, None], k, v, mask[:, None, None])[:, :, 0]
                np.testing.assert_allclose(got, expected, atol=1e-2, rtol=1e-3, err_msg=f"{pattern} at {step}")
