"""Checkpoints: ranges, damage, newest sound one, pruning, failures while writing."""
import json

import numpy as np
import paddle
import pytest

from vilg.engine.checkpoints import checkpoint as store
from vilg.engine.checkpoints.checkpoint import Checkpoint
from vilg.engine.checkpoints.resume import newest_sound
from vilg.engine.checkpoints.saver import Saver
from vilg.engine.checkpoints.tensor_shards import TensorShard, whole
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.errors import CheckpointError


def saver(folder, token="0a1b2c3d", keep_last=3, keep_best=False, rank=0, ranks=1):
    return Saver(folder, rank, ranks, token, keep_last, keep_best)


def saved(folder, steps, scores=None, **options):
    one = saver(folder, **options)
    tensor = paddle.arange(6, dtype="float32").reshape([2, 3])
    for step in steps:
        one.save(step, [whole("x", tensor + step)], {"score": (scores or {}).get(step), "identity": {}})
        one.finish()
    return one


def names(folder):
    return [path.name for path in store.checkpoints_in(folder)]


def test_ranges_written_by_two_ranks_are_read_in_any_other_cut(tmp_path):
    values = paddle.arange(10, dtype="float32")
    second = saver(tmp_path, rank=1, ranks=2)
    padded = paddle.concat([values[6:], paddle.full([2], 99.0)])
    second.save(1, [TensorShard("x", lambda: padded, (2, 5), 6, 10)], {})
    first = saver(tmp_path, ranks=2)
    head = values[:6]
    first.save(1, [TensorShard("x", lambda: head, (2, 5), 0, 6), whole("y", paddle.ones([3]), owned=True)], {})
    second.finish()
    first.finish()
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    checkpoint.verify()
    np.testing.assert_array_equal(checkpoint.full("x"), np.arange(10, dtype="float32").reshape(2, 5))
    np.testing.assert_array_equal(checkpoint.read("x", 4, 8), [4, 5, 6, 7])
    target = paddle.zeros([5])
    checkpoint.restore([TensorShard("x", lambda: target, (2, 5), 5, 9)])
    np.testing.assert_array_equal(target.numpy(), [5, 6, 7, 8, 0])


def test_a_snapshot_is_not_touched_by_later_steps(tmp_path):
    tensor = paddle.zeros([1000])
    one = saver(tmp_path)
    one.save(1, [whole("x", tensor)], {})
    tensor.set_value(paddle.ones([1000]))
    one.finish()
    assert not Checkpoint(tmp_path / "step-00000001").full("x").any()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest", "digit"])
def test_broken_checkpoints_are_passed_over_with_a_warning(tmp_path, caplog, damage):
    saved(tmp_path, [1, 2])
    newest = tmp_path / "step-00000002"
    path = newest / ("manifest.json" if damage in ("manifest", "digit") else "rank-00000.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "digit":  # Still a manifest, but of another step.
        path.write_bytes(content.replace(b'"step": 2', b'"step": 3'))
    elif damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:len(content) // 2])
    assert newest_sound(Parallel(DistributedConfig()), store.checkpoints_in(tmp_path)).step == 1
    assert "skipping a broken checkpoint" in caplog.text and "step-00000002" in caplog.text


def test_last_and_best_are_kept(tmp_path):
    saved(tmp_path, range(1, 7), {step: abs(step - 2) for step in range(1, 7)}, keep_last=2, keep_best=True)
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_a_manifest_from_before_it_had_a_checksum_is_read(tmp_path):
    saved(tmp_path, [1])
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    with pytest.raises(CheckpointError, match="manifest.json: its contents do not match"):
        path.write_text(json.dumps(manifest))
        Checkpoint(path.parent)
    path.write_text(json.dumps(manifest | {"format": 1}))
    assert newest_sound(Parallel(DistributedConfig()), store.checkpoints_in(tmp_path)).step == 1


def test_left_overs_of_a_killed_run_are_removed_and_never_read(tmp_path):
    (tmp_path / ".step-00000009.old").mkdir(parents=True)
    saved(tmp_path, [1])
    assert names(tmp_path) == ["step-00000001"]
    assert not list(tmp_path.glob(".step-*"))


def test_a_failed_write_leaves_the_ones_before_and_is_reported_at_the_end(tmp_path, monkeypatch, caplog):
    one = saved(tmp_path, [1])

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.safetensors.numpy, "save_file", no_space)
    one.save(2, [whole("x", paddle.ones([2]))], {})
    one.settle()
    assert "could not be written" in caplog.text and names(tmp_path) == ["step-00000001"]
    assert not list(tmp_path.glob(".step-*"))
    one.save(3, [whole("x", paddle.ones([2]))], {})
    with pytest.raises(CheckpointError, match="No space left.* --resume auto"):
        one.finish()


def test_a_rank_that_fails_fails_the_checkpoint(tmp_path, monkeypatch):
    second, first = saver(tmp_path, rank=1, ranks=2), saver(tmp_path, ranks=2)
    write = store.write_rank_file

    def fail_on_second(directory, rank, shards):
        if rank == 1:
            raise OSError("broken disk")
        write(directory, rank, shards)

    monkeypatch.setattr(store, "write_rank_file", fail_on_second)
    for one in (second, first):
        one.save(1, [whole("x", paddle.ones([2]))], {})
    for one in (second, first):
        with pytest.raises(CheckpointError):
            one.finish()
    assert names(tmp_path) == []


def test_missing_parts_and_strangers_are_refused(tmp_path):
    one = saver(tmp_path)
    one.save(1, [TensorShard("x", lambda: paddle.ones([2]), (4,), 0, 2)], {})
    with pytest.raises(CheckpointError, match="x is covered 2 of 4 elements"):
        one.finish()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint(tmp_path)
    saved(tmp_path, [2])
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        Checkpoint(manifest.parent)
