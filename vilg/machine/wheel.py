"""Which Paddle is installed, and what is wrong with it, said before anything fails for reasons nobody would guess.

PyPI's ``paddlepaddle-gpu`` ends at 2.6.2, which imports and then cannot train; Paddle's own index has the releases
since, one folder a CUDA version (paddlepaddle.org.cn, installation by pip).
"""
import os
from collections.abc import Iterable
from importlib import metadata
from types import ModuleType

from vilg.errors import VilgError

OLDEST = (3, 0)
TESTED = "3.3.1"
INDEX = "https://www.paddlepaddle.org.cn/packages/stable/"
CUDA = ("cu118", "cu126", "cu129", "cu130")
"""The CUDA versions that Paddle publishes wheels of :data:`TESTED` for."""
WHEELS = ("paddlepaddle", "paddlepaddle-gpu")
CPU_LINE = f"pip install paddlepaddle=={TESTED}"
GPU_LINE = f"pip install paddlepaddle-gpu=={TESTED} -i {INDEX}cu126/"
_CHOICE = f"{CPU_LINE} (for a CPU) or {GPU_LINE} (for CUDA 12.6; also {', '.join(CUDA[:1] + CUDA[2:])})"


def installed() -> dict[str, str]:
    """The versions of Paddle's wheels in this environment, by their name."""
    found = {}
    for name in WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_installed(found: dict[str, str]) -> None:
    """Refuse, before Paddle is imported, both wheels at once (they overwrite each other's files) and an old one.

    Raises VilgError with the line to type.
    """
    if len(found) > 1:
        raise VilgError(f"{' and '.join(found)} are both installed and overwrite each other's files; type: pip "
                        f"uninstall -y {' '.join(found)}, then {_CHOICE}")
    for name, version in found.items():
        check_version(version, name)


def check_version(version: str, name: str = "paddlepaddle") -> None:
    """Refuse a Paddle below :data:`OLDEST` (0.0.0 is a build of its development branch). Raises VilgError."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers != (0, 0) and numbers < OLDEST:
        line = GPU_LINE if name.endswith("gpu") else CPU_LINE
        other = ", from Paddle's own index, since PyPI's ends at 2.6.2" if name.endswith("gpu") else ""
        raise VilgError(f"{name} {version} is too old: vilg needs {'.'.join(map(str, OLDEST))} or newer; "
                        f"type: {line}{other}")


def import_failure(error: Exception, found: Iterable[str]) -> VilgError | None:
    """The sentence for a Paddle that cannot be imported because a library of its CUDA wheel is missing; None for
    another failure."""
    text = str(error)
    named = any(part in text for part in ("libcuda", "libcud", "libcublas", "libnccl", "libnvidia", "nvcuda"))
    if not isinstance(error, (ImportError, OSError)) or not named or "paddlepaddle-gpu" not in found:
        return None
    return VilgError(f"paddlepaddle-gpu finds no CUDA here ({text.splitlines()[0][:120]}); install NVIDIA's driver, or "
                     f"type: pip uninstall -y paddlepaddle-gpu && {CPU_LINE}")


def no_device(paddle: ModuleType) -> str:
    """Why a Paddle built for CUDA computes on the CPU, as a sentence with the way out; empty when it does not, or when
    the user hid the GPUs."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if hidden or not paddle.is_compiled_with_cuda() or paddle.device.cuda.device_count() > 0:
        return ""
    return ("paddlepaddle-gpu is installed, but no GPU can be used, so everything would run on the CPU; see what "
            "nvidia-smi says (driver, CUDA_VISIBLE_DEVICES), or type: pip uninstall -y paddlepaddle-gpu && " + CPU_LINE)
