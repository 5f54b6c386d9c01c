"""Before a big run: what it takes of memory, traffic and time, on a given fleet,
or the smallest fleet that holds it."""
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from vilg.engine.parallel.distributed import DistributedConfig
from vilg.engine.parallel.tensor_parallel import check_program
from vilg.engine.trainer import TrainConfig
from vilg.errors import ConfigError
from vilg.nn.attention.patterns import SOURCE, TARGET
from vilg.planning.memory import (
    FLOAT, Shape, StepPlan, attention_keys, backward_peak, block_parameters, divided_traffic, kept_bytes,
    largest_parameter, parameter_count,
)
from vilg.planning.starting import Start, plan_start

GB = 1e9
# CUDA context, communication library and cuBLAS workspaces of one process: a usual figure, not measured here.
CONTEXT_BYTES = 1.5 * GB
# Part of a device that fragmentation makes useless.
FRAGMENTED = 0.05


@dataclass(frozen=True)
class Devices:
    """The fleet: ``count`` devices of ``memory`` GB, ``peak`` TFLOP/s used at ``efficiency``, ``bandwidth`` GB/s of
    collectives a device, ``node_bandwidth`` of those within a node, over which a model is divided, ``host_bandwidth``
    GB/s between a device and its host, ``storage`` GB/s of files a device."""

    count: int
    memory: float
    peak: float = 312.0
    efficiency: float = 0.4
    bandwidth: float = 100.0
    host_bandwidth: float = 20.0
    storage: float = 1.0
    node_bandwidth: float = 200.0


@dataclass
class Plan:
    """What a run takes on a fleet. Bytes are of one device unless the name says otherwise."""

    devices: Devices
    parameters: int
    micro_batch: int
    accumulate_steps: int
    memory: dict[str, float]
    host_bytes: float
    flops_per_token: float
    tokens_per_step: int
    exchanged_bytes: float
    node_bytes: float
    host_traffic_bytes: float
    step_seconds: float
    days: float
    mfu: float
    start: Start
    notes: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> float:
        """Memory of one device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a device holds it, fragmentation allowed for."""
        return self.total_bytes <= self.devices.memory * GB * (1 - FRAGMENTED)

    def figures(self) -> dict[str, float]:
        """Everything as one flat dict, sizes in GB."""
        parts = {f"memory_gb_{name.replace(' ', '_')}": value / GB for name, value in self.memory.items()}
        return {"parameters": self.parameters, "micro_batch": self.micro_batch,
                "accumulate_steps": self.accumulate_steps, "memory_gb": self.total_bytes / GB,
                "fits": int(self.fits), **parts, "host_gb": self.host_bytes / GB,
                "flops_per_token": self.flops_per_token, "exchanged_gb_a_step": self.exchanged_bytes / GB,
                "exchanged_in_node_gb_a_step": self.node_bytes / GB,
                "host_traffic_gb_a_step": self.host_traffic_bytes / GB, "step_seconds": self.step_seconds,
                "days": self.days, "mfu": self.mfu, **self.start.figures()}


