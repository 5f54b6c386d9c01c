"""Measure a released model: truthful scenes, recognisable emoji, the image tokenizer, retrieval.

  python tools/evaluate.py scenes --model ernie_vilg_tiny --count 500 --seed 0 --json scenes.json
  python tools/evaluate.py emoji --model ernie_vilg_tiny --data data/emoji
  python tools/evaluate.py tokenizer --model ernie_vilg_tiny --data data/emoji
  python tools/evaluate.py retrieval --model ernie_vil_tiny --data data/styles --json retrieval.json
  python tools/evaluate.py retrieval --format coco-cn --data coco_cn --predictions predictions.jsonl
  python tools/evaluate.py zero-shot --model ernie_vil_tiny --data cifar-10

scenes     captions and scenes of other seeds than training's, judged by the scene reader: t2i_single, t2i_best_of_8,
           i2t, vqa, each again with _unseen for combinations that never appear in training's scenes. With
           --trained-on also i2t_new and vqa_new, of the scenes that training did not happen to show as well
           (scenes_new is their share: there are few different scenes of one object)
emoji      t2i_nearest, t2i_nearest_pixels: is the picture drawn for a name nearest to that emoji's among all;
           i2t_exact: is the name written for a picture exactly the emoji's
tokenizer  psnr, ssim on held-out scenes and on emoji, and the share of codes in use
retrieval  of a dual encoder: recall at 1 from text to image (t2i) and back (i2t), each with its chance. On held-out
           scenes and, with --data, on the styles world: scenes_t2i_r1, cells_t2i_r1, style_t2i_r1, concepts_t2i_r1 …;
           calibration_error, and no_match_refused: queries that are refused, rightly, as nothing matches them, where
           5 % are wrongly. With --format on the files of a public benchmark: t2i_r1, t2i_r5, t2i_r10, t2i_mean_recall …
zero-shot  accuracy of classes told by their names, on a folder in ELEVATER's layout: label_cn.txt, test/000, test/001 …
"""
import argparse
from collections.abc import Iterator

from vilg import cli
from vilg.data.benchmarks.retrieval import BENCHMARKS
from vilg.generation.sampling import SamplingConfig


