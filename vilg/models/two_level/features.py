"""What image→text reads of an image: codes, or dense vectors of the same grid."""
import paddle
from paddle import Tensor

from vilg.errors import ConfigError
from vilg.models.dual_encoder.image import ImageTower
from vilg.models.dual_encoder.pixels import differentiable
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.models.two_level.model import FeatureKind, TwoLevelConfig
from vilg.nn import functional
from vilg.tokenizers.image.base import ImageTokenizer


class FeatureReader:
    """From images [B, 3, S, S] in [-1, 1] to what the model reads: codes int64 [B, n], or float32 [B, n, width].

    ``kind`` encoder: the image tokenizer's vectors before they are quantized. vit: the patches of ``tower``, which has
    as many as the grid has tokens, of the image brought to its size and the levels that ``preprocess`` says.
    """

    def __init__(self, kind: FeatureKind, image_tokenizer: ImageTokenizer, tower: ImageTower | None = None,
                 preprocess: PreprocessConfig = PreprocessConfig()):
        self.kind, self.image_tokenizer, self.tower, self.preprocess = kind, image_tokenizer, tower, preprocess

    @property
    def width(self) -> int:
        """Width of the vectors; 0 for codes."""
        return {"codes": 0, "encoder": self.image_tokenizer.vector_width,
                "vit": self.tower.config.width if self.tower else 0}[self.kind]

    def check(self, config: TwoLevelConfig, key: str) -> None:
        """Refuse a model that these features do not fit. Raises ConfigError with both sides under ``key``."""
        if self.kind == "vit" and self.tower.config.patches != config.layout.image:
            raise ConfigError(f"{key}.rows: the image tower has {self.tower.config.patches} patches, but the grid is "
                              f"{config.rows}×{config.columns} = {config.layout.image}; use a tower of as many")
        if config.feature_width != self.width:
            raise ConfigError(f"{key}.feature_width: is {config.feature_width}, but {self.kind} features are "
                              f"{self.width} wide; set {key}.feature_width={self.width}")

    @paddle.no_grad()
    def of_images(self, images: Tensor) -> Tensor:
        """What the model reads of images."""
        if self.kind == "codes":
            return self.image_tokenizer.encode(images)
        with functional.full_precision():
            x = self.image_tokenizer.vectors(images) if self.kind == "encoder" else self._patches(images)
        return x if x.ndim == 3 else x.flatten(2).transpose([0, 2, 1])  # [B, n, width]

    @paddle.no_grad()
    def of_codes(self, codes: Tensor) -> Tensor:
        """What the model reads of the images that codes [B, n] decode to."""
        return codes if self.kind == "codes" else self.of_images(self.image_tokenizer.decode(codes))

    def _patches(self, images: Tensor) -> Tensor:
        return self.tower.patches(differentiable(images, self.tower.config.image_size, self.preprocess))
