"""Scenes in the files of the public benchmarks, so that the path from files to a table runs without their images."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vilg.data.worlds import scenes
from vilg.errors import ConfigError

SIDE = 64
"""Pixels of an image's side."""


def write_benchmark(name: str, root: str | Path, train: int = 800, held_out: int = 200) -> None:
    """Write ``train`` scenes into the training split of benchmark ``name``, of :data:`WRITERS`, under ``root``, and
    ``held_out`` other ones into the split that papers score; as in the originals no two images of any split have one
    number. Raises ConfigError when ``root`` is not empty."""
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root}: holds something already; delete it or name another folder with --output")
    WRITERS[name](root, train, held_out)


def _aic_icc(root: Path, train: int, held_out: int) -> None:
    for split, date, numbers in (("train", "20170902", range(train)),
                                 ("validation", "20170910", range(train, train + held_out))):
        folder, records = root / f"ai_challenger_caption_{split}_{date}", []
        for number in numbers:
            name, scene, rng = f"{number:040x}.jpg", *_scene(split == "train", number)
            _save(folder / f"caption_{split}_images_{date}" / name, scene)
            records.append({"url": "", "image_id": name, "caption": scenes.captions(scene, rng, 5)})
        _write_json(folder / f"caption_{split}_annotations_{date}.json", records)


def _coco_cn(root: Path, train: int, held_out: int) -> None:
    folder, lines = root / "coco-cn-version1805v1.1", []
    for split, numbers in (("train", range(train)), ("test", range(train, train + held_out))):
        part = "train2014" if split == "train" else "val2014"
        names = [f"COCO_{part}_{number:012d}" for number in numbers]
        for number, name in enumerate(names):
            scene, rng = _scene(split == "train", number)
            _save(root / part / f"{name}.jpg", scene)
            lines += [f"{name}#{index}\t{text}\n" for index, text in enumerate(scenes.captions(scene, rng, 5))]
        _write_text(folder / f"coco-cn_{split}.txt", "".join(f"{name}\n" for name in names))
    _write_text(folder / "imageid.human-written-caption.txt", "".join(lines))


def _fmiqa(root: Path, train: int, held_out: int) -> None:
    splits: dict[str, list[dict]] = {"train": [], "val": []}
    for split, numbers in (("train", range(train)), ("val", range(train, train + held_out))):
        for number in numbers:
            scene, rng = _scene(split == "train", number)
            _save(root / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg", scene)
            for index, (question, answer) in enumerate(scenes.questions(scene, rng, 2)):
                splits[split].append({"question_id": 2 * number + index, "image_id": number, "Question": question,
                                      "Answer": answer})
    _write_json(root / "FM-IQA.json", splits)


WRITERS: dict[str, Callable[[Path, int, int], None]] = {"aic-icc": _aic_icc, "coco-cn": _coco_cn, "fmiqa": _fmiqa}


def _scene(training: bool, number: int) -> tuple[scenes.Scene, np.random.Generator]:
    return (scenes.sample_scene(number, "train" if training else "test"),
            np.random.default_rng([int(training), number]))


def _save(path: Path, scene: scenes.Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenes.render(scene, SIDE)).save(path, quality=95)


def _write_json(path: Path, content: list | dict) -> None:
    _write_text(path, json.dumps(content, ensure_ascii=False))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
