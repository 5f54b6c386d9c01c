"""From a folder of pictures with captions to a model that draws and describes such: one recipe, resumable at any point.

Every part leaves its result in the output; the same command goes on behind what is there.
"""
import dataclasses
import json
import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from vilg import config as configs
from vilg import release
from vilg.data.transforms import from_model, to_model
from vilg.errors import CheckpointError, ConfigError
from vilg.metrics.pictures import psnr
from vilg.release.kinds.bidirectional import ReleasedModel
from vilg.run.build import RunConfig, build_trainer, load_run
from vilg.run.finetuning.folder import TRAIN, Looked, look, stack, write_tables
from vilg.tokenizers.text.characters import common_characters
from vilg.tokenizers.text.vocab_file import write_vocab
from vilg.tokenizers.text.vocabulary import extend_vocab

log = logging.getLogger("vilg.finetuning")
RECIPE = "finetune.json"
PROBE_STEPS = 8
TOKENIZER_SHARE = 0.3
"""Of the time, for an image tokenizer that has to be trained."""
MOST_STEPS, LEAST_STEPS = 6000, 20
MOST_MEASURED = 100
BATCH = 16


@dataclass
class RecipeConfig:
    """``minutes`` for all trainings; ``least_psnr``: dB that the image tokenizer must give these pictures back with, or
    it is trained further; ``steps``: of either training, where those shall not follow from the minutes."""

    folder: str
    output: str
    model: str = "ernie_vilg_tiny"
    minutes: float = 80.0
    least_psnr: float = 24.0
    steps: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise ConfigError for numbers that cannot be meant."""
        if not (self.minutes > 0 and math.isfinite(self.minutes)) or (self.steps is not None and self.steps < 1):
            raise ConfigError(f"--minutes {self.minutes:g} and --steps {self.steps} are above 0")
        if not 0 <= self.least_psnr <= 100 or self.seed < 0:
            raise ConfigError(f"--least-psnr {self.least_psnr:g} is in dB, from 0 to 100, and --seed not negative")


@dataclass
class Recipe:
    """What the parts found and made: figures by name, and the released folder at the end."""

    config: RecipeConfig
    start: Path
    model: Path
    looked: Looked
    figures: dict[str, Any]


def run_recipe(config: RecipeConfig) -> Recipe:
    """All parts but the page: look, hold out, extend the vocabulary, train the image tokenizer where it is needed,
    train the model. Raises DataError for a folder with too little, CheckpointError for a model to start from that is
    none."""
    config.check()
    output, start = Path(config.output), release.find_model(config.model, "bidirectional")
    released: ReleasedModel = release.read(start, "bidirectional")
    _same_work(output, config, start)
    looked = look(config.folder, released.image_tokenizer.image_size)
    figures: dict[str, Any] = {"pictures": len(looked.train) + len(looked.held), "held_out": len(looked.held)}
    output.mkdir(parents=True, exist_ok=True)
    (output / RECIPE).write_text(json.dumps(_mark(config, start)), encoding="utf-8")
    write_tables(looked, output)
    vocabulary, size = _vocabulary(released, looked, output, figures)
    tokenizer = _image_tokenizer(config, released, start, looked, output, figures)
    model = _train(output / "model_run", _model_config(config, released, start, tokenizer, vocabulary, size, output),
                   config, config.minutes * (1 - (TOKENIZER_SHARE if tokenizer != start / "image_tokenizer" else 0)))
    return Recipe(config, start, model, looked, figures)


def reconstruction(tokenizer: Any, pictures: np.ndarray) -> float:
    """PSNR in dB, mean over pictures uint8 [N, S, S, 3], of what an image tokenizer gives back."""
    tokenizer.eval()
    with paddle.no_grad():
        values = [psnr(picture, from_model(tokenizer.decode(tokenizer.encode(paddle.to_tensor(
            to_model(picture)[None]))).numpy()[0])) for picture in pictures]
    return float(np.mean(np.minimum(values, 99.0)))


def _mark(config: RecipeConfig, start: Path) -> dict[str, Any]:
    return {"folder": str(Path(config.folder).expanduser().resolve()), "seed": config.seed,
            "start": str(release.describe(start)[0].get("fingerprint", start))}


def _same_work(output: Path, config: RecipeConfig, start: Path) -> None:
    """Raise CheckpointError where the output holds the work on another folder or from another model."""
    path = output / RECIPE
    if not path.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise CheckpointError(f"{output}: holds other files; name another folder with --output")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{path}: is damaged; name another folder with --output") from None
    now = _mark(config, start)
    for key in now:
        if before.get(key) != now[key]:
            raise CheckpointError(f"{output}: holds the work of {key} {before.get(key)}, and now it is {now[key]}; "
                                  "name another folder with --output")


def _vocabulary(released: ReleasedModel, looked: Looked, output: Path, figures: dict[str, Any]
                ) -> tuple[Path, int]:
    """The model's vocabulary with the characters that the texts bring, and its size."""
    words, texts = released.text_tokenizer, looked.texts()
    unknown = words.tally(texts).unknown
    tokens = extend_vocab(words.tokens, texts, words.lowercase, common_characters())
    folder = output / "vocabulary"
    write_vocab(folder, tokens, words.lowercase, words.special)
    figures |= {"unknown_characters": len(unknown), "new_tokens": len(tokens) - len(words.tokens)}
    if unknown:
        named = " ".join(word for word, _ in unknown.most_common(12))
        log.info("%d words of the captions were not known and are learned now: %s", len(unknown), named)
    return folder, len(tokens)


