"""One optimizer step: phases together or not at all, clipping, AdamW itself, randomness, the loss scale, the EMA."""
import json
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn
from toy_run import averages, fail, interrupt, lines, trainer, weights
from toy_task import ToyTask, two_phases

from vilg.engine.checkpoints.tensor_shards import whole
from vilg.engine.ema import WeightEMA
from vilg.engine.loss_scale import LossScale
from vilg.engine.optim import OptimConfig, build_optimizer
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.engine.safety.guards import GuardConfig, TrainingStopped
from vilg.engine.step import clip_factor
from vilg.engine.task import Phase, StepOutput


def everything(run):
    """All that a step may move: weights, optimizer states, the EMA."""
    shards = [shard for each in run.phase_optimizers for shard in each.optimizer_shards()]
    return weights(run) | averages(run) | {shard.name: shard.read() for shard in shards}


def test_a_skipped_step_moves_no_phase(tmp_path, caplog):
    run, before = trainer(tmp_path, task=two_phases([4])), {}
    interrupt(run, 4, lambda: before.update(everything(run)))
    interrupt(run, 5, fail)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert "the loss or gradient of phase second is not finite" in caplog.text and run.guard.skipped == 1
    after = everything(run)
    assert after.keys() == before.keys() and any(name.endswith("/moment1") for name in after)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=f"{name} moved in a skipped step")
    gradients = [value.grad for phase in run.task.phases for value in phase.parameters.values()]
    assert all(gradient is None or not gradient.numpy().any() for gradient in gradients), "left for the next step"


def test_later_phases_see_what_earlier_ones_have_updated(tmp_path):
    task = ToyTask(dropout=0.0)
    seen = []

    class Watcher(nn.Layer):
        def __init__(self):
            super().__init__()
            self.scale = self.create_parameter([1])

        def forward(self, batch, step):
            seen.append(task.model.leave.weight.numpy().copy())
            return StepOutput(self.scale.square().sum())

    watcher = Watcher()
    task.phases.append(Phase("watcher", watcher, dict(watcher.named_parameters())))
    first, start = task.state, task.model.leave.weight.numpy().copy()
    task.state = lambda: first() | {f"watcher.{name}": value for name, value in watcher.state_dict().items()}
    trainer(tmp_path, steps=2, task=task).fit()
    assert not np.array_equal(seen[0], start) and not np.array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[1], task.model.leave.weight.numpy())


@pytest.mark.parametrize("norm, clip, factor", [(4.0, 1.0, 0.25), (0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (9.0, 0.0, 1.0)])
def test_clipping_never_makes_a_gradient_larger(norm, clip, factor):
    assert clip_factor(norm, clip) == factor


def test_a_bound_above_every_norm_changes_nothing(tmp_path):
    moved = []
    for clip in (0.0, 1e6):
        # An epsilon far above the gradients makes AdamW's step follow their size.
        run = trainer(tmp_path / str(clip), optim=OptimConfig(lr=0.1, clip_norm=clip, epsilon=1.0))
        run.fit()
        moved.append(weights(run))
    for name, value in moved[0].items():
        np.testing.assert_array_equal(value, moved[1][name])


def test_the_optimizer_is_adamw_with_both_betas():
    config = OptimConfig(lr=0.1, beta1=0.8, beta2=0.97, epsilon=1e-6, weight_decay=0.3)
    weight = paddle.create_parameter([2, 3], "float32")
    value, first, second = weight.numpy().astype("float64"), 0.0, 0.0
    optimizer = build_optimizer(config, {"weight": weight}, multi_precision=False)
    for step, gradient in enumerate(np.random.default_rng(0).normal(size=(4, 2, 3)), 1):
        weight.grad = paddle.to_tensor(gradient.astype("float32"))
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.97 * second + 0.03 * gradient ** 2
        mean, deviation = first / (1 - 0.8 ** step), np.sqrt(second / (1 - 0.97 ** step))
        value = value * (1 - 0.1 * 0.3) - 0.1 * mean / (deviation + 1e-6)
    np.testing.assert_allclose(weight.numpy(), value, rtol=2e-5)


class Masks(ToyTask):
    """Logs a number drawn in the forward pass, as a dropout mask is."""

    def __init__(self):
        super().__init__()
        forward = self.model.forward

        def draw(batch, step):
            drawn = paddle.rand([1])
            return StepOutput(forward(batch, step).loss, {"drawn": drawn})

        self.model.forward = draw


def test_every_step_and_every_rank_draws_its_own_masks(tmp_path):
    drawn = {}
    for rank in range(3):
        run = trainer(tmp_path / str(rank), steps=4, task=Masks())
        run.parallel.topology = SimpleNamespace(data_rank=rank)  # the seed is all that this takes from it
        for step in range(4):
            run.step = step
            run._seed_step()
            drawn[rank, step] = paddle.rand([1]).item()
    assert len(set(drawn.values())) == 12
    trainer(tmp_path / "run", steps=4, task=Masks()).fit()
    assert [line["drawn"] for line in lines(tmp_path / "run")] == pytest.approx([drawn[0, step] for step in range(4)])


def test_the_loss_scale_moves_while_training(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "CALM_STEPS", 3)
    float16 = {"amp": "O1", "amp_dtype": "float16", "loss_scale": 1024.0}
    trainer(tmp_path, steps=8, poison=range(4, 5), parallel=float16).fit()
    logged = [line["scale_of_loss"] for line in lines(tmp_path)]
    assert logged == [1024, 1024, 2048, 2048, 1024, 1024, 1024, 2048]


def test_the_ema_warms_up_and_weighs_new_weights():
    weight = paddle.create_parameter([2], "float32")
    values = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    weight.set_value(values[0])
    ema, expected = WeightEMA([whole("weight", weight)], 0.6), values[0].astype("float64")
    for step, value in enumerate(values):
        weight.set_value(value)
        ema.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(ema.tensor_shards()[0].read(), expected, rtol=1e-5, atol=1e-6)
    assert min(0.6, (1 + step) / (10 + step)) == 0.6


def test_skips_are_counted_in_a_row_only(tmp_path):
    run = trainer(tmp_path, poison=range(3, 10, 2), guards=GuardConfig(max_skips=2))
    assert run.fit().skipped == 4


def test_the_count_of_skips_in_a_row_survives_a_restart(tmp_path):
    guards = GuardConfig(max_skips=3)
    run = interrupt(trainer(tmp_path, poison=range(4, 8), guards=guards, checkpoint_every=1), 6, fail)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    run.saver.settle()
    again = trainer(tmp_path, poison=range(4, 8), guards=guards, checkpoint_every=1, resume="auto")
    assert again.step == 6 and again.guard.skipped == again.guard.skipped_in_a_row == 2
    with pytest.raises(TrainingStopped, match=r"step 7: .* 3 times in a row"):
        again.fit()


def test_a_checkpoints_score_is_the_mean_loss_since_the_one_before(tmp_path):
    trainer(tmp_path, steps=9, checkpoint_every=3, keep_last=9).fit()
    logged = [line["loss"] for line in lines(tmp_path)]
    for step in (3, 6, 9):
        header = json.loads((tmp_path / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
        assert header["score"] == pytest.approx(np.mean(logged[step - 3:step]), rel=1e-6)


def test_a_run_joins_its_ranks_once(tmp_path):
    parallel = Parallel(DistributedConfig())
    made = trainer(tmp_path)
    assert type(made)(made.task, made.loader, made.train, made.optim, parallel, tmp_path / "b").parallel is parallel
