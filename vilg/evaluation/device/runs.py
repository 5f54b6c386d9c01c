"""Checks of whole runs: training, resuming, drawing, several ranks; and the timings of ``--big``."""
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from vilg.app import pipeline
from vilg.engine.optim import OptimConfig
from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.evaluation.device.checks import Check, demand, gpus_here
from vilg.evaluation.device.small_run import SMALL, SmallTask, in_ranks, random_batch, train
from vilg.generation.autoregressive import generate_images
from vilg.generation.sampling import SamplingConfig
from vilg.models.bidirectional import BidirectionalConfig
from vilg.planning.plan import flops_per_token

TEN_BILLION_WIDE = BidirectionalConfig(layers=4, width=4096, heads=64, vocab_size=18000, codebook_size=8192,
                                       text_length=64, rows=32, columns=32)
"""Four blocks of the shipped 10 B config."""
SCALED = {"loss_scale": 1024.0}
SHARDED = {"os": {"buffer_size": 4096}, "os_g": {"buffer_size": 4096}, "p_g_os": {"segment_size": 256}}


def checks() -> Iterator[Check]:
    """The runs' checks."""
    for amp, dtype in (("none", "bfloat16"), ("O1", "bfloat16"), ("O1", "float16"), ("O2", "bfloat16"),
                       ("O2", "float16")):
        for recompute in ("none", "full"):
            settings = {"amp": amp, "amp_dtype": dtype, "recompute": recompute} | SCALED
            needs, name = int(amp != "none"), f"amp {amp}{'' if amp == 'none' else ' ' + dtype} recompute {recompute}"
            yield Check(f"train: {name} learns", needs, lambda settings=settings: _learns(settings))
            if recompute == "none":
                yield Check(f"resume: {name} is bit for bit the whole run", needs,
                            lambda settings=settings: _resumes(settings, 1))
    yield Check("memory: a half-precision model is never there in float32", 1, _made_layer_by_layer)
    yield Check("draw: greedy codes are the CPU's", 1, _draws_as_the_cpu)
    yield Check("draw: the shipped model draws and describes", 0, _shipped)
    for dtype in ("bfloat16", "float16"):
        yield Check(f"draw: the shipped model in {dtype}", 1, lambda dtype=dtype: _shipped(dtype))
    yield from _of_ranks()
    yield Check("big: blocks of the 10 B config, forward and backward", 1, _big_blocks, big=True)
    yield Check("big: collectives between two GPUs", 2, _big_run_of_two, big=True)


def _of_ranks() -> Iterator[Check]:
    yield Check("ranks: dp in 2 processes, as one; resumes", 0 if not gpus_here() else 2,
                lambda: _ranks({"level": "dp"}, 2))
    yield Check("ranks: a model divided over 2 processes, as one; resumes", 0 if not gpus_here() else 2,
                lambda: _ranks({"mp_degree": 2}, 2))
    for dtype in ("bfloat16", "float16"):
        for recompute in ("none", "full"):
            settings = {"mp_degree": 2, "amp": "O2", "amp_dtype": dtype, "recompute": recompute} | SCALED
            yield Check(f"ranks: mp_degree 2 amp O2 {dtype} recompute {recompute}, 2 GPUs as one; resumes", 2,
                        lambda settings=settings: _ranks(settings, 2))
    for level in ("dp", "os", "os_g"):
        settings = {"mp_degree": 2, "level": level, "amp": "O2"} | SHARDED.get(level, {})
        yield Check(f"ranks: mp_degree 2 under {level}, 8 GPUs as one; resumes", 8,
                    lambda settings=settings: _ranks(settings, 8))
    for level in ("dp", "os", "os_g", "p_g_os"):
        for amp, dtype in (("none", "bfloat16"), ("O2", "bfloat16"), ("O2", "float16")):
            for offload in (False, True)[:1 + (level == "p_g_os")]:
                for recompute in ("none", "full"):
                    settings = {"level": level, "amp": amp, "amp_dtype": dtype, "offload": offload,
                                "recompute": recompute} | SCALED | SHARDED.get(level, {})
                    name = f"{level} amp {amp} {dtype}{' offload' * offload} recompute {recompute}"
                    yield Check(f"ranks: {name}, 2 GPUs as one; resumes", 2,
                                lambda settings=settings: _ranks(settings, 2))
    for level in ("os_g", "p_g_os"):
        settings = {"level": level, "amp": "O2", "sharding_degree": 4} | SHARDED[level]
        yield Check(f"ranks: {level} in two groups of four, 8 GPUs as one; resumes", 8,
                    lambda settings=settings: _ranks(settings, 8))


