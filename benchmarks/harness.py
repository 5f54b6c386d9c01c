"""What all benchmarks share: contestants in processes of their own, timed in turns, and figures as JSON.

Each contestant (ours, stock Paddle, torch) runs in its own process, because OpenMP runtimes, allocator settings and
BLAS switches belong to a process. They are timed in turns, so that a slow minute of the machine hits all of them, and
compared by their medians. ``--clock cpu`` with ``--threads 1`` counts processor time instead, which also means
something on a busy machine.
"""
import argparse
import ctypes
import gc
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.22
"""Seconds between contestants: an idle OpenMP team keeps spinning for 0.2 s and would take the next one's cores."""
SHORT_PAUSE = 0.03
"""The same after ours (whose team sleeps after 10 ms) and after torch (GNU's runtime: a few ms)."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
Case = Callable[[], Callable[[], None]]
"""Prepares one repetition and returns what is timed."""


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures, the settings and the machine "
                                                                  "there")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under 50 s; the same figures, noisier")
    parser.add_argument("--threads", type=int, default=0, help="threads of every contestant (default: physical cores)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall",
                        help="wall: seconds (default); cpu: processor time of the main thread, use it with --threads 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    return parser


def physical_cores() -> int:
    """Cores this process may run on, read without importing Paddle (whose import would take a contestant's place)."""
    return len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})


def _core_of(cpu: int) -> tuple[str, str]:
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


class Contestant:
    """One process that holds the cases of ``setup(threads, seed, *details)`` and times them when told to.

    ``setup`` is a function of the benchmark's own top level; it imports what it needs, so that the process of one
    contestant never loads another's library. ``environment`` is in force when that process begins. ``pause`` is how
    many seconds its idle threads need to leave the cores to others.
    """

    def __init__(self, name: str, setup: Callable[..., dict[str, Case]], options: argparse.Namespace, *details: Any,
                 environment: dict[str, str] | None = None, pause: float = PAUSE):
        self.name = name
        self.pause = 0.0 if options.threads == 1 else pause
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        job = (theirs, setup, options.threads or physical_cores(), options.seed, options.clock, details)
        self._process = context.Process(target=_serve, args=job, daemon=True)
        before = {key: os.environ.get(key) for key in environment or {}}
        os.environ.update(environment or {})
        try:
            self._process.start()
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        self.cases: list[str] = []

    def wait(self) -> "Contestant":
        """Wait until the process has set its cases up; raises RuntimeError with its traceback when it cannot."""
        self.cases = self._answer()
        return self

    def time(self, case: str, repetitions: int, uncounted: int = 1, limit: float = math.inf,
             least: int = 1) -> list[float]:
        """Seconds of every repetition, after ``uncounted`` that do not count; after ``limit`` seconds no other begins,
        once there are ``least``."""
        self._pipe.send((case, repetitions, uncounted, limit, least))
        return self._answer()

    def ask(self, case: str) -> Any:
        """What a case that is not timed answers: it is called once, and its result sent back."""
        return ask_all([self], case)[0]

    def close(self) -> None:
        """End the process at once: it has nothing to put in order, and letting libraries do so takes a second each."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name} died") from None
        if not good:
            raise RuntimeError(f"{self.name} failed:\n{answer}")
        return answer


def ask_all(contestants: Sequence[Contestant], case: str) -> list[Any]:
    """What :meth:`Contestant.ask` gives for each of them, which all work at once."""
    for contestant in contestants:
        contestant._pipe.send((case,))
    return [contestant._answer() for contestant in contestants]


def _serve(pipe, setup: Callable[..., dict[str, Case]], threads: int, seed: int, clock: str, details: tuple) -> None:
    now = CLOCKS[clock]
    try:
        cases = setup(threads, seed, *details)
        pipe.send((True, list(cases)))
        while (order := pipe.recv()) is not None:
            case, *amount = order
            pipe.send((True, _repeat(cases[case], now, *amount) if amount else cases[case]()))
    except EOFError:
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _repeat(case: Case, now: Callable[[], float], repetitions: int, uncounted: int, limit: float,
            least: int) -> list[float]:
    times = []
    end = math.inf
    for number in range(uncounted + repetitions):
        if number == uncounted:
            end = time.perf_counter() + limit
        elif number >= uncounted + least and time.perf_counter() > end:
            break
        timed = case()
        start = now()
        timed()
        times.append(now() - start)
        del timed  # what it holds is free for the next repetition, as it would be in a step
    return times[uncounted:]


def alternate(contestants: Sequence[Contestant], case: str, rounds: int, repetitions: int,
              uncounted: int = 1, limit: float = math.inf, least: int = 1) -> dict[str, float]:
    """Median seconds of ``case`` for every contestant that has it, timed in turns ``rounds`` times.

    One that is named twice has two turns a round. The rest is as in :meth:`Contestant.time`.
    """
    turns = [(contestant.name, contestant, case) for contestant in contestants if case in contestant.cases]
    return medians(take_turns(turns, rounds, repetitions, uncounted, limit, least))


def take_turns(turns: Sequence[tuple[str, Contestant, str]], rounds: int, repetitions: int, uncounted: int = 1,
               limit: float = math.inf, least: int = 1) -> dict[str, list[float]]:
    """All seconds by name: of (name, contestant, case), in that order, ``rounds`` times."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, contestant, case in turns:
            times.setdefault(name, []).extend(contestant.time(case, repetitions, uncounted, limit, least))
            time.sleep(contestant.pause)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The middle one of each name's seconds."""
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_growth(step: Callable[[], None]) -> float:
    """Megabytes by which this process's peak memory rises above its present size while ``step`` runs (Linux)."""
    before = resident_megabytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    step()
    return _status_kilobytes("VmHWM") / 1024 - before