def _image_tokenizer(config: RecipeConfig, released: ReleasedModel, start: Path, looked: Looked, output: Path,
                     figures: dict[str, Any]) -> Path:
    """The folder of the image tokenizer: the model's own, or that one trained further on these pictures."""
    own = start / "image_tokenizer"
    held = stack(looked.held, MOST_MEASURED)
    figures["psnr_before"] = figures["psnr"] = reconstruction(released.image_tokenizer, held)
    if figures["psnr_before"] >= config.least_psnr:
        log.info("the image tokenizer gives these pictures back with %.1f dB, at least %.1f", figures["psnr_before"],
                 config.least_psnr)
        return own
    log.info("the image tokenizer gives these pictures back with %.1f dB, less than %.1f, and is trained on them",
             figures["psnr_before"], config.least_psnr)
    shape = configs.to_dict(released.image_tokenizer.config)
    pixels = shape["kind"] != "dvae"
    run = {"name": "image_tokenizer", "seed": config.seed, "output": str(output / "image_tokenizer_run"),
           "task": {"kind": "image_tokenizer", "tokenizer": shape, "init_from": str(own),
                    "loss": {"kind": "pixels", "l1": 1.0, "l2": 2.0, "perceptual": "none"} if pixels
                    else {"kind": "likelihood"}},
           "data": {"sources": [{"kind": "table", "path": str(output / TRAIN)}]},
           "optim": {"lr": 1e-3, "beta2": 0.99, "weight_decay": 0.0, "warmup_steps": 20, "final_lr": 1e-5},
           "train": {"batch_size": BATCH, "log_every": 10, "preview_every": 0, "checkpoint_every": 100, "keep_last": 2,
                     "ema_decay": 0.98}}
    folder = _train(output / "image_tokenizer_run", run, config, config.minutes * TOKENIZER_SHARE)
    figures["psnr"] = reconstruction(release.read(folder, "image_tokenizer"), held)
    return folder


def _model_config(config: RecipeConfig, released: ReleasedModel, start: Path, tokenizer: Path, vocabulary: Path,
                  size: int, output: Path) -> dict[str, Any]:
    shape = configs.to_dict(released.model.config) | {"vocab_size": size}
    other = tokenizer != start / "image_tokenizer"
    sampling = configs.to_dict(released.sampling) if dataclasses.is_dataclass(released.sampling) else released.sampling
    return {"name": "finetuned", "seed": config.seed, "output": str(output / "model_run"),
            "task": {"kind": "bidirectional", "model": shape, "image_tokenizer": str(tokenizer),
                     "vocabulary": str(vocabulary), "init_from": str(start), "other_codes": other},
            "data": {"sources": [{"kind": "table", "path": str(output / TRAIN)}]},
            "optim": {"lr": 1e-3 if other else 5e-4, "beta2": 0.98, "weight_decay": 0.01, "warmup_steps": 20,
                      "final_lr": 1e-5, "clip_norm": 1.0},
            "train": {"batch_size": BATCH, "log_every": 10, "preview_every": 0, "checkpoint_every": 100, "keep_last": 2,
                      "ema_decay": 0.98},
            "sampling": sampling}


def _train(folder: Path, values: dict[str, Any], config: RecipeConfig, minutes: float) -> Path:
    """A run of these values, begun or gone on with, whose steps fit the minutes; its released folder."""
    model = folder / "model"
    if (model / "model.yaml").is_file():
        log.info("%s: is there already", model)
        return model
    path = folder.with_name(f"{folder.name}.yaml")
    if not path.is_file():  # else it was begun before, and goes on as it began
        steps = config.steps or _steps_in(values, folder, minutes * 60)
        values["train"] |= {"steps": steps, "resume": "auto"}
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    summary = build_trainer(load_run(path)).fit()
    if summary.stopped:
        raise KeyboardInterrupt
    return model


def _steps_in(values: dict[str, Any], folder: Path, seconds: float) -> int:
    """How many steps fit into the seconds, by the rate of some that are thrown away."""
    probe = folder.with_name(f"{folder.name}_probe")
    train = values["train"] | {"steps": 2, "checkpoint_every": 0}
    times = []
    for steps in (2, 2 + PROBE_STEPS):  # what begins and ends a run is in both
        shutil.rmtree(probe, ignore_errors=True)
        run = configs.from_dict(RunConfig, values | {"output": str(probe), "train": train | {"steps": steps}})
        began = time.monotonic()
        build_trainer(run).fit()
        times.append(time.monotonic() - began)
    shutil.rmtree(probe, ignore_errors=True)
    step = max(1e-3, (times[1] - times[0]) / PROBE_STEPS)
    steps = int(min(MOST_STEPS, max(LEAST_STEPS, 0.9 * seconds / step)))
    log.info("%.2f s a step: %d steps, about %.0f minutes", step, steps, steps * step / 60)
    return steps


