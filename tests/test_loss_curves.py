"""Loss curves: what is compared, that arms train on the same seeds, and the pictures; the plot of training steps."""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def curves(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import loss_curves

    return loss_curves


@pytest.fixture
def step_plot(monkeypatch):
    """The plot of the training-step benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import train_step_plot

    return train_step_plot


def run(ends, steps=20):
    """A run whose loss is 9 until the last tenth of its steps and ``ends`` there."""
    step = np.arange(1, steps + 1)
    return {"step": step, "loss": np.where(step > 0.9 * steps, ends, 9.0)}


def test_the_last_tenth_is_averaged_in_a_run_and_over_seeds(curves):
    figures = curves.last_tenth({"sparse": [run(1.0), run(3.0)], "dense": [run(2.0)]})
    assert figures == pytest.approx({"sparse_loss_mean": 2.0, "sparse_loss_std": 2 ** 0.5, "dense_loss_mean": 2.0,
                                     "dense_loss_std": 0.0})


def test_the_table_has_a_row_a_loss_and_a_column_an_arm(curves):
    arms = {"sparse": [run(1.0), run(3.0)], "sparse wide": [run(2.0), run(2.0)]}
    assert curves.table(curves.last_tenth(arms), list(arms)) == [
        "| | sparse | sparse wide |", "|---|---|---|", "| loss | 2.0000 ± 1.4142 | 2.0000 ± 0.0000 |"]


def test_an_arm_is_trained_with_its_settings_and_seed(curves, monkeypatch, tmp_path):
    said = []

    def train(command, check, cwd):
        assert check, "a run that fails must stop the benchmark"
        said.append(command)
        lines = [{"step": step, "loss": 1.0 / step, "loss/text": 2.0, "lr": 0.1} for step in (5, 10)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    monkeypatch.setattr(curves.subprocess, "run", train)
    options = argparse.Namespace(seed=4, steps=10, quick=False, config=Path("small.yaml"))
    figures = curves.train(options, ["task.model.sparse=true"], 2, tmp_path)
    settings = [value for flag, value in zip(said[0], said[0][1:]) if flag == "--set"]
    assert {"task.model.sparse=true", "seed=6", "train.steps=10", f"output={tmp_path}"} <= set(settings)
    assert sorted(figures) == ["loss", "loss/text", "step"], "rates are not losses"
    assert figures["loss"].tolist() == [0.2, 0.1]


def test_the_picture_has_a_panel_a_loss_and_a_line_a_run(curves, monkeypatch, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    drawn = []
    monkeypatch.setattr(pyplot.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    both = [{"step": np.arange(1, 4), "loss": np.ones(3), "loss/text": np.full(3, 2.0), "loss/image": np.ones(3)}] * 2
    curves.plot({"sparse": both, "dense": both[:1]}, tmp_path / "new" / "curves.png")
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == ["loss/text", "loss/image"], "their sum is left out"
    assert [len(panel.lines) for panel in panels] == [3, 3]
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["sparse", "dense"]


def test_arms_of_a_real_training_see_the_same_start_and_batches(tmp_path):
    tokenizer = {"kind": "vqvae", "image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1,
                 "decoder_blocks": 1, "attention_resolutions": [], "norm_groups": 4, "z_channels": 8, "code_dim": 8,
                 "quantizer": {"codebook_size": 16}}
    config = {"name": "small", "data": {"sources": [{"kind": "scenes", "count": 20, "size": 16}]},
              "task": {"kind": "image_tokenizer", "tokenizer": tokenizer, "loss": {"kind": "pixels", "l2": 1.0,
                                                                                  "perceptual": "none"}},
              "train": {"batch_size": 4, "log_every": 1}, "optim": {"lr": 1e-3}}
    path, figures = tmp_path / "small.yaml", tmp_path / "curves.json"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run([sys.executable, str(FOLDER / "loss_curves.py"), "--config", str(path), "--steps", "3", "--seeds",
                    "1", "--output", str(tmp_path / "runs"), "--json", str(figures), "--arm", "slow", "optim.lr=1e-3",
                    "--arm", "fast", "optim.lr=1e-1"], check=True)
    slow, fast = ([json.loads(line)["loss"] for line in (tmp_path / "runs" / f"{arm}_0" / "metrics.jsonl").open()]
                  for arm in ("slow", "fast"))
    assert slow[0] == fast[0] and slow[2] != fast[2]
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["slow_loss_mean"] == pytest.approx(slow[2]) and told["fast_loss_mean"] == pytest.approx(fast[2])
    assert told["config_seeds"] == 1 and told["config_arms"][0] == ["slow", "optim.lr=1e-3"]


def test_bars_of_a_training_step_are_those_measured_in_order(step_plot, monkeypatch, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    drawn = []
    monkeypatch.setattr(pyplot.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    shape = {"config_size": "12x512", "config_batch": 2, "config_threads": 2}
    first = {"torch_seconds": 2.0, "sparse_seconds": 0.5, "dense_seconds": 1.0, "unknown_seconds": 9.0, **shape}
    step_plot.draw([first, {"sparse_seconds": 0.25, **shape, "config_batch": 1}], tmp_path / "step.png")
    left, right = drawn[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["ours, sparse", "ours, dense", "torch, sdpa"]
    assert [bar.get_width() for bar in left.patches] == [0.5, 1.0, 2.0]
    assert left.get_title() == "12x512, batch 2, 2 threads" and right.get_title() == "12x512, batch 1, 2 threads"


def test_the_plot_of_training_steps_is_written_by_its_command(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"sparse_seconds": 0.5, "config_size": "3x512", "config_batch": 1, "config_threads": 1}
    (tmp_path / "step.json").write_text(json.dumps(figures), encoding="utf-8")
    subprocess.run([sys.executable, str(FOLDER / "train_step_plot.py"), str(tmp_path / "step.json"), "--output",
                    str(tmp_path / "step.png")], check=True)
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