def resident_megabytes() -> float:
    """Memory that this process holds, after everything freed was given back to the system (Linux)."""
    from vilg.machine import allocator

    gc.collect()
    allocator.give_back()
    return _status_kilobytes("VmRSS") / 1024


def _status_kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        flags = []
    isa = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]
    return {"machine_cpu": model, "machine_cores": physical_cores(), "machine_isa": " ".join(isa),
            "machine_load": round(os.getloadavg()[0], 2)}


def report(options: argparse.Namespace, figures: dict[str, float], **config: Any) -> None:
    """Print the figures, a line each, and write them to ``--json`` with settings, seed and machine."""
    for name, value in figures.items():
        print(f"{name:48s} {value:10.3f}" if isinstance(value, float) else f"{name:48s} {value}")
    if options.json:
        settings = {"threads": options.threads or physical_cores(), "clock": options.clock, "quick": options.quick,
                    **config}
        everything = {**figures, **{f"config_{key}": value for key, value in settings.items()}, "seed": options.seed,
                      **machine()}
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def random_batch(config: Any, size: int, rng: Any) -> Any:
    """A BidirectionalBatch of ``size`` samples of random ids and codes, as tensors, for a BidirectionalConfig."""
    import numpy as np
    import paddle

    from vilg.tasks.bidirectional import BidirectionalBatch

    text, length = config.text_length, np.full([size], config.text_length)
    batch = BidirectionalBatch(
        t2i_text=rng.integers(0, config.vocab_size, [size, text]), t2i_length=length,
        i2t_text=rng.integers(0, config.vocab_size, [size, text]), i2t_length=length,
        i2t_prefix=np.zeros([size], "int64"),
        codes=rng.integers(0, config.codebook_size, [size, config.rows * config.columns]))
    return batch.map(paddle.to_tensor)


def prepare_torch(threads: int, seed: int) -> Any:
    """torch with the allocator tuned as ours is and ``threads`` threads; returns the module."""
    # By its path, since importing vilg would import Paddle.
    spec = importlib.util.spec_from_file_location("allocator", ROOT / "vilg" / "machine" / "allocator.py")
    allocator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(allocator)
    allocator.keep_freed_memory(True)
    import torch

    # PyPI's torchvision is built for CUDA: beside a CPU build of torch what it tells torch.compile raises on import.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return torch


def prepare_stock(threads: int, seed: int) -> Any:
    """Paddle as it comes, on ``threads`` threads; returns the module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import paddle

    libraries = Path(paddle.__file__).parent / "libs"
    ctypes.CDLL(str(libraries / "libiomp5.so")).omp_set_num_threads(threads)
    paddle.seed(seed)
    paddle.ones([8, 8]) @ paddle.ones([8, 8])  # MKL chooses its code path now, not when vilg is imported after this
    return paddle


def prepare_ours(threads: int, seed: int, cpu_math: str = "fp32") -> Any:
    """Paddle set up by vilg, on ``threads`` threads; returns the module."""
    from vilg import runtime

    runtime.configure(runtime.RuntimeConfig(threads=threads, cpu_math=cpu_math))
    import paddle

    paddle.seed(seed)
    return paddle
