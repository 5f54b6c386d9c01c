"""fmiqa, human: pages on which people judge, and the report of what they exported."""
import argparse
from pathlib import Path

from evaluations.common import load, show_signed
from vilg import cli


def add(tasks, common: argparse.ArgumentParser) -> None:
    """Offer both commands."""
    _add_fmiqa(tasks, common)
    _add_human(tasks)


def _add_fmiqa(tasks, common: argparse.ArgumentParser) -> None:
    fmiqa = tasks.add_parser("fmiqa", parents=[common], help="answers to FM-IQA's questions, and a kit for judges")
    fmiqa.add_argument("--data", required=True, metavar="FOLDER", help="FM-IQA.json, with MS-COCO's val2014 beside it")
    fmiqa.add_argument("--split", default="val", help="train or val (%(default)s)")
    fmiqa.add_argument("--count", type=int, help="questions, chosen by --seed; the paper judges 200 (all)")
    fmiqa.add_argument("--answers", metavar="FILE", help='judge these: {"question_id", "answer"} in a list or in lines')
    fmiqa.add_argument("--name", help="of whoever answered, in the key and the tables (the model's, or the file's)")
    fmiqa.add_argument("--raters", type=int, default=3, help="pages (%(default)s)")
    fmiqa.add_argument("--output", default="runs/fmiqa", metavar="FOLDER", help="(%(default)s)")
    fmiqa.set_defaults(run=run_fmiqa)


def _add_human(tasks) -> None:
    human = tasks.add_parser("human", help="a page a rater, and the report").add_subparsers(dest="step", required=True)
    make = human.add_parser("make", help="one offline HTML file a rater, and the key, which stays with you")
    make.add_argument("--kind", required=True, help="images, captions or answers")
    make.add_argument("--items", required=True, metavar="FILE",
                      help='lines of {"item", "system", "image", "text"}, and "question" for answers')
    make.add_argument("--raters", type=int, default=3, help="pages (%(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of orders, repeats and known answers (%(default)s)")
    make.add_argument("--output", required=True, metavar="FOLDER", help="rater_1.html … and key.json are written there")
    make.set_defaults(run=run_human_make, json=None)
    report = human.add_parser("report", help="means, intervals and agreement of what raters exported")
    report.add_argument("--key", required=True, metavar="FILE", help="the kit's key.json")
    report.add_argument("ratings", nargs="+", metavar="RATINGS", help="files that the pages exported, one a rater")
    report.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    report.set_defaults(run=run_human_report)


def run_fmiqa(arguments: argparse.Namespace) -> None:
    from vilg.data.benchmarks.fmiqa import read_fmiqa
    from vilg.evaluation import fmiqa
    from vilg.evaluation.human.kit import make_kit

    output = Path(arguments.output)
    cli.check_folder(output, "--output")
    questions = fmiqa.sample_questions(read_fmiqa(arguments.data, arguments.split), arguments.count, arguments.seed)
    if arguments.answers:
        name, answers = Path(arguments.answers).stem, fmiqa.read_answers(arguments.answers, questions)
    else:
        model = load(arguments)
        name, answers = model.name, fmiqa.answer_questions(model, questions)
        fmiqa.write_answers(output / "answers.jsonl", answers)
    name = arguments.name or name
    items = fmiqa.turing_items(questions, answers, name)
    make_kit(items, "answers", output / "kit", arguments.raters, arguments.seed)
    print(f"{len(questions)} questions; {arguments.raters} pages and the key are in {output / 'kit'}")
    show_signed(arguments, [fmiqa.exact_score(questions, answers, name)], task="fmiqa", model=name,
                questions=len(questions), split=arguments.split, seed=arguments.seed)


def run_human_make(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.human.kit import make_kit, read_items

    cli.check_folder(arguments.output, "--output")
    key = make_kit(read_items(arguments.items, arguments.kind), arguments.kind, arguments.output, arguments.raters,
                   arguments.seed)
    print(f"{len(key['items'])} items, {arguments.raters} pages in {arguments.output}; keep its key.json from "
          "the raters")


def run_human_report(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.human import report

    key = report.read_key(arguments.key)
    scores = report.signed_scores(key, report.read_ratings(arguments.ratings, key))
    show_signed(arguments, scores, task="human", kind=key["kind"])
