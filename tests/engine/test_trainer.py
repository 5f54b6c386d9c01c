"""The training loop: determinism, exact resume, logs, guards, signals, refusals."""
import json
import os
import resource
import signal
import time

import numpy as np
import paddle
import pytest
from toy_run import averages, fail, interrupt, lines, losses, trainer, weights
from toy_task import ToyLoader, ToyTask

from vilg.engine.checkpoints import checkpoint as store
from vilg.engine.optim import OptimConfig
from vilg.engine.safety.guards import Guard, GuardConfig, StopSignal, TrainingStopped
from vilg.engine.task import Phase
from vilg.engine.trainer import Trainer
from vilg.errors import CheckpointError, ConfigError
from vilg.kernels.jit import switch
from vilg.weights.files import save_weights


def test_two_runs_with_one_seed_are_identical(tmp_path):
    for name in ("a", "b"):
        trainer(tmp_path / name, steps=50).fit()
    assert len(losses(tmp_path / "a")) == 50
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_resuming_continues_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole", accumulate_steps=2)
    whole.fit()
    broken = interrupt(trainer(tmp_path / "broken", accumulate_steps=2), 8, fail)
    with pytest.raises(KeyboardInterrupt):
        broken.fit()
    broken.saver.settle()
    resumed = trainer(tmp_path / "broken", accumulate_steps=2, resume="auto")
    assert resumed.step == 5
    resumed.fit()
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(resumed)[name])
    for name, value in averages(whole).items():
        np.testing.assert_array_equal(value, averages(resumed)[name])


def test_accumulation_equals_one_large_batch(tmp_path):
    for name, parts in (("one", 1), ("four", 4)):
        trainer(tmp_path / name, task=ToyTask(dropout=0.0), accumulate_steps=parts).fit()
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "four"), rtol=1e-5)


def test_clipping_bounds_the_step(tmp_path):
    one_step = dict(steps=1, checkpoint_every=0, ema_decay=0.0)
    moved = {}
    for clip in (1e-9, 0.0):
        task = ToyTask()
        before = {name: value.numpy() for name, value in task.state().items() if name != "seen"}
        # An epsilon far above the clipped gradients makes AdamW's step follow their size.
        optim = OptimConfig(lr=0.1, clip_norm=clip, epsilon=1e-3, weight_decay=0.0)
        trainer(tmp_path / str(clip), task=task, optim=optim, **one_step).fit()
        moved[clip] = max(np.abs(value.numpy() - before[name]).max() for name, value in task.state().items()
                          if name != "seen")
    assert moved[1e-9] < 1e-5 < 1e-2 < moved[0.0]


def test_logs_previews_and_export(tmp_path):
    run = trainer(tmp_path, steps=4, preview_every=2)
    summary = run.fit()
    assert summary.step == 4 and not summary.stopped and np.isfinite(summary.loss)
    last = lines(tmp_path)[-1]
    assert {"loss", "loss_mse", "grad_norm", "lr", "tokens_per_second", "data_wait_share", "busy_cores", "seen",
            "peak_memory_mb", "epoch", "broken_samples"} <= last.keys()
    assert last["seen"] == 4.0
    folder = tmp_path / "previews" / "step-00000004"
    assert json.loads((folder / "captions.json").read_text()) == {"grey.png": "a grey square"}
    assert (folder / "grey.png").stat().st_size > 0
    assert list((tmp_path / "visualdl").iterdir())
    assert run.task.exported.keys() == dict(run.task.model.named_parameters()).keys()
    name = "leave.weight"
    np.testing.assert_array_equal(run.task.exported[name].reshape(-1), averages(run)[f"model/{name}"])
    assert not np.array_equal(run.task.exported[name], weights(run)[name])


def test_steps_that_are_not_finite_are_skipped_and_the_batch_is_kept(tmp_path):
    run = trainer(tmp_path, poison=range(3, 5))
    summary = run.fit()
    assert summary.skipped == 2 and summary.step == 12
    assert all(np.isfinite(value).all() for value in weights(run).values())
    assert [path.name for path in (tmp_path / "post_mortem").iterdir()] == ["step-00000004-rank-00000-0.safetensors"]
    calm = trainer(tmp_path / "calm", poison=range(3, 4))
    before = {}
    interrupt(calm, 3, lambda: before.update(weights(calm)))
    interrupt(calm, 4, fail)
    with pytest.raises(KeyboardInterrupt):
        calm.fit()
    for name, value in before.items():
        np.testing.assert_array_equal(value, weights(calm)[name], err_msg=f"{name} moved in a skipped step")


