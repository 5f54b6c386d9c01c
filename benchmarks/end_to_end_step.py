"""What the end-to-end path costs: its training step against the generator's own.

    python benchmarks/end_to_end_step.py --json end_to_end_step.json
    python benchmarks/end_to_end_step.py --quick
    python benchmarks/end_to_end_step.py --threads 1 --clock cpu    on a busy machine

The transformer and the dVAE of configs/end_to_end/table7.yaml (4 layers of 256, 8×8 tokens, 64×64 pixels), batch 32:
both streams, forward, backward and AdamW. The contestants have a process each and take turns.
``end_to_end_over_generator_time`` and ``_memory``: ratios; memory is the growth of the process's peak during a step
over what it holds between steps. ``frozen_over_generator_time``: with the reconstructor's network frozen, so that only
the map learns beside the generator.
"""
import argparse
from collections.abc import Callable

import harness
import numpy as np

TEXT, SIDE, CODES, VOCABULARY, PIXELS = 28, 8, 512, 2029, 64


def main() -> None:
    """Time the steps in turns, measure memory and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, help="samples a step (default 32; with --quick 4)")
    options = parser.parse_args()
    batch = options.batch or (4 if options.quick else 32)
    contestants = [harness.Contestant(name, timed, options, name, batch)
                   for name in ("generator", "end_to_end", "frozen")]
    for contestant in contestants:
        contestant.wait()
    seconds = harness.alternate(contestants, "step", *((2, 1) if options.quick else (4, 3)))
    for contestant in contestants:
        contestant.close()
    figures = {f"{name}_seconds": value for name, value in seconds.items()}
    figures |= {f"{name}_megabytes": megabytes(name, options, batch) for name in ("generator", "end_to_end")}
    for name in ("end_to_end", "frozen"):
        figures[f"{name}_over_generator_time"] = seconds[name] / seconds["generator"]
    figures["end_to_end_over_generator_memory"] = figures["end_to_end_megabytes"] / figures["generator_megabytes"]
    harness.report(options, figures, batch=batch)


def timed(threads: int, seed: int, kind: str, batch: int) -> dict[str, harness.Case]:
    """The step as a benchmark's case."""
    step = training_step(threads, seed, kind, batch)
    return {"step": lambda: step}


def megabytes(kind: str, options: argparse.Namespace, batch: int) -> float:
    """Growth of the peak during a step, in a fresh process."""
    contestant = harness.Contestant(f"{kind} memory", measured, options, kind, batch)
    try:
        return float(contestant.wait().cases[0])
    finally:
        contestant.close()


def measured(threads: int, seed: int, kind: str, batch: int) -> dict[str, None]:
    """The growth of the peak during the second step, as the name of a case."""
    step = training_step(threads, seed, kind, batch)
    step()
    return {f"{harness.peak_growth(step):.3f}": None}


def training_step(threads: int, seed: int, kind: str, batch: int) -> Callable[[], None]:
    """One optimizer step on a fixed random batch; ``kind`` is generator, end_to_end or frozen."""
    paddle = harness.prepare_ours(threads, seed)
    from vilg.losses.picture import LikelihoodConfig
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.models.end_to_end import EndToEndReconstructor, ReconstructorConfig
    from vilg.tasks.bidirectional import BidirectionalStep
    from vilg.tasks.end_to_end import EndToEndStep, EndToEndTaskConfig
    from vilg.tokenizers.dvae import DVAEConfig
    from vilg.tokenizers.image import build_image_tokenizer

    shape = BidirectionalConfig(layers=4, width=256, heads=8, vocab_size=VOCABULARY, codebook_size=CODES,
                                text_length=TEXT, rows=SIDE, columns=SIDE)
    model = BidirectionalTransformer(shape)
    config = EndToEndTaskConfig(model=shape, image_tokenizer="none", vocabulary="none", loss=LikelihoodConfig())
    if kind == "generator":
        module = BidirectionalStep(model, config)
    else:
        tokenizer = build_image_tokenizer(DVAEConfig(image_size=PIXELS, channels=32, multipliers=[1, 2, 4, 4], blocks=1,
                                                     codebook_size=CODES, decoder_channels=64))
        module = EndToEndStep(model, EndToEndReconstructor(ReconstructorConfig(), shape.width, tokenizer), config, None)
        for parameter in module.reconstructor.network.parameters():
            parameter.stop_gradient = kind == "frozen"
    parameters = [parameter for parameter in module.parameters() if not parameter.stop_gradient]
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=parameters)
    rng = np.random.default_rng(seed)
    text = paddle.to_tensor(rng.integers(0, VOCABULARY, (batch, TEXT)))
    length = paddle.full([batch], TEXT, "int64")
    inputs = {"caption": text, "caption_length": length, "text": text, "text_length": length,
              "text_prefix": paddle.zeros([batch], "int64"),
              "codes": paddle.to_tensor(rng.integers(0, CODES, (batch, SIDE * SIDE))),
              "image": paddle.to_tensor(rng.uniform(-1, 1, (batch, 3, PIXELS, PIXELS)).astype("float32"))}

    def step() -> None:
        module(inputs, 0).loss.backward()
        optimizer.step()
        optimizer.clear_grad()

    return step


if __name__ == "__main__":
    main()
