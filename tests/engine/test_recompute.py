"""Recomputation changes nothing but memory: gradients of the real model, with dropout, bit for bit."""
import numpy as np
import paddle
import pytest

from vilg.engine.parallel.recomputing import put_on_recompute
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer


def gradients(recompute, sparse):
    paddle.seed(3)
    config = BidirectionalConfig(layers=4, width=32, heads=2, vocab_size=50, codebook_size=20, text_length=8, rows=4,
                                 columns=4, sparse=sparse, dropout=0.2)
    model = BidirectionalTransformer(config)
    count = put_on_recompute(model, recompute)
    rng = np.random.default_rng(0)
    text, codes = (paddle.to_tensor(rng.integers(0, high, shape)) for high, shape in ((50, [2, 8]), (20, [2, 16])))
    length, prefix = paddle.to_tensor([8, 5]), paddle.to_tensor([0, 0])
    paddle.seed(4)
    drawn, described = model.both_hidden(text, length, codes, text, length, prefix)
    (model.image_logits(drawn).square().mean() + model.text_logits(described).square().mean()).backward()
    return count, {name: value.grad.numpy() for name, value in model.named_parameters()}


@pytest.mark.parametrize("sparse", [True, False])
def test_recompute_gives_the_same_gradients(sparse):
    count, plain = gradients("none", sparse)
    assert count == 0
    for which, expected in (("full", 4), (2, 2)):
        count, again = gradients(which, sparse)
        assert count == expected
        for name, value in plain.items():
            np.testing.assert_array_equal(value, again[name], err_msg=f"{which}: {name}")
