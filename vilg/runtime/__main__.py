"""``python -m vilg.runtime``: what vilg found on this machine, and what it set."""
import argparse

from vilg import cli
from vilg.runtime import report


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m vilg.runtime",
        description="Print threads, instruction set, which fast paths are on and why not, and GFLOP/s of products.")
    parser.add_argument("--no-speed", action="store_true", help="do not time matrix products")
    options = parser.parse_args()
    print(report.text(report.examine(measure=not options.no_speed)))


if __name__ == "__main__":
    cli.run(main)
