"""Drawing 1024 tokens one at a time: our sparse model, our dense one, and a torch stack, all with key–value caches.

All run in float32 and in bf16 (ours: bf16 products of float32 values; torch: everything in bf16).

    python benchmarks/decode.py --json decode.json --plot decode.png
    python benchmarks/decode.py --quick

Every contestant has 12 layers of width 512, 64 text tokens, a 32×32 grid, 8192 image tokens, and draws with top-k 256;
torch's attention is dense. They take turns at windows of steps spread over the picture; tokens/s is what a whole
picture would reach at that pace. Caches are empty at the start of a window but read at their full size, which takes the
same time. A batch is so many prompts (1, 8), or so many samples of one prompt, which share its keys and values
(8_one_prompt, as best-of-8 draws; 60). bf16 and one prompt are timed at batch 8 alone.

sparse_over_dense_tokens_per_s: tokens/s of our sparse model over those of our dense one, eight prompts, in the
    precision that inference runs in unless told otherwise (``vilg.load`` without ``cpu_math``): float32, which the JSON
    repeats as config_default_cpu_math. The same in either precision as ..._fp32 and ..._bf16, with eight samples of one
    prompt as ..._8_one_prompt_fp32 and ..._8_one_prompt_bf16; ..._1 and ..._60 are those batches in float32. With
    --quick, batch 60 is timed at position 128 of a picture of 8 rows, where dense caches are short: over a picture the
    ratio is larger; and eight prompts in the middle alone, but for this headline.
fp32_over_torch, bf16_over_torch: our sparse model over torch in float32, eight prompts; bf16_over_torch_bf16: over
    torch in bf16.
late_over_early_step_time: the last 100 tokens against tokens 100–200.
cache_memory_ratio: the caches of a whole picture, sparse over dense.
int8_over_bf16_time_1, int8_over_bf16_time_8: time of a step of a 300 M model in int8 over bf16 (int8_steps.py), and
    int8_over_torch_int8: its tokens/s over those of the torch stack with dynamic int8 quantization, eight prompts;
    int8_over_torch_int8_1 of one. int8_bytes_over_bandwidth_1, ..._8: the least time that reading its weights takes,
    over that of a step.
source_memory_60_over_1: the prefilled text of 60 samples of a prompt against one's.
"""
import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import int8_steps
import numpy as np
import torch_decode
from torch_decode import Step

LAYERS, WIDTH, HEADS, TEXT, GRID, CODEBOOK = 12, 512, 8, 64, 32, 8192
TOKENS = GRID * GRID
EARLY, LATE = 100, TOKENS - 100
TOP_K = 256


@dataclass(frozen=True)
class Batch:
    """So many rows, samples of so many prompts: who draws them, and how many steps a window has, of which there are 8,
    each timed ``rounds`` times. A step's time is linear in its position, so that ``quick_starts`` stand for all, and
    the middle one of them for contestants that the headline does not need. ``quick_grid`` are the rows of the picture
    then: what a step reads does not depend on them, the memory to be made for 60 caches does.
    """

    rows: int
    prompts: int
    contestants: tuple[str, ...]
    rounds: int
    steps: int
    quick_steps: int
    quick_starts: tuple[int, ...]
    quick_grid: int = GRID


