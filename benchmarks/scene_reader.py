"""How often the scene reader recovers a rendered scene exactly: clean,
and after the damage a tokenizer or a file may do.

    python benchmarks/scene_reader.py               3000 scenes a row, all three splits; about a minute and a half
    python benchmarks/scene_reader.py --count 20000

Keys of --json: exact_<damage>, the share of scenes whose objects all come back with their colour, shape, size and cell.
"""
import io
from collections.abc import Callable

import harness
import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from vilg.data.worlds import scenes

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def main() -> None:
    """Read and compare."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--count", type=int, default=3000, help="scenes a row (%(default)s; 500 with --quick)")
    options = parser.parse_args()
    count = min(options.count, 500) if options.quick else options.count
    figures = {f"exact_{name}": share(damage, count, options.seed, name) for name, damage in DAMAGES.items()}
    harness.report(options, figures, count=count)


def share(damage: Damage, count: int, seed: int, name: str) -> float:
    """The share of ``count`` scenes that are read back exactly after ``damage``."""
    right = 0
    for number in tqdm(range(count), desc=name, unit="scene"):
        scene = scenes.sample_scene(seed * 1_000_003 + number, scenes.SPLITS[number % len(scenes.SPLITS)])
        picture = damage(scenes.render(scene), np.random.default_rng([seed, number]))
        right += scenes.read(picture).facts() == scene.facts()
    return right / count


def blur(radius: float) -> Damage:
    """Gaussian blur of ``radius`` pixels."""
    return lambda picture, rng: np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noise(deviation: float) -> Damage:
    """Gaussian noise of a standard deviation in levels."""
    return lambda picture, rng: np.clip(picture + rng.normal(0, deviation, picture.shape), 0, 255).astype(np.uint8)


def jpeg(quality: int) -> Damage:
    """Compression and back."""
    def compress(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))
    return compress


def tint(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shift of every channel by up to 15 levels."""
    return np.clip(picture + rng.uniform(-15, 15, 3), 0, 255).astype(np.uint8)


DAMAGES = {"clean": lambda picture, rng: picture, "blur_0.7": blur(0.7), "blur_1.0": blur(1.0), "noise_20": noise(20),
           "jpeg_50": jpeg(50), "tint_15": tint}


if __name__ == "__main__":
    main()
