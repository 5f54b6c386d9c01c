"""Write emoji of ten art styles with their Chinese names as picture-caption tables, split for multi-view training.

  pip install 'vilg[styles]'                       # resvg_py, which draws the SVGs
  python tools/prepare_styles.py --output data/styles                         # fetches the packages with npm
  python tools/prepare_styles.py --output data/styles --packages downloads    # takes them from a folder
  python tools/prepare_styles.py --output data/styles --licences permissive   # MIT and Apache art alone

The folder then holds <style>/<code points>.png and one table a split, so that
`data.sources: [{kind: table, path: data/styles/train.jsonl}]` trains on it, world.json, which says all figures, and
LICENCES.md, which says whose art it is. The tables:

  train      what to train on
  cells      a known style and a known concept, never seen together
  styles     a known concept in a style that was held out (--held-styles)
  concepts   an unknown concept in a known style
  both       an unknown concept in a style that was held out
  copies     held out, but looks like a picture of train: neither for training nor for testing

Every record has the fields concept, name, tags, style, style_name, family (styles drawn alike), group (concepts drawn
alike) and split. The same packages and options give the same bytes.
"""
import argparse
import json
import tempfile
from pathlib import Path

from vilg import cli
from vilg.config import from_dict
from vilg.data.worlds import styles


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="data/styles", help="folder to write (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (%(default)s)")
    parser.add_argument("--licences", choices=("all", "permissive"), default="all",
                        help="permissive: MIT and Apache art alone, five of the ten styles (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--packages", metavar="DIR", help="take the packages from this folder, as `npm pack` leaves "
                        "them (.tgz) or unpacked, such as node_modules")
    source.add_argument("--download", metavar="DIR", help="fetch the packages to this folder and keep them "
                        "(a folder that is removed afterwards)")
    parser.add_argument("--annotations", metavar="DIR", help="take the names from CLDR's folder of Debian's "
                        "unicode-cldr-core, /usr/share/unicode/cldr/common (npm's cldr-annotations-full)")
    parser.add_argument("--held-styles", nargs="*", metavar="STYLE", default=["fxemoji"], choices=list(styles.STYLES),
                        help=f"styles never to train on, any of {', '.join(styles.STYLES)} (fxemoji)")
    parser.add_argument("--held-concepts", type=float, default=0.1, metavar="SHARE",
                        help="of the concepts, not to train on in any style (%(default)s)")
    parser.add_argument("--held-cells", type=float, default=0.1, metavar="SHARE",
                        help="of the pairs of a concept and a style, not to train on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are held out (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures of the run there too")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    config = from_dict(styles.SplitConfig, {name: getattr(arguments, name) for name in
                                            ("held_styles", "held_concepts", "held_cells", "seed")}, "split")
    styles.check_output(arguments.output, arguments.size)
    cli.check_folder(arguments.output, "--output")
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.packages or arguments.download or scratch
        packages, concepts = styles.gather(Path(folder), fetching=not arguments.packages,
                                           permissive=arguments.licences == "permissive", debian=arguments.annotations)
        world = styles.collect(packages, concepts, config)
        about = styles.write(world, arguments.output, arguments.size, config)
    for key, style in about["styles"].items():
        print(f"{key:18s} {style['images']:5d} pictures  {style['description']}  {style['spdx']}")
    for reason, names in about["left_out"].items():
        print(f"left out {len(names)}: {reason} ({', '.join(names[:5])})")
    print("  ".join(f"{name} {count}" for name, count in about["splits"].items()))
    print(f"{arguments.output}: {about['images']} pictures of {about['concepts']} concepts")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
