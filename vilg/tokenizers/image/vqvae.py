"""VQVAE and VQGAN: one autoencoder with a quantizer between (paper, "Image tokenizers", eqs 1 and 2).

The two differ in what they are trained by: VQVAE by pixels and the codebook alone, VQGAN by a perceptual loss and a
patch adversary as well (:mod:`vilg.tasks.image_tokenizer`).
"""
from dataclasses import field
from typing import Literal

from paddle import Tensor

from vilg.config import configclass
from vilg.nn.layers import Conv2D
from vilg.tokenizers.image.autoencoder import Decoder, Encoder, PatchEncoder
from vilg.tokenizers.image.base import ImageTokenizer, Reconstruction, Reconstructor
from vilg.tokenizers.image.quantize import QuantizerConfig, build_quantizer


@configclass
class VQConfig:
    """The autoencoder of VQVAE and VQGAN. The defaults are the paper's f = 8 network for 256×256 pictures.

    Level i has ``channels`` · ``multipliers[i]`` channels and ``blocks`` residual blocks (``decoder_blocks`` in the
    decoder); each level but the last halves the side. ``patch`` > 1 folds patch×patch pixels into channels before the
    first level, which saves the costly high resolutions. Levels whose side is in ``attention_resolutions`` get
    attention. ``z_channels`` leave the encoder, ``code_dim`` is the width of a code.

    ``encoder: patch`` looks at each f×f patch on its own (:class:`PatchEncoder`, as wide as the lowest level, as deep
    as ``blocks``). The same patch then has the same code whatever stands around it, so the codes of a picture are far
    easier to predict, which a small transformer needs; the paper's convolutional encoder tells more with each code.
    """

    kind: Literal["vqvae", "vqgan"] = "vqgan"
    image_size: int = 256
    channels: int = 128
    multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 4])
    blocks: int = 2
    decoder_blocks: int = 3
    attention_resolutions: list[int] = field(default_factory=lambda: [32])
    patch: int = 1
    norm_groups: int = 32
    encoder: Literal["convolutional", "patch"] = "convolutional"
    z_channels: int = 256
    code_dim: int = 256
    quantizer: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig(kind="straight_through", codebook_size=8192))

    def __post_init__(self):
        if min(self.image_size, self.channels, self.blocks, self.decoder_blocks, self.patch, self.norm_groups,
               self.z_channels, self.code_dim, *self.multipliers) < 1:
            raise ValueError("sizes, channels, multipliers and numbers of blocks must be positive")
        if not self.multipliers:
            raise ValueError("multipliers needs one number a level")
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.factor}, which patch "
                             f"{self.patch} and {len(self.multipliers)} levels reduce it by")
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide {odd[0]} channels")
        unknown = set(self.attention_resolutions) - set(self.resolutions)
        if unknown:
            raise ValueError(f"attention_resolutions {sorted(unknown)} are not among the levels' {self.resolutions}")

    @property
    def factor(self) -> int:
        """f: how many pixels a side one code covers."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    @property
    def resolutions(self) -> list[int]:
        """Side of each level."""
        return [self.image_size // self.patch // 2 ** level for level in range(len(self.multipliers))]


class VQReconstructor(Reconstructor):
    """Code vectors [B, code_dim, h, w] → pictures [B, 3, H, W] not clipped: a 1×1 convolution, then the decoder."""

    def __init__(self, config: VQConfig):
        super().__init__()
        attention = [side in config.attention_resolutions for side in config.resolutions]
        self.conv_in = Conv2D(config.code_dim, config.z_channels, 1)
        self.decoder = Decoder(config.widths, attention, config.decoder_blocks, config.z_channels, config.norm_groups,
                               config.patch)

    def features(self, z: Tensor) -> Tensor:
        return self.decoder.features(self.conv_in(z))

    def last(self, features: Tensor) -> Tensor:
        return self.decoder.last(features)

    @property
    def last_parameters(self) -> list[Tensor]:
        return [self.decoder.conv_out.weight, self.decoder.conv_out.bias]


class VQVAE(ImageTokenizer):
    """z = q[E(x)], x̂ = G(z_emb) (eq. 2), for pictures in [-1, 1]."""

    def __init__(self, config: VQConfig):
        side = config.image_size // config.factor
        super().__init__(config, config.image_size, (side, side), config.quantizer.codebook_size, config.code_dim)
        attention = [resolution in config.attention_resolutions for resolution in config.resolutions]
        self.encoder = (
            PatchEncoder(config.factor, config.widths[-1], config.blocks, config.z_channels)
            if config.encoder == "patch" else
            Encoder(config.widths, attention, config.blocks, config.z_channels, config.norm_groups, config.patch))
        # A Gumbel quantizer reads logits off z_channels by its own projection; the others compare with codes.
        width = config.z_channels if config.quantizer.kind == "gumbel" else config.code_dim
        self.to_code = Conv2D(config.z_channels, width, 1)
        self.quantizer = build_quantizer(config.quantizer, width, config.code_dim)
        self.reconstructor = VQReconstructor(config)

    @property
    def vector_width(self) -> int:
        return self.to_code.weight.shape[0]

    def vectors(self, images: Tensor) -> Tensor:
        self.check_images(images)
        return self.to_code(self.encoder(images))

    def quantize(self, vectors: Tensor) -> Tensor:
        return self.quantizer.encode(vectors)

    def embed(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        vectors = self.quantizer.embed(codes)                                  # [B, n, d]
        return vectors.transpose([0, 2, 1]).reshape([codes.shape[0], self.code_dim, *self.grid])

    def reconstruct(self, images: Tensor, step: int = 0) -> Reconstruction:
        quantized = self.quantizer(self.vectors(images), step)
        features = self.reconstructor.features(quantized.z)
        return Reconstruction(self.reconstructor.last(features), features, quantized.codes, quantized.loss)

    def after_step(self, step: int) -> dict[str, float]:
        return self.quantizer.update(step)

    def training_state(self) -> dict[str, Tensor]:
        averages = {f"quantizer.{name}": value for name, value in self.quantizer.named_buffers()}
        return {**self.state_dict(), **averages}

    def picture_of(self, raw: Tensor) -> Tensor:
        return raw.clip(-1.0, 1.0)


class VQGAN(VQVAE):
    """The same network under the name it has when a perceptual loss and a patch adversary train it too."""
