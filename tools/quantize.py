"""Write a released model in int8: half of float16's size, drawn from with --cpu-math int8.

  python tools/quantize.py ernie_vilg_tiny --output runs/tiny_int8
  python tools/quantize.py ernie_vilg_tiny --output runs/tiny_int8 --captions captions.txt

Linear maps are rounded with a scale an output channel, tables with a scale a row; norms, biases and the image tokenizer
stay in float16. With --captions (a text file, a caption a line) the model draws them first, and channels that are far
larger than others are moved into the weights where that makes the rounded maps more exact.
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name in model_zoo/ or a model folder")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--captions", metavar="FILE", help="captions to calibrate on, one a line (on nothing)")
    parser.add_argument("--json", metavar="FILE", help="write what was done as one flat JSON object")
    return parser.parse_args()


def main() -> int:
    """Run the tool."""
    arguments = parse()
    cli.check_folder(arguments.output, "--output")
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    from vilg.app.quantizing import quantize_model  # Paddle loads here, after --help and usage errors
    from vilg.evaluation.report import write_json

    done = quantize_model(arguments.model, arguments.output, arguments.captions)
    print(f"{arguments.output}: int8, channels moved in {done.shifted} of {done.maps} maps looked at, fingerprint "
          f"{done.fingerprint}")
    if arguments.json:
        write_json(arguments.json, {"maps_shifted": done.shifted, "maps_seen": done.maps}, model=arguments.model,
                   captions=arguments.captions or "none", fingerprint=done.fingerprint)
    return 0


if __name__ == "__main__":
    cli.run(main)
