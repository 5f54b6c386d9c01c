"""A build from raw inputs to shards: parts are read, all samples compared, what is left written; every step is marked,
so that the same command goes on where it was broken off."""
import fcntl
import functools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vilg.data.building import report as reports
from vilg.data.building.clicks import KeyWorker, join_clicks
from vilg.data.building.config import BuildConfig, canonical, identity
from vilg.data.building.duplicates import Duplicates
from vilg.data.building.engine import Engine, marks_of
from vilg.data.building.files import WORK, read_json, write_json, written
from vilg.data.building.parts import Part, find_parts, fingerprint
from vilg.data.building.shards import ShardWorker, part_of, plan
from vilg.data.building.sieve import MakeEncoder
from vilg.data.building.worker import CLICKS, PartWorker
from vilg.data.sources.shards import write_index
from vilg.errors import DataError
from vilg.progress import progress, skip

logger = logging.getLogger(__name__)
ABOUT = "build.json"
SAMPLED_PARTS = 16
"""Parts that a dry run reads of."""


class Build:
    """A build of ``inputs`` into the folder ``output`` by ``config``; ``make_encoder`` loads a dual encoder by its
    name, in the workers that need one."""

    def __init__(self, config: BuildConfig, inputs: list[str], output: str | Path,
                 make_encoder: MakeEncoder | None = None):
        self.config, self.inputs, self.make_encoder = config, inputs, make_encoder
        self.output = Path(output).expanduser()
        self.work = self.output / WORK
        self.read, self.dropped = self.work / "read", self.work / "dropped"

    def run(self, engine: Engine, resume: bool = False) -> dict[str, Any]:
        """Build, or with ``resume`` go on with what was begun; returns the report.

        Raises DataError for inputs that are not there, an output that holds something else, or the build of other
        inputs or rules, more unreadable parts than the config allows, and what workers find wrong with all.
        """
        self._refuse_others(resume)
        self.work.mkdir(parents=True, exist_ok=True)
        with _alone(self.work), _disk(self.output):
            finished = self._begin(resume)
            if finished is not None:
                return finished
            self._find_clicks(engine, list(self._parts()))
            self._read_parts(engine, list(self._parts()), None)
            kept = self._compare(engine)
            self._write_shards(engine, kept)
            return self._finish()

    def dry_run(self, engine: Engine, samples: int) -> dict[str, Any]:
        """The report on about so many samples, from the beginnings of parts all over the inputs; writes nothing that
        stays."""
        with tempfile.TemporaryDirectory() as folder:
            trial = Build(self.config, self.inputs, folder, self.make_encoder)
            trial.work.mkdir()
            trial._list_parts()
            parts = list(trial._parts())
            step = max(1, len(parts) // SAMPLED_PARTS)
            chosen = parts[::step][:SAMPLED_PARTS]
            trial._find_clicks(engine, chosen)
            trial._read_parts(engine, chosen, -(-samples // len(chosen)))
            trial._compare(engine)
            return reports.summarise(self.config, trial.read, trial.dropped, None)

    def _refuse_others(self, resume: bool) -> None:
        there = self.output.exists()
        if there and not self.output.is_dir():
            raise DataError(f"{self.output}: is a file; name a folder with --output")
        if (self.output / ABOUT).exists():
            if not resume:
                state = "a finished build" if (self.output / reports.FILE).exists() else "a build that was begun"
                raise DataError(f"{self.output}: holds {state}; go on with it by --resume, or name another --output")
        elif there and any(path.name != WORK for path in self.output.iterdir()):
            raise DataError(f"{self.output}: holds other files; name an empty or new folder with --output")

    def _begin(self, resume: bool) -> dict[str, Any] | None:
        """List the parts and note what is built; returns the report of a build that is finished. Raises DataError where
        another build was begun here."""
        self._list_parts()
        settings = identity(self.config)
        about = {"fingerprint": fingerprint(self.work / "parts.jsonl", canonical(settings)), "inputs": self.inputs,
                 "config": settings}
        path = self.output / ABOUT
        if path.exists():
            before = read_json(path)
            if before["fingerprint"] != about["fingerprint"]:
                changed = _changed(before["config"], json.loads(canonical(settings))) or ["the inputs"]
                raise DataError(f"{self.output}: holds the build of other inputs or rules ({', '.join(changed[:5])} "
                                "changed); name another --output, or give what it was begun with")
            if (self.output / reports.FILE).exists():
                shutil.rmtree(self.work)
                return read_json(self.output / reports.FILE)
        write_json(path, about)
        return None

    def _list_parts(self) -> None:
        with written(self.work / "parts.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            for part in find_parts(self.inputs, self.config.part_rows):
                file.write(part.dump() + "\n")

    def _parts(self) -> Iterator[tuple[str, str]]:
        """Name and job of every part."""
        with open(self.work / "parts.jsonl", encoding="utf-8") as lines:
            for line in lines:
                yield f"{Part.load(line).number:07d}", line

    def _find_clicks(self, engine: Engine, parts: list[tuple[str, str]]) -> None:
        """Where there is a log of clicks: what samples are called, then which queries each part's samples have."""
        done = self.work / CLICKS
        if self.config.clicks is None or done.exists():
            return
        keys = self.work / "keys"
        make = functools.partial(KeyWorker, keys.resolve())
        for _ in progress(engine.run(make, keys, dict(parts)), total=len(parts), desc="naming", unit="part"):
            pass
        temporary = self.work / f".{CLICKS}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        join_clicks(engine.daft, self.config.clicks, keys, temporary)
        temporary.mkdir(exist_ok=True)  # where no query is anybody's
        os.replace(temporary, done)

    def _read_parts(self, engine: Engine, parts: list[tuple[str, str]], limit: int | None) -> None:
        make = functools.partial(PartWorker, self.config, self.read.resolve(), self.make_encoder, limit)
        read = kept = 0
        begun = time.monotonic()
        with progress(total=len(parts), desc="reading", unit="part") as bar:
            skip(bar, sum((self.read / f"{name}.json").exists() for name, _ in parts))
            for name in engine.run(make, self.read, dict(parts)):
                mark = read_json(self.read / f"{name}.json")
                read, kept = read + mark["read"], kept + mark["kept"]
                rate = read / max(1e-3, time.monotonic() - begun)
                bar.set_postfix_str(f"{rate:.0f} samples/s, {kept / max(1, read):.0%} kept", refresh=False)
                bar.update()
                if mark["problem"]:
                    logger.warning("%s: %s", mark["part"], mark["problem"])
        self._refuse_bad_parts()

    def _refuse_bad_parts(self) -> None:
        bad, count = [], 0
        for mark in marks_of(self.read):
            count += 1
            if mark["problem"] and not mark["read"]:
                bad.append((mark["number"], mark["problem"]))
        most = max(1, self.config.max_bad_parts * count) if self.config.max_bad_parts else 0
        if bad and (len(bad) > most or len(bad) == count):
            for number, _ in bad:  # they are read again when they were mended
                (self.read / f"{number:07d}.json").unlink()
            raise DataError(f"{bad[0][1]}; {len(bad)} of {count} parts cannot be read, more than the share of "
                            f"{self.config.max_bad_parts:g} that max_bad_parts allows. Mend or fetch them and build "
                            "anew, or raise max_bad_parts and go on with --resume; what is done is kept")

    def _compare(self, engine: Engine) -> dict[int, int]:
        """Apply the rules that compare samples; returns how many each part has left."""
        counts = {mark["number"]: mark["kept"] for mark in marks_of(self.read)}
        if (self.dropped / "done.json").exists():
            removed = read_json(self.dropped / "done.json")
        else:
            removed = self._compared(engine, sum(mark["captions"] for mark in marks_of(self.read)))
            write_json(self.dropped / "done.json", removed)
        return {part: count - removed.get(str(part), 0) for part, count in counts.items()}

    def _compared(self, engine: Engine, rows: int) -> dict[str, int]:
        """The rules one by one; what they drop into a folder a part, and how many samples of each."""
        duplicates = Duplicates(engine.daft, self.config, self.read, self.work / "compared", max(1, rows),
                                engine.kind == "native")
        for name in progress(duplicates.run(), desc="comparing", unit="rule"):
            logger.info("comparing all samples by %s", name)
        shutil.rmtree(self.dropped, ignore_errors=True)
        dropped, col = duplicates.dropped(), engine.daft.col
        if dropped is None:
            return {}
        dropped = dropped.with_column("part", part_of(col("order")))
        dropped.write_parquet(str(self.dropped), partition_cols=["part"], write_mode="overwrite")
        found = dropped.where(col("sample")).groupby("part").agg(col("order").count().alias("count")).to_pydict()
        return {str(part): count for part, count in zip(found["part"], found["count"])}

    def _write_shards(self, engine: Engine, kept: dict[int, int]) -> None:
        shards = list(plan(kept, self.config.size))
        digits = max(5, len(str(len(shards))))
        jobs = {f"{number:0{digits}d}": json.dumps({"name": f"{number:0{digits}d}.tar", "pieces": pieces})
                for number, pieces in enumerate(shards)}
        folder = self.work / "shards"
        make = functools.partial(ShardWorker, self.read.resolve(), self.dropped.resolve(), folder.resolve())
        with progress(total=len(jobs), desc="writing", unit="shard") as bar:
            skip(bar, sum((folder / f"{name}.json").exists() for name in jobs))
            for _ in engine.run(make, folder, jobs):
                bar.update()

    def _finish(self) -> dict[str, Any]:
        """Give the shards their names and write what is said of them; the report comes last."""
        report = {"fingerprint": read_json(self.output / ABOUT)["fingerprint"]} | reports.summarise(
            self.config, self.read, self.dropped, self.output / reports.DROPPED_FILE)
        counts = {mark["name"]: mark["samples"] for mark in marks_of(self.work / "shards")}
        if sum(counts.values()) != report["samples_kept"]:
            raise RuntimeError(f"{sum(counts.values())} samples in shards, {report['samples_kept']} kept")
        for name in counts:
            if (self.work / "shards" / name).exists():
                os.replace(self.work / "shards" / name, self.output / name)
        if counts:
            write_index(self.output, counts)
        else:
            logger.warning("%s: no sample is left, so there are no shards; %s says which rule took them", self.output,
                           reports.FILE)
        report["shards"] = len(counts)
        write_json(self.output / reports.FILE, report)
        shutil.rmtree(self.work)
        return report


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Refuse a second build into the same folder while one runs."""
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{work.parent}: another build is writing there; wait for it or stop it, or name another "
                            "--output") from None
        yield


@contextmanager
def _disk(output: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or output}: {error.strerror or error}; make room or mend it, and run the "
                        "same command with --resume") from None


def _changed(before: Any, after: Any, path: str = "") -> list[str]:
    """The dotted keys that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [found for key in sorted(before.keys() | after.keys())
                for found in _changed(before.get(key), after.get(key), f"{path}.{key}" if path else key)]
    return [] if before == after else [path]
