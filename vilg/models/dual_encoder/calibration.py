"""What a cosine of a dual encoder means: the chance that a text and an image belong together."""
import numpy as np

from vilg.config import configclass


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
