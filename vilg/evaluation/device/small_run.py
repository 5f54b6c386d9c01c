"""A small training of the bidirectional model on made-up data, in one process or as a rank of several.

``python -m vilg.evaluation.device.small_run CASE.json`` runs one rank of a case that :func:`in_ranks` wrote.
"""
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from vilg.engine.checkpoints.checkpoint import OPTIMIZER, Checkpoint
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.engine.safety.supervisor import Supervisor
from vilg.engine.task import LogPicture, Phase
from vilg.engine.trainer import TrainConfig, Trainer
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.tasks.bidirectional import BidirectionalBatch, BidirectionalStep, BidirectionalTaskConfig
from vilg.weights.files import save_weights

SMALL = BidirectionalConfig(layers=4, width=64, heads=2, vocab_size=90, codebook_size=70, text_length=8, rows=8,
                            columns=8)
DIFFERENT_SAMPLES = 16


def random_batch(config: BidirectionalConfig, rows: range) -> BidirectionalBatch:
    """Made-up samples, each a function of its number."""
    made = [np.random.default_rng(row % DIFFERENT_SAMPLES) for row in rows]
    text, slots = config.text_length, config.rows * config.columns
    full = np.full([len(rows)], text)
    return BidirectionalBatch(
        t2i_text=np.stack([one.integers(1, config.vocab_size, text) for one in made]), t2i_length=full,
        i2t_text=np.stack([one.integers(1, config.vocab_size, text) for one in made]), i2t_length=full,
        i2t_prefix=np.zeros([len(rows)], "int64"),
        codes=np.stack([one.integers(0, config.codebook_size, slots) for one in made]))


class RandomBatches:
    """Batches of made-up samples without end (:class:`vilg.engine.task.Batches`)."""

    def __init__(self, config: BidirectionalConfig, size: int, rank: int, ranks: int):
        self.config, self.size, self.rank, self.ranks = config, size, rank, ranks
        self.position, self.waited, self.epoch, self.broken = 0, 0.0, 0.0, ()

    def __iter__(self) -> Iterator[BidirectionalBatch]:
        while True:
            first = (self.position * self.ranks + self.rank) * self.size
            self.position += 1
            yield random_batch(self.config, range(first, first + self.size))

    def state_dict(self) -> dict[str, int]:
        """How many samples all ranks were given."""
        return {"samples": self.position * self.ranks * self.size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.position = state["samples"] // (self.ranks * self.size)

    def close(self) -> None:
        """Nothing is held."""


class SmallTask:
    """The bidirectional model's own phase without tokenizers (:class:`vilg.engine.task.Task`)."""

    least_side, reads_text = 1, True

    def __init__(self, config: BidirectionalConfig, parallel: Parallel):
        paddle.seed(0)
        with parallel.making():
            self.model = BidirectionalTransformer(config)
        step = BidirectionalStep(self.model, BidirectionalTaskConfig(model=config, image_tokenizer="", vocabulary=""))
        self.phases = [Phase("model", step, dict(self.model.named_parameters()))]

    def prepare(self, batch: BidirectionalBatch) -> BidirectionalBatch:
        """Codes are there already."""
        return batch

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing."""
        return {}

    def tokens(self, batch: BidirectionalBatch) -> int:
        """Image tokens of a batch."""
        return batch.codes.size

    def preview(self, batch: BidirectionalBatch) -> Iterator[LogPicture]:
        """Nothing is drawn."""
        yield from ()

    def state(self) -> dict[str, paddle.Tensor]:
        """The model's tensors."""
        return dict(self.model.state_dict())

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        """The weights alone."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_weights(Path(directory) / "model.safetensors", self.model.state_dict() | (ema or {}))


def train(output: Path, steps: int, resume: str = "none", accumulate: int = 1, ema: float = 0.0, batch: int = 8,
          **distributed: Any) -> dict[str, Any]:
    """Train ``steps`` steps; rank 0 returns the losses, and what of the optimizer the last checkpoint holds."""
    parallel = Parallel(DistributedConfig(**distributed))
    train_config = TrainConfig(steps=steps, batch_size=batch, accumulate_steps=accumulate, log_every=1, preview_every=0,
                               checkpoint_every=4, keep_last=9, ema_decay=ema, resume=resume)
    rank, ranks = parallel.topology.data_rank, parallel.topology.data_ranks
    loader = RandomBatches(SMALL, train_config.micro_batch_size(ranks), rank, ranks)
    optim = OptimConfig(lr=3e-3, weight_decay=0.1, schedule="constant")
    Trainer(SmallTask(SMALL, parallel), loader, train_config, optim, parallel, output).fit()
    if parallel.rank:
        return {}
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = Checkpoint(output / "checkpoints" / f"step-{steps:08d}").names
    states = {kind: sum(name.startswith(OPTIMIZER) and name.endswith("/" + kind) for name in names)
              for kind in ("moment1", "moment2", "master")}
    return {"losses": [json.loads(line)["loss"] for line in lines], "states": states,
            "parameters": sum(not name.startswith(OPTIMIZER) for name in names)}


def in_ranks(folder: Path, ranks: int, **case: Any) -> dict[str, Any]:
    """:func:`train` as a job of ``ranks`` processes of this machine. Raises RuntimeError with their last words."""
    listing = folder / "case.json"
    listing.write_text(json.dumps(case | {"output": str(folder / case["output"])}), encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    status = Supervisor([sys.executable, "-m", __spec__.name, str(listing)], ranks, 0, list, folder / "logs").run()
    if status:
        words = [line for path in sorted((folder / "logs").glob("rank-*.log"))
                 for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]]
        raise RuntimeError(f"a rank ended with status {status}: {' | '.join(words)}")
    return json.loads(listing.with_suffix(".result").read_text(encoding="utf-8"))


def main() -> None:
    """Run this process's rank of the case named on the command line."""
    listing = Path(sys.argv[1])
    case = json.loads(listing.read_text(encoding="utf-8"))
    result = train(Path(case.pop("output")), **case)
    if result:
        listing.with_suffix(".result").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
