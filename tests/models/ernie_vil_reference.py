"""ERNIE-ViL 2.0 in numpy, after its published list of layers, and random weights under either scheme of names."""
import math

import numpy as np

PATCH, IMAGE, VOCAB, POSITIONS, WIDTH, HEADS, LAYERS = 8, 32, 50, 12, 16, 2, 3
PATCHES = (IMAGE // PATCH) ** 2


def paddlenlp_shapes(layers: int = LAYERS, width: int = WIDTH, vocab: int = VOCAB, positions: int = POSITIONS,
                     patches: int = PATCHES, patch: int = PATCH) -> dict[str, list[int]]:
    """Names and shapes as PaddleNLP's ErnieViLModel has them."""
    shapes = {"temperature": [1], "text_model.embeddings.word_embeddings.weight": [vocab, width],
              "text_model.embeddings.position_embeddings.weight": [positions, width],
              "text_model.embeddings.layer_norm.weight": [width], "text_model.embeddings.layer_norm.bias": [width],
              "text_model.pooler.dense.weight": [width, width], "text_model.pooler.dense.bias": [width],
              "vision_model.class_embedding": [width], "vision_model.conv1.weight": [width, 3, patch, patch],
              "vision_model.positional_embedding.weight": [patches + 1, width]}
    shapes |= {f"vision_model.{norm}.{leaf}": [width] for norm in ("ln_pre", "ln_post") for leaf in ("weight", "bias")}
    for stack in ("text_model.encoder", "vision_model.transformer"):
        for layer in (f"{stack}.layers.{number}" for number in range(layers)):
            maps = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            maps |= {"linear1": (width, 4 * width), "linear2": (4 * width, width)}
            for name, (inputs, outputs) in maps.items():
                shapes |= {f"{layer}.{name}.weight": [inputs, outputs], f"{layer}.{name}.bias": [outputs]}
            for name in ("norm1", "norm2"):
                shapes |= {f"{layer}.{name}.weight": [width], f"{layer}.{name}.bias": [width]}
    return shapes


def paddlenlp_weights(seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Random weights under PaddleNLP's names, large enough that every layer counts."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in paddlenlp_shapes(**sizes).items():
        value = random.normal(size=shape).astype("float32") * (0.25 if len(shape) > 1 else 0.1)
        is_gain = name.endswith("weight") and len(shape) == 1
        weights[name] = value + np.float32(1) if is_gain else value
    weights["temperature"] = np.array([2.5], "float32")
    return weights


def baidu_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as Baidu's own file spells them: other names, fused maps and axes of length one."""
    inner = {"text": {"self_attn.q_proj": "attn.q", "self_attn.k_proj": "attn.k", "self_attn.v_proj": "attn.v",
                      "self_attn.out_proj": "attn.o", "linear1": "ffn.i", "linear2": "ffn.o", "norm1": "ln1",
                      "norm2": "ln2"},
             "vision": {"self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2",
                        "norm1": "norm1", "norm2": "norm2"}}
    renamed = {"temperature": "contrastive_loss_mm.temperature_b",
               "text_model.embeddings.word_embeddings.weight": "text_model.word_emb.weight",
               "text_model.embeddings.position_embeddings.weight": "text_model.pos_emb.weight",
               "vision_model.conv1.weight": "visual.patch_embed.proj.weight"}
    result = {renamed[name]: weights[name] for name in renamed}
    result["visual.class_embedding"] = weights["vision_model.class_embedding"][None, None]
    result["visual.positional_embedding"] = weights["vision_model.positional_embedding.weight"][None]
    for leaf in ("weight", "bias"):
        for theirs, own in (("text_model.embeddings.layer_norm", "text_model.ln"),
                            ("text_model.pooler.dense", "text_model.pooler"),
                            ("vision_model.ln_pre", "visual.norm_pre"), ("vision_model.ln_post", "visual.norm_post")):
            result[f"{own}.{leaf}"] = weights[f"{theirs}.{leaf}"]
    layers = sum(name.endswith("linear1.bias") and name.startswith("text") for name in weights)
    for number in range(layers):
        for leaf in ("weight", "bias"):
            for name, own in inner["text"].items():
                result[f"text_model.encoder_stack.block.{number}.{own}.{leaf}"] = weights[
                    f"text_model.encoder.layers.{number}.{name}.{leaf}"]
            layer = f"vision_model.transformer.layers.{number}"
            for name, own in inner["vision"].items():
                result[f"visual.blocks.{number}.{own}.{leaf}"] = weights[f"{layer}.{name}.{leaf}"]
            result[f"visual.blocks.{number}.attn.qkv.{leaf}"] = np.concatenate(
                [weights[f"{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"], -1)
    return result


class Reference:
    """The two towers in float64."""

    def __init__(self, weights: dict[str, np.ndarray], text_eps: float, image_eps: float, heads: int = HEADS):
        self.weights = {name: value.astype("float64") for name, value in weights.items()}
        self.text_eps, self.image_eps, self.heads = text_eps, image_eps, heads

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """Unit vectors of pixels [B, 3, S, S]."""
        kernel = self.weights["vision_model.conv1.weight"]
        side, eps = kernel.shape[-1], self.image_eps
        rows = [[(pixels[:, :, top:top + side, left:left + side, None] * np.moveaxis(kernel, 0, -1)).sum((1, 2, 3))
                 for left in range(0, pixels.shape[3], side)] for top in range(0, pixels.shape[2], side)]
        patches = np.stack([patch for row in rows for patch in row], 1)
        first = np.broadcast_to(self.weights["vision_model.class_embedding"], (len(pixels), 1, patches.shape[-1]))
        x = np.concatenate([first, patches], 1) + self.weights["vision_model.positional_embedding.weight"]
        x = self.norm(x, "vision_model.ln_pre", eps)
        for number in range(self.depth("vision_model.transformer.layers")):
            layer = f"vision_model.transformer.layers.{number}"
            x = x + self.attend(self.norm(x, f"{layer}.norm1", eps), layer, 0.0)
            inner = self.map(self.norm(x, f"{layer}.norm2", eps), f"{layer}.linear1")
            x = x + self.map(inner / (1 + np.exp(-1.702 * inner)), f"{layer}.linear2")
        return unit(self.norm(x, "vision_model.ln_post", eps)[:, 0])

    def text(self, ids: np.ndarray) -> np.ndarray:
        """Unit vectors of ids [B, L]."""
        x = self.weights["text_model.embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["text_model.embeddings.position_embeddings.weight"][:ids.shape[1]]
        x = self.norm(x, "text_model.embeddings.layer_norm", self.text_eps)
        for number in range(self.depth("text_model.encoder.layers")):
            layer = f"text_model.encoder.layers.{number}"
            mask = np.where(ids == 0, -1e4, 0.0)[:, None, None]
            x = self.norm(x + self.attend(x, layer, mask), f"{layer}.norm1", self.text_eps)
            inner = self.map(x, f"{layer}.linear1")
            inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
            x = self.norm(x + self.map(inner, f"{layer}.linear2"), f"{layer}.norm2", self.text_eps)
        return unit(np.tanh(self.map(x[:, 0], "text_model.pooler.dense")))

    def depth(self, stack: str) -> int:
        return sum(name.startswith(stack) and name.endswith("linear1.bias") for name in self.weights)

    def map(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str, eps: float) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps) * self.weights[f"{name}.weight"]
                + self.weights[f"{name}.bias"])

    def attend(self, x: np.ndarray, layer: str, mask: np.ndarray | float) -> np.ndarray:
        def by_head(part: str) -> np.ndarray:
            mapped = self.map(x, f"{layer}.self_attn.{part}_proj")
            return mapped.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

        q, k, v = (by_head(part) for part in "qkv")
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (weights / weights.sum(-1, keepdims=True)) @ v
        return self.map(seen.swapaxes(1, 2).reshape(x.shape), f"{layer}.self_attn.out_proj")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x ** 2).sum(-1, keepdims=True))


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [3, 3, S, S] and ids [3, 8] of texts of three lengths, padded with 0."""
    random = np.random.default_rng(5)
    ids = random.integers(4, VOCAB, [3, 8])
    ids[:, 0] = 1
    for row, length in enumerate((8, 5, 2)):
        ids[row, length - 1], ids[row, length:] = 2, 0
    return random.normal(size=[3, 3, IMAGE, IMAGE]).astype("float32"), ids
