"""Steps of a 300 M model in bf16 and in int8 side by side, and of torch's dynamic int8, for :mod:`decode`.

24 layers of width 1024, 64 text tokens, a 32×32 grid, 8192 image tokens, random weights; ours with the paper's
patterns, torch's dense. A step reads each weight once, so its time is that of reading them: how long that takes at
least is measured beside it (:mod:`vilg.machine.bandwidth`).
"""
from argparse import Namespace
from collections.abc import Callable

import harness
import numpy as np
import torch_decode

LAYERS, WIDTH, HEADS, TEXT, GRID, CODEBOOK = 24, 1024, 16, 64, 32, 8192
WEIGHTS = LAYERS * 12 * WIDTH * WIDTH + WIDTH * CODEBOOK
"""That a step reads: the maps of all blocks, and the head."""
BATCHES = (1, 8)
START, STEPS, ROUNDS = GRID * GRID // 2, 8, 5
QUICK_STEPS, QUICK_ROUNDS = 3, 3
MATHS = ("bf16", "int8")


def figures(options: Namespace, with_torch: bool) -> dict[str, float]:
    """The ratios that :mod:`decode` describes, and the tokens a second that they are ratios of; empty without VNNI."""
    contestants = [harness.Contestant(f"large_{math}", large, options, math, options.quick, pause=harness.SHORT_PAUSE)
                   for math in MATHS]
    if with_torch:
        contestants.append(harness.Contestant("large_torch_int8", large_torch, options, options.quick,
                                              pause=harness.SHORT_PAUSE))
    for contestant in contestants:
        contestant.wait()
    found: dict[str, float] = {}
    if not contestants[1].ask("missing"):
        bandwidth = contestants[1].ask("bandwidth")
        found["bandwidth_gb_per_s"] = bandwidth / 1e9
        for batch in BATCHES:
            harness.ask_all(contestants, f"begin {batch}")
            rounds = QUICK_ROUNDS if options.quick else ROUNDS
            seconds = harness.alternate(contestants, "steps", rounds, repetitions=1)
            found |= summary(batch, seconds, QUICK_STEPS if options.quick else STEPS, bandwidth)
        if with_torch:
            found["int8_over_torch_int8"] = found["int8_over_torch_int8_8"]
    for contestant in contestants:
        contestant.close()
    return found


def summary(batch: int, seconds: dict[str, float], steps: int, bandwidth: float) -> dict[str, float]:
    """The figures of a batch from the seconds that each took for ``steps`` steps."""
    found = {f"{name}_tokens_per_s_{batch}": batch * steps / each for name, each in seconds.items()}
    found[f"int8_over_bf16_time_{batch}"] = seconds["large_int8"] / seconds["large_bf16"]
    found[f"int8_bytes_over_bandwidth_{batch}"] = WEIGHTS / bandwidth / (seconds["large_int8"] / steps)
    if "large_torch_int8" in seconds:
        found[f"int8_over_torch_int8_{batch}"] = seconds["large_torch_int8"] / seconds["large_int8"]
    return found


def large(threads: int, seed: int, math: str, quick: bool) -> dict[str, harness.Case]:
    """The cases of one arithmetic, through the functions that the library draws with."""
    paddle = harness.prepare_ours(threads, seed, "bf16")
    from vilg import runtime
    from vilg.generation.decoding.decoder import image_decoder
    from vilg.generation.decoding.source import prefill_text
    from vilg.kernels.onednn import int8
    from vilg.machine.bandwidth import read_bandwidth
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

    runtime.set_cpu_math(math)
    paddle.set_grad_enabled(False)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=LAYERS, width=WIDTH, heads=HEADS, vocab_size=100, codebook_size=CODEBOOK, text_length=TEXT, rows=GRID,
        columns=GRID))
    model.eval()
    if math == "int8" and not int8.missing():
        model.round_to_int8()

    def begin(batch: int) -> Callable[[int], None]:
        source = prefill_text(model, paddle.ones([batch, TEXT], "int64"), paddle.full([batch], TEXT, "int64"))
        decoder = image_decoder(model, source)

        def step(position: int) -> None:
            decoder.step(position, decoder.embed(np.zeros([batch], "int64"), np.full([batch], position)))
            decoder.logits()

        return step

    return cases(begin, quick) | {"missing": int8.missing, "bandwidth": read_bandwidth}


def large_torch(threads: int, seed: int, quick: bool) -> dict[str, harness.Case]:
    """The same shape in torch, its linear maps quantized dynamically."""
    torch = harness.prepare_torch(threads, seed)
    shape = torch_decode.Shape(LAYERS, WIDTH, HEADS, TEXT, CODEBOOK, GRID)
    begin = torch_decode.stack(torch, shape, "int8", None)
    return cases(lambda batch: begin(batch, GRID), quick)


def cases(begin: Callable[[int], Callable[[int], None]], quick: bool) -> dict[str, harness.Case]:
    """Beginning a batch, and the steps in the middle of a picture that are timed."""
    current: list[Callable[[int], None]] = []

    def begun(batch: int) -> None:
        current.clear()  # one laid-out copy of the weights, and the caches of one batch, at a time
        step = begin(batch)
        step(0)  # makes what is made once
        current.append(step)

    def steps() -> None:
        for position in range(START, START + (QUICK_STEPS if quick else STEPS)):
            current[0](position)

    return {"steps": lambda: steps, **{f"begin {batch}": lambda batch=batch: begun(batch) for batch in BATCHES}}
