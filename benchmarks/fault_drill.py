"""Fault drill: a 2-rank run is hit again and again, and must end with the weights of an undisturbed run, bit for bit.

Faults: ``kill -9`` of either rank or of the launcher; the newest checkpoint truncated or with a flipped bit (in either
rank's file or the manifest); a full disk (a small tmpfs, where the drill may mount one) on which a checkpoint fails and
then a rank dies; a tar shard overwritten with noise or cut short under the run that reads it. After each the run must
come back by itself (``--restarts``) or by ``--resume auto``, get further than it was, and name a corrupted shard in its
log. Prints survived/total.

What "undisturbed" means for a corrupted shard: its samples are gone, so no run could have their weights, and others
stand in for them, always the same ones. The damage therefore only hits samples that the run has yet to read, is never
repaired, and the undisturbed run comes last and reads the shards as the drill left them: damaged, but nothing else
happens to it. It has to take the same stand-ins at the same steps.
"""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import harness
import numpy as np
import yaml
from safetensors import safe_open

from vilg.data.packing import Packing, write_shards
from vilg.data.sample import BrokenSample
from vilg.data.sources.members import scan
from vilg.data.sources.shards import ShardsConfig, ShardStream
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource

ROOT = Path(__file__).resolve().parents[1]
RANKS, BATCH, EVERY, PREFETCH = 2, 4, 4, 2
SAMPLES_A_SHARD, SHUFFLE_BUFFER, SEED = 8, 8, 7
# Steps that a fault may take up. The run must not be over before the last one.
PACE = 4 * EVERY
# Further than any rank has read when the log says that a step is done: one step that is not in the log yet, one whose
# batch was handed out, the batches that are prepared, and one more for the rank that is ahead.
AHEAD = PREFETCH + 3
DISK_MEGABYTES = 64
# Seconds that a run may take to come back: far more than an idle machine needs, or a busy one would look like a loss.
PATIENCE = 900
CONFIG = {
    "name": "drill", "seed": SEED,
    "task": {"kind": "image_tokenizer",
             "tokenizer": {"kind": "vqvae", "image_size": 32, "patch": 4, "channels": 16, "multipliers": [1],
                           "blocks": 1, "decoder_blocks": 1, "attention_resolutions": [], "norm_groups": 4,
                           "z_channels": 8, "code_dim": 8, "quantizer": {"kind": "ema", "codebook_size": 32}},
             "loss": {"kind": "pixels", "perceptual": "none"}},
    "data": {"loader": {"workers": 1, "prefetch": PREFETCH, "max_broken": 0.5}},
    "optim": {"lr": 0.002},
    "train": {"batch_size": BATCH, "log_every": 1, "preview_every": 0, "checkpoint_every": EVERY, "export": False,
              "resume": "auto"},
    "distributed": {"level": "dp"}, "runtime": {"threads": 1},
}
FAULTS = ("rank 0", "rank 1", "launcher", "truncated", "bit flip", "full disk", "corrupted shard")


