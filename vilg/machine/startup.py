"""Threads, allocator and flags, set once around the first import of Paddle.

``import vilg`` alone loads no Paddle, so that a tool's ``--help`` takes no second: it leaves word with the import
system, and whoever imports Paddle first finds the process prepared.
"""
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

from vilg.machine import allocator, process, wheel

logger = logging.getLogger("vilg.runtime")
_THREADS = "OMP_NUM_THREADS"


def start() -> None:
    """Prepare this process for Paddle, now if it is there already, else at the moment of its first import.

    After Paddle was imported by somebody else, only other threads' default number of OpenMP threads stays as it was.
    A Paddle that cannot be used (:mod:`vilg.machine.wheel`) raises VilgError: now, or at that import.
    """
    if "paddle" in sys.modules:
        wheel.check_installed(wheel.installed())
        wanted = process.user_environment(_THREADS, False)
        _finish(_prepare(wanted), wanted)
        process.restore_environment(_THREADS, wanted)
    elif not any(isinstance(finder, _PaddleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PaddleFinder())


def _prepare(wanted: str | None) -> int:
    threads = process.default_threads(wanted)
    process.choose_blas()
    allocator.keep_freed_memory(True)
    process.start_openmp(threads)
    return threads


def _finish(threads: int, wanted: str | None) -> None:
    import paddle

    wheel.check_version(paddle.__version__)
    if missing := wheel.no_device(paddle):
        logger.warning("%s", missing)
    process.set_threads(threads)
    if not paddle.is_compiled_with_cuda():
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    logger.debug("%d threads (%s)", threads, process.threads_reason(wanted))


class _PaddleFinder(importlib.abc.MetaPathFinder):
    """Answers the first import of Paddle with Paddle's own files and a loader that sets the process up around them."""

    def find_spec(self, name: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name != "paddle":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _PaddleLoader(spec.loader)
        return spec


class _PaddleLoader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader):
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)  # inspect and pkgutil ask loaders for sources and resources

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        found = wheel.installed()
        try:
            wheel.check_installed(found)
            self._execute(module)
        except Exception as error:
            sys.meta_path.insert(0, _PaddleFinder())  # the next attempt is to find the same
            sentence = wheel.import_failure(error, found)
            if sentence is not None:
                raise sentence from None
            raise

    def _execute(self, module: ModuleType) -> None:
        wanted = process.user_environment(_THREADS, True)
        threads = _prepare(wanted)
        # Importing Paddle writes OMP_NUM_THREADS=1, which child processes would inherit as if the user had said so; it
        # also warns about any other value, although OpenMP has been started with the right number by now.
        os.environ[_THREADS] = "1"
        try:
            with warnings.catch_warnings():
                # Paddle looks for ccache while it is imported and warns when there is none; nothing here compiles.
                warnings.filterwarnings("ignore", message="No ccache found", category=UserWarning)
                self.inner.exec_module(module)
        finally:
            process.restore_environment(_THREADS, wanted)
        _finish(threads, wanted)
