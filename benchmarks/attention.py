"""One attention layer, forward and backward: block-wise row, column and convolutional layers against dense ones.

    python benchmarks/attention.py --json attention.json --plot attention.png
    python benchmarks/attention.py --quick

Width 1024, 16 heads, 64 text tokens, one sample, and grids of 16², 32² and 64² image tokens. Every pattern runs in
processes of its own, one a role, and they take turns.

<pattern>_time_ratio, <pattern>_memory_ratio: a layer over dense attention under the same pattern's mask at 32², where
    the image is **drawn** (causal). Where it is looked at (two-sided), the figures stand beside them and say so:
    <pattern>_looked_at_time_ratio, <pattern>_looked_at_memory_ratio. Queries of rows meet half as many rows more then,
    and the text's meet the image, so that these are larger.

Memory is the growth of the process's peak during a step, gradients included. ``scaling_exponent`` is the power of n
with which the attention of a 12-layer sparse stack grows from 16² to 64². ``dense_in_place`` is dense attention on the
machinery of the block-wise forms: one block that is the whole image.
"""
import argparse
import math
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

WIDTH, HEADS, TEXT = 1024, 16, 64
SIDES = {256: 16, 1024: 32, 4096: 64}
SPARSE = ("row", "column", "conv")
FORMS = ("dense", "dense_in_place", *SPARSE)
MEASURED = 1024
LAYERS = 12
MARKS = {"target": "", "source": "_looked_at"}
"""Role of the image → what the names of its figures have in them."""


def main() -> None:
    """Measure the memory of all forms, time them in turns and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw time against n there (needs matplotlib)")
    options = parser.parse_args()
    contestants = {role: [harness.Contestant(form, setup, options, form, role, pause=harness.SHORT_PAUSE)
                          for form in FORMS] for role in MARKS}
    everyone = [each for of_role in contestants.values() for each in of_role]
    for contestant in everyone:
        contestant.wait()
    figures = measure_memory(contestants) | measure_times(contestants, options)
    for contestant in everyone:
        contestant.close()
    harness.report(options, figures, width=WIDTH, heads=HEADS, text=TEXT)
    if options.plot:
        plot(figures, options.plot)


def measure_memory(contestants: dict[str, list[harness.Contestant]]) -> dict[str, float]:
    """Megabytes of every form in both roles, and the ratios to dense; in processes that have done nothing before."""
    figures: dict[str, float] = {}
    for role, mark in MARKS.items():
        for contestant in contestants[role]:
            form = contestant.name
            peak = figures[f"{form}{mark}_megabytes"] = contestant.ask("memory")
            if form != "dense":
                figures[f"{form}{mark}_memory_ratio"] = peak / figures[f"dense{mark}_megabytes"]
    return figures


def measure_times(contestants: dict[str, list[harness.Contestant]], options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a step of every form and size, the ratios to dense, and how the sparse stack's time grows."""
    figures: dict[str, float] = {}
    for role, mark in MARKS.items():
        for n in SIDES:
            if role == "source" and n != MEASURED:
                continue
            entrants = [each for each in contestants[role] if n < 4096 or each.name in SPARSE]
            medians = harness.alternate(entrants, str(n), *((2, 3) if options.quick else (5, 6)))
            figures |= {f"{form}{mark}_{n}_ms": 1000 * seconds for form, seconds in medians.items()}
            if n == MEASURED:
                figures |= {f"{form}{mark}_time_ratio": medians[form] / medians["dense"] for form in FORMS[1:]}
    figures["scaling_exponent"] = math.log(stack_time(figures, 4096) / stack_time(figures, 256), 16)
    return figures


def stack_time(figures: dict[str, float], n: int) -> float:
    """Milliseconds of all attention layers of a sparse stack."""
    from vilg.nn.attention.patterns import layer_patterns

    return sum(figures[f"{pattern.name}_{n}_ms"] for pattern in layer_patterns(LAYERS))


def setup(threads: int, seed: int, form: str, role: str) -> dict[str, harness.Case]:
    """A case for every size, and one for memory."""
    paddle = harness.prepare_ours(threads, seed)

    def megabytes() -> float:
        """Growth of the peak memory during one step at 32², after a small step."""
        case(paddle, form, role, 4, seed)()()
        return harness.peak_growth(case(paddle, form, role, SIDES[MEASURED], seed)())

    return {"memory": megabytes, **{str(n): case(paddle, form, role, side, seed) for n, side in SIDES.items()}}


def case(paddle, form: str, role: str, side: int, seed: int) -> Callable:
    """One training step of a layer: a forward and a backward of packed queries, keys and values."""
    from vilg.nn.attention.dense import StreamContext, dense_attention
    from vilg.nn.attention.patterns import PATTERNS, SOURCE, TARGET, Dense, Layout
    from vilg.nn.attention.sparse import stream_attention

    layout = Layout(TEXT, side, side)
    length = paddle.full([1], TEXT, "int64")
    roles = {each.name: each for each in (TARGET, SOURCE)}
    context = StreamContext(layout, roles[role], length, paddle.full([1], TEXT // 4, "int64"))
    pattern = Dense() if form.startswith("dense") else PATTERNS[form]()

    def prepare() -> Callable[[], None]:
        numbers = np.random.default_rng(seed).standard_normal((1, layout.length, 3, HEADS, WIDTH // HEADS), "float32")
        qkv = paddle.to_tensor(numbers, stop_gradient=False)
        above = paddle.ones([1, layout.length, HEADS, WIDTH // HEADS])

        def step() -> None:
            qkv.clear_gradient(False)  # adding to the last step's is no part of attention
            if form == "dense":
                out = dense_attention(*paddle.unbind(qkv, axis=2), context, pattern)
            else:
                out = stream_attention(qkv, [context], pattern)
            out.backward(above)

        return step

    return prepare


def plot(figures: dict[str, float], path: Path) -> None:
    """Time against n, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for form in FORMS:
        points = [(n, figures[f"{form}_{n}_ms"]) for n in SIDES if f"{form}_{n}_ms" in figures]
        axes.loglog(*zip(*points), marker="o", label=form.replace("_", " "))
    axes.set(xlabel="image tokens n", ylabel="ms, forward and backward")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    from vilg import cli

    cli.run(main)
