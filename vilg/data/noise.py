"""Noise on what a model reads while it predicts, so that it leans on its source and not on its own words alone."""
import numpy as np

CODES, WORDS, MASKS, TARGETS = 2, 3, 4, 5  # streams of a sample's seed; 0 and 1 choose captions and drop them


def code_noise(seeds: list[int], count: int, codebook_size: int, rate: float) -> np.ndarray:
    """Codes to read in place of the true ones: int64 [B, count], -1 where the true one stays.

    Every sample draws its own share of wrong codes, uniform in 0 … 2·``rate``; a wrong code is any of the codebook.
    """
    rows = []
    for seed in seeds:
        rng = np.random.default_rng([seed, CODES])
        wrong = rng.random(count) < 2 * rate * rng.random()
        rows.append(np.where(wrong, rng.integers(codebook_size, size=count), -1))
    return np.stack(rows)


def word_noise(seeds: list[int], text: np.ndarray, length: np.ndarray, prefix: np.ndarray, words: np.ndarray,
               rate: float) -> np.ndarray:
    """``text`` [B, m] with some tokens replaced by any of ``words`` (ids); shares as in :func:`code_noise`.

    The first token, a question (``prefix`` [B] tokens), the last real token and what is behind ``length`` [B] stay.
    """
    noisy = text.copy()
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, WORDS])
        wrong = rng.random(text.shape[1]) < 2 * rate * rng.random()
        wrong[:max(1, int(prefix[row]))] = False
        wrong[int(length[row]) - 1:] = False
        noisy[row, wrong] = rng.choice(words, size=int(wrong.sum()))
    return noisy
