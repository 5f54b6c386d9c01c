"""Threads, environment and settings of a process, seen from fresh processes."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vilg import runtime
from vilg.errors import VilgError
from vilg.kernels.jit import switch as loops
from vilg.kernels.onednn import precision, switch
from vilg.machine import allocator, process
from vilg.runtime import report

ROOT = Path(__file__).resolve().parents[1]
SHOW = "from vilg.machine import process; import os; print(process.threads(), os.environ.get('OMP_NUM_THREADS'))"


def run(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; anything on stderr fails."""
    clean = {key: value for key, value in os.environ.items()
             if not key.startswith(("OMP_", "KMP_", "PADDLE_", "MKL_")) and key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, "PYTHONPATH": str(ROOT), **environment},
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_all_cores_and_a_clean_environment():
    assert run("import vilg, paddle;" + SHOW) == f"{process.physical_cores()} None"


def test_the_users_choice_is_kept():
    assert run("import vilg, paddle;" + SHOW, OMP_NUM_THREADS="3") == "3 3"
    assert run("import vilg, paddle;" + SHOW, OMP_NUM_THREADS="1") == "1 1"


def test_other_threads_run_parallel_too():
    code = ("import vilg, paddle, threading; from vilg.machine import process; out = [];"
            "t = threading.Thread(target=lambda: out.append(process.threads())); t.start(); t.join(); print(out[0])")
    assert run(code, OMP_NUM_THREADS="2") == "2"


def test_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(process, "physical_cores", lambda: 6)
    for ranks, threads in (("1", 6), ("2", 3), ("4", 1), ("12", 1)):
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", ranks)
        assert process.default_threads(None) == threads
    # The launcher has imported Paddle, which wrote the 1 that the rank inherits.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert process.user_environment("OMP_NUM_THREADS", True) is None


def test_after_paddle_was_used():
    code = ("import warnings; warnings.simplefilter('ignore'); import paddle;"
            "x = paddle.ones([64, 64]) @ paddle.ones([64, 64]);"
            "import vilg; from vilg.nn import functional; import numpy as np;"
            "assert np.allclose(functional.linear(x, x).numpy(), (x @ x).numpy());" + SHOW)
    assert run(code) == f"{process.physical_cores()} None"
    assert run(code, OMP_NUM_THREADS="1") == "1 1"


def test_importing_vilg_loads_no_paddle_and_prepares_for_it():
    code = "import vilg, sys; print('paddle' in sys.modules, 'numpy' in sys.modules, end=' '); import paddle;" + SHOW
    assert run(code) == f"False False {process.physical_cores()} None"
    assert run(code + "; print(paddle.get_flags(['FLAGS_use_stride_kernel']))").endswith("False}")


def test_paddle_is_itself_after_vilg_prepared_for_it():
    code = ("import vilg, paddle, inspect, importlib; assert 'import' in inspect.getsource(paddle);"
            "assert importlib.reload(vilg) is vilg; print(paddle.__spec__.name, len(paddle.__path__))")
    assert run(code) == "paddle 1"


def test_a_name_of_version_one_says_where_it_went():
    assert run("import vilg\ntry: vilg.pipeline\nexcept AttributeError as e: print(e)") == (
        "vilg.pipeline is vilg.app.pipeline since version 1.1")


def test_importing_vilg_is_light():
    code = ("import vilg, sys;"
            "print([name for name in ('paddlenlp', 'torch', 'matplotlib', 'gradio', 'numba') if name in sys.modules])")
    assert run(code) == "[]"


def test_configure_applies_every_field():
    before = process.threads()
    try:
        runtime.configure(runtime.RuntimeConfig(threads=1, onednn=False, jit=False, allocator=False))
        assert (process.threads(), switch.active(), loops.active(), allocator.keeping()) == (1, False, False, False)
        assert "runtime.onednn" in switch.reason() and "runtime.jit" in loops.reason()
    finally:
        runtime.configure(runtime.RuntimeConfig(threads=before))
    assert allocator.keeping()


def test_bf16_is_used_or_warned_about(caplog, monkeypatch):
    try:
        with caplog.at_level("WARNING", logger="vilg.runtime"):
            runtime.configure(runtime.RuntimeConfig(cpu_math="bf16"))
        gains = switch.active() and precision.bf16_method() != "none"
        assert precision.gains() is gains and bool(caplog.records) is not gains
        caplog.clear()
        monkeypatch.setattr(precision, "bf16_method", lambda: "none")
        runtime.configure(runtime.RuntimeConfig(cpu_math="bf16"))
        assert not precision.gains()
        assert "gains nothing on this machine" in caplog.text
    finally:
        monkeypatch.undo()
        runtime.configure(runtime.RuntimeConfig())


def test_negative_threads_are_refused():
    with pytest.raises(ValueError, match="threads"):
        runtime.RuntimeConfig(threads=-1)


def test_a_device_that_is_not_there():
    with pytest.raises(VilgError, match="gpu:99"):
        runtime.set_device("gpu:99")


def test_the_report_says_what_is_on():
    text = report.text(report.examine(measure=False))
    assert f"{process.threads()} threads" in text
    assert ("oneDNN" in text) and (switch.reason() in text)
    assert ("compiled loops" in text) and (loops.reason() in text)


def test_the_report_is_a_command():
    out = run("import runpy, sys; sys.argv = ['vilg.runtime', '--help'];"
              "\ntry: runpy.run_module('vilg.runtime', run_name='__main__')\nexcept SystemExit: pass")
    assert "GFLOP/s" in out


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
                    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
                    reason="this kernel has no large pages")
def test_large_tensors_lie_in_large_pages():
    code = ("import vilg, paddle; from pathlib import Path; x = paddle.ones([64, 1024, 1024]); "
            "text = Path('/proc/self/smaps_rollup').read_text(); "
            "print(next(line.split()[1] for line in text.splitlines() if line.startswith('AnonHugePages')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 200 * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="reads Linux's account of memory")
def test_after_giving_memory_back_new_tensors_lie_in_the_part_marked_for_large_pages():
    code = """
import ctypes, pathlib, vilg
from vilg.machine import allocator
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
def marked():
    address, inside = malloc(1 << 28) + (1 << 27), False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return "hg" in others
before = marked()
allocator.give_back()
print(before, marked())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after
