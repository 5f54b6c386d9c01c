"""Train a two-level model on whole captions and images, and compare it with its start on held-out scenes.

  python tools/sequence_level.py --config configs/two_level/captions.yaml
  python tools/sequence_level.py --config configs/two_level/images.yaml --seeds 0 --json images.json

Trains the run once a seed from task.init_from and prints, for the start and every seed: CIDEr of greedy captions and
the share that is true, and the judge's score of drawn images with the share that the scene reader finds as asked.
Stopped at any time, the same command goes on where it was.
"""
import argparse
from pathlib import Path

from vilg import cli

QUICK = ["train.steps=2", "task.corpus=20", "train.batch_size=4"]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a sequence_level run; its seed is replaced")
    parser.add_argument("--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="change the config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training each (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="held-out scenes (%(default)s)")
    parser.add_argument("--output", type=Path, help="runs (runs/ and the run's name)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    parser.add_argument("--quick", action="store_true", help="two steps, one seed, 4 scenes: shows that all of it runs")
    return parser.parse_args()


def main() -> int:
    """Run the tool."""
    arguments = parse()
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    from vilg.errors import ConfigError  # Paddle loads here, after --help and usage errors
    from vilg.evaluation.report import write_json
    from vilg.evaluation.sequence_level import compare
    from vilg.run.build import load_run

    if arguments.count < 2:
        raise ConfigError(f"--count is at least 2, since CIDEr compares images, not {arguments.count}")
    changes = [change for given in arguments.set for change in given]
    run = load_run(arguments.config, [*(QUICK if arguments.quick else []), *changes])
    seeds, count = (arguments.seeds[:1], 4) if arguments.quick else (arguments.seeds, arguments.count)
    found = {}
    for name, value in compare(run, seeds, arguments.output or Path("runs", run.name), count):
        found[name] = value
        print(f"{name:28} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, found, config=str(arguments.config), scenes=count)
    return 0


if __name__ == "__main__":
    cli.run(main)
