"""The contract between a task, which says what a step computes, and the trainer, which runs steps.

A task owns its models and offers *phases*: named parts of a step, each a module whose ``forward`` returns a loss, and
the parameters that the phase's own optimizer moves. Ordinary training has one phase; a GAN has two.
"""
import dataclasses
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from paddle import Tensor, nn

B = TypeVar("B", bound="Batch")


@dataclass
class Batch:
    """What the batches of all tasks share: a dataclass of arrays (tensors later) whose first axis counts the samples.

    A field that may be missing is None by default; its class says when it is.
    """

    def parts(self) -> dict[str, Any]:
        """The arrays that are there, by their field's name."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self: B, change: Callable[[Any], Any]) -> B:
        """The batch with ``change`` made to every array that is there."""
        return dataclasses.replace(self, **{name: change(value) for name, value in self.parts().items()})


@dataclass
class StepOutput:
    """What a phase's module returns: the loss to descend and the figures to show (detached scalars)."""

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Phase:
    """One part of a step: ``module(batch, step)`` → :class:`StepOutput`, descended over ``parameters``.

    ``module`` is what data parallelism and sharding wrap; ``parameters`` may be fewer than the module's own. Before
    ``start_step`` the phase is skipped.
    """

    name: str
    module: nn.Layer
    parameters: dict[str, Tensor]
    start_step: int = 0


@dataclass
class LogPicture:
    """A picture [H, W, 3] uint8 with its caption for the log."""

    name: str
    picture: np.ndarray
    caption: str = ""


class Batches(Protocol):
    """What the trainer needs of a loader: this rank's micro-batches without end, and where it stands among them.

    ``waited``: seconds spent waiting for batches so far; ``epoch``: epochs handed out so far; ``broken``: the samples
    that this rank had to skip.
    """

    waited: float
    epoch: float
    broken: Sized

    def __iter__(self) -> Iterator[Batch]:
        """Batches of arrays."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that describes the batches handed out, at whatever number of ranks."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a description."""

    def close(self) -> None:
        """Give back threads and files."""


class Task(Protocol):
    """What :class:`vilg.engine.trainer.Trainer` needs to know; each class of :mod:`vilg.tasks` follows it."""

    phases: list[Phase]
    least_side: int
    """Pixels that :meth:`view` wants of an image's shorter side; a source may decode larger ones reduced."""
    reads_text: bool
    """Whether a sample needs a caption."""

    def view(self, sample: Any, seed: int) -> Any:
        """One whole sample → what this task takes of it: its crops, its twin. Called as each sample is read, so that a
        batch of large images is never in memory. Pure: the same input gives the same view."""

    def collate(self, views: list[Any], seeds: list[int]) -> Batch:
        """Views and one seed a sample → the arrays of a batch. Pure, as :meth:`view` is."""

    def prepare(self, batch: Batch) -> Batch:
        """What needs no gradient and is the same for every phase (pictures to codes); called once a micro-batch."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after the optimizers moved (codebook revival, schedules); returns figures for the log."""

    def tokens(self, batch: Batch) -> int:
        """How many tokens (or pixels) the batch holds, for the throughput figure."""

    def preview(self, batch: Batch) -> Iterator[LogPicture]:
        """Pictures and captions that show how training goes, drawn from the batch."""

    def export(self, directory: str, ema: dict[str, np.ndarray] | None = None) -> None:
        """Write a released model folder; ``ema`` (averaged weights) replaces weights by name where given."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint must hold besides optimizer state, under stable names."""

    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint of this task must be resumed with: hashes of frozen tokenizers and vocabularies by name."""