def _learns(settings: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        losses = train(Path(folder) / "run", 12, **settings)["losses"]
    demand(bool(np.isfinite(losses).all()) and losses[-1] < losses[0], f"losses {losses}")
    rounded = [float(np.round(loss * 64) / 64) for loss in losses]
    demand(losses != rounded, f"losses have the 8 bits of bfloat16 alone: {losses[:4]}")
    return f"{losses[0]:.4f} → {losses[-1]:.4f}"


def _resumes(settings: dict[str, Any], ranks: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(output: str, steps: int, resume: str = "none") -> dict[str, Any]:
            if ranks > 1:
                return in_ranks(folder, ranks, output=output, steps=steps, resume=resume, batch=16, **settings)
            return train(folder / output, steps, resume, ema=0.9, **settings)

        whole = run("whole", 8)
        run("cut", 4)
        resumed = run("cut", 8, "auto")
    demand(resumed["losses"] == whole["losses"], f"losses {resumed['losses'][4:]} after, {whole['losses'][4:]} without")
    demand(whole["states"]["moment1"] == whole["states"]["moment2"] > 0, f"states in the checkpoint: {whole['states']}")
    return f"{whole['losses'][0]:.4f} → {whole['losses'][-1]:.4f}, {whole['states']}"


def _ranks(settings: dict[str, Any], ranks: int) -> str:
    note = _resumes(settings, ranks)
    alone = {name: value for name, value in settings.items() if name in ("amp", "amp_dtype", "recompute", "loss_scale")}
    with tempfile.TemporaryDirectory() as name:
        together = in_ranks(Path(name), ranks, output="run", steps=4, batch=16, **settings)["losses"]
        one = train(Path(name) / "one", 4, batch=16, accumulate=ranks, **alone)["losses"]
    error = float(np.abs(np.array(together) / np.array(one) - 1).max())
    demand(error < (1e-4 if settings.get("amp", "none") == "none" else 3e-2), f"losses {together}, and {one} in one")
    return f"{note}; {error:.1e} from one process"


def _made_layer_by_layer() -> str:
    shape = BidirectionalConfig(layers=8, width=1024, heads=16, vocab_size=90, codebook_size=70, text_length=8, rows=8,
                                columns=8)
    parallel, device = Parallel(DistributedConfig(amp="O2")), paddle.device.cuda
    device.empty_cache()
    device.reset_max_memory_allocated()
    before, task = device.memory_allocated(), SmallTask(shape, parallel)
    parallel.phase_optimizer(task.phases[0], OptimConfig(), {})
    weights = 2 * sum(tensor.size for tensor in task.phases[0].parameters.values())
    peak = (device.max_memory_allocated() - before) / weights
    demand(peak < 1.5, f"the peak is {peak:.2f} × the half-precision weights")
    return f"{peak:.2f} × the half-precision weights"


def _draws_as_the_cpu() -> str:
    codes, weights = {}, None
    for place in ("gpu:0", "cpu"):
        paddle.set_device(place)
        try:
            task = SmallTask(SMALL, Parallel(DistributedConfig()))
            if weights is None:
                weights = {name: tensor.numpy() for name, tensor in task.model.state_dict().items()}
            task.model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
            task.model.eval()
            batch = random_batch(SMALL, range(2)).map(paddle.to_tensor)
            codes[place] = generate_images(task.model, batch.t2i_text, batch.t2i_length,
                                           sampling=SamplingConfig(temperature=0.0)).codes.numpy()
        finally:
            paddle.set_device("gpu:0")
    same = float((codes["gpu:0"] == codes["cpu"]).mean())
    demand(same > 0.95, f"{same:.0%} of the codes are the CPU's")
    return f"{same:.0%} of the codes"


def _shipped(dtype: str | None = None) -> str:
    model = pipeline.load("ernie_vilg_tiny", device="gpu:0" if gpus_here() else "cpu", dtype=dtype)
    image = model.text_to_image("一个红色的圆形", num_images=1)[0][0]
    return model.image_to_text([image])[0]


def _big_blocks() -> str:
    parallel, pairs, seconds = Parallel(DistributedConfig(amp="O2")), 4, []
    task = SmallTask(TEN_BILLION_WIDE, parallel)
    optimizer = parallel.phase_optimizer(task.phases[0], OptimConfig(), {})
    batch = random_batch(TEN_BILLION_WIDE, range(pairs)).map(paddle.to_tensor)
    for _ in range(8):
        paddle.device.synchronize()
        start = time.monotonic()
        with parallel.autocast():
            loss = optimizer.forward(batch, 0, True, True).loss
        loss.backward()
        paddle.device.synchronize()
        seconds.append(time.monotonic() - start)
        optimizer.clear()
    work = flops_per_token(TEN_BILLION_WIDE) * 2 * pairs * TEN_BILLION_WIDE.layout.length
    memory = paddle.device.cuda.max_memory_allocated() / 1e9
    return f"{min(seconds) * 1e3:.0f} ms, {work / min(seconds) / 1e12:.0f} TFLOP/s, peak {memory:.1f} GB"


def _big_run_of_two() -> str:
    notes = []
    for level in ("os_g", "p_g_os"):
        with tempfile.TemporaryDirectory() as name:
            start = time.monotonic()
            in_ranks(Path(name), 2, output="run", steps=40, batch=64, level=level, amp="O2")
            notes.append(f"{level} {time.monotonic() - start:.1f} s for 40 steps, start included")
    return ", ".join(notes)
