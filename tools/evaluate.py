"""Measure a released model: truthful scenes, recognisable emoji, the image tokenizer.

  python tools/evaluate.py scenes --model ernie_vilg_tiny --count 500 --seed 0 --json scenes.json
  python tools/evaluate.py emoji --model ernie_vilg_tiny --data data/emoji
  python tools/evaluate.py tokenizer --model ernie_vilg_tiny --data data/emoji

scenes     captions and scenes of other seeds than training's, judged by the scene reader: t2i_single, t2i_best_of_8,
           i2t, vqa, each again with _unseen for combinations that never appear in training's scenes. With
           --trained-on also i2t_new and vqa_new, of the scenes that training did not happen to show as well
           (scenes_new is their share: there are few different scenes of one object)
emoji      t2i_nearest, t2i_nearest_pixels: is the picture drawn for a name nearest to that emoji's among all;
           i2t_exact: is the name written for a picture exactly the emoji's
tokenizer  psnr, ssim on held-out scenes and on emoji, and the share of codes in use
"""
import argparse

from vilg import cli
from vilg.generation.sampling import SamplingConfig
from vilg.runtime import CPU_MATHS


def parse() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="ernie_vilg_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="of the scenes and of the sampling (%(default)s)")
    common.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
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
    arguments = parser.parse_args()
    if arguments.seed < 0 or getattr(arguments, "best_of", 1) < 1 or (
            arguments.count is not None and arguments.count < 1):
        parser.error("--count and --best-of are at least 1 and --seed not negative")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    from vilg.app import pipeline
    from vilg.evaluation.emoji import emoji_figures
    from vilg.evaluation.report import write_json
    from vilg.evaluation.scenes import scenes_figures
    from vilg.evaluation.tokenizer import tokenizer_figures

    model = pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    said = vars(arguments)
    if arguments.task != "tokenizer":
        model.use_sampling(**cli.settings_given(arguments, SamplingConfig))
    found = {"scenes": lambda: scenes_figures(model, said["count"], said["seed"], said["best_of"], said["trained_on"]),
             "emoji": lambda: emoji_figures(model, said["data"], said["seed"], said["count"]),
             "tokenizer": lambda: tokenizer_figures(model, said["data"], said["seed"], said["count"])}
    figures = {}
    for name, value in found[arguments.task]():
        figures[name] = value
        print(f"{name:24s} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, figures, task=arguments.task, model=model.name, seed=arguments.seed,
                   count=arguments.count or "default", best_of=said.get("best_of", "none"),
                   trained_on=said.get("trained_on") or "not said", cpu_math=arguments.cpu_math or "default")
    return 0


if __name__ == "__main__":
    cli.run(main)
