"""How soon a picture begins that is asked for while others are drawn, and what that costs them.

    python benchmarks/continuous.py            12 layers of width 512, 32×32 tokens, random weights; about three minutes
    python benchmarks/continuous.py --quick    4 layers of width 256, under a minute

Eight pictures are drawn; when a quarter of their tokens are there, somebody asks for another eight. Either those wait
until the first are done, or they join at the next token (vilg/generation/batching.py), and both take turns.

Keys of --json: newcomer_over_waiting (the time from the second request to the end of its pictures' first row: joining
over waiting, below 1 is sooner), first_over_alone (how much later the first eight are done for it, over drawing them
alone), all_over_waiting (the time until all sixteen are done, joining over waiting: 1 is the same throughput).
"""
import time

import harness

ROWS, TEXT, GRID, CODEBOOK = 8, 64, 32, 8192
ARRIVES = GRID * GRID // 4
SHAPE, QUICK_SHAPE = {"layers": 12, "width": 512, "heads": 8}, {"layers": 4, "width": 256, "heads": 4}


def main() -> None:
    """Time both ways in one process, one after the other, and print, or write, the ratios."""
    options = harness.arguments(__doc__).parse_args()
    paddle = harness.prepare_ours(options.threads or harness.physical_cores(), options.seed, "fp32")
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer

    paddle.set_grad_enabled(False)
    model = BidirectionalTransformer(BidirectionalConfig(
        vocab_size=100, codebook_size=CODEBOOK, text_length=TEXT, rows=GRID, columns=GRID,
        **(QUICK_SHAPE if options.quick else SHAPE)))
    model.eval()
    joined, waited = (drawn(model, joins) for joins in (True, False))
    alone = waited["first"]
    harness.report(options, {"newcomer_over_waiting": joined["newcomer"] / waited["newcomer"],
                             "first_over_alone": joined["first"] / alone,
                             "all_over_waiting": joined["all"] / waited["all"],
                             "newcomer_seconds": joined["newcomer"], "waiting_seconds": waited["newcomer"]},
                   rows=ROWS, grid=GRID)


def drawn(model, joins: bool) -> dict[str, float]:
    """Seconds until the first eight are done (``first``) and all are (``all``), and from the second request to the end
    of its first row (``newcomer``)."""
    import numpy as np

    from vilg.generation.batching import DrawingBatch
    from vilg.generation.sampling import SamplingConfig

    batch, text = DrawingBatch(model, 2 * ROWS), np.full(TEXT, 5)

    def ask(seed: int) -> list:
        return batch.add(text, TEXT, seed, range(ROWS), SamplingConfig())

    first, second, asked, seen = ask(0), None, 0.0, {}
    began = time.perf_counter()
    while not seen.get("all"):
        if second is None and first[0].drawn >= ARRIVES:
            asked = asked or time.perf_counter()
            second = ask(1) if joins or first[0].done else None
        batch.step()
        now = time.perf_counter()
        if first[0].done:
            seen.setdefault("first", now - began)
        if second and second[0].drawn >= GRID:
            seen.setdefault("newcomer", now - asked)
        if second and second[0].done:
            seen["all"] = now - began
    return seen


if __name__ == "__main__":
    main()