class Run:
    """A run under its supervisor: where it stands, and ways to hurt it. Its log is kept beside ``config``."""

    def __init__(self, config: Path, output: Path, restarts: int):
        self.config, self.output, self.restarts = config, output, restarts
        self.log = config.with_name(f"{output.name}.log")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the supervisor, which starts the ranks."""
        command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(self.config), "--ranks",
                   str(RANKS), "--restarts", str(self.restarts), "--set", f"output={self.output}"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def metrics(self) -> list[dict[str, float]]:
        """The lines of the run's log of figures."""
        path = self.output / "metrics.jsonl"
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # A line that a kill or a full disk cut short.
                lines.append(json.loads(text))
        return lines

    def step(self) -> int:
        """Steps finished, by the newest line of the log."""
        lines = self.metrics()
        return lines[-1]["step"] if lines else 0

    def told(self, words: str) -> int:
        """How often the logs of the run and of its ranks say ``words``."""
        return sum(path.read_text(encoding="utf-8", errors="replace").count(words)
                   for path in [self.log, *(self.output / "logs").glob("rank-*.log")])

    def ranks(self) -> dict[int, int]:
        """Rank → process number, of the ranks that are running."""
        found = {}
        for path in sorted((self.output / "ranks").glob("rank-*.json")):
            number = json.loads(path.read_text(encoding="utf-8"))["process"]
            if alive(number):
                found[int(path.stem[5:])] = number
        return found

    def all_ranks(self) -> dict[int, int]:
        """As :meth:`ranks`, once all of them are running. Raises RuntimeError when the run has ended."""
        deadline = time.monotonic() + PATIENCE
        while len(ranks := self.ranks()) < RANKS:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run was over before the last fault; see {self.log}")
            time.sleep(0.02)
        return ranks

    def wait_for(self, step: int, patience: float) -> bool:
        """Wait until ``step`` steps are finished or the run has ended well; False when neither happens in time."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.step() >= step or self.process.poll() == 0:
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return False

    def kill_all(self) -> None:
        """The machine goes down: launcher and ranks at once."""
        ranks = self.ranks()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for number in ranks.values():
            signal_to(number, signal.SIGKILL)
        while any(alive(number) for number in ranks.values()):
            time.sleep(0.02)


class Shards:
    """The data of the run, what every position of them comes to, and damage that leaves the past as it was."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        # Each sample is read once in the run, so what is damaged ahead was not read behind.
        source = ScenesSource(ScenesConfig(count=steps * BATCH + 8 * SAMPLES_A_SHARD, size=32, captions=1))
        write_shards(folder, source, Packing("png"), SAMPLES_A_SHARD)

    def drawn(self, folder: Path, stop: int) -> list[str]:
        """The names of the samples that positions 0 … ``stop`` - 1 give, stand-ins included."""
        stream, names = ShardStream(ShardsConfig(path=str(folder), shuffle_buffer=SHUFFLE_BUFFER)), []
        stream.begin(SEED, RANKS)
        for position in range(stop):
            for attempt in range(len(stream)):
                try:
                    names.append(stream.sample(position, attempt).key)
                    break
                except BrokenSample:
                    continue
        return names

    def corrupt(self, read: int, rng: random.Random) -> tuple[str, int]:
        """Damage a shard whose samples at positions below ``read`` have been read or are about to be.

        Returns the shard's name and the first step (counted from 1) that meets the damage. Raises RuntimeError when
        there is nothing left to damage.
        """
        stop = min(read + 2 * EVERY * BATCH, self.steps * BATCH)
        before, trial = self.drawn(self.folder, stop), self.folder.with_name("trial")
        for _ in range(50):
            name = rng.choice(before[read:]).partition("/")[0]
            content = bytearray((self.folder / name).read_bytes())
            member = rng.choice(scan(self.folder / name).members or [None])
            if member is None:
                continue
            offset, size = member.files["png"]
            if rng.random() < 0.5:
                content[offset:offset + size] = rng.randbytes(size)
            else:
                content = content[:offset + rng.randrange(size)]
            shutil.copytree(self.folder, trial)
            (trial / name).write_bytes(content)
            after = self.drawn(trial, stop)
            shutil.rmtree(trial)
            changed = [position for position in range(stop) if before[position] != after[position]]
            if changed and changed[0] >= read:
                (self.folder / name).write_bytes(content)
                return name, changed[0] // BATCH + 1
        raise RuntimeError("found no shard whose damage would leave the steps before it as they were")


