"""ERNIE-ViLG's tables 1 to 7 (arXiv 2112.15283, section 4) in Markdown: published numbers where they are known, ours
beside them, and a signature for every value of ours.

Figures are read from the JSON files that the other protocols write. A blank is a number that nobody here knows.
"""
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilg.data.benchmarks.files import read_json
from vilg.errors import DataError

log = logging.getLogger("vilg.evaluation")
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of a table: whose it is, its cells ("" for a blank), and the signature of ours."""

    name: str
    cells: list[str]
    signature: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper: its columns, what is published, and which rows a file of figures gives it."""

    title: str
    columns: list[str]
    published: list[Row]
    rows_of: Callable[[Figures, str], Iterator[Row]]


def _number(figures: Figures, key: str, digits: int, scale: float = 1) -> str:
    value = figures.get(key)
    return "" if value is None else f"{scale * value:.{digits}f}"


def _pictures(figures: Figures, name: str) -> Iterator[Row]:
    if figures.get("task") == "coco":
        cells = [_number(figures, "fid", 2), _number(figures, "inception_score", 2), _number(figures, "kid", 5),
                 _number(figures, "precision", 3), _number(figures, "recall", 3)]
        signatures = [_signature(figures, f"signature.{score}", name)
                      for score in ("fid", "inception_score", "kid", "precision", "recall") if score in figures]
        yield Row(f"{figures.get('drawn_by', name)}, {figures.get('protocol', '')}", cells, " · ".join(signatures))


def _captions(form: str) -> Callable[[Figures, str], Iterator[Row]]:
    def rows(figures: Figures, name: str) -> Iterator[Row]:
        if figures.get("task") != "captions" or figures.get("format") != form:
            return
        for cut in str(figures.get("cuts", "")).split():
            cells = [_number(figures, f"{cut}.{score}", 1, 100) for score in ("bleu_4", "meteor", "rouge_l", "cider_d")]
            yield Row(f"{figures.get('described_by', name)}, by {cut}", cells,
                      _signature(figures, f"signature.{cut}", name))
    return rows


def _people(kind: str, criteria: tuple[tuple[str, float, int], ...]) -> Callable[[Figures, str], Iterator[Row]]:
    def rows(figures: Figures, name: str) -> Iterator[Row]:
        if figures.get("task") != "human" or figures.get("kind") != kind:
            return
        end = f".{criteria[0][0]}.mean"
        for system in (key.removesuffix(end) for key in figures if key.endswith(end)):
            cells = []
            for criterion, scale, digits in criteria:
                mean, low, high = (_number(figures, f"{system}.{criterion}.{part}", digits, scale)
                                   for part in ("mean", "low", "high"))
                alpha = _number(figures, f"alpha.{criterion}", 2)
                cells.append(f"{mean} [{low}, {high}]" + (f", α {alpha}" if alpha else ""))
            yield Row(system, cells, _signature(figures, "signature", name))
    return rows


def _ablation(figures: Figures, name: str) -> Iterator[Row]:
    words = {"two_stage": "two-stage", "end_to_end": "end-to-end", "real": "real picture"}
    for first, second in (("two_stage", "two_stage"), ("two_stage", "end_to_end"), ("end_to_end", "two_stage"),
                          ("end_to_end", "end_to_end"), ("real", "two_stage"), ("real", "end_to_end")):
        key = f"{first}.{second}.frechet"
        if f"{key}.mean" in figures:
            signature = (f"Fréchet distance in scene features, which is no Inception FID; {figures.get('command')}; "
                         f"seeds {figures.get('seeds')}; {figures.get('count')} scenes")
            yield Row(f"{words[first]} tokens, {words[second]} reconstructor",
                      [f"{_number(figures, f'{key}.mean', 1)} ± {_number(figures, f'{key}.std', 1)}", ""], signature)


def _signature(figures: Figures, key: str, name: str) -> str:
    if not figures.get(key):
        raise DataError(f"{name}: has figures without {key}, which says what they are of; compute them again with "
                        "tools/evaluate.py")
    return str(figures[key])


