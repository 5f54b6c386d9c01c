"""The Fréchet distance against closed forms and SciPy-free references; the feature network and its task."""
import numpy as np
import paddle
import pytest

from vilg import config, release
from vilg.data.sample import Sample
from vilg.data.worlds.scenes import render, sample_scene
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource
from vilg.errors import CheckpointError, DataError
from vilg.metrics.frechet import Gaussian, frechet_distance, gaussian
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.run import build
from vilg.tasks.scene_features import CLASSES, SceneFeaturesTask, SceneFeaturesTaskConfig

SMALL = {"image_size": 32, "channels": 8, "dim": 16}


def random_covariance(rng, width, rank):
    factor = rng.standard_normal((width, rank))
    return factor @ factor.T / rank


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    a, b = rng.uniform(0.1, 2, 5), rng.uniform(0.1, 2, 5)
    means = rng.standard_normal((2, 5))
    wanted = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(Gaussian(means[0], (basis * a) @ basis.T), Gaussian(means[1], (basis * b) @ basis.T))
    assert got == pytest.approx(wanted, rel=1e-10)


def test_any_covariances_agree_with_the_product_root():
    rng = np.random.default_rng(1)
    first, second = random_covariance(rng, 6, 9), random_covariance(rng, 6, 9)
    # The eigenvalues of Σ₁Σ₂ are real and positive, and their roots sum to the trace of its square root.
    cross = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    wanted = np.trace(first) + np.trace(second) - 2 * cross
    got = frechet_distance(Gaussian(np.zeros(6), first), Gaussian(np.zeros(6), second))
    assert got == pytest.approx(wanted, rel=1e-9)


def test_it_is_zero_for_equal_sets_symmetric_and_real_when_a_rank_is_missing():
    rng = np.random.default_rng(2)
    few = gaussian(rng.standard_normal((4, 10)))  # rank 3
    many = gaussian(rng.standard_normal((200, 10)))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, many) == pytest.approx(frechet_distance(many, few), rel=1e-6)
    assert frechet_distance(many, few) > 0.5


@pytest.mark.parametrize("counts", [(4, 6), (4, 200), (200, 4), (9, 10)])
def test_few_images_have_the_distance_of_their_covariances(counts):
    rng = np.random.default_rng(5)
    sets = [gaussian(rng.standard_normal((count, 10)) @ rng.standard_normal((10, 10))) for count in counts]
    plain = [Gaussian(one.mean, one.covariance) for one in sets]
    assert any(one.factor is not None for one in sets)
    assert frechet_distance(*sets) == pytest.approx(frechet_distance(*plain), rel=1e-6)


def test_a_shift_counts_its_square():
    features = np.random.default_rng(3).standard_normal((50, 4))
    assert frechet_distance(gaussian(features), gaussian(features + 3)) == pytest.approx(4 * 9, rel=1e-6)


@pytest.mark.parametrize("features, says", [(np.zeros((1, 4)), "at least two"), (np.zeros(4), "at least two"),
                                            (np.full((3, 4), np.nan), "finite")])
def test_sets_without_a_gaussian_are_refused(features, says):
    with pytest.raises(DataError, match=says):
        gaussian(features)


def test_features_of_two_networks_are_refused():
    with pytest.raises(DataError, match="4 and 5 dimensions"):
        frechet_distance(gaussian(np.eye(4)), gaussian(np.eye(5)))


def make_task():
    paddle.seed(0)
    return SceneFeaturesTask(config.from_dict(SceneFeaturesTaskConfig, {"network": SMALL}))


def scene_samples(count, **settings):
    source = ScenesSource(ScenesConfig(count=count, size=32, **settings))
    return [source[seed] for seed in range(count)]


def gather(task, taken, seeds=None):
    """What the loader makes of samples: their views, collated."""
    seeds = list(range(len(taken))) if seeds is None else seeds
    return task.collate([task.view(sample, seed) for sample, seed in zip(taken, seeds)], seeds)


@pytest.mark.parametrize("settings", [{}, {"kinds": 2}, {"wide": True}, {"first": 40}])
def test_labels_say_what_stands_where(settings):
    batch = gather(make_task(), scene_samples(8, **settings))
    for row in range(8):
        seed = settings.get("first", 0) + row
        scene = sample_scene(seed, "train", settings.get("kinds", 1), settings.get("wide", False))
        assert (batch.shape[row] > 0).sum() == len(scene.objects)
        for item in scene.objects:
            cell = 3 * item.cell[0] + item.cell[1]
            assert all(CLASSES[name][getattr(batch, name)[row, cell] - 1] == getattr(item, name) for name in CLASSES)


def test_a_few_steps_learn_a_few_scenes_and_the_folder_gives_the_same_features(tmp_path):
    task, samples = make_task(), scene_samples(8)
    batch = gather(task, samples).map(paddle.to_tensor)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=list(task.phases[0].parameters.values()))
    first = float(task.step(batch, 0).loss)
    for step in range(30):
        output = task.step(batch, step)
        output.loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    assert float(output.loss) < 0.5 * first and float(output.figures["right_shape"]) > 0.8
    task.export(str(tmp_path / "network"), {"network.embedding.bias": np.zeros([16], "float32")})
    task.network.embedding.bias.set_value(paddle.zeros([16]))
    pictures = [sample.image for sample in samples]
    loaded = release.read(tmp_path / "network", "scene_features")
    np.testing.assert_allclose(loaded.of(pictures, 3), task.network.of(pictures), atol=2e-2)
    assert loaded.of(pictures).shape == (8, loaded.width) and loaded.of([]).shape == (0, loaded.width)


def test_dark_scenes_are_further_from_scenes_than_other_scenes_are():
    paddle.seed(1)
    network = SceneFeatures(SceneFeaturesConfig(**SMALL))
    real, other = ([render(sample_scene(seed, "train"), 32) for seed in range(first, first + 60)] for first in (0, 100))
    reference = gaussian(network.of(real))
    near, far = (frechet_distance(reference, gaussian(network.of(pictures)))
                 for pictures in (other, [picture // 3 for picture in other]))
    assert far > 2 * near


def test_refusals(tmp_path):
    with pytest.raises(CheckpointError, match="scene_features.yaml"):
        release.read(tmp_path, "scene_features")
    with pytest.raises(DataError, match="32, 32"):
        SceneFeatures(SceneFeaturesConfig(**SMALL)).of([np.zeros((64, 64, 3), "uint8")])
    with pytest.raises(DataError, match="no drawn scene"):
        gather(make_task(), [Sample("scenes/train/3", np.zeros((32, 32, 3), "uint8"), [""])])


def test_a_run_trains_and_exports_it(tmp_path):
    values = {"name": "features", "output": str(tmp_path / "run"), "task": {"kind": "scene_features", "network": SMALL},
              "data": {"sources": [{"kind": "scenes", "count": 20, "size": 32, "captions": 1, "questions": 0}]},
              "train": {"steps": 2, "batch_size": 4, "preview_every": 1, "checkpoint_every": 0}}
    build.build_trainer(config.from_dict(build.RunConfig, values)).fit()
    network = release.read(tmp_path / "run" / "model", "scene_features")
    assert network.of([np.zeros((32, 32, 3), "uint8")]).shape == (1, 32)
