"""A whole training step: our sparse model, our dense one, stock Paddle, and a torch stack with its fused attention.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --size 24x1024 --batch 1
    python benchmarks/train_step.py --quick                    3 layers, one sample
    python benchmarks/train_step.py --only sparse torch        these contestants
    python benchmarks/train_step.py --threads 1 --clock cpu    on a busy machine

12 layers of width 512, 64 text and 32×32 image tokens, 8192 codes, batch 2: text→image, forward, backward, AdamW.
Ours, stock Paddle and torch have processes of their own (ours two, sparse and dense) and take turns; torch is left out
where it is not installed. Four steps of ours and five of torch come first that do not count (one of stock Paddle,
whose step takes 20 s on two cores; none with --quick): the optimizer's state is made in the first, and until memory has
settled a step takes up to twice as long.

``sparse_over_dense_time`` and ``_memory``: ours, sparse against dense; memory is the growth of the process's peak
during its second step over weights and optimizer state (``_whole_`` keys: with them). ``fp32_over_torch_sdpa`` and
``bf16_over_torch_bf16``: ours sparse against torch at equal precision. ``fp32_over_stock``: against the dense model on
stock operators and settings; ``fp32_over_stock_sparse``: against our sparse model on them. ``gemm_utilisation``: the
step's model FLOPs a second over ``gemm_gflops``, the most that a product of n³ ever reached (n one of GEMM_SIDES) in
the same process, between the steps. ``shared_over_separate_time``: both directions in one pass against one after the
other, sparse.

``end_to_end_over_generator_time`` and ``_memory``: the end-to-end step against the generator's own, of the small model
of configs/end_to_end/table7.yaml; more of it by ``benchmarks/end_to_end_step.py``.
"""
import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import end_to_end_step
import harness
import numpy as np

TEXT, SIDE, CODES, VOCABULARY = 64, 32, 8192, 8192
SIZES = {"3x512": (3, 512, 8), "12x512": (12, 512, 8), "24x1024": (24, 1024, 16)}
GEMM_SIDES = (1024, 1536, 2048)
ENTRANTS = {"sparse": ("sparse", "fp32"), "dense": ("dense", "fp32"), "sparse_bf16": ("sparse", "bf16"),
            "torch": ("torch", "fp32"), "torch_bf16": ("torch", "bf16"),
            "stock": ("stock", "dense"), "stock_sparse": ("stock", "sparse")}
"""Who is timed: the process and its case."""
WARMING = {"sparse": 2, "dense": 2, "torch": 5, "stock": 1}
"""Steps that do not count, by process (with --quick none of stock Paddle, whose first is no slower than the others);
ours come after the two that memory is measured in."""


