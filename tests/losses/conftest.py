"""A VGG16 file with random weights, for the perceptual distance."""
import numpy as np
import pytest
import safetensors.numpy

LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
          17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory):
    """Path of a file with the names and shapes of the public VGG16."""
    rng, weights = np.random.default_rng(0), {}
    for number, (inner, outer) in LAYERS.items():
        scale = (2 / (9 * inner)) ** 0.5
        weights[f"features.{number}.weight"] = rng.standard_normal((outer, inner, 3, 3), "float32") * scale
        weights[f"features.{number}.bias"] = rng.standard_normal(outer).astype("float32") * 0.1
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    safetensors.numpy.save_file(weights, str(path))
    return str(path)
