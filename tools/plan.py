"""What a run would take: memory a device by part, traffic, time, starting again; or the smallest fleet that holds it.
Allocates nothing. With --draw: what drawing with a model takes on this machine, by its measured memory bandwidth."""
import argparse
import json
from math import inf
from pathlib import Path

from PIL import Image

from vilg import cli

EPILOG = """examples:
  python tools/plan.py configs/vilg/10b.yaml --device-memory 80 --devices 64
  python tools/plan.py configs/vilg/10b.yaml --device-memory 80 --devices 64 --set distributed.mp_degree=2
  python tools/plan.py configs/vilg/10b.yaml --device-memory 141 --smallest --set distributed.offload=false
  python tools/plan.py configs/vilg/10b.yaml --device-memory 80 --smallest --days 30
  python tools/plan.py configs/vilg/300m.yaml --device-memory 24 --devices 8 --picture plan.png --json plan.json
  python tools/plan.py configs/vilg/10b.yaml --draw
  python tools/plan.py ernie_vilg_tiny --draw --batch 8 --json draw.json

The model is not made, so this takes seconds on a laptop. Peak, efficiency and bandwidths are your statement about your
machines: the defaults are an A100's bfloat16 peak, a usual efficiency, and 100 GB/s of collectives a device. --draw
takes two seconds, in which it reads memory.
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="run config of the bidirectional model; with --draw also a model by "
                                                  "its name in model_zoo/ or its folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key of the config")
    parser.add_argument("--device-memory", type=float, metavar="GB", help="memory of one device")
    fleet = parser.add_mutually_exclusive_group(required=True)
    fleet.add_argument("--draw", action="store_true", help="plan drawing on this machine's CPU, not a training")
    fleet.add_argument("--devices", type=int, metavar="N", help="how many devices there are")
    fleet.add_argument("--smallest", action="store_true", help="find the fewest devices (1, 2, 4 …) that hold the run, "
                                                               "and the fewest micro-batches")
    parser.add_argument("--batch", type=int, metavar="N", help="with --draw: images at a time (default 1)")
    parser.add_argument("--days", type=float, default=inf, help="with --smallest: the run must be done by then")
    parser.add_argument("--peak", type=float, default=312.0, metavar="TFLOPS", help="peak of one device (default 312)")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is reached (default 0.4)")
    parser.add_argument("--bandwidth", type=float, default=100.0, metavar="GB/S",
                        help="collectives, a device (default 100)")
    parser.add_argument("--node-bandwidth", type=float, default=200.0, metavar="GB/S",
                        help="collectives within a node, a device: the ranks of distributed.mp_degree (default 200)")
    parser.add_argument("--host-bandwidth", type=float, default=20.0, metavar="GB/S",
                        help="between a device and its host (default 20)")
    parser.add_argument("--storage-bandwidth", type=float, default=1.0, metavar="GB/S",
                        help="files, a device (default 1)")
    parser.add_argument("--pairs", type=float, default=145e6, help="picture–text pairs to train on (default 145e6)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the memory as a bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    if args.draw and (args.device_memory is not None or args.picture or args.days < inf):
        parser.error("--draw is about this machine: it goes with --batch and --json, not with --device-memory, "
                     "--picture or --days")
    if not args.draw and (args.device_memory is None or args.batch is not None):
        parser.error("a training is planned with --device-memory; --batch goes with --draw")
    if args.draw:
        return args
    if args.device_memory <= 0 or (args.devices is not None and args.devices < 1):
        parser.error("--device-memory must be above 0 and --devices at least 1")
    if min(args.peak, args.efficiency, args.bandwidth, args.node_bandwidth, args.host_bandwidth, args.storage_bandwidth,
           args.pairs) <= 0:
        parser.error("--peak, --efficiency, --bandwidth, --node-bandwidth, --host-bandwidth, --storage-bandwidth and "
                     "--pairs are above 0")
    if args.picture and args.picture.suffix.lower() not in Image.registered_extensions():
        parser.error(f"--picture {args.picture}: name a kind of picture, such as plan.png")
    if args.days <= 0 or (args.days < inf and not args.smallest):
        parser.error("--days is above 0, and goes with --smallest")
    return args


def main() -> int:
    """Run the tool."""
    args = arguments()
    if args.draw:
        return draw(args)
    from vilg.planning.plan import Devices, make_plan, smallest_fleet
    from vilg.planning.report import picture, table
    from vilg.run import build

    run = build.load_run(args.config, args.set)
    shape = build.planned_shape(run)
    devices = Devices(args.devices or 1, args.device_memory, args.peak, args.efficiency, args.bandwidth,
                      args.host_bandwidth, args.storage_bandwidth, args.node_bandwidth)
    if args.smallest:
        plan = smallest_fleet(shape, run.train, run.distributed, devices, args.pairs, args.days)
    else:
        plan = make_plan(shape, run.train, run.distributed, devices, args.pairs)
    print(table(plan))
    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        picture(plan).save(args.picture)
    write(args, plan.figures() | {"devices": plan.devices.count})
    return 0


def draw(args: argparse.Namespace) -> int:
    """Plan drawing."""
    from vilg.planning.drawing import plan_drawing
    from vilg.planning.report import drawing_table
    from vilg.run import build

    plans = plan_drawing(build.drawn_shape(args.config, args.set), 1 if args.batch is None else args.batch)
    print(drawing_table(plans))
    figures = {"bandwidth_gb_per_s": plans[0].bandwidth / 1e9, "free_gb": plans[0].free_bytes / 1e9,
               "batch": plans[0].batch}
    for plan in plans:
        figures |= plan.figures()
    write(args, figures)
    return 0


def write(args: argparse.Namespace, figures: dict) -> None:
    """The figures to --json, where it is given."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        said = figures | {"config": str(args.config), "set": args.set}
        args.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
