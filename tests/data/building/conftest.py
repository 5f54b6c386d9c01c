"""Raw pairs with planted faults, and builds of them."""
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def planted():
    """The benchmark's maker of raw pairs."""
    spec = importlib.util.spec_from_file_location("planted", ROOT / "benchmarks" / "planted.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def raw(planted, tmp_path_factory):
    """A folder of tars: 240 pairs of which a third is planted; and what is planted, by name."""
    folder = tmp_path_factory.mktemp("raw") / "web"
    return folder, planted.write_tars(planted.pairs(240, seed=3, share=0.05), folder, a_tar=60)


@pytest.fixture(scope="session")
def blocked(tmp_path_factory):
    """A file of blocked words."""
    path = tmp_path_factory.mktemp("words") / "blocked.txt"
    path.write_text("# of shops\n广告\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def web(blocked):
    """configs/data/web.yaml with overrides, as a BuildConfig."""
    from vilg.config import load
    from vilg.data.building.config import BuildConfig

    def config(*overrides):
        return load(ROOT / "configs/data/web.yaml", BuildConfig, [f"rules.texts.blocked=[{blocked}]", "size=40",
                                                                  *overrides])
    return config


@pytest.fixture(scope="session")
def engine():
    """The native engine with two workers, as small as they are."""
    pytest.importorskip("daft", reason="daft is not installed: pip install 'vilg[data]'")
    from vilg.data.building.engine import Engine

    return Engine("native", workers=2)


@pytest.fixture(scope="session")
def built(raw, web, engine, tmp_path_factory):
    """A build of the raw pairs: its folder and its report."""
    from vilg.data.building.build import Build

    output = tmp_path_factory.mktemp("built") / "out"
    return output, Build(web(), [str(raw[0])], output).run(engine)
