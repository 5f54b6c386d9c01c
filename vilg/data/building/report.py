"""What a build says of itself: counts by rule with examples, and every drop in one table."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vilg.data.building.config import BuildConfig, thresholds
from vilg.data.building.engine import marks_of
from vilg.data.building.files import written
from vilg.data.building.shards import removed_rows
from vilg.data.building.tables import DROPPED, arrow_schema
from vilg.data.building.worker import Drop, count
from vilg.data.filtering.texts import MEANING

FILE, INDEX, DROPPED_FILE = "report.json", "index.json", "dropped.parquet"
BAD_PARTS = 20
"""That the report names."""


def summarise(config: BuildConfig, read: Path, dropped: Path, to: Path | None) -> dict[str, Any]:
    """The report of parts whose marks are in ``read``, of which the rules on all took what is in ``dropped``; writes
    ``to`` a table of all that was dropped, where it is given. One part is held at a time."""
    from pyarrow import parquet

    limits = thresholds(config)
    rules: dict[str, Any] = {name: {"samples": 0, "captions": 0, "examples": []} for name in limits}
    figures = {"parts": 0, "samples_read": 0, "samples_kept": 0, "captions_read": 0}
    bad: dict[str, str] = {}
    schema = arrow_schema({name: kind for name, kind in DROPPED.items() if name not in ("order", "place")})
    target = to or read / "counted.parquet"
    with written(target) as temporary, parquet.ParquetWriter(temporary, schema) as table:
        for mark in marks_of(read):
            figures["parts"] += 1
            figures["samples_read"] += mark["read"]
            figures["captions_read"] += mark["captions"]
            figures["samples_kept"] += mark["kept"]
            if mark["problem"]:
                bad[mark["part"]] = mark["problem"]
            for name, found in mark["rules"].items():
                _merge(rules[name], found)
            if to:
                table.write_table(parquet.read_table(read / f"{mark['number']:07d}.dropped.parquet",
                                                     columns=schema.names, partitioning=None))
            later = _later(dropped, mark["number"], list(limits))
            for row in later:
                count(rules, Drop(**row))
                figures["samples_kept"] -= row["sample"]
            if to and later:
                table.write_table(_table(later, schema))
    if to is None:
        target.unlink()
    return figures | {"kept_share": round(figures["samples_kept"] / max(1, figures["samples_read"]), 4),
                      "bad_parts": len(bad), "bad_parts_named": dict(list(bad.items())[:BAD_PARTS]),
                      "rules": {name: {"meaning": MEANING[name], "threshold": limits[name]} | found
                                for name, found in rules.items()}}


def lines(report: dict[str, Any]) -> list[str]:
    """A report for people."""
    found = [f"{report['samples_kept']} of {report['samples_read']} samples kept ({report['kept_share']:.1%}), from "
             f"{report['parts']} parts", f"{'rule':12s} {'samples':>9s} {'captions':>9s}  for example"]
    for name, rule in report["rules"].items():
        example = rule["examples"][0] if rule["examples"] else None
        shown = f"{example['source']}: {example['value']}" + (f" ({example['text']})" if example["text"] else "") \
            if example else ""
        found.append(f"{name:12s} {rule['samples']:9d} {rule['captions']:9d}  {shown[:100]}")
    found += [f"bad part: {name}: {problem}" for name, problem in report["bad_parts_named"].items()]
    return found


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    into["samples"] += more["samples"]
    into["captions"] += more["captions"]
    into["examples"] = (into["examples"] + more["examples"])[:max(len(into["examples"]), len(more["examples"]), 5)]


def _later(dropped: Path, part: int, order: list[str]) -> list[dict[str, Any]]:
    rows = removed_rows(dropped, part, list(DROPPED))
    return sorted(rows, key=lambda row: (order.index(row["rule"]), row["order"], row["place"]))


def _table(rows: Iterable[dict[str, Any]], schema: Any) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)
