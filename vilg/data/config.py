"""A run's data: the config that names the sources, and the stream that comes of it."""
from typing import Annotated

from pydantic import Field

from vilg.config import configclass
from vilg.data.loader import LoaderConfig, Mixture, Stream
from vilg.data.sample import Source
from vilg.data.sources.codes import CodesConfig, CodesSource
from vilg.data.sources.folder import FolderConfig, FolderSource, ScenesConfig, ScenesSource, TableConfig, TableSource
from vilg.data.sources.shards import ShardsConfig, ShardStream

MapConfig = ScenesConfig | FolderConfig | TableConfig | CodesConfig
SOURCES = {"scenes": ScenesSource, "folder": FolderSource, "table": TableSource, "shards": ShardStream}


@configclass
class DataConfig:
    """The sources of a run, mixed by their ``repeat`` (times an epoch), and how batches are made of them."""

    sources: list[Annotated[MapConfig | ShardsConfig, Field(discriminator="kind")]]
    loader: LoaderConfig = Field(default_factory=LoaderConfig)

    def __post_init__(self):
        kinds = {source.kind for source in self.sources}
        if not kinds:
            raise ValueError("sources: at least one is needed")
        if "codes" in kinds and len(kinds) > 1:
            raise ValueError("sources: codes and pictures do not mix; encode the pictures too")
        if "shards" in kinds and len(self.sources) > 1:
            raise ValueError("sources: shards stand alone; list all their patterns in one path, "
                             "and pack other data into shards with tools/prepare_data.py")


def build_source(config: MapConfig | ShardsConfig, fingerprint: str | None) -> Source:
    """The source that a config describes; ``fingerprint`` is the image tokenizer's that codes must come from."""
    if config.kind == "codes":
        return CodesSource(config, fingerprint)
    return SOURCES[config.kind](config)


def build_stream(config: DataConfig, fingerprint: str | None = None) -> Stream:
    """A run's data as one stream. ``fingerprint`` is its image tokenizer's, None for a task that needs pictures."""
    if config.sources[0].kind == "shards":
        return ShardStream(config.sources[0])
    return Mixture([build_source(source, fingerprint) for source in config.sources],
                   [source.repeat for source in config.sources])