def main() -> None:
    """Time all contestants in turns, measure memory and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), help="layers x width (default 12x512; with --quick 3x512)")
    parser.add_argument("--batch", type=int, help="samples a step (default 2; with --quick 1)")
    parser.add_argument("--only", nargs="+", choices=ENTRANTS, metavar="NAME",
                        help=f"a step of these contestants and no more: {', '.join(ENTRANTS)}")
    options = parser.parse_args()
    options.size = options.size or ("3x512" if options.quick else "12x512")
    options.batch = options.batch or (1 if options.quick else 2)
    figures = measure(options)
    if not options.only:
        figures |= end_to_end_step.measure(options, 4 if options.quick else 0, ["generator", "end_to_end"])
    harness.report(options, figures, size=options.size, batch=options.batch, text=TEXT, image=SIDE * SIDE)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and megabytes of a step by contestant, and the ratios; without --only both directions as well."""
    shape = (*SIZES[options.size], options.batch)
    names = [name for name in options.only or ENTRANTS if ENTRANTS[name][0] != "torch" or find_spec("torch")]
    processes = _processes({ENTRANTS[name][0] for name in names}, options, shape)
    turns = [(name, processes[process], case) for name, (process, case) in ENTRANTS.items() if name in names]
    figures = _memory(processes)
    fast = [turn for turn in turns if turn[1].name != "stock"]
    for _, process, case in fast if options.quick else turns:
        process.time(case, 0, WARMING[process.name])
    products = [(f"gemm_{side}", processes["sparse"], f"gemm_{side}") for side in GEMM_SIDES if "sparse" in processes]
    times = harness.take_turns([*fast[:1], *products, *fast[1:], *products], 2 if options.quick else 3, 1, uncounted=0)
    slow = [turn for turn in turns if turn not in fast]
    times |= harness.take_turns(slow, 1, 1, uncounted=0)  # says enough
    seconds = harness.medians({name: times[name] for name in names})
    figures |= {f"{name}_seconds": value for name, value in seconds.items()} | ratios(seconds)
    if "sparse" in seconds:
        flops = model_flops(*shape)
        peak = max(2 * side ** 3 / min(times[f"gemm_{side}"]) for side in GEMM_SIDES)
        figures |= {"gemm_gflops": peak / 1e9, "gemm_utilisation": flops / seconds["sparse"] / peak,
                    "model_gigaflops": flops / 1e9}
    if not options.only:
        directions = [(case, processes["sparse"], case) for case in ("both", "separate")]
        passes = harness.medians(harness.take_turns(directions, 1, 1))
        figures["shared_over_separate_time"] = passes["both"] / passes["separate"]
    for process in processes.values():
        process.close()
    return figures


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Steps over one another, of the contestants that there are."""
    wanted = {"sparse_over_dense_time": ("sparse", "dense"), "fp32_over_stock": ("sparse", "stock"),
              "fp32_over_stock_sparse": ("sparse", "stock_sparse"), "bf16_over_fp32": ("sparse_bf16", "sparse"),
              "fp32_over_torch_sdpa": ("sparse", "torch"), "bf16_over_torch_bf16": ("sparse_bf16", "torch_bf16"),
              "dense_over_torch_sdpa": ("dense", "torch")}
    return {ratio: seconds[mine] / seconds[other] for ratio, (mine, other) in wanted.items()
            if mine in seconds and other in seconds}


def _processes(needed: set[str], options: argparse.Namespace,
               shape: tuple[int, ...]) -> dict[str, harness.Contestant]:
    """The processes that are needed, with their cases set up."""
    setups = {"sparse": (ours, ("sparse",), {}), "dense": (ours, ("dense",), {}), "torch": (torch_stack, (), {}),
              "stock": (stock, (), {"environment": {"VILG_ONEDNN": "0"}, "pause": harness.PAUSE})}
    processes = {name: harness.Contestant(name, setup, options, *shape, *details,
                                          **{"pause": harness.SHORT_PAUSE} | settings)
                 for name, (setup, details, settings) in setups.items() if name in needed}
    for process in processes.values():
        process.wait()
    return processes


def _memory(processes: dict[str, harness.Contestant]) -> dict[str, float]:
    """Megabytes of the second step of the sparse and the dense model, and the ratios."""
    figures = {}
    for kind in ("sparse", "dense"):
        if kind in processes:
            figures[f"{kind}_megabytes"], figures[f"{kind}_whole_megabytes"] = processes[kind].ask("memory")
    if len(figures) == 4:
        for what in ("", "_whole"):
            ratio = figures[f"sparse{what}_megabytes"] / figures[f"dense{what}_megabytes"]
            figures[f"sparse_over_dense{what}_memory"] = ratio
    return figures


def model_flops(layers: int, width: int, heads: int, batch: int) -> float:
    """Multiplications and additions that the sparse model needs in a step, the backward counted twice."""
    from vilg.nn.attention.blocks.layout import block_layout
    from vilg.nn.attention.patterns import TARGET, Layout, layer_patterns

    layout = Layout(TEXT, SIDE, SIDE)
    pairs = sum(layout.image * block_layout(pattern, TARGET, layout).keys + TEXT * TEXT
                for pattern in layer_patterns(layers))
    linear = layers * 24 * width ** 2 * layout.length + 2 * width * CODES * layout.image
    return 3.0 * batch * (linear + 4 * width * pairs)


def ours(threads: int, seed: int, layers: int, width: int, heads: int, batch: int, kind: str) -> dict[str, Any]:
    """Our model as it trains, in either arithmetic; ``memory`` is to be asked first."""
    paddle = harness.prepare_ours(threads, seed)
    from vilg.kernels.onednn import precision
    from vilg.nn import functional

    empty = harness.resident_megabytes()
    model = trainer(paddle, layers, width, heads, batch, kind, seed)

    def step(math: str) -> Callable[[], None]:
        precision.use_bf16(math == "bf16")
        return model.text_to_image

    def in_fp32(run: Callable[[], None]) -> Callable[[], None]:
        precision.use_bf16(False)
        return run

    def product(side: int) -> Callable[[], None]:
        precision.use_bf16(False)
        square = paddle.randn([side, side])
        functional.linear(square, square)
        return lambda: functional.linear(square, square)

    def memory() -> tuple[float, float]:
        """Megabytes by which the second step's peak rises over what is held, and the peak with everything."""
        model.text_to_image()
        held = harness.resident_megabytes()
        grown = harness.peak_growth(model.text_to_image)
        return grown, held - empty + grown

    return {**{math: partial(step, math) for math in ("fp32", "bf16")}, "memory": memory,
            "both": lambda: in_fp32(model.both), "separate": lambda: in_fp32(model.separate),
            **{f"gemm_{side}": partial(product, side) for side in GEMM_SIDES}}


