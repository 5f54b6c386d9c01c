"""The image-tokenizer task: phases and what each moves, figures, previews, folders, state, refusals."""
import numpy as np
import paddle
import pytest

from vilg import config, release
from vilg.data.sample import Sample
from vilg.errors import ConfigError
from vilg.tasks.image_tokenizer import ImageBatch, ImageTokenizerTask, ImageTokenizerTaskConfig

AUTOENCODER = {"image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1, "decoder_blocks": 1,
               "attention_resolutions": [], "norm_groups": 4, "z_channels": 8, "code_dim": 8,
               "quantizer": {"codebook_size": 16, "revive_every": 1}}
PIXELS = {"kind": "pixels", "l2": 1.0, "perceptual": "none"}
VARIANTS = {
    "vqvae": {"tokenizer": {"kind": "vqvae", **AUTOENCODER}, "loss": PIXELS},
    "vqgan": {"tokenizer": {"kind": "vqgan", **AUTOENCODER}, "loss": PIXELS,
              "adversary": {"layers": 1, "channels": 8, "start_step": 2}},
    "dvae": {"tokenizer": {"kind": "dvae", "image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1,
                           "codebook_size": 16, "decoder_channels": 8}, "loss": {"kind": "logit_laplace"}}}


def build(kind: str) -> ImageTokenizerTask:
    paddle.seed(0)
    return ImageTokenizerTask(config.from_dict(ImageTokenizerTaskConfig, VARIANTS[kind]))


def batch(task: ImageTokenizerTask, count: int = 4) -> ImageBatch:
    rng = np.random.default_rng(0)
    samples = [Sample(str(number), rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), []) for number in range(count)]
    arrays = task.collate([task.view(sample, seed) for seed, sample in enumerate(samples)], list(range(count)))
    assert arrays.image.dtype == np.float32 and arrays.image.shape == (count, 3, 16, 16)
    return task.prepare(arrays.map(paddle.to_tensor))


def train(task: ImageTokenizerTask, steps: int) -> list[dict[str, float]]:
    optimizers = [paddle.optimizer.Adam(2e-3, parameters=list(phase.parameters.values())) for phase in task.phases]
    images, log = batch(task), []
    for step in range(steps):
        figures = {}
        for phase, optimizer in zip(task.phases, optimizers):
            if step < phase.start_step:
                continue
            out = phase.module(images, step)
            assert all(value.stop_gradient for value in out.figures.values())
            out.loss.backward()
            strangers = [name for other in task.phases if other is not phase
                         for name, weight in other.parameters.items() if weight.grad is not None]
            assert strangers == [], f"{phase.name} leaves gradients on weights of another phase"
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)
            figures |= {name: float(value) for name, value in out.figures.items()}
        log.append(figures | task.after_step(step + 1))
    return log


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_task_trains(kind):
    log = train(build(kind), 12)
    assert log[-1]["loss_reconstruction"] < log[0]["loss_reconstruction"]
    assert {"loss_latent", "codebook_usage", "perplexity"} <= log[0].keys()


def test_the_adversary_enters_at_its_step():
    task = build("vqgan")
    assert [phase.name for phase in task.phases] == ["autoencoder", "adversary"]
    log = train(task, 4)
    assert [("loss_generator" in figures, "loss_adversary" in figures) for figures in log] == [
        (False, False), (False, False), (True, True), (True, True)]
    assert log[2]["adaptive_weight"] > 0


def test_the_adversary_phase_shows_the_quantizer_nothing():
    task = build("vqgan")
    task.phases[1].module(batch(task), 5)
    assert task.tokenizer.training and task.after_step(1) == {}


@pytest.mark.parametrize("kind", VARIANTS)
def test_state_names_every_weight_that_a_phase_moves(kind):
    task = build(kind)
    names = {id(tensor): name for name, tensor in task.state().items()}
    for phase in task.phases:
        assert [names[id(tensor)] for tensor in phase.parameters.values()] == list(phase.parameters)


def test_training_goes_on_from_the_state_alone():
    whole, cut = build("vqvae"), build("vqvae")
    train(whole, 3), train(cut, 3)
    fresh = build("vqvae")
    for name, tensor in fresh.state().items():
        tensor.set_value(cut.state()[name])
    first, second = train(whole, 3), train(fresh, 3)
    assert first == second, "moving averages of the codebook are part of the state"


@pytest.mark.parametrize("kind", VARIANTS)
def test_previews_and_the_exported_folder(kind, tmp_path):
    task = build(kind)
    pictures = list(task.preview(batch(task)))
    assert len(pictures) == 4 and pictures[0].picture.shape == (16, 32, 3) and pictures[0].picture.dtype == np.uint8
    assert task.tokenizer.training
    name = next(iter(task.phases[0].parameters))
    average = {name: np.zeros(task.state()[name].shape, "float32")}
    task.export(str(tmp_path / "model"), average)
    again = release.read(tmp_path / "model", "image_tokenizer")
    assert again.config == task.config.tokenizer
    assert float(again.state_dict()[name].abs().max()) == 0
    assert task.tokens(batch(task)) == 4 * task.tokenizer.grid[0] * task.tokenizer.grid[1]


@pytest.mark.parametrize("change, word", [
    ({"loss": {"kind": "pixels"}}, "loss.perceptual: is required"),
    ({"loss": {"kind": "logit_laplace"}}, "loss.kind pixels"),
    ({"adversary": {}}, "makes a vqgan"),
    ({"loss": {**PIXELS, "perceptual": {"weights": "vgg"}}}, "makes a vqgan"),
    ({"loss": {**PIXELS, "l1": 0.0, "l2": 0.0}}, "both zero")])
def test_contradictions_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        config.from_dict(ImageTokenizerTaskConfig, VARIANTS["vqvae"] | change)
