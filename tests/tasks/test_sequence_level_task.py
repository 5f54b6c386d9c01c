"""Sequence-level training: turns, what earns a reward, judges and their gradients, what is refused."""
import numpy as np
import paddle
import pytest

from vilg import config as configs
from vilg import release
from vilg.data.sample import Sample
from vilg.errors import ConfigError, DataError
from vilg.generation.sampling import MaskPredictConfig, SamplingConfig
from vilg.losses.sequence import text_nll
from vilg.models.dual_encoder.image import ImageTowerConfig
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.models.dual_encoder.pixels import differentiable
from vilg.models.dual_encoder.preprocess import PreprocessConfig, preprocess
from vilg.models.dual_encoder.text import TextTowerConfig
from vilg.models.two_level.model import TwoLevelConfig
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
from vilg.run.build import RunConfig
from vilg.tasks.judges import code_vectors, read_judge
from vilg.tasks.sequence_level import SequenceLevelTask, SequenceLevelTaskConfig
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer


def samples(count):
    rng = np.random.default_rng(0)
    given = [["一个红色的圆形", "红色的圆形"], ["图里有蓝色的方块"], ["左边"], ["蓝色"]]
    images = rng.integers(0, 256, (count, 20, 24, 3)).astype("uint8")
    return [Sample(f"s{i}", image, list(given[i % 4])) for i, image in enumerate(images)]


@pytest.fixture
def make(released_model):
    def build(model=None, steps=3, **changes):
        words = WordPieceTokenizer.from_folder(released_model)
        shape = dict(layers=2, width=16, heads=2, vocab_size=words.vocab_size, codebook_size=32, text_length=16,
                     rows=4, columns=4)
        given = dict(turns=["captions"], caption_dropout=0.0) | changes
        config = SequenceLevelTaskConfig(model=TwoLevelConfig(**shape | (model or {})), vocabulary=str(released_model),
                                         image_tokenizer=str(released_model / "image_tokenizer"), **given)
        paddle.seed(0)
        return SequenceLevelTask(config, MaskPredictConfig(steps=steps, temperature=0.5))
    return build


@pytest.fixture
def encoder(released_model, tmp_path):
    words = WordPieceTokenizer.from_folder(released_model)
    paddle.seed(4)
    model = DualEncoder(DualEncoderConfig(
        image=ImageTowerConfig(layers=1, width=8, heads=2, image_size=24, patch_size=8), projection=8,
        text=TextTowerConfig(layers=1, width=8, heads=2, vocab_size=words.vocab_size, positions=20)))
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    release.write(tmp_path / "judge", "dual_encoder", ReleasedDualEncoder(model, words, PreprocessConfig(), 16))
    return str(tmp_path / "judge")


@pytest.fixture
def reverse(make, tmp_path):
    task = make()
    for parameter in task.model.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    task.export(tmp_path / "reverse")
    return str(tmp_path / "reverse")


def ready(task, count=4):
    taken = samples(count)
    batch = task.collate([task.view(sample, seed) for seed, sample in enumerate(taken)], list(range(count)))
    task.read_corpus([["一个红色的圆形", "红色的圆形"], ["图里有蓝色的方块"], ["左边"]])
    return task.prepare(batch.map(paddle.to_tensor))


def test_turns_come_one_a_step(make, encoder):
    task = make(turns=["captions", "images", "masked"], judge=encoder)
    batch = ready(task)
    figures = [set(task.step(batch, step).figures) for step in range(6)]
    assert figures == [{"reward", "baseline"}, {"judge"}, {"loss_t2i"}] * 2


def test_a_better_caption_becomes_likelier(make):
    """The probability of sampled captions rises where they earned more than the greedy one, and falls elsewhere."""
    task = make()
    batch = ready(task)
    given = np.array([1.0, 0.0, 2.0, 0.5])
    rewards = iter([given, np.array([0.0, 1.0, 0.0, 0.5])])  # sampled, greedy
    task.step.reward = lambda captions, references: next(rewards)
    sampled = task.step.write(batch, SamplingConfig())
    text, length = task.step._text(sampled)

    def nll():
        prefix = paddle.zeros_like(length)
        hidden = task.model.image_to_text_hidden(batch.codes, text, length, prefix)
        return text_nll(task.model, hidden, text, length, prefix).numpy().sum(axis=1)

    before = nll()
    task.step(batch, 0).loss.backward()
    for parameter in task.model.parameters():
        if parameter.grad is not None:
            parameter.set_value(parameter - 1e-3 * parameter.grad)
    gain = (before - nll()) @ (given - np.array([0.0, 1.0, 0.0, 0.5]))
    assert gain > 0


def test_captions_are_compared_with_their_own_images(make):
    task = make()
    batch = ready(task)
    seen = []
    task.step.reward = lambda captions, references: seen.append((captions, references)) or np.zeros(len(captions))
    task.step(batch, 0)
    end = task.words.sep_id
    wanted = [task._encoded(sample.captions) for sample in samples(4)]
    assert seen[0][1] == wanted and all(row[-1] == end for given in wanted for row in given)
    assert seen[0][0] != seen[1][0], "the baseline is what was sampled"


def test_the_reward_needs_a_corpus(make):
    task = make()
    batch = ready(task)
    task.step.reward = None
    with pytest.raises(DataError, match="read_corpus"):
        task.step(batch, 0)


