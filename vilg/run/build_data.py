"""A build of data with what stands above the data's own floor: the dual encoder that decides about likeness."""
from pathlib import Path

from vilg.config import load
from vilg.data.building.build import Build
from vilg.data.building.config import BuildConfig
from vilg.data.building.sieve import Encoder


def prepare(config: str | Path, overrides: list[str], inputs: list[str], output: str | Path) -> Build:
    """The build that a config file with its overrides says. Raises ConfigError."""
    return Build(load(config, BuildConfig, overrides), inputs, output, load_encoder)


def load_encoder(name: str) -> Encoder:
    """A released dual encoder by its name or folder, loaded where it is called: in a worker."""
    from vilg.app import pipeline

    return pipeline.load_encoder(name)
