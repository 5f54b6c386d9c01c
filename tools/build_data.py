"""From raw pairs to shards: filter, drop duplicates, and write what the loader reads; on this machine or on Ray.

  python tools/build_data.py --config configs/data/web.yaml --input raw/ --output data/web --dry-run 2000
  python tools/build_data.py --config configs/data/web.yaml --input raw/ --output data/web
  python tools/build_data.py --config configs/data/web.yaml --input raw/ --output data/web --resume
  python tools/build_data.py … --engine ray --address HEAD:6379

An input is a .tar (WebDataset's layout, img2dataset's too), .parquet, .tsv or .jsonl file, a folder of those, or one of
images with .txt beside them. DIR gets shards and index.json (train on them with `{kind: shards, path: DIR}`),
report.json (what each rule dropped, with examples) and dropped.parquet (every drop). A build that was stopped or killed
goes on by the same command with --resume. Needs `pip install 'vilg[data]'`; docs/data_at_scale.md tells more.
"""
import argparse

from vilg import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="rules and sizes, such as configs/data/web.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config, "
                        "as in --set rules.frequency=20; may be repeated")
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="what to read; NAME=PATH gives it "
                        "the name that keys are made of (the last part of the path)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write, on a disk that all nodes see")
    parser.add_argument("--engine", choices=("native", "ray"), default="native", help="this machine, or a Ray cluster "
                        "(%(default)s)")
    parser.add_argument("--address", help="of the Ray cluster's head, HOST:6379 (this machine's, or a new one)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument("--resume", action="store_true", help="go on with a build that was broken off")
    parser.add_argument("--dry-run", type=int, metavar="N", help="report on about N samples from all over the inputs, "
                        "and write nothing")
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    arguments = parser.parse_args()
    if arguments.address and arguments.engine != "ray":
        parser.error("--address is a Ray cluster's; give --engine ray with it")
    if (arguments.workers is not None and arguments.workers < 1) or (arguments.dry_run is not None
                                                                     and arguments.dry_run < 1):
        parser.error("--workers and --dry-run are at least 1")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    cli.check_folder(arguments.output, "--output")
    from vilg.data.building import report
    from vilg.data.building.engine import Engine
    from vilg.run.build_data import prepare

    build = prepare(arguments.config, arguments.set, arguments.input, arguments.output)
    engine = Engine(arguments.engine, arguments.address, arguments.workers)
    if arguments.dry_run:
        found = build.dry_run(engine, arguments.dry_run)
    else:
        found = build.run(engine, arguments.resume)
    cli.report([found], arguments.json, report.lines(found))
    return 0


if __name__ == "__main__":
    cli.run(main)
