"""What tools/build_data.py finds, costs and survives, on raw pairs with planted faults (planted.py).

Keys of --json: found_worst, the share of its planted cases that the worst rule finds (target .99; found_worst_near, of
the near-duplicates, .90), and false_worst, the share of the clean that the worst rule drops (.01), each also by rule
(found_RULE, false_RULE); overhead, CPU seconds of the native engine with one worker over a plain loop's, less one
(.20); two_workers, samples a second of two workers over one (1.6, on a free machine); driver_growth, the driver's peak
memory with 200 000 rows of text over that with 20 000, less one (.10); samples_per_s, of one worker.
--drill: same_after_kill, 1 when what is built is the same to the byte after kill -9 of a worker, of the driver (with
--resume) and, with Ray, of a worker and of a node with all its processes; same_ray, 1 when Ray builds the same as the
native engine. Needs `vilg[data]`, and `vilg[ray]` for the last two, which are left out without it.
"""
import argparse
import hashlib
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import planted

CONFIG = "configs/data/web.yaml"
MODEL = "ernie_vil_tiny"
TOOL = [sys.executable, str(harness.ROOT / "tools" / "build_data.py")]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), os.environ.get("PYTHONPATH", "")]),
               "OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": "a_token_of_this_benchmark_alone_0123456789",
               "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}


