"""Reproduce the paper's Table 7: two-stage against end-to-end, generator × reconstructor, over several seeds.

  python tools/table7.py --config configs/end_to_end/table7.yaml
  python tools/table7.py --config configs/end_to_end/table7.yaml --quick --output runs/table7_quick

For every seed the run of the config is trained, and its two-stage twin from the same initial weights, on the same data
in the same order for as many steps; then both are judged on held-out scenes. Stopped at any time, the same command goes
on where it was. Writes table7.md, table7.json and images/table7.png to --report.
"""
import argparse
import shlex
import sys
from pathlib import Path

from evaluations.arms import add_arms
from vilg import cli

QUICK = ["train.steps=6", "train.preview_every=0"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arms(parser, "table7", kind="an end_to_end", arms="one pair of arms", count=1000,
             counted="held-out scenes a seed", quick="six steps, two seeds, 32 scenes")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    from vilg import release  # Paddle loads here, after --help and usage errors
    from vilg.evaluation import table7
    from vilg.run.build import load_run

    run = load_run(arguments.config, [*(QUICK if arguments.quick else []), *arguments.set])
    seeds, count = (arguments.seeds[:2], 32) if arguments.quick else (arguments.seeds, arguments.count)
    network = release.read(arguments.features, "scene_features")
    table = table7.fill(run, seeds, arguments.output, network, count)
    folder = arguments.report or (arguments.output if arguments.quick else Path("docs"))
    command = "python " + shlex.join([Path("tools", Path(__file__).name).as_posix(), *sys.argv[1:]])
    table7.report(table, run, arguments.output, folder, count, command)
    print(table7.markdown(table, count, command), end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
