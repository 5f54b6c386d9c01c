"""retrieval, zero-shot: a dual encoder, which compares texts and images."""
import argparse

from evaluations.common import common_options, show_figures
from vilg import cli
from vilg.data.benchmarks.retrieval import BENCHMARKS


def add(tasks) -> None:
    """Offer the two commands."""
    common = common_options("ernie_vil_tiny")
    retrieval = tasks.add_parser("retrieval", parents=[common], help="texts find images, images find texts")
    retrieval.add_argument("--format", choices=["worlds", *BENCHMARKS], default="worlds",
                           help="the project's own worlds, or a public benchmark's files (%(default)s)")
    retrieval.add_argument("--data", help="folder of tools/prepare_styles.py, or of the benchmark's files")
    retrieval.add_argument("--count", type=int, default=1000, help="scenes (%(default)s)")
    retrieval.add_argument("--predictions", metavar="FILE", help="with --format: also write the ten best of every text")
    retrieval.add_argument("--score", metavar="FILE", help="with --format: score this file of predictions, no model")
    retrieval.set_defaults(run=run_retrieval)
    zero_shot = tasks.add_parser("zero-shot", parents=[common], help="classes told by their names")
    zero_shot.add_argument("--data", required=True, help="folder with label_cn.txt and test/000 …")
    zero_shot.add_argument("--templates", metavar="FILE", help="prompts, one a line, {} for the name (the model's own)")
    zero_shot.set_defaults(run=run_zero_shot)


def refusal(arguments: argparse.Namespace) -> str | None:
    """What is wrong with how retrieval's options go together."""
    public = arguments.format != "worlds"
    if public and not arguments.data or not public and (arguments.predictions or arguments.score):
        return "--format of a public benchmark wants --data, and --predictions and --score want it"
    return None


def run_retrieval(arguments: argparse.Namespace) -> None:
    if arguments.predictions:
        cli.check_file(arguments.predictions, "--predictions")
    from vilg.evaluation.matching import matching_figures
    from vilg.evaluation.retrieval import prediction_figures, public_figures

    if arguments.score:
        name, measured = arguments.score, prediction_figures(arguments.score, arguments.data,
                                                             BENCHMARKS[arguments.format])
    else:
        model = _encoder(arguments)
        name, measured = model.name, (
            matching_figures(model, arguments.data, arguments.count, arguments.seed) if arguments.format == "worlds"
            else public_figures(model, arguments.data, BENCHMARKS[arguments.format], arguments.predictions))
    show_figures(arguments, name, measured)


def run_zero_shot(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.zero_shot import zero_shot_figures

    model = _encoder(arguments)
    show_figures(arguments, model.name, zero_shot_figures(model, arguments.data, arguments.templates))


def _encoder(arguments: argparse.Namespace):
    from vilg.app import pipeline

    return pipeline.load_encoder(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
