"""How fast batches come, and what share of its time a training step waits for them.

    python benchmarks/data_wait.py                   about a minute
    python benchmarks/data_wait.py --workers 2 --step 0.05

A consumer that computes for --step seconds a batch of 32 stands in for training; on a busy machine the share grows, as
it would there. Keys of --json: <kind>_samples_per_second with nothing to compute, <kind>_wait_share with; the kinds are
scenes (drawn as they are asked for), shards (256-pixel JPEG in tar files, cropped) and codes (of scenes).
"""
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

from vilg.data.loader import Loader, LoaderConfig, Mixture, Stream
from vilg.data.packing import Packing, write_shards
from vilg.data.sample import Sample
from vilg.data.sources.codes import CodesConfig, CodesSource, write_codes
from vilg.data.sources.shards import ShardsConfig, ShardStream
from vilg.data.transforms import to_model
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource

BATCH = 32


def main() -> None:
    """Time the three kinds."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1, help="loader threads (%(default)s)")
    parser.add_argument("--step", type=float, default=0.1, help="seconds of computing a batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=60, help="batches timed (%(default)s; 25 with --quick)")
    options = parser.parse_args()
    batches = min(options.batches, 25) if options.quick else options.batches
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, stream in streams(Path(folder)).items():
            config = LoaderConfig(workers=options.workers)
            seconds = consume(stream, config, batches, 0.0, options.seed)[0]
            figures[f"{kind}_samples_per_second"] = BATCH * batches / seconds
            seconds, waited = consume(stream, config, batches, options.step, options.seed)
            figures[f"{kind}_wait_share"] = waited / seconds
    harness.report(options, figures, workers=options.workers, step=options.step, batch=BATCH)


def streams(folder: Path) -> dict[str, Stream]:
    """The three kinds of data, in files under ``folder`` where they need some."""
    write_shards(folder / "shards", ScenesSource(ScenesConfig(count=512, size=256)), Packing("jpg"), 64)
    write_codes(folder / "codes", ScenesSource(ScenesConfig(count=2048)),
                lambda images: images[:, ::8, ::8, 0].reshape(len(images), -1), 64, "none")
    return {"scenes": Mixture([ScenesSource(ScenesConfig())]),
            "shards": ShardStream(ShardsConfig(path=str(folder / "shards"))),
            "codes": Mixture([CodesSource(CodesConfig(path=str(folder / "codes")), "none")])}


def collate(samples: list[Sample], seeds: list[int]) -> np.ndarray:
    """Pixels as the model takes them, or codes."""
    if samples[0].codes is not None:
        return np.stack([sample.codes for sample in samples])
    return np.stack([to_model(sample.image) for sample in samples])


def consume(stream: Stream, config: LoaderConfig, batches: int, step: float, seed: int) -> tuple[float, float]:
    """Seconds for ``batches`` batches with ``step`` seconds of computing each, and the seconds of it spent waiting."""
    loader = Loader(stream, config, collate, BATCH, seed)
    next(loader)
    before, start = loader.waited, time.perf_counter()
    square = np.ones((512, 512), np.float32)
    for _ in range(batches):
        next(loader)
        until = time.perf_counter() + step
        while time.perf_counter() < until:
            square @ square
    seconds, waited = time.perf_counter() - start, loader.waited - before
    loader.close()
    return seconds, waited


if __name__ == "__main__":
    main()
