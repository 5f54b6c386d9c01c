"""What a reconstructed image is trained by: every part is in the sum, with its weight."""
import paddle
import pytest
from paddle import nn

from vilg.losses.adversarial import AdversaryConfig, PatchDiscriminator
from vilg.losses.perceptual import PerceptualConfig
from vilg.losses.picture import AdversarialPull, PictureLoss, PixelLossConfig
from vilg.nn.layers import Conv2D


class Last(nn.Layer):
    """A reconstructor's last layer."""

    def __init__(self):
        super().__init__()
        self.last = Conv2D(4, 3, 1)
        self.last_parameters = [self.last.weight, self.last.bias]


def images(seed):
    paddle.seed(seed)
    return paddle.rand([2, 3, 32, 32]) * 2 - 1


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_perceptual_distance_is_added_with_its_weight(vgg16, weight):
    config = PixelLossConfig(l1=1.0, l2=0.0, perceptual=PerceptualConfig(weights=vgg16, weight=weight))
    loss = PictureLoss(config)
    raw, target = images(0), images(1)
    total, figures = loss(raw, target)
    pixels, distance = (raw - target).abs().mean().item(), loss.perceptual(raw, target).item()
    assert distance > 0.01
    assert total.item() == pytest.approx(pixels + distance, rel=1e-5)
    assert figures["loss_reconstruction"].item() == pytest.approx(pixels, rel=1e-5)
    assert figures["loss_perceptual"].item() == pytest.approx(distance, rel=1e-5)


def test_the_adversary_pulls_as_hard_as_its_weight_says():
    paddle.seed(0)
    layer, features, discriminator = Last(), paddle.rand([2, 4, 32, 32]), PatchDiscriminator(1, 8)
    pulls = {}
    for weight in (0.0, 0.5, 1.5):
        raw = layer.last(features)
        pull = AdversarialPull(discriminator, AdversaryConfig(layers=1, channels=8, weight=weight))
        added, figures = pull((raw - images(1)).abs().mean(), raw, features, layer)
        pulls[weight] = added.item()
        expected = weight * figures["adaptive_weight"].item() * figures["loss_generator"].item()
        assert added.item() == pytest.approx(expected, rel=1e-5)
    assert pulls[0.0] == 0 and abs(pulls[0.5]) > 1e-4
    assert pulls[1.5] == pytest.approx(3 * pulls[0.5], rel=1e-4)