def make_plan(shape: Shape, train: TrainConfig, distributed: DistributedConfig, devices: Devices, pairs: float) -> Plan:
    """The plan of a run of ``pairs`` picture–text pairs. Raises ConfigError where the fleet and the config disagree."""
    train.check_parallel(distributed, devices.count)
    level, divided = distributed.level, distributed.mp_degree
    check_program(shape.program, divided)
    count = devices.count // divided
    shard = 1 if level in ("none", "dp") else distributed.sharding_degree or count
    every = {"none": 0, "full": 1}.get(distributed.recompute, distributed.recompute)
    micro = train.micro_batch_size(count)
    # O1 keeps sums and norms in float32, and casts of products besides: counted as float32, which is never too little.
    half = distributed.amp == "O2"
    step = StepPlan(micro, half=half, flash=distributed.amp != "none", recompute_every=every, gelu_again=half,
                    logits_again=half, divided=divided)
    parameters, held, (_, gradient) = parameter_count(shape), parameter_count(shape, divided), _bytes_each(distributed)
    memory, host = _standing(held, distributed, shard, count, bool(train.ema_decay))
    kept = kept_bytes(shape, step)
    memory |= {f"activations: {name}": float(value) for name, value in kept.items()}
    whole = level in ("none", "dp", "os")
    in_flight = backward_peak(shape, step, gradient, whole) - sum(kept.values())
    memory["backward: workspace and gradients" if whole else "backward: workspace"] = float(max(in_flight, 0))
    memory |= _buffers(shape, distributed, shard)
    flops, tokens = flops_per_token(shape, every), 2 * train.batch_size * shape.layout.length
    exchanged, host_traffic = _traffic(held, distributed, shard, count, train.accumulate_steps, bool(every))
    in_node = float(train.accumulate_steps * divided_traffic(shape, step))
    seconds = (flops * tokens / (devices.count * devices.peak * 1e12 * devices.efficiency)
               + exchanged / (devices.bandwidth * GB) + in_node / (devices.node_bandwidth * GB)
               + host_traffic / (devices.host_bandwidth * GB))
    start = plan_start(shape, distributed, shard, devices.count, bool(train.ema_decay), CONTEXT_BYTES,
                       devices.bandwidth * GB, devices.storage * GB)
    # Of the peak, what the model's own arithmetic takes: computing again does not count.
    mfu = flops_per_token(shape) * tokens / (seconds * devices.count * devices.peak * 1e12)
    return Plan(devices, parameters, micro, train.accumulate_steps, memory, host, flops, tokens, exchanged,
                in_node, host_traffic, seconds, pairs / train.batch_size * seconds / 86400, mfu, start,
                _notes(distributed))


def smallest_fleet(shape: Shape, train: TrainConfig, distributed: DistributedConfig, devices: Devices, pairs: float,
                   days: float = inf, limit: int = 4096) -> Plan:
    """The plan on the fewest devices (1, 2, 4 …, or so many times ``sharding_degree``) whose memory holds it and that
    are done within ``days``, with as few micro-batches as memory allows.

    Raises ConfigError when even ``limit`` devices do not do.
    """
    count = distributed.mp_degree * (distributed.sharding_degree or (2 if distributed.level != "none" else 1))
    if train.batch_size % count:
        raise ConfigError(f"train.batch_size: {train.batch_size} does not divide over {count} devices, the fewest that "
                          f"distributed.level {distributed.level} is for; use a multiple of {count}")
    while count <= limit and train.batch_size % count == 0:
        fleet, share = replace(devices, count=count), train.batch_size // (count // distributed.mp_degree)
        for accumulate in (steps for steps in range(1, share + 1) if share % steps == 0):
            plan = make_plan(shape, train_with(train, accumulate_steps=accumulate), distributed, fleet, pairs)
            if plan.fits and plan.days <= days:
                return plan
        count *= 2
    soon = f" and is done within {days:g} days" if days < inf else ""
    raise ConfigError(f"distributed.level: {distributed.level} on devices of {devices.memory:.0f} GB fits{soon} on no "
                      f"fleet of up to {count // 2}; use level p_g_os, recompute: full, amp: O2, offload: true or a "
                      "train.batch_size that divides further" + (", or allow more days" if soon else ""))


def train_with(train: TrainConfig, **changes: Any) -> TrainConfig:
    """``train`` with some fields changed."""
    return TrainConfig(**{**{name: getattr(train, name) for name in TrainConfig.__dataclass_fields__}, **changes})


