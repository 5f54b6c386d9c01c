"""Captions of AIC-ICC and COCO-CN, a model's or anybody's, scored by words and by characters (ERNIE-ViLG, arXiv
2112.15283, section 4)."""
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vilg.app.pipeline import DECODE_ROWS, Pipeline
from vilg.data.benchmarks.aic_icc import read_aic_icc
from vilg.data.benchmarks.coco_cn import read_coco_cn
from vilg.data.benchmarks.files import CaptionedImages
from vilg.errors import ConfigError, DataError
from vilg.evaluation.files import claim, write_whole
from vilg.evaluation.report import Score
from vilg.metrics.captions.cut import aic_words, find_cut
from vilg.metrics.captions.score import CaptionScores, score_captions
from vilg.progress import progress
from vilg.weights.files import fingerprint

FORMATS = {"aic-icc": "aic", "coco-cn": "coco-cn"}
"""Format → the cut that its published scores are of."""
SPLITS = {"aic-icc": "validation", "coco-cn": "test"}
"""Format → the split that papers score."""


def usual_cut(form: str, comes_cut: bool) -> str:
    """The cut that a format's published scores are of; jieba where that one wants captions that come cut and these do
    not. Raises ConfigError for another format."""
    if form not in FORMATS:
        raise ConfigError(f"there is no format called {form}; choose one of {', '.join(FORMATS)}")
    return "jieba" if find_cut(FORMATS[form]).hypothesis_comes_cut and not comes_cut else FORMATS[form]


def read_benchmark(form: str, root: str | Path, split: str | None = None, cut: str | None = None,
                   kind: str = "human-written") -> CaptionedImages:
    """The images and references of a format of :data:`FORMATS`, ready for ``cut``; ``kind`` of COCO-CN's captions.
    Raises ConfigError for another format, or a cut of the other one's."""
    cut = find_cut(cut or usual_cut(form, comes_cut=True)).name
    if cut in FORMATS.values() and cut != FORMATS[form]:
        raise ConfigError(f"the cut {cut} belongs to another data set than {form}; choose {FORMATS[form]}, jieba or "
                          "characters")
    if form == "aic-icc":
        return read_aic_icc(root, split or SPLITS[form])
    return read_coco_cn(root, split or SPLITS[form], kind, cut=cut == "coco-cn")


def describe(pipeline: Pipeline, images: CaptionedImages, output: Path) -> list[tuple[str, str]]:
    """A caption of every image by the model: pairs of key and text, which ``output/predictions.jsonl`` holds as well.

    Goes on where an earlier run was stopped. Raises ConfigError for a folder of another model or split, DataError for
    an image that cannot be read.
    """
    claim(output, {"task": "captions", "model": pipeline.name, "weights": fingerprint(pipeline.model.state_dict()),
                   "images": images.name})
    path = output / "predictions.jsonl"
    written = _whole_lines(path)
    said = {key: text for key, text in written if key in images.paths}
    due = [key for key in images.paths if key not in said]
    with progress(total=len(images.paths), initial=len(said), desc="captions", unit="image") as bar:
        for start in range(0, len(due), DECODE_ROWS):
            part = due[start:start + DECODE_ROWS]
            texts = pipeline.image_to_text([images.paths[key] for key in part])
            with open(path, "a", encoding="utf-8") as file:
                for key, text in zip(part, texts):
                    file.write(json.dumps({"image_id": key, "caption": text}, ensure_ascii=False) + "\n")
            said |= dict(zip(part, texts))
            bar.update(len(part))
    return [(key, said[key]) for key in images.paths]


def _whole_lines(path: Path) -> list[tuple[str, str]]:
    """What an earlier run wrote; a line that was cut short is taken off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[:content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_whole(path, whole)
    try:
        records = [json.loads(line) for line in whole.decode().splitlines()]
        return [(record["image_id"], record["caption"]) for record in records]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: holds lines that no run wrote; delete it to describe the images again") from None


def score_predictions(images: CaptionedImages, predictions: Iterable[tuple[str, str]], cut: str
                      ) -> dict[str, CaptionScores]:
    """Scores of one caption an image by ``cut`` and by characters, by the cut's name.

    AIC-ICC's published annotations are whole sentences; for the cut aic they are cut by jieba as its evaluation cuts
    captions. Raises DataError for missing, double and unknown images, and for text that should have come cut.
    """
    pairs, scores = list(predictions), {}
    for name in dict.fromkeys((cut, "characters")):
        references = images.references
        if name == "aic" and not images.comes_cut:
            references = {key: [" ".join(aic_words(text)) for text in texts] for key, texts in references.items()}
        scores[name] = score_captions(references, pairs, name)
    return scores


def flat_scores(scores: Mapping[str, CaptionScores], images: CaptionedImages) -> Iterator[Score]:
    """``<cut>.bleu_1`` … ``<cut>.cider_plain`` and ``<cut>.empty_hypotheses``, each with its signature."""
    for cut, found in scores.items():
        own = "; references cut by jieba here" if cut == "aic" and not images.comes_cut else ""
        signature = f"{images.name}; {found.signature}{own}"
        for name, value in found.figures().items():
            if name not in ("signature", "images"):
                yield Score(f"{cut}.{name}", value, signature, cut)
