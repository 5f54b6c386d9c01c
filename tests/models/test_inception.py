"""Inception-v3 of both variants with random weights: against Paddle's own network, and against the originals."""
import numpy as np
import paddle
import pytest

import torch_writer
from vilg.errors import CheckpointError, ConfigError, ShapeError
from vilg.models.inception import CLASSES, ConvolutionReLU, Inception, load_inception

VARIANTS = ("torchvision", "tf")
PARTS = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}


@pytest.fixture(scope="module")
def names():
    return [name for name, layer in Inception("tf").named_sublayers() if isinstance(layer, ConvolutionReLU)]


@pytest.fixture(scope="module")
def arrays(names):
    """The 470 tensors of a feature network by their public names, drawn so that activations stay near one."""
    generator = np.random.default_rng(0)
    found = {}
    for name, layer in zip(names, map(dict(Inception("tf").named_sublayers()).get, names)):
        shape = layer.weight.shape
        found[f"{name}.conv.weight"] = generator.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype("float32")
        for part, (low, high) in zip(PARTS, ((0.7, 1.3), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))):
            found[f"{name}.bn.{part}"] = generator.uniform(low, high, shape[0]).astype("float32")
    return found


def whole(arrays: dict, variant: str) -> dict:
    """With the last layer: all 472 tensors."""
    generator = np.random.default_rng(1)
    return arrays | {"fc.weight": generator.normal(0, 0.02, [CLASSES[variant], 2048]).astype("float32"),
                     "fc.bias": np.ones(CLASSES[variant], "float32")}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """A file of each variant in its public format."""
    folder, found = tmp_path_factory.mktemp("inception"), {}
    for variant in VARIANTS:
        content = whole(arrays, variant)
        assert len(content) == 472
        if variant == "torchvision":  # whose file also holds the head that training needs, and counters
            content |= {"AuxLogits.conv0.conv.weight": np.zeros([128, 768, 1, 1], "float32"),
                        "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros([1], "int64")}
        found[variant] = folder / f"{variant}.pth"
        torch_writer.save(found[variant], torch_writer.tensors(content))
    return found


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).uniform(-1, 1, [2, 3, 299, 299]).astype("float32")


