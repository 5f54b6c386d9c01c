"""Pictures of many askers drawn side by side: rows that join between tokens, have settings of their own, and leave.

Rows that were added between the same two steps form a cohort, which moves through the grid together, so a newcomer
waits for no batch to end. On a CPU a step reads the weights once for all cohorts
(:class:`~vilg.generation.decoding.joint.JointStep`), elsewhere once a cohort; attention is each cohort's own. That
bounds how many there may be: under load newcomers gather until one ends, and share the next
(``benchmarks/continuous.py``).
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import paddle

from vilg.errors import ShapeError, VilgError
from vilg.generation.decoding.decoder import evaluating, image_attention, image_decoder, is_compiled
from vilg.generation.decoding.joint import JointStep
from vilg.generation.decoding.source import prefill_text
from vilg.generation.prompts import with_empty
from vilg.generation.sampling import SamplingConfig, guide, sample_token, uniforms
from vilg.models.bidirectional import BidirectionalTransformer


COHORTS = 8
"""Each more lets in a newcomer sooner, and splits the rows into smaller, costlier parts."""


@dataclass(eq=False)
class Row:
    """A picture on its way: sample ``sample`` of ``seed`` for a text, ``drawn`` of whose ``codes`` int64 [n] are there.

    ``ids`` int64 [m] hold ``length`` real tokens; ``known`` codes are kept where ``mask`` [n] says so."""

    ids: np.ndarray
    length: int
    seed: int
    sample: int
    sampling: SamplingConfig
    known: np.ndarray
    mask: np.ndarray
    codes: np.ndarray = field(init=False)
    drawn: int = field(init=False, default=0)
    live: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.codes = np.zeros(len(self.known), "int64")

    @property
    def done(self) -> bool:
        """Is the picture whole?"""
        return self.drawn == len(self.codes)


class DrawingBatch:
    """Draws rows that come and go with one model, at most ``capacity`` at a time, in at most ``cohorts`` groups that
    began together.

    Weights that change after the first step may not be seen.

    The codes of a row are those that :func:`~vilg.generation.autoregressive.generate_images` draws for its text, seed,
    sample and settings, to the bit, whatever is drawn beside it and whenever it came. To be used by one thread.
    """

    def __init__(self, model: BidirectionalTransformer, capacity: int, cohorts: int = COHORTS):
        if capacity < 1 or cohorts < 1:
            raise VilgError(f"a batch holds at least 1 row in at least 1 cohort, not {capacity} in {cohorts}")
        self.model, self.capacity, self.cohorts = model, capacity, cohorts
        self._joint = JointStep(model)
        self._waiting: list[Row] = []
        self._cohorts: list[_Cohort] = []

    @property
    def live(self) -> int:
        """Rows that are drawn or wait to be."""
        return len(self._waiting) + sum(cohort.live for cohort in self._cohorts)

    def add(self, text: np.ndarray, length: int, seed: int, samples: range, sampling: SamplingConfig,
            known_codes: np.ndarray | None = None, known_mask: np.ndarray | None = None) -> list[Row]:
        """Put samples of a text in, int64 [m] with ``length`` real tokens; they are drawn from the next step on,
        or from when a cohort has ended, where as many as there may be are drawn. ``known_codes`` [n] are kept where
        ``known_mask`` [n] says so. Raises VilgError when there is no room, ShapeError for codes of another grid."""
        if self.live + len(samples) > self.capacity:
            raise VilgError(f"{self.live} rows are drawn and {len(samples)} more came, but the batch holds "
                            f"{self.capacity}; wait until some are done")
        tokens = self.model.layout.image
        known, mask = ((np.zeros(tokens, kind) if given is None else np.asarray(given).astype(kind))
                       for given, kind in ((known_codes, "int64"), (known_mask, "bool")))
        if known.shape != (tokens,) or mask.shape != (tokens,):
            raise ShapeError(f"known codes {list(known.shape)} and mask {list(mask.shape)} do not fit the model's grid "
                             f"of {tokens} tokens")
        rows = [Row(np.asarray(text), int(length), seed, sample, sampling, known, mask) for sample in samples]
        self._waiting += rows
        return rows

    def cancel(self, rows: list[Row]) -> None:
        """Take rows out. Their cohort ends when none of it is left; those that never began cost nothing."""
        for row in rows:
            row.live = False
        self._waiting = [row for row in self._waiting if row.live]
        self._cohorts = [cohort for cohort in self._cohorts if cohort.live]

    def step(self) -> list[Row]:
        """Draw one token of every row; returns those that came to the end of a row of the grid, or of the picture."""
        with evaluating(self.model):
            if self._waiting and len(self._cohorts) < self.cohorts:
                # A row's prefill does not depend on the rows beside it, so the newcomers share theirs.
                self._cohorts.append(_Cohort(self.model, self._joint, self._waiting))
                self._waiting = []
            self._step_together([cohort for cohort in self._cohorts if cohort.decoder is None])
            for cohort in self._cohorts:
                if cohort.decoder is not None:
                    cohort.decoder.step(cohort.attention.step, cohort.x)
                    cohort.draw(cohort.decoder.logits)
        rows = [row for cohort in self._cohorts for row in cohort.rows if row.live]
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.done]
        return [row for row in rows if row.drawn % self.model.layout.columns == 0]

    def _step_together(self, cohorts: "list[_Cohort]") -> None:
        if not cohorts:
            return
        logits = self._joint([cohort.attention for cohort in cohorts], np.concatenate([cohort.x for cohort in cohorts]))
        ends = np.cumsum([cohort.attention.rows for cohort in cohorts])
        for cohort, own in zip(cohorts, np.split(logits, ends[:-1])):
            cohort.draw(lambda own=own: own)


class _Cohort:
    """Rows that began together. Those with guidance have a second row in the caches, which was told no text.

    ``x`` are the inputs of its next step, [rows, D]; ``decoder`` takes it where a step is not compiled."""

    def __init__(self, model: BidirectionalTransformer, joint: JointStep, rows: list[Row]):
        self.rows, self.tokens = rows, model.layout.image
        texts = {row.ids.tobytes(): row for row in rows}
        place = {text: number for number, text in enumerate(texts)}
        ids = paddle.to_tensor(np.stack([row.ids for row in texts.values()]))  # [P, m]
        length = paddle.to_tensor(np.array([row.length for row in texts.values()], "int64"))
        self._guided = [number for number, row in enumerate(rows) if row.sampling.guidance != 1]
        source = prefill_text(model, *with_empty(ids, length) if self._guided else (ids, length))
        source = source.take([*(place[row.ids.tobytes()] for row in rows), *[len(texts)] * len(self._guided)])
        self.attention, self.decoder = image_attention(model, source), None
        self.x, self._embed = model.begin_of_image.weight.numpy().repeat(source.prompts, axis=0), joint.embed
        if not is_compiled(model, self.attention):
            self.decoder = image_decoder(model, source)
            self.attention, self._embed = self.decoder.attention, self.decoder.embed
            self.x = model.begin_of_image.weight
        self._free = np.full(len(rows), -1)
        self._free[self._guided] = len(rows) + np.arange(len(self._guided))
        self._random = np.stack([uniforms(row.seed, row.sample, self.tokens) for row in rows])  # [R, n]
        self._alike: dict[tuple, list[int]] = {}  # rows by their settings
        for number, row in enumerate(rows):
            self._alike.setdefault(tuple(vars(row.sampling).values()), []).append(number)

    @property
    def live(self) -> int:
        return sum(row.live for row in self.rows) if not self.done else 0

    @property
    def done(self) -> bool:
        return self.attention.step == self.tokens

    def draw(self, logits: Callable[[], np.ndarray]) -> None:
        """Draw a token of every row from the step's logits, [rows, V], which are asked for where any is not known."""
        step, rows = self.attention.step, self.rows
        token = np.array([row.known[step] for row in rows])
        if not all(row.mask[step] for row in rows):
            told = logits()
            for members in self._alike.values():
                drawn = self._sample(told, np.array(members), step)
                token[members] = np.where([rows[number].mask[step] for number in members], token[members], drawn)
        for number, row in enumerate(rows):
            row.codes[step] = token[number]
            row.drawn = step + 1
        both = np.concatenate([token, token[self._guided]])
        self.x = self._embed(both, np.full(len(both), step))
        self.attention.step = step + 1

    def _sample(self, logits: np.ndarray, members: np.ndarray, step: int) -> np.ndarray:
        """The next token of rows of the same settings."""
        sampling, told = self.rows[members[0]].sampling, logits[members]
        if sampling.guidance != 1:
            told = guide(told, logits[self._free[members]], sampling)
        return sample_token(told, sampling, self._random[members, step])
