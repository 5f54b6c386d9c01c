"""Which Paddle may be imported: the sentences that refuse the others, and that they come at the import."""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vilg.engine.parallel.distributed import DistributedConfig, Parallel
from vilg.errors import ConfigError, VilgError
from vilg.machine import wheel

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("found,words", [
    ({"paddlepaddle": "2.6.2"}, "paddlepaddle 2.6.2 is too old: .* type: pip install paddlepaddle==3"),
    ({"paddlepaddle-gpu": "2.6.2.post120"}, "paddlepaddle-gpu 2.6.2.post120 is too old: .* -i https://.*PyPI's ends"),
    ({"paddlepaddle": "3.3.1", "paddlepaddle-gpu": "3.3.1"}, "both installed .* type: pip uninstall -y paddlepaddle"),
])
def test_a_wrong_wheel_is_refused_with_the_line_to_type(found, words):
    with pytest.raises(VilgError, match=words):
        wheel.check_installed(found)


@pytest.mark.parametrize("version", ["3.0.0", "3.3.1", "3.0.0rc1", "10.0.0", "0.0.0", "0.0.0.dev20260101"])
def test_newer_ones_and_development_builds_pass(version):
    wheel.check_installed({"paddlepaddle": version})


def environment(folder: Path, version: str, *names: str, source: str = "") -> dict[str, str]:
    """Variables of a process that finds wheels of these names in ``folder``, before those that are installed."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "paddle").mkdir()
    (folder / "paddle" / "__init__.py").write_text(source or f"__version__ = '{version}'\n")
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


TWICE = """
import vilg
from vilg.errors import VilgError
for attempt in range(2):
    try:
        import paddle
    except VilgError as error:
        print(error)
"""


def said(code: str, variables: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_import_of_an_old_paddle_is_refused(tmp_path):
    lines = said(TWICE, environment(tmp_path, "2.6.2", "paddlepaddle")).splitlines()
    assert len(lines) == 2 and all("paddlepaddle 2.6.2 is too old" in line for line in lines)


def test_two_wheels_at_once_are_refused(tmp_path):
    # The one that is really installed is the other.
    text = said(TWICE, environment(tmp_path, "3.3.1", "paddlepaddle", "paddlepaddle-gpu"))
    assert text.count("are both installed") == 2


def test_a_cuda_wheel_without_a_driver_is_one_sentence(monkeypatch):
    error = ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
    assert "install NVIDIA's driver" in str(wheel.import_failure(error, ["paddlepaddle-gpu"]))
    assert wheel.import_failure(error, ["paddlepaddle"]) is None
    assert wheel.import_failure(ImportError("no module named httpx"), ["paddlepaddle-gpu"]) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    count = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 0))
    blind = SimpleNamespace(is_compiled_with_cuda=lambda: True, device=count)
    assert "no GPU can be used" in wheel.no_device(blind)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert wheel.no_device(blind) == ""  # hidden on purpose


def test_half_precision_that_the_gpu_lacks_is_refused(monkeypatch):
    parallel = Parallel(DistributedConfig(amp="O2"))
    parallel.mixed_precision = True
    monkeypatch.setattr("paddle.amp.is_bfloat16_supported", lambda: False)
    monkeypatch.setattr("paddle.amp.is_float16_supported", lambda: True)
    with pytest.raises(ConfigError, match="does not compute in bfloat16; set distributed.amp_dtype: float16"):
        parallel._check_device()
    monkeypatch.setattr("paddle.amp.is_float16_supported", lambda: False)
    with pytest.raises(ConfigError, match="set distributed.amp: none"):
        parallel._check_device()
