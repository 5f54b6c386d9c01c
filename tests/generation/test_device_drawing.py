"""Drawing where the logits are: the same tokens as on the host, and half-precision weights (emulated on a CPU)."""
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from test_decoding import build, texts

import vilg
from vilg import runtime
from vilg.errors import VilgError
from vilg.generation import device_sampling, sampling
from vilg.generation.autoregressive import generate_images
from vilg.generation.decoding import source
from vilg.generation.sampling import SamplingConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import half_emulation

SETTINGS = [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.6, "top_k": 9, "top_p": 0.8}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_device_chooses_as_the_host_does(settings):
    random = np.random.default_rng(3)
    logits, uniform = random.normal(0, 2, (400, 30)).astype("float32"), random.random(400)
    uniform[:2] = 0, np.nextafter(1, 0)
    config = SamplingConfig(**settings)
    there = device_sampling.sample_token(paddle.to_tensor(logits), config, paddle.to_tensor(uniform)).numpy()
    here = sampling.sample_token(logits, config, uniform)
    np.testing.assert_array_equal(there, here)
    assert len(set(here)) > 5


@pytest.mark.parametrize("least", [0.0, 0.2])
def test_the_device_guides_as_the_host_does(least):
    told, free = np.random.default_rng(4).normal(0, 2, (2, 50, 30)).astype("float32")
    config = SamplingConfig(guidance=2.5, guidance_min_p=least)
    there = device_sampling.guide(paddle.to_tensor(told), paddle.to_tensor(free), config).numpy()
    np.testing.assert_allclose(there, sampling.guide(told, free, config), rtol=1e-5)


@pytest.fixture
def in_tensors(monkeypatch):
    """Sources are kept as on a device, so that whole generations stay in tensors."""
    def keep(keys, values):
        return keys.transpose([0, 2, 3, 1]).contiguous(), values.transpose([0, 2, 1, 3]).contiguous()

    return lambda: monkeypatch.setattr(source, "keep", keep)


@pytest.mark.parametrize("settings", [{}, {"top_k": 4, "guidance": 2.0}, {"temperature": 0.0}])
def test_a_drawing_in_tensors_is_that_of_the_host(in_tensors, monkeypatch, settings):
    model, (text, length) = build(rows=4, columns=5), texts(5, 2, 3)
    mask = np.arange(20) % 3 == 0
    wanted = {"num_images": 2, "seeds": [1, 2, 3], "sampling": SamplingConfig(**settings), "keep_hidden": True,
              "known_codes": paddle.full([1, 20], 7, "int64"), "known_mask": paddle.to_tensor(mask)}
    host = generate_images(model, text, length, **wanted)
    in_tensors()
    monkeypatch.delattr("vilg.generation.decoding.decoder.Decoder.logits")  # it would bring every step to the host
    there = generate_images(model, text, length, **wanted)
    np.testing.assert_array_equal(there.codes.numpy(), host.codes.numpy())
    np.testing.assert_allclose(there.hidden.numpy(), host.hidden.numpy(), rtol=1e-3, atol=1e-4)
    assert len({tuple(row) for row in host.codes.numpy()}) > 1


def test_half_precision_is_refused_where_no_device_computes_in_it():
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(VilgError, match=f"device cpu does not compute in {dtype}; leave dtype out; on a CPU cpu"):
            vilg.load("ernie_vilg_tiny", dtype=dtype)
    with pytest.raises(VilgError, match="dtype is float32, bfloat16 or float16, not 'half'"):
        vilg.load("ernie_vilg_tiny", dtype="half")
    with pytest.raises(VilgError, match="dtype is for models that draw"):
        vilg.load("ernie_vil_tiny", dtype="bfloat16")


def test_a_model_draws_and_describes_in_bfloat16(monkeypatch):
    ask = {"texts": ["一个红色的圆形", "蓝色的方块"], "seed": 3, "top_k": 1}
    model = vilg.load("ernie_vilg_tiny")
    full = [images[0] for images in model.text_to_image(**ask)]
    said = model.image_to_text(full)
    half_emulation.install(monkeypatch.setattr, moves=True)
    monkeypatch.setattr(runtime, "computes_in", lambda dtype: True)
    half = vilg.load("ernie_vilg_tiny", dtype="bfloat16")
    assert {tensor.dtype for tensor in half.model.parameters()} == {paddle.bfloat16}
    assert {tensor.dtype for tensor in half.image_tokenizer.parameters()} == {paddle.float32}
    drawn = [images[0] for images in half.text_to_image(**ask)]
    for one, other, third in zip(full, drawn, reversed(full)):
        one, other, third = (np.asarray(image).astype(float) for image in (one, other, third))
        assert np.abs(one - other).mean() < 0.5 * np.abs(one - third).mean()
    assert [len(text) > 3 for text in half.image_to_text(full)] == [True, True] and len(said) == 2
