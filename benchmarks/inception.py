"""Inception-v3's features against pytorch-fid's network on torch: images a second, and what bf16 products change.

    python benchmarks/inception.py                   all cores; about three minutes
    python benchmarks/inception.py --threads 1 --clock cpu on a busy machine

Weights are random, so the distances mean nothing by themselves; --weights FILE takes pt_inception-2015-12-05. Two sets
of images are made by rule, smooth fields and the same with noise. Needs torch, torchvision and pytorch-fid.

Keys of --json: pictures_per_s_over_torch (ours / theirs in float32: above 1 is faster), bf16_pictures_per_s_over_torch
(ours in bf16 / theirs in float32), pictures_per_s, frechet_fp32 and frechet_bf16 (the distance of the two sets by
features of either kind), frechet_bf16_change (the share by which the second differs).
"""
import harness

BATCH = 8
SIDE = 299
IMAGES, QUICK_IMAGES = 64, 16
"""Of each set, for the distances."""


def main() -> None:
    """Time all contestants and print, or write, the ratios."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--weights", metavar="FILE", help="pt_inception-2015-12-05 in its public format "
                                                          "(default: random weights)")
    options = parser.parse_args()
    images = QUICK_IMAGES if options.quick else IMAGES
    mine, rounded = (harness.Contestant(math, ours, options, math, options.weights, images, pause=harness.SHORT_PAUSE)
                     for math in ("fp32", "bf16"))
    peer = harness.Contestant("torch", pytorch_fid, options, pause=harness.SHORT_PAUSE)
    contestants = [mine, rounded, peer]
    for contestant in contestants:
        contestant.wait()
    seconds = harness.alternate(contestants, "features", 2 if options.quick else 8, 1 if options.quick else 2)
    first, second = (contestant.ask("distance") for contestant in (mine, rounded))
    for contestant in contestants:
        contestant.close()
    figures = {"pictures_per_s_over_torch": seconds["torch"] / seconds["fp32"],
               "bf16_pictures_per_s_over_torch": seconds["torch"] / seconds["bf16"],
               "pictures_per_s": BATCH / seconds["fp32"], "frechet_fp32": first, "frechet_bf16": second,
               "frechet_bf16_change": abs(second - first) / first}
    harness.report(options, figures, batch=BATCH, images=images, weights=options.weights or "random")


def ours(threads: int, seed: int, math: str, weights: str | None, images: int) -> dict:
    """The house's network in its ``tf`` variant."""
    paddle = harness.prepare_ours(threads, seed, math)
    import numpy as np

    from vilg.metrics.frechet import frechet_distance, gaussian
    from vilg.models.inception import Inception, load_inception

    network = load_inception(weights, "tf") if weights else Inception("tf")
    if not weights:
        generator = np.random.default_rng(seed)
        for parameter in network.parameters():
            width = 0.0 if parameter.ndim == 1 else (2 / np.prod(parameter.shape[1:])) ** 0.5
            parameter.set_value(generator.normal(0, width, list(parameter.shape)).astype("float32"))

    def features():
        batch = paddle.to_tensor(made_images(BATCH, seed, 0.0))
        return lambda: network(batch).pool.numpy()

    def distance() -> float:
        sets = [np.concatenate([network(paddle.to_tensor(part)).pool.numpy() for part in np.array_split(
            made_images(images, seed + number, noise), images // BATCH)]) for number, noise in enumerate((0.0, 0.2))]
        return frechet_distance(*map(gaussian, sets))

    return {"features": features, "distance": distance}


def pytorch_fid(threads: int, seed: int) -> dict:
    """pytorch-fid's network with random weights: what it computes takes as long."""
    torch = harness.prepare_torch(threads, seed)
    import torchvision
    from pytorch_fid import inception

    start = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    inception.load_state_dict_from_url = lambda *_, **__: start.state_dict()
    network = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()

    def features():
        batch = torch.tensor(made_images(BATCH, seed, 0.0))

        def run():
            with torch.inference_mode():
                network(batch)[0].numpy()

        return run

    return {"features": features}


def made_images(count: int, seed: int, noise: float):
    """Smooth fields in (-1, 1), float32 [count, 3, 299, 299], with as much noise as asked for."""
    import numpy as np

    generator = np.random.default_rng(seed)
    places = np.linspace(0, 2 * np.pi, SIDE)
    rates, phases = generator.uniform(0.5, 6, [2, count, 3]), generator.uniform(0, 2 * np.pi, [2, count, 3])
    rows, columns = np.sin(rates[..., None] * places + phases[..., None])
    fields = 0.8 * rows[..., :, None] * columns[..., None, :]
    return (fields + noise * generator.normal(size=fields.shape)).astype("float32")


if __name__ == "__main__":
    main()
