"""Augmented views: what is said about an image stays true of every one of them."""
import numpy as np
import pytest
from PIL import Image

from vilg.config import from_dict
from vilg.data.augment import AugmentConfig, allowed, augment
from vilg.errors import ConfigError

EVERYTHING = AugmentConfig(crop=0.3, shift=0.1, mirror=1.0, jitter=1.0, grey=1.0, blur=0.0)
NOTHING = {"crop": 1.0, "shift": 0.0, "mirror": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def picture(size=48):
    """Red on the left, blue on the right, a green mark in one corner."""
    image = np.full([size, size, 3], 40, "uint8")
    image[:, :size // 2] = (220, 30, 30)
    image[:, size // 2:] = (30, 30, 220)
    image[:6, :6] = (20, 240, 20)
    return image


@pytest.mark.parametrize("text, mirror, colours, crop", [
    ("太阳", True, True, True), ("左边有一只猫", False, True, False), ("箭头指向右侧", False, True, False),
    ("一个红色的圆形", True, False, False), ("黄瓜", True, False, True), ("上方的树", True, True, False),
    ("三只狗", True, True, False), ("A cat on the left", False, True, False), ("a grey cat", False, False, True),
    ("按键：0", False, True, False), ("the brightest colours", False, False, True), ("顺时针", False, True, True)])
def test_what_a_text_allows(text, mirror, colours, crop):
    may = allowed([text])
    if text.isascii():  # Latin letters are taken for a written sign
        mirror = False
    assert (may.mirror, may.colours, may.crop) == (mirror, colours, crop)


def test_all_texts_must_stay_true():
    assert allowed(["太阳", ""]).mirror and not allowed(["太阳", "左边"]).mirror
    assert not allowed(["太阳", "图里有红色的圆形"]).colours


def test_a_text_about_sides_and_colours_keeps_both():
    image, texts = picture(), ["红色在左边，蓝色在右边"]
    for seed in range(20):
        view = augment(image, 48, texts, AugmentConfig(**NOTHING | {"mirror": 1.0, "jitter": 1.0, "grey": 1.0,
                                                                    "crop": 0.2}), np.random.default_rng(seed))
        assert np.array_equal(view, image)


def test_without_such_a_text_each_change_is_made():
    image, rng = picture(), np.random.default_rng
    assert np.array_equal(augment(image, 48, ["猫"], AugmentConfig(**NOTHING), rng(0)), image)
    mirrored = augment(image, 48, ["猫"], AugmentConfig(**NOTHING | {"mirror": 1.0}), rng(0))
    assert np.array_equal(mirrored, image[:, ::-1])
    grey = augment(image, 48, ["猫"], AugmentConfig(**NOTHING | {"grey": 1.0}), rng(0))
    assert (grey == grey[..., :1]).all() and grey.std() > 1
    jittered = augment(image, 48, ["猫"], AugmentConfig(**NOTHING | {"jitter": 1.0}), rng(0))
    assert not np.array_equal(jittered, image) and np.abs(jittered.astype(int) - image).mean() < 80
    blurred = [augment(image, 48, ["左边"], AugmentConfig(**NOTHING | {"blur": 1.0}), rng(seed)) for seed in range(9)]
    assert min(_steepest(view) for view in blurred) < _steepest(image) - 20


def _steepest(image):
    """The largest step between neighbours in a row away from the mark."""
    return int(np.abs(np.diff(image[24].astype(int), axis=0)).max())


def test_crops_keep_their_share_and_shifts_their_distance():
    image, areas, cut = picture(64), [], 0
    for seed in range(60):
        view = augment(image, 64, ["猫"], AugmentConfig(**NOTHING | {"crop": 0.5}), np.random.default_rng(seed))
        marked = (view[..., 1] > 150).mean()
        cut += marked == 0
        areas.append(marked)
        moved = augment(image, 64, ["左边"], AugmentConfig(**NOTHING | {"shift": 0.06}), np.random.default_rng(seed))
        edge = int(np.argmax(moved[40, :, 2] > 120))
        assert 28 <= edge <= 36
    assert cut and max(areas) <= 2.2 * 36 / 64 ** 2
    assert len({tuple(augment(image, 64, ["左边"], AugmentConfig(**NOTHING | {"shift": 0.06}),
                              np.random.default_rng(seed)).reshape(-1)[:3000].tolist()) for seed in range(9)}) > 3


def test_views_are_of_the_size_asked_for_and_follow_from_the_seed():
    tall = np.asarray(Image.fromarray(picture(60)).resize((40, 90)))
    one, again, other = (augment(tall, 32, ["猫"], EVERYTHING, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("values, message", [({"crop": 0}, "crop"), ({"shift": 0.5}, "shift"), ({"blur": 2}, "blur")])
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(AugmentConfig, values)
