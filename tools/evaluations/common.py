"""What the families of tools/evaluate.py share: options, the model, and how figures are shown and kept."""
import argparse
from collections.abc import Iterable
from typing import Any

from vilg import cli
from vilg.generation.sampling import WAYS
from vilg.runtime import CPU_MATHS


def common_options(model: str) -> argparse.ArgumentParser:
    """A parent parser: the model, the seed, the machine, and where figures go; made anew for those of another
    ``model``, as parsers share the defaults of a parent."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default=model, help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="of the scenes and of the sampling (%(default)s)")
    common.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
    common.add_argument("--device", help="cpu, gpu:0 …")
    common.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    return common


def drawing_options() -> argparse.ArgumentParser:
    """A parent parser: how pictures are drawn."""
    drawing = argparse.ArgumentParser(add_help=False)
    cli.add_settings(drawing, *WAYS)
    return drawing


def load(arguments: argparse.Namespace):
    """The model that draws, describes and answers."""
    from vilg.app import pipeline

    return pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)


def show_signed(arguments: argparse.Namespace, scores, **context: Any) -> None:
    """Print scores with their signatures as they come, and keep them."""
    from vilg.evaluation.report import signed_figures, write_json

    figures = signed_figures(scores)
    if arguments.json:
        write_json(arguments.json, figures, **context)


def show_figures(arguments: argparse.Namespace, name: str, measured: Iterable[tuple[str, float]]) -> None:
    """Print the figures of model ``name`` as they come, and keep them with what was asked for."""
    from vilg.evaluation.report import write_json

    figures, said = {}, vars(arguments)
    for key, value in measured:
        figures[key] = value
        print(f"{key:28s} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, figures, task=arguments.task, model=name, seed=arguments.seed,
                   count=said.get("count") or "default", best_of=said.get("best_of", "none"),
                   trained_on=said.get("trained_on") or "not said", data=said.get("data") or "none",
                   format=said.get("format", "none"), cpu_math=arguments.cpu_math or "default")
