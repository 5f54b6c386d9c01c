"""Fault drill: a 2-rank run is hit again and again, and must end with the weights of an undisturbed run, bit for bit.

Faults: ``kill -9`` of either rank or of the launcher, the newest checkpoint truncated or with a flipped bit (in either
rank's file or the manifest), and a full disk (a small tmpfs, where the drill may mount one). After each the run must
come back by itself (``--restarts``) or by ``--resume auto``, and get further than it was. Prints survived/total.
"""
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

ROOT = Path(__file__).resolve().parents[1]
EVERY = 4
DISK_MEGABYTES = 64
# Seconds that a run may take to come back: far more than an idle machine needs, or a busy one would look like a loss.
PATIENCE = 900
CONFIG = {
    "name": "drill", "seed": 7,
    "task": {"kind": "image_tokenizer",
             "tokenizer": {"kind": "vqvae", "image_size": 32, "patch": 4, "channels": 16, "multipliers": [1],
                           "blocks": 1, "decoder_blocks": 1, "attention_resolutions": [], "norm_groups": 4,
                           "z_channels": 8, "code_dim": 8, "quantizer": {"kind": "ema", "codebook_size": 32}},
             "loss": {"kind": "pixels", "perceptual": "none"}},
    "data": {"sources": [{"kind": "scenes", "split": "train", "count": 64, "size": 32, "captions": 1, "questions": 0}]},
    "optim": {"lr": 0.002},
    "train": {"batch_size": 4, "log_every": 1, "preview_every": 0, "checkpoint_every": EVERY, "export": False,
              "resume": "auto"},
    "distributed": {"level": "dp"}, "runtime": {"threads": 1},
}
FAULTS = ("rank 0", "rank 1", "launcher", "truncated", "bit flip", "full disk")


class Run:
    """The disturbed run: its supervisor, where it stands, and ways to hurt it."""

    def __init__(self, config: Path, output: Path, restarts: int):
        self.config, self.output, self.restarts = config, output, restarts
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the supervisor, which starts the ranks."""
        command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(self.config), "--ranks", "2",
                   "--restarts", str(self.restarts), "--set", f"output={self.output}"]
        with open(self.output.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def step(self) -> int:
        """Steps finished, by the newest line of the log."""
        path = self.output / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        whole = [line for line in lines if line.endswith("}")]
        return json.loads(whole[-1])["step"] if whole else 0

    def ranks(self) -> dict[int, int]:
        """Rank → process number, of the ranks that are running."""
        found = {}
        for path in sorted((self.output / "ranks").glob("rank-*.json")):
            number = json.loads(path.read_text(encoding="utf-8"))["process"]
            if alive(number):
                found[int(path.stem[5:])] = number
        return found

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
        self.process.kill()
        self.process.wait()
        for number in ranks.values():
            if alive(number):
                kill(number)
        while any(alive(number) for number in ranks.values()):
            time.sleep(0.02)


def alive(number: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill(number: int) -> None:
    """``kill -9``, unless the process has gone by itself."""
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def strike(run: Run, fault: str, rng: random.Random, disk: bool) -> str:
    """Do ``fault`` to the run, and start again what does not come back by itself. Returns what was done."""
    if fault == "full disk" and not disk:
        fault = "rank 1"
    if fault.startswith("rank"):
        number = run.ranks().get(int(fault[-1]))
        if number is not None:
            kill(number)
    elif fault == "launcher":
        ranks = run.ranks()
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
    else:
        run.kill_all()
        damage(run.output / "checkpoints", fault, rng)
        run.start()
    return fault


def damage(checkpoints: Path, fault: str, rng: random.Random) -> None:
    """Truncate or flip a bit in a file of the newest checkpoint."""
    newest = max(checkpoints.glob("step-*"), key=lambda path: path.name, default=None)
    if newest is None:
        return
    path = rng.choice(sorted(newest.iterdir()))
    content = bytearray(path.read_bytes())
    if fault == "truncated":
        content = content[:rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def fill(run: Run, rng: random.Random) -> None:
    """Fill the disk, let checkpoints fail, kill a rank in that state, and make room again."""
    filler = run.output / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass
    time.sleep(1.0)
    filler.unlink()
    number = run.ranks().get(rng.randrange(2))
    if number is not None:
        kill(number)


def weights(output: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint."""
    newest = max((output / "checkpoints").glob("step-*"), key=lambda path: path.name)
    found = {}
    for path in sorted(newest.glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def drill(folder: Path, faults: list[str], seed: int, disk: bool) -> dict[str, float]:
    """Run undisturbed and disturbed, and compare."""
    rng = random.Random(seed)
    config = folder / "drill.yaml"
    pace = 2 * EVERY
    steps = pace * (len(faults) + 3)
    config.write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"steps": steps}}), encoding="utf-8")
    calm, hurt = Run(config, folder / "calm", 0), Run(config, folder / "disk" / "hurt", len(faults))
    calm.start()
    hurt.start()
    survived, done, reached = 0, Counter(), 0
    # Damage takes the newest checkpoint, so there must always be one before it.
    if not hurt.wait_for(2 * EVERY + 1, PATIENCE):
        raise RuntimeError(f"the run did not start; see {hurt.output.with_suffix('.log')}")
    for number, fault in enumerate(faults):
        before = hurt.step()
        what = strike(hurt, fault, rng, disk)
        reached = min(max(before, reached) + EVERY + 1 + rng.randrange(EVERY), steps)
        back = hurt.wait_for(reached, PATIENCE)
        survived += back
        done[what.split(" ")[0] if what.startswith("rank") else what] += 1
        print(f"{number + 1}/{len(faults)} {what} at step {before}: {'back' if back else 'LOST'}", flush=True)
        if not back:
            break
    ended = [run.process.wait(timeout=2 * PATIENCE) for run in (calm, hurt)]
    first, second = weights(calm.output), weights(hurt.output)
    same = first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    if ended != [0, 0] or not same:
        survived = 0
    return {"survived": survived, "total": len(faults), "identical": int(same), "steps": steps,
            **{f"faults_{name.replace(' ', '_')}": count for name, count in done.items()}}


def main() -> None:
    """Prepare a folder, with a small disk where that is allowed, and drill."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--faults", type=int, default=50, help="how many faults (default 50; 6 with --quick)")
    options = parser.parse_args()
    total = 6 if options.quick else options.faults
    rng = random.Random(options.seed)
    faults = list(FAULTS) + [rng.choice(FAULTS) for _ in range(total - len(FAULTS))]
    rng.shuffle(faults)
    folder = Path(tempfile.mkdtemp(prefix="fault_drill_"))
    small = folder / "disk"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "drill", str(small)],
                             capture_output=True).returncode == 0
    if not mounted:
        print("no right to mount a tmpfs: a full disk is replaced by the death of a rank")
    try:
        figures = drill(folder, faults[:total], options.seed, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(small)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
    harness.report(options, figures, faults=total)
    print(f"survived {figures['survived']}/{figures['total']}")


if __name__ == "__main__":
    main()
