"""tables: the paper's tables from the JSON files of the other commands."""
import argparse
from pathlib import Path

from vilg import cli


def add(tasks) -> None:
    """Offer the command."""
    tables = tasks.add_parser("tables", help="the paper's tables 1 to 7, in Markdown")
    tables.add_argument("--results", required=True, metavar="FOLDER", help="JSON files that --json wrote")
    tables.add_argument("--output", metavar="FILE", help="(tables.md in that folder)")
    tables.set_defaults(run=run_tables, json=None)


def run_tables(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.files import write_whole
    from vilg.evaluation.tables import markdown, read_results

    output = arguments.output or Path(arguments.results) / "tables.md"
    cli.check_file(output, "--output")
    text = markdown(read_results(arguments.results))
    write_whole(output, text.encode())
    print(text, end="")
