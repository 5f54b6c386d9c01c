"""What drawing takes on one CPU, from a model's shape and the machine's memory: a step reads every weight once."""
from dataclasses import dataclass

from vilg.errors import ConfigError
from vilg.kernels.onednn import int8, precision
from vilg.machine import memory
from vilg.machine.bandwidth import read_bandwidth
from vilg.nn.program import Map
from vilg.planning.memory import FLOAT, Shape, largest_parameter, parameter_count

GB = 1e9
WEIGHT = {"fp32": 4, "bf16": 2, "int8": 1}
"""Bytes of a weight as a step reads it."""
CACHE = {"fp32": FLOAT, "bf16": FLOAT, "int8": 2}
"""Bytes of a key or value that is remembered."""
PROCESS_BYTES = 0.6 * GB
"""Paddle, an image tokenizer and what a step computes with."""
REACHED = 0.75
"""Of the bandwidth that a step reaches, by docs/measurements/int8.md."""


@dataclass(frozen=True)
class Drawing:
    """Drawing ``batch`` images at a time in ``cpu_math``: bytes in memory and of a step, and how long it takes."""

    cpu_math: str
    batch: int
    memory_bytes: float
    free_bytes: float
    step_bytes: float
    bandwidth: float
    step_seconds: float
    image_seconds: float
    missing: str = ""

    @property
    def fits(self) -> bool:
        """Does free memory hold it?"""
        return self.memory_bytes <= self.free_bytes

    def figures(self) -> dict[str, float]:
        """Everything as one flat dict, named by ``cpu_math``."""
        found = {"memory_gb": self.memory_bytes / GB, "fits": int(self.fits), "step_gb": self.step_bytes / GB,
                 "step_seconds": self.step_seconds, "image_seconds": self.image_seconds}
        return {f"draw_{self.cpu_math}_{name}": value for name, value in found.items()}


def plan_drawing(shape: Shape, batch: int, bandwidth: float = 0, free: float = 0) -> list[Drawing]:
    """Drawing with a model of ``shape`` in every arithmetic, on this machine: ``bandwidth`` (bytes a second) and
    ``free`` memory are measured where they are 0. Raises ConfigError for a batch below 1."""
    if batch < 1:
        raise ConfigError(f"a batch holds at least 1 image, not {batch}")
    bandwidth, free = bandwidth or read_bandwidth(), free or memory.free()
    return [_drawing(shape, batch, cpu_math, bandwidth, free) for cpu_math in WEIGHT]


def _drawing(shape: Shape, batch: int, cpu_math: str, bandwidth: float, free: float) -> Drawing:
    read, caches = weight_bytes(shape, cpu_math), batch * cache_bytes(shape, cpu_math)
    step = read + batch * seen_bytes(shape, cpu_math)
    seconds = step / (bandwidth * REACHED)
    missing = {"int8": int8.missing(), "bf16": "" if precision.bf16_method() != "none" else "the CPU has no bf16 "
               "arithmetic"}.get(cpu_math, "")
    # Steps in fp32 and bf16 have a copy of the weights laid out for them, beside the model's own float32.
    held = _other_parameters(shape) * FLOAT + (read if cpu_math == "int8" else _read_parameters(shape) * FLOAT + read)
    transient = largest_parameter(shape) * (1 if cpu_math == "int8" else FLOAT)
    return Drawing(cpu_math, batch, held + transient + caches + PROCESS_BYTES, free, step, bandwidth, seconds,
                   seconds * shape.layout.image / batch, missing)


def weight_bytes(shape: Shape, cpu_math: str) -> int:
    """What a step of drawing reads of the weights: the maps of all blocks, and the head of codes."""
    maps = sum(each.inputs * each.outputs for each in shape.program if isinstance(each, Map))
    return (shape.layers * maps + shape.width * shape.codebook_size) * WEIGHT[cpu_math]


def cache_bytes(shape: Shape, cpu_math: str) -> int:
    """Keys and values of one whole image and its text, in all layers."""
    slots = (pattern.slots(shape.layout) for pattern in shape.patterns)
    entries = sum(each.count * each.entries + shape.layout.text for each in slots)
    return 2 * entries * shape.width * CACHE[cpu_math]


def seen_bytes(shape: Shape, cpu_math: str) -> int:
    """Keys and values that a step in the middle of an image reads, of all layers."""
    middle, text = shape.layout.image // 2, shape.layout.text
    read = (pattern.slots(shape.layout).near(middle) for pattern in shape.patterns)
    return 2 * sum(near.stop - near.start + text for near in read) * shape.width * CACHE[cpu_math]


def _read_parameters(shape: Shape) -> int:
    """Of all linear maps: those of a step, and the head of words."""
    return weight_bytes(shape, "int8") + shape.width * shape.vocab_size


def _other_parameters(shape: Shape) -> int:
    """Tables, norms and biases, which are float32."""
    return parameter_count(shape) - _read_parameters(shape)
