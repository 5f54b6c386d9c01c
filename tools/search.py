"""Search images by text or by image, with a dual encoder.

  python tools/search.py index photos --output data/photos_index
  python tools/search.py query "一个红色的圆形" --index data/photos_index --sheet hits.png
  python tools/search.py query --image a.png b.png --index data/photos_index

index  embeds every image of a folder, a table (.tsv, .jsonl) or tar shards once; stopped, it goes on where it was, and
       on images that changed since it embeds only those again
query  prints the images that fit best, best first: similarity in 0–1 (cosine between images) and path; "nothing
       matches" where no similarity reaches --threshold. The index must be of the same model
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="ernie_vil_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--cpu-math", choices=["fp32", "bf16"], help="precision of products on a CPU")
    common.add_argument("--device", help="cpu, gpu:0 …")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", parents=[common], help="embed the images of a folder, a table or shards")
    index.add_argument("images", help="folder, .tsv or .jsonl table, .tar or folder of those")
    index.add_argument("--output", required=True, help="folder of the index")
    index.add_argument("--max-broken", type=float, default=0.1, help="share of images that may be broken (%(default)s)")
    index.add_argument("--workers", type=int, default=2, help="threads that read images (%(default)s)")
    query = commands.add_parser("query", parents=[common], help="find images")
    query.add_argument("texts", nargs="*", help="what to look for, in Chinese")
    query.add_argument("--image", nargs="+", default=[], help="images to find the like of")
    query.add_argument("--index", required=True, help="folder that `index` wrote")
    query.add_argument("--count", type=int, default=10, help="hits a query at most (%(default)s)")
    query.add_argument("--threshold", type=float, help="least similarity of a hit for texts (0.5), least cosine for "
                       "images (none)")
    query.add_argument("--backend", choices=["numpy", "faiss"], default="numpy", help="what computes (%(default)s)")
    query.add_argument("--unchecked", action="store_true", help="search although the images changed since the index")
    query.add_argument("--sheet", metavar="PNG", help="write a contact sheet of the hits, best first")
    query.add_argument("--json", metavar="FILE", help="write one JSON line a query; - for standard output")
    arguments = parser.parse_args()
    if arguments.command == "query" and bool(arguments.texts) == bool(arguments.image):
        query.error("give texts or --image, and not both")
    return arguments


def main() -> int:
    arguments = parse()
    return build(arguments) if arguments.command == "index" else find(arguments)


def build(arguments: argparse.Namespace) -> int:
    """`index`: embed and write."""
    cli.check_folder(arguments.output, "--output")
    from vilg.app import pipeline, search

    collection = search.open_collection(arguments.images)
    encoder = pipeline.load_encoder(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    built = search.build_index(encoder, collection, arguments.output, arguments.max_broken, arguments.workers)
    print(f"{arguments.output}: {built.images} images, {built.embedded} of them embedded now; {built.broken} could not "
          "be read")
    return 0


def find(arguments: argparse.Namespace) -> int:
    """`query`: search and report."""
    for option in ("sheet", "json"):
        if (file := getattr(arguments, option)) not in (None, "-"):
            cli.check_file(file, f"--{option}")
    from vilg.app import pipeline, search

    encoder = pipeline.load_encoder(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    index = search.open_index(arguments.index, encoder, arguments.backend, arguments.unchecked)
    find_hits, given = ((search.search_texts, arguments.texts) if arguments.texts
                        else (search.search_images, arguments.image))
    least = {} if arguments.threshold is None else {"least": arguments.threshold}
    hits = find_hits(index, encoder, given, arguments.count, **least)
    if arguments.sheet:
        search.write_sheet(arguments.sheet, index, given, hits, images=arguments.image)
    cli.report(search.records(given, hits), arguments.json, search.lines(given, hits))
    return 0


if __name__ == "__main__":
    cli.run(main)
