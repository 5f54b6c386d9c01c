"""Write scenes in the files of a public benchmark: what configs/vilg/benchmarks/*_tiny.yaml learn from.

  python tools/prepare_benchmark.py --format aic-icc --output data/aic_icc
  python tools/train.py --config configs/vilg/benchmarks/aic_icc_tiny.yaml
  python tools/evaluate.py captions --format aic-icc --data data/aic_icc --model runs/aic_icc_tiny/model

The folder then has the names and the layout of the benchmark as it is unpacked (docs/evaluation.md), with drawn scenes
in place of photographs: it shows the whole path from files to a table, and its scores stand beside nobody's.
"""
import argparse

from vilg import cli
from vilg.data.benchmarks.made import WRITERS, write_benchmark


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", required=True, choices=sorted(WRITERS), help="the benchmark whose files to write")
    parser.add_argument("--output", required=True, help="folder to write, which is empty or not there")
    parser.add_argument("--train", type=int, default=800, help="images to learn from (%(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="images that are scored (%(default)s)")
    arguments = parser.parse_args()
    if min(arguments.train, arguments.held_out) < 1:
        parser.error("--train and --held-out are at least 1")
    return arguments


def main() -> int:
    arguments = parse()
    write_benchmark(arguments.format, arguments.output, arguments.train, arguments.held_out)
    print(f"{arguments.output}: {arguments.train} images to learn from and {arguments.held_out} to score, "
          f"as {arguments.format} has them")
    return 0


if __name__ == "__main__":
    cli.run(main)
