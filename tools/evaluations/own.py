"""scenes, emoji, styles, tokenizer: this project's own worlds, for a model that draws."""
import argparse

from evaluations.common import load, show_figures
from vilg import cli
from vilg.generation.sampling import WAYS


def add(tasks, common: argparse.ArgumentParser, drawing: argparse.ArgumentParser) -> None:
    """Offer the four commands."""
    emoji_data = argparse.ArgumentParser(add_help=False)
    emoji_data.add_argument("--data", default="data/emoji",
                            help="folder written by tools/prepare_emoji.py (%(default)s)")
    scenes = tasks.add_parser("scenes", parents=[common, drawing], help="truthful drawings, captions and answers")
    scenes.add_argument("--count", type=int, default=500, help="scenes a split (%(default)s)")
    scenes.add_argument("--best-of", type=int, default=8,
                        help="pictures a caption for the re-ranked figure (%(default)s)")
    scenes.add_argument("--trained-on", metavar="CONFIG", help="run config whose scenes the model learned from, such "
                        "as configs/vilg/tiny/pictures.yaml; they take a minute to make")
    emoji = tasks.add_parser("emoji", parents=[common, drawing, emoji_data], help="recognisable emoji, exact names")
    emoji.add_argument("--count", type=int, help="emoji at most (all)")
    styles = tasks.add_parser("styles", parents=[common, drawing], help="things in styles, asked for and named")
    styles.add_argument("--data", default="data/styles", help="folder written by tools/prepare_styles.py (%(default)s)")
    styles.add_argument("--count", type=int, default=500, help="trained cells and untrained ones (%(default)s of each)")
    styles.add_argument("--encoder", default="ernie_vil_tiny", metavar="MODEL",
                        help="dual encoder that compares drawings as well; none for pixels alone (%(default)s)")
    styles.add_argument("--sheet", metavar="PNG", help="also write a sheet of right and wrong drawings")
    tokenizer = tasks.add_parser("tokenizer", parents=[common, emoji_data], help="what the image tokenizer keeps")
    tokenizer.add_argument("--count", type=int, default=500, help="scenes (%(default)s)")
    for part, run in ((scenes, run_scenes), (emoji, run_emoji), (styles, run_styles), (tokenizer, run_tokenizer)):
        part.set_defaults(run=run)


def run_scenes(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.scenes import scenes_figures

    model = _drawer(arguments)
    show_figures(arguments, model.name, scenes_figures(model, arguments.count, arguments.seed, arguments.best_of,
                                                       arguments.trained_on))


def run_emoji(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.emoji import emoji_figures

    model = _drawer(arguments)
    show_figures(arguments, model.name, emoji_figures(model, arguments.data, arguments.seed, arguments.count))


def run_styles(arguments: argparse.Namespace) -> None:
    if arguments.sheet:
        cli.check_file(arguments.sheet, "--sheet")
    from vilg.app import pipeline
    from vilg.evaluation.styles import drawn_figures

    model = _drawer(arguments)
    encoder = None if arguments.encoder == "none" else pipeline.load_encoder(arguments.encoder)
    show_figures(arguments, model.name, drawn_figures(model, arguments.data, arguments.seed, arguments.count, encoder,
                                                      arguments.sheet))


def run_tokenizer(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.tokenizer import tokenizer_figures

    model = load(arguments)
    show_figures(arguments, model.name, tokenizer_figures(model, arguments.data, arguments.seed, arguments.count))


def _drawer(arguments: argparse.Namespace):
    model = load(arguments)
    model.use_sampling(**cli.settings_given(arguments, *WAYS))
    return model
