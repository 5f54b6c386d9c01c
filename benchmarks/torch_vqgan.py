"""The network of ``benchmarks/tokenizer.py`` on torch, layer for layer as vilg.tokenizers.image.vqvae builds it.

A module of its own because it imports torch at once, which only torch's own process may do.
"""
import torch
from torch import nn
from torch.nn import functional as f

GROUPS, EPSILON = 32, 1e-6
COMMITMENT = 0.25


def norm(channels: int) -> nn.GroupNorm:
    """The group norm of every layer."""
    return nn.GroupNorm(GROUPS, channels, EPSILON)


def conv(before: int, after: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps the size."""
    return nn.Conv2d(before, after, 3, padding=1)


class Residual(nn.Module):
    """Two normalised 3×3 convolutions beside a skip."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = norm(before), conv(before, after)
        self.norm2, self.conv2 = norm(after), conv(after, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, before, H, W] → [B, after, H, W]."""
        return self.skip(x) + self.conv2(f.silu(self.norm2(self.conv1(f.silu(self.norm1(x))))))


class Attention(nn.Module):
    """One head over all places of a picture."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] → the same."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
        return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))


def down(width: int) -> nn.Module:
    """Half the size."""
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))


def up(width: int) -> nn.Module:
    """Twice the size."""
    return nn.Sequential(nn.Upsample(scale_factor=2), conv(width, width))


def _levels(widths: list[int], resize) -> list[nn.Module]:
    layers, before = [], widths[0]
    for number, width in enumerate(widths):
        layers += [Residual(before, width)] + ([resize(width)] if number + 1 < len(widths) else [])
        before = width
    return layers


def _middle(channels: int) -> list[nn.Module]:
    return [Residual(channels, channels), Attention(channels), Residual(channels, channels)]


def _ending(width: int, out: int) -> list[nn.Module]:
    return [norm(width), nn.SiLU(), conv(width, out)]


class VQGAN(nn.Module):
    """Encoder, codebook and decoder of ``widths`` (channels by level), with one block a level."""

    def __init__(self, widths: list[int], z: int, dim: int, codes: int):
        super().__init__()
        self.encoder = nn.Sequential(conv(3, widths[0]), *_levels(widths, down), *_middle(widths[-1]),
                                     *_ending(widths[-1], z), nn.Conv2d(z, dim, 1))
        self.decoder = nn.Sequential(nn.Conv2d(dim, z, 1), conv(z, widths[-1]), *_middle(widths[-1]),
                                     *_levels(widths[::-1], up), *_ending(widths[0], 3))
        self.codebook = nn.Parameter(torch.randn(codes, dim))

    def _chosen(self, vectors: torch.Tensor) -> torch.Tensor:
        distances = self.codebook.square().sum(1) - 2 * vectors.permute(0, 2, 3, 1) @ self.codebook.T
        return self.codebook[distances.argmin(-1)].permute(0, 3, 1, 2)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruction, codebook and commitment of pictures [B, 3, H, W]."""
        vectors = self.encoder(images)
        chosen = self._chosen(vectors)
        pictures = self.decoder(vectors + (chosen - vectors).detach())
        return ((pictures - images).abs().mean() + (chosen - vectors.detach()).square().mean()
                + COMMITMENT * (vectors - chosen.detach()).square().mean())

    def roundtrip(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures to codes and back."""
        return self.decoder(self._chosen(self.encoder(images)))
