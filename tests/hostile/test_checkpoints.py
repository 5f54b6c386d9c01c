"""Checkpoints that were damaged or made up: gone on from as they were, or refused in one sentence."""
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import struct
import time

import numpy as np
import pytest

from toy_task import ToyBatch, ToyTask
from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.sample import Sample
from vilg.engine.checkpoints.checkpoint import Checkpoint, checkpoints_in
from vilg.engine.checkpoints.manifest import MANIFEST, digest
from vilg.engine.checkpoints.resume import newest_sound
from vilg.engine.metrics import MetricsLog
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.errors import VilgError

MUTATIONS, SECONDS, MEGABYTES = 320, 2.0, 1000
STEP = 4
VALUES = [None, True, "", "x", -1, 0, 1, 3, 2.5, 10 ** 9, 10 ** 30, 2 ** 63, 1e300, float("nan"), float("inf"), [], {},
          [1, 2], {"a": 1}, "../../etc/passwd", "rank-00001.safetensors", "\ud800", "\0", "x" * 5000]
DEEP = "[" * 200_000


class Counts:
    """What became of the mutations: each within time (of this thread, not by the clock: machines are shared) and
    memory, refused in a sentence or accepted as right. One that waits for ever is ended by an alarm."""

    def __init__(self, name):
        self.name, self.refused, self.accepted, self.slowest = name, 0, 0, 0.0
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, act, right):
        start = time.thread_time()
        signal.alarm(60)
        try:
            result = act()
        except VilgError as error:
            self.refused += 1
            assert len(str(error)) < 2000 and "\n" not in str(error), str(error)[:500]
        else:
            self.accepted += 1
            right(result)
        finally:
            signal.alarm(0)
        self.slowest = max(self.slowest, time.thread_time() - start)

    def finish(self, capsys):
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before) / 1024
        with capsys.disabled():
            print(f"\n{self.name}: {self.refused} refused, {self.accepted} gone on from, 0 tracebacks, 0 wrong, "
                  f"slowest {self.slowest:.2f} s, {grown:.0f} MB more")
        assert self.refused + self.accepted >= MUTATIONS and self.slowest < SECONDS and grown < MEGABYTES


class Numbers:
    """Samples that are a number each."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return Sample(str(index), None, ["text"])


def collate(samples, seeds):
    x = np.array([np.random.default_rng(int(sample.key)).normal(size=6) for sample in samples], "float32")
    return ToyBatch(x, np.sin(x[:, :3]))


def trainer(output, **train):
    settings = {"steps": STEP, "batch_size": 4, "checkpoint_every": 2, "preview_every": 0, "log_every": 1,
                "ema_decay": 0.9, "export": False} | train
    loader = Loader(Mixture([Numbers()]), LoaderConfig(), collate, 4)
    return Trainer(ToyTask(), loader, TrainConfig(**settings), OptimConfig(), Parallel(DistributedConfig()), output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's output, with the checkpoints of steps 2 and 4."""
    output = tmp_path_factory.mktemp("checkpoints") / "run"
    logging.disable(logging.WARNING)
    trainer(output).fit()
    yield output
    logging.disable(logging.NOTSET)


def state_of(run):
    """All that a run goes on from, to compare."""
    return (run.step, run.loss, run.guard.state(), run.loader.state_dict(),
            {name: value.numpy().tobytes() for name, value in run.task.state().items()})


def everything(path):
    checkpoint = Checkpoint(path)
    return checkpoint.header, {name: checkpoint.full(name).tobytes() for name in checkpoint.names}


def some_place(rng, node):
    """A way down from key to key; what is said once is met as often as what is said of every tensor."""
    path = []
    while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.7):
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path, node = [*path, key], node[key]
    return path


def say_otherwise(rng, manifest):
    for _ in range(rng.choice([1, 1, 3])):
        place = some_place(rng, manifest)
        node = manifest
        for key in place[:-1]:
            node = node[key]
        act = rng.choice(["value", "value", "drop", "swap"])
        if act == "value":
            node[place[-1]] = rng.choice(VALUES)
        elif act == "drop":
            del node[place[-1]]
        else:
            other = rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
            node[place[-1]], node[other] = node[other], node[place[-1]]


def store_otherwise(rng, path):
    """A safetensors file that is whole and says other things."""
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:start])
    one, other = (rng.choice(sorted(name for name in header if name != "__metadata__")) for _ in range(2))
    act = rng.choice(["dtype", "shape", "swap", "rename", "offset", "drop"])
    if act == "dtype":
        header[one]["dtype"] = rng.choice(["BF16", "I32", "F8_E4M3", "F16", "F64", "X9", 3])
    elif act == "shape":
        header[one]["shape"] = rng.choice([[10 ** 12], [0], [-1], [2 ** 63], [1.5], [1, 1], [1] * 70])
    elif act == "swap":
        header[one], header[other] = header[other], header[one]
    elif act == "rename":
        header[rng.choice(["x", "", one + "/y"])] = header.pop(one)
    elif act == "offset":
        header[one]["data_offsets"] = rng.choice([[0, 0], [0, 2 ** 62], [5, 1], [-2, 2], ["a", 2]])
    else:
        header.pop(one)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[start:])


def scramble(rng, path):
    raw = bytearray(path.read_bytes())
    act = rng.choice(["flip", "flip", "cut", "grow", "zero"])
    if act == "flip":
        for _ in range(rng.choice([1, 1, 5])):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif act == "cut":
        del raw[rng.randrange(len(raw)):]
    elif act == "grow":
        raw += rng.randbytes(rng.choice([1, 100]))
    else:
        place = rng.randrange(len(raw))
        raw[place:place + 50] = bytes(len(raw[place:place + 50]))
    path.write_bytes(bytes(raw))


