"""Fit what a dual encoder's cosines mean, so that `similarity` is a chance in 0–1, and store it with the model.

  python tools/calibrate.py data/styles/cells.jsonl --scenes 1000 --model runs/ernie_vil_tiny/model
  python tools/calibrate.py my_pictures/ --model weights/ernie_vil_base --count 5000

Every image is set beside a caption of its own and captions of others; σ(slope · cosine + offset) is fitted so that half
of the weight is on true pairs. Give data that the model was not trained on, as like as can be to what it will be asked.
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="tables (.tsv, .jsonl) and folders of images with captions")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="released dual encoder; it is written anew")
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="held-out scenes to take (%(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="samples of every source at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and the shuffling (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    arguments = parser.parse_args()
    if arguments.scenes < 0 or arguments.count < 1 or arguments.seed < 0:
        parser.error("--count is at least 1, --scenes and --seed not negative")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    from vilg.evaluation.report import write_json
    from vilg.run.calibrate import calibrate, held_out

    calibration, pairs = calibrate(arguments.model, held_out(arguments.data, arguments.scenes), arguments.count,
                                   arguments.seed)
    figures = {"slope": calibration.slope, "offset": calibration.offset}
    for name, cosines in (("true", pairs.true), ("shuffled", pairs.shuffled)):
        figures |= {f"{name}_pairs": len(cosines), f"{name}_cosine": float(cosines.mean()),
                    f"{name}_matched": float((calibration.probability(cosines) >= 0.5).mean())}
    for name, value in figures.items():
        print(f"{name:20s} {value:.4f}")
    if arguments.json:
        write_json(arguments.json, figures, model=arguments.model, seed=arguments.seed, count=arguments.count)
    return 0


if __name__ == "__main__":
    cli.run(main)
