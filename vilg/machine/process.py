"""What can be set on the running process: OpenMP threads and the BLAS code path."""
import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path

# How long an idle OpenMP thread spins before it sleeps. The default of 200 ms takes the cores from data loading and
# from other processes; a step's own gaps are shorter than this.
_SPIN_MILLISECONDS = "10"


def user_environment(name: str, trusted: bool) -> str | None:
    """What the user set ``name`` to, or None.

    An import of Paddle overwrites OMP_NUM_THREADS; when that has already happened (not ``trusted``), the environment
    that the process began with still tells. Paddle's launcher hands its own "1" down to the ranks, which says nothing.
    """
    value = os.environ.get(name) if trusted else _initial_environment().get(name)
    return None if value == "1" and "PADDLE_LOCAL_SIZE" in os.environ else value


def _initial_environment() -> dict[str, str]:
    try:
        content = Path("/proc/self/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def local_ranks() -> int:
    """How many processes of this job share the machine."""
    for name in ("PADDLE_LOCAL_SIZE", "PADDLE_TRAINERS_NUM"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return 1


def physical_cores() -> int:
    """Physical cores this process may run on (its affinity, counting hyper-threads of a core once, and its quota)."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add(cpu)
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return sys.maxsize


def default_threads(wanted: str | None) -> int:
    """Threads when no config says so: the user's OMP_NUM_THREADS, else this rank's share of the physical cores."""
    first = (wanted or "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else max(1, physical_cores() // local_ranks())


def threads_reason(wanted: str | None) -> str:
    """Why :func:`default_threads` chose as it did, in a few words."""
    if wanted:
        return f"OMP_NUM_THREADS={wanted}"
    return f"{physical_cores()} physical cores, {local_ranks()} processes"


@functools.lru_cache(maxsize=1)
def openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime inside the Paddle wheel, or None."""
    found = importlib.util.find_spec("paddle")
    path = Path(found.origin).parent / "libs" / "libiomp5.so" if found and found.origin else None
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) if path and path.is_file() else None
    except OSError:
        return None


def start_openmp(threads: int) -> None:
    """Start the OpenMP runtime with ``threads`` as every thread's default; has that effect only the first time."""
    settings = {"OMP_NUM_THREADS": str(threads), "KMP_BLOCKTIME": os.environ.get("KMP_BLOCKTIME", _SPIN_MILLISECONDS)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    library = openmp()
    if library is not None:
        library.omp_get_max_threads()
    for name, value in before.items():
        restore_environment(name, value)


def restore_environment(name: str, value: str | None) -> None:
    """Set a variable back to what it was; None removes it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def set_threads(threads: int) -> None:
    """Run the operators that the calling thread starts on ``threads`` threads."""
    library = openmp()
    if library is not None:
        library.omp_set_num_threads(threads)


def threads() -> int:
    """Threads that an operator started here runs on; 1 when the wheel has no OpenMP runtime."""
    library = openmp()
    return library.omp_get_max_threads() if library is not None else 1


def choose_blas() -> None:
    """Make MKL use its AVX2 kernels on an AMD processor, where it would else fall back to SSE2 (about 3× slower)."""
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        amd = False
    if amd:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
