"""What every image tokenizer offers: pictures to codes, codes to pictures, and the steps between."""
import abc
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import Tensor, nn

from vilg.errors import DataError
from vilg.nn import functional


@dataclass
class Reconstruction:
    """A training pass: ``raw`` is what the reconstructor put out (3 or 6 channels) from ``features``, the input of its
    last layer; ``codes`` are [B, n] and ``latent_loss`` is the codebook's own loss (commitment, or KL), a scalar."""

    raw: Tensor
    features: Tensor
    codes: Tensor
    latent_loss: Tensor


class Reconstructor(nn.Layer, abc.ABC):
    """Vectors [B, d, rows, columns] → raw output [B, 3 or 6, H, W],
    in two pieces so that a loss can look between them."""

    @abc.abstractmethod
    def features(self, z: Tensor) -> Tensor:
        """z → the input of the last layer."""

    @abc.abstractmethod
    def last(self, features: Tensor) -> Tensor:
        """The last layer: features → raw output."""

    @property
    @abc.abstractmethod
    def last_parameters(self) -> list[Tensor]:
        """Weight and bias of the last layer."""

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.features(z))


class ImageTokenizer(nn.Layer, abc.ABC):
    """Base of VQVAE, VQGAN and dVAE. Pictures are float32 [B, 3, H, W] in [-1, 1], codes int64 [B, n] in raster order.

    ``config`` is the configuration it was built from, ``image_size`` the side of its square pictures, ``grid`` the
    (rows, columns) of codes, ``codebook_size`` K and ``code_dim`` the width d of a code's vector. ``reconstructor``
    maps vectors [B, d, rows, columns] to its raw output, which :meth:`picture_of` turns into a picture.
    """

    reconstructor: Reconstructor

    def __init__(self, config: Any, image_size: int, grid: tuple[int, int], codebook_size: int, code_dim: int):
        super().__init__()
        self.config = config
        self.image_size, self.grid = image_size, grid
        self.codebook_size, self.code_dim = codebook_size, code_dim

    @property
    @abc.abstractmethod
    def vector_width(self) -> int:
        """Width v of what :meth:`vectors` gives."""

    @abc.abstractmethod
    def vectors(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] → what the encoder says before anything is quantized: [B, v, rows, columns]. Raises
        DataError for a wrong size."""

    @abc.abstractmethod
    def quantize(self, vectors: Tensor) -> Tensor:
        """Vectors [B, v, rows, columns] → codes [B, n]."""

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] → codes [B, n], in float32 on a CPU even under ``cpu_math: bf16``, which would move
        vectors across the borders between codes. Raises DataError for a wrong size."""
        with functional.full_precision():
            return self.quantize(self.vectors(images))

    @abc.abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """Codes [B, n] → their vectors z [B, d, rows, columns]. Raises DataError for a code out of range."""

    @abc.abstractmethod
    def reconstruct(self, images: Tensor, step: int = 0) -> Reconstruction:
        """Pictures [B, 3, H, W] through codes and back, with gradients;
        ``step`` places temperature and KL schedules."""

    @abc.abstractmethod
    def picture_of(self, raw: Tensor) -> Tensor:
        """What the reconstructor put out → pictures [B, 3, H, W] in [-1, 1]."""

    def after_step(self, step: int) -> dict[str, float]:
        """Called after an optimizer step: codebook averages and revival; returns codebook usage and perplexity."""
        return {}

    def training_state(self) -> dict[str, Tensor]:
        """Every tensor that training needs to go on from here: weights, and what a released folder leaves out."""
        return dict(self.state_dict())

    def decode_embeddings(self, z: Tensor) -> Tensor:
        """z [B, d, rows, columns] → pictures [B, 3, H, W], clipped to [-1, 1]."""
        self.check_embeddings(z)
        return self.picture_of(self.reconstructor(z))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, n] → pictures [B, 3, H, W] in [-1, 1].
        Raises DataError for a wrong count or a code out of range."""
        return self.decode_embeddings(self.embed(codes))

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless ``images`` is [B, 3, image_size, image_size]."""
        expected = [3, self.image_size, self.image_size]
        if images.ndim != 4 or list(images.shape[1:]) != expected:
            raise DataError(f"the image tokenizer takes pictures [B, {', '.join(map(str, expected))}], got "
                            f"{list(images.shape)}; crop and resize them to {self.image_size} pixels a side")

    def check_codes(self, codes: Tensor) -> None:
        """Raise DataError unless ``codes`` is an integer [B, n] with every code in 0 … K-1."""
        count = self.grid[0] * self.grid[1]
        if codes.ndim != 2 or codes.shape[1] != count:
            raise DataError(f"the image tokenizer takes codes [B, {count}] (a {self.grid[0]}×{self.grid[1]} grid), got "
                            f"{list(codes.shape)}")
        if codes.dtype not in (paddle.int64, paddle.int32):
            raise DataError(f"image codes are integers, got {codes.dtype}")
        if codes.shape[0] and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise DataError(f"image codes lie in 0 … {self.codebook_size - 1}, got {int(codes.min())} … "
                            f"{int(codes.max())}; were they made by another tokenizer?")

    def check_embeddings(self, z: Tensor) -> None:
        """Raise DataError unless ``z`` is [B, code_dim, rows, columns]."""
        expected = [self.code_dim, *self.grid]
        if z.ndim != 4 or list(z.shape[1:]) != expected:
            raise DataError(f"the decoder takes vectors [B, {', '.join(map(str, expected))}], got {list(z.shape)}")
