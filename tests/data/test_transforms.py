import numpy as np

from vilg.data.transforms import centre_crop, from_model, to_model


def test_the_crop_is_the_largest_centred_square():
    picture = np.zeros((8, 14, 3), np.uint8)
    picture[:, 3:11] = 255
    assert (centre_crop(picture, 8) == 255).all()
    assert (centre_crop(picture, 4) == 255).all() and (centre_crop(picture, 16) == 255).all()
    tall = np.ascontiguousarray(picture.transpose(1, 0, 2))
    assert (centre_crop(tall, 8) == 255).all()


def test_shrinking_averages_so_that_fine_patterns_do_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = centre_crop(stripes, 16)
    assert small.shape == (16, 16, 3) and np.abs(small[2:-2, 2:-2].astype(int) - 127).max() < 12


def test_pixels_to_the_model_and_back():
    pictures = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    pictures[0, 0, 0] = (0, 127, 255)
    images = to_model(pictures)
    assert images.shape == (2, 3, 4, 4) and images.dtype == np.float32
    assert images[0, 0, 0, 0] == -1 and abs(images[0, 2, 0, 0] - 1) < 1e-6
    np.testing.assert_array_equal(from_model(images), pictures)
    assert from_model(np.full((3, 1, 1), 7.0)).tolist() == [[[255, 255, 255]]]