class Running:
    """A build in a process group of its own."""

    def __init__(self, settings: list[str], source: Path, output: Path, *more: str):
        command = [*TOOL, "--config", str(harness.ROOT / CONFIG), "--input", str(source), "--output", str(output),
                   *more]
        for setting in settings:
            command += ["--set", setting]
        self.log = output.with_suffix(".log")
        self.begun = time.perf_counter()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log,
                                            start_new_session=True)

    def finish(self) -> "Running":
        """Wait for its end; then its seconds, CPU seconds with its workers and the driver's peak megabytes are known.
        """
        self.peak = 0.0
        while True:
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text()
                self.peak = max([self.peak, *(int(line.split()[1]) / 1024 for line in status.splitlines()
                                              if line.startswith("VmHWM"))])
            except OSError:
                pass
            done, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.02)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds, self.cpu = time.perf_counter() - self.begun, usage.ru_utime + usage.ru_stime
        if self.process.returncode:
            raise RuntimeError(f"{' '.join(self.process.args)}: {self.log.read_text()[-2000:]}")
        return self

    def kill(self) -> None:
        """End the driver and all its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def workers(self) -> list[int]:
        """Processes of workers of this build on this machine, Ray's too."""
        return [pid for pid in _descendants(self.process.pid)
                if any(mark in _command(pid) for mark in ("udf_worker", "UDFActor"))]

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a state; RuntimeError when the build ends before."""
        while not reached():
            if self.process.poll() is not None:
                raise RuntimeError(f"the build ended before it was to be killed: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)


def settings(folder: Path, *more: str) -> list[str]:
    """The config's overrides: a file of blocked words, parts of the benchmark's size."""
    words = folder / "blocked.txt"
    words.write_text(planted.BLOCKED + "\n", encoding="utf-8")
    return [f"rules.texts.blocked=[{words}]", *more]


def pictures(folder: Path, count: int, seed: int) -> dict[str, float]:
    """What the rules about images and captions find, and what they drop of the clean."""
    truth = planted.write_tars(planted.pairs(count, seed, similarity=True), folder / "web")
    Running(settings(folder, f"rules.similarity={{model: {MODEL}}}"), folder / "web", folder / "pictures").finish()
    return accuracy(folder / "pictures", truth)


def texts(folder: Path, count: int, seed: int) -> dict[str, float]:
    """The same of near texts, on rows of text alone."""
    truth = planted.write_table(planted.texts(count, seed), folder / "texts.jsonl")
    Running(TEXT_SETTINGS, folder / "texts.jsonl", folder / "texts").finish()
    return accuracy(folder / "texts", truth)


def accuracy(output: Path, truth: dict[str, str | None]) -> dict[str, float]:
    """Of each rule, the share of its cases that it found, and of the clean that it dropped."""
    found: dict[str, float] = {}
    by_key, rules = drops(output), {key_of(name): rule for name, rule in truth.items()}
    clean = [key for key, rule in rules.items() if rule is None]
    for rule in sorted({rule for rule in rules.values() if rule}):
        cases = [key for key, of in rules.items() if of == rule]
        found[f"found_{rule}"] = sum(by_key.get(key) == rule for key in cases) / len(cases)
    for rule in sorted({*by_key.values()}):
        found[f"false_{rule}"] = sum(by_key.get(key) == rule for key in clean) / len(clean)
    return found


def worst(figures: dict[str, float]) -> dict[str, float]:
    """The least that a rule found, near-duplicates apart, and the most that one dropped of the clean."""
    found = {name: value for name, value in figures.items() if name.startswith("found_")}
    near = [found.pop(name) for name in list(found) if name.startswith("found_near_")]
    false = [value for name, value in figures.items() if name.startswith("false_")]
    return {name: value for name, value in (("found_worst", min(found.values(), default=None)), ("found_worst_near",
            min(near, default=None)), ("false_worst", max(false, default=None))) if value is not None}


LIGHT = ["rules.texts.words=null", "rules.texts.noun=false"]
"""Without jieba, which would take most of the time of rows that are counted for their memory."""
TEXT_SETTINGS = ["images=false", "rules.near_images=null", "rules.near_texts={alike: 0.8}"]


def costs(folder: Path, count: int, seed: int) -> dict[str, float]:
    """CPU against a plain loop, and seconds with two workers against one."""
    planted.write_tars(planted.pairs(count, seed), folder / "cost" / "web", max(20, count // 32))
    one = Running(settings(folder), folder / "cost" / "web", folder / "one", "--workers", "1").finish()
    two = Running(settings(folder), folder / "cost" / "web", folder / "two", "--workers", "2").finish()
    loop = plain_loop_seconds(folder, settings(folder), folder / "cost" / "web")
    return {"overhead": one.cpu / loop - 1, "two_workers": one.seconds / two.seconds, "samples_per_s":
            count / one.seconds, "cpu_s_native": one.cpu, "cpu_s_plain_loop": loop}


def plain_loop_seconds(folder: Path, overrides: list[str], source: Path) -> float:
    """CPU seconds of the tests' plain loop over the same pairs, which writes no shards, in a process of its own."""
    code = (f"import sys; sys.path.insert(0, {str(harness.ROOT / 'tests/data/building')!r})\n"
            "from plain_loop import PlainLoop\nfrom vilg.config import load\n"
            "from vilg.data.building.config import BuildConfig\n"
            f"PlainLoop(load({str(harness.ROOT / CONFIG)!r}, BuildConfig, {overrides!r}), [{str(source)!r}])\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | ENVIRONMENT, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def growth(folder: Path, count: int, seed: int) -> dict[str, float]:
    """The driver's peak memory with ten times the rows of text, parts of the same size."""
    peaks = []
    for rows in (count, 10 * count):
        planted.write_table(planted.texts(rows, seed), folder / f"{rows}.jsonl")
        peaks.append(Running([*TEXT_SETTINGS, *LIGHT, "part_rows=5000"], folder / f"{rows}.jsonl",
                             folder / f"t{rows}").finish().peak)
    return {"driver_growth": peaks[1] / peaks[0] - 1, "driver_mb": peaks[0], "driver_mb_10": peaks[1]}


def drill(folder: Path, count: int, seed: int) -> dict[str, float]:
    """Builds that are killed in every way, held against one that is not."""
    planted.write_tars(planted.pairs(count, seed), folder / "drill" / "web", max(20, count // 24))
    source, rules = folder / "drill" / "web", settings(folder)
    Running(rules, source, folder / "whole", "--workers", "2").finish()
    whole = digest(folder / "whole")
    same = {}

    run = Running(rules, source, folder / "worker", "--workers", "2")
    run.until(lambda: marks(folder / "worker") >= 3 and run.workers())
    os.kill(run.workers()[0], signal.SIGKILL)
    run.finish()
    same["worker"] = digest(folder / "worker") == whole and "a worker died" in run.log.read_text()

    for reached in (lambda: marks(folder / "driver") >= 3, lambda: any(folder.glob("driver/unfinished/compared/*")),
                    lambda: any(folder.glob("driver/unfinished/shards/*.json"))):
        run = Running(rules, source, folder / "driver", "--workers", "2", "--resume")
        run.until(reached)
        run.kill()
    Running(rules, source, folder / "driver", "--workers", "2", "--resume").finish()
    same["driver"] = digest(folder / "driver") == whole
    if importlib.util.find_spec("ray"):
        same |= drill_ray(folder, rules, source, whole)
    figures = {f"same_{name}": float(value) for name, value in same.items()}
    return {"same_after_kill": min(value for name, value in figures.items() if name != "same_ray")} | figures


def drill_ray(folder: Path, rules: list[str], source: Path, whole: dict[str, str]) -> dict[str, bool]:
    """The same on a cluster of two nodes on this machine, of which one is killed with everything on it."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as place:  # sockets want short paths
        head, address = start_node(place, None)
        nodes = [head]
        try:
            nodes.append(start_node(place, address)[0])
            same, ray = {}, ("--engine", "ray", "--address", address)
            Running(rules, source, folder / "ray", *ray).finish()
            same["ray"] = digest(folder / "ray") == whole

            run = Running(rules, source, folder / "ray_worker", *ray)
            run.until(lambda: marks(folder / "ray_worker") >= 3)
            os.kill(node_workers(nodes[1])[0], signal.SIGKILL)
            run.finish()
            same["ray_worker"] = digest(folder / "ray_worker") == whole

            run = Running(rules, source, folder / "ray_node", *ray)
            run.until(lambda: marks(folder / "ray_node") >= 3)
            kill_node(nodes.pop())
            run.finish()
            same["ray_node"] = digest(folder / "ray_node") == whole
            return same
        finally:
            for node in nodes[::-1]:
                kill_node(node)


def start_node(place: str, address: str | None) -> tuple[subprocess.Popen, str]:
    """A Ray node with one core of this machine, held in the foreground: its process and the head's address."""
    port = 6400 + os.getpid() % 500
    where = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={place}"] if address is None else [
        f"--address={address}"]
    ray = Path(sys.executable).with_name("ray")
    log = open(Path(place) / f"{'head' if address is None else 'node'}.log", "wb")
    process = subprocess.Popen([ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats",
                                 f"--object-store-memory={100 << 20}", *where], env=os.environ | ENVIRONMENT,
                               stdout=log, stderr=log, start_new_session=True)
    time.sleep(20 if address is None else 15)
    if process.poll() is not None:
        raise RuntimeError(Path(log.name).read_text()[-2000:])
    return process, address or f"127.0.0.1:{port}"


def node_workers(node: subprocess.Popen) -> list[int]:
    """The processes of a node that hold a build's work."""
    return [pid for pid in _descendants(node.pid) if "UDFActor" in _command(pid)] or [
        pid for pid in _descendants(node.pid) if "ray::" in _command(pid)]


def kill_node(node: subprocess.Popen) -> None:
    """Kill a node and whatever runs on it, as when its machine goes."""
    for pid in [node.pid, *_descendants(node.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    node.wait()


def _descendants(pid: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def marks(output: Path) -> int:
    """Parts that a build has read so far."""
    return len(list(output.glob("unfinished/read/*.json")))


def digest(output: Path) -> dict[str, str]:
    """All that a build leaves but what it was asked for, by name."""
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in sorted(output.iterdir())
            if path.name != "build.json"}


def drops(output: Path) -> dict[str, str]:
    """The rule that dropped each sample, by its key."""
    from pyarrow import parquet

    rows = parquet.read_table(output / "dropped.parquet", columns=["key", "rule", "sample"]).to_pylist()
    return {row["key"]: row["rule"] for row in rows if row["sample"]}


def key_of(name: str) -> str:
    """A sample's key by where it comes from."""
    return hashlib.blake2b(name.encode(), digest_size=10).hexdigest()


PARTS = {"pictures": pictures, "texts": texts, "costs": costs, "growth": growth}


def main() -> None:
    """Measure, or drill."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--drill", action="store_true", help="kill workers, drivers and nodes instead of measuring")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--count", type=int, help="pairs (20000; 400 with --quick or --drill)")
    options: argparse.Namespace = parser.parse_args()
    count = options.count or (400 if options.quick or options.drill else 20_000)
    figures: dict[str, float] = {}
    folder = Path(tempfile.mkdtemp(prefix="data_build"))
    try:
        if options.drill:
            figures = drill(folder, count, options.seed)
        else:
            for name in options.parts:
                figures |= PARTS[name](folder, count, options.seed)
            figures = worst(figures) | figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    harness.report(options, figures, count=count, model=MODEL, rules=CONFIG)


if __name__ == "__main__":
    main()
