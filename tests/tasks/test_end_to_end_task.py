"""The end-to-end task: what a step computes and moves, resuming and export, the path in the pipeline, refusals."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml

from vilg import config, release
from vilg.app import pipeline
from vilg.data.sample import Sample
from vilg.engine.optim import OptimConfig, build_optimizer
from vilg.errors import CheckpointError, ConfigError, DataError, VilgError
from vilg.generation.sampling import SamplingConfig
from vilg.run import build
from vilg.tasks.bidirectional import BidirectionalTask, BidirectionalTaskConfig
from vilg.tasks.end_to_end import EndToEndTask, EndToEndTaskConfig
from vilg.tokenizers.text.vocab_file import write_vocab

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["一个红色的圆形", "蓝色的方块在左边"]
PIXELS = {"kind": "pixels", "l1": 1.0, "l2": 1.0, "perceptual": "none"}


def settings(folder, **changes):
    vocab_size = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    shape = dict(layers=2, width=16, heads=2, vocab_size=vocab_size, codebook_size=32, text_length=16, rows=4,
                 columns=4)
    return dict(model=shape, vocabulary=str(folder), image_tokenizer=str(folder / "image_tokenizer"),
                loss=PIXELS, reconstructor={"map_layers": 1}) | changes


@pytest.fixture
def make(released_model):
    def build_task(**changes):
        values = settings(released_model, **changes)
        paddle.seed(0)
        return EndToEndTask(config.from_dict(EndToEndTaskConfig, values), SamplingConfig())
    return build_task


def samples(count=6):
    rng = np.random.default_rng(0)
    return [Sample(f"s{i}", rng.integers(0, 256, (20, 24, 3)).astype("uint8"), ["一个红色的圆形", "红色的圆形"],
                   [("有几个？", "一个")]) for i in range(count)]


def gather(task, taken, seeds=None):
    """What the loader makes of samples: their views, collated."""
    seeds = list(range(len(taken))) if seeds is None else seeds
    return task.collate([task.view(sample, seed) for sample, seed in zip(taken, seeds)], seeds)


def batch_of(task, count=6):
    return task.prepare(gather(task, samples(count)).map(paddle.to_tensor))


def gradients(task, loss):
    loss.backward()
    found = {name: None if value.grad is None else value.grad.numpy().copy()
             for name, value in task.phases[0].parameters.items()}
    for value in task.phases[0].parameters.values():
        value.clear_gradient()
    return found


@pytest.mark.parametrize("directions", ["both", "text_to_image"])
@pytest.mark.parametrize("reads", ["predicting", "own"])
def test_a_step_adds_the_picture_to_what_a_bidirectional_step_computes(make, released_model, reads, directions):
    task = make(reconstructor={"map_layers": 1, "reads": reads}, directions=directions)
    values = {name: value for name, value in settings(released_model).items() if name not in ("loss", "reconstructor")}
    values["directions"] = directions
    paddle.seed(0)
    plain = BidirectionalTask(config.from_dict(BidirectionalTaskConfig, values), SamplingConfig())
    for name, value in plain.model.state_dict().items():
        assert np.array_equal(value.numpy(), task.model.state_dict()[name].numpy()), f"{name} starts elsewhere"
    batch = batch_of(task)
    output, generation = task.step(batch, 0), plain.step(batch, 0)
    assert float(output.figures["loss_t2i"]) == pytest.approx(float(generation.figures["loss_t2i"]), rel=1e-5)
    if directions == "both":
        assert float(output.figures["loss_i2t"]) == pytest.approx(float(generation.figures["loss_i2t"]), rel=1e-5)
    picture = float(output.figures["loss_reconstruction"])
    assert float(output.loss) == pytest.approx(float(generation.loss) + picture, rel=1e-5)
    raw = task.end_to_end(batch.t2i_text, batch.t2i_length, batch.codes)
    error = raw - batch.image
    assert picture == pytest.approx(float(error.abs().mean() + (error * error).mean()), rel=1e-4)


def test_the_weight_scales_the_picture_and_warms_up(make):
    task, heavy = make(), make(reconstruction_weight=4.0, reconstruction_warmup_steps=4)
    batch = batch_of(task)
    plain, picture = task.step(batch, 0), float(task.step(batch, 0).figures["loss_reconstruction"])
    generation = float(plain.loss) - picture
    for step, weight in ((0, 1.0), (1, 2.0), (3, 4.0), (9, 4.0)):
        assert float(heavy.step(batch, step).loss) == pytest.approx(generation + weight * picture, rel=1e-4)


def test_the_gradient_can_be_kept_from_the_generator(make):
    batch = batch_of(make())
    both, apart = make(), make(reaches_generator=False)
    reached = gradients(both, both.step(batch, 0).loss)
    kept = gradients(apart, apart.step(batch, 0).loss)
    for name in reached:
        same = np.allclose(reached[name], kept[name], atol=1e-7)
        assert same == (name.startswith("reconstructor.") or name.split(".")[0] in ("text_head", "image_head")), name


@pytest.mark.parametrize("anchor", ["none", "token"])
def test_a_frozen_network_is_no_parameter_and_the_map_still_learns(make, anchor):
    task = make(train_network=False, reconstructor={"anchor": anchor})
    last = task.reconstructor.map.out.weight
    last.set_value(paddle.randn(last.shape))  # with an anchor it starts at zero, and the layers before it feel nothing
    names = [name for name in task.phases[0].parameters if name.startswith("reconstructor.")]
    assert names and all(name.startswith("reconstructor.map.") for name in names)
    found = gradients(task, task.step(batch_of(task), 0).loss)
    assert all(np.abs(found[name]).max() > 0 for name in names)
    assert [name for name in task.state() if name.startswith("reconstructor.network.")]


def test_the_network_learns_at_its_own_rate_and_the_map_at_the_full_one(make):
    task = make(network_rate=0.25)
    batch = batch_of(task)
    before = {name: value.numpy().copy() for name, value in task.phases[0].parameters.items()}
    optimizer = build_optimizer(OptimConfig(lr=1e-2, weight_decay=0.0), task.phases[0].parameters, False)
    task.step(batch, 0).loss.backward()
    optimizer.step()
    moved = {name: np.abs(value.numpy() - before[name]).max() for name, value in task.phases[0].parameters.items()}
    assert moved["reconstructor.network.decoder.conv_out.weight"] == pytest.approx(2.5e-3, rel=1e-2)
    assert moved["reconstructor.map.out.weight"] == pytest.approx(1e-2, rel=1e-2)


def test_all_three_losses_fall_on_one_batch(make):
    task = make(caption_dropout=0.0, question_share=0.0)
    batch = batch_of(task, 4)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=list(task.phases[0].parameters.values()))
    history = []
    for step in range(30):
        output = task.step(batch, step)
        output.loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        history.append({name: float(value) for name, value in output.figures.items()})
    assert set(history[0]) == {"loss_t2i", "loss_i2t", "loss_reconstruction"}
    assert all(history[-1][name] < 0.8 * history[0][name] for name in history[0]), history[-1]


def test_an_adversary_begins_at_its_step_and_moves_only_itself(make):
    task = make(adversary={"layers": 1, "channels": 8, "start_step": 2})
    batch = batch_of(task)
    assert [phase.name for phase in task.phases] == ["model", "adversary"] and task.phases[1].start_step == 2
    assert "loss_generator" not in task.step(batch, 1).figures and "loss_generator" in task.step(batch, 2).figures
    task.step(batch, 2).loss.backward()
    assert all(value.grad is None for value in task.phases[1].parameters.values())
    task.phases[0].module.clear_gradients()
    task.phases[1].module(batch, 2).loss.backward()
    assert all(value.grad is not None or value.stop_gradient for value in task.phases[1].parameters.values())
    assert all(value.grad is None or not float(value.grad.abs().max()) for value in task.phases[0].parameters.values())
    assert set(task.phases[1].parameters) <= set(task.state())


def test_previews_set_the_picture_beside_both_reconstructions(make):
    task = make(preview_captions=2)
    shown = {picture.name: picture.picture for picture in task.preview(batch_of(task))}
    assert shown["reconstructed_1"].shape == (16, 48, 3) and "drawn_0" in shown and "described_0" in shown


def test_previews_are_made_without_dropout_and_training_goes_on(make, released_model):
    shape = settings(released_model)["model"] | {"dropout": 0.5}
    task = make(model=shape, preview_captions=2)
    for value in task.phases[0].parameters.values():
        value.set_value(value + 0.2 * paddle.randn(value.shape))
    batch = batch_of(task)
    first, second = ([shown.picture for shown in task.preview(batch)] for _ in range(2))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)
    task.end_to_end.eval()
    for one, other in zip(first, [shown.picture for shown in task.preview(batch)]):
        np.testing.assert_array_equal(one, other)
    assert task.model.training and task.end_to_end.training


@pytest.fixture(scope="module", params=["none", "token"])
def exported(request, released_model, tmp_path_factory):
    """A folder with a reconstructor, exported by a task whose weights are far from the initial near-uniform ones."""
    paddle.seed(0)
    values = settings(released_model, reconstructor={"map_layers": 1, "anchor": request.param})
    task = EndToEndTask(config.from_dict(EndToEndTaskConfig, values), SamplingConfig(guidance=1.0))
    for value in task.phases[0].parameters.values():
        value.set_value(value + 0.05 * paddle.randn(value.shape))
    folder = tmp_path_factory.mktemp("end_to_end") / "model"
    task.export(str(folder), {"norm.bias": np.full([16], 0.25, "float32"),
                              "reconstructor.map.norm.bias": np.full([32], 0.125, "float32")})
    return folder


@pytest.fixture(scope="module")
def model(exported):
    return pipeline.load(exported)


def arrays(rows):
    return [[np.asarray(picture).astype(int) for picture in row] for row in rows]


def test_an_exported_folder_carries_the_averaged_reconstructor(exported):
    released = release.read(exported, "bidirectional")
    assert np.allclose(released.reconstructor.map.norm.bias.numpy(), 0.125)
    assert np.allclose(released.model.norm.bias.numpy(), 0.25)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("known_rows", [None, 2])
def test_a_drawn_picture_is_that_of_its_tokens_fed_back(model, guidance, known_rows, monkeypatch):
    kept = []
    generate = pipeline.generate_images

    def spy(*given, **named):
        kept.append(generate(*given, **named))
        return kept[-1]

    monkeypatch.setattr(pipeline, "generate_images", spy)
    known = {} if known_rows is None else {
        "known_image": np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype("uint8"), "known_rows": known_rows}
    drawn = arrays(model.text_to_image(PROMPTS, num_images=2, seed=3, guidance=guidance, path="end_to_end", **known))
    batch = model.text_tokenizer.encode_prompts(PROMPTS, 16, strict=True)
    ids, length = (paddle.to_tensor(np.repeat(part, 2, axis=0)) for part in (batch.ids, batch.length))
    with paddle.no_grad():
        hidden = model.model.text_to_image_hidden(ids, length, kept[0].codes)
    np.testing.assert_allclose(kept[0].hidden.numpy(), hidden.numpy(), atol=2e-4)
    again = model.decode_hidden(hidden, kept[0].codes)
    for row, pictures in enumerate(drawn):
        for column, picture in enumerate(pictures):
            assert np.abs(picture - again[2 * row + column].astype(int)).max() <= 1  # rounding to levels
    two_stage = arrays(model.text_to_image(PROMPTS, num_images=2, seed=3, guidance=guidance, **known))
    assert np.array_equal(kept[0].codes.numpy(), kept[1].codes.numpy())
    assert not np.array_equal(two_stage[0][0], drawn[0][0])


def test_an_end_to_end_picture_does_not_depend_on_what_is_drawn_beside_it(model):
    together = arrays(model.text_to_image(PROMPTS, num_images=3, seed=7, path="end_to_end"))
    again = arrays(model.text_to_image(PROMPTS, num_images=3, seed=7, path="end_to_end"))
    assert all(np.array_equal(a, b) for first, second in zip(together, again) for a, b in zip(first, second))
    for row, prompt in enumerate(PROMPTS):
        alone = arrays(model.text_to_image(prompt, seed=7, path="end_to_end"))
        assert np.abs(alone[0][0] - together[row][0]).max() <= 1  # products of other sizes differ in the last bits
    assert not np.array_equal(together[0][0], together[0][1])


def test_best_of_keeps_the_same_samples_on_either_path(model):
    ranked = [[picture.info["sample"] for picture in row] for path in pipeline.PATHS
              for row in model.text_to_image(PROMPTS[0], num_images=2, best_of=4, path=path)]
    assert ranked[0] == ranked[1]


def test_paths_that_cannot_be_drawn_are_refused(model, released_model):
    with pytest.raises(VilgError, match="two_stage, end_to_end"):
        model.text_to_image(PROMPTS[0], path="both")
    with pytest.raises(VilgError, match="no reconstructor.*two_stage"):
        pipeline.load(released_model).text_to_image(PROMPTS[0], path="end_to_end")


def test_the_tool_draws_by_the_path_it_is_told(exported, tmp_path):
    command = [sys.executable, "tools/infer.py", "text2image", PROMPTS[0], "--model", str(exported), "--path",
               "end_to_end", "--output", str(tmp_path), "--json", str(tmp_path / "lines.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "lines.jsonl").read_text(encoding="utf-8"))["path"] == "end_to_end"


@pytest.mark.parametrize("key, value, says", [
    ("width", 32, "transformer width 32, but 16"), ("grid", [8, 8], r"grid \[8, 8\], but \[4, 4\]"),
    ("code_dim", 4, "code width 4, but 8"), ("image_tokenizer", "abc", "image tokenizer abc, but"),
    ("transformer", "abc", "transformer abc, but"), ("kind", "bidirectional", "does not describe a reconstructor"),
])
def test_a_reconstructor_of_something_else_is_refused_with_both_sides(exported, tmp_path, make_older, key, value, says):
    folder = make_older(shutil.copytree(exported, tmp_path / "swapped"))
    path = folder / "reconstructor" / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=says):
        pipeline.load(folder)


def test_fine_tuning_starts_from_a_reconstructor_too(make, exported):
    anchor = pipeline.load(exported).reconstructor.config.anchor
    task = make(init_from=str(exported), reconstructor={"map_layers": 1, "anchor": anchor})
    assert np.allclose(task.reconstructor.map.norm.bias.numpy(), 0.125)
    with pytest.raises(ConfigError, match="task.reconstructor.map_layers: is 3, but .* was trained with 1"):
        make(init_from=str(exported), reconstructor={"map_layers": 3, "anchor": anchor})


@pytest.mark.parametrize("changes, says", [
    ({"directions": "image_to_text"}, "draws no picture"), ({"reconstruction_weight": 0.0}, "reconstruction_weight"),
    ({"reconstruction_warmup_steps": -1}, "reconstruction_warmup_steps"), ({"network_rate": 0.0}, "network_rate"),
    ({"adversary": {}, "train_network": False}, "adversary"),
    ({"loss": {"kind": "logit_laplace"}}, "task.loss.kind=pixels"),
    ({"loss": {"kind": "logit_laplace", "least_scale": -0.1}}, "least_scale"),
    ({"caption_dropout": 2.0}, "caption_dropout"),
])
def test_contradictions_are_refused(make, changes, says):
    with pytest.raises(ConfigError, match=says):
        make(**changes)


def test_codes_without_pictures_are_refused(make):
    coded = [Sample("s", None, ["红色的圆形"], [], np.zeros(16, "int64"))]
    with pytest.raises(DataError, match="compares with images"):
        gather(make(), coded)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumes_exactly_and_accumulates(released_model, tmp_path, accumulate):
    def run(name, steps, resume="none"):
        values = {"name": name, "seed": 1, "output": str(tmp_path / name),
                  "task": {"kind": "end_to_end", **settings(released_model, question_share=0.0)},
                  "data": {"sources": [{"kind": "scenes", "count": 40, "size": 16, "captions": 1, "questions": 0}]},
                  "optim": {"lr": 1e-3, "schedule": "constant"},
                  "train": {"steps": steps, "batch_size": 4, "accumulate_steps": accumulate, "log_every": 1,
                            "preview_every": 0, "checkpoint_every": 2, "ema_decay": 0.9, "resume": resume}}
        build.build_trainer(config.from_dict(build.RunConfig, values)).fit()
        return release.read(tmp_path / name / "model", "bidirectional")

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, "auto")
    for first, second in ((whole.model, parts.model), (whole.reconstructor, parts.reconstructor)):
        for name, value in first.state_dict().items():
            assert np.array_equal(value.numpy(), second.state_dict()[name].numpy()), name


def test_a_reconstructor_goes_along_to_a_wider_vocabulary(make, exported, tmp_path):
    words = pipeline.load(exported).text_tokenizer
    write_vocab(tmp_path, [*words.tokens, "貓", "。"], words.lowercase, words.special)
    anchor = pipeline.load(exported).reconstructor.config.anchor
    shape = settings(exported)["model"] | {"vocab_size": words.vocab_size + 2}
    task = make(init_from=str(exported), vocabulary=str(tmp_path), model=shape,
                reconstructor={"map_layers": 1, "anchor": anchor})
    assert np.allclose(task.reconstructor.map.norm.bias.numpy(), 0.125)
    assert task.model.text_head.bias.shape == [words.vocab_size + 2] and task.step.unk_id == words.unk_id