def parse() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="ernie_vilg_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="of the scenes and of the sampling (%(default)s)")
    common.add_argument("--cpu-math", choices=["fp32", "bf16"], help="precision of products on a CPU")
    common.add_argument("--device", help="cpu, gpu:0 …")
    common.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    drawing = argparse.ArgumentParser(add_help=False)
    cli.add_settings(drawing, SamplingConfig)
    emoji_data = argparse.ArgumentParser(add_help=False)
    emoji_data.add_argument("--data", default="data/emoji",
                            help="folder written by tools/prepare_emoji.py (%(default)s)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    scenes = tasks.add_parser("scenes", parents=[common, drawing], help="truthful drawings, captions and answers")
    scenes.add_argument("--count", type=int, default=500, help="scenes a split (%(default)s)")
    scenes.add_argument("--best-of", type=int, default=8,
                        help="pictures a caption for the re-ranked figure (%(default)s)")
    scenes.add_argument("--trained-on", metavar="CONFIG", help="run config whose scenes the model learned from, such "
                        "as configs/vilg/tiny/pictures.yaml; they take a minute to make")
    emoji = tasks.add_parser("emoji", parents=[common, drawing, emoji_data], help="recognisable emoji, exact names")
    emoji.add_argument("--count", type=int, help="emoji at most (all)")
    tokenizer = tasks.add_parser("tokenizer", parents=[common, emoji_data], help="what the image tokenizer keeps")
    tokenizer.add_argument("--count", type=int, default=500, help="scenes (%(default)s)")
    retrieval = tasks.add_parser("retrieval", parents=[common], help="texts find images, images find texts")
    retrieval.add_argument("--format", choices=["worlds", *BENCHMARKS], default="worlds",
                           help="the project's own worlds, or a public benchmark's files (%(default)s)")
    retrieval.add_argument("--data", help="folder of tools/prepare_styles.py, or of the benchmark's files")
    retrieval.add_argument("--count", type=int, default=1000, help="scenes (%(default)s)")
    retrieval.add_argument("--predictions", metavar="FILE", help="with --format: also write the ten best of every text")
    retrieval.add_argument("--score", metavar="FILE", help="with --format: score this file of predictions, no model")
    zero_shot = tasks.add_parser("zero-shot", parents=[common], help="classes told by their names")
    zero_shot.add_argument("--data", required=True, help="folder with label_cn.txt and test/000 …")
    zero_shot.add_argument("--templates", metavar="FILE", help="prompts, one a line, {} for the name (the model's own)")
    for part in (retrieval, zero_shot):
        part.set_defaults(model="ernie_vil_tiny")
    zero_shot.set_defaults(count=None)
    arguments = parser.parse_args()
    if arguments.task == "retrieval":
        public = arguments.format != "worlds"
        if public and not arguments.data or not public and (arguments.predictions or arguments.score):
            parser.error("--format of a public benchmark wants --data, and --predictions and --score want it")
    if arguments.seed < 0 or getattr(arguments, "best_of", 1) < 1 or (
            arguments.count is not None and arguments.count < 1):
        parser.error("--count and --best-of are at least 1 and --seed not negative")
    return arguments


def main() -> int:
    arguments = parse()
    said = vars(arguments)
    for option in ("json", "predictions"):
        if said.get(option):
            cli.check_file(said[option], f"--{option}")
    from vilg.evaluation.report import write_json

    name, measured = (scored if said.get("score") else dual_encoder if arguments.task in ("retrieval", "zero-shot")
                      else drawer)(arguments, said)
    figures = {}
    for key, value in measured:
        figures[key] = value
        print(f"{key:28s} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, figures, task=arguments.task, model=name, seed=arguments.seed,
                   count=arguments.count or "default", best_of=said.get("best_of", "none"),
                   trained_on=said.get("trained_on") or "not said", data=said.get("data") or "none",
                   format=said.get("format", "none"), cpu_math=arguments.cpu_math or "default")
    return 0


def drawer(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of a model that draws."""
    from vilg.app import pipeline
    from vilg.evaluation.emoji import emoji_figures
    from vilg.evaluation.scenes import scenes_figures
    from vilg.evaluation.tokenizer import tokenizer_figures

    model = pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    if arguments.task != "tokenizer":
        model.use_sampling(**cli.settings_given(arguments, SamplingConfig))
    found = {"scenes": lambda: scenes_figures(model, said["count"], said["seed"], said["best_of"], said["trained_on"]),
             "emoji": lambda: emoji_figures(model, said["data"], said["seed"], said["count"]),
             "tokenizer": lambda: tokenizer_figures(model, said["data"], said["seed"], said["count"])}
    return model.name, found[arguments.task]()


def dual_encoder(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of a model that compares texts and images."""
    from vilg.app import pipeline
    from vilg.evaluation.matching import matching_figures
    from vilg.evaluation.retrieval import public_figures
    from vilg.evaluation.zero_shot import zero_shot_figures

    model = pipeline.load_encoder(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    if arguments.task == "zero-shot":
        return model.name, zero_shot_figures(model, arguments.data, arguments.templates)
    if arguments.format != "worlds":
        return model.name, public_figures(model, arguments.data, BENCHMARKS[arguments.format], arguments.predictions)
    return model.name, matching_figures(model, arguments.data, arguments.count, arguments.seed)


def scored(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of predictions that stand in a file."""
    from vilg.evaluation.retrieval import prediction_figures

    return said["score"], prediction_figures(said["score"], arguments.data, BENCHMARKS[arguments.format])


if __name__ == "__main__":
    cli.run(main)
