"""A training step of the ViT-B/16 + base text pair against open_clip's ViT-B/16 in torch: images a second as ratios.

    python benchmarks/contrastive_step.py --json step.json
    python benchmarks/contrastive_step.py --quick             four images a step, fewer steps
    python benchmarks/contrastive_step.py --profile fp32      where our step's time goes (no torch needed)

Keys of --json: images_per_s_over_torch (target 1.05) in float32, images_per_s_over_torch_bf16 (target 1.1) with bf16
products and float32 weights (torch: autocast, open_clip's amp_bf16), and the seconds and images a second of each.
Both have processes of their own and take turns, steps that make optimizer states come first and do not count.

Equal: batch, images of 224 pixels as 197 tokens, texts of 48 tokens from 40 000 rows, two towers of 12 layers, width
768 and 12 heads, the symmetric InfoNCE of all pairs, AdamW (torch's fused one), no dropout, no clipping. open_clip's
text tower is widened to that from 512. Different: open_clip projects both vectors (768 × 768), its text tower is in pre
order with a causal mask, ours in post order with a mask of padding and a pooler; its activation is GELU in both towers,
which is quicker in torch than the quick-GELU of our image tower; each tower ends in one row, and our last blocks
compute that row alone, torch's all rows (the share of the step that this spares is ``last_block_share``).
"""
import argparse
import cProfile
import pstats
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import harness
import numpy as np

CONFIG = harness.ROOT / "configs" / "ernie_vil" / "base_zh.yaml"
AS_MEASURED = ["task.model.text.dropout=0", "task.loss.image_image=0", "task.loss.image_tags=0",
               "task.loss.text_text=0", "task.loss.tile=0", "task.init_from=null"]
MATHS = {"fp32": "", "bf16": "_bf16"}
SIDE, TEXT, ROWS, LAYERS, WIDTH, HEADS = 224, 48, 40_000, 12, 768, 12


def numbers(batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels [B, 3, S, S] and ids [B, L], none of them padding."""
    random = np.random.default_rng(seed)
    return (random.normal(size=[batch, 3, SIDE, SIDE]).astype("float32"),
            random.integers(1, ROWS, [batch, TEXT]))


def ours(threads: int, seed: int, batch: int) -> dict[str, Any]:
    """The model and loss of configs/ernie_vil/base_zh.yaml, in either arithmetic."""
    paddle = harness.prepare_ours(threads, seed)
    from vilg.engine.optim import build_optimizer
    from vilg.kernels.onednn import precision
    from vilg.models.dual_encoder.model import DualEncoder
    from vilg.nn import functional
    from vilg.run.build import load_run
    from vilg.tasks.contrastive import ContrastiveBatch, ContrastiveStep

    functional.start_training()
    run = load_run(CONFIG, AS_MEASURED)
    module = ContrastiveStep(DualEncoder(run.task.model), run.task)
    optimizer = build_optimizer(run.optim, dict(module.model.named_parameters()), multi_precision=False)
    pixels, ids = (paddle.to_tensor(value) for value in numbers(batch, seed))
    given = ContrastiveBatch(image=pixels, caption=ids, tagged=paddle.zeros([batch], "int64"),
                             same=paddle.arange(batch).unsqueeze(1))

    def step() -> None:
        module(given, 0).loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)  # as the trainer and torch do
        module.model.temperature.clamp()

    def by(math: str) -> Callable[[], None]:
        precision.use_bf16(math == "bf16")
        return step

    return {math: (lambda math=math: by(math)) for math in MATHS}


def torch_stack(threads: int, seed: int, batch: int) -> dict[str, harness.Case]:
    """open_clip's own model and loss, as its training loop runs them."""
    torch = harness.prepare_torch(threads, seed)
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP

    model = CLIP(WIDTH, {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "patch_size": 16},
                 {"context_length": TEXT, "vocab_size": ROWS, "width": WIDTH, "heads": HEADS, "layers": LAYERS})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    loss = ClipLoss()
    pixels, ids = (torch.from_numpy(value) for value in numbers(batch, seed))

    def step(math: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=math == "bf16"):
            total = loss(*model(pixels, ids))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

    return {math: (lambda math=math: (lambda: step(math))) for math in MATHS}


def last_block_share(batch: int) -> float:
    """The share of the step's multiplications in what our last blocks leave out: all rows but one behind the keys."""
    rows = {"image": 1 + (SIDE // 16) ** 2, "text": TEXT}
    whole = sum(LAYERS * (12 * WIDTH**2 * count + 2 * WIDTH * count**2) for count in rows.values())
    # proj and both maps of the perceptron (9 of 12), scores and sums of all queries but the first.
    spared = sum((count - 1) * (9 * WIDTH**2 + 2 * WIDTH * count) for count in rows.values())
    return spared / whole


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step by contestant and arithmetic, and what is asked of them."""
    entrants = [harness.Contestant(name, setup, options, options.batch, pause=harness.SHORT_PAUSE)
                for name, setup in (("ours", ours), ("torch", torch_stack))]
    for entrant in entrants:
        entrant.wait()
    figures: dict[str, float] = {}
    for math, mark in MATHS.items():
        for entrant in entrants:
            entrant.time(math, 0, 1 if options.quick else 2)
        seconds = harness.alternate(entrants, math, 3 if options.quick else options.rounds, 1, uncounted=0)
        figures |= {f"{name}{mark}_seconds": value for name, value in seconds.items()}
        figures |= {f"{name}{mark}_images_per_s": options.batch / value for name, value in seconds.items()}
        figures[f"images_per_s_over_torch{mark}"] = seconds["torch"] / seconds["ours"]
    for entrant in entrants:
        entrant.close()
    return figures


def profile(options: argparse.Namespace) -> None:
    """Print where three of our steps spend their time, by function."""
    case = ours(options.threads or harness.physical_cores(), options.seed, options.batch)[options.profile]
    step = case()
    step()
    step()
    recorded = cProfile.Profile()
    for _ in range(3):
        recorded.runcall(step)
    pstats.Stats(recorded).sort_stats("tottime").print_stats(30)


def main() -> None:
    """Time both, or profile ours."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, help="images a step (default 16; with --quick 4)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that count (%(default)s; --quick: 3)")
    parser.add_argument("--profile", choices=MATHS, help="only this: where our step spends its time")
    options = parser.parse_args()
    options.batch = options.batch or (4 if options.quick else 16)
    if options.profile:
        profile(options)
        return
    if not find_spec("open_clip"):
        parser.error("open_clip is not installed: pip install open_clip_torch")
    harness.report(options, measure(options) | {"last_block_share": last_block_share(options.batch)},
                   batch=options.batch)


if __name__ == "__main__":
    main()
