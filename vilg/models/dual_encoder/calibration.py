"""What a cosine of a dual encoder means: the chance that a text and an image belong together."""
import numpy as np

from vilg.config import configclass
from vilg.errors import DataError

LEAST_PAIRS = 20
MOST_STEPS = 100


@configclass
class Calibration:
    """σ(``slope`` · cosine + ``offset``), fitted where half of the pairs are true ones and half are shuffled."""

    slope: float
    offset: float

    def __post_init__(self) -> None:
        if self.slope <= 0:
            raise ValueError(f"slope must be above 0, or a better fit would count for less; got {self.slope}")

    def probability(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines → probabilities in [0, 1], float32 of the same shape."""
        scores = self.slope * np.asarray(cosines, "float64") + self.offset
        return (1 / (1 + np.exp(-np.clip(scores, -60, 60)))).astype("float32")


def fit_calibration(true: np.ndarray, shuffled: np.ndarray) -> Calibration:
    """The most likely calibration of cosines of pairs that belong together, and of pairs that do not; the two sets
    weigh the same, however many each holds.

    Newton's method on the logistic likelihood (Platt 1999, whose softened targets keep it finite where the two sets do
    not overlap). Raises DataError when there are too few pairs, or when true ones are no nearer than shuffled ones.
    """
    true, shuffled = (np.asarray(each, "float64").reshape(-1) for each in (true, shuffled))
    if min(len(true), len(shuffled)) < LEAST_PAIRS:
        raise DataError(f"{len(true)} true and {len(shuffled)} shuffled pairs are too few to fit a calibration; give "
                        f"{LEAST_PAIRS} or more of each")
    if true.mean() <= shuffled.mean():
        raise DataError(f"true pairs have the mean cosine {true.mean():.3f} and shuffled ones {shuffled.mean():.3f}, "
                        "so the model tells nothing apart; train it longer, or give data that it was trained for")
    cosines = np.concatenate([true, shuffled])
    targets = np.repeat([(len(true) + 1) / (len(true) + 2), 1 / (len(shuffled) + 2)], [len(true), len(shuffled)])
    weights = np.repeat([0.5 / len(true), 0.5 / len(shuffled)], [len(true), len(shuffled)])
    centre, spread = cosines.mean(), cosines.std()
    inputs = np.stack([(cosines - centre) / spread, np.ones_like(cosines)])  # [2, N]
    slope, offset = _newton(inputs, targets, weights)
    return Calibration(slope=float(slope / spread), offset=float(offset - slope * centre / spread))


def _newton(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Two coefficients that maximise Σ weight · log-likelihood of ``targets`` [N] under σ(coefficients · inputs)."""
    def loss(values: np.ndarray) -> float:
        scores = values @ inputs
        return float((weights * (np.logaddexp(0, scores) - targets * scores)).sum())

    found = np.zeros(2)
    for _ in range(MOST_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(found @ inputs, -60, 60)))
        gradient = inputs @ (weights * (chance - targets))
        curvature = (inputs * (weights * chance * (1 - chance))) @ inputs.T + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while size > 1e-6 and loss(found - size * step) > loss(found):
            size /= 2
        found = found - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return found
