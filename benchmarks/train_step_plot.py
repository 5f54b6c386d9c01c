"""Draws the figures of ``benchmarks/train_step.py``: seconds of a step by contestant, a group of bars a file.

    python benchmarks/train_step.py --json 12x512.json
    python benchmarks/train_step_plot.py 12x512.json --output docs/images/train_step.png

Needs matplotlib. Contestants that a file has no figure of are left out.
"""
import argparse
import json
from pathlib import Path

CONTESTANTS = {"sparse": "ours, sparse", "dense": "ours, dense", "torch": "torch, sdpa",
               "sparse_bf16": "ours, sparse, bf16", "torch_bf16": "torch, bf16",
               "stock_sparse": "stock Paddle, sparse", "stock": "stock Paddle, dense"}


def main() -> None:
    """Read the files and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what train_step.py --json wrote")
    parser.add_argument("--output", required=True, type=Path, help="the picture")
    options = parser.parse_args()
    draw([json.loads(path.read_text(encoding="utf-8")) for path in options.files], options.output)


def draw(runs: list[dict], path: Path) -> None:
    """Bars of every run, one axes each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(1, len(runs), figsize=(5.5 * len(runs), 3.2), squeeze=False)
    for axes, run in zip(rows[0], runs):
        shown = [name for name in CONTESTANTS if f"{name}_seconds" in run]
        seconds = [run[f"{name}_seconds"] for name in shown]
        bars = axes.barh([CONTESTANTS[name] for name in shown], seconds,
                         color=["C0" if "ours" in CONTESTANTS[name] else "C7" for name in shown])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.invert_yaxis()
        axes.set(xlabel="seconds a step", xlim=(0, 1.15 * max(seconds)),
                 title=f"{run['config_size']}, batch {run['config_batch']}, {run['config_threads']} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    from vilg import cli

    cli.run(main)
