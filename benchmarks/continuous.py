"""Continuous batching at 32×32: how soon a newcomer sees its first row, and what that costs.

    python benchmarks/continuous.py --json continuous.json
    python benchmarks/continuous.py --quick

The model has 12 layers of width 512 (4 of 256 with --quick), 64 text tokens and a grid of 32×32 tokens; its weights are
random, which take the same time. Eight pictures are drawn side by side.

newcomer_over_waiting: at the middle of the eight a ninth comes. Seconds until its first row is drawn when it joins
    between two tokens, over those when it waits for the eight to end and is then drawn alone.
others_slowdown: a step of the eight while the newcomer is drawn beside them, over one without it.
throughput_over_batch: pictures a second when the eight came at four times, two each, over all at once.
throughput_over_batch_eight: the same when each came by itself, as many cohorts as there may be.

A step is compiled for 8, 16 … rows when so many first come, once in the life of a server; this is done before.
"""
import statistics
import time
from collections.abc import Iterator
from typing import Any

import decode
import harness
import numpy as np

ROWS = 8
STEPS = 32
"""Between two measurements of a pace, and of one."""


class Crowd:
    """Rows of one model that come in groups."""

    def __init__(self, model: Any):
        from vilg.generation.batching import DrawingBatch
        from vilg.generation.sampling import SamplingConfig

        self.batch, self.sampling = DrawingBatch(model, 2 * ROWS), SamplingConfig(top_k=decode.TOP_K)
        self.rng = np.random.default_rng(0)
        for count in (ROWS, 2 * ROWS):  # compiles
            rows = self.add(count)
            self.batch.step()
            self.batch.cancel(rows)

    def come(self, groups: int) -> "Crowd":
        """Eight rows in so many groups, a step apart."""
        for _ in range(groups):
            self.add(ROWS // groups)
            self.batch.step()
        return self

    def add(self, count: int) -> list[Any]:
        """Rows of a text of their own."""
        text = self.rng.integers(10, 100, decode.TEXT)
        return self.batch.add(text, decode.TEXT, 0, range(count), self.sampling)

    def steps(self) -> Iterator[float]:
        """Seconds of every further step."""
        while self.batch.live:
            began = time.perf_counter()
            self.batch.step()
            yield time.perf_counter() - began


def newcomer(model: Any) -> dict[str, float]:
    """Both ways of a newcomer, and the pace of the others with and without it."""
    crowd = Crowd(model).come(1)
    steps = crowd.steps()
    before = [next(steps) for _ in range(decode.TOKENS // 2)][-STEPS:]
    joined = crowd.add(1)
    beside = [next(steps) for _ in range(decode.GRID)]
    crowd.batch.cancel(joined)
    rest = list(steps)  # what one that comes now waits for
    crowd.add(1)
    steps = crowd.steps()
    alone = [next(steps) for _ in range(decode.GRID)]
    return {"newcomer_over_waiting": sum(beside) / (sum(rest) + sum(alone)),
            "others_slowdown": statistics.median(beside) / statistics.median(before),
            "newcomer_seconds": sum(beside), "waiting_seconds": sum(rest) + sum(alone)}


def throughput(model: Any, rounds: int) -> dict[str, float]:
    """Paces of eight that came together, by twos and one by one, in turns."""
    crowds = {groups: Crowd(model).come(groups) for groups in (1, ROWS // 2, ROWS)}
    seconds: dict[int, list[float]] = {groups: [] for groups in crowds}
    for _ in range(rounds):
        for groups, crowd in crowds.items():
            steps = crowd.steps()
            seconds[groups] += [next(steps) for _ in range(STEPS)][1:]  # the first fetches its weights
    pace = {groups: statistics.median(times) for groups, times in seconds.items()}
    return {"throughput_over_batch": pace[1] / pace[ROWS // 2], "throughput_over_batch_eight": pace[1] / pace[ROWS],
            **{f"step_ms_{groups}_cohorts": 1000 * value for groups, value in pace.items()}}


def main() -> None:
    """Measure and report."""
    parser = harness.arguments(__doc__)
    options = parser.parse_args()
    harness.prepare_ours(options.threads or harness.physical_cores(), options.seed)
    layers, width, heads = (4, 256, 4) if options.quick else (decode.LAYERS, decode.WIDTH, decode.HEADS)
    model = decode.model_of(True, width, heads, layers=layers)
    figures = newcomer(model) | throughput(model, 2 if options.quick else 6)
    harness.report(options, figures, layers=layers, width=width, text=decode.TEXT, tokens=decode.TOKENS, rows=ROWS)


if __name__ == "__main__":
    main()
