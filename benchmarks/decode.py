"""Drawing 1024 tokens one at a time: our sparse model, our dense one, and a torch stack, all with key–value caches.

Sparse and torch run in float32 and in bf16 (ours: bf16 products of float32 values; torch: everything in bf16).

    python benchmarks/decode.py --json decode.json --plot decode.png
    python benchmarks/decode.py --quick

Every contestant has 12 layers of width 512, 64 text tokens, a 32×32 grid, 8192 image tokens, and draws with top-k 256;
torch's attention is dense. They take turns at windows of steps spread over the picture; tokens/s is what a whole
picture would reach at that pace. Caches are empty at the start of a window but read at their full size, which takes the
same time.

``fp32_over_torch`` and ``bf16_over_torch`` are tokens/s of our sparse model over torch in float32, and
``bf16_over_torch_bf16`` over torch in bf16, at batch 8; ``sparse_over_dense_tokens_per_s`` is over our own dense one.
``late_over_early_step_time`` compares the last 100 tokens with tokens 100–200, ``cache_memory_ratio`` the caches of a
whole picture, sparse over dense, ``source_memory_60_over_1`` the prefilled text of 60 samples of a prompt with one's.
"""
import statistics
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

LAYERS, WIDTH, HEADS, TEXT, GRID, CODEBOOK = 12, 512, 8, 64, 32, 8192
TOKENS = GRID * GRID
BATCHES = {1: 16, 8: 32, 60: 2}  # batch: steps of a window, of which there are 8
QUICK_BATCHES = {1: 8, 8: 8, 60: 1}
EARLY, LATE = 100, TOKENS - 100
TOP_K = 256
Step = Callable[[int], None]


def main() -> None:
    """Time all contestants and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures there (needs matplotlib)")
    options = parser.parse_args()
    contestants = [harness.Contestant(name, CONTESTANTS[name], options, options.quick, math)
                   for name, math in MATHS.items() if available(name)]
    for contestant in contestants:
        contestant.wait()
    steps = step_times(contestants, options)
    for contestant in contestants:
        contestant.close()
    figures = summary(steps) | memory_figures()
    harness.report(options, figures, layers=LAYERS, width=WIDTH, text=TEXT, tokens=TOKENS)
    if options.plot:
        plot(steps, options.plot)


def available(name: str) -> bool:
    """Is the contestant's library installed?"""
    from importlib.util import find_spec

    return not name.startswith("torch") or find_spec("torch") is not None


