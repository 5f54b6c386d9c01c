"""The perceptual distance against LPIPS's definition, with random VGG16 weights in a local file."""
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import safetensors.numpy

from vilg.errors import CheckpointError
from vilg.losses.perceptual import PerceptualConfig, PerceptualLoss

LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
ENDS = {2: 64, 7: 128, 14: 256, 21: 512, 28: 512}


@pytest.fixture(scope="module")
def files(vgg16):
    rng, folder, vgg = np.random.default_rng(1), Path(vgg16).parent, safetensors.numpy.load_file(vgg16)
    linear = {f"lin{number}.model.1.weight": rng.uniform(0, 1, (1, width, 1, 1)).astype("float32")
              for number, width in enumerate(ENDS.values())}
    safetensors.numpy.save_file(linear, str(folder / "lin.safetensors"))
    return folder, vgg, linear


def features(vgg: dict, x: paddle.Tensor) -> list[paddle.Tensor]:
    mean, deviation = (paddle.to_tensor(values).reshape([1, 3, 1, 1])
                       for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x, found = ((x + 1) / 2 - mean) / deviation, []
    for number in LAYERS:
        x = F.max_pool2d(x, 2) if number in (5, 10, 17, 24) else x
        x = F.relu(F.conv2d(x, paddle.to_tensor(vgg[f"features.{number}.weight"]),
                            paddle.to_tensor(vgg[f"features.{number}.bias"]), padding=1))
        if number in ENDS:
            found.append(x / (x.norm(p=2, axis=1, keepdim=True) + 1e-10))
    return found


@pytest.mark.parametrize("with_linear", [True, False])
def test_the_distance_is_lpips(files, with_linear):
    folder, vgg, linear = files
    loss = PerceptualLoss(PerceptualConfig(weights=str(folder / "vgg16.safetensors"), weight=0.5,
                                           linear=str(folder / "lin.safetensors") if with_linear else None))
    paddle.seed(1)
    x, y = paddle.rand([2, 1, 3, 32, 32]) * 2 - 1
    expected = 0.0
    for number, (a, b) in enumerate(zip(features(vgg, x), features(vgg, y))):
        weight = linear[f"lin{number}.model.1.weight"] if with_linear else 1.0 / a.shape[1]
        expected += float((((a - b) ** 2) * paddle.to_tensor(weight, dtype="float32")).sum(1).mean())
    assert float(loss(x, y)) == pytest.approx(0.5 * expected, rel=1e-4)
    x.stop_gradient = False
    loss(x, y).backward()
    assert float(x.grad.abs().max()) > 0
    assert all(weight.grad is None for weight in loss.parameters())


def test_a_file_that_is_not_a_vgg_is_refused(files, tmp_path):
    folder, vgg, _ = files
    with pytest.raises(CheckpointError, match="no such"):
        PerceptualLoss(PerceptualConfig(weights=str(tmp_path / "missing.safetensors")))
    lacking = {name: value for name, value in vgg.items() if not name.startswith("features.5.")}
    safetensors.numpy.save_file(lacking, str(tmp_path / "vgg.safetensors"))
    with pytest.raises(CheckpointError, match="features.5.weight"):
        PerceptualLoss(PerceptualConfig(weights=str(tmp_path / "vgg.safetensors")))
    with pytest.raises(CheckpointError, match="lin0.model.1.weight"):
        PerceptualLoss(PerceptualConfig(weights=str(folder / "vgg16.safetensors"),
                                        linear=str(folder / "vgg16.safetensors")))


def test_a_picture_without_activations_has_a_finite_gradient(files):
    folder, _, _ = files
    loss = PerceptualLoss(PerceptualConfig(weights=str(folder / "vgg16.safetensors"),
                                           linear=str(folder / "lin.safetensors")))
    loss.convolutions[-1][-1].bias.set_value(paddle.full([512], -1e6))  # the last stage is silent everywhere
    picture = paddle.zeros([1, 3, 32, 32])
    picture.stop_gradient = False
    loss(picture, paddle.ones([1, 3, 32, 32])).backward()
    assert np.isfinite(picture.grad.numpy()).all() and np.abs(picture.grad.numpy()).max() > 0
