"""Write the colour emoji of Debian's Noto font with their Chinese names as a picture–caption set.

  apt-get install fonts-noto-color-emoji unicode-cldr-core
  python tools/prepare_emoji.py --output data/emoji

The folder then holds <code points>.png and .txt (first line: the exact name; second: name and key words) and
table.jsonl, the same layout that users' own data has, so `data.sources: [{kind: folder, path: data/emoji}]` reads it.
"""
import argparse

from vilg import cli
from vilg.data.worlds import emoji


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="data/emoji", help="folder to write (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (%(default)s)")
    parser.add_argument("--font", default=emoji.FONT, help="Noto Color Emoji with bitmap glyphs (%(default)s)")
    parser.add_argument("--annotations", default=emoji.ANNOTATIONS,
                        help="CLDR's folder with annotations/zh.xml and annotationsDerived/zh.xml (%(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    found = emoji.collect(arguments.font, arguments.annotations)
    emoji.write(found.emoji, arguments.output, arguments.size)
    for reason, names in found.left_out.items():
        print(f"left out {len(names):5d}: {reason}")
    print(f"{arguments.output}: {len(found.emoji)} emoji")
    return 0


if __name__ == "__main__":
    cli.run(main)
