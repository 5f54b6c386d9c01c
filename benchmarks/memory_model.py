"""Predicted against measured peak memory of training steps on the CPU: ``vilg/planning/memory.py`` held to account.

Every config trains three steps (forward, backward, gradient norm, AdamW, moving average) in a process of its own; the
peak of the last one, as Paddle's allocator counts it, is compared with the prediction. The figure that matters is
``worst_error``. It measures bytes, not time, so a busy machine does not disturb it.
"""
import argparse
import json
import subprocess
import sys

import harness

NAMES = ("layers", "width", "heads", "vocab_size", "codebook_size", "text_length", "rows", "columns", "sparse")
SHAPES = {name: dict(zip(NAMES, values)) for name, values in {
    "small": (6, 256, 8, 2029, 1024, 28, 8, 8, True), "long": (4, 256, 4, 4000, 8192, 64, 32, 32, True),
    "middle": (8, 512, 8, 8000, 2048, 32, 16, 16, True), "wide": (4, 1024, 16, 8000, 8192, 32, 8, 8, True),
    "dense": (4, 256, 4, 2000, 1024, 32, 16, 16, False), "deep": (24, 256, 4, 2000, 1024, 32, 16, 16, True)}.items()}
CASES = [("small", 16, 0), ("small", 64, 0), ("long", 1, 0), ("middle", 2, 0), ("wide", 1, 0), ("wide", 16, 0),
         ("dense", 4, 0), ("deep", 2, 0), ("deep", 2, 1), ("deep", 2, 3)]
QUICK = ("small", "middle", "dense", "wide")


def measure(shape: dict, batch: int, every: int) -> tuple[int, int]:
    """Measured and predicted peak bytes of one training step; runs in a process that did nothing else."""
    import numpy as np
    from paddle.base import core

    from vilg.engine.ema import WeightEMA
    from vilg.engine.optim import OptimConfig
    from vilg.engine.parallel.distributed import DistributedConfig, Parallel
    from vilg.engine.task import Phase
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.planning.memory import FLOAT, StepPlan, backward_peak
    from vilg.tasks.bidirectional import BidirectionalStep, BidirectionalTaskConfig

    config = BidirectionalConfig(**shape)
    step = BidirectionalStep(BidirectionalTransformer(config),
                             BidirectionalTaskConfig(model=config, image_tokenizer="", vocabulary=""))
    phase = Phase("model", step, dict(step.named_parameters()))
    parallel = Parallel(DistributedConfig(recompute=every or "none"))
    phase_optimizer = parallel.phase_optimizer(phase, OptimConfig(), {})
    ema = WeightEMA(phase_optimizer.tensor_shards(), 0.99)
    tensors = harness.random_batch(config, batch, np.random.default_rng(0))
    for number in range(3):
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        phase_optimizer.forward(tensors, number, True, True).loss.backward()
        phase_optimizer.exchange()
        phase_optimizer.square_norm()
        phase_optimizer.scale_gradients(0.5)
        phase_optimizer.step(1e-4)
        phase_optimizer.clear()
        ema.update(number)
    parameters = sum(int(np.prod(tensor.shape)) for tensor in phase.parameters.values())
    standing = 4 * FLOAT * parameters  # weights, two moments, EMA
    predicted = standing + backward_peak(config, StepPlan(batch, recompute_every=every, gelu_again=True))
    return core.host_memory_stat_peak_value("Allocated", 0), predicted


def main() -> None:
    """Measure every case in a process of its own and report."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*json.loads(options.one))))
        return
    figures, worst = {}, 0.0
    for name, batch, every in CASES:
        if options.quick and (name not in QUICK or batch > 16):
            continue
        command = [sys.executable, __file__, "--one", json.dumps([SHAPES[name], batch, every])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        measured, predicted = json.loads(done.stdout.strip().splitlines()[-1])
        error = predicted / measured - 1
        worst = max(worst, abs(error))
        key = f"{name}_batch{batch}" + (f"_recompute{every}" if every else "")
        figures |= {f"{key}_measured_mb": measured / 1e6, f"{key}_predicted_mb": predicted / 1e6, f"{key}_error": error}
    harness.report(options, {**figures, "worst_error": worst})


if __name__ == "__main__":
    main()
