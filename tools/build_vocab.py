"""Build a vocabulary (vocab.txt) from captions, the same bytes from the same texts on every machine.

  python tools/build_vocab.py captions.tsv more_captions/ --size 8000 --output vocab.txt
  python tools/build_vocab.py data/emoji --scenes 20000 --size 4000 --output configs/vilg/vocab.txt

Sources are .txt files (a caption a line), .tsv tables (path, captions), .jsonl lines, and folders of those; --scenes
adds captions and questions of that many embedded scenes. An ERNIE or BERT vocab.txt works as well: no need to build one
to fine-tune from such text.
"""
import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path


from vilg import cli
from vilg.errors import VilgError
from vilg.progress import progress
from vilg.tokenizers.text.vocabulary import build_vocab, vocab_hash, vocab_text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="caption files and folders")
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="texts of N training scenes (%(default)s)")
    parser.add_argument("--size", type=int, default=8000, help="tokens at most (%(default)s)")
    parser.add_argument("--min-count", type=int, default=2, help="how often a piece of several letters must occur")
    parser.add_argument("--cased", action="store_true", help="keep capital letters and accents apart")
    parser.add_argument("--output", default="vocab.txt", help="where to write (%(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if not arguments.sources and not arguments.scenes:
        raise VilgError("there is nothing to count; name caption files or folders, or give --scenes N")
    output = Path(arguments.output)
    if output.is_dir():
        raise VilgError(f"{output}: is a folder; name the file to write, such as {output / 'vocab.txt'}")
    texts = chain(*map(_captions, arguments.sources), _scene_texts(arguments.scenes))
    tokens = build_vocab(progress(texts, desc="counting", unit="text"), arguments.size, lowercase=not arguments.cased,
                         min_count=arguments.min_count)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(vocab_text(tokens), encoding="utf-8", newline="\n")
    print(f"{output}: {len(tokens)} tokens, sha256 {vocab_hash(tokens)}")
    return 0


def _captions(source: str) -> Iterator[str]:
    from vilg.data.captions import read_captions

    return read_captions(source)


def _scene_texts(count: int) -> Iterator[str]:
    import numpy as np

    from vilg.data.worlds import scenes

    for number in range(count):
        scene, rng = scenes.sample_scene(number, "train"), np.random.default_rng(number)
        yield from scenes.captions(scene, rng)
        yield from chain.from_iterable(scenes.questions(scene, rng))


if __name__ == "__main__":
    cli.run(main)