@pytest.mark.parametrize("kind", ["encoder", "reverse"])
def test_a_judges_gradient_is_its_slope(make, request, kind):
    task = make()
    judge = read_judge(request.getfixturevalue(kind), task.image_tokenizer)
    text = paddle.to_tensor(judge.read(["一个红色的圆形", "左边"]))
    rng = np.random.default_rng(0)
    start = paddle.nn.functional.softmax(paddle.to_tensor(rng.normal(size=[2, 16, 32]).astype("float32")))
    shares = start.detach()
    shares.stop_gradient = False
    scores = judge.score(shares, text)
    scores.sum().backward()
    way = paddle.to_tensor(rng.normal(size=[2, 16, 32]).astype("float32")) * 0.1
    eps = 3e-2
    slope = float((judge.score(start + eps * way, text) - judge.score(start - eps * way, text)).sum()) / (2 * eps)
    assert abs(float((shares.grad * way).sum()) - slope) < 0.02 * abs(slope) + 1e-4
    assert abs(slope) > 1e-4 and all(parameter.grad is None for parameter in judge.model.parameters())
    others = judge.score(start, paddle.flip(text, [0])).numpy()
    assert np.abs(others - judge.score(start, text).numpy()).min() > 1e-6, "the text makes no difference"


def test_a_judge_sees_the_image_of_whole_codes(make, encoder):
    """One-hot shares score as the decoded image does, through the released preprocessing."""
    task = make()
    judge = read_judge(encoder, task.image_tokenizer)
    codes = paddle.to_tensor(np.random.default_rng(2).integers(0, 32, [2, 16]))
    np.testing.assert_allclose(code_vectors(task.image_tokenizer).numpy()[codes.numpy()[0, 3]],
                               task.image_tokenizer.embed(codes).flatten(2).numpy()[0, :, 3], atol=1e-6)
    text = paddle.to_tensor(judge.read(["红色", "方块"]))
    found = judge.score(paddle.nn.functional.one_hot(codes, 32), text).numpy()
    pixels = differentiable(task.image_tokenizer.decode(codes), 24, PreprocessConfig())
    wanted = (judge.model.encode_image(pixels) * judge.model.encode_text(text)).sum(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_differentiable_pixels_are_the_preprocessed_ones():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype("uint8")
    ours = differentiable(paddle.to_tensor(image.transpose(2, 0, 1)[None] / 127.5 - 1, "float32"), 24,
                          PreprocessConfig())
    np.testing.assert_allclose(ours.numpy()[0], preprocess(image, 24, PreprocessConfig()), atol=1e-5)


def test_a_frozen_copy_prefers_shares_of_one_are_codes(make, reverse):
    task = make()
    judge = read_judge(reverse, task.image_tokenizer)
    codes = paddle.to_tensor(np.random.default_rng(3).integers(0, 32, [2, 16]))
    text = paddle.to_tensor(judge.read(["红色的圆形", "左边"]))
    np.testing.assert_allclose(judge.score(paddle.nn.functional.one_hot(codes, 32), text).numpy(),
                               judge.score(codes, text).numpy(), rtol=1e-5)


def test_images_train_towards_the_judge(make, encoder):
    task = make(turns=["images"], judge=encoder, steps=2)
    batch = ready(task)
    found = []
    for _ in range(12):
        paddle.seed(1)
        out = task.step(batch, 0)
        found.append(float(out.figures["judge"]))
        out.loss.backward()
        for parameter in task.model.parameters():
            if parameter.grad is not None:
                norm = float(parameter.grad.norm()) + 1e-9
                parameter.set_value(parameter - 0.02 * parameter.grad / norm)
        task.model.clear_gradients()
    assert np.mean(found[-3:]) > found[0] and all(one.grad is None for one in task.image_tokenizer.parameters())


def test_empty_captions_are_not_judged(make, encoder):
    task = make(turns=["images"], judge=encoder, caption_dropout=1.0)
    out = task.step(ready(task), 0)
    assert float(out.loss) == 0 and float(out.figures["judge"]) == 0


@pytest.mark.parametrize("changes, message", [
    (dict(turns=[]), "turns is empty"),
    (dict(turns=["images"]), "judge names who scores"),
    (dict(judge="x"), "judge names who scores"),
    (dict(relaxation=0.0), "relaxation and judge_weight are above 0"),
    (dict(corpus=1), "at least 2, not 1"),
    (dict(image_to_text_every=2), "here turns does")])
def test_settings_that_cannot_be(make, changes, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make(**changes)


def test_a_judge_of_another_kind_or_tokenizer_is_refused(make, released_model, reverse):
    task = make()
    with pytest.raises(ConfigError, match="of kind bidirectional; a judge is a dual_encoder or a two_level"):
        read_judge(str(released_model), task.image_tokenizer)
    for parameter in task.image_tokenizer.parameters():
        parameter.set_value(parameter + 0.1)
    with pytest.raises(ConfigError, match="name a judge of the same tokenizer"):
        read_judge(reverse, task.image_tokenizer)


def test_an_image_without_captions_is_named(make):
    task = make()
    taken = samples(2)
    taken[1].captions = []
    with pytest.raises(DataError, match="s1 has no captions"):
        task.collate([task.view(sample, 0) for sample in taken], [0, 1])


def test_a_run_that_leaves_ranks_a_part_of_the_model_is_refused(make):
    values = {"name": "t", "task": configs.to_dict(make().config), "distributed": {"level": "p_g_os"},
              "data": {"sources": [{"kind": "scenes", "count": 4, "size": 16}]}}
    with pytest.raises(ConfigError, match="p_g_os leaves each rank a part.*use level: os_g or dp"):
        configs.from_dict(RunConfig, values, "t")
    assert isinstance(configs.from_dict(RunConfig, values | {"distributed": {}}, "t").drawing, MaskPredictConfig)
