"""Token-level training of a two-level model: masks, turns of the tasks, features, starts, what is refused."""
import shutil

import numpy as np
import paddle
import pytest
import yaml

from vilg import config as configs
from vilg import release
from vilg.app import pipeline
from vilg.data.masks import one_target, token_masks
from vilg.data.sample import Sample
from vilg.errors import CheckpointError, ConfigError, DataError, ShapeError
from vilg.generation.sampling import MaskPredictConfig
from vilg.models.dual_encoder.image import ImageTower, ImageTowerConfig
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.models.dual_encoder.text import TextTowerConfig
from vilg.models.two_level.model import TwoLevelConfig
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
from vilg.release.kinds.image_tower import ReleasedTower
from vilg.run.build import RunConfig
from vilg.tasks.two_level import TwoLevelTask, TwoLevelTaskConfig


@pytest.fixture
def make(released_model):
    def build(model=None, sampling=None, **changes):
        vocab_size = len((released_model / "vocab.txt").read_text(encoding="utf-8").splitlines())
        shape = dict(layers=2, width=16, heads=2, vocab_size=vocab_size, codebook_size=32, text_length=16, rows=4,
                     columns=4)
        config = TwoLevelTaskConfig(model=TwoLevelConfig(**shape | (model or {})), vocabulary=str(released_model),
                                    image_tokenizer=str(released_model / "image_tokenizer"), **changes)
        paddle.seed(0)
        return TwoLevelTask(config, sampling or MaskPredictConfig())
    return build


@pytest.fixture
def tower(tmp_path):
    paddle.seed(4)
    made = ImageTower(ImageTowerConfig(layers=1, width=8, heads=2, image_size=16, patch_size=4))
    release.write(tmp_path / "tower", "image_tower", ReleasedTower(made))
    return str(tmp_path / "tower")


def samples(count=6, codes=False):
    rng = np.random.default_rng(0)
    return [Sample(f"s{i}", None if codes else rng.integers(0, 256, (20, 24, 3)).astype("uint8"),
                   ["一个红色的圆形", "红色的圆形"], [("有几个？", "一个")],
                   rng.integers(0, 32, 16) if codes else None) for i in range(count)]


def ready(task, taken=None):
    taken = taken or samples()
    seeds = list(range(len(taken)))
    batch = task.collate([task.view(sample, seed) for sample, seed in zip(taken, seeds)], seeds)
    return task.prepare(batch.map(paddle.to_tensor))


def test_masks_cover_the_papers_range_and_belong_to_a_sample():
    masks = token_masks(list(range(4000)), 64, "uniform", 6 / 64)
    counts = masks.sum(axis=1)
    assert counts.min() == 6 and counts.max() == 64
    assert abs(counts.mean() - 35) < 1 and np.abs(np.bincount(counts, minlength=65)[6:] - 4000 / 59).max() < 40
    assert np.abs(masks.mean(axis=0) - masks.mean()).max() < 0.04, "some places are masked more often"
    np.testing.assert_array_equal(token_masks([7, 3], 64, "uniform", 6 / 64), masks[[7, 3]])
    assert token_masks(list(range(99)), 4, "uniform", 0.0).any(axis=1).all(), "a sample without a mask teaches nothing"


def test_the_cosine_ratio_is_maskgits():
    shares = token_masks(list(range(4000)), 64, "cosine", 0.0).mean(axis=1)
    assert abs(shares.mean() - 2 / np.pi) < 0.02 and shares.min() < 0.05
    assert token_masks(list(range(4000)), 64, "cosine", 0.5).sum(axis=1).min() == 32


def test_one_target_lies_behind_the_question_and_within_the_text():
    length, prefix = np.array([6, 6, 9] * 200), np.array([0, 4, 3] * 200)
    found = one_target(list(range(600)), length, prefix).reshape(-1, 3)
    assert [sorted(set(column)) for column in found.T] == [[1, 2, 3, 4, 5], [4, 5], [3, 4, 5, 6, 7, 8]]


def test_batches_are_pure_and_samples_do_not_depend_on_their_neighbours(make):
    task = make(text_targets="one")
    taken = samples()
    whole = task.collate(taken, list(range(6))).parts()
    alone = task.collate(taken[3:4], [3]).parts()
    assert {"masked", "i2t_target"} <= whole.keys()
    assert all(np.array_equal(alone[name][0], whole[name][3]) for name in whole)


