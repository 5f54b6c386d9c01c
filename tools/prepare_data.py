"""Write data down for training: pack pairs into tar shards, index shards, or draw scenes into a folder.

  python tools/prepare_data.py pack --folder photos --output data/photos --size 256
  python tools/prepare_data.py pack --table pairs.tsv --output data/pairs --paper-filter
  python tools/prepare_data.py pack --table pairs.tsv --output data/pairs --similar-by ernie_vil_tiny
  python tools/prepare_data.py index data/downloaded
  python tools/prepare_data.py scenes --split test --count 200 --output data/scenes_test

Shards follow WebDataset's layout; train on them with `data.sources: [{kind: shards, path: data/photos}]`.
"""
import argparse

from vilg import cli
from vilg.config import from_dict
from vilg.data.filtering.rules import PaperFilter, SimilarityFilter
from vilg.data.packing import FORMATS, Packing, PackingReport, write_folder, write_shards
from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.shards import index_folder
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = argparse.ArgumentParser(add_help=False)
    writing.add_argument("--output", required=True, help="folder to write")
    writing.add_argument("--size", type=int, help="centre-crop pictures to this many pixels (as they are)")
    writing.add_argument("--max-broken", type=float, default=0.1,
                         help="share of broken samples to put up with (%(default)s)")

    pack = commands.add_parser("pack", parents=[writing], help="pairs to tar shards")
    source = pack.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", help="pictures with .txt files of the same stem, one caption a line")
    source.add_argument("--table", help=".tsv (path, captions) or .jsonl (picture, captions, questions)")
    source.add_argument("--scenes", type=int, metavar="COUNT", help="that many scenes of the train split")
    pack.add_argument("--samples-a-shard", type=int, default=1000, help="(%(default)s)")
    pack.add_argument("--format", choices=FORMATS, default="jpg", help="of the pictures (%(default)s)")
    pack.add_argument("--paper-filter", action="store_true",
                      help="keep captions of fewer than 15 words with a noun and no special characters (needs jieba)")

    pack.add_argument("--similar-by", metavar="MODEL", help="keep captions that a dual encoder finds more similar to "
                      "their image than --threshold")
    pack.add_argument("--threshold", type=float, default=0.5, help="of --similar-by, from 0 to 1 (%(default)s)")

    index = commands.add_parser("index", help="count the samples of shards, so that runs start at once")
    index.add_argument("folder", help="folder of .tar files")

    scenes = commands.add_parser("scenes", parents=[writing], help="scenes as pictures, captions and questions")
    scenes.add_argument("--split", choices=("train", "test", "unseen"), default="train", help="(%(default)s)")
    scenes.add_argument("--count", type=int, default=1000, help="(%(default)s)")
    scenes.add_argument("--first", type=int, default=0, help="first seed (%(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.command == "index":
        for name, count in index_folder(arguments.folder).items():
            print(f"{name}\t{count}")
    elif arguments.command == "scenes":
        packing = Packing("png", arguments.size, max_broken=arguments.max_broken)
        config = from_dict(ScenesConfig, {"split": arguments.split, "count": arguments.count, "first": arguments.first,
                                          "size": arguments.size or 64}, "scenes")
        tell(arguments.output, write_folder(arguments.output, ScenesSource(config), packing))
    else:
        words = PaperFilter() if arguments.paper_filter else None
        fitting = similarity_filter(arguments.similar_by, arguments.threshold) if arguments.similar_by else None
        packing = Packing(arguments.format, arguments.size, words, arguments.max_broken, fitting)
        tell(arguments.output, write_shards(arguments.output, source_of(arguments), packing, arguments.samples_a_shard))
        for reason, count in [pair for rule in (words, fitting) if rule for pair in rule.dropped.items()]:
            print(f"captions dropped: {count} {reason}")
    return 0


def source_of(arguments: argparse.Namespace) -> FolderSource | TableSource | ScenesSource:
    """The source that the options of `pack` name."""
    if arguments.folder:
        return FolderSource(FolderConfig(path=arguments.folder))
    if arguments.table:
        return TableSource(TableConfig(path=arguments.table))
    return ScenesSource(from_dict(ScenesConfig, {"count": arguments.scenes, "size": arguments.size or 64}, "scenes"))


def similarity_filter(model: str, threshold: float) -> SimilarityFilter:
    """The rule that a dual encoder decides."""
    from vilg.app import pipeline  # Paddle loads here, for those who filter by a model

    encoder = pipeline.load_encoder(model)
    encoder.calibrated([0.0])  # a model whose cosines mean nothing is refused now, not caption by caption
    return SimilarityFilter(encoder.paired_similarity, threshold)


def tell(output: str, report: PackingReport) -> None:
    """Print what was written."""
    print(f"{output}: {report.written} samples written, {report.broken} broken, {report.filtered} filtered out")


if __name__ == "__main__":
    cli.run(main)
