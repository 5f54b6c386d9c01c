"""What the end-to-end path costs: its training step against the generator's own.

    python benchmarks/end_to_end_step.py --json end_to_end_step.json
    python benchmarks/end_to_end_step.py --quick
    python benchmarks/end_to_end_step.py --threads 1 --clock cpu    on a busy machine

The run of configs/end_to_end/table7.yaml (its transformer, directions and batch) with the dVAE of
configs/image_tokenizer/dvae_small.yaml: forward, backward and AdamW on a fixed random batch. The steps take turns in
one process, whose libraries they share; ``benchmarks/train_step.py`` reports the first two of them as well.
``end_to_end_over_generator_time`` and ``_memory``: ratios; memory is the growth of the process's peak during a step
over what it holds between steps. ``frozen_over_generator_time``: with the reconstructor's network frozen, so that only
the map learns beside the generator.
"""
import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    """Time the steps in turns, measure memory and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, help="samples a step (default the config's; with --quick 4)")
    options = parser.parse_args()
    batch = options.batch or (4 if options.quick else 0)
    harness.report(options, measure(options, batch, ["generator", "end_to_end", "frozen"]), batch=batch)


def measure(options: argparse.Namespace, batch: int, names: list[str]) -> dict[str, float]:
    """Seconds and megabytes of the steps called ``names``, the first of which is the generator's, and the ratios.

    ``batch`` 0 is the config's.
    """
    contestant = harness.Contestant("steps", setup, options, names, batch).wait()
    grown = {name: float(value) for name, value in zip(names, contestant.cases[len(names):])}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(2 if options.quick else 4):
        for name in names:
            times[name] += contestant.time(name, 3)
    contestant.close()
    seconds = {name: statistics.median(values) for name, values in times.items()}
    figures = {f"{name}_step_seconds": value for name, value in seconds.items()}
    figures |= {f"{name}_step_megabytes": value for name, value in grown.items()}
    for name in names[1:]:
        figures[f"{name}_over_generator_time"] = seconds[name] / seconds["generator"]
        figures[f"{name}_over_generator_memory"] = grown[name] / grown["generator"]
    return figures


def setup(threads: int, seed: int, names: list[str], batch: int) -> dict[str, harness.Case | None]:
    """The steps as cases, and then, as names of more cases, the growth of the peak during the second run of each."""
    steps = {name: training_step(threads, seed, name, batch) for name in names}
    grown = []
    for number, step in enumerate(steps.values()):
        step()
        grown.append(f"{harness.peak_growth(step):.{3 + number}f}")  # of different lengths: no name stands twice
    return {**{name: lambda step=step: step for name, step in steps.items()}, **dict.fromkeys(grown)}


def training_step(threads: int, seed: int, kind: str, batch: int) -> Callable[[], None]:
    """One optimizer step on a fixed random batch; ``kind`` is generator, end_to_end or frozen."""
    paddle = harness.prepare_ours(threads, seed)
    from vilg.models.bidirectional import BidirectionalTransformer
    from vilg.models.end_to_end import EndToEndReconstructor
    from vilg.run.build import load_run
    from vilg.tasks.bidirectional import BidirectionalStep
    from vilg.tasks.end_to_end import EndToEndBatch, EndToEndStep
    from vilg.tokenizers.image.kinds import build_image_tokenizer

    run = load_run(CONFIGS / "end_to_end" / "table7.yaml", [])
    shape, batch = run.task.model, batch or run.train.batch_size
    tokenizer = build_image_tokenizer(load_run(CONFIGS / "image_tokenizer" / "dvae_small.yaml", []).task.tokenizer)
    model = BidirectionalTransformer(shape)
    if kind == "generator":
        module = BidirectionalStep(model, run.task)
    else:
        reconstructor = EndToEndReconstructor(run.task.reconstructor, shape.width, tokenizer)
        module = EndToEndStep(model, reconstructor, run.task, None)
        for parameter in reconstructor.behind_the_map:
            parameter.stop_gradient = kind == "frozen"
    parameters = [parameter for parameter in module.parameters() if not parameter.stop_gradient]
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=parameters)
    rng = np.random.default_rng(seed)
    text = paddle.to_tensor(rng.integers(0, shape.vocab_size, (batch, shape.text_length)))
    length = paddle.full([batch], shape.text_length, "int64")
    images = rng.uniform(-1, 1, (batch, 3, tokenizer.image_size, tokenizer.image_size)).astype("float32")
    codes = rng.integers(0, shape.codebook_size, (batch, shape.rows * shape.columns))
    inputs = EndToEndBatch(t2i_text=text, t2i_length=length, i2t_text=text, i2t_length=length,
                           i2t_prefix=paddle.zeros([batch], "int64"), image=paddle.to_tensor(images),
                           codes=paddle.to_tensor(codes))

    def step() -> None:
        module(inputs, 0).loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)  # as the trainer and torch do

    return step


if __name__ == "__main__":
    main()
