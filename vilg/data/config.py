"""A run's data: the config that names the sources, and the stream that comes of it."""
from typing import Annotated

from pydantic import Field

from vilg.config import configclass
from vilg.data.benchmarks.source import BenchmarkConfig, BenchmarkSource
from vilg.data.images import MOST_PIXELS
from vilg.data.loader import LoaderConfig, Mixture, Stream
from vilg.data.sample import Reading, Source
from vilg.data.sources.codes import CodesConfig, CodesSource
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.shards import ShardsConfig, ShardStream
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource

MapConfig = ScenesConfig | FolderConfig | TableConfig | CodesConfig | BenchmarkConfig
FILES = {"folder": FolderSource, "table": TableSource, "shards": ShardStream, "benchmark": BenchmarkSource}


@configclass
class DataConfig:
    """The sources of a run, mixed by their ``repeat`` (times an epoch), and how batches are made of them.

    ``max_pixels``: an image with more counts as broken and is not decoded, which could take gigabytes.
    """

    sources: list[Annotated[MapConfig | ShardsConfig, Field(discriminator="kind")]]
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    max_pixels: int = Reading.max_pixels

    def __post_init__(self):
        if not 1 <= self.max_pixels <= MOST_PIXELS:
            raise ValueError(f"max_pixels lies between 1 and {MOST_PIXELS}, above which Pillow opens no image")
        kinds = {source.kind for source in self.sources}
        if not kinds:
            raise ValueError("sources: at least one is needed")
        if "codes" in kinds and len(kinds) > 1:
            raise ValueError("sources: codes and images do not mix; encode the images too")
        if "shards" in kinds and len(self.sources) > 1:
            raise ValueError("sources: shards stand alone; list all their patterns in one path, "
                             "and pack other data into shards with tools/prepare_data.py")


def build_source(config: MapConfig | ShardsConfig, fingerprint: str | None, reading: Reading = Reading()) -> Source:
    """The source that a config describes; ``fingerprint`` is the image tokenizer's that codes must come from."""
    if config.kind == "codes":
        return CodesSource(config, fingerprint)
    if config.kind == "scenes":
        return ScenesSource(config)
    return FILES[config.kind](config, reading)


def build_stream(config: DataConfig, fingerprint: str | None = None, least_side: int | None = None,
                 texts: bool = True) -> Stream:
    """A run's data as one stream. ``fingerprint`` is its image tokenizer's, None for a task that needs images;
    ``least_side`` and ``texts`` are the task's, as in :class:`vilg.data.sample.Reading`."""
    reading = Reading(least_side, texts, config.max_pixels)
    if config.sources[0].kind == "shards":
        return ShardStream(config.sources[0], reading)
    return Mixture([build_source(source, fingerprint, reading) for source in config.sources],
                   [source.repeat for source in config.sources])