_CAPTION_COLUMNS = ["BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
TABLES = {
    1: Table("Pictures from MS-COCO's captions", ["FID ↓", "IS ↑", "KID ↓", "precision ↑", "recall ↑"],
             [Row(name, [value, "", "", "", ""]) for name, value in
              (("DALL-E, zero-shot", "27.5"), ("CogView, zero-shot", "27.1"), ("LAFITE, zero-shot", "26.9"),
               ("ERNIE-ViLG, zero-shot", "14.7"), ("ERNIE-ViLG, fine-tuned", "7.9"))], _pictures),
    2: Table("People on pictures, 1 to 5", ["clarity", "texture", "relevance"],
             [Row("ERNIE-ViLG", ["", "", ""])],
             _people("images", (("clarity", 1, 2), ("texture", 1, 2), ("relevance", 1, 2)))),
    3: Table("Captions, AIC-ICC", _CAPTION_COLUMNS, [Row("ERNIE-ViLG", ["", "", "", ""])], _captions("aic-icc")),
    4: Table("Captions, COCO-CN", _CAPTION_COLUMNS,
             [Row("published on COCO-CN, first", ["31.7", "27.2", "52.0", "84.6"]),
              Row("published on COCO-CN, second", ["36.7", "29.5", "55.0", "98.4"]),
              Row("ERNIE-ViLG", ["", "", "", ""])], _captions("coco-cn")),
    5: Table("People on captions, 0 to 2", ["fluency", "relevance", "richness"], [Row("ERNIE-ViLG", ["", "", ""])],
             _people("captions", (("fluency", 1, 2), ("relevance", 1, 2), ("richness", 1, 2)))),
    6: Table("Questions, FM-IQA", ["taken for human, % ↑", "score, 0 to 2 ↑"],
             [Row("mQA", ["64.7", "1.454"]), Row("ERNIE-ViLG", ["78.5", "1.495"]), Row("people", ["", "1.918"])],
             _people("answers", (("human", 100, 1), ("score", 1, 3)))),
    7: Table("End to end against two stages", ["Fréchet distance ↓", "FID beside both two-stage ↓"],
             [Row("two-stage tokens, two-stage reconstructor", ["", "0"]),
              Row("end-to-end tokens, two-stage reconstructor", ["", "−0.9"]),
              Row("end-to-end tokens, end-to-end reconstructor", ["", "−1.5"])], _ablation),
}


def read_results(folder: str | Path) -> dict[str, Figures]:
    """The figures of every JSON file of a folder, by its name. Raises DataError for no folder, no file, and a file that
    is not a JSON object."""
    folder = Path(folder)
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(f"{folder}: holds no .json file of figures; write some there with --json")
    found = {path.name: read_json(path) for path in paths}
    for name, figures in found.items():
        if not isinstance(figures, dict):
            raise DataError(f"{folder / name}: is not a file of figures; tools/evaluate.py writes one with --json")
    return found


def markdown(results: Mapping[str, Figures]) -> str:
    """All seven tables. Raises DataError for figures of a table that lack their signature; figures of no table are
    named in a warning."""
    lines, used = ["# The paper's tables", "",
                   "Published numbers are the paper's; a blank is one that is not known. A number in brackets names "
                   "the signature below the table; values stand beside each other only where signatures agree."], set()
    for number, table in TABLES.items():
        lines += ["", f"## Table {number}. {table.title}", "", f"| | {' | '.join(table.columns)} |",
                  "|---" * (len(table.columns) + 1) + "|"]
        lines += [_line(row, "published") for row in table.published]
        notes = []
        for name, figures in results.items():
            for row in table.rows_of(figures, name):
                used.add(name)
                notes.append(row.signature)
                lines.append(_line(row, f"[{len(notes)}]"))
        lines += [""] * bool(notes) + [f"[{place}] `{note}`  " for place, note in enumerate(notes, 1)]
    others = sorted(results.keys() - used)
    if others:
        log.warning("figures of none of the tables: %s", ", ".join(others))
    return "\n".join(lines) + "\n"


def _line(row: Row, mark: str) -> str:
    cells = " | ".join(cell.replace("|", "\\|") for cell in row.cells)
    return f"| {row.name.replace('|', chr(92) + '|')} {mark} | {cells} |"
