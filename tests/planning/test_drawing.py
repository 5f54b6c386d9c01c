"""What drawing takes, by shape, against what a model really reads and keeps."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg.errors import ConfigError
from vilg.generation.decoding.decoder import image_decoder
from vilg.generation.decoding.source import prefill_text
from vilg.machine import bandwidth, memory
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn.layers import Linear
from vilg.planning.drawing import cache_bytes, plan_drawing, weight_bytes
from vilg.planning.report import drawing_table

ROOT = Path(__file__).resolve().parents[2]
SHAPE = BidirectionalConfig(layers=4, width=16, heads=2, vocab_size=30, codebook_size=20, text_length=6, rows=4,
                            columns=8)
LARGE = BidirectionalConfig(layers=48, width=4096, heads=32, vocab_size=40_000, codebook_size=8192, text_length=64,
                            rows=32, columns=32)


def test_a_step_reads_all_maps_but_the_head_of_words():
    model = BidirectionalTransformer(SHAPE)
    maps = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, Linear)}
    del maps["text_head"]
    read = sum(layer.weight.size for layer in maps.values())
    assert [weight_bytes(SHAPE, math) for math in ("fp32", "bf16", "int8")] == [4 * read, 2 * read, read]


def test_caches_are_those_of_a_whole_picture():
    model = BidirectionalTransformer(SHAPE)
    model.eval()
    with paddle.no_grad():
        source = prefill_text(model, paddle.ones([1, 6], "int64"), paddle.to_tensor([6]))
        decoder = image_decoder(model, source)
        for position in range(32):
            decoder.step(position, np.zeros([1, 16], "float32"))
    kept = decoder.attention.maths.nbytes() + source.nbytes()
    assert cache_bytes(SHAPE, "fp32") == pytest.approx(kept, rel=0.1) and cache_bytes(SHAPE, "int8") < kept


def test_ten_billion_parameters_fit_in_int8_alone():
    plans = {plan.cpu_math: plan for plan in plan_drawing(LARGE, 1, bandwidth=30e9, free=16e9)}
    assert plans["int8"].fits and not plans["bf16"].fits and not plans["fp32"].fits
    assert 10e9 < plans["int8"].memory_bytes < 13e9
    assert plans["int8"].step_seconds == pytest.approx(plans["int8"].step_bytes / 30e9 / 0.75)
    assert plans["bf16"].step_seconds > 1.9 * plans["int8"].step_seconds
    of_8 = {plan.cpu_math: plan for plan in plan_drawing(LARGE, 8, bandwidth=30e9, free=16e9)}["int8"]
    assert of_8.image_seconds < plans["int8"].image_seconds / 5 and of_8.memory_bytes > plans["int8"].memory_bytes
    assert "does not fit" in drawing_table(list(plans.values()))


def test_a_batch_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1 image, not 0"):
        plan_drawing(SHAPE, 0, bandwidth=1e9, free=1e9)


def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr(bandwidth, "SIZE", 2**22)
    assert 1e8 < bandwidth.read_bandwidth(1) < 1e13 and 1e6 < memory.free() < 1e14


def run(*arguments):
    return subprocess.run([sys.executable, "tools/plan.py", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_tool_plans_drawing_of_configs_and_models(tmp_path):
    done = run("configs/vilg/10b.yaml", "--draw", "--json", str(tmp_path / "draw.json"))
    assert done.returncode == 0 and "int8" in done.stdout, done.stderr
    found = json.loads((tmp_path / "draw.json").read_text())
    assert found["draw_bf16_step_gb"] / found["draw_int8_step_gb"] == pytest.approx(2, rel=0.01)
    assert run("ernie_vilg_tiny", "--draw").returncode == 0


@pytest.mark.parametrize("arguments, sentence", [
    (("configs/vilg/10b.yaml", "--draw", "--device-memory", "80"), "--draw is about this machine"),
    (("configs/vilg/10b.yaml", "--devices", "8"), "planned with --device-memory"),
    (("configs/vilg/10b.yaml", "--draw", "--batch", "0"), "at least 1 image, not 0"),
    (("ernie_vil_tiny", "--draw"), "ernie_vil_tiny"),
    (("ernie_vilg_tiny", "--draw", "--set", "task.model.width=8"), "leave it out")])
def test_options_that_do_not_go_together_are_refused(arguments, sentence):
    done = run(*arguments)
    assert done.returncode == 2 and sentence in done.stderr.splitlines()[-1], done.stderr


def test_the_large_benchmark_draws_at_any_size(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("draw_10b", ROOT / "benchmarks" / "draw_10b.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for name, value in {"WIDTH": 64, "HEADS": 4, "VOCABULARY": 50, "CODEBOOK": 40, "GRID": 8}.items():
        monkeypatch.setattr(benchmark, name, value)
    model = benchmark.build(paddle, 2, 0)
    assert all(layer.weight is None for layer in model.sublayers() if isinstance(layer, Linear))
    with paddle.no_grad():
        hidden = model.text_to_image_hidden(paddle.ones([1, 64], "int64"), paddle.to_tensor([64]),
                                            paddle.zeros([1, 64], "int64"))
    assert np.isfinite(hidden.numpy()).all()
