"""vilg: bidirectional generation between pictures and text on PaddlePaddle.

Importing the package sets the machine up (threads, allocator) before Paddle's first operator; see :mod:`vilg.runtime`.
"""
from vilg import runtime

runtime.start()


def load(name_or_directory, device=None, cpu_math=None):
    """Load a released model, by name or folder; see :func:`vilg.app.pipeline.load`."""
    from vilg.app import pipeline  # models and tokenizers are only imported by those who load one

    return pipeline.load(name_or_directory, device=device, cpu_math=cpu_math)