def test_too_many_skips_in_a_row_end_the_run(tmp_path):
    run = trainer(tmp_path, poison=range(4, 12), guards=GuardConfig(max_skips=3))
    with pytest.raises(TrainingStopped, match=r"step 7: .* 3 times in a row; batches are in .*post_mortem"):
        run.fit()


def test_spikes_are_reported(tmp_path, caplog):
    run = trainer(tmp_path, steps=6, guards=GuardConfig(spike_window=4, spike_ratio=5.0))
    for step, loss in enumerate([1.0, 1.1, 0.9, 6.0, 1.0]):
        run.guard.accept(step, loss)
    assert run.guard.spikes == 1 and "loss 6 is 6.0 times the recent median 1" in caplog.text


def test_sigterm_saves_and_ends_well(tmp_path):
    run = interrupt(trainer(tmp_path, checkpoint_every=0), 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    summary = run.fit()
    assert summary.stopped and summary.step == 4
    assert trainer(tmp_path, resume="auto").step == 4
    assert run.task.exported is None


def test_loss_scale_changes_nothing_and_survives(tmp_path):
    scaled = {"amp": "O1", "amp_dtype": "float16", "loss_scale": 1024.0}
    trainer(tmp_path / "plain").fit()
    run = trainer(tmp_path / "scaled", parallel=scaled, poison=range(0))
    run.fit()
    assert losses(tmp_path / "plain") == losses(tmp_path / "scaled")
    run.loss_scale.update(finite=False)
    assert run.loss_scale.value == 512.0
    run.loss_scale.calm = run.loss_scale.CALM_STEPS - 1
    run.loss_scale.update(finite=True)
    assert run.loss_scale.value == 1024.0
    assert trainer(tmp_path / "scaled", steps=13, parallel=scaled, resume="auto").loss_scale.value == 1024.0


def test_phases_have_their_own_optimizers_and_starts(tmp_path):
    task, other = ToyTask(), ToyTask(seed=1)
    task.phases.append(Phase("second", other.model, dict(other.model.named_parameters()), start_step=3))
    first_state, before = task.state, {name: value.numpy() for name, value in other.model.named_parameters()}
    task.state = lambda: first_state() | {f"second.{name}": value for name, value in other.model.state_dict().items()}
    run = interrupt(trainer(tmp_path, task=task), 3, lambda: unmoved(other, before))
    run.fit()
    assert not np.array_equal(before["enter.weight"], other.model.enter.weight.numpy())
    assert "loss_second" not in lines(tmp_path)[2] and "loss_second" in lines(tmp_path)[3]
    assert lines(tmp_path)[-1]["loss"] == lines(tmp_path)[-1]["loss_model"]


def unmoved(task, before):
    for name, value in task.model.named_parameters():
        np.testing.assert_array_equal(before[name], value.numpy())


def test_a_run_in_the_way_is_refused(tmp_path):
    trainer(tmp_path).fit()
    with pytest.raises(CheckpointError, match="already holds a run .* --resume auto"):
        trainer(tmp_path)


def test_checkpoints_of_other_models_are_refused(tmp_path):
    trainer(tmp_path, fingerprints={"vocabulary": "aaaa"}).fit()
    with pytest.raises(CheckpointError, match=r"other model size or vocabulary: model/.* is \[.*16.*\].*\[.*24"):
        trainer(tmp_path, width=24, resume="auto")
    with pytest.raises(CheckpointError, match=r"another vocabulary \(aaaa, now bbbb\)"):
        trainer(tmp_path, fingerprints={"vocabulary": "bbbb"}, resume="auto")


@pytest.mark.parametrize("changes, message", [
    ({"train": {"batch_size": 10, "accumulate_steps": 4}}, "train.batch_size: 10 does not divide .* multiple of 4"),
    ({"parallel": {"level": "os"}}, "distributed.level: os needs at least 2 ranks"),
])
def test_wrong_combinations_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **changes.pop("train", {}), **changes)


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="output: .*file/run cannot be written"):
        trainer(tmp_path / "file" / "run")