def windows(batch: int, quick: bool) -> dict[str, tuple[int, int]]:
    """Case name → first step and number of steps, of the windows timed for a batch size."""
    steps = (QUICK_BATCHES if quick else BATCHES)[batch]
    starts = range(0, TOKENS, 128)
    if quick:  # a step's time is linear in its position, so the middle stands for all; 60 caches that far take too long
        starts = {1: (TOKENS // 2,), 8: (64, TOKENS // 2, TOKENS - 64), 60: (TOKENS // 8,)}[batch]
    cases = {f"{batch}@{start}": (start, steps) for start in starts}
    if batch == 8:
        longer = 16 if quick else 100
        cases |= {"8 early": (EARLY, longer), "8 late": (LATE, longer)}
    return cases


def step_times(contestants: list[harness.Contestant], options: Namespace) -> dict[str, dict[str, float]]:
    """Case → contestant → median seconds of one step."""
    times = {}
    for batch in BATCHES:
        for case, (_, steps) in windows(batch, options.quick).items():
            ends = case.endswith(("early", "late"))  # figures of ours alone, and of a few percent
            taking_part = contestants[:1] if ends else contestants if batch == 8 else contestants[:3]  # bf16: batch 8
            medians = harness.alternate(taking_part, case, 3 if ends else 1, repetitions=1)
            times[case] = {name: seconds / steps for name, seconds in medians.items()}
    return times


def summary(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures of the report."""
    figures = {}
    for batch in BATCHES:
        of_batch = [step for case, step in times.items() if case.startswith(f"{batch}@")]
        for name in of_batch[0]:
            figures[f"{name}_tokens_per_s_{batch}"] = batch / statistics.mean(step[name] for step in of_batch)
        for other in ("dense", "torch"):
            if other in of_batch[0]:
                ratio = figures[f"sparse_tokens_per_s_{batch}"] / figures[f"{other}_tokens_per_s_{batch}"]
                figures[f"sparse_over_{other}_tokens_per_s" + ("" if batch == 8 else f"_{batch}")] = ratio
    for name, (ours, theirs) in COMPARED.items():
        if f"{theirs}_tokens_per_s_8" in figures:
            figures[name] = figures[f"{ours}_tokens_per_s_8"] / figures[f"{theirs}_tokens_per_s_8"]
    figures["late_over_early_step_time"] = times["8 late"]["sparse"] / times["8 early"]["sparse"]
    return figures


def model_of(sparse_layers: bool, width: int = WIDTH, heads: int = HEADS):
    """Our model at the benchmark's shape."""
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

    model = BidirectionalTransformer(BidirectionalConfig(
        layers=LAYERS, width=width, heads=heads, vocab_size=100, codebook_size=CODEBOOK, text_length=TEXT, rows=GRID,
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
    from vilg.generation.decoder import image_decoder, prefill_text
    from vilg.generation.sampling import SamplingConfig, draw

    model, sampling = model_of(sparse_layers), SamplingConfig(top_k=TOP_K)
    paddle.set_grad_enabled(False)

    def begin(batch: int) -> Step:
        prompts = 1 if batch == 60 else batch  # 60 are the samples of one prompt
        source = prefill_text(model, paddle.ones([prompts, TEXT], "int64"), paddle.full([prompts], TEXT, "int64"))
        decoder, random = image_decoder(model, source, batch // prompts), np.random.default_rng(seed)
        token = np.zeros([batch], "int64")

        def step(position: int) -> None:
            nonlocal token
            decoder.step(position, decoder.embed(token, np.full([batch], position)))
            token = draw(decoder.logits(), sampling, random.random(batch))

        return step

    return cases_of(begin, quick)


def torch_stack(threads: int, seed: int, quick: bool, math: str) -> dict[str, harness.Case]:
    """A plain pre-LN torch stack with a static key–value cache, read up to the present token."""
    torch = harness.prepare_torch(threads, seed)
    functional, head = torch.nn.functional, WIDTH // HEADS
    kind = torch.bfloat16 if math == "bf16" else torch.float32
    torch.set_grad_enabled(False)

    def layer() -> dict:
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        return {"norm1": norm(WIDTH), "qkv": linear(WIDTH, 3 * WIDTH), "proj": linear(WIDTH, WIDTH),
                "norm2": norm(WIDTH), "fc1": linear(WIDTH, 4 * WIDTH), "fc2": linear(4 * WIDTH, WIDTH)}

    layers = [{name: part.to(kind) for name, part in layer().items()} for _ in range(LAYERS)]
    final, to_codes = torch.nn.LayerNorm(WIDTH).to(kind), torch.nn.Linear(WIDTH, CODEBOOK).to(kind)
    embedding = torch.nn.Embedding(CODEBOOK, WIDTH).to(kind)

    def begin(batch: int) -> Step:
        keys, values = (torch.zeros(LAYERS, batch, HEADS, TEXT + TOKENS, head, dtype=kind) for _ in range(2))
        token = torch.zeros(batch, dtype=torch.int64)

        def step(position: int) -> None:
            nonlocal token
            x, at = embedding(token)[:, None], TEXT + position
            for number, part in enumerate(layers):
                qkv = part["qkv"](part["norm1"](x)).view(batch, 3, HEADS, 1, head)
                keys[number, :, :, at:at + 1], values[number, :, :, at:at + 1] = qkv[:, 1], qkv[:, 2]
                out = functional.scaled_dot_product_attention(
                    qkv[:, 0], keys[number, :, :, :at + 1], values[number, :, :, :at + 1])
                x = x + part["proj"](out.reshape(batch, 1, WIDTH))
                x = x + part["fc2"](functional.gelu(part["fc1"](part["norm2"](x))))
            best, index = to_codes(final(x[:, 0])).float().topk(TOP_K)
            token = index.gather(1, torch.multinomial(best.softmax(-1), 1))[:, 0]

        return step

    return cases_of(begin, quick)


CONTESTANTS = {"sparse": sparse, "dense": dense, "torch": torch_stack, "sparse_bf16": sparse, "torch_bf16": torch_stack}
MATHS = {"sparse": "fp32", "dense": "fp32", "torch": "fp32", "sparse_bf16": "bf16", "torch_bf16": "bf16"}
COMPARED = {"fp32_over_torch": ("sparse", "torch"), "bf16_over_torch": ("sparse_bf16", "torch"),
            "bf16_over_torch_bf16": ("sparse_bf16", "torch_bf16")}


def cases_of(begin: Callable[[int], Step], quick: bool) -> dict[str, harness.Case]:
    """All cases of a contestant; ``begin(batch)`` makes new caches and gives the function of one step."""
    current: dict[int, Step] = {}

    def case(batch: int, start: int, steps: int) -> harness.Case:
        def prepare() -> Callable[[], None]:
            if batch not in current:
                current.clear()  # the caches of one batch size at a time
                current[batch] = begin(batch)

            def run() -> None:
                for position in range(start, start + steps):
                    current[batch](position)

            return run
        return prepare

    return {name: case(batch, *window) for batch in BATCHES for name, window in windows(batch, quick).items()}


def memory_figures() -> dict[str, float]:
    """Ratios of bytes held after a whole picture, measured at a small width, where they are the same."""
    import paddle

    from vilg.generation.decoder import image_decoder, prefill_text

    held = {}
    with paddle.no_grad():
        for name in ("sparse", "dense"):
            model = model_of(name == "sparse", width=4, heads=1)
            text = paddle.ones([1, TEXT], "int64"), paddle.to_tensor([TEXT])
            one = image_decoder(model, prefill_text(model, *text))
            for position in range(TOKENS):
                one.step(position, paddle.zeros([1, 4]))
            held[name] = one.attention.maths.nbytes()
        many = image_decoder(model, prefill_text(model, *text), samples=60)
    return {"cache_memory_ratio": held["sparse"] / held["dense"],
            "source_memory_60_over_1": many.attention.source.nbytes() / one.attention.source.nbytes()}


def plot(times: dict[str, dict[str, float]], path: Path) -> None:
    """Time of a step by position for batch 8, and tokens/s by batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    figures, names = summary(times), list(times["8@512"])
    windows_of_8 = {int(case[2:]): step for case, step in times.items() if case.startswith("8@")}
    for number, name in enumerate(names):
        left.plot(list(windows_of_8), [1e3 * step[name] for step in windows_of_8.values()], marker="o", label=name)
        bars = [figures.get(f"{name}_tokens_per_s_{batch}", 0) for batch in BATCHES]
        right.bar(np.arange(len(BATCHES)) + 0.16 * number, bars, 0.16, label=name)
    left.set(xlabel="position", ylabel="ms a step (batch 8)", ylim=(0, None))
    left.legend()
    right.set_xticks(np.arange(len(BATCHES)) + 0.32, [str(batch) for batch in BATCHES])
    right.set(xlabel="batch", ylabel="tokens/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
