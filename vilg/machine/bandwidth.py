"""How fast this machine reads its memory: what drawing on a CPU is bound by."""
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vilg.machine import process

SIZE = 256 * 2**20
"""Bytes that every thread reads, more than most caches hold."""
ROUNDS = 5


def read_bandwidth(threads: int = 0) -> float:
    """Bytes a second that ``threads`` threads (0: as many as operators run on) read together, the best of
    :data:`ROUNDS`: each goes over numbers of its own, which numpy does without Python's lock."""
    threads = threads or process.threads()
    parts = [np.ones(SIZE // 8, "int64") for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            best = max(best, SIZE * threads / (time.perf_counter() - start))
    return best
