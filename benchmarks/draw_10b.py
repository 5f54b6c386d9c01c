"""Ten billion parameters in int8 on one machine: what memory they take and how fast they draw.

    python benchmarks/draw_10b.py --json draw_10b.json
    python benchmarks/draw_10b.py --quick                # 8 layers in place of 48

48 layers of width 4096, 40 000 words, 64 text tokens, a 32×32 grid of 8192 codes; random int8 weights, which are made
and laid out one matrix at a time, as a folder in int8 is read. A few steps in the middle of a picture are drawn, at
batch 1 and 8, by the functions that the library draws with.

parameters, weights_gb: of the model, and bytes of what a step reads of it.
peak_memory_gb: the most that the process held, Paddle and caches of those steps included. cache_gb_8: what the caches
    of eight whole pictures would take at the end, beside that.
tokens_per_s_1, tokens_per_s_8: tokens of all pictures a second; minutes_an_image_1 of one at that pace.
share_of_bandwidth_1, ..._8: bytes of weights a second over the read bandwidth measured before (bandwidth_gb_per_s).
build_seconds: for all weights.
"""
import argparse
import statistics
import time
from pathlib import Path

import harness
import numpy as np

from vilg.machine import memory

LAYERS, QUICK_LAYERS, WIDTH, HEADS, VOCABULARY, CODEBOOK, TEXT, GRID = 48, 8, 4096, 32, 40_000, 8192, 64, 32
TOKENS, START, STEPS, GB = GRID * GRID, GRID * GRID // 2, 8, 1e9
NEEDED_GB = 13.0
"""Of free memory, for all layers."""


def main() -> None:
    """Make the model, draw, report."""
    options = harness.arguments(__doc__).parse_args()
    layers = QUICK_LAYERS if options.quick else LAYERS
    free, needed = memory.free() / GB, NEEDED_GB * (layers + 4) / (LAYERS + 4)
    if free < needed:
        raise SystemExit(f"draw_10b: {layers} layers take about {needed:.0f} GB, and {free:.1f} GB are free; close "
                         "something, or use --quick")
    harness.report(options, figures(options, layers), layers=layers, width=WIDTH)


def figures(options: argparse.Namespace, layers: int) -> dict[str, float]:
    """All figures, in this process."""
    paddle = harness.prepare_ours(options.threads or harness.physical_cores(), options.seed)
    from vilg import runtime
    from vilg.generation.decoding.decoder import image_decoder
    from vilg.generation.decoding.source import prefill_text
    from vilg.kernels.onednn import int8
    from vilg.machine.bandwidth import read_bandwidth
    from vilg.planning.drawing import cache_bytes, weight_bytes
    from vilg.planning.memory import parameter_count

    if int8.missing():
        raise SystemExit(f"draw_10b: {int8.missing()}")
    runtime.set_cpu_math("int8")
    paddle.set_grad_enabled(False)
    bandwidth, start = read_bandwidth(), time.perf_counter()
    model = build(paddle, layers, options.seed)
    config, built = model.config, time.perf_counter() - start
    read = weight_bytes(config, "int8")
    found = {"parameters": parameter_count(config), "weights_gb": read / GB, "build_seconds": built,
             "bandwidth_gb_per_s": bandwidth / GB, "cache_gb_8": 8 * cache_bytes(config, "int8") / GB}
    for batch in (1, 8):
        source = prefill_text(model, paddle.ones([batch, TEXT], "int64"), paddle.full([batch], TEXT, "int64"))
        decoder, seconds = image_decoder(model, source), []
        for position in (0, *range(START, START + STEPS)):  # the first makes what is made once
            begin = time.perf_counter()
            decoder.step(position, decoder.embed(np.zeros([batch], "int64"), np.full([batch], position)))
            decoder.logits()
            seconds.append(time.perf_counter() - begin)
        step = statistics.median(seconds[1:])
        found |= {f"tokens_per_s_{batch}": batch / step, f"share_of_bandwidth_{batch}": read / bandwidth / step}
        del decoder, source
    found["minutes_an_image_1"] = TOKENS / found["tokens_per_s_1"] / 60
    found["peak_memory_gb"] = peak_bytes() / GB
    return found


def build(paddle, layers: int, seed: int):
    """A model of random int8 weights that never were float."""
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.nn.layers import Linear

    with paddle.LazyGuard():
        model = BidirectionalTransformer(BidirectionalConfig(
            layers=layers, width=WIDTH, heads=HEADS, vocab_size=VOCABULARY, codebook_size=CODEBOOK, text_length=TEXT,
            rows=GRID, columns=GRID))
    model.eval()
    random = np.random.default_rng(seed)
    maps = {f"{name}.weight": layer for name, layer in model.named_sublayers() if isinstance(layer, Linear)}
    for name, parameter in model.state_dict().items():
        if name not in maps:
            parameter.initialize()
    for linear in maps.values():
        values = np.frombuffer(random.bytes(linear.inputs * linear.outputs), "int8").reshape(linear.inputs,
                                                                                             linear.outputs)
        linear.hold_int8(values, np.full([linear.outputs], 0.02 / 127, "float32"))
    return model


def peak_bytes() -> float:
    """The most memory that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main()
