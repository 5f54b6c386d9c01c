"""A small task for the engine's tests: a two-layer map learned from a seeded stream of pairs."""
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from vilg.engine.task import Batch, LogPicture, Phase, StepOutput


@dataclass
class ToyBatch(Batch):
    """``x`` [B, 6] and what to make of it, ``y`` [B, 3]."""

    x: Tensor | np.ndarray
    y: Tensor | np.ndarray


class ToyLoader:
    """Batches [B, 6] → [B, 3] that are a pure function of seed and position, with an exact position to resume from."""

    def __init__(self, batch_size: int, seed: int = 0, rank: int = 0, ranks: int = 1, poison: range = range(0)):
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks
        self.position, self.poison, self.waited, self.broken = 0, poison, 0.0, ()

    @property
    def epoch(self) -> float:
        return self.position / 100

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[ToyBatch]:
        while True:
            first = (self.position * self.ranks + self.rank) * self.batch_size
            rows = range(first, first + self.batch_size)
            x = np.stack([np.random.default_rng([self.seed, row]).normal(size=6) for row in rows])
            if self.position in self.poison:
                x[0, 0] = np.nan
            self.position += 1
            yield ToyBatch(x.astype("float32"), np.sin(x[:, :3]).astype("float32"))

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.position * self.ranks * self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["samples"] // (self.ranks * self.batch_size)


class Block(nn.Layer):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.dropout(nn.functional.gelu(self.linear(self.norm(x))), self.dropout, self.training)


class ToyModel(nn.Layer):
    def __init__(self, width: int = 16, layers: int = 3, dropout: float = 0.1):
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.blocks = nn.LayerList([Block(width, dropout) for _ in range(layers)])
        self.leave = nn.Linear(width, 3)
        self.register_buffer("seen", paddle.zeros([1]))

    def forward(self, batch: ToyBatch, step: int) -> StepOutput:
        hidden = self.enter(batch.x)
        for block in self.blocks:
            hidden = block(hidden)
        loss = nn.functional.mse_loss(self.leave(hidden), batch.y)
        return StepOutput(loss, {"loss_mse": loss.detach()})


class ToyTask:
    def __init__(self, seed: int = 0, **model: Any):
        paddle.seed(seed)
        self.model = ToyModel(**model)
        self.phases = [Phase("model", self.model, dict(self.model.named_parameters()))]
        self.exported = None

    def prepare(self, batch: ToyBatch) -> ToyBatch:
        return batch

    def after_step(self, step: int) -> dict[str, float]:
        self.model.seen.add_(paddle.ones([1]))
        return {"seen": self.model.seen.item()}

    def tokens(self, batch: ToyBatch) -> int:
        return batch.x.shape[0]

    def preview(self, batch: ToyBatch) -> Iterator[LogPicture]:
        yield LogPicture("grey", np.full([8, 8, 3], 128, "uint8"), "a grey square")

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        self.exported = ema

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())


class Sour(nn.Layer):
    """A phase's module whose loss is not finite at some steps."""

    def __init__(self, model, steps):
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, batch, step):
        out = self.model(batch, step)
        return StepOutput(out.loss * float("nan") if step in self.steps else out.loss, {})


def two_phases(steps, **model):
    """A toy task with a second phase, ``steps`` of which are not finite."""
    task, other = ToyTask(**model), ToyTask(seed=1, **model)
    task.phases.append(Phase("second", Sour(other.model, steps), dict(other.model.named_parameters())))
    first = task.state
    task.state = lambda: first() | {f"second.{name}": value for name, value in other.model.state_dict().items()}
    return task
