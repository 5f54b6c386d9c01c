"""Two-process data-parallel throughput against one process, one thread each: ``speedup`` (ideal 2).

Each run trains the bidirectional transformer on 8×8 codes, the same micro-batch a process, gradients exchanged over
gloo after every optimizer step. One process and two take turns; the processes of a run start together and time only
steps that follow a warm-up. The slower rank counts. ``--clock cpu`` counts the processor time of all threads: it means
something on a busy machine, but leaves out what ranks wait for each other.
"""
import json
import os
import statistics
import subprocess
import sys
import time

import harness

SHAPE = dict(layers=6, width=256, heads=8, vocab_size=2000, codebook_size=1024, text_length=28, rows=8, columns=8)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def rank_main(batch: int, steps: int, seed: int, clock: str) -> None:
    """Train as one rank and print the median seconds of a step."""
    import numpy as np
    import paddle

    from vilg import runtime
    from vilg.engine.optim import OptimConfig
    from vilg.engine.parallel.distributed import DistributedConfig, Parallel
    from vilg.engine.task import Phase
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.tasks.bidirectional import BidirectionalStep, BidirectionalTaskConfig

    runtime.configure(runtime.RuntimeConfig(threads=1))
    ranks = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    parallel = Parallel(DistributedConfig(level="dp" if ranks > 1 else "none"))
    paddle.seed(seed)
    config = BidirectionalConfig(**SHAPE)
    module = BidirectionalStep(BidirectionalTransformer(config),
                               BidirectionalTaskConfig(model=config, image_tokenizer="", vocabulary=""))
    phase = Phase("model", module, dict(module.named_parameters()))
    phase_optimizer = parallel.phase_optimizer(phase, OptimConfig(), {})
    tensors = harness.random_batch(config, batch, np.random.default_rng([seed, parallel.rank]))
    times, now = [], CLOCKS[clock]
    for number in range(steps + 2):
        start = now()
        phase_optimizer.forward(tensors, number, True, True).loss.backward()
        phase_optimizer.exchange()
        parallel.sum(phase_optimizer.square_norm().reshape([1]))
        phase_optimizer.step(1e-4)
        phase_optimizer.clear()
        times.append(now() - start)
    print(json.dumps(statistics.median(times[2:])))


def run(ranks: int, batch: int, steps: int, seed: int, clock: str) -> float:
    """Seconds of a step with ``ranks`` processes."""
    from vilg.engine.safety.supervisor import rank_environments

    environments = rank_environments(ranks) if ranks > 1 else [{}]
    command = [sys.executable, __file__, "--rank", json.dumps([batch, steps, seed, clock])]
    processes = [subprocess.Popen(command, env=os.environ | environment | {"OMP_NUM_THREADS": "1"}, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for environment in environments]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return max(json.loads(output.strip().splitlines()[-1]) for output in outputs)


def main() -> None:
    """Measure in turns and report."""
    if sys.argv[1:2] == ["--rank"]:
        rank_main(*json.loads(sys.argv[2]))
        return
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="pairs a process and step (default 32)")
    options = parser.parse_args()
    rounds, steps = (1, 4) if options.quick else (3, 8)
    one, two = [], []
    for _ in range(rounds):
        one.append(run(1, options.batch, steps, options.seed, options.clock))
        two.append(run(2, options.batch, steps, options.seed, options.clock))
    first, second = statistics.median(one), statistics.median(two)
    harness.report(options, {"one_process_step_seconds": first, "two_process_step_seconds": second,
                             "one_process_pairs_a_second": options.batch / first,
                             "two_process_pairs_a_second": 2 * options.batch / second, "speedup": 2 * first / second},
                   batch=options.batch, **SHAPE)


if __name__ == "__main__":
    main()
