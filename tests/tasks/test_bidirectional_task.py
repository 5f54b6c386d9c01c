from dataclasses import replace

import numpy as np
import paddle
import pytest

from vilg import release
from vilg.data.sample import Sample
from vilg.errors import CheckpointError, ConfigError, DataError
from vilg.generation.sampling import SamplingConfig
from vilg.models.bidirectional import BidirectionalConfig
from vilg.tasks.bidirectional import BidirectionalTask, BidirectionalTaskConfig


def shape(vocab_size, **changes):
    small = dict(layers=2, width=16, heads=2, codebook_size=32, text_length=16, rows=4, columns=4)
    return BidirectionalConfig(vocab_size=vocab_size, **{**small, **changes})


@pytest.fixture
def make(released_model):
    def build(model=None, **changes):
        vocab_size = len((released_model / "vocab.txt").read_text(encoding="utf-8").splitlines())
        config = BidirectionalTaskConfig(model=shape(vocab_size, **(model or {})), vocabulary=str(released_model),
                                         image_tokenizer=str(released_model / "image_tokenizer"), **changes)
        paddle.seed(0)
        return BidirectionalTask(config, SamplingConfig())
    return build


def samples(count=6):
    rng = np.random.default_rng(0)
    return [Sample(f"s{i}", rng.integers(0, 256, (20, 24, 3)).astype("uint8"), ["一个红色的圆形", "红色的圆形"],
                   [("有几个？", "一个")]) for i in range(count)]


def gather(task, taken, seeds=None):
    """What the loader makes of samples: their views, collated."""
    seeds = list(range(len(taken))) if seeds is None else seeds
    return task.collate([task.view(sample, seed) for sample, seed in zip(taken, seeds)], seeds)


def tensors(batch):
    return batch.map(paddle.to_tensor)


def test_collate_is_a_pure_function_of_samples_and_seeds(make):
    task = make()
    first, second = gather(task, samples()).parts(), gather(task, samples()).parts()
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    assert "image" in first and "codes" not in first and "code_noise" not in first
    # A sample's share of the batch does not depend on its neighbours.
    alone = gather(task, samples()[3:4], [3]).parts()
    assert all(np.array_equal(alone[name][0], first[name][3]) for name in first)


def test_questions_train_image_to_text_with_the_question_as_source(make):
    batch = gather(make(question_share=1.0), samples())
    assert (batch.i2t_prefix == 6).all() and (batch.i2t_length > 6).all()
    batch = gather(make(question_share=0.0), samples())
    assert (batch.i2t_prefix == 0).all()


def test_a_question_of_which_the_tokenizer_keeps_nothing_leaves_its_row_to_the_caption(make):
    asked = samples()
    asked[2].questions = [("\u0301", "红色")]
    batch, captions = (gather(make(question_share=share), asked) for share in (1.0, 0.0))
    assert (batch.i2t_prefix > 0).tolist() == [row != 2 for row in range(6)]
    np.testing.assert_array_equal(batch.i2t_text[2], captions.i2t_text[2])


def test_only_the_first_caption_is_written_when_that_is_asked(make):
    task = make(question_share=0.0, written_captions="first", caption_dropout=0.0)
    batch = gather(task, samples(12))
    assert {task.words.decode(row) for row in batch.i2t_text} == {"一个红色的圆形"}
    assert {task.words.decode(row) for row in batch.t2i_text} == {"一个红色的圆形", "红色的圆形"}


def test_dropped_captions_are_empty_and_only_for_drawing(make):
    task = make(caption_dropout=1.0)
    batch = gather(task, samples())
    assert (batch.t2i_length == 2).all() and (batch.i2t_length > 2).all()


