"""Build a vocabulary (vocab.txt) from captions, the same bytes from the same texts on every machine.

  python tools/build_vocab.py captions.tsv more_captions/ --size 8000 --output vocab.txt
  python tools/build_vocab.py data/emoji --scenes 20000 --size 4000 --no-common --output configs/vilg/vocab.txt
  python tools/build_vocab.py photos --extend model_zoo/ernie_vilg_tiny --output photos_vocabulary/vocab.txt

Sources are .txt files (a caption a line), .tsv tables (path, captions), .jsonl lines, and folders of those; --scenes
adds captions and questions of that many embedded scenes. Punctuation and the 3755 characters of GB 2312's first level
are always in, unless --no-common. --extend keeps a vocabulary as it is, ids and all, and adds what it lacks: a model
trained with the old one is fine-tuned with the longer one (task.init_from, task.vocabulary, task.model.vocab_size). An
ERNIE or BERT vocab.txt works as well: no need to build one to train on such text.
"""
import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path


from vilg import cli
from vilg.errors import VilgError
from vilg.progress import progress
from vilg.tokenizers.text.characters import common_characters
from vilg.tokenizers.text.vocab_file import write_vocab
from vilg.tokenizers.text.vocabulary import build_vocab, extend_vocab, vocab_hash
from vilg.tokenizers.text.wordpiece import SPECIAL_TOKENS, WordPieceTokenizer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", help="caption files and folders")
    parser.add_argument("--scenes", type=int, default=0, metavar="N", help="texts of N training scenes (%(default)s)")
    parser.add_argument("--size", type=int, help="tokens at most (8000; with --extend: as many as it takes)")
    parser.add_argument("--extend", metavar="FOLDER_OR_VOCAB", help="keep this vocabulary and add to it what it lacks")
    parser.add_argument("--common", action=argparse.BooleanOptionalAction, default=True,
                        help="punctuation and GB 2312's first level, whether the texts hold them or not (%(default)s)")
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
    texts = progress(texts, desc="counting", unit="text")
    always = common_characters() if arguments.common else []
    if arguments.extend:
        base = WordPieceTokenizer.from_path(arguments.extend)
        tokens = extend_vocab(base.tokens, texts, base.lowercase, always, arguments.size)
        lowercase, special = base.lowercase, base.special
    else:
        lowercase, special = not arguments.cased, SPECIAL_TOKENS
        tokens = build_vocab(texts, arguments.size or 8000, lowercase, arguments.min_count, always)
    write_vocab(output.parent, tokens, lowercase, special, output.name)
    print(f"{output}: {len(tokens)} tokens, sha256 {vocab_hash(tokens)}")
    if arguments.extend:
        print(f"{len(tokens) - len(base.tokens)} tokens are new; train with task.vocabulary={output.parent}, "
              f"task.model.vocab_size={len(tokens)}, and task.init_from the model of the old vocabulary")
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
