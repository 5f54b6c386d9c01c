"""Steps of a 300 M model in bf16 and in int8 side by side, for :mod:`decode`.

24 layers of width 1024, 64 text tokens, a 32×32 grid, 8192 image tokens, the paper's patterns, random weights: a step
reads each weight once, so its time is that of reading them.
"""
from argparse import Namespace
from collections.abc import Callable

import harness
import numpy as np

LAYERS, WIDTH, HEADS, TEXT, GRID, CODEBOOK = 24, 1024, 16, 64, 32, 8192
BATCHES = (1, 8)
START, STEPS, ROUNDS = GRID * GRID // 2, 8, 5
QUICK_STEPS, QUICK_ROUNDS = 3, 3
MATHS = ("bf16", "int8")


def figures(options: Namespace) -> dict[str, float]:
    """``int8_over_bf16_time_1`` and ``_8``, and the tokens a second that they are ratios of; empty without VNNI."""
    contestants = [harness.Contestant(f"large_{math}", large, options, math, options.quick, pause=harness.SHORT_PAUSE)
                   for math in MATHS]
    for contestant in contestants:
        contestant.wait()
    found: dict[str, float] = {}
    if not contestants[-1].ask("missing"):
        for batch in BATCHES:
            harness.ask_all(contestants, f"begin {batch}")
            rounds = QUICK_ROUNDS if options.quick else ROUNDS
            seconds = harness.alternate(contestants, "steps", rounds, repetitions=1)
            steps = QUICK_STEPS if options.quick else STEPS
            found |= {f"{name}_tokens_per_s_{batch}": batch * steps / each for name, each in seconds.items()}
            found[f"int8_over_bf16_time_{batch}"] = seconds["large_int8"] / seconds["large_bf16"]
    for contestant in contestants:
        contestant.close()
    return found


def large(threads: int, seed: int, math: str, quick: bool) -> dict[str, harness.Case]:
    """The cases of one arithmetic, through the functions that the library draws with."""
    paddle = harness.prepare_ours(threads, seed, "bf16")
    from vilg import runtime
    from vilg.generation.decoding.decoder import image_decoder
    from vilg.generation.decoding.source import prefill_text
    from vilg.kernels.onednn import int8
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

    runtime.set_cpu_math(math)
    paddle.set_grad_enabled(False)
    model = BidirectionalTransformer(BidirectionalConfig(
        layers=LAYERS, width=WIDTH, heads=HEADS, vocab_size=100, codebook_size=CODEBOOK, text_length=TEXT, rows=GRID,
        columns=GRID))
    model.eval()
    if math == "int8" and not int8.missing():
        model.round_to_int8()
    current: list[Callable[[int], None]] = []

    def begin(batch: int) -> None:
        current.clear()  # one laid-out copy of the weights at a time
        source = prefill_text(model, paddle.ones([batch, TEXT], "int64"), paddle.full([batch], TEXT, "int64"))
        decoder = image_decoder(model, source)

        def step(position: int) -> None:
            decoder.step(position, decoder.embed(np.zeros([batch], "int64"), np.full([batch], position)))
            decoder.logits()

        step(0)  # makes what is made once
        current.append(step)

    def steps() -> None:
        for position in range(START, START + (QUICK_STEPS if quick else STEPS)):
            current[0](position)

    return {"steps": lambda: steps, "missing": int8.missing,
            **{f"begin {batch}": lambda batch=batch: begin(batch) for batch in BATCHES}}
