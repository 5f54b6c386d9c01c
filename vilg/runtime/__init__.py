"""Which fast paths are on, and on how many threads: what a config, or a caller, may set for the process.

``python -m vilg.runtime`` prints what was set and why. :func:`configure` applies the ``runtime:`` part of a config.
"""
import logging
from typing import Literal

from vilg.config import configclass
from vilg.errors import ConfigError, VilgError
from vilg.machine import allocator, process, wheel

logger = logging.getLogger("vilg.runtime")

CPU_MATHS = ("fp32", "bf16", "int8")
"""What a model may be loaded to compute in on a CPU."""


@configclass
class RuntimeConfig:
    """How a run uses the machine."""

    threads: int = 0
    """CPU threads of this process; 0 means OMP_NUM_THREADS where the user set it,
    else this rank's share of the cores."""
    cpu_math: Literal["fp32", "bf16", "int8"] = "fp32"
    """Arithmetic of products and convolutions on a CPU: bf16 keeps float32 tensors and sums, and rounds the factors.
    int8 is for drawing alone (``vilg.load(…, cpu_math="int8")``), and refused in a config."""
    onednn: bool = True
    """Use the oneDNN of the Paddle wheel where its self-test passes."""
    jit: bool = True
    """Compile loops for some operators (group norm, GELU, …) where numba is installed and worth its loading."""
    allocator: bool = True
    """Keep freed memory in the process instead of returning it to the system: faster steps, a higher peak."""

    def __post_init__(self):
        if self.threads < 0:
            raise ValueError("threads must be 0 (choose) or a positive number")
        if self.cpu_math == "int8":
            raise ValueError("cpu_math: int8 is for drawing (vilg.load, --cpu-math int8), since int8 weights have no "
                             "gradients; a run computes in fp32 or bf16")


def configure(config: RuntimeConfig) -> None:
    """Apply the ``runtime:`` part of a config to this process; warns when ``cpu_math: bf16`` gains nothing here."""
    from vilg.kernels.jit import switch as loops
    from vilg.kernels.onednn import switch  # they import Paddle, which not every tool needs

    process.set_threads(config.threads or process.default_threads(process.user_environment("OMP_NUM_THREADS", True)))
    allocator.keep_freed_memory(config.allocator)
    switch.allow(config.onednn)
    loops.allow(config.jit)
    set_cpu_math(config.cpu_math)


def set_cpu_math(cpu_math: str) -> None:
    """Set the precision of products on a CPU for this process, one of :data:`CPU_MATHS`, and nothing else; warns when
    bf16 gains nothing here and when int8 cannot be had. In int8 what has no int8 weights computes in bf16 where that
    gains. Raises ConfigError for another word."""
    from vilg.kernels.onednn import int8, precision, switch

    if cpu_math not in CPU_MATHS:
        raise ConfigError(f"cpu_math is one of {', '.join(CPU_MATHS)}, not {str(cpu_math)[:40]!r}")
    bf16 = cpu_math in ("bf16", "int8")
    gains = switch.active() and precision.bf16_method() != "none"
    missing = int8.missing() if cpu_math == "int8" else ""
    if missing:
        logger.warning("cpu_math: int8 cannot be had on this machine (%s); computing in %s", missing,
                       "bf16" if gains else "fp32")
    precision.use_int8(cpu_math == "int8" and not missing)
    if cpu_math == "bf16" and not gains:
        logger.warning("runtime.cpu_math: bf16 gains nothing on this machine (%s); computing in fp32",
                       switch.reason() or "the CPU has no bf16 arithmetic")
    precision.use_bf16(bf16 and gains)


def set_device(device: str) -> None:
    """Make ``device`` ("cpu", "gpu:0" …) the one that tensors live on. Raises VilgError when it is not there."""
    import paddle

    kind, _, number = device.partition(":")
    here = {"cpu": 1, "gpu": paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0}
    known = number.isdigit() or not number
    if kind not in here or not known or int(number or 0) >= here[kind] or (kind == "cpu" and number):
        offered = ["cpu", *(f"gpu:{index}" for index in range(here["gpu"]))]
        missing = wheel.no_device(paddle) if kind == "gpu" else ""
        raise VilgError(f"the device {device!r} is not there; this machine and this Paddle offer {', '.join(offered)}"
                        + (f"; {missing}" if missing else ""))
    paddle.set_device(device)


def prepare(device: str | None, cpu_math: str | None) -> None:
    """:func:`set_device` and :func:`set_cpu_math`, of what is given."""
    if device:
        set_device(device)
    if cpu_math:
        set_cpu_math(cpu_math)


def computes_in(dtype: str) -> bool:
    """Whether the device of now multiplies in ``dtype`` ("bfloat16", "float16"). No CPU does, in Paddle."""
    import paddle

    able = {"bfloat16": paddle.amp.is_bfloat16_supported, "float16": paddle.amp.is_float16_supported}
    return paddle.get_device() != "cpu" and able[dtype]()
