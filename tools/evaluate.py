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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["scenes", "emoji", "tokenizer"])
    parser.add_argument("--model", default="ernie_vilg_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    parser.add_argument("--count", type=int, help="scenes a split (500), or emoji at most (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the sampling (%(default)s)")
    parser.add_argument("--best-of", type=int, default=8,
                        help="pictures a caption for the re-ranked figure (%(default)s)")
    parser.add_argument("--temperature", type=float, help="of the drawing; 0: the likeliest code (the model's own)")
    parser.add_argument("--guidance", type=float, help="of the drawing (the model's own)")
    parser.add_argument("--guidance-min-p", type=float, help="of the drawing (the model's own)")
    parser.add_argument("--data", default="data/emoji", help="folder written by tools/prepare_emoji.py (%(default)s)")
    parser.add_argument("--trained-on", metavar="CONFIG", help="run config whose scenes the model learned from, such "
                        "as configs/vilg/tiny/pictures.yaml; they take a minute to make")
    parser.add_argument("--cpu-math", choices=["fp32", "bf16"], help="precision of products on a CPU")
    parser.add_argument("--device", help="cpu, gpu:0 …")
    parser.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    arguments = parser.parse_args()
    if arguments.seed < 0 or arguments.best_of < 1 or (arguments.count is not None and arguments.count < 1):
        parser.error("--count and --best-of are at least 1 and --seed not negative")
    return arguments


def main() -> int:
    arguments = parse()
    from vilg.app import pipeline
    from vilg.evaluation import judge
    from vilg.evaluation.report import write_json

    model = pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    model.use_sampling(temperature=arguments.temperature, guidance=arguments.guidance,
                       guidance_min_p=arguments.guidance_min_p)
    evaluation = {"scenes": judge.scenes_figures, "emoji": judge.emoji_figures, "tokenizer": judge.tokenizer_figures}
    figures = {}
    for name, value in evaluation[arguments.task](model, arguments):
        figures[name] = value
        print(f"{name:24s} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, figures, task=arguments.task, model=model.name, seed=arguments.seed,
                   count=arguments.count or "default", best_of=arguments.best_of,
                   trained_on=arguments.trained_on or "not said",
                   cpu_math=arguments.cpu_math or "default")
    return 0


if __name__ == "__main__":
    cli.run(main)
