"""The public benchmarks' training splits as they are unpacked, for fine-tuning: what is scored later, from the same
files."""
from pathlib import Path
from typing import Literal

from vilg.config import configclass
from vilg.data.benchmarks.aic_icc import read_aic_icc
from vilg.data.benchmarks.coco_cn import read_coco_cn
from vilg.data.benchmarks.fmiqa import read_fmiqa
from vilg.data.broken import refuse_wholly_wrong
from vilg.data.images import read_image
from vilg.data.sample import BrokenSample, Reading, Sample

CAPTIONED = {"aic-icc": read_aic_icc, "coco-cn": lambda root, split: read_coco_cn(root, split, cut=False)}


@configclass
class BenchmarkConfig:
    """A split of AIC-ICC or COCO-CN (images with captions), or of FM-IQA (images with questions and no caption, which
    suits ``directions: image_to_text`` alone), under ``path``."""

    kind: Literal["benchmark"] = "benchmark"
    format: Literal["aic-icc", "coco-cn", "fmiqa"]
    path: str
    split: str = "train"
    repeat: int = 1


class BenchmarkSource:
    """Images of a benchmark's split; see :class:`BenchmarkConfig`. Raises DataError when its files are not there or are
    something else, and when none of the first images can be used."""

    def __init__(self, config: BenchmarkConfig, reading: Reading = Reading()):
        self.reading = reading
        root = Path(config.path).expanduser()
        self._said: list[tuple[Path, list[str], list[tuple[str, str]]]] = []
        if config.format == "fmiqa":
            asked: dict[Path, list[tuple[str, str]]] = {}
            for one in read_fmiqa(root, config.split):
                asked.setdefault(one.image, []).append((one.question, one.answer))
            self._said = [(path, [], questions) for path, questions in asked.items()]
        else:
            found = CAPTIONED[config.format](root, config.split)
            self._said = [(path, found.references[key], []) for key, path in found.paths.items()]
        refuse_wholly_wrong(str(root), range(len(self)), self._check,
                            lambda: f"{config.format}'s images are looked for as {self._said[0][0]}")

    def __len__(self) -> int:
        return len(self._said)

    def __getitem__(self, index: int) -> Sample:
        path, captions, questions = self._said[index]
        return Sample(path.name, read_image(path, str(path), self.reading), captions, questions)

    def _check(self, index: int) -> None:
        path = self._said[index][0]
        if not path.is_file():
            raise BrokenSample(str(path), "the image is missing")
