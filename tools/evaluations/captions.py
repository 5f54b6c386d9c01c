"""captions: of AIC-ICC and COCO-CN, a model's or anybody's."""
import argparse
from pathlib import Path

from evaluations.common import load, show_signed
from vilg import cli


def add(tasks, common: argparse.ArgumentParser) -> None:
    """Offer the command."""
    captions = tasks.add_parser("captions", parents=[common], help="captions of AIC-ICC or COCO-CN")
    captions.add_argument("--format", required=True, help="aic-icc or coco-cn")
    captions.add_argument("--data", required=True, metavar="FOLDER", help="the data set as it is unpacked")
    captions.add_argument("--split", help="aic-icc: train, validation; coco-cn: train, val, test (what papers score)")
    captions.add_argument("--references", default="human-written",
                          help="coco-cn: human-written or manually-translated (%(default)s)")
    captions.add_argument("--cut", help="aic, coco-cn, jieba or characters (the data set's own; for a model on coco-cn "
                          "jieba, since models write uncut text). Characters are always scored too")
    captions.add_argument("--predictions", metavar="FILE",
                          help="score these: a JSON list or lines of image_id and caption, or of id, tab, caption")
    captions.add_argument("--output", default="runs/captions", metavar="FOLDER",
                          help="the model's captions are kept there; the same command goes on (%(default)s)")
    captions.set_defaults(run=run_captions)


def run_captions(arguments: argparse.Namespace) -> None:
    from vilg.data.benchmarks.files import read_predictions
    from vilg.evaluation import captions

    cut = arguments.cut or captions.usual_cut(arguments.format, comes_cut=bool(arguments.predictions))
    images = captions.read_benchmark(arguments.format, arguments.data, arguments.split, cut, arguments.references)
    if arguments.predictions:
        by, said = arguments.predictions, read_predictions(arguments.predictions, images.key)
    else:
        cli.check_folder(arguments.output, "--output")
        model = load(arguments)
        by, said = model.name, captions.describe(model, images, Path(arguments.output))
    scores = captions.score_predictions(images, said, cut)
    show_signed(arguments, captions.flat_scores(scores, images), task="captions", format=arguments.format,
                described_by=by, images=len(images.references), cuts=" ".join(scores))
