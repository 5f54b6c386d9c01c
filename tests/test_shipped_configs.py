"""Every config in configs/ is a run: it loads, and its opening comment names the command that runs it."""
import importlib
from pathlib import Path

import pytest

from vilg import config, yaml_files
from vilg.app.serving import server
from vilg.data.building.config import BuildConfig
from vilg.run import build

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "serve")
BUILDS = {"data": BuildConfig}
"""Folders of configs that are no run of training."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_loads_and_says_how_it_is_run(path):
    kind = BUILDS.get(path.relative_to(ROOT / "configs").parts[0], build.RunConfig)
    run = build.load_run(path) if kind is build.RunConfig else config.load(path, kind)
    assert config.from_dict(kind, config.to_dict(run)) == run
    opening = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(str(path.relative_to(ROOT)) in line for line in opening), "the opening comment lacks the command"


def test_the_config_of_replicas_is_one_of_the_server():
    path = ROOT / "configs" / "serve" / "ray.yaml"
    app, = yaml_files.read_yaml(path)["applications"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    server.ServerConfig(**app["args"]).check_settings()