def test_turns_alternate_and_each_trains_its_own(make):
    task = make(image_to_text_every=3)
    batch = ready(task)
    keys = [list(task.step(batch, step).figures) for step in range(6)]
    assert keys == [["loss_t2i"], ["loss_t2i"], ["loss_i2t"]] * 2
    both = make().step(batch, 0)
    assert sorted(both.figures) == ["loss_i2t", "loss_t2i"]
    np.testing.assert_allclose(float(both.loss), sum(float(value) for value in both.figures.values()), rtol=1e-6)
    assert list(make(directions="text_to_image").step(batch, 0).figures) == ["loss_t2i"]


def test_one_word_a_caption_is_another_loss_than_all(make):
    task = make(text_targets="one", directions="image_to_text")
    batch = ready(task)
    one = float(task.step(batch, 0).loss)
    batch.i2t_target = None
    assert one != pytest.approx(float(task.step(batch, 0).loss), rel=1e-4)


def test_only_masked_codes_are_asked_for_and_known_ones_read(make):
    task = make(directions="text_to_image")
    batch = ready(task)
    base = float(task.step(batch, 0).loss)
    codes, masked = batch.codes.numpy(), batch.masked.numpy()
    row = int(np.flatnonzero(~masked.all(axis=1))[0])
    known, hidden = int(np.flatnonzero(~masked[row])[0]), int(np.flatnonzero(masked[row])[0])
    for place in (known, hidden):
        other = codes.copy()
        other[row, place] = (other[row, place] + 1) % 32
        batch.codes = paddle.to_tensor(other)
        assert float(task.step(batch, 0).loss) != pytest.approx(base, rel=1e-7)


@pytest.mark.parametrize("features", ["codes", "encoder", "vit"])
def test_a_run_learns_exports_and_is_read_back(make, tower, tmp_path, features):
    width = {"codes": 0, "encoder": 8, "vit": 8}[features]
    task = make({"features": features, "feature_width": width}, MaskPredictConfig(steps=3, guidance=2.0),
                image_tower=tower if features == "vit" else None)
    batch, losses = ready(task), []
    optimizer = paddle.optimizer.AdamW(5e-3, parameters=list(task.phases[0].parameters.values()))
    for step in range(30):
        out = task.step(batch, step)
        out.loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(out.loss))
    assert losses[-1] < 0.7 * losses[0]
    task.export(str(tmp_path / "model"))
    model = pipeline.load(tmp_path / "model")
    assert model.sampling == MaskPredictConfig(steps=3, guidance=2.0)
    assert model.features.kind == features
    images = [sample.image for sample in samples(2)]
    seen = model.read(images)
    assert seen.shape == ([2, 16] if features == "codes" else [2, 16, 8])
    drawn = model.text_to_image("一个红色的圆形", num_images=2, best_of=4, seed=3)[0]
    assert len(drawn) == 2 and drawn[0].info["steps"] == 3
    assert drawn[0].info["log_p_text"] >= drawn[1].info["log_p_text"]
    assert len(model.image_to_text(images)) == 2 and model.rank(["红色的圆形"], images).shape == (1, 2)
    assert len(list(task.preview(batch))) == 8


def test_a_bidirectional_model_is_a_start(make, released_model):
    task = make({"features": "encoder", "feature_width": 8}, init_from=str(released_model))
    start = release.read(released_model, "bidirectional").model
    ours, theirs = task.model.state_dict(), start.state_dict()
    np.testing.assert_array_equal(ours["mask_vector.weight"].numpy(), theirs["begin_of_image.weight"].numpy())
    np.testing.assert_array_equal(ours["image_head.weight"].numpy(), theirs["image_head.weight"].numpy())
    size = float(paddle.sqrt((theirs["image_embedding.weight"] ** 2).mean()))
    np.testing.assert_allclose(ours["feature_norm.weight"].numpy(), size, rtol=1e-6)


def test_a_two_level_model_is_a_start_for_other_features(make, tmp_path):
    make().export(str(tmp_path / "codes"))
    dense = make({"features": "encoder", "feature_width": 8}, init_from=str(tmp_path / "codes"))
    dense.export(str(tmp_path / "dense"))
    again = make({"features": "encoder", "feature_width": 8}, init_from=str(tmp_path / "dense"))
    for name in ("feature_map.weight", "mask_vector.weight"):
        stored = dense.model.state_dict()[name].numpy().astype("float16")
        np.testing.assert_array_equal(again.model.state_dict()[name].numpy(), stored.astype("float32"))
    back = make(init_from=str(tmp_path / "dense"))
    assert "feature_map.weight" not in back.model.state_dict()


