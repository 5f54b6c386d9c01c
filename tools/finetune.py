"""Make a model of your own from a folder of pictures with Chinese captions, on a laptop.

  python tools/finetune.py photos                     # a.jpg + a.txt (one caption a line), or a table .jsonl / .tsv
  python tools/finetune.py photos --output mine --minutes 30

The folder is looked at first: too few pictures, one caption for all and damaged files are said before anything is
trained. Then a tenth is held out, characters that the model does not know join its vocabulary, its image tokenizer is
trained further where it gives these pictures back with less than --least-psnr, the model is trained for as long as
--minutes allow, and index.html in --output shows what it drew and described before and after, on pictures that it never
saw. Ctrl-C, or worse, costs at most 100 steps: the same command goes on. The model is in OUTPUT/model_run/model.
"""
import argparse
import json
import logging
from pathlib import Path

from vilg import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="pictures with a .txt of the same stem, or a .jsonl or .tsv table of them")
    parser.add_argument("--output", help="folder for all that is made (runs/ and the folder's name)")
    parser.add_argument("--model", default="ernie_vilg_tiny", help="what to start from (%(default)s)")
    parser.add_argument("--minutes", type=float, default=80.0, help="for all trainings together (%(default)s)")
    parser.add_argument("--least-psnr", type=float, default=24.0, metavar="DB",
                        help="the image tokenizer is trained when it gives the pictures back worse (%(default)s)")
    parser.add_argument("--steps", type=int, help="of every training, whatever time they take (as many as fit)")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    output = arguments.output or str(Path("runs") / Path(arguments.folder).expanduser().resolve().stem)
    from vilg.run.finetuning.page import PAGE, compare
    from vilg.run.finetuning.recipe import RecipeConfig, run_recipe

    recipe = run_recipe(RecipeConfig(arguments.folder, output, arguments.model, arguments.minutes, arguments.least_psnr,
                                     arguments.steps, arguments.seed))
    figures = compare(recipe)
    for name, value in figures.items():
        if name != "advice":
            print(f"{name:28} {value:.4f}" if isinstance(value, float) else f"{name:28} {value}")
    print("\n".join(figures["advice"]))
    print(f"look at {Path(output) / PAGE}; the model is {recipe.model}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