def replace(rng, path):
    """Something else in the place of a file."""
    path.unlink()
    act = rng.choice(["gone", "folder", "pipe", "loop", "link", "empty", "deep", "list", "digits"])
    if act == "folder":
        path.mkdir()
    elif act == "pipe":
        os.mkfifo(path)
    elif act == "loop":
        path.symlink_to(path.name)
    elif act == "link":
        path.symlink_to("/dev/zero")
    elif act != "gone":
        path.write_text({"empty": "", "deep": DEEP, "list": "[1]", "digits": '{"step": ' + "9" * 5000 + "}"}[act])


def mutate(rng, folder):
    path = folder / rng.choice([MANIFEST, MANIFEST, "rank-00000.safetensors"])
    act = rng.choice(["scramble", "scramble", "say", "say", "replace", "rename", "extra"])
    if act == "scramble":
        scramble(rng, path)
    elif act == "replace":
        replace(rng, path)
    elif act == "say":
        manifest = json.loads((folder / MANIFEST).read_text())
        say_otherwise(rng, manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
    elif act == "rename":
        folder.rename(folder.with_name(rng.choice(["step-00000005", "step-0", "step-99999999999999999999"])))
    else:
        (folder / rng.choice(["rank-00001.safetensors", "notes.txt"])).write_bytes(rng.randbytes(50))


def reseal(rng, folder):
    """A manifest or file of other contents, with checksums that fit: only its sense can be judged."""
    path, stored = folder / MANIFEST, folder / "rank-00000.safetensors"
    manifest = json.loads(path.read_text())
    if rng.random() < 0.4:
        store_otherwise(rng, stored)
        manifest["files"][stored.name] = {"bytes": stored.stat().st_size,
                                          "sha256": hashlib.sha256(stored.read_bytes()).hexdigest()}
    else:
        say_otherwise(rng, manifest)
    manifest.pop("sha256", None)
    path.write_text(json.dumps(manifest | {"sha256": digest(manifest)}))


def test_a_damaged_checkpoint_is_refused_or_gone_on_from_exactly(whole, tmp_path, capsys):
    counts, expected = Counts("checkpoints, damaged"), everything(whole / "checkpoints" / "step-00000004")
    restored = state_of(trainer(whole, resume="auto"))

    def right(run):
        path = Checkpoint(run.chosen)
        assert everything(path.path) == expected and state_of(run.trainer) == restored

    class Resumed:
        def __init__(self, folder):
            self.chosen = next(path for path in folder.parent.iterdir() if path.name.startswith("step"))
            self.trainer = trainer(tmp_path / "other", resume=str(self.chosen))

    for seed in range(MUTATIONS):
        folder = shutil.copytree(whole / "checkpoints" / "step-00000004", tmp_path / "at" / "step-00000004")
        mutate(random.Random(seed), folder)
        counts(lambda folder=folder: Resumed(folder), right)
        shutil.rmtree(folder.parent)
    counts.finish(capsys)


def test_a_checkpoint_with_checksums_made_to_fit_is_refused_or_makes_sense(whole, tmp_path, capsys):
    counts = Counts("checkpoints, made up")

    def right(run):
        assert all(np.isfinite(value.numpy()).all() for value in run.task.state().values())
        assert run.step == STEP and next(run.loader).x.shape == (4, 6)
        run.loader.close()

    for seed in range(MUTATIONS):
        folder = shutil.copytree(whole / "checkpoints" / "step-00000004", tmp_path / "at" / "step-00000004")
        reseal(random.Random(seed), folder)
        counts(lambda folder=folder: trainer(tmp_path / "other", resume=str(folder)), right)
        shutil.rmtree(folder.parent)
    counts.finish(capsys)


def test_a_run_goes_on_from_the_newest_sound_one_and_its_log_mends(whole, tmp_path, capsys):
    counts, older = Counts("outputs, damaged"), everything(whole / "checkpoints" / "step-00000002")
    newer = everything(whole / "checkpoints" / "step-00000004")
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"{", b"[1]", b"null", b'{"step": "x"}', b'{"step": true}', b'{"steps": 1}', DEEP.encode(), b"\xff\xfe",
           b'{"step": 1e400}', b'{"step": ' + b"9" * 5000 + b"}", b'"step"', b""]

    def right(found):
        checkpoint, kept = found
        assert everything(checkpoint.path) == (newer if checkpoint.step == STEP else older)
        assert kept == lines[:checkpoint.step]

    for seed in range(MUTATIONS):
        rng, output = random.Random(seed), tmp_path / "run"
        shutil.copytree(whole / "checkpoints", output / "checkpoints")
        mutate(rng, output / "checkpoints" / "step-00000004")
        mixed = list(lines)
        for _ in range(rng.choice([0, 1, 5])):
            mixed.insert(rng.randrange(len(mixed) + 1), rng.choice(bad) + b"\n")
        (output / "metrics.jsonl").write_bytes(b"".join(mixed))

        def act(output=output):
            checkpoint = newest_sound(Parallel(DistributedConfig()), checkpoints_in(output / "checkpoints"))
            MetricsLog(output, checkpoint.step, STEP, "x").close()
            return checkpoint, (output / "metrics.jsonl").read_bytes().splitlines(keepends=True)

        counts(act, right)
        shutil.rmtree(output)
    assert counts.refused == 0
    counts.finish(capsys)
