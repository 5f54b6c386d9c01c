"""Writing evaluation and benchmark figures down: one flat JSON object with seed, config and machine beside them."""
import json
import os
import platform
from pathlib import Path
from typing import Any


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
