"""What Inception is shown, by the four published protocols."""
import numpy as np
import paddle
import pytest
from PIL import Image

from vilg.data.resize import (RESIZES, VARIANTS, bilinear_corner, bilinear_half_pixel, pil_bicubic_float, pil_bilinear,
                              to_inception)
from vilg.errors import DataError

SIZES = [(64, 64), (256, 256), (480, 640), (299, 299), (700, 333), (1, 5)]


def made_image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(size)).integers(0, 256, [*size, 3]).astype("uint8")


@pytest.mark.parametrize("size", SIZES)
def test_pil_resizes_are_pils_to_the_bit(size):
    image = made_image(size)
    whole = Image.fromarray(image)
    assert np.array_equal(pil_bilinear(image), whole.resize((299, 299), Image.Resampling.BILINEAR))
    floats = [np.asarray(channel.convert("F").resize((299, 299), Image.Resampling.BICUBIC))
              for channel in whole.split()]
    assert np.array_equal(pil_bicubic_float(image), np.clip(np.stack(floats, -1), 0, 255))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("own, mode", [(bilinear_half_pixel, 0), (bilinear_corner, 1)])
def test_bilinear_resizes_equal_paddles(size, own, mode):
    values = made_image(size).astype("float32") / 255
    x = paddle.to_tensor(values.transpose(2, 0, 1)[None])
    expected = paddle.nn.functional.interpolate(x, [299, 299], mode="bilinear", align_corners=False, align_mode=mode)
    # Places differ by a float32's last bit, 6e-5 at the far end of 700 pixels, and a step between two is up to 1.
    np.testing.assert_allclose(own(values), expected.numpy()[0].transpose(1, 2, 0), rtol=0, atol=1e-4)


def test_protocols_differ_where_an_image_shrinks():
    images = [made_image((640, 480))]
    shown = {protocol: to_inception(images, protocol) for protocol in RESIZES}
    assert all(batch.shape == (1, 3, 299, 299) and batch.dtype == np.float32 for batch in shown.values())
    names = list(shown)
    for number, name in enumerate(names):
        for other in names[number + 1:]:
            assert np.abs(shown[name] - shown[other]).max() > 0.05, (name, other)


@pytest.mark.parametrize("protocol, black, white", [("dm-gan", -1, 1), ("pytorch-fid", -1, 1),
                                                    ("torch-fidelity", -1, 127 / 128), ("clean-fid", -1, 127 / 128)])
def test_ends_of_the_scale(protocol, black, white):
    images = [np.full([40, 30, 3], level, "uint8") for level in (0, 255)]
    shown = to_inception(images, protocol)
    np.testing.assert_allclose(shown[0], black, atol=1e-6)
    np.testing.assert_allclose(shown[1], white, atol=1e-6)


def test_channels_keep_their_order():
    image = np.zeros([8, 8, 3], "uint8")
    image[..., 2] = 255
    for protocol in RESIZES:
        assert to_inception([image], protocol)[0].mean((1, 2)).argmax() == 2
    assert RESIZES.keys() == VARIANTS.keys()


@pytest.mark.parametrize("image, protocol, sentence", [
    (np.zeros([4, 4, 3], "uint8"), "fid", "protocol called fid; choose one of dm-gan"),
    (np.zeros([4, 4], "uint8"), "dm-gan", r"got uint8 \[4, 4\]"),
    (np.zeros([4, 4, 3], "float32"), "dm-gan", "got float32")])
def test_other_images_and_protocols_are_refused(image, protocol, sentence):
    with pytest.raises(DataError, match=sentence):
        to_inception([image], protocol)


@pytest.mark.extras
@pytest.mark.parametrize("size", SIZES)
def test_resizes_equal_the_originals(size):
    torch = pytest.importorskip("torch")
    interpolate = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    image = made_image(size)
    levels = torch.tensor(image).permute(2, 0, 1)[None].float()
    half = 2 * torch.nn.functional.interpolate(levels / 255, (299, 299), mode="bilinear", align_corners=False) - 1
    corner = interpolate.interpolate_bilinear_2d_like_tensorflow1x(levels, (299, 299), align_corners=False)
    for protocol, expected in (("pytorch-fid", half), ("torch-fidelity", (corner - 128) / 128)):
        np.testing.assert_allclose(to_inception([image], protocol), expected.numpy(), rtol=0, atol=1e-6)
