"""Compare drawing token by token with mask-predict on equal terms, over several seeds.

  python tools/ar_nar.py --config configs/two_level/ar_nar.yaml
  python tools/ar_nar.py --config configs/two_level/ar_nar.yaml --quick --output runs/ar_nar_quick

For every seed the run of the config (NAR) is trained, and twins of it that draw token by token (AR, sparse and
dense), from
the same weights on the same data: for as many steps, and again for as much processor time. Each is judged on held-out
scenes, NAR with every schedule, number of steps and choice temperature. Stopped at any time, the same command goes
on where
it was. Writes ar_nar.md, ar_nar.json, images/ar_nar_samples.png and images/ar_nar.png (needs matplotlib) to --report.
"""
import argparse
import shlex
import sys
from pathlib import Path

from evaluations.arms import add_arms
from vilg import cli

QUICK = ["train.steps=6", "train.preview_every=0", "optim.warmup_steps=2"]
FEW = {"count": 8, "best_count": 2, "steps": [1, 4], "choice_temperatures": [1.0], "batches": [1, 8], "repeats": 1,
       "cost_steps": 2}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arms(parser, "ar_nar", kind="a two_level", arms="one set of arms", count=32,
             counted="held-out captions a row and split", quick="six steps, one seed, 8 captions")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    from vilg import release  # Paddle loads here, after --help and usage errors
    from vilg.config import from_dict
    from vilg.evaluation import ar_nar, ar_nar_report
    from vilg.run.build import load_run

    run = load_run(arguments.config, [*(QUICK if arguments.quick else []), *arguments.set])
    said = {"seeds": arguments.seeds, "count": arguments.count}
    said |= {**FEW, "seeds": arguments.seeds[:1]} if arguments.quick else {}
    config = from_dict(ar_nar.ArNarConfig, said, "the table")
    network = release.read(arguments.features, "scene_features")
    rows, times = ar_nar.fill(run, config, arguments.output, network)
    folder = arguments.report or (arguments.output if arguments.quick else Path("docs"))
    command = "python " + shlex.join([Path("tools", Path(__file__).name).as_posix(), *sys.argv[1:]])
    ar_nar_report.write(rows, times, run, config, arguments.output, folder, command)
    print(ar_nar_report.markdown(rows, times, config, command), end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
