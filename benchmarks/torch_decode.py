"""A plain pre-LN torch stack with static key–value caches that draws tokens: :mod:`decode`'s other side."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Step = Callable[[int], None]


@dataclass(frozen=True)
class Shape:
    """Of a stack: ``text`` tokens before the picture's, ``codebook`` classes, ``columns`` of the picture's grid."""

    layers: int
    width: int
    heads: int
    text: int
    codebook: int
    columns: int


def stack(torch: Any, shape: Shape, math: str, top_k: int | None) -> Callable[[int, int], Step]:
    """``begin(batch, rows of the picture)`` → a function of one step, with caches of its own. ``math``: fp32, bf16
    (everything), or int8: the linear maps by ``torch.ao.quantization.quantize_dynamic``, the rest in float32.
    ``top_k``: draw among so many; None only computes logits."""
    functional, head = torch.nn.functional, shape.width // shape.heads
    kind = torch.bfloat16 if math == "bf16" else torch.float32
    torch.set_grad_enabled(False)
    linear, norm, width = torch.nn.Linear, torch.nn.LayerNorm, shape.width

    def layer() -> Any:
        return torch.nn.ModuleDict({
            "norm1": norm(width), "qkv": linear(width, 3 * width), "proj": linear(width, width), "norm2": norm(width),
            "fc1": linear(width, 4 * width), "fc2": linear(4 * width, width)})

    model = torch.nn.ModuleDict({
        "layers": torch.nn.ModuleList([layer() for _ in range(shape.layers)]), "final": norm(width),
        "to_codes": linear(width, shape.codebook), "embedding": torch.nn.Embedding(shape.codebook, width)}).to(kind)
    if math == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {linear}, dtype=torch.qint8)

    def begin(batch: int, grid: int) -> Step:  # each row has its text's keys and values
        keys, values = (torch.zeros(shape.layers, batch, shape.heads, shape.text + grid * shape.columns, head,
                                    dtype=kind) for _ in range(2))
        token = torch.zeros(batch, dtype=torch.int64)

        def step(position: int) -> None:
            nonlocal token
            x, at = model["embedding"](token)[:, None], shape.text + position
            for number, part in enumerate(model["layers"]):
                qkv = part["qkv"](part["norm1"](x)).view(batch, 3, shape.heads, 1, head)
                keys[number, :, :, at:at + 1], values[number, :, :, at:at + 1] = qkv[:, 1], qkv[:, 2]
                out = functional.scaled_dot_product_attention(
                    qkv[:, 0], keys[number, :, :, :at + 1], values[number, :, :, :at + 1])
                x = x + part["proj"](out.reshape(batch, 1, width))
                x = x + part["fc2"](functional.gelu(part["fc1"](part["norm2"](x))))
            logits = model["to_codes"](model["final"](x[:, 0])).float()
            if top_k:
                best, index = logits.topk(top_k)
                token = index.gather(1, torch.multinomial(best.softmax(-1), 1))[:, 0]

        return step

    return begin