def test_noise_changes_what_is_read_and_not_what_is_predicted(make):
    clean, noisy = make(), make(code_noise=0.4, word_noise=0.4)
    plain, batch = (gather(task, samples(24)) for task in (clean, noisy))
    assert all(np.array_equal(value, batch.parts()[name]) for name, value in plain.parts().items())
    wrong = batch.i2t_read != batch.i2t_text
    assert 0.15 < (batch.code_noise >= 0).mean() < 0.65 and wrong.any()
    slots = np.arange(wrong.shape[1])
    assert not wrong[:, 0].any() and not wrong[slots < batch.i2t_prefix[:, None]].any()
    assert not wrong[slots >= batch.i2t_length[:, None] - 1].any()
    alone = gather(noisy, samples()[3:4], [3])
    assert np.array_equal(alone.code_noise[0], batch.code_noise[3])
    # Only codes that were replaced change what drawing reads; the picture that is described stays whole.
    batch = noisy.prepare(tensors(batch))
    drawn, described = noisy.step.hidden(replace(batch, i2t_read=None))
    seen = paddle.where(batch.code_noise >= 0, batch.code_noise, batch.codes)
    model = noisy.model
    expected = model.text_to_image_hidden(batch.t2i_text, batch.t2i_length, seen)
    assert np.allclose(drawn.numpy(), expected.numpy(), atol=1e-5)
    expected = model.image_to_text_hidden(batch.codes, batch.i2t_text, batch.i2t_length, batch.i2t_prefix)
    assert np.allclose(described.numpy(), expected.numpy(), atol=1e-5)


def test_codes_and_pictures_give_the_same_loss(make):
    task = make()
    batch = task.prepare(tensors(gather(task, samples())))
    coded = [Sample(s.key, None, s.captions, s.questions, codes) for s, codes in zip(samples(), batch.codes.numpy())]
    again = task.prepare(tensors(gather(task, coded)))
    assert float(task.step(batch, 0).loss) == float(task.step(again, 0).loss)
    with pytest.raises(DataError, match="encode_images"):
        gather(task, [coded[0], samples()[1]])


@pytest.mark.parametrize("directions, figures", [("both", {"loss_t2i", "loss_i2t"}), ("text_to_image", {"loss_t2i"}),
                                                 ("image_to_text", {"loss_i2t"})])
def test_each_direction_alone_equals_its_part_of_both(make, directions, figures):
    task, both = make(directions=directions), make()
    batch = task.prepare(tensors(gather(task, samples())))
    output, whole = task.step(batch, 0), both.step(batch, 0)
    assert output.figures.keys() == figures
    for name in figures:
        assert float(output.figures[name]) == pytest.approx(float(whole.figures[name]), rel=1e-4)
    assert float(output.loss) == pytest.approx(sum(float(whole.figures[name]) for name in figures), rel=1e-4)


def test_a_few_steps_learn_the_batch(make):
    task = make(caption_dropout=0.0, question_share=0.0)
    batch = task.prepare(tensors(gather(task, samples(4))))
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=task.model.parameters())
    first = float(task.step(batch, 0).loss)
    for step in range(25):
        task.step(batch, step).loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    assert float(task.step(batch, 0).loss) < 0.5 * first


def test_export_loads_with_the_averaged_weights(make, tmp_path):
    task = make()
    average = {"norm.bias": np.full([16], 0.25, dtype="float32")}
    task.export(str(tmp_path / "model"), average)
    released = release.read(tmp_path / "model", "bidirectional")
    assert np.allclose(released.model.norm.bias.numpy(), 0.25)
    assert np.allclose(released.model.text_head.weight.numpy(), task.model.text_head.weight.numpy(), atol=1e-4)


def test_fine_tuning_starts_from_a_released_folder(make, released_model, tmp_path):
    task = make(init_from=str(released_model))
    released = release.read(released_model, "bidirectional").model
    assert np.allclose(task.model.text_head.weight.numpy(), released.text_head.weight.numpy())
    with pytest.raises(CheckpointError, match="does not fit"):
        make(model=dict(width=32), init_from=str(released_model))


@pytest.mark.parametrize("change, key", [(dict(codebook_size=64), "task.model.codebook_size"),
                                         (dict(rows=8), "task.model.rows")])
def test_a_model_of_other_tokenizers_is_refused_by_key(make, change, key):
    with pytest.raises(ConfigError, match=key):
        make(model=change)
