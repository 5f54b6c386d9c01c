"""vilg: bidirectional generation between pictures and text on PaddlePaddle.

Importing the package sets the machine up (threads, allocator) before Paddle's first operator; see :mod:`vilg.runtime`.
"""
from vilg import runtime

runtime.start()