def test_paddle_seed_does_not_leak_between_steps(tmp_path):
    run = trainer(tmp_path)
    run._seed_step()
    first = paddle.rand([4]).numpy()
    run._seed_step()
    np.testing.assert_array_equal(first, paddle.rand([4]).numpy())


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_ones_behind(tmp_path):
    trainer(tmp_path, steps=20, keep_last=2).fit()
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000015", "step-00000020"]
    again = trainer(tmp_path, steps=20, keep_last=2, checkpoint_every=1, resume=str(folder / "step-00000015"))
    with pytest.raises(KeyboardInterrupt):
        interrupt(again, 17, fail).fit()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000016", "step-00000017"]
    assert trainer(tmp_path, steps=20, resume="auto").step == 17


def test_a_checkpoint_being_written_survives_what_ends_training(tmp_path, monkeypatch):
    write = store.write_rank_file

    def slow(*arguments):
        time.sleep(1.0)
        write(*arguments)

    monkeypatch.setattr(store, "write_rank_file", slow)
    with pytest.raises(KeyboardInterrupt):
        interrupt(trainer(tmp_path), 6, fail).fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_checkpoint_of_a_larger_model_is_refused(tmp_path):
    trainer(tmp_path, steps=5, task=ToyTask(layers=3)).fit()
    with pytest.raises(CheckpointError, match="made by a larger model: has model/blocks.2"):
        trainer(tmp_path, task=ToyTask(layers=2), resume="auto")


def test_a_checkpoint_of_other_model_settings_is_refused(tmp_path):
    def run(**model):
        made = trainer(tmp_path, steps=5, resume="auto")
        return Trainer(made.task, made.loader, made.train, made.optim, made.parallel, tmp_path,
                       identity={"config": {"task": {"model": model}}})

    run(heads=4, dropout=0.0).fit()
    run(heads=4, dropout=0.1)
    with pytest.raises(CheckpointError, match="task.model.heads 4, now 8"):
        run(heads=8, dropout=0.0)


def test_switching_the_average_on_later_is_refused_by_name(tmp_path):
    trainer(tmp_path, steps=5, ema_decay=0.0).fit()
    with pytest.raises(CheckpointError, match="set train.ema_decay: 0"):
        trainer(tmp_path, ema_decay=0.9, resume="auto")


def test_compiled_loops_are_loaded_before_the_first_batch(tmp_path, monkeypatch):
    """Else what is not recorded, as encoding or the first forward of a recomputed block, would run otherwise in the
    first step than in all others, and a resumed run would differ by a rounding."""
    monkeypatch.setattr(switch._State, "decided", None)
    monkeypatch.setattr(switch._State, "trains", False)
    run, states = trainer(tmp_path, steps=2), []

    class Loader(ToyLoader):
        def __iter__(self):
            states.append((switch._State.trains, switch._State.decided))
            return super().__iter__()

    run.loader = Loader(8)
    run.fit()
    assert states == [(True, switch.active())]


@pytest.fixture
def interruptible():
    """As in a terminal: a shell makes what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_saves_and_the_second_ends_at_once(tmp_path, capsys, interruptible):
    summary = interrupt(trainer(tmp_path), 7, lambda: os.kill(os.getpid(), signal.SIGINT)).fit()
    assert summary.stopped and summary.step == 8
    assert (tmp_path / "checkpoints" / "step-00000008").is_dir()
    assert "stopping after this step" in capsys.readouterr().err
    with StopSignal() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received
        os.kill(os.getpid(), signal.SIGINT)


def test_one_process_is_never_taken_for_hanging(tmp_path):
    run = interrupt(trainer(tmp_path, guards=GuardConfig(hang_seconds=1.0)), 2, lambda: time.sleep(3.0))
    assert run.fit().step == 12


def test_a_full_disk_costs_the_batches_of_a_skipped_step_and_not_the_run(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    guard = Guard(GuardConfig(), tmp_path, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # what a full disk does, to this process's files alone
    try:
        with pytest.raises(CheckpointError, match="weights.safetensors: cannot be written"):
            save_weights(tmp_path / "weights.safetensors", {"x": np.zeros([4096], "float32")})
        guard.skip(3, "the loss", [{"x": np.zeros([4096], "float32")}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert guard.skipped == 1 and "batches of step 3 could not be kept" in caplog.text
