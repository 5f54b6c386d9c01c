"""The public preprocessings of ERNIE-ViL 2.0, held against the libraries that they come from."""
import numpy as np
import pytest
from PIL import Image

from vilg import config
from vilg.errors import ConfigError
from vilg.models.dual_encoder.preprocess import PREPROCESSINGS, PreprocessConfig, preprocess

SHAPES = [(50, 71), (71, 50), (32, 32), (33, 96), (20, 29), (240, 321), (32, 35), (39, 32)]


def image(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height)
    small = random.integers(0, 256, [8, 9, 3], dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_baidus_is_that_of_paddle_vision(shape):
    from paddle.vision import transforms

    made = transforms.Compose([
        transforms.Resize(32, "bilinear"), transforms.CenterCrop(32), transforms.ToTensor(),
        transforms.Normalize(list(PreprocessConfig().mean), list(PreprocessConfig().std))])
    expected = made(Image.fromarray(image(*shape))).numpy()
    np.testing.assert_allclose(preprocess(image(*shape), 32, PREPROCESSINGS["baidu"]), expected, atol=1e-6)


@pytest.mark.extras
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_paddlenlps_is_that_of_its_image_processor(shape):
    pytest.importorskip("paddlenlp")
    from paddlenlp.transformers import ErnieViLImageProcessor

    made = ErnieViLImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = np.asarray(made(Image.fromarray(image(*shape)))["pixel_values"][0])
    np.testing.assert_allclose(preprocess(image(*shape), 32, PREPROCESSINGS["paddlenlp"]), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_squashing_one_resizes_the_whole(shape):
    squashed = Image.fromarray(image(*shape)).resize((32, 32), Image.Resampling.BICUBIC)
    levels = np.asarray(squashed).astype("float64") / 255
    expected = ((levels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocess(image(*shape), 32, PREPROCESSINGS["paddlenlp_squash"]), expected, atol=1e-5)


def test_the_three_differ():
    found = [preprocess(image(50, 71), 32, each) for each in PREPROCESSINGS.values()]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert found[first].shape == (3, 32, 32) and found[first].dtype == np.float32
        assert np.abs(found[first] - found[second]).max() > 0.05


def test_settings_go_through_yaml_and_wrong_ones_are_refused():
    values = config.to_dict(PREPROCESSINGS["baidu"])
    assert config.from_dict(PreprocessConfig, values) == PREPROCESSINGS["baidu"]
    with pytest.raises(ConfigError, match="std must be above 0"):
        config.from_dict(PreprocessConfig, {"std": [0.2, 0.2, 0.0]})
    with pytest.raises(ConfigError, match="fit"):
        config.from_dict(PreprocessConfig, {"fit": "stretch"})
