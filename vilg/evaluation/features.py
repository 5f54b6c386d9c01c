"""Inception features of image files, cached so that hours of them are resumed, and what they are compared with."""
import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from vilg.data.images import read_image
from vilg.data.resize import VARIANTS, to_inception
from vilg.data.sample import BrokenSample
from vilg.errors import ConfigError, DataError
from vilg.evaluation.files import write_whole
from vilg.metrics.frechet import Gaussian, gaussian
from vilg.models.inception import FEATURES, Inception, load_inception
from vilg.progress import progress, skip

log = logging.getLogger("vilg.evaluation")
PROTOCOLS = {"dm-gan": ("dm-gan",), "tf": ("pytorch-fid", "torch-fidelity", "clean-fid")}
"""Protocol → its resizes of ``vilg.data.resize``, the default first."""
BATCH = 50
"""Images that are cached together; dm-gan drops those that do not fill the last batch."""


@dataclass(frozen=True)
class Protocol:
    """How images become features: ``name`` of :data:`PROTOCOLS`, one of its resizes, the network's fingerprint."""

    name: str
    resize: str
    weights: str = ""

    @property
    def variant(self) -> str:
        """Which Inception-v3 it takes."""
        return VARIANTS[self.resize]

    @property
    def signature(self) -> str:
        """``dm-gan; resize dm-gan; weights 0123456789ab``."""
        return f"{self.name}; resize {self.resize}; weights {self.weights[:12]}"

    def usable(self, count: int) -> int:
        """How many of ``count`` images it scores. Raises DataError where that is none."""
        used = count // BATCH * BATCH if self.name == "dm-gan" else count
        if not used:
            raise DataError(f"dm-gan scores whole batches of {BATCH} images, and there are {count}; use more, or the "
                            "protocol tf")
        return used


def find_protocol(name: str, resize: str | None = None) -> Protocol:
    """The protocol of that name with its own resize or another of its resizes. Raises ConfigError naming both."""
    if name not in PROTOCOLS:
        raise ConfigError(f"there is no protocol called {name}; choose one of {', '.join(PROTOCOLS)}")
    resize = resize or PROTOCOLS[name][0]
    if resize not in PROTOCOLS[name]:
        raise ConfigError(f"the protocol {name} resizes by {' or '.join(PROTOCOLS[name])}, not by {resize}, which "
                          "makes another number")
    return Protocol(name, resize)


@dataclass(frozen=True)
class Features:
    """``pool`` [N, 2048] and ``logits`` [N, classes] of N images, and a ``digest`` of the images."""

    pool: np.ndarray
    logits: np.ndarray
    digest: str


def image_features(files: list[Path], network: Inception, protocol: Protocol, cache: Path, what: str) -> Features:
    """Features of the images that the protocol scores, in their order, from ``cache`` where they are there.

    They are cached by what the files hold, :data:`BATCH` at a time, so that a run goes on where it was stopped and an
    image that changed is taken anew. Raises DataError naming an image that is none.
    """
    files = files[:protocol.usable(len(files))]
    pools, logits, whole = [], [], hashlib.sha256()
    folder = cache / f"{protocol.resize}-{protocol.weights[:12]}"
    with progress(total=len(files), desc=what, unit="image") as bar:
        for start in range(0, len(files), BATCH):
            part = files[start:start + BATCH]
            contents = [_content(path) for path in part]
            digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
            whole.update(digest.encode())
            kept = folder / f"{digest[:32]}.npz"
            found = _cached(kept, len(part))
            if found is None:
                found = _computed(part, contents, network, protocol)
                buffer = io.BytesIO()
                np.savez(buffer, pool=found[0], logits=found[1])
                write_whole(kept, buffer.getvalue())
                bar.update(len(part))
            else:
                skip(bar, len(part))
            pools.append(found[0])
            logits.append(found[1])
    return Features(np.concatenate(pools), np.concatenate(logits), whole.hexdigest()[:12])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _cached(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            pool, logits = kept["pool"], kept["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or damaged: taken anew
        return None
    return (pool, logits) if pool.shape == (count, FEATURES) and len(logits) == count else None


def _computed(files: list[Path], contents: list[bytes], network: Inception, protocol: Protocol
              ) -> tuple[np.ndarray, np.ndarray]:
    try:
        images = [read_image(content, str(path)) for path, content in zip(files, contents)]
    except BrokenSample as broken:
        raise DataError(f"{broken}; save it again or leave it out") from None
    found = network(paddle.to_tensor(to_inception(images, protocol.resize)))
    return found.pool.numpy(), found.logits.numpy()


@dataclass(frozen=True)
class Reference:
    """What images are compared with: a Gaussian, and the features where there are any; ``signature`` names it."""

    gaussian: Gaussian
    features: np.ndarray | None
    count: int | None
    signature: str


def reference_of(features: Features) -> Reference:
    """A reference of images whose features were taken."""
    count = len(features.pool)
    warn_of_few(count, "the reference")
    return Reference(gaussian(features.pool), features.pool, count, f"{count} images {features.digest}")


def save_reference(path: str | Path, reference: Reference, protocol: Protocol) -> None:
    """Write {mu, sigma} as an .npz that others read too, with the protocol beside them."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=reference.gaussian.mean, sigma=reference.gaussian.covariance,
             protocol=protocol.signature, count=reference.count or 0)
    write_whole(path, buffer.getvalue())


def read_reference(path: str | Path, protocol: Protocol) -> Reference:
    """A reference from anybody's .npz of {mu [2048], sigma [2048, 2048]}, which is not unpickled.

    Raises DataError for another file, for other shapes, values that are not finite, and a reference that says that it
    was made by another protocol: both are named. One that says nothing is taken, and the signature tells so.
    """
    content = _content(Path(path))
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            if not hasattr(kept, "files"):
                raise KeyError("mu")
            mean, covariance = kept["mu"].astype("float64"), kept["sigma"].astype("float64")
            said = str(kept["protocol"]) if "protocol" in kept.files else ""
            count = int(kept["count"]) if "count" in kept.files else 0
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise DataError(f"{path}: is not an .npz of the arrays mu and sigma; make one with --save-reference, or give "
                        "the folder of images") from None
    if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
        raise DataError(f"{path}: has mu {list(mean.shape)} and sigma {list(covariance.shape)}, and {protocol.name} "
                        f"compares [{FEATURES}] and [{FEATURES}, {FEATURES}]; take the reference with this network")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: holds values that are not finite; make it again")
    if said and said != protocol.signature:
        raise DataError(f"{path}: was made by {said}, and this is {protocol.signature}; use that protocol, or take the "
                        "reference again")
    digest = hashlib.sha256(content).hexdigest()[:12]
    stated = f"{count} images" if said and count else "images of unstated number and protocol"
    return Reference(Gaussian(mean, covariance), None, count or None, f"{Path(path).name} {digest}, {stated}")


def warn_of_few(count: int, what: str) -> None:
    """Warn where a covariance is taken of fewer images than it has rows."""
    if count < FEATURES:
        log.warning("%s has %d images, fewer than the %d features: the covariance lacks rank, and the Fréchet distance "
                    "is far above that of many images", what, count, FEATURES)


def load_protocol(name: str, resize: str | None, weights: str | Path) -> tuple[Protocol, Inception]:
    """A protocol with its network, from a local file in its public format. Raises ConfigError for another protocol,
    CheckpointError for the weights of another network; both name what was found and what is due."""
    protocol = find_protocol(name, resize)
    network = load_inception(weights, protocol.variant)
    return Protocol(protocol.name, protocol.resize, network.fingerprint), network
