"""A whole training step: our sparse model, our dense one, stock Paddle, and a torch stack with its fused attention.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --size 24x1024 --batch 1
    python benchmarks/train_step.py --quick                    3 layers, one sample
    python benchmarks/train_step.py --only sparse torch        these contestants' times, no memory
    python benchmarks/train_step.py --threads 1 --clock cpu    on a busy machine

12 layers of width 512, 64 text and 32×32 image tokens, 8192 codes, batch 2: text→image, forward, backward, AdamW.
Every contestant has a process of its own and they take turns; torch is left out where it is not installed. Three steps
come first that do not count (one of stock Paddle, whose step takes 20 s on two cores): the optimizer's state is made in
the first, and until memory has settled a step takes up to twice as long.

``sparse_over_dense_time`` and ``_memory``: ours, sparse against dense; memory is the growth of the process's peak
during a step over weights and optimizer state (``_whole_`` keys: with them). ``fp32_over_torch_sdpa`` and
``bf16_over_torch_bf16``: ours sparse against torch at equal precision. ``fp32_over_stock``: against the dense model on
stock operators and settings; ``fp32_over_stock_sparse``: against our sparse model on them. ``gemm_utilisation``: the
step's model FLOPs over what a 2048³ product reaches in the same process. ``shared_over_separate_time``: both directions
in one pass against one after the other, sparse.

``end_to_end_over_generator_time`` and ``_memory``: the end-to-end step against the generator's own, of the small model
of configs/end_to_end/table7.yaml; more of it by ``benchmarks/end_to_end_step.py``.
"""
import argparse
from importlib.util import find_spec
from types import SimpleNamespace

import end_to_end_step
import harness
import numpy as np

TEXT, SIDE, CODES, VOCABULARY = 64, 32, 8192, 8192
SIZES = {"3x512": (3, 512, 8), "12x512": (12, 512, 8), "24x1024": (24, 1024, 16)}
GEMM = 2048
ENTRANTS = ("sparse", "dense", "sparse_bf16", "stock", "stock_sparse", "torch", "torch_bf16")
WARMING = {"stock": 1, "stock_sparse": 1}
"""Steps that do not count, three unless named here."""


def main() -> None:
    """Time all contestants in turns, measure memory and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), help="layers x width (default 12x512; with --quick 3x512)")
    parser.add_argument("--batch", type=int, help="samples a step (default 2; with --quick 1)")
    parser.add_argument("--only", nargs="+", choices=ENTRANTS, metavar="NAME",
                        help=f"time a step of these contestants and measure no more: {', '.join(ENTRANTS)}")
    options = parser.parse_args()
    options.size = options.size or ("3x512" if options.quick else "12x512")
    options.batch = options.batch or (1 if options.quick else 2)
    figures = measure_times(options)
    if not options.only:
        figures |= measure_memory(options)
        figures |= end_to_end_step.measure(options, 4 if options.quick else 0, ["generator", "end_to_end"])
    harness.report(options, figures, size=options.size, batch=options.batch, text=TEXT, image=SIDE * SIDE)


def measure_times(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of every contestant, and the ratios."""
    shape = (*SIZES[options.size], options.batch)
    seconds, extra = _step_seconds(options, shape)
    figures = {f"{name}_seconds": value for name, value in seconds.items()}
    for ratio, (mine, other) in {
            "sparse_over_dense_time": ("sparse", "dense"), "fp32_over_stock": ("sparse", "stock"),
            "fp32_over_stock_sparse": ("sparse", "stock_sparse"), "bf16_over_fp32": ("sparse_bf16", "sparse"),
            "fp32_over_torch_sdpa": ("sparse", "torch"), "bf16_over_torch_bf16": ("sparse_bf16", "torch_bf16"),
            "dense_over_torch_sdpa": ("dense", "torch")}.items():
        if mine in seconds and other in seconds:
            figures[ratio] = seconds[mine] / seconds[other]
    if "gemm" in extra:
        flops = model_flops(*shape)
        figures |= {
            "gemm_gflops": 2 * GEMM ** 3 / extra["gemm"] / 1e9,
            "gemm_utilisation": flops / seconds["sparse"] * extra["gemm"] / (2 * GEMM ** 3),
            "model_gigaflops": flops / 1e9,
        }
    if "both" in extra:
        figures["shared_over_separate_time"] = extra["both"] / extra["separate"]
    return figures


