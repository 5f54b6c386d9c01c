"""Both directions in one model against each alone: scenes accuracy after equal steps for each direction.

    python benchmarks/directions.py                 about 40 minutes of one core; goes on where it was stopped
    python benchmarks/directions.py --quick         30 steps a run: shows that it runs, says nothing about models

Trains ``--config`` three times with ``tools/train.py`` (``task.directions`` both, text_to_image, image_to_text), then
judges what each was trained for on ``--count`` held-out scenes a split, and prints a table.

Keys of --json: <directions>_<figure> for the figures t2i_single, i2t and vqa, each again with _unseen.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

ROOT = Path(__file__).resolve().parents[1]
TRAINED = {"both": ("t2i_single", "i2t", "vqa"), "text_to_image": ("t2i_single",), "image_to_text": ("i2t", "vqa")}


def main() -> None:
    """Train what is not yet trained, judge, print, write."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/vilg/directions.yaml", help="what is trained")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/directions", help="where the three runs are kept")
    parser.add_argument("--count", type=int, default=500, help="scenes a split (%(default)s; 8 with --quick)")
    options = parser.parse_args()
    if options.quick:
        options.output, options.count = Path(tempfile.mkdtemp()), 8
    figures = {}
    for directions, names in TRAINED.items():
        train(options, directions)
        every = judge(options, directions)
        figures |= {f"{directions}_{name}{suffix}": every[f"{name}{suffix}"] for name in names
                    for suffix in ("", "_unseen")}
    print("\n".join(table(figures)))
    harness.report(options, figures, config=str(options.config), count=options.count)


def train(options: argparse.Namespace, directions: str) -> None:
    """One training, in a process of its own; what it already holds is not done again."""
    settings = [f"task.directions={directions}", f"seed={options.seed + 1}", f"output={options.output / directions}"]
    if options.quick:
        settings += ["train.steps=30", "train.checkpoint_every=30", "optim.warmup_steps=10"]
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(options.config), "--resume", "auto"]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True, cwd=ROOT)


def judge(options: argparse.Namespace, directions: str) -> dict[str, float]:
    """All figures of a trained model; those of a direction it was not trained in mean nothing."""
    from vilg.app import pipeline
    from vilg.evaluation.scenes import scenes_figures

    model = pipeline.load(str(options.output / directions / "model"))
    return dict(scenes_figures(model, options.count, options.seed, best_of=1))


def table(figures: dict[str, float]) -> list[str]:
    """The figures as lines of Markdown: a row a figure, a column a training."""
    names = [name + suffix for suffix in ("", "_unseen") for name in TRAINED["both"]]
    lines = ["| | both | text→image alone | image→text alone |", "|---|---|---|---|"]
    for name in names:
        cells = [figures.get(f"{directions}_{name}") for directions in TRAINED]
        lines.append(f"| {name} | " + " | ".join("" if cell is None else f"{cell:.1%}" for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    main()