def of_paddle(arrays: dict, names: list[str], variant: str):
    """Paddle's own Inception-v3 with these weights, its pools changed where the variant's are others."""
    network = paddle.vision.models.inception_v3(num_classes=0)
    layers = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.Conv2D)]
    norms = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    for name, layer, norm in zip(names, layers, norms, strict=True):
        layer.weight.set_value(arrays[f"{name}.conv.weight"])
        norm._epsilon = 1e-3
        for part, own in PARTS.items():
            getattr(norm, own).set_value(arrays[f"{name}.bn.{part}"])
    if variant == "tf":
        for layer in network.sublayers():
            if isinstance(layer, paddle.nn.AvgPool2D):
                layer.exclusive = True
        network.inception_block_list[-1].branch_pool = paddle.nn.MaxPool2D(3, stride=1, padding=1)
    network.eval()
    return network


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_those_of_paddles_network(variant, files, arrays, names, images):
    network = load_inception(files[variant], variant)
    found = network(paddle.to_tensor(images))
    with paddle.no_grad():
        expected = of_paddle(arrays, names, variant)(paddle.to_tensor(images)).flatten(1).numpy()
    assert expected.shape == (2, 2048) and expected.std() > 0.1
    np.testing.assert_allclose(found.pool.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    logits = found.pool.numpy().astype("float64") @ whole(arrays, variant)["fc.weight"].T
    np.testing.assert_allclose(found.logits.numpy(), logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_the_variants_differ_by_their_pools_alone(files, images):
    first, second = (load_inception(files[variant], variant) for variant in VARIANTS)
    weights = [{name: value.numpy() for name, value in network.state_dict().items() if name != "fc_weight"}
               for network in (first, second)]
    assert len(weights[0]) == 2 * 94
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
    a, b = (network(paddle.to_tensor(images[:1])).pool.numpy() for network in (first, second))
    assert np.abs(a - b).max() > 0.01 * np.abs(a).max()
    assert len({first.fingerprint, second.fingerprint, ""}) == 3


@pytest.mark.parametrize("variant, other", [VARIANTS, VARIANTS[::-1]])
def test_weights_of_the_other_variant_are_refused_with_both_named(variant, other, files):
    with pytest.raises(CheckpointError, match=rf"{CLASSES[other]} classes.* takes .*{CLASSES[variant]} classes"):
        load_inception(files[other], variant)


@pytest.mark.parametrize("change, sentence", [
    (lambda state: {"features.0.weight": np.zeros([64, 3, 3, 3], "float32")},
     "lacks .* and 471 more, also has features"),
    (lambda state: state.pop("Mixed_7c.branch_pool.bn.running_var"),
     "471 weights .* has 472: lacks Mixed_7c.branch_pool.bn.running_var;"),
    (lambda state: state.update({"Mixed_8a.conv.weight": np.zeros([1], "float32")}), "also has Mixed_8a.conv.weight"),
    (lambda state: state.update({"fc.bias": np.zeros([7], "float32")}), r"has fc.bias \[7\] where \[1008\] is due"),
])
def test_weights_of_another_network_are_refused(change, sentence, arrays, tmp_path):
    state = whole(arrays, "tf")
    changed = change(state)
    torch_writer.save(tmp_path / "other.pth", torch_writer.tensors(changed if isinstance(changed, dict) else state))
    with pytest.raises(CheckpointError, match=sentence):
        load_inception(tmp_path / "other.pth", "tf")


def test_images_of_another_size_are_refused():
    with pytest.raises(ShapeError, match=r"takes images \[B, 3, 299, 299\], got \[1, 3, 256, 256\]"):
        Inception("tf")(paddle.zeros([1, 3, 256, 256]))


def test_another_variant_is_refused():
    with pytest.raises(ConfigError, match="called dm-gan; choose one of torchvision, tf"):
        Inception("dm-gan")


@pytest.mark.extras
def test_features_equal_torchvisions(files, images):
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    network = models.inception_v3(weights=None, init_weights=False, transform_input=False).eval()
    state = torch.load(files["torchvision"], weights_only=True)
    left = network.load_state_dict({name: value for name, value in state.items() if "AuxLogits" not in name
                                    and "tracked" not in name}, strict=False)
    assert not left.unexpected_keys and all("AuxLogits" in name or "tracked" in name for name in left.missing_keys)
    network.dropout = torch.nn.Identity()
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network(torch.tensor(images)).numpy()
    found = load_inception(files["torchvision"], "torchvision")(paddle.to_tensor(images)).pool.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.extras
def test_features_equal_pytorch_fids(files, images, monkeypatch):
    torch = pytest.importorskip("torch")
    original = pytest.importorskip("pytorch_fid.inception")
    state = torch.load(files["tf"], weights_only=True)
    tracked = {f"{name[:-len('weight')]}num_batches_tracked": torch.tensor(0) for name in state if ".bn.weight" in name}
    monkeypatch.setattr(original, "load_state_dict_from_url", lambda *_, **__: state | tracked)
    with torch.no_grad():
        network = original.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        expected = network(torch.tensor(images))[0].flatten(1).numpy()
    found = load_inception(files["tf"], "tf")(paddle.to_tensor(images)).pool.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.extras
def test_features_and_logits_equal_torch_fidelitys(files):
    torch = pytest.importorskip("torch")
    original = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from vilg.data.resize import to_inception

    levels = np.random.default_rng(4).integers(0, 256, [2, 320, 256, 3]).astype("uint8")
    network = original.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"], str(files["tf"]))
    with torch.no_grad():
        expected = [value.numpy() for value in network(torch.tensor(levels).permute(0, 3, 1, 2))]
    found = load_inception(files["tf"], "tf")(paddle.to_tensor(to_inception([*levels], "torch-fidelity")))
    for own, value in zip((found.pool, found.logits), expected):
        np.testing.assert_allclose(own.numpy(), value, rtol=0, atol=1e-5 * np.abs(value).max())
