"""Attention of a decoding step as one compiled loop in float16, against that of oneDNN's products in float32."""
import importlib.util

import numpy as np
import pytest

from vilg.generation.decoding.caches import CachedAttention, LayerCache
from vilg.kernels.onednn import switch
from vilg.nn.attention.cached import Source
from vilg.nn.attention.cached_loop import LoopMaths, to_half
from vilg.nn.attention.patterns import Convolution, Dense, Layout, layer_patterns

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed (the jit extra)"),
    pytest.mark.skipif(not switch.active(), reason="the fast path is off"),
]
LAYOUT = Layout(text=5, rows=4, columns=6)
PATTERNS = [*layer_patterns(3, Convolution(3)), Dense()]


def sources(prompts, heads=3, head=16):
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, prompts, heads, LAYOUT.text, head), "float32")
    visible = np.arange(LAYOUT.text) < rng.integers(2, LAYOUT.text + 1, (prompts, 1))
    exact = Source([keys.transpose(0, 1, 3, 2).copy()], [values], visible)
    return exact, Source([to_half(keys)], [to_half(values)], visible)


def run(attention, steps, only=slice(None)):
    rng, results = np.random.default_rng(1), []
    for step in range(steps):
        qkv = rng.standard_normal((16, *attention.maths.qkv.shape[1:]), "float32")[only]
        attention.step = step
        attention.maths.qkv.array[:len(qkv)] = qkv[:attention.padded_rows]
        attention.attend_buffers(0)
        results.append(attention.maths.attended.array.copy())
    return np.stack(results)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("prompts, samples", [(1, 1), (3, 1), (2, 4)])
def test_every_step_is_near_that_of_float32(pattern, prompts, samples):
    exact, halves = sources(prompts)
    slow, fast = (CachedAttention(source, [LayerCache(pattern, LAYOUT)], samples) for source in (exact, halves))
    assert isinstance(fast.maths, LoopMaths) and not isinstance(slow.maths, LoopMaths)
    found, expected = run(fast, LAYOUT.image), run(slow, LAYOUT.image)
    assert np.abs(found - expected).max() < 0.004 and np.abs(found - expected).mean() < 4e-4
    assert not found[:, prompts * samples:].any()
    assert fast.maths.nbytes() * 2 <= slow.maths.nbytes()


def test_a_row_has_the_same_bits_alone_and_among_others():
    _, halves = sources(1)
    alone, many = (CachedAttention(halves, [LayerCache(PATTERNS[1], LAYOUT)], samples) for samples in (1, 9))
    np.testing.assert_array_equal(run(alone, LAYOUT.image, slice(0, 1))[:, 0], run(many, LAYOUT.image)[:, 0])


def test_halves_are_the_nearest_within_reach_and_what_is_not_finite_stays_so():
    values = np.array([0, 1.00048828125, -1e6, 65503, np.inf, -np.inf, np.nan], "float32")
    np.testing.assert_array_equal(to_half(values), np.array([0, 1, -65504, 65504, np.inf, -np.inf, np.nan], "float16"))
    _, halves = sources(1)
    attention = CachedAttention(halves, [LayerCache(PATTERNS[1], LAYOUT)])
    attention.maths.qkv.array[0, :] = np.resize(values[:4], attention.maths.qkv.shape[1:])
    attention.attend_buffers(0)
    keys, _ = next(iter(attention.maths._caches.values()))
    np.testing.assert_array_equal(keys[0, 0, 0], to_half(attention.maths.qkv.array[0, 1, 0]))
