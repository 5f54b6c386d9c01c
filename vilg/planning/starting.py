"""What starting, saving and coming back take: bytes of a device at initialisation, bytes of a checkpoint, seconds."""
from dataclasses import dataclass

from vilg.engine.parallel.distributed import DistributedConfig
from vilg.planning.memory import FLOAT, Shape, largest_parameter, parameter_count


@dataclass(frozen=True)
class Start:
    """Bytes unless the name says otherwise. ``init_peak``: of one device, while the model is made. ``checkpoint``: all
    ranks' files together; ``restart_read``: what all ranks together take from storage to resume on the same fleet."""

    init_peak: float
    init_seconds: float
    checkpoint: float
    checkpoint_seconds: float
    restart_read: float
    restart_seconds: float

    def figures(self) -> dict[str, float]:
        """Everything as a flat dict, sizes in GB."""
        return {"init_peak_gb": self.init_peak / 1e9, "init_seconds": self.init_seconds,
                "checkpoint_gb": self.checkpoint / 1e9, "checkpoint_seconds": self.checkpoint_seconds,
                "restart_gb": self.restart_read / 1e9, "restart_seconds": self.restart_seconds,
                "restart_bytes_over_checkpoint": self.restart_read / self.checkpoint}


def plan_start(shape: Shape, config: DistributedConfig, shard: int, count: int, ema: bool, context: float,
               bandwidth: float, storage: float) -> Start:
    """The plan of a fleet of ``count`` devices, ``shard`` of which share states; ``context`` bytes are there before.

    ``bandwidth`` and ``storage`` are bytes a second that a device gets from the others and from storage. Parameters
    are made late (:meth:`vilg.engine.parallel.distributed.Parallel.making`) where they are sliced or halved: a layer in
    float32 is there at a time, its half-precision copy beside it. Otherwise the whole model is.
    """
    parameters, half = parameter_count(shape), config.amp == "O2"
    weight = 2 if half else FLOAT
    kept = parameter_count(shape, config.mp_degree) * weight
    if config.level == "p_g_os":
        # Slices and, in half precision, their masters; offloaded ones lie on the host.
        kept = 0 if config.offload else (kept + (FLOAT * parameters if half else 0)) / shard
    late = half or config.level == "p_g_os"
    peak = context + kept + (largest_parameter(shape) * (FLOAT + weight) if late else 0)
    whole = config.level == "p_g_os" or config.mp_degree > 1  # which travels before it is cut
    sent = FLOAT * parameters if whole else weight * parameters if config.level == "dp" else 0
    # Weights are stored in float32, then both moments, and masters and the moving average where they are kept.
    stored = FLOAT * parameters * (3 + half + ema)
    seconds = stored / count / storage
    # A rank verifies one file and reads its own ranges there; what several hold goes on over the wires.
    shared = stored / count if config.level == "p_g_os" else weight * parameters
    return Start(peak, sent / bandwidth, stored, seconds, stored, seconds + shared / bandwidth)
