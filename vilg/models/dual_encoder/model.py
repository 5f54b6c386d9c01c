"""The dual encoder: two towers, their projections into one space, and the temperature of their similarities."""
import contextlib
import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.models.dual_encoder.image import ImageTower, ImageTowerConfig
from vilg.models.dual_encoder.text import TextTower, TextTowerConfig
from vilg.nn.layers import Linear

START = 2.65926  # exp() of it is 14.29 = 1/0.07, from which CLIP started
HIGHEST = math.log(100)


@configclass
class DualEncoderConfig:
    """Shape of a :class:`DualEncoder`.

    ``projection`` is the width of the common space, reached by a linear map without bias from either tower; without it
    both towers must be equally wide, and their vectors are compared as they are.
    """

    image: ImageTowerConfig
    text: TextTowerConfig
    projection: int | None = None

    def __post_init__(self) -> None:
        if self.projection is None and self.image.width != self.text.width:
            raise ValueError(f"image.width {self.image.width} and text.width {self.text.width} differ, so projection "
                             "must name the width of their common space")
        if self.projection is not None and self.projection < 1:
            raise ValueError(f"projection must be at least 1, not {self.projection}")

    @property
    def vector_width(self) -> int:
        """Width D of the vectors that images and texts become."""
        return self.image.width if self.projection is None else self.projection


class Temperature(nn.Layer):
    """The learned factor exp(t) on cosines. It is read and clamped outside any forward, so sharding keeps it whole."""

    kept_whole = True

    def __init__(self):
        super().__init__()
        self.log = self.create_parameter([1], default_initializer=nn.initializer.Constant(START))

    def forward(self) -> Tensor:
        """exp(t), float32 [1]."""
        return paddle.exp(self.log.astype("float32"))

    @paddle.no_grad()
    def clamp(self) -> None:
        """Bring t back into [0, ln 100]; to be called after every step (the clip of a forward alone lets t wander)."""
        self.log.set_value(paddle.clip(self.log, 0.0, HIGHEST))


class DualEncoder(nn.Layer):
    """Images and texts as unit vectors in one space: the cosine of two of them says how well they fit.

    Vectors are float32 whatever the towers compute in. ``temperature()`` is the factor on cosines in the loss.
    """

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config.image)
        self.text_tower = TextTower(config.text)
        self.image_projection = self._projection(config.image.width)
        self.text_projection = self._projection(config.text.width)
        self.temperature = Temperature()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] → unit vectors [B, D]. Raises ShapeError for images of another size."""
        return self._encode(self.image_tower, self.image_projection, pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Text ids int64 [B, L] → unit vectors [B, D]. Raises ShapeError for texts that are too long."""
        return self._encode(self.text_tower, self.text_projection, ids)

    def _projection(self, width: int) -> Linear | None:
        if self.config.projection is None:
            return None
        return Linear(width, self.config.projection, std=width ** -0.5, bias=False)

    @staticmethod
    def _encode(tower: ImageTower | TextTower, projection: Linear | None, inputs: Tensor) -> Tensor:
        with paddle.no_grad() if tower.config.frozen else contextlib.nullcontext():
            x = tower(inputs)
        x = x if projection is None else projection(x)
        return F.normalize(x.astype("float32"), axis=-1)
