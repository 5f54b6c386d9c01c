"""A report of the machine: threads, instruction set, which fast paths are on and why not, speed of products."""
import time
from dataclasses import dataclass

import paddle

from vilg.kernels.jit import switch as loops
from vilg.kernels.onednn import precision, switch
from vilg.kernels.onednn.library import Unavailable, load
from vilg.machine import allocator, process
from vilg.nn import functional

_SIZE, _REPETITIONS = 1024, 12
_ISA = {0x01: "SSE4.1", 0x03: "AVX", 0x07: "AVX2", 0x0F: "AVX2 VNNI", 0x27: "AVX-512", 0x67: "AVX-512 VNNI",
        0xE7: "AVX-512 BF16", 0x1EF: "AVX-512 FP16", 0xFEF: "AVX-512 AMX", 0x1FEF: "AVX-512 AMX FP16"}


@dataclass
class Report:
    """What :func:`examine` found; speeds are GFLOP/s of a 1024³ product, 0 when not measured."""

    threads: int
    threads_reason: str
    isa: str
    onednn: str
    onednn_off: str
    loops_off: str
    bf16: str
    keeps_memory: bool
    stock_speed: float = 0.0
    fp32_speed: float = 0.0
    bf16_speed: float = 0.0


def examine(measure: bool = True) -> Report:
    """Look at this process, and time products unless ``measure`` is False (under a second)."""
    try:
        library = load()
        isa, version = _ISA.get(library.isa, hex(library.isa)), library.version
    except Unavailable:
        isa, version = "unknown", ""
    report = Report(process.threads(), process.threads_reason(process.user_environment("OMP_NUM_THREADS", True)), isa,
                    version, switch.reason(), loops.reason(), precision.bf16_method(), allocator.keeping())
    if measure:
        with functional.stock_operators():
            report.stock_speed = _speed()
        if switch.active():
            before = precision.bf16()
            precision.use_bf16(False)
            report.fp32_speed = _speed()
            if report.bf16 != "none":
                precision.use_bf16(True)
                report.bf16_speed = _speed()
            precision.use_bf16(before)
    return report


def text(report: Report) -> str:
    """The report, a line a finding."""
    methods = {"fpmath": "on AMX, converted inside the kernels", "cast": "on AVX-512 BF16, factors cast first",
               "none": "no gain on this CPU: cpu_math: bf16 would compute in fp32"}
    onednn = f"off: {report.onednn_off}" if report.onednn_off else f"on (oneDNN {report.onednn} of the Paddle wheel)"
    lines = [f"Paddle {paddle.__version__}, {report.threads} threads ({report.threads_reason})",
             f"instruction set   {report.isa}",
             f"oneDNN operators  {onednn}",
             f"compiled loops    {f'off: {report.loops_off}' if report.loops_off else 'on'}",
             f"bf16 products     {methods[report.bf16]}",
             f"freed memory      {'kept for the next tensor' if report.keeps_memory else 'returned to the system'}"]
    speeds = [("stock fp32", report.stock_speed), ("fp32", report.fp32_speed), ("bf16", report.bf16_speed)]
    measured = [f"{name} {speed:.0f}" for name, speed in speeds if speed]
    if measured:
        lines.append(f"GFLOP/s           {', '.join(measured)} ({_SIZE}×{_SIZE}×{_SIZE})")
    return "\n".join(lines)


def _speed() -> float:
    with paddle.no_grad():
        a, b = paddle.randn([_SIZE, _SIZE]), paddle.randn([_SIZE, _SIZE])
        seconds = []
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            functional.linear(a, b)
            seconds.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(seconds) / 1e9
