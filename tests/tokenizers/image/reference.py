"""The networks of the public releases once more, in numpy and by the public names of their weights."""
import numpy as np


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1, padding: tuple | int = 0) -> np.ndarray:
    """Convolution as a sum over kernel positions; padding is (top, bottom, left, right) or one number."""
    top, bottom, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows = (x.shape[2] - weight.shape[2]) // stride + 1
    columns = (x.shape[3] - weight.shape[3]) // stride + 1
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            window = x[:, :, i:i + stride * rows:stride, j:j + stride * columns:stride]
            out += np.einsum("bchw,oc->bohw", window, weight[:, :, i, j])
    return out + bias[:, None, None]


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def twice(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=2).repeat(2, axis=3)


class PublicVQGAN:
    """The autoencoder of the public VQGAN checkpoints; ``weights`` are float64 by public name."""

    def __init__(self, weights: dict, groups: int, levels: int, blocks: int, attention: set[int]):
        self.weights = {name: value.astype("float64") for name, value in weights.items()}
        self.groups, self.levels, self.blocks, self.attention = groups, levels, blocks, attention

    def conv(self, name: str, x: np.ndarray, stride: int = 1, padding: tuple | int = 0) -> np.ndarray:
        return conv(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride, padding)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
        x = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
        return x * self.weights[f"{name}.weight"][:, None, None] + self.weights[f"{name}.bias"][:, None, None]

    def block(self, name: str, x: np.ndarray) -> np.ndarray:
        h = self.conv(f"{name}.conv1", swish(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", swish(self.norm(f"{name}.norm2", h)), padding=1)
        return (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.weights else x) + h

    def attend(self, name: str, x: np.ndarray) -> np.ndarray:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).reshape(*x.shape[:2], -1) for part in "qkv")
        scores = np.einsum("bci,bcj->bij", q, k) / np.sqrt(x.shape[1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bij,bcj->bci", scores / scores.sum(-1, keepdims=True), v)
        return x + self.conv(f"{name}.proj_out", mixed.reshape(x.shape))

    def middle(self, half: str, x: np.ndarray) -> np.ndarray:
        x = self.attend(f"{half}.mid.attn_1", self.block(f"{half}.mid.block_1", x))
        return self.block(f"{half}.mid.block_2", x)

    def level(self, name: str, x: np.ndarray, blocks: int, attends: bool) -> np.ndarray:
        for number in range(blocks):
            x = self.block(f"{name}.block.{number}", x)
            x = self.attend(f"{name}.attn.{number}", x) if attends else x
        return x

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Pictures → the vectors that the quantizer takes."""
        x = self.conv("encoder.conv_in", x, padding=1)
        for number in range(self.levels):
            x = self.level(f"encoder.down.{number}", x, self.blocks, number in self.attention)
            if number + 1 < self.levels:
                x = self.conv(f"encoder.down.{number}.downsample.conv", x, 2, (0, 1, 0, 1))
        x = self.conv("encoder.conv_out", swish(self.norm("encoder.norm_out", self.middle("encoder", x))), padding=1)
        return self.conv("quant_conv", x)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Vectors of codes → pictures."""
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1))
        for number in reversed(range(self.levels)):
            x = self.level(f"decoder.up.{number}", x, self.blocks + 1, number in self.attention)
            x = self.conv(f"decoder.up.{number}.upsample.conv", twice(x), padding=1) if number else x
        return self.conv("decoder.conv_out", swish(self.norm("decoder.norm_out", x)), padding=1)


