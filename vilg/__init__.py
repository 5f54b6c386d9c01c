"""vilg: bidirectional generation between pictures and text on PaddlePaddle.

Importing the package sees to it that the machine (threads, allocator) is set up before Paddle's first operator; see
:mod:`vilg.machine.startup`.
"""
from vilg.machine import startup

startup.start()

_MOVED = {"pipeline": "vilg.app.pipeline", "build": "vilg.run.build", "web": "vilg.app.page",
          "judge": "vilg.evaluation.scenes", "gallery": "vilg.app.image_files", "demo": "vilg.app.demo",
          "table7": "vilg.evaluation.table7"}


def load(name_or_directory, device=None, cpu_math=None, dtype=None):
    """Load a released folder, by name or path: what draws and describes, or another kind's own; see
    :func:`vilg.app.pipeline.load_any`."""
    from vilg.app import pipeline  # models and tokenizers are only imported by those who load one

    return pipeline.load_any(name_or_directory, device=device, cpu_math=cpu_math, dtype=dtype)


def __getattr__(name):
    if name in _MOVED:
        raise AttributeError(f"vilg.{name} is {_MOVED[name]} since version 1.1")
    raise AttributeError(f"module 'vilg' has no attribute {name!r}")
