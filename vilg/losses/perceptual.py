"""The perceptual distance of VQGAN: LPIPS over the features of a VGG16 whose weights the user names."""
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from vilg.config import configclass
from vilg.errors import CheckpointError
from vilg.losses.total import weighted_sum
from vilg.nn.layers import Conv2D
from vilg.weights.foreign import read_foreign_weights, weights_beginning_with

# (number of the convolution in the public ``features`` sequence, in, out); a pool follows each stage but the last.
STAGES = (((0, 3, 64), (2, 64, 64)),
          ((5, 64, 128), (7, 128, 128)),
          ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
          ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
          ((24, 512, 512), (26, 512, 512), (28, 512, 512)))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@configclass
class PerceptualConfig:
    """``weights`` is a local VGG16 file (safetensors, or a PyTorch checkpoint) with ``features.N.weight`` and
    ``.bias``; ``linear``, when given, a file with LPIPS's channel weights ``linN.model.1.weight``. ``weight`` scales
    the loss."""

    weights: str
    linear: str | None = None
    weight: float = 1.0


class PerceptualLoss(nn.Layer):
    """Distance of two pictures [B, 3, H, W] in [-1, 1] → scalar; frozen, in eval mode for good.

    Features of the last activation of each VGG16 stage are scaled to unit length over channels; their squared
    difference is weighted per channel, summed, averaged over positions and added up over stages. Without ``linear``
    every channel weighs 1 / (number of channels). Raises CheckpointError when a file lacks a weight.
    """

    def __init__(self, config: PerceptualConfig):
        super().__init__()
        self.convolutions = nn.LayerList(
            nn.LayerList(Conv2D(inner, outer, 3, padding=1) for _, inner, outer in stage) for stage in STAGES)
        self._load_vgg(config.weights)
        self.channel_weights = [paddle.full([1, stage[-1][2], 1, 1], 1.0 / stage[-1][2]) for stage in STAGES]
        if config.linear:
            self._load_linear(config.linear)
        self.weight = config.weight
        self.mean = paddle.to_tensor(MEAN).reshape([1, 3, 1, 1])
        self.deviation = paddle.to_tensor(DEVIATION).reshape([1, 3, 1, 1])
        for parameter in self.parameters():
            parameter.stop_gradient = True
        self.eval()

    def _load_vgg(self, path: str) -> None:
        arrays = weights_beginning_with(read_foreign_weights(path), "features.0.weight", path)
        for stage, layers in zip(STAGES, self.convolutions):
            for (number, _, _), layer in zip(stage, layers):
                for part, own in (("weight", layer.weight), ("bias", layer.bias)):
                    own.set_value(_fitting(arrays, f"features.{number}.{part}", list(own.shape), path))

    def _load_linear(self, path: str) -> None:
        arrays = weights_beginning_with(read_foreign_weights(path), "lin0.model.1.weight", path)
        self.channel_weights = [
            paddle.to_tensor(_fitting(arrays, f"lin{number}.model.1.weight", list(own.shape), path))
            for number, own in enumerate(self.channel_weights)]

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations at the end of each stage, scaled to unit length over channels: five [B, C, h, w]."""
        # The public VGG16 saw pictures in [0, 1] with this mean and deviation.
        x, found = ((images + 1.0) / 2.0 - self.mean) / self.deviation, []
        for number, layers in enumerate(self.convolutions):
            x = F.max_pool2d(x, 2) if number else x
            for layer in layers:
                x = F.relu(layer(x))
            # The small number stands under the root: at a place without activations its slope would be infinite.
            found.append(x / ((x * x).sum(1, keepdim=True) + 1e-10).sqrt())
        return found

    def forward(self, reconstructed: Tensor, images: Tensor) -> Tensor:
        with paddle.no_grad():
            wanted = self.features(images)
        total = paddle.zeros([])
        for got, target, weight in zip(self.features(reconstructed), wanted, self.channel_weights):
            with paddle.amp.auto_cast(enable=False):
                difference = got.astype("float32") - target.astype("float32")  # [B, C, h, w]
                total = total + (difference * difference * weight).sum(1).mean()
        return weighted_sum([(self.weight, total)])


def _fitting(arrays: dict, name: str, shape: list[int], path: str):
    if name not in arrays:
        raise CheckpointError(f"{path}: lacks {name}; the perceptual loss takes the weights of a VGG16 and LPIPS's lin "
                              "layers")
    if list(arrays[name].shape) != shape:
        raise CheckpointError(f"{path}: {name} is {list(arrays[name].shape)}, a VGG16 has {shape}")
    return arrays[name].astype("float32")