def public_vqgan_shapes(channels: int, multipliers: list[int], blocks: int, attention: set[int], z: int, d: int,
                        codes: int, gumbel: bool) -> dict[str, tuple]:
    """Names and shapes of the public state dict."""
    shapes: dict[str, tuple] = {}

    def put(name: str, out: int, inner: int, kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, inner, kernel, kernel), f"{name}.bias": (out,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def block(name: str, inner: int, out: int) -> None:
        norm(f"{name}.norm1", inner), put(f"{name}.conv1", out, inner, 3)
        norm(f"{name}.norm2", out), put(f"{name}.conv2", out, out, 3)
        if inner != out:
            put(f"{name}.nin_shortcut", out, inner, 1)

    def attend(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            put(f"{name}.{part}", width, width, 1)

    widths = [channels * multiplier for multiplier in multipliers]
    for half in ("encoder", "decoder"):
        order = list(range(len(widths))) if half == "encoder" else list(range(len(widths)))[::-1]
        inner = widths[order[0]] if half == "decoder" else channels
        put(f"{half}.conv_in", inner, z if half == "decoder" else 3, 3)
        side = {"encoder": ("down", "downsample", blocks), "decoder": ("up", "upsample", blocks + 1)}[half]
        for number in order:
            for index in range(side[2]):
                block(f"{half}.{side[0]}.{number}.block.{index}", inner, widths[number])
                inner = widths[number]
                if number in attention:
                    attend(f"{half}.{side[0]}.{number}.attn.{index}", inner)
            if number != order[-1]:
                put(f"{half}.{side[0]}.{number}.{side[1]}.conv", inner, inner, 3)
        block(f"{half}.mid.block_1", widths[-1], widths[-1])
        attend(f"{half}.mid.attn_1", widths[-1])
        block(f"{half}.mid.block_2", widths[-1], widths[-1])
        norm(f"{half}.norm_out", inner)
        put(f"{half}.conv_out", z if half == "encoder" else 3, inner, 3)
    put("quant_conv", d, z, 1), put("post_quant_conv", z, d, 1)
    if gumbel:
        put("quantize.proj", codes, z, 1)
    shapes["quantize.embed.weight" if gumbel else "quantize.embedding.weight"] = (codes, d)
    return shapes


def public_dvae_shapes(width: int, stages: list[int], blocks: int, codes: int, init: int) -> tuple[dict, dict]:
    """Names and shapes of the public dVAE's encoder and decoder state dicts."""
    halves = []
    for half in ("encoder", "decoder"):
        encoder, shapes = half == "encoder", {}

        def put(name: str, out: int, inner: int, kernel: int) -> None:
            shapes.update({f"{name}.w": (out, inner, kernel, kernel), f"{name}.b": (out,)})

        inner = width if encoder else init
        put("blocks.input", inner, 3 if encoder else codes, 7 if encoder else 1)
        kernels = (3, 3, 3, 1) if encoder else (1, 3, 3, 3)
        for group, multiplier in enumerate(stages if encoder else stages[::-1], 1):
            out = width * multiplier
            for index in range(1, blocks + 1):
                name, chain = f"blocks.group_{group}.block_{index}", [inner, out // 4, out // 4, out // 4, out]
                if inner != out:
                    put(f"{name}.id_path", out, inner, 1)
                for number, kernel in enumerate(kernels, 1):
                    put(f"{name}.res_path.conv_{number}", chain[number], chain[number - 1], kernel)
                inner = out
        put("blocks.output.conv", codes if encoder else 6, inner, 1)
        halves.append(shapes)
    return halves[0], halves[1]


def public_dvae(weights: dict, x: np.ndarray, groups: int, blocks: int, decoder: bool) -> np.ndarray:
    """Either half of the public dVAE: values in [0.1, 0.9] → logits, or one-hot codes → six channels."""
    weights = {name: value.astype("float64") for name, value in weights.items()}

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        return conv(x, weights[f"{name}.w"], weights[f"{name}.b"], padding=weights[f"{name}.w"].shape[2] // 2)

    x = apply("blocks.input", x)
    for group in range(1, groups + 1):
        for index in range(1, blocks + 1):
            name, h = f"blocks.group_{group}.block_{index}", x
            for number in range(1, 5):
                h = apply(f"{name}.res_path.conv_{number}", np.maximum(h, 0))
            skip = apply(f"{name}.id_path", x) if f"{name}.id_path.w" in weights else x
            x = skip + h / (groups * blocks) ** 2
        if group < groups:
            b, c, rows, columns = x.shape
            x = twice(x) if decoder else x.reshape(b, c, rows // 2, 2, columns // 2, 2).max((3, 5))
    return apply("blocks.output.conv", np.maximum(x, 0))


def random_weights(shapes: dict[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """Random float32 values that keep activations near 1; gains of norms lie around 1."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.2 if len(shape) == 1 else 1.0
        base = 1.0 if len(shape) == 1 and "norm" in name and name.endswith("weight") else 0.0
        weights[name] = (base + scale * rng.standard_normal(shape)).astype("float32")
    return weights
