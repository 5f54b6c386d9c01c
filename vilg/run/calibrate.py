"""What a dual encoder's cosines mean, fitted on data that it was not trained on and stored with it."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vilg import release
from vilg.app.dual_encoder import Matcher
from vilg.data.config import build_source
from vilg.data.sample import BrokenSample, Reading, Sample, Source
from vilg.data.sources.folder import FolderConfig
from vilg.data.sources.table import TableConfig
from vilg.data.worlds.scenes import parse_caption
from vilg.data.worlds.scenes.source import ScenesConfig
from vilg.errors import DataError
from vilg.models.dual_encoder.calibration import Calibration, fit_calibration
from vilg.progress import progress
from vilg.release.folder import WEIGHTS
from vilg.tasks.contrastive import same_of
from vilg.weights.files import read_stored

SHUFFLES = 4
"""Captions of other samples that every image is set beside."""


@dataclass
class Pairs:
    """Cosines of pairs that belong together [N] and of shuffled ones [M]."""

    true: np.ndarray
    shuffled: np.ndarray


def held_out(paths: list[str], scenes: int, first: int = 500_000) -> list[Source]:
    """Sources of held-out data: tables (.tsv, .jsonl), folders of images with captions, and ``scenes`` scenes of split
    test, from the seed ``first`` on."""
    configs = [TableConfig(path=path) if Path(path).suffix in (".tsv", ".jsonl") else FolderConfig(path=path)
               for path in paths]
    if scenes:
        configs.append(ScenesConfig(split="test", first=first, count=scenes, questions=0))
    if not configs:
        raise DataError("there is nothing to calibrate on; name tables or folders of held-out data, or give scenes")
    return [build_source(config, None, Reading()) for config in configs]


def pairs(model: Matcher, source: Source, count: int, seed: int = 0) -> Pairs:
    """Cosines of ``count`` samples of ``source`` (all of them where it holds fewer) with a caption of their own, and
    with captions of others that show something else and, as far as the data tell, are not true of them too."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in progress(rng.permutation(len(source))[:count].tolist(), desc="reading", unit="sample"):
        try:
            samples.append(source[index])
        except BrokenSample:
            continue
    if not samples:
        raise DataError("not one sample to calibrate on could be read")
    captions = [sample.captions[rng.integers(len(sample.captions))] for sample in samples]
    cosines = model.embed_image([sample.image for sample in samples]) @ model.embed_text(captions, strict=False).T
    shuffled = [cosines[row, other] for row, sample in enumerate(samples)
                for other in rng.integers(len(samples), size=SHUFFLES)
                if not _belongs(captions[other], samples[other], sample)]
    return Pairs(np.diagonal(cosines), np.array(shuffled))


def calibrate(folder: str | Path, sources: list[Source], count: int = 1000, seed: int = 0) -> tuple[Calibration, Pairs]:
    """Fit a calibration on ``count`` samples of every source and store it in the released ``folder``, whose fingerprint
    is another afterwards. Raises DataError for too few pairs and for a model that tells nothing apart."""
    released = release.read(folder, "dual_encoder")
    model = Matcher(released)
    found = [pairs(model, source, count, seed) for source in sources]
    both = Pairs(np.concatenate([one.true for one in found]), np.concatenate([one.shuffled for one in found]))
    calibration = fit_calibration(both.true, both.shuffled)
    halved = any(array.dtype == np.float16 for array in read_stored(Path(folder) / WEIGHTS).values())
    release.write(folder, "dual_encoder", replace(released, calibration=calibration),
                  dtype="float16" if halved else None)
    return calibration, both


def _belongs(caption: str, owner: Sample, sample: Sample) -> bool:
    """Whether the caption of ``owner`` is true of ``sample`` too, as far as that can be told."""
    if same_of(owner) == same_of(sample) or caption in sample.captions:
        return True
    claims = parse_caption(caption) if "scene" in sample.facts else None
    return claims is not None and claims.hold(sample.facts["scene"])