def test_another_kind_is_no_start(make, tmp_path, released_model, tower):
    folder = shutil.copytree(released_model / "image_tokenizer", tmp_path / "other")
    with pytest.raises(CheckpointError):
        make(init_from=str(folder))


def test_codes_alone_have_no_features(make):
    task = make({"features": "encoder", "feature_width": 8})
    with pytest.raises(DataError, match="features: encoder .* codes"):
        task.collate(samples(codes=True), list(range(6)))
    assert ready(make(), samples(codes=True)).read.shape == [6, 16]


def test_a_folder_whose_tower_is_gone_is_refused(make, tower, tmp_path):
    make({"features": "vit", "feature_width": 8}, image_tower=tower).export(str(tmp_path / "model"))
    assert pipeline.load(tmp_path / "model").features.tower is not None
    shutil.rmtree(tmp_path / "model" / "image_tower")
    with pytest.raises(CheckpointError, match="image_tower"):
        pipeline.load(tmp_path / "model")


@pytest.mark.parametrize("changes,says", [
    (dict(least_masked=1.5), "least_masked"), (dict(label_smoothing=1.0), "label_smoothing"),
    (dict(image_to_text_every=1), "image_to_text_every"), (dict(mask_ratio="half"), "mask_ratio"),
    (dict(image_to_text_every=2, directions="text_to_image"), "image_to_text_every"),
    (dict(image_tower="somewhere"), "image_tower"), (dict(text_targets="two"), "text_targets")])
def test_contradictions_are_refused(released_model, changes, says):
    shape = dict(layers=2, width=16, heads=2, vocab_size=30, codebook_size=32, text_length=16, rows=4, columns=4)
    values = dict(model=shape, vocabulary="v", image_tokenizer="t")
    configs.from_dict(TwoLevelTaskConfig, values)
    with pytest.raises(ConfigError, match=says):
        configs.from_dict(TwoLevelTaskConfig, values | changes)


def test_what_does_not_fit_is_refused_with_both_sides(make):
    with pytest.raises(ConfigError, match="feature_width: is 5, but encoder features are 8 wide"):
        make({"features": "encoder", "feature_width": 5})
    with pytest.raises(ShapeError, match="steps is 17, .*4×4 has 16"):
        make(sampling=MaskPredictConfig(steps=17))


def test_a_runs_sampling_is_that_of_its_kind_of_model():
    shape = dict(layers=2, width=16, heads=2, vocab_size=30, codebook_size=32, text_length=16, rows=4, columns=4)
    task = dict(kind="two_level", model=shape, vocabulary="v", image_tokenizer="t")
    values = dict(name="x", task=task, data={"sources": [{"kind": "scenes", "count": 3}]}, sampling={"steps": 5})
    run = configs.from_dict(RunConfig, values)
    assert run.drawing == MaskPredictConfig(steps=5)
    assert configs.from_dict(RunConfig, yaml.safe_load(configs.to_yaml(run))) == run
    with pytest.raises(ConfigError, match="top_k.*token by token.*by mask-predict"):
        configs.from_dict(RunConfig, values | {"sampling": {"top_k": 4}})
    with pytest.raises(ConfigError, match="x.yaml: sampling: steps.*by mask-predict.*token by token"):
        configs.from_dict(RunConfig, values | {"task": task | {"kind": "bidirectional"}}, "x.yaml")


def test_the_tower_of_a_dual_encoder_is_read_from_its_folder(make, released_model, tmp_path):
    shape = dict(layers=1, width=8, heads=2)
    words = release.read(released_model, "bidirectional").text_tokenizer
    paddle.seed(9)
    dual = DualEncoder(DualEncoderConfig(
        image=ImageTowerConfig(**shape, image_size=16, patch_size=4),
        text=TextTowerConfig(**shape, vocab_size=words.vocab_size, positions=12), projection=4))
    preprocess = PreprocessConfig(mean=(0.1, 0.2, 0.3))
    release.write(tmp_path / "dual", "dual_encoder", ReleasedDualEncoder(dual, words, preprocess, 12))
    task = make({"features": "vit", "feature_width": 8}, image_tower=str(tmp_path / "dual"))
    assert task.reader.preprocess == preprocess
    np.testing.assert_allclose(task.reader.tower.patch_map.weight.numpy(), dual.image_tower.patch_map.weight.numpy(),
                               atol=1e-3)
    assert ready(task).features.shape == [6, 16, 8]
    with pytest.raises(CheckpointError, match="image tower"):
        make({"features": "vit", "feature_width": 8}, image_tower=str(released_model))