OURS, EXACT = ("sparse", "dense", "sparse_bf16", "dense_bf16"), ("sparse", "dense", "torch")
HEADLINE = ("sparse", "dense")
BATCHES = {
    "1": Batch(1, 1, EXACT, 3, 8, 4, (TOKENS // 2,)),
    "8": Batch(8, 8, (*OURS, "torch", "torch_bf16"), 3, 16, 4, (64, TOKENS // 2, TOKENS - 64)),
    "8_one_prompt": Batch(8, 1, OURS, 3, 16, 8, (TOKENS // 2,)),
    "60": Batch(60, 1, EXACT, 1, 2, 1, (TOKENS // 8,), 8),  # 60 caches up to the middle take too long
}


def main() -> None:
    """Time all contestants and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures there (needs matplotlib)")
    options = parser.parse_args()
    contestants = [harness.Contestant(name, CONTESTANTS[name], options, options.quick, math, pause=harness.SHORT_PAUSE)
                   for name, math in MATHS.items() if available(name)]
    for contestant in contestants:
        contestant.wait()
    steps = step_times(contestants, options)
    exact = [contestant for contestant in contestants if contestant.name in HEADLINE]
    figures = memory_figures(dict(zip(HEADLINE, harness.ask_all(exact, "memory"))))
    default = exact[0].ask("default math")
    for contestant in contestants:
        contestant.close()
    figures = summary(steps, default) | figures | int8_steps.figures(options, available("torch"))
    harness.report(options, figures, layers=LAYERS, width=WIDTH, text=TEXT, tokens=TOKENS, default_cpu_math=default)
    if options.plot:
        plot(steps, figures, options.plot)


def available(name: str) -> bool:
    """Is the contestant's library installed?"""
    from importlib.util import find_spec

    return not name.startswith("torch") or find_spec("torch") is not None


def windows(name: str, quick: bool) -> dict[str, tuple[int, int]]:
    """Case name → first step and number of steps, of the windows timed for a batch."""
    batch = BATCHES[name]
    starts, steps = (batch.quick_starts, batch.quick_steps) if quick else (range(0, TOKENS, 128), batch.steps)
    cases = {f"{name}@{start}": (start, steps) for start in starts}
    if name == "8":
        longer = 16 if quick else 100
        cases |= {"8 early": (EARLY, longer), "8 late": (LATE, longer)}
    return cases


def step_times(contestants: list[harness.Contestant], options: Namespace) -> dict[str, dict[str, float]]:
    """Case → contestant → median seconds of one step."""
    times = {}
    for name, batch in BATCHES.items():
        harness.ask_all([each for each in contestants if each.name in batch.contestants], f"begin {name}")
        for case, (_, steps) in windows(name, options.quick).items():
            taking_part = [each for each in contestants if each.name in entrants(name, case, options.quick)]
            medians = harness.alternate(taking_part, case, batch.rounds, repetitions=1)
            times[case] = {name: seconds / steps for name, seconds in medians.items()}
    return times


def entrants(name: str, case: str, quick: bool) -> tuple[str, ...]:
    """Who takes part in a case of a batch."""
    batch = BATCHES[name]
    if case.endswith(("early", "late")):  # a figure of ours alone
        return ("sparse",)
    middle = batch.quick_starts[len(batch.quick_starts) // 2]
    return batch.contestants if not quick or case == f"{name}@{middle}" else HEADLINE


def summary(times: dict[str, dict[str, float]], default: str) -> dict[str, float]:
    """The figures of the report; ``default`` is the precision of the headline."""
    figures = {}
    for name, batch in BATCHES.items():
        of_batch = [step for case, step in times.items() if case.startswith(f"{name}@")]
        for each in {each: None for step in of_batch for each in step}:
            seconds = statistics.mean(step[each] for step in of_batch if each in step)
            figures[f"{each}_tokens_per_s_{name}"] = batch.rows / seconds
    for figure, (ours, theirs, name) in RATIOS.items():
        if f"{theirs}_tokens_per_s_{name}" in figures:
            figures[figure] = figures[f"{ours}_tokens_per_s_{name}"] / figures[f"{theirs}_tokens_per_s_{name}"]
    figures["sparse_over_dense_tokens_per_s"] = figures[f"sparse_over_dense_tokens_per_s_{default}"]
    figures["late_over_early_step_time"] = times["8 late"]["sparse"] / times["8 early"]["sparse"]
    return figures


def model_of(sparse_layers: bool, width: int = WIDTH, heads: int = HEADS, rows: int = GRID,
             layers: int = LAYERS):
    """Our model at the benchmark's shape."""
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

    model = BidirectionalTransformer(BidirectionalConfig(
        layers=layers, width=width, heads=heads, vocab_size=100, codebook_size=CODEBOOK, text_length=TEXT, rows=rows,
        columns=GRID, sparse=sparse_layers))
    model.eval()
    return model


def sparse(threads: int, seed: int, quick: bool, math: str) -> dict[str, harness.Case]:
    """Our model with the paper's patterns."""
    return ours(True, threads, seed, quick, math)


def dense(threads: int, seed: int, quick: bool, math: str) -> dict[str, harness.Case]:
    """Our model with dense layers."""
    return ours(False, threads, seed, quick, math)


def ours(sparse_layers: bool, threads: int, seed: int, quick: bool, math: str) -> dict[str, harness.Case]:
    """The cases of our model, through the functions that the library draws with."""
    paddle = harness.prepare_ours(threads, seed, math)
    from vilg.generation.decoding.decoder import image_decoder
    from vilg.generation.decoding.source import prefill_text
    from vilg.generation.sampling import SamplingConfig, sample_token
    from vilg.runtime import RuntimeConfig

    full, sampling = model_of(sparse_layers), SamplingConfig(top_k=TOP_K)
    paddle.set_grad_enabled(False)

    def begin(batch: int, prompts: int, grid: int) -> Step:
        model = full if grid == GRID else model_of(sparse_layers, rows=grid)
        source = prefill_text(model, paddle.ones([prompts, TEXT], "int64"), paddle.full([prompts], TEXT, "int64"))
        decoder, random = image_decoder(model, source, batch // prompts), np.random.default_rng(seed)
        token = np.zeros([batch], "int64")

        def step(position: int) -> None:
            nonlocal token
            decoder.step(position, decoder.embed(token, np.full([batch], position)))
            token = sample_token(decoder.logits(), sampling, random.random(batch))

        return step

    return {**cases_of(begin, quick), "memory": lambda: bytes_held(sparse_layers),
            "default math": lambda: RuntimeConfig().cpu_math}


def torch_stack(threads: int, seed: int, quick: bool, math: str) -> dict[str, harness.Case]:
    """A plain pre-LN torch stack with a static key–value cache, read up to the present token."""
    torch = harness.prepare_torch(threads, seed)
    shape = torch_decode.Shape(LAYERS, WIDTH, HEADS, TEXT, CODEBOOK, GRID)
    begin = torch_decode.stack(torch, shape, math, TOP_K)
    return cases_of(lambda batch, prompts, grid: begin(batch, grid), quick)


CONTESTANTS = {"sparse": sparse, "dense": dense, "torch": torch_stack, "sparse_bf16": sparse, "dense_bf16": dense,
               "torch_bf16": torch_stack}
MATHS = {name: "bf16" if name.endswith("_bf16") else "fp32" for name in CONTESTANTS}
RATIOS = {
    "sparse_over_dense_tokens_per_s_fp32": ("sparse", "dense", "8"),
    "sparse_over_dense_tokens_per_s_bf16": ("sparse_bf16", "dense_bf16", "8"),
    "sparse_over_dense_tokens_per_s_8_one_prompt_fp32": ("sparse", "dense", "8_one_prompt"),
    "sparse_over_dense_tokens_per_s_8_one_prompt_bf16": ("sparse_bf16", "dense_bf16", "8_one_prompt"),
    "sparse_over_dense_tokens_per_s_1": ("sparse", "dense", "1"),
    "sparse_over_dense_tokens_per_s_60": ("sparse", "dense", "60"),
    "sparse_over_torch_tokens_per_s_1": ("sparse", "torch", "1"),
    "sparse_over_torch_tokens_per_s_60": ("sparse", "torch", "60"),
    "fp32_over_torch": ("sparse", "torch", "8"),
    "bf16_over_torch": ("sparse_bf16", "torch", "8"),
    "bf16_over_torch_bf16": ("sparse_bf16", "torch_bf16", "8"),
}


def cases_of(begin: Callable[[int, int, int], Step], quick: bool) -> dict[str, harness.Case]:
    """All cases of a contestant; ``begin(rows, prompts, rows of the picture)`` makes new caches and gives the function
    of one step."""
    current: dict[str, Step] = {}

    def begun(name: str) -> Callable[[], None]:
        def prepare() -> None:
            current.clear()  # the caches of one batch at a time
            batch = BATCHES[name]
            current[name] = begin(batch.rows, batch.prompts, batch.quick_grid if quick else GRID)
            current[name](0)  # makes what is made once

        return prepare

    def case(name: str, start: int, steps: int) -> harness.Case:
        def run() -> None:
            for position in range(start, start + steps):
                current[name](position)

        return lambda: run

    timed = {case_name: case(name, *window) for name in BATCHES for case_name, window in windows(name, quick).items()}
    return {**timed, **{f"begin {name}": begun(name) for name in BATCHES}}


def bytes_held(sparse_layers: bool) -> tuple[int, int, int]:
    """Bytes of the caches after a whole picture, and of the prefilled text of one sample and of 60, at a small width,
    where their ratios are the same."""
    import paddle

    from vilg.generation.decoding.decoder import image_decoder
    from vilg.generation.decoding.source import prefill_text

    model = model_of(sparse_layers, width=4, heads=1)
    text = paddle.ones([1, TEXT], "int64"), paddle.to_tensor([TEXT])
    one, many = (image_decoder(model, prefill_text(model, *text), samples=samples) for samples in (1, 60))
    for position in range(TOKENS):
        one.step(position, paddle.zeros([1, 4]))
    return one.attention.maths.nbytes(), one.attention.source.nbytes(), many.attention.source.nbytes()


def memory_figures(held: dict[str, tuple[int, int, int]]) -> dict[str, float]:
    """Ratios of what :func:`bytes_held` gave for both models."""
    caches, source, source_of_60 = held["sparse"]
    return {"cache_memory_ratio": caches / held["dense"][0], "source_memory_60_over_1": source_of_60 / source}


def plot(times: dict[str, dict[str, float]], figures: dict[str, float], path: Path) -> None:
    """Time of a step by position for eight prompts, and tokens/s by batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    windows_of_8 = {int(case[2:]): step for case, step in times.items() if case.startswith("8@")}
    names = list({name: None for step in windows_of_8.values() for name in step})
    for number, name in enumerate(names):
        points = [(start, 1e3 * step[name]) for start, step in windows_of_8.items() if name in step]
        left.plot(*zip(*points), marker="o", label=name)
        bars = [figures.get(f"{name}_tokens_per_s_{batch}", 0) for batch in BATCHES]
        right.bar(np.arange(len(BATCHES)) + 0.13 * number, bars, 0.13, label=name)
    left.set(xlabel="position", ylabel="ms a step (eight prompts)", ylim=(0, None))
    left.legend()
    right.set_xticks(np.arange(len(BATCHES)) + 0.13 * (len(names) - 1) / 2,
                     [batch.replace("_", " ") for batch in BATCHES])
    right.set(xlabel="batch", ylabel="tokens/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