def stock(threads: int, seed: int, layers: int, width: int, heads: int, batch: int) -> dict[str, harness.Case]:
    """Our models on Paddle's own operators, allocator and flags."""
    paddle = harness.prepare_stock(threads, seed)
    flags = paddle.get_flags("FLAGS_use_stride_kernel")
    from vilg import runtime

    runtime.configure(runtime.RuntimeConfig(threads=threads, onednn=False, allocator=False))
    paddle.set_flags(flags)
    models = {kind: trainer(paddle, layers, width, heads, batch, kind, seed) for kind in ("dense", "sparse")}
    return {kind: lambda model=model: model.text_to_image for kind, model in models.items()}


def trainer(paddle, layers: int, width: int, heads: int, batch: int, kind: str, seed: int) -> SimpleNamespace:
    """Training steps of our model: ``text_to_image``, ``both`` directions in one pass, and one after the other."""
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.nn.functional import linear_cross_entropy

    model = BidirectionalTransformer(BidirectionalConfig(
        layers=layers, width=width, heads=heads, vocab_size=VOCABULARY, codebook_size=CODES, text_length=TEXT,
        rows=SIDE, columns=SIDE, sparse=kind == "sparse"))
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters())
    text, codes = (paddle.to_tensor(value) for value in numbers(batch, seed))
    length, prefix = paddle.full([batch], TEXT, "int64"), paddle.zeros([batch], "int64")

    def loss(hidden, head, labels):
        return linear_cross_entropy(hidden.reshape([-1, width]), head.weight, head.bias, labels.reshape([-1])).mean()

    def update() -> None:
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)  # as the trainer and torch do

    def text_to_image() -> None:
        loss(model.text_to_image_hidden(text, length, codes), model.image_head, codes).backward()
        update()

    def both() -> None:
        drawn, written = model.both_hidden(text, length, codes, text, length, prefix)
        (loss(drawn, model.image_head, codes) + loss(written[:, :-1], model.text_head, text[:, 1:])).backward()
        update()

    def separate() -> None:
        loss(model.text_to_image_hidden(text, length, codes), model.image_head, codes).backward()
        written = model.image_to_text_hidden(codes, text, length, prefix)
        loss(written[:, :-1], model.text_head, text[:, 1:]).backward()
        update()

    return SimpleNamespace(text_to_image=text_to_image, both=both, separate=separate)


def numbers(batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random text ids [B, M] and codes [B, n]."""
    random = np.random.default_rng(seed)
    return random.integers(0, VOCABULARY, (batch, TEXT)), random.integers(0, CODES, (batch, SIDE * SIDE))


def torch_stack(threads: int, seed: int, layers: int, width: int, heads: int, batch: int) -> dict[str, harness.Case]:
    """The same shapes in plain torch, with scaled_dot_product_attention under the dense mask and a fused AdamW."""
    torch = harness.prepare_torch(threads, seed)
    from torch import nn
    from torch.nn import functional

    length = TEXT + SIDE * SIDE
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:TEXT, :TEXT] = True

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            qkv = self.qkv(self.norm1(x)).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(*qkv, attn_mask=mask)
            x = x + self.proj(seen.transpose(1, 2).reshape(batch, length, width))
            return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.codes = nn.Embedding(VOCABULARY, width), nn.Embedding(CODES, width)
            self.positions = nn.Embedding(length, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CODES)

        def forward(self, text, codes):
            x = torch.cat([self.words(text), self.codes(codes)], 1) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x[:, TEXT:]))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    text, codes = (torch.from_numpy(value) for value in numbers(batch, seed))

    def step(math: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=math == "bf16"):
            logits = model(text, codes)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {math: lambda math=math: partial(step, math) for math in ("fp32", "bf16")}


if __name__ == "__main__":
    from vilg import cli

    cli.run(main)
