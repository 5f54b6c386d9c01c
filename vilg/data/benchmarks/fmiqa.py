"""FM-IQA (Gao et al. 2015, arXiv 1505.05612): free questions and answers in Chinese about images of MS-COCO."""
from dataclasses import dataclass
from pathlib import Path

from vilg.data.benchmarks.coco import image_key, image_path
from vilg.data.benchmarks.files import field, keyed, only_match, read_json
from vilg.errors import DataError

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Question:
    """A question about an image, and the answer that a person gave."""

    question_id: str
    image: Path
    question: str
    answer: str


def read_fmiqa(root: str | Path, split: str = "val") -> list[Question]:
    """The questions of a split of ``FM-IQA.json`` under ``root``, {"train": [...], "val": [...]} with question_id,
    image_id, Question and Answer; train is about ``train2014``, val about ``val2014``, beside the file.

    Raises DataError for another split, a file that is not there or is something else, and a question id twice.
    """
    if split not in SPLITS:
        raise DataError(f"FM-IQA has the splits {' and '.join(SPLITS)}, not {split}")
    path = only_match(Path(root), "FM-IQA.json", "FM-IQA")
    content = read_json(path)
    records = content.get(split) if isinstance(content, dict) else None
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) for one in records):
        raise DataError(f'{path}: FM-IQA is {{"train": [...], "val": [...]}}, and here {split} is no list of questions')
    images = Path(root) if (Path(root) / f"{split}2014").is_dir() else path.parent
    found: dict[str, Question] = {}
    for number, record in enumerate(records, 1):
        place = f"{path}: {split} {number}"
        name = str(field(record, "question_id", (str, int), place))
        if name in found:
            raise DataError(f"{place}: question {name} came before; ids are told apart by answers")
        image = image_path(images, f"{split}2014", keyed(image_key, field(record, "image_id", (str, int), place),
                                                                   place))
        found[name] = Question(name, image, field(record, "Question", str, place).strip(),
                               field(record, "Answer", str, place).strip())
    return list(found.values())
