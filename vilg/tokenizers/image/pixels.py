"""The dVAE's range of pixels, in which the logit-Laplace likelihood is at home."""
from paddle import Tensor

# The dVAE maps pixels x in [0, 1] to (1 - 2ε)x + ε with ε = 0.1, because the likelihood has no mass at 0 and 1.
LAPLACE_MARGIN = 0.1


def to_laplace(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] → values in [0.1, 0.9], where the logit-Laplace likelihood is at home."""
    return (1.0 - 2.0 * LAPLACE_MARGIN) * (images + 1.0) / 2.0 + LAPLACE_MARGIN


def from_laplace(values: Tensor) -> Tensor:
    """The inverse of :func:`to_laplace`, clipped to [-1, 1]."""
    return ((values - LAPLACE_MARGIN) / (1.0 - 2.0 * LAPLACE_MARGIN) * 2.0 - 1.0).clip(-1.0, 1.0)
