"""Turn pictures into codes once, so that training the transformer need not run the image tokenizer.

  python tools/encode_images.py --config configs/vilg/tiny.yaml --output data/tiny_codes

Reads the config's data sources, encodes every picture with the config's image tokenizer, and writes codes, captions and
questions with the tokenizer's fingerprint; a run with `data.sources: [{kind: codes, path: …}]` trains on them.
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a run config; its data and image tokenizer are used")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--output", required=True, help="folder for the codes")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures encoded at a time (%(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    from vilg.run import build, encode

    run = build.load_run(arguments.config, arguments.set)
    report = encode.encode_images(run, arguments.output, arguments.batch_size)
    print(report)
    return 0


if __name__ == "__main__":
    cli.run(main)
