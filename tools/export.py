"""Make a released folder of a run's checkpoint, for drawing while it trains or after it was stopped.

  python tools/export.py runs/tiny                          # the newest checkpoint, to runs/tiny/model
  python tools/export.py runs/tiny --step 500 --output models/tiny-500
  python tools/export.py runs/tiny --best --output models/tiny-best
  python tools/infer.py text2image "一个红色的圆形" --model models/tiny-best

The averaged weights are taken where the run keeps an average (train.ema_decay). The config comes from the checkpoint;
image tokenizer and vocabulary are read from where that config has them.
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the output of a run, or one checkpoint of it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (the newest that verifies)")
    which.add_argument("--best", action="store_true", help="the checkpoint whose steps had the lowest mean loss; see "
                                                           "train.keep_best")
    parser.add_argument("--output", metavar="DIR", help="folder to write (RUN/model, if there is none yet)")
    return parser.parse_args()


def main() -> int:
    """Run the tool."""
    arguments = parse()
    if arguments.output:
        cli.check_folder(arguments.output, "--output")
    from vilg.run.export import export_run  # Paddle loads here, after --help and usage errors

    done = export_run(arguments.run, arguments.output, arguments.step, arguments.best)
    print(f"{done.folder}: the model of step {done.step}, {'averaged' if done.averaged else 'last'} weights")
    return 0


if __name__ == "__main__":
    cli.run(main)
