"""Drawing, writing and scoring with a model that is being trained: no dropout, and training goes on afterwards."""
import numpy as np
import paddle
import pytest

from vilg.generation.autoregressive import generate_images, generate_text
from vilg.generation.rerank import score_text
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

TEXT, LENGTH = np.array([[1, 7, 9, 4, 2, 0], [1, 3, 3, 8, 5, 2]]), np.array([5, 6])
CODES = np.random.default_rng(0).integers(0, 30, [2, 9])


def draw(model):
    return generate_images(model, paddle.to_tensor(TEXT), paddle.to_tensor(LENGTH), num_images=2).codes


def write(model):
    prompt, prefix = paddle.to_tensor(TEXT[:, :1]), paddle.zeros([2], "int64")
    return generate_text(model, paddle.to_tensor(CODES), prompt, prefix)


def score(model):
    return score_text(model, *map(paddle.to_tensor, (CODES, TEXT, LENGTH)))


@pytest.mark.parametrize("use", [draw, write, score])
def test_a_model_in_training_is_used_without_dropout(use):
    paddle.seed(0)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=2, width=16, heads=2, vocab_size=20, codebook_size=30, text_length=6, rows=3, columns=3, dropout=0.5))
    for value in model.parameters():
        value.set_value(value + 0.3 * paddle.randn(value.shape))
    model.eval()
    expected = use(model).numpy()
    model.train()
    for _ in range(2):
        np.testing.assert_array_equal(use(model).numpy(), expected)
    assert model.training and model.stack.blocks[0].training
