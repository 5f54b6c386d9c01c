"""Train what a config describes, on one process or on the ranks of a launcher."""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from typing import TYPE_CHECKING

from vilg import cli

if TYPE_CHECKING:  # Paddle loads after --help and usage errors
    from vilg.run.build import RunConfig

EPILOG = """examples:
  python tools/train.py --config configs/vilg/tiny.yaml
  python tools/train.py --config configs/vilg/tiny.yaml --set train.steps=200 --set optim.lr=1e-3
  python tools/train.py --config configs/vilg/tiny.yaml --resume auto
  python tools/train.py --config configs/vilg/tiny.yaml --ranks 2 --restarts 3 --set distributed.level=dp
  python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py --config … --set distributed.level=dp
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file that describes the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change one key of the config, as train.steps=200; may be repeated")
    parser.add_argument("--print-config", action="store_true",
                        help="print the whole config with its defaults, and stop")
    parser.add_argument("--resume", metavar="none|auto|PATH",
                        help="short for --set train.resume=…: auto continues from the newest checkpoint that verifies")
    parser.add_argument("--ranks", type=int, default=1, metavar="N",
                        help="start N processes on this machine, watched over: when one dies the others end at once")
    parser.add_argument("--restarts", type=int, default=0, metavar="N",
                        help="after a failure start again from the newest checkpoint that verifies, up to N times")
    args = parser.parse_args()
    if args.ranks < 1 or args.restarts < 0:
        parser.error("--ranks is at least 1 and --restarts not negative")
    return args


def _again(run: "RunConfig") -> Callable[[], list[str]]:
    """What a restart adds: to go on from what this job has written, and until it has, from where the user said."""
    before = set(_checkpoints(run))

    def add() -> list[str]:
        from_path = run.train.resume not in ("none", "auto")
        return [] if from_path and not set(_checkpoints(run)) - before else ["--resume", "auto"]

    return add


def _checkpoints(run: "RunConfig") -> list[tuple[str, float]]:
    """Name and time of every checkpoint in the run's output."""
    from vilg.engine.checkpoints.checkpoint import checkpoints_in

    return [(path.name, path.stat().st_mtime) for path in checkpoints_in(run.output_directory / "checkpoints")]


def main() -> int:
    """Run the tool."""
    args = arguments()
    from vilg import config
    from vilg.engine.safety.supervisor import Supervisor
    from vilg.run import build

    overrides = args.set + ([f"train.resume={args.resume}"] if args.resume else [])
    run = build.load_run(args.config, overrides)
    if args.print_config:
        print(config.to_yaml(run), end="")
        return 0
    if args.ranks > 1 or args.restarts:
        command = [sys.executable, __file__, "--config", str(args.config)]
        command += [part for override in overrides for part in ("--set", override)]
        return Supervisor(command, args.ranks, args.restarts, _again(run), run.output_directory / "logs").run()
    summary = build.build_trainer(run).fit()
    print(f"{'stopped' if summary.stopped else 'finished'} at step {summary.step}, loss {summary.loss:.4f}, "
          f"{summary.skipped} steps skipped; see {run.output_directory}")
    if summary.stopped:
        print(f"go on with --resume auto, or make a model of it: python tools/export.py {run.output_directory}")
    return 0


if __name__ == "__main__":
    cli.run(main)
