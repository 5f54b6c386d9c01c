"""Recomputation at 24 layers: peak memory and step time with and without, as ratios (with / without).

Both train the bidirectional transformer on 16×16 codes with AdamW, in processes of their own. Memory is the allocator's
peak of a whole step, weights and optimizer states included; time is the median of steps taken in turns.
"""
import json
import subprocess
import sys
from collections.abc import Callable

import harness

SHAPE = dict(layers=24, width=256, heads=4, vocab_size=2000, codebook_size=1024, text_length=32, rows=16, columns=16)


QUICK_WIDTH = 128


def training_step(which: str, batch: int, width: int, seed: int) -> Callable[[], None]:
    """One whole optimizer step of the 24-layer model; ``which`` as in distributed.recompute."""
    import numpy as np
    import paddle

    from vilg.engine.optim import OptimConfig
    from vilg.engine.parallel.distributed import DistributedConfig, Parallel
    from vilg.engine.task import Phase
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.tasks.bidirectional import BidirectionalStep, BidirectionalTaskConfig

    paddle.seed(seed)
    config = BidirectionalConfig(**SHAPE | {"width": width})
    module = BidirectionalStep(BidirectionalTransformer(config),
                               BidirectionalTaskConfig(model=config, image_tokenizer="", vocabulary=""))
    phase = Phase("model", module, dict(module.named_parameters()))
    phase_optimizer = Parallel(DistributedConfig(recompute=which)).phase_optimizer(phase, OptimConfig(), {})
    tensors = harness.random_batch(config, batch, np.random.default_rng(seed))

    def step() -> None:
        phase_optimizer.forward(tensors, 0, True, True).loss.backward()
        phase_optimizer.square_norm()
        phase_optimizer.step(1e-4)
        phase_optimizer.clear()

    return step


def prepare(threads: int, seed: int, which: str, batch: int, width: int) -> dict[str, harness.Case]:
    """The contestant for the timing."""
    harness.prepare_ours(threads, seed)
    step = training_step(which, batch, width, seed)
    return {"step": lambda: step}


def peak(which: str, batch: int, width: int, seed: int) -> int:
    """Peak bytes of the second step, measured in this process."""
    from paddle.base import core

    step = training_step(which, batch, width, seed)
    step()
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    step()
    return core.host_memory_stat_peak_value("Allocated", 0)


def main() -> None:
    """Measure memory, then time."""
    if sys.argv[1:2] == ["--peak"]:
        print(peak(*json.loads(sys.argv[2])))
        return
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step (default 8)")
    options = parser.parse_args()
    batch, width, figures = options.batch, QUICK_WIDTH if options.quick else SHAPE["width"], {}
    for name, which in (("without", "none"), ("with", "full")):
        command = [sys.executable, __file__, "--peak", json.dumps([which, batch, width, options.seed])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[f"{name}_peak_mb"] = int(done.stdout.split()[-1]) / 1e6
    contestants = [harness.Contestant(name, prepare, options, which, batch, width)
                   for name, which in (("without", "none"), ("with", "full"))]
    for contestant in contestants:
        contestant.wait()
    seconds = harness.alternate(contestants, "step", 2 if options.quick else 5, 1 if options.quick else 3)
    for contestant in contestants:
        contestant.close()
    figures |= {f"{name}_step_seconds": value for name, value in seconds.items()}
    figures |= {"memory_ratio": figures["with_peak_mb"] / figures["without_peak_mb"],
                "time_ratio": seconds["with"] / seconds["without"]}
    harness.report(options, figures, batch=batch, **SHAPE | {"width": width})


if __name__ == "__main__":
    main()
