"""Try on this machine what only a device can show: kernels, half precision, ranks over NCCL. One line a check.

  python tools/device_check.py                       every check that the GPUs here can decide; a CPU decides a few
  python tools/device_check.py --only attention      those with this word in their name
  python tools/device_check.py --big --json device.json     timings too, at the width of the 10 B config

PASS, FAIL or SKIP (with what is missing) a line; the exit status is 1 when a check failed. Nothing is written but
--json. docs/scaling.md says which of these have passed where.
"""
import argparse
import json
from pathlib import Path

from vilg import cli


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="run the checks whose name holds it")
    parser.add_argument("--big", action="store_true", help="measure time and memory too; wants 24 GB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and every result there")
    return parser.parse_args()


def main() -> int:
    """Run the tool."""
    args = arguments()
    if args.json:
        cli.check_file(args.json, "--json")
    from vilg.evaluation.device import kernels, runs
    from vilg.evaluation.device.checks import figures, run_checks

    results = []
    for result in run_checks([*kernels.checks(), *runs.checks()], args.only, args.big):
        results.append(result)
        print(f"{result.status}  {result.name}: {result.note} ({result.seconds:.1f} s)", flush=True)
    found = figures(results)
    print(f"{found['pass']} passed, {found['fail']} failed, {found['skip']} skipped")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["fail"] else 0


if __name__ == "__main__":
    cli.run(main)