def _step_seconds(options: argparse.Namespace, shape: tuple[int, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of the step's seconds by contestant, and those of the sparse contestant's other cases."""
    off = {"VILG_ONEDNN": "0"}
    entrants = {"sparse": (ours, ("sparse", "fp32"), None), "dense": (ours, ("dense", "fp32"), None),
                "sparse_bf16": (ours, ("sparse", "bf16"), None), "stock": (stock, ("dense",), off),
                "stock_sparse": (stock, ("sparse",), off)}
    if find_spec("torch"):
        entrants |= {"torch": (torch_stack, ("fp32",), None), "torch_bf16": (torch_stack, ("bf16",), None)}
    contestants = [harness.Contestant(name, setup, options, *shape, *details, environment=environment)
                   for name, (setup, details, environment) in entrants.items() if name in (options.only or entrants)]
    for contestant in contestants:
        contestant.wait()
    for contestant in contestants:
        contestant.time("step", 0, WARMING.get(contestant.name, 3))
    slow = [contestant for contestant in contestants if contestant.name.startswith("stock")]  # one turn says enough
    others = [contestant for contestant in contestants if contestant not in slow]
    seconds = harness.alternate(others, "step", 2 if options.quick else 3, 1, uncounted=0)
    seconds |= harness.alternate(slow, "step", 1, 1, uncounted=0)
    sparse = [contestant for contestant in contestants if contestant.name == "sparse"]
    cases = {"gemm": 5} if options.only else {"gemm": 5, "both": 1, "separate": 1}
    extra = {case: harness.alternate(sparse, case, 1, repetitions)["sparse"]
             for case, repetitions in cases.items() if sparse}
    for contestant in contestants:
        contestant.close()
    return seconds, extra


def model_flops(layers: int, width: int, heads: int, batch: int) -> float:
    """Multiplications and additions that the sparse model needs in a step, the backward counted twice."""
    from vilg.nn.block_layout import block_layout
    from vilg.nn.masks import Layout, Role, layer_patterns

    layout = Layout(TEXT, SIDE, SIDE)
    pairs = sum(layout.image * block_layout(pattern, Role.TARGET, layout).keys + TEXT * TEXT
                for pattern in layer_patterns(layers, sparse=True))
    linear = layers * 24 * width ** 2 * layout.length + 2 * width * CODES * layout.image
    return 3.0 * batch * (linear + 4 * width * pairs)


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Megabytes of a step of the sparse and the dense model, each in a fresh process."""
    grown, whole = {}, {}
    for kind in ("sparse", "dense"):
        contestant = harness.Contestant(f"{kind} memory", memory_setup, options, *SIZES[options.size], options.batch,
                                        kind)
        try:
            grown[kind], whole[kind] = (float(value) for value in contestant.wait().cases)
        finally:
            contestant.close()
    return {"sparse_megabytes": grown["sparse"], "dense_megabytes": grown["dense"],
            "sparse_over_dense_memory": grown["sparse"] / grown["dense"],
            "sparse_whole_megabytes": whole["sparse"], "dense_whole_megabytes": whole["dense"],
            "sparse_over_dense_whole_memory": whole["sparse"] / whole["dense"]}


def memory_setup(threads: int, seed: int, layers: int, width: int, heads: int, batch: int,
                 kind: str) -> dict[str, None]:
    """Two numbers as the names of cases: growth of the peak during the second step, and the peak with everything."""
    paddle = harness.prepare_ours(threads, seed)
    empty = harness.resident_megabytes()
    step = trainer(paddle, layers, width, heads, batch, kind, seed).text_to_image
    step()
    held = harness.resident_megabytes()
    grown = harness.peak_growth(step)
    return {f"{grown:.3f}": None, f"{held - empty + grown:.3f}": None}


def ours(threads: int, seed: int, layers: int, width: int, heads: int, batch: int, kind: str,
         math: str) -> dict[str, harness.Case]:
    """Our model as it trains."""
    paddle = harness.prepare_ours(threads, seed, math)
    from vilg.nn import functional

    model = trainer(paddle, layers, width, heads, batch, kind, seed)
    square = paddle.randn([GEMM, GEMM])
    return {"step": lambda: model.text_to_image, "both": lambda: model.both, "separate": lambda: model.separate,
            "gemm": lambda: lambda: functional.linear(square, square)}


def stock(threads: int, seed: int, layers: int, width: int, heads: int, batch: int,
          kind: str) -> dict[str, harness.Case]:
    """Our model on Paddle's own operators, allocator and flags."""
    paddle = harness.prepare_stock(threads, seed)
    flags = paddle.get_flags("FLAGS_use_stride_kernel")
    from vilg import runtime

    runtime.configure(runtime.RuntimeConfig(threads=threads, onednn=False, allocator=False))
    paddle.set_flags(flags)
    model = trainer(paddle, layers, width, heads, batch, kind, seed)
    return {"step": lambda: model.text_to_image}


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
        optimizer.clear_grad()

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


def torch_stack(threads: int, seed: int, layers: int, width: int, heads: int, batch: int,
                math: str) -> dict[str, harness.Case]:
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

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=math == "bf16"):
            logits = model(text, codes)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"step": lambda: step}


if __name__ == "__main__":
    from vilg import cli

    cli.run(main)
