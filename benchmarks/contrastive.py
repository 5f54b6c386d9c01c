"""The contrastive loss in tiles and plain, forward and backward: memory and time as ratios (tiled / plain).

Each form runs in a process of its own on the same unit vectors. Memory is what the allocator's peak rises above what
is held before the loss (the vectors and their gradients' places); time is the median of repetitions taken in turns.
Targets at 4096 rows of 768: half the memory or less, one and a half times the time or less.
"""
import argparse
from collections.abc import Callable

import harness

TILE = {"plain": 0, "tiled": None}  # None: as the config has it


def loss_step(name: str, rows: int, width: int, seed: int, masked: bool) -> Callable[[], float]:
    """One loss with its gradients; returns its value."""
    import numpy as np
    import paddle

    from vilg.losses.contrastive import ContrastiveConfig, info_nce

    tile = ContrastiveConfig().tile if TILE[name] is None else TILE[name]
    random = np.random.default_rng(seed)
    first = random.normal(size=[rows, width]).astype("float32")
    second = first * np.float32(0.5) + random.normal(size=[rows, width]).astype("float32")
    inputs = [paddle.nn.functional.normalize(paddle.to_tensor(x)) for x in (first, second)]
    inputs.append(paddle.to_tensor([14.3]))
    for x in inputs:
        x.stop_gradient = False
    ids = paddle.to_tensor(random.integers(0, rows // 2, [rows])) if masked else None

    def step() -> float:
        loss = info_nce(*inputs, ids, tile).loss
        loss.backward()
        for x in inputs:
            x.clear_gradient(set_to_zero=False)
        return loss.item()

    return step


def prepare(threads: int, seed: int, name: str, rows: int, width: int) -> dict[str, harness.Case]:
    """The contestant ``name``: its loss without and with equal rows, and the peak of either in megabytes."""
    harness.prepare_ours(threads, seed)
    steps = {case: loss_step(name, rows, width, seed, case == "masked") for case in ("loss", "masked")}
    return {case: (lambda step=step: step) for case, step in steps.items()} | {
        f"{case}_value": step for case, step in steps.items()} | {
        f"{case}_peak": (lambda step=step: peak(step)) for case, step in steps.items()}


def peak(step: Callable[[], float]) -> float:
    """Megabytes by which the allocator's peak rises above what is held before the step."""
    from paddle.base import core

    step()
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    step()
    return (core.host_memory_stat_peak_value("Allocated", 0) - before) / 1e6


def measure(contestants: list[harness.Contestant], options: argparse.Namespace) -> dict[str, float]:
    """All figures: of the loss as it is, and (``masked``) of one in which every other row has an equal."""
    figures: dict[str, float] = {}
    for case, mark in (("loss", ""), ("masked", "_masked")):
        peaks, values = ({each.name: each.ask(f"{case}_{what}") for each in contestants} for what in ("peak", "value"))
        seconds = harness.alternate(contestants, case, 3 if options.quick else 7, 1 if options.quick else 2)
        for name in peaks:
            figures |= {f"{name}{mark}_peak_mb": peaks[name], f"{name}{mark}_seconds": seconds[name]}
        figures |= {f"tiled{mark}_memory_ratio": peaks["tiled"] / peaks["plain"],
                    f"tiled{mark}_time_ratio": seconds["tiled"] / seconds["plain"],
                    f"tiled{mark}_value_difference": abs(values["tiled"] - values["plain"])}
    return figures


def main() -> None:
    """Measure both forms."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="rows N of either view (default %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="width D of the vectors (default %(default)s)")
    options = parser.parse_args()
    contestants = [harness.Contestant(name, prepare, options, name, options.rows, options.width) for name in TILE]
    for contestant in contestants:
        contestant.wait()
    figures = measure(contestants, options)
    for contestant in contestants:
        contestant.close()
    harness.report(options, figures, rows=options.rows, width=options.width)


if __name__ == "__main__":
    main()