def alive(number: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def signal_to(number: int, what: signal.Signals) -> None:
    """Send a signal, unless the process has gone by itself."""
    try:
        os.kill(number, what)
    except ProcessLookupError:
        return


def strike(run: Run, fault: str, shards: Shards, rng: random.Random) -> tuple[int, str]:
    """Do ``fault`` to the run, and start again what does not come back by itself.

    Returns the step that the run has to get past, and words that its log then has to contain.
    """
    ranks = run.all_ranks()
    time.sleep(0.1 * rng.random())  # Not always just after a step: also in the middle of one, or of a checkpoint.
    if fault.startswith("rank"):
        signal_to(ranks[int(fault[-1])], signal.SIGKILL)
    elif fault == "launcher":
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 20
        while any(alive(number) for number in ranks.values()):
            if time.monotonic() > deadline:
                raise RuntimeError("ranks outlived their launcher by 20 s")
            time.sleep(0.02)
        run.start()
    elif fault == "full disk":
        fill(run, rng)
    elif fault == "corrupted shard":
        # Frozen for the moment, or the run would read on while the shard is chosen and written.
        for number in ranks.values():
            signal_to(number, signal.SIGSTOP)
        try:
            name, step = shards.corrupt((run.step() + AHEAD) * BATCH, rng)
        finally:
            for number in ranks.values():
                signal_to(number, signal.SIGCONT)
        return step, name
    else:
        run.kill_all()
        damage(run.output / "checkpoints", fault, rng)
        run.start()
    # Read after the blow, so that no step of before can pass for having come back.
    return run.step() + EVERY + 1 + rng.randrange(EVERY), ""


def damage(checkpoints: Path, fault: str, rng: random.Random) -> None:
    """Truncate or flip a bit in a file of the newest checkpoint."""
    newest = max(checkpoints.glob("step-*"), key=lambda path: path.name)
    path = rng.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if fault == "truncated":
        content = content[:rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def fill(run: Run, rng: random.Random) -> None:
    """Fill the disk, let a checkpoint fail, kill a rank in that state, and make room again."""
    filler, failed = run.output / "filler", "a checkpoint could not be written"
    ranks, before = run.all_ranks(), run.told(failed)
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
    deadline = time.monotonic() + PATIENCE
    while run.told(failed) == before:
        if time.monotonic() > deadline or run.process.poll() is not None:
            raise RuntimeError(f"no checkpoint failed on a full disk; see {run.log}")
        time.sleep(0.02)
    signal_to(ranks[rng.randrange(RANKS)], signal.SIGKILL)
    filler.unlink()


def weights(output: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint."""
    newest = max((output / "checkpoints").glob("step-*"), key=lambda path: path.name)
    found = {}
    for path in sorted(newest.glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def identical(one: Run, other: Run) -> bool:
    """Whether all tensors of the last checkpoints are equal bit for bit, and the losses of all steps in both logs."""
    first, second = weights(one.output), weights(other.output)
    losses = [{line["step"]: line["loss"] for line in run.metrics()} for run in (one, other)]
    return (first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
            and all(losses[0][step] == losses[1][step] for step in losses[0].keys() & losses[1].keys()))


def prepare(folder: Path, faults: int) -> tuple[Path, Shards]:
    """Write the shards and the config of a run that is long enough for so many faults."""
    steps, config = PACE * (faults + 2), folder / "drill.yaml"
    shards = Shards(folder / "shards", steps)
    sources = [{"kind": "shards", "path": str(shards.folder), "shuffle_buffer": SHUFFLE_BUFFER}]
    config.write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"steps": steps},
                                               "data": CONFIG["data"] | {"sources": sources}}), encoding="utf-8")
    return config, shards


def drill(hurt: Run, calm: Run, shards: Shards, faults: list[str], rng: random.Random) -> dict[str, float]:
    """Hit the one run, then do the other undisturbed on the same shards, and compare."""
    survived, done, started = 0, Counter(), time.monotonic()
    hurt.start()
    # Damage takes the newest checkpoint, so there must always be one before it.
    if not hurt.wait_for(2 * EVERY + 1, PATIENCE):
        raise RuntimeError(f"the run did not start:\n{hurt.log.read_text(errors='replace')[-2000:]}")
    for number, fault in enumerate(faults):
        before, struck = hurt.step(), time.monotonic()
        goal, words = strike(hurt, fault, shards, rng)
        back = hurt.wait_for(goal, PATIENCE) and (not words or heard(hurt, words))
        survived += back
        done["rank" if fault.startswith("rank") else fault] += 1
        print(f"{number + 1}/{len(faults)} {fault} at step {before}: {'back' if back else 'LOST'} after "
              f"{time.monotonic() - struck:.1f} s", flush=True)
        if not back:
            print(hurt.log.read_text(errors="replace")[-2000:])
            break
    ended = [hurt.process.wait(timeout=2 * PATIENCE)]
    calm.start()
    ended.append(calm.process.wait(timeout=2 * PATIENCE))
    same = ended == [0, 0] and identical(hurt, calm)
    return {"survived": survived if same else 0, "total": len(faults), "identical": int(same), "steps": shards.steps,
            "broken_samples": int(calm.metrics()[-1]["broken_samples"]), "seconds": time.monotonic() - started,
            **{f"faults_{name.replace(' ', '_')}": count for name, count in done.items()}}


def heard(run: Run, words: str) -> bool:
    """Whether the run's log tells of ``words`` (the supervisor writes it, a moment later)."""
    deadline = time.monotonic() + 20
    while not run.told(words):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def main() -> None:
    """Prepare a folder, with a small disk where that is allowed, and drill."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--faults", type=int, default=50, help="how many faults (default 50; 6 with --quick)")
    options = parser.parse_args()
    total = 6 if options.quick else options.faults
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    folder = Path(tempfile.mkdtemp(prefix="fault_drill_"))
    small = folder / "disk"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "drill", str(small)],
                             capture_output=True).returncode == 0
    kinds = [fault for fault in FAULTS if mounted or fault != "full disk"]
    if not mounted:
        print("no right to mount a tmpfs: the drill goes without a full disk")
    rng = random.Random(options.seed)
    faults = rng.sample(kinds * (total // len(kinds) + 1), total)
    if total >= len(kinds):
        faults[:len(kinds)] = kinds
        rng.shuffle(faults)
    hurt = calm = None
    try:
        config, shards = prepare(folder, total)
        hurt, calm = Run(config, small / "hurt", total), Run(config, folder / "calm", 0)
        figures = drill(hurt, calm, shards, faults, rng)
    finally:
        for run in (hurt, calm):
            if run is not None and run.process is not None:
                run.kill_all()
        if mounted:
            subprocess.run(["umount", "-l", str(small)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
    harness.report(options, figures, faults=total, ranks=RANKS, batch=BATCH, checkpoint_every=EVERY)
    print(f"survived {figures['survived']}/{figures['total']}")


if __name__ == "__main__":
    main()
