"""Which views help a dual encoder: train and compare captions alone, with one other view each, and all of them.

  python tools/views.py --config configs/ernie_vil/ablation.yaml
  python tools/views.py --config configs/ernie_vil/ablation.yaml --quick --output runs/views_quick

For every seed five runs of the config are trained, which differ in the views that their loss compares and see as many
samples; each is judged on the held-out cells, style and concepts of the styles world (tools/prepare_styles.py). Stopped
at any time, the same command goes on where it was. Writes views.md, views.json and images/views.png (needs matplotlib)
to --report.
"""
import argparse
import shlex
import sys
from pathlib import Path

from vilg import cli

QUICK = ["train.steps=4", "optim.warmup_steps=2", "train.batch_size=16"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a contrastive run; its seed is replaced")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="five arms each (%(default)s)")
    parser.add_argument("--data", default="data/styles", help="folder of the styles world to judge on (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs", "views"), help="runs and figures (%(default)s)")
    parser.add_argument("--report", type=Path, help="where the table goes (docs; with --quick, --output)")
    parser.add_argument("--quick", action="store_true",
                        help="four steps, one seed: shows that all of it runs, its figures mean nothing")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    from vilg.evaluation import views  # Paddle loads here, after --help and usage errors
    from vilg.run.build import load_run

    run = load_run(arguments.config, [*(QUICK if arguments.quick else []), *arguments.set])
    table = views.fill(run, arguments.seeds[:1] if arguments.quick else arguments.seeds, arguments.output,
                       arguments.data)
    folder = arguments.report or (arguments.output if arguments.quick else Path("docs"))
    command = "python " + shlex.join([Path("tools", Path(__file__).name).as_posix(), *sys.argv[1:]])
    views.report(table, run, folder, command)
    print(views.markdown(table, run, command), end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
