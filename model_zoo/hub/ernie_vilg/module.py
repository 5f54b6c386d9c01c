"""PaddleHub's ernie_vilg, answered by a model on this machine instead of a hosted service."""
import argparse
import base64
import io
import logging
from typing import Any

import paddle
from paddlehub.module.module import moduleinfo, runnable, serving
from PIL import Image

from vilg.app import image_files as gallery, pipeline
from vilg.app.styles import RESOLUTIONS, STYLES, styled
from vilg.config import settings_of
from vilg.generation.sampling import SamplingConfig

logger = logging.getLogger("vilg.hub")
# How codes are drawn, as the pipeline names it; its top_k is left out beside topk, the number of pictures.
DRAWING = [one for one in settings_of(SamplingConfig) if one.name != "top_k"]


@moduleinfo(name="ernie_vilg", version="2.0.0", type="image/text_to_image", author="vilg", author_email="",
            summary="Draws pictures from Chinese text with an ERNIE-ViLG model that runs on this machine.")
class ErnieVilG:
    """``hub.Module(name="ernie_vilg")``, or ``hub.Module(directory="model_zoo/hub/ernie_vilg")``."""

    def __init__(self, ak: str | None = None, sk: str | None = None, model: str = "ernie_vilg_tiny"):
        """``model``: the name of a released model, or its folder. ``ak``, ``sk``: the service's keys, which nothing
        needs any more."""
        # PaddleHub calls methods of a module in static-graph mode.
        paddle.disable_static()
        self.pipeline = pipeline.load(model)
        _note_keys(ak, sk)

    def generate_image(self, text_prompts: str | list[str], style: str | None = STYLES[0],
                       resolution: str | None = None, topk: int | None = 6, visualization: bool = True,
                       output_dir: str = "ernievilg_output", seed: int = 0, **sampling: Any) -> list[Image.Image]:
        """``topk`` pictures for every prompt, one prompt after the other;
        written to ``output_dir`` if ``visualization``.

        The same prompts, settings and ``seed`` draw the same pictures. ``style`` is put behind the prompt, where the
        model reads so many words; where it does not, a warning says so and the prompt is drawn without. ``resolution``
        is checked and has no effect: a model draws at its own size. ``sampling``: ``temperature`` and the other
        settings of the pipeline; those left out are the model's own. Raises ValueError for another style or resolution,
        VilgError for a prompt that is empty or longer than the model reads and for a setting out of its range.
        """
        paddle.disable_static()
        style = _one_of("style", style, STYLES)
        if resolution is not None:
            side = self.pipeline.image_tokenizer.image_size
            logger.warning("resolution %s has no effect: this model draws %d×%d pixels",
                           _one_of("resolution", resolution, RESOLUTIONS), side, side)
        prompts = [text_prompts] if isinstance(text_prompts, str) else list(text_prompts)
        told = [styled(self.pipeline, prompt, style) for prompt in prompts]
        drawn = self.pipeline.text_to_image(told, num_images=6 if topk is None else topk, seed=seed, **sampling)
        if visualization:
            gallery.write_pictures(told, drawn, output_dir)
        return [picture for row in drawn for picture in row]

    @runnable
    def run_cmd(self, argvs: list[str]) -> list[Image.Image]:
        """``hub run ernie_vilg --text_prompts 一个红色的圆形``."""
        parser = argparse.ArgumentParser(prog="hub run ernie_vilg", description=__doc__)
        parser.add_argument("--text_prompts", nargs="+", required=True, help="what to draw, in Chinese")
        parser.add_argument("--style", default=STYLES[0], choices=STYLES, help="put behind the prompt (%(default)s)")
        parser.add_argument("--resolution", choices=RESOLUTIONS, help="has no effect: a model draws at its own size")
        parser.add_argument("--ak", help="a key of the service; nothing needs it any more")
        parser.add_argument("--sk", help="as --ak")
        parser.add_argument("--visualization", type=_truth, default=True, help="write the pictures (%(default)s)")
        parser.add_argument("--topk", type=int, default=6, help="pictures a prompt (%(default)s)")
        parser.add_argument("--output_dir", default="ernievilg_output", help="where they are written (%(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same picture (%(default)s)")
        for one in DRAWING:
            parser.add_argument(f"--{one.name}", type=one.type, help=f"{one.meaning} (the model's own)")
        given = vars(parser.parse_args(argvs))
        _note_keys(given.pop("ak"), given.pop("sk"))
        return self.generate_image(**given)

    @serving
    def serving_method(self, text_prompts: str | list[str], **settings: Any) -> list[str]:
        """As :meth:`generate_image`, the pictures as base64 PNGs; nothing is written on the server."""
        settings = {name: value for name, value in settings.items() if name not in ("visualization", "output_dir")}
        return [_base64(picture) for picture in self.generate_image(text_prompts, visualization=False, **settings)]


def _one_of(name: str, given: str | None, choices: tuple[str, ...]) -> str:
    if given is None:
        return choices[0]
    if given not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {given!r}")
    return given


def _note_keys(ak: str | None, sk: str | None) -> None:
    if ak or sk:
        logger.warning("ak and sk have no effect: the model runs on this machine, and no service is asked")


def _truth(text: str) -> bool:
    """A boolean of the command line. Raises ArgumentTypeError, which argparse reports."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1")


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    gallery.save_png(picture, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
