"""The VQGAN's network against the same one on torch and on stock Paddle: a training step, and encoding plus decoding.

    python benchmarks/tokenizer.py                   all cores, float32; about a minute
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
SETTLING = 5
"""Steps of ours and of torch that do not count."""


def main() -> None:
    """Time all contestants and print, or write, the ratios."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--math", choices=("fp32", "bf16"), default="fp32", help="arithmetic of ours and of torch")
    options = parser.parse_args()
    mine = harness.Contestant("ours", ours, options, options.math, pause=harness.SHORT_PAUSE)
    peer = harness.Contestant("torch", torch_network, options, options.math, pause=harness.SHORT_PAUSE)
    default = harness.Contestant("stock", stock, options)
    contestants = [mine, peer, default]
    for contestant in contestants:
        contestant.wait()
    figures = {}
    for case in ("train", "roundtrip"):
        # The optimizer's state is made in the first step, and until memory has settled some touch new pages. Stock
        # Paddle touches its memory anew every time.
        for contestant, uncounted in ((mine, SETTLING), (peer, SETTLING), (default, 0 if options.quick else 1)):
            contestant.time(case, 0, uncounted)
        seconds = harness.alternate([mine, peer], case, 3 if options.quick else 8, 2, uncounted=0)
        seconds |= harness.alternate([default], case, 1, 1 if options.quick else 3, uncounted=0)
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
    from vilg.tokenizers.image.quantize import QuantizerConfig
    from vilg.tokenizers.image.vqvae import VQVAE, VQConfig

    model = VQVAE(VQConfig(quantizer=QuantizerConfig(kind="straight_through", codebook_size=CODES), **NETWORK))
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters())
    images = paddle.rand([BATCH, 3, SIDE, SIDE]) * 2 - 1

    def train() -> None:
        result = model.reconstruct(images)
        loss = (result.raw - images).abs().mean() + result.latent_loss
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)  # as the trainer and torch do

    def roundtrip() -> None:
        with paddle.no_grad():
            model.decode(model.encode(images))

    return {"train": lambda: train, "roundtrip": lambda: roundtrip}


def torch_network(threads: int, seed: int, math: str) -> dict:
    """The same network written on torch."""
    torch = harness.prepare_torch(threads, seed)
    from torch_vqgan import VQGAN

    model = VQGAN([NETWORK["channels"] * factor for factor in NETWORK["multipliers"]], NETWORK["z_channels"],
                  NETWORK["code_dim"], CODES)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1

    def arithmetic():
        return torch.autocast("cpu", torch.bfloat16) if math == "bf16" else contextlib.nullcontext()

    def train() -> None:
        with arithmetic():
            loss = model.loss(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def roundtrip() -> None:
        with torch.no_grad(), arithmetic():
            model.roundtrip(images)

    return {"train": lambda: train, "roundtrip": lambda: roundtrip}


if __name__ == "__main__":
    main()
