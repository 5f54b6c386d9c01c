"""Every config in configs/ is a run: it loads, and its opening comment names the command that runs it."""
import importlib
from pathlib import Path

import pytest

from vilg import config, yaml_files
from vilg.app.serving import server
from vilg.run import build

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "serve")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_loads_and_says_how_it_is_run(path):
    run = build.load_run(path)
    assert config.from_dict(build.RunConfig, config.to_dict(run)) == run
    opening = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(str(path.relative_to(ROOT)) in line for line in opening), "the opening comment lacks the command"


def test_the_config_of_replicas_is_one_of_the_server():
    path = ROOT / "configs" / "serve" / "ray.yaml"
    app, = yaml_files.read_yaml(path)["applications"]
    module, _, name = app["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    server.ServerConfig(**app["args"]).check_settings()
