"""Multi-view contrastive training: what its views are, what they do to the loss, and what it refuses."""
import copy
from dataclasses import replace

import numpy as np
import paddle
import pytest

from vilg import config, release
from vilg.data.config import build_stream
from vilg.data.sample import Sample
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.errors import CheckpointError, ConfigError, DataError
from vilg.losses.contrastive import info_nce
from vilg.models.dual_encoder.model import HIGHEST
from vilg.run import build
from vilg.tasks.contrastive import same_of
from vilg.yaml_files import read_yaml


def merged(values: dict, changes: dict) -> dict:
    result = copy.deepcopy(values)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return result


@pytest.fixture
def make_run(contrastive_values, tmp_path):
    def make(**changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        values = contrastive_values | {"output": str(tmp_path / "run")}
        return config.from_dict(build.RunConfig, merged(values, changes))
    return make


def first_batch(run, task, count=12, offset=0):
    stream = build_stream(run.data, None, task.least_side, task.reads_text)
    stream.begin(0, 1)
    samples = [stream.sample(position + offset, 0) for position in range(count)]
    return samples, task.collate([task.view(sample, seed) for seed, sample in enumerate(samples)], list(range(count)))


def loss_of(task, batch):
    paddle.seed(4)
    return task.step(batch.map(paddle.to_tensor), 0)


def test_training_beats_chance_and_releases_what_it_learned(make_run, styled_table):
    run = make_run(train__steps=200)
    trainer = build.build_trainer(run)
    trainer.fit()
    released = release.read(run.output_directory / "model", "dual_encoder")
    assert released.calibration is None and released.text_length == 16 and released.fingerprint
    task = build.build_task(run)
    samples, batch = first_batch(run, task, 24)
    with paddle.no_grad():
        images = released.model.encode_image(paddle.to_tensor(batch.image))
        texts = released.model.encode_text(paddle.to_tensor(batch.caption))
    nearest = (images @ texts.t()).argmax(1).numpy()
    right = np.mean([samples[row].facts["concept"] == samples[own].facts["concept"] for own, row in enumerate(nearest)])
    assert right > 0.5, "chance is about 1/8"


@pytest.mark.parametrize("view, changed", [
    ("image_image", {"other_image"}), ("image_tags", {"tags"}), ("text_text", {"other_caption"}),
    ("image_caption", set())])
def test_a_view_without_weight_is_neither_made_nor_counted(make_run, view, changed):
    run, without = make_run(), make_run(**{f"task__loss__{view}": 0.0})
    task, other = build.build_task(run), build.build_task(without)
    batch, less = first_batch(run, task)[1], first_batch(without, other)[1]
    assert batch.parts().keys() - less.parts().keys() == changed
    out, without_it = loss_of(task, batch), loss_of(other, less)
    assert set(out.figures) - set(without_it.figures) == {f"{view}_loss", f"{view}_accuracy"}
    assert float(out.loss) == pytest.approx(float(without_it.loss) + float(out.figures[f"{view}_loss"]), rel=1e-4)


def test_the_weight_of_a_view_counts(make_run):
    plain, heavy = make_run(), make_run(task__loss__image_tags=3.0)
    task, other = build.build_task(plain), build.build_task(heavy)
    batch = first_batch(plain, task)[1]
    out, more = loss_of(task, batch), loss_of(other, batch)
    assert float(more.loss - out.loss) == pytest.approx(2 * float(out.figures["image_tags_loss"]), rel=1e-4)


def test_equal_things_texts_and_tags_are_no_negatives(make_run):
    captions_alone = {f"task__loss__{view}": 0.0 for view in ("image_tags", "text_text", "image_image")}
    task = build.build_task(make_run(**captions_alone))
    samples, batch = first_batch(make_run(), build.build_task(make_run()), 24)
    assert len({same_of(sample) for sample in samples}) == 8
    same = batch.same[:, 0]
    assert [[a == b for a in same] for b in same] == [
        [one.facts["concept"] == other.facts["concept"] for one in samples] for other in samples]
    out = loss_of(task, replace(batch, other_image=None, tags=None, other_caption=None))
    with paddle.no_grad():
        images = task.model.encode_image(paddle.to_tensor(batch.image))
        texts = task.model.encode_text(paddle.to_tensor(batch.caption))
        masked = info_nce(images, texts, task.model.temperature(), paddle.to_tensor(batch.same)).loss
        bare = info_nce(images, texts, task.model.temperature()).loss
    assert float(out.loss) == pytest.approx(float(masked), rel=1e-5) and float(masked) < float(bare) - 0.05


def test_samples_without_tags_are_left_out_of_their_loss(make_run):
    run = make_run()
    task = build.build_task(run)
    stream = build_stream(run.data, None, 32, True)
    stream.begin(0, 1)
    samples = [stream.sample(position, 0) for position in range(12)]
    bare = [replace(sample, facts=sample.facts | {"tags": None}) if row % 2 else sample
            for row, sample in enumerate(samples)]
    batch = task.collate([task.view(sample, 1) for sample in bare], list(range(12)))
    assert batch.tagged.tolist() == [1, 0] * 6 and len(set(batch.same[1::2, 2].tolist())) == 6
    for value in task.model.parameters():
        if value.ndim == 2:  # fresh weights are too small to tell texts apart by
            value.set_value(value.numpy() * 10)
    changed = batch.tags.copy()
    changed[1::2] = batch.tags[::-1][1::2]
    one, other = loss_of(task, batch), loss_of(task, replace(batch, tags=changed))
    assert float(one.figures["image_tags_loss"]) == pytest.approx(float(other.figures["image_tags_loss"]), rel=1e-5)
    changed[0] = batch.tags[2]
    assert float(one.loss) != pytest.approx(float(loss_of(task, replace(batch, tags=changed)).loss), rel=1e-5)


def test_the_second_image_is_another_style_of_the_concept(make_run, styled_table):
    run = make_run()
    task, alone = build.build_task(run), build.build_task(make_run(task__other_image="augmented"))
    samples = first_batch(run, task)[0]
    others = set()
    for sample in samples:
        for seed in range(8):
            view = task.view(sample, seed)
            found = [path.stem for path in styled_table.parent.glob("*.png")
                     if np.array_equal(view.other_image, _read(path))]
            assert found and found[0] != sample.key.removesuffix(".png")
            assert found[0].endswith(f"-{sample.facts['concept']}")
            others.add(found[0].split("-")[0])
        assert np.array_equal(alone.view(sample, 0).other_image, sample.image)
    assert others == {"flat", "line", "glass"}


def _read(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def test_text_views_by_dropout_differ(make_run):
    run = make_run(task__other_caption="dropout", task__model__text__dropout=0.2)
    task = build.build_task(run)
    batch = first_batch(run, task)[1]
    assert np.array_equal(batch.caption, batch.other_caption)
    task.model.train()
    vectors = task.step._encode(task.model.encode_text, {"caption": paddle.to_tensor(batch.caption),
                                                         "other_caption": paddle.to_tensor(batch.other_caption)})
    assert float((vectors["caption"] - vectors["other_caption"]).abs().max()) > 1e-3


def test_noise_replaces_some_words_of_every_text_differently(make_run):
    plain, noisy = make_run(task__other_caption="written"), make_run(task__word_noise=0.5)
    samples, batch = first_batch(plain, build.build_task(plain), 24)
    changed = first_batch(noisy, build.build_task(noisy), 24)[1]
    for name in ("caption", "other_caption", "tags"):
        own, other = batch.parts()[name], changed.parts()[name]
        moved = own != other
        assert 0.1 < moved[own > 4].mean() < 0.8 and not moved[own <= 4].any(), "special tokens stay"
    assert np.array_equal(batch.same, changed.same) and np.array_equal(batch.image, changed.image)
    twice = build.build_task(noisy).collate([build.build_task(noisy).view(samples[0], 3)] * 2, [3, 4])
    assert not np.array_equal(twice.caption[0], twice.caption[1])


def test_chunks_give_the_loss_and_gradients_of_the_whole(make_run):
    found = []
    for chunk in (0, 5):
        run = make_run(task__chunk=chunk, task__model__text__dropout=0.0)
        task = build.build_task(run)
        Parallel(DistributedConfig()).phase_optimizer(task.phases[0], OptimConfig(), {})
        batch = first_batch(run, task)[1]
        out = loss_of(task, batch)
        out.loss.backward()
        found.append((float(out.loss), {name: value.grad.numpy() for name, value in task.model.named_parameters()}))
    (loss, gradients), (chunked, others) = found
    assert loss == pytest.approx(chunked, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-4, atol=3e-6, err_msg=name)  # of some 5e-4


def test_chunks_compute_again_with_the_same_dropout_and_patches(make_run):
    """The gradient must be that of the forward that was seen: along it, the loss falls as fast as it says."""
    run = make_run(task__chunk=7, task__model__text__dropout=0.3, task__model__image__patch_dropout=0.5)
    task = build.build_task(run)
    Parallel(DistributedConfig()).phase_optimizer(task.phases[0], OptimConfig(), {})
    batch = first_batch(run, task)[1]
    out = loss_of(task, batch)
    out.loss.backward()
    gradients = {name: value.grad.numpy() for name, value in task.model.named_parameters()}
    square, size = sum(float((value ** 2).sum()) for value in gradients.values()), 1e-5
    for name, value in task.model.named_parameters():
        value.set_value(value.numpy() - size * gradients[name])
    assert float(out.loss - loss_of(task, batch).loss) == pytest.approx(size * square, rel=0.1)


def test_a_frozen_tower_stays_as_it_is(make_run):
    run = make_run(task__model__image__frozen=True, task__model__projection=16, train__steps=3, optim__weight_decay=0.1)
    trainer = build.build_trainer(run)
    assert not [name for name in trainer.task.phases[0].parameters if name.startswith("image_tower.")]
    before = {name: value.numpy().copy() for name, value in trainer.task.model.state_dict().items()}
    trainer.fit()
    for name, value in trainer.task.model.state_dict().items():
        same = np.array_equal(value.numpy(), before[name])
        assert same == name.startswith("image_tower."), name


def test_the_temperature_is_clamped_after_every_step(make_run):
    run = make_run(train__steps=1)
    trainer = build.build_trainer(run)
    trainer.task.model.temperature.log.set_value(paddle.full([1], 9.0))
    trainer.fit()
    assert trainer.task.model.temperature.log.item() == pytest.approx(HIGHEST)
    trainer.task.model.temperature.log.set_value(paddle.full([1], -3.0))
    trainer.task.after_step(1)
    assert trainer.task.model.temperature.log.item() == 0


def test_previews_show_images_with_a_caption_of_the_batch(make_run):
    run = make_run()
    task = build.build_task(run)
    samples, batch = first_batch(run, task)
    shown = list(task.preview(batch.map(paddle.to_tensor)))
    assert len(shown) == 4 and task.model.training
    texts = {task.words.normalise(text) for sample in samples for text in sample.captions}
    for row, one in enumerate(shown):
        assert one.caption in texts and np.array_equal(one.picture, samples[row].image)


def test_a_run_starts_from_a_released_model(make_run, tmp_path):
    first = build.build_task(make_run())
    first.export(str(tmp_path / "start"))
    paddle.seed(9)
    again = build.build_task(make_run(task__init_from=str(tmp_path / "start"), seed=8))
    for name, value in first.model.state_dict().items():
        np.testing.assert_allclose(again.model.state_dict()[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"is \[32, 3, 8, 8\] in the file and \[64, 3, 8, 8\] in the mod"):
        build.build_task(make_run(task__init_from=str(tmp_path / "start"), task__model__image__width=64,
                                  task__model__text__width=64))


def test_a_run_does_not_start_from_another_vocabulary(make_run, tmp_path, styled_table):
    build.build_task(make_run()).export(str(tmp_path / "start"))
    folder = tmp_path / "words"
    folder.mkdir()
    lines = (styled_table.parent / "vocabulary" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="was trained with the vocabulary"):
        build.build_task(make_run(task__vocabulary=str(folder), task__init_from=str(tmp_path / "start")))


@pytest.mark.parametrize("changes, message", [
    ({"task__other_caption": "dropout"}, "under another dropout mask, and the text tower has none"),
    ({"task__text_length": 40}, r"text_length must be from 2 to model.text.positions \(16\), not 40"),
    ({"task__chunk": -1}, "chunk"), ({"task__word_noise": 0.7}, "word_noise"),
    ({"task__augment__crop": 0.0}, "crop"), ({"task__augment__grey": 1.5}, "grey"),
    ({"task__model__image__frozen": True, "task__model__text__frozen": True}, "leave nothing to train"),
    ({"task__loss__image_caption": -1.0}, "must not be negative")])
def test_settings_that_cannot_be_are_refused(make_run, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_run(**changes)


def test_a_tower_smaller_than_the_vocabulary_is_refused(make_run):
    with pytest.raises(ConfigError, match="vocab_size: is 20 .* has .* tokens"):
        build.build_task(make_run(task__model__text__vocab_size=20))


def test_a_batch_of_one_concept_is_refused(make_run):
    run = make_run()
    task = build.build_task(run)
    samples = [sample for sample in first_batch(run, task, 24)[0] if sample.facts["concept"] == "sun"]
    assert len(samples) == 3
    batch = task.collate([task.view(sample, 0) for sample in samples], [0, 1, 2])
    with pytest.raises(DataError, match="3 rows of the same text or concept has no negatives"):
        loss_of(task, batch)


def test_codes_are_refused(make_run):
    task = build.build_task(make_run())
    with pytest.raises(DataError, match="a.png: holds codes"):
        task.view(Sample("a.png", None, ["太阳"], codes=np.zeros([4], "int64")), 0)


def test_twins_need_a_key_that_rows_have(make_run):
    run = make_run()
    sources = [{"kind": "table", "path": run.data.sources[0].path, "twins": "colour"}]
    other = config.from_dict(build.RunConfig, config.to_dict(run) | {"data": {"sources": sources}})
    with pytest.raises(DataError, match="no row has the key colour, which data.sources.twins names"):
        build_stream(other.data)


def test_the_released_folder_says_all_that_it_needs(make_run, tmp_path):
    build.build_task(make_run()).export(str(tmp_path / "out"))
    said = read_yaml(tmp_path / "out" / "model.yaml")
    assert said["kind"] == "dual_encoder" and said["text_length"] == 16 and "calibration" not in said
    assert said["preprocess"]["fit"] == "short_side" and said["model"]["image"]["image_size"] == 32
