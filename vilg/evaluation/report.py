"""Writing evaluation and benchmark figures down: one flat JSON object with seed, config and machine beside them; and
values that carry a signature."""
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """A value, None where there is none, and the ``signature`` that says exactly what was computed, which figures keep
    under ``signature.<signed>``, or ``signature`` alone."""

    name: str
    value: float | None
    signature: str
    signed: str = ""


def signed_figures(scores: Iterable[Score]) -> dict[str, Any]:
    """Scores as flat figures with their signatures, printed as they come."""
    figures, signatures, last = {}, {}, ""
    for score in scores:
        if score.signature != last:
            print(f"[{score.signature}]")
        value = "–" if score.value is None else f"{score.value:.6g}"
        print(f"{score.name:24s} {value}", flush=True)
        last = score.signature
        figures[score.name] = score.value
        signatures["signature" + (f".{score.signed}" if score.signed else "")] = score.signature
    return figures | signatures


def machine() -> dict[str, Any]:
    """What this machine is: processor, cores, Python and Paddle versions."""
    import paddle

    return {"machine": _processor(), "cores": os.cpu_count(), "python": platform.python_version(),
            "paddle": paddle.__version__, "device": paddle.device.get_device()}


def write_json(path: str | Path, figures: dict[str, Any], **context: Any) -> None:
    """Write ``figures`` and then ``context`` (seed, config …) and the machine as one flat JSON object, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({**figures, **context, **machine()}, ensure_ascii=False, indent=1) + "\n")
    os.replace(temporary, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.processor())
