"""Loss curves of one config under several settings, at equal steps and on the same batches, over several seeds.

    python benchmarks/loss_curves.py --config configs/vilg/grid16.yaml --seeds 3 \\
        --arm sparse task.model.sparse=true --arm dense task.model.sparse=false --plot curves.png
    python benchmarks/loss_curves.py --config configs/vilg/tiny.yaml --steps 400 --seeds 1 \\
        --arm fp32 runtime.cpu_math=fp32 --arm bf16 runtime.cpu_math=bf16

Each training is a run of ``tools/train.py`` under ``--output`` and goes on where it was stopped. The table compares the
mean of each loss over the last tenth of the steps: mean ± standard deviation over seeds.

Keys of --json: <arm>_<loss>_mean and <arm>_<loss>_std for every loss of the run.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
Curves = dict[str, list[dict[str, np.ndarray]]]
"""Per arm and seed: name of a figure → its values [logged steps]; "step" is one of them."""


def main() -> None:
    """Train what is not yet trained, print the table, write JSON and picture."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="what is trained")
    parser.add_argument("--arm", action="append", nargs="+", required=True, metavar=("NAME", "KEY=VALUE"),
                        help="a name and the settings that make this arm; give it twice or more")
    parser.add_argument("--seeds", type=int, default=3, help="runs an arm (%(default)s)")
    parser.add_argument("--steps", type=int, help="steps a run (the config's)")
    parser.add_argument("--output", type=Path, help="where the runs are kept (runs/curves_<name of the config>)")
    parser.add_argument("--plot", type=Path, help="write a picture of the curves there")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = options.steps or 20, 1
        options.output = options.output or Path(tempfile.mkdtemp())
    output = options.output or ROOT / "runs" / f"curves_{options.config.stem}"
    # Seeds outside, arms inside: when time runs out, whole seeds are finished.
    curves: Curves = {name: [] for name, *_ in options.arm}
    for seed in range(options.seeds):
        for name, *settings in options.arm:
            curves[name].append(train(options, settings, seed, output / f"{name}_{seed}"))
    figures = last_tenth(curves)
    print("\n".join(table(figures, list(curves))))
    if options.plot:
        plot(curves, options.plot)
    harness.report(options, figures, config=str(options.config), arms=options.arm, seeds=options.seeds)


def train(options: argparse.Namespace, settings: list[str], seed: int, output: Path) -> dict[str, np.ndarray]:
    """One training in a process of its own; returns its logged figures [logged steps]."""
    settings = [*settings, f"seed={options.seed + seed}", f"output={output}", "train.preview_every=0"]
    if options.steps:
        settings.append(f"train.steps={options.steps}")
    if options.quick:
        settings += ["train.log_every=5", "optim.warmup_steps=5"]
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(options.config), "--resume", "auto"]
    subprocess.run(command + [part for setting in settings for part in ("--set", setting)], check=True, cwd=ROOT)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = [name for name in lines[0] if name == "step" or name.startswith("loss")]
    return {name: np.array([line[name] for line in lines]) for name in names}


def last_tenth(curves: Curves) -> dict[str, float]:
    """The figures of the table: a loss over the last tenth of the steps, its mean and deviation over seeds."""
    figures = {}
    for arm, runs in curves.items():
        for loss in (name for name in runs[0] if name != "step"):
            ends = [run[loss][run["step"] > 0.9 * run["step"][-1]].mean() for run in runs]
            figures[f"{arm}_{loss}_mean"] = float(np.mean(ends))
            figures[f"{arm}_{loss}_std"] = float(np.std(ends, ddof=1)) if len(ends) > 1 else 0.0
    return figures


def table(figures: dict[str, float], arms: list[str]) -> list[str]:
    """Lines of Markdown: a row a loss, a column an arm."""
    prefix = f"{arms[0]}_"
    losses = [key[len(prefix):-len("_mean")] for key in figures if key.startswith(prefix) and key.endswith("_mean")]
    lines = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for loss in losses:
        cells = [f"{figures[f'{arm}_{loss}_mean']:.4f} ± {figures[f'{arm}_{loss}_std']:.4f}" for arm in arms]
        lines.append(f"| {loss} | " + " | ".join(cells) + " |")
    return lines


def plot(curves: Curves, path: Path) -> None:
    """One panel a loss, one colour an arm, one line a seed."""
    from matplotlib import pyplot

    losses = [name for name in next(iter(curves.values()))[0] if name not in ("step", "loss")] or ["loss"]
    figure, panels = pyplot.subplots(1, len(losses), figsize=(5 * len(losses), 3.6), squeeze=False)
    for panel, loss in zip(panels[0], losses):
        for colour, (arm, runs) in enumerate(curves.items()):
            for number, run in enumerate(runs):
                panel.plot(run["step"], run[loss], color=f"C{colour}", linewidth=0.9, alpha=0.8,
                           label=arm if number == 0 else None)
        panel.set(xlabel="step", title=loss, yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
