"""What tools/table7.py and tools/ar_nar.py share: the options of a table of trained arms, over several seeds."""
import argparse
from pathlib import Path


def add_arms(parser: argparse.ArgumentParser, name: str, kind: str, arms: str, count: int, counted: str, quick: str
             ) -> None:
    """Offer the options of table ``name`` of ``kind``'s runs: ``arms`` says what a seed gives, ``counted`` what
    ``count`` is of, and ``quick`` what --quick leaves."""
    parser.add_argument("--config", required=True, type=Path, help=f"{kind} run; its seed is replaced")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help=f"{arms} each (%(default)s)")
    parser.add_argument("--count", type=int, default=count, help=f"{counted} (%(default)s)")
    parser.add_argument("--features", type=Path, default=Path("model_zoo/scene_features"),
                        help="the network that Fréchet distances are taken in (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs", name), help="runs and figures (%(default)s)")
    parser.add_argument("--report", type=Path, help="where the table goes (docs; with --quick, --output)")
    parser.add_argument("--quick", action="store_true",
                        help=f"{quick}: shows that all of it runs, its figures mean nothing")
