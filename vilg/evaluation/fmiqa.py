"""Free answers to FM-IQA's questions, for people to judge: human or machine, and 0 to 2 (ERNIE-ViLG, arXiv 2112.15283,
section 4; the test is of Gao et al. 2015, arXiv 1505.05612)."""
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vilg.app.pipeline import DECODE_ROWS, Pipeline
from vilg.data.benchmarks.files import field, read_json, read_jsonl
from vilg.data.benchmarks.fmiqa import Question
from vilg.errors import DataError
from vilg.evaluation.human.kinds import Item
from vilg.evaluation.report import Score
from vilg.progress import progress

HUMAN = "human"
"""The system whose answers are the data set's."""


def sample_questions(questions: list[Question], count: int | None, seed: int) -> list[Question]:
    """``count`` of the questions by ``seed``, in their order; all where that is None. Raises DataError for too many."""
    if count is None:
        return questions
    if count > len(questions):
        raise DataError(f"{count} questions are wanted and the split has {len(questions)}; ask for fewer")
    chosen = np.random.default_rng(seed).choice(len(questions), count, replace=False)
    return [questions[number] for number in sorted(chosen)]


def answer_questions(pipeline: Pipeline, questions: list[Question]) -> dict[str, str]:
    """The model's answer by the question's id. Raises DataError for an image that cannot be read."""
    answers: dict[str, str] = {}
    with progress(total=len(questions), desc="answers", unit="question") as bar:
        for start in range(0, len(questions), DECODE_ROWS):
            part = questions[start:start + DECODE_ROWS]
            texts = pipeline.answer([one.image for one in part], [one.question for one in part])
            answers |= {one.question_id: text for one, text in zip(part, texts)}
            bar.update(len(part))
    return answers


def read_answers(path: str | Path, questions: list[Question]) -> dict[str, str]:
    """Anybody's answers, {"question_id", "answer"} in a JSON list or one a line. Raises DataError naming a question
    that is missing, double or unknown."""
    if str(path).endswith(".jsonl"):
        records = list(read_jsonl(path))
    else:
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
            raise DataError(f'{path}: answers are a list of {{"question_id": …, "answer": "…"}}')
        records = [(f"{path}: record {number}", one) for number, one in enumerate(content, 1)]
    known, answers = {one.question_id for one in questions}, {}
    for place, record in records:
        name = str(field(record, "question_id", (str, int), place))
        if name not in known:
            raise DataError(f"{place}: question {name} is not among the {len(known)} that are judged; give the same "
                            "--split, --count and --seed")
        if name in answers:
            raise DataError(f"{place}: question {name} is answered twice; keep one answer")
        answers[name] = field(record, "answer", str, place).strip()
    missing = [one.question_id for one in questions if one.question_id not in answers]
    if missing:
        raise DataError(f"{path}: has no answer to question {missing[0]} and {len(missing) - 1} more of {len(known)}")
    return answers


def write_answers(path: Path, answers: Mapping[str, str]) -> None:
    """Answers as :func:`read_answers` reads them."""
    lines = [json.dumps({"question_id": name, "answer": text}, ensure_ascii=False) for name, text in answers.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def exact_score(questions: list[Question], answers: Mapping[str, str], answered_by: str) -> Score:
    """``exact``: the share of answers that are the person's word for word, which says little of free answers (judges
    do) and much of answers of one word."""
    right = sum(answers[one.question_id].strip(" 。") == one.answer.strip(" 。") for one in questions)
    asked = hashlib.sha256("\n".join(one.question_id for one in questions).encode()).hexdigest()[:12]
    return Score("exact", right / len(questions), f"exact answers without 。; {len(questions)} questions {asked}; "
                 f"answered by {answered_by}", "exact")


def turing_items(questions: list[Question], answers: Mapping[str, str], system: str) -> list[Item]:
    """What judges see: every question with the person's answer and with ``system``'s, for a kit of kind ``answers``.

    An answer of nothing at all is shown as （空）. Raises DataError for a system that calls itself human.
    """
    if system == HUMAN:
        raise DataError(f"the model may not be called {HUMAN!r}, which names the people's answers; give --name")
    return [Item(one.question_id, name, one.image, text.strip() or "（空）", one.question) for one in questions
            for name, text in ((HUMAN, one.answer), (system, answers[one.question_id]))]
