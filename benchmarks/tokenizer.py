"""The VQGAN's network against the same one on torch and on stock Paddle: a training step, and encoding plus decoding.

    python benchmarks/tokenizer.py                   all cores, float32; about three minutes
    python benchmarks/tokenizer.py --math bf16       bf16 products against torch's bf16 autocast
    python benchmarks/tokenizer.py --threads 1 --clock cpu on a busy machine

A training step is forward, backward and AdamW of the autoencoder with its codebook, for reconstruction and commitment
(no perceptual loss and no adversary, which would be other networks). Keys of --json: train_over_torch,
roundtrip_over_torch, train_over_stock, roundtrip_over_stock (ours / theirs: below 1 is faster), and train_ms and
roundtrip_ms of ours.
"""
import contextlib

import harness

BATCH, SIDE = 8, 64
NETWORK = {"image_size": SIDE, "channels": 64, "multipliers": [1, 2, 2, 2], "blocks": 1, "decoder_blocks": 1,
           "attention_resolutions": [], "z_channels": 64, "code_dim": 64}
CODES = 1024


def main() -> None:
    """Time all contestants and print, or write, the ratios."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--math", choices=("fp32", "bf16"), default="fp32", help="arithmetic of ours and of torch")
    options = parser.parse_args()
    contestants = [harness.Contestant("ours", ours, options, options.math), harness.Contestant("stock", stock, options),
                   harness.Contestant("torch", torch_network, options, options.math)]
    for contestant in contestants:
        contestant.wait()
    rounds, repetitions = (2, 1) if options.quick else (5, 3)
    figures = {}
    for case in ("train", "roundtrip"):
        seconds = harness.alternate(contestants, case, rounds, repetitions)
        figures[f"{case}_ms"] = seconds["ours"] * 1e3
        for other in ("torch", "stock"):
            figures[f"{case}_over_{other}"] = seconds["ours"] / seconds[other]
    for contestant in contestants:
        contestant.close()
    harness.report(options, figures, math=options.math, batch=BATCH, codes=CODES,
                   **{name: str(value) for name, value in NETWORK.items()})


def ours(threads: int, seed: int, math: str) -> dict:
    """The house's VQGAN."""
    return _paddle_cases(harness.prepare_ours(threads, seed, math))


def stock(threads: int, seed: int) -> dict:
    """The same network with every operator stock Paddle's, the process as Paddle sets it up."""
    paddle = harness.prepare_stock(threads, seed)
    from vilg import runtime

    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    runtime.configure(runtime.RuntimeConfig(threads=threads, onednn=False, allocator=False))
    return _paddle_cases(paddle)


def _paddle_cases(paddle) -> dict:
    from vilg.tokenizers.quantize import QuantizerConfig
    from vilg.tokenizers.vqgan import VQVAE, VQConfig

    model = VQVAE(VQConfig(quantizer=QuantizerConfig(kind="straight_through", codebook_size=CODES), **NETWORK))
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters())
    images = paddle.rand([BATCH, 3, SIDE, SIDE]) * 2 - 1

    def train() -> None:
        result = model.reconstruct(images)
        loss = (result.raw - images).abs().mean() + result.latent_loss
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()

    def roundtrip() -> None:
        with paddle.no_grad():
            model.decode(model.encode(images))

    return {"train": lambda: train, "roundtrip": lambda: roundtrip}


def torch_network(threads: int, seed: int, math: str) -> dict:
    """The same network written on torch."""
    torch = harness.prepare_torch(threads, seed)
    nn, f = torch.nn, torch.nn.functional

    class Residual(nn.Module):
        def __init__(self, a: int, b: int):
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(32, a, 1e-6), nn.Conv2d(a, b, 3, padding=1)
            self.norm2, self.conv2 = nn.GroupNorm(32, b, 1e-6), nn.Conv2d(b, b, 3, padding=1)
            self.skip = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

        def forward(self, x):
            return self.skip(x) + self.conv2(f.silu(self.norm2(self.conv1(f.silu(self.norm1(x))))))

    class Attention(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.norm = nn.GroupNorm(32, channels, 1e-6)
            self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

        def forward(self, x):
            h = self.norm(x)
            q, k, v = (part(h).flatten(2) for part in (self.query, self.key, self.value))
            weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, -1)
            return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))

    def middle(channels: int) -> list:
        return [Residual(channels, channels), Attention(channels), Residual(channels, channels)]

    def levels(widths: list[int], resize) -> list:
        layers, before = [], widths[0]
        for number, width in enumerate(widths):
            layers += [Residual(before, width)] + ([resize(width)] if number + 1 < len(widths) else [])
            before = width
        return layers

    def down(width: int):
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))

    def up(width: int):
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1))

    def ending(width: int, out: int) -> list:
        return [nn.GroupNorm(32, width, 1e-6), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)]

    widths = [NETWORK["channels"] * factor for factor in NETWORK["multipliers"]]
    z, d = NETWORK["z_channels"], NETWORK["code_dim"]
    encoder = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), *levels(widths, down), *middle(widths[-1]),
                            *ending(widths[-1], z), nn.Conv2d(z, d, 1))
    decoder = nn.Sequential(nn.Conv2d(d, z, 1), nn.Conv2d(z, widths[-1], 3, padding=1), *middle(widths[-1]),
                            *levels(widths[::-1], up), *ending(widths[0], 3))
    codebook = nn.Parameter(torch.randn(CODES, d))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters(), codebook], 1e-4)
    images = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1

    def arithmetic():
        return torch.autocast("cpu", torch.bfloat16) if math == "bf16" else contextlib.nullcontext()

    def nearest(vectors):
        return (codebook.square().sum(1) - 2 * vectors.permute(0, 2, 3, 1) @ codebook.T).argmin(-1)

    def embedded(codes):
        return codebook[codes].permute(0, 3, 1, 2)

    def train() -> None:
        with arithmetic():
            vectors = encoder(images)
            chosen = embedded(nearest(vectors))
            pictures = decoder(vectors + (chosen - vectors).detach())
            loss = ((pictures - images).abs().mean() + (chosen - vectors.detach()).square().mean()
                    + 0.25 * (vectors - chosen.detach()).square().mean())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def roundtrip() -> None:
        with torch.no_grad(), arithmetic():
            decoder(embedded(nearest(encoder(images))))

    return {"train": lambda: train, "roundtrip": lambda: roundtrip}


if __name__ == "__main__":
    main()