def flops_per_token(shape: Shape, recompute_every: int = 0) -> float:
    """FLOPs of training on one slot of a stream: 2 a parameter and 4·D a visible key forward, twice that backward.

    Averaged over both directions; recomputed blocks run forward once more. Embedding look-ups cost nothing.
    """
    layout, roles = shape.layout, (TARGET, SOURCE)
    forward = backward = 0.0
    for number, pattern in enumerate(shape.patterns):
        keys = 0.0
        for role in roles:
            image, text = attention_keys(shape, pattern, role)
            keys += (layout.image * image + layout.text * text) / layout.length / len(roles)
        block = 2 * block_parameters(shape) + 4 * shape.width * keys
        forward += block * (2 if recompute_every and number % recompute_every == 0 else 1)
        backward += 2 * block
    heads = 2 * shape.width * (layout.image * shape.codebook_size + layout.text * shape.vocab_size) / layout.length / 2
    return forward + backward + 3 * heads


def _bytes_each(config: DistributedConfig) -> tuple[int, int]:
    """Bytes of a weight and of its gradient."""
    half = config.amp == "O2"
    return 2 if half else FLOAT, 2 if half and not config.float32_gradients else FLOAT


def _standing(parameters: int, config: DistributedConfig, shard: int, count: int,
              average: bool) -> tuple[dict[str, float], float]:
    """What is there throughout a run on a device, by part, and on its host (bytes)."""
    level, sharded, (weight, gradient) = config.level, shard > 1, _bytes_each(config)
    parts = {"weights": parameters * weight / (shard if level == "p_g_os" else 1),
             "optimizer moments": 8 * parameters / shard}
    if level in ("os_g", "p_g_os"):
        parts["gradients"] = parameters * gradient / shard
    if config.amp == "O2":
        parts["master weights"] = 4 * parameters / shard
    if average:
        parts["moving average"] = 4 * parameters / (shard if sharded else count)
    host = 0.0
    if config.offload:
        moved = ("optimizer moments", "master weights") + (("weights", "gradients") if level == "p_g_os" else ())
        host = sum(parts.pop(name, 0.0) for name in moved)
    return parts | {"context of the process": CONTEXT_BYTES}, host


def _buffers(shape: Shape, config: DistributedConfig, shard: int) -> dict[str, float]:
    """Whole weights and gradients that sharding has on a device for a moment."""
    weight, gradient = _bytes_each(config)
    if config.level == "p_g_os":
        # The layer at hand and the one that is fetched ahead, and the gradient of the first.
        return {"gathered layers": float(largest_parameter(shape) * (2 * weight + gradient))}
    # A bucket for every rank that gradients go to.
    return {"gradient buckets": float(shard * config.buffer_size * gradient)} if config.level in ("os", "os_g") else {}


def _traffic(parameters: int, config: DistributedConfig, shard: int, count: int, accumulate: int,
             recompute: bool) -> tuple[float, float]:
    """Bytes that a device exchanges with others, and with its host, in an optimizer step."""
    weights, gradients = (parameters * size for size in _bytes_each(config))
    level = config.level
    if level == "none":
        return 0.0, 0.0
    if level == "dp":
        return 2.0 * gradients * (count - 1) / count, 0.0
    part = (shard - 1) / shard
    if level == "p_g_os":
        # Weights are gathered for forward, for backward and for recomputing; gradients are all-reduced whole.
        gathers = 3 if recompute else 2
        exchanged = accumulate * (gathers * weights + 2 * gradients) * part
        moved = accumulate * (gathers * weights + gradients) / shard if config.offload else 0.0
        return exchanged, moved
    reductions = 1 if level == "os" else accumulate
    replicas = 2.0 * gradients / shard if count > shard else 0.0
    return (reductions * gradients + weights) * part + replicas, 0.0


def _notes(config: DistributedConfig) -> list[str]:
    notes = ["communication is counted on top of computing: the gradient exchange does not overlap with it"]
    if config.amp == "none":
        notes.append("amp: none computes in float32; peak should be the float32 one")
    if config.level == "p_g_os":
        notes.append("parameters below segment_size stay whole on every device; they are a small part and not counted")
    return notes
