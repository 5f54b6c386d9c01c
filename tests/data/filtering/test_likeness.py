"""What tells that images or texts are nearly the same."""
import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vilg.data.filtering import likeness
from vilg.data.worlds import scenes

APART = 24
"""As configs/data/web.yaml has it."""


@pytest.fixture(scope="module")
def drawn():
    seen = {}
    for seed in range(400):
        scene = scenes.sample_scene(seed, "train")
        seen.setdefault(str(sorted(map(str, scene.facts()))), scenes.render(scene, 96))
    return list(seen.values())[:150]


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer))


def looks(images):
    small = [likeness.thumbnail(image) for image in images]
    hashes = np.array([likeness.look_hash(one) for one in small], np.uint64)
    return hashes, np.stack([np.frombuffer(one, np.uint8) for one in small])


@pytest.mark.parametrize("change", [
    lambda image: jpeg(image, 60), lambda image: np.asarray(image.resize((72, 72), Image.Resampling.BICUBIC)),
    lambda image: np.asarray(image.resize((200, 200), Image.Resampling.BICUBIC)),
    lambda image: np.asarray(ImageEnhance.Brightness(image).enhance(1.05))])
def test_copies_are_candidates_and_confirmed(drawn, change):
    hashes, small = looks(drawn)
    others, changed = looks([change(Image.fromarray(image)) for image in drawn])
    share = (likeness.look_tables(hashes) == likeness.look_tables(others)).any(1)
    found = share & (likeness.bits_apart(hashes, others) <= 8) & (likeness.thumbnails_apart(small, changed) <= APART)
    assert found.mean() >= 0.95


def test_other_scenes_are_no_copies_though_their_hashes_are_near(drawn):
    hashes, small = looks(drawn)
    first, second = np.triu_indices(len(drawn), 1)
    near = likeness.bits_apart(hashes[first], hashes[second]) <= 8
    assert near.sum() > 5, "the hash alone takes some for the same"
    assert (likeness.thumbnails_apart(small[first], small[second])[near] <= APART).sum() <= 1


def test_bits_and_hashes():
    one = np.array([0, 2**64 - 1, 5], np.uint64)
    assert likeness.bits_apart(one, np.array([1, 0, 5], np.uint64)).tolist() == [1, 64, 0]
    grey = np.full([4, 4, 3], 9, np.uint8)
    assert likeness.pixels_hash(grey) != likeness.pixels_hash(grey.reshape(2, 8, 3)) != likeness.content_hash(b"")


def test_shingles_pass_over_marks_and_width():
    assert likeness.texts_alike("红色的苹果。", "红色 的苹果！") == 1 and likeness.texts_alike("ＡＢＣＤ", "abcd") == 1
    assert likeness.texts_alike("红色的苹果", "蓝色的汽车") == 0 == likeness.texts_alike("！", "！")
    assert likeness.texts_alike("红色的苹", "红色的苹果") == pytest.approx(2 / 3)
    assert len(likeness.shingles("红")) == 1 and len(likeness.text_bands("…")) == 0


def test_near_texts_share_a_band_and_others_do_not():
    rng = np.random.default_rng(0)
    letters = [chr(0x4e00 + number) for number in range(3000)]
    texts = ["".join(rng.choice(letters, 30)) for _ in range(200)]
    shared = [np.isin(likeness.text_bands(text), likeness.text_bands(text[:28])).any() for text in texts]
    strange = [np.isin(likeness.text_bands(one), likeness.text_bands(two)).any() for one, two in zip(texts, texts[1:])]
    assert np.mean(shared) >= 0.99 and np.mean(strange) == 0
