"""The engine that runs a build's jobs and groups its rows: daft, in this process and its workers (native) or on Ray.

A job is done when its mark is there. A worker that dies costs the job it was at: with Ray the engine starts another,
natively this module asks for the rest again. What a worker raises comes back as a sentence.
"""
import json
import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vilg.data.building.files import read_json, write_json
from vilg.errors import DataError, VilgError

logger = logging.getLogger(__name__)
TRIES = 3
"""How often a job may be begun, and not ended, before it is said to be what kills workers."""
ENGINES = ("native", "ray")
QUIET = {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}
"""No dependency reports to its makers, unless the environment says otherwise, and none draws bars over ours."""
SECONDS = 10.0
"""To wait for an address of a cluster to answer."""
MakeWork = Callable[[], Callable[[str], dict[str, Any]]]


class WorkerBug(RuntimeError):
    """A worker failed in a way that is no fault of the data; the message is its traceback."""


class JobWorker:
    """What a worker process holds: the work, made at the first job, and where its marks go."""

    def __init__(self, make: MakeWork, marks: str):
        self.make, self.marks = make, Path(marks)
        self.work: Callable[[str], dict[str, Any]] | None = None

    def __call__(self, name: str, job: str) -> str:
        """Do a job and mark it; returns "" or, as JSON, what went wrong."""
        try:
            if (self.marks / f"{name}.json").exists():
                return ""
            tries = self.marks / f"{name}.tries"
            begun = len(tries.read_bytes()) if tries.exists() else 0
            if begun >= TRIES:
                raise DataError(f"a worker died {begun} times at {_named(job)}; give its machine more memory, or take "
                                "that file away, and run the same command with --resume")
            self.marks.mkdir(parents=True, exist_ok=True)
            with open(tries, "ab") as file:
                file.write(b".")
            self.work = self.work or self.make()
            write_json(self.marks / f"{name}.json", self.work(job))
            tries.unlink(missing_ok=True)
            return ""
        except OSError as error:
            return json.dumps({"error": f"{error.filename or self.marks}: {error.strerror or error}; make room or mend "
                                        "it, and run the same command with --resume"})
        except VilgError as error:
            tries.unlink(missing_ok=True)
            return json.dumps({"error": str(error)})
        except Exception:
            return json.dumps({"bug": traceback.format_exc()})


class Engine:
    """Daft on this machine (``native``) or on Ray (``ray``, at ``address``; None: the cluster of this machine, or one
    that is started for the while). Raises DataError when it is not installed or does not answer."""

    def __init__(self, kind: str = "native", address: str | None = None, workers: int | None = None):
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        for name in ("tracing", "daft", "ray"):  # daft logs every operator it begins
            logging.getLogger(name).setLevel(logging.WARNING)
        self.kind = kind
        self.daft = _daft()
        if kind == "ray":
            _join_ray(self.daft, address)
        self.workers = workers or _cores(kind)
        self.daft.set_execution_config(maintain_order=False)

    def run(self, make: MakeWork, marks: Path, jobs: dict[str, str]) -> Iterator[str]:
        """Do those jobs (by name, as text) that have no mark yet; yields the name of each when it is done. Raises
        DataError with a worker's sentence, when that cannot go on."""
        for old in marks.glob("*.tries"):  # of a run that was stopped: that was nobody's fault
            old.unlink(missing_ok=True)
        batches, deaths = [self._waiting(marks, jobs)], 0
        while batches:
            batch, ended = batches.pop(0), 0
            try:
                for name, said in self._results(make, marks, batch) if batch else ():
                    _raise_said(said)
                    ended += 1
                    yield name
            except (VilgError, WorkerBug):
                raise
            except Exception as error:  # the engine's own, of a worker that is gone
                deaths = 0 if ended else deaths + 1
                if deaths > 2 * TRIES + self.workers:
                    raise DataError(f"the workers die ({_first_line(error)}), and no job ends; what is done is kept: "
                                    "run the same command with --resume when they can live") from None
                left = self._waiting(marks, batch)
                # What was being done goes on alone, so that it shows which job it was.
                begun = {name: job for name, job in left.items() if (marks / f"{name}.tries").exists()}
                logger.warning("a worker died (%s); %d jobs go on with another", _first_line(error), len(left))
                batches[:0] = [*({name: job} for name, job in begun.items()),
                               {name: job for name, job in left.items() if name not in begun}]

    def _waiting(self, marks: Path, jobs: dict[str, str]) -> dict[str, str]:
        return {name: job for name, job in jobs.items() if not (marks / f"{name}.json").exists()}

    def _results(self, make: MakeWork, marks: Path, jobs: dict[str, str]) -> Iterable[tuple[str, str]]:
        daft = self.daft
        worker = daft.cls(_typed(daft), max_concurrency=min(self.workers, len(jobs)), use_process=True)(
            make, str(marks.resolve()))
        table = daft.from_pydict({"name": list(jobs), "job": list(jobs.values())}).into_batches(1)
        table = table.select("name", worker(daft.col("name"), daft.col("job")).alias("said"))
        for row in table.iter_rows(results_buffer_size=None):
            yield row["name"], row["said"]


def _raise_said(said: str) -> None:
    """Raise what a worker said went wrong, if it did."""
    problem = json.loads(said) if said else {}
    if "bug" in problem:
        raise WorkerBug(f"a worker failed:\n{problem['bug']}")
    if problem:
        raise DataError(problem["error"])


def marks_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The marks of a folder, in the order of their jobs, one by one."""
    for path in sorted(folder.glob("*.json")):
        yield read_json(path)


def _typed(daft: Any) -> type:
    """JobWorker as daft wants it: with the type of what its call returns."""
    return type("JobWorker", (JobWorker,), {"__call__": daft.method(return_dtype=daft.DataType.string())(
        JobWorker.__call__)})


def _daft() -> Any:
    try:
        import daft
    except ImportError:
        raise DataError("building data needs daft; install it with `pip install 'vilg[data]'`") from None
    return daft


def _join_ray(daft: Any, address: str | None) -> None:
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs Ray; install it with `pip install 'vilg[ray]'` on every node") from None
    if address and address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        daft.set_runner_ray(noop_if_initialized=True)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, AssertionError) as error:
        raise DataError(f"no Ray cluster answers at {address or 'this machine'} ({_first_line(error)}); start one "
                        "with `ray start --head`, name it with --address HOST:6379 and give every node and this one "
                        "the same RAY_AUTH_TOKEN") from None


def _check_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except (OSError, ValueError) as error:
        raise DataError(f"no Ray cluster answers at {address} ({error}); --address is HOST:6379 of the head, "
                        "as `ray start --head` prints it") from None


def _cores(kind: str) -> int:
    if kind == "ray":
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return max(1, len(os.sched_getaffinity(0)))


def _named(job: str) -> str:
    try:
        said = json.loads(job)
    except ValueError:
        return job[:80]
    return (said.get("path") if isinstance(said, dict) else None) or job[:80]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
