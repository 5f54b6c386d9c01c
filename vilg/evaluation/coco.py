"""Pictures drawn from Chinese prompts of MS-COCO, scored as papers do (ERNIE-ViLG, arXiv 2112.15283, section 4): drawn,
re-ranked, and compared with real images by FID, and by KID, Inception Score, precision and recall beside it."""
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

from vilg import config as configs
from vilg.app.image_files import save_whole
from vilg.app.pipeline import DECODE_ROWS, Pipeline
from vilg.data.benchmarks.coco import Prompt, Prompts, image_files
from vilg.errors import DataError
from vilg.evaluation.features import (
    Features,
    Protocol,
    Reference,
    image_features,
    read_reference,
    reference_of,
    warn_of_few,
)
from vilg.evaluation.files import claim, write_whole
from vilg.evaluation.report import Score
from vilg.metrics.fidelity import SEED, inception_score, kernel_distance, precision_recall
from vilg.metrics.frechet import frechet_distance, gaussian
from vilg.models.inception import Inception
from vilg.progress import progress
from vilg.weights.files import fingerprint

log = logging.getLogger("vilg.evaluation")


class Encoder(Interface):
    """A dual encoder (:class:`vilg.app.dual_encoder.DualEncoderPipeline`) that ranks pictures and scores them."""

    name: str
    fingerprint: str

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [texts, D]."""

    def embed_image(self, images: Sequence[Path]) -> np.ndarray:
        """Unit vectors [images, D]."""

    def similarity(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> np.ndarray:
        """[texts, images], higher where they fit."""


def text_image_score(encoder: Encoder, prompts: Prompts, files: list[Path], drawn: str) -> Iterator[Score]:
    """``clip_score``: the mean of 100 · max(0, cosine) of every prompt and its picture, in order (Hessel et al. 2021,
    arXiv 2104.08718, without its factor of 2.5), by a dual encoder."""
    cosines = []
    with progress(total=len(files), desc="text and image", unit="picture") as bar:
        for start in range(0, len(files), DECODE_ROWS):
            part = files[start:start + DECODE_ROWS]
            texts = [prompt.caption for prompt in prompts.prompts[start:start + len(part)]]
            cosines.append((encoder.embed_text(texts) * encoder.embed_image(part)).sum(1))  # [B, D] → [B]
            bar.update(len(part))
    value = 100 * float(np.maximum(np.concatenate(cosines), 0).mean())
    yield Score("clip_score", value, f"clip score, 100 max(0, cosine); {encoder.name} {encoder.fingerprint[:12]}; "
                f"{len(files)} images {drawn}", "clip_score")


def draw_prompts(pipeline: Pipeline, prompts: Prompts, output: Path, best_of: int = 1, seed: int = 0,
                 count: int | None = None, judge: Encoder | None = None) -> list[Path]:
    """Draw every prompt, or the first ``count``, into ``output/pictures``, the best of ``best_of`` by ``judge``, a dual
    encoder as the paper's, or without one by P(text | image).

    Goes on where an earlier run of the same settings was stopped, at any picture: each depends on its prompt's text,
    number and ``seed`` alone. ``output/items.jsonl`` lists them for people to rate. Raises ConfigError for a folder of
    other settings, DataError for a prompt that is longer than the model reads.
    """
    chosen = prompts.prompts[:count]
    _refuse_long(pipeline, chosen)
    claim(output, {"task": "coco", "model": pipeline.name, "weights": fingerprint(
        {**pipeline.model.state_dict(), **{f"image.{name}": value for name, value
                                           in pipeline.image_tokenizer.state_dict().items()}}),
        "prompts": prompts.digest, "best_of": best_of, "seed": seed, "sampling": configs.to_dict(pipeline.sampling),
        "judge": judge.fingerprint if judge and best_of > 1 else "P(text | image)"})
    files = [output / "pictures" / f"{number:05d}-{prompt.image_id}.png" for number, prompt in enumerate(chosen)]
    due = [number for number, file in enumerate(files) if not file.is_file()]
    rows, ranked = max(1, DECODE_ROWS // best_of), best_of if best_of > 1 else None
    (output / "pictures").mkdir(exist_ok=True)
    with progress(total=len(files), initial=len(files) - len(due), desc="pictures", unit="picture") as bar:
        for start in range(0, len(due), rows):
            part = due[start:start + rows]
            # Seeds of their own, so that prompts do not share their luck.
            drawn = pipeline.text_to_image([chosen[number].caption for number in part], best_of=ranked,
                                           judge=judge if ranked else None,
                                           seed=[seed * 1_000_003 + number for number in part])
            for number, row in zip(part, drawn):
                save_whole(row[0], files[number])
            bar.update(len(part))
    lines = [json.dumps({"item": file.stem, "system": pipeline.name, "image": f"pictures/{file.name}",
                         "text": prompt.caption}, ensure_ascii=False) for file, prompt in zip(files, chosen)]
    write_whole(output / "items.jsonl", ("\n".join(lines) + "\n").encode())
    return files


def _refuse_long(pipeline: Pipeline, prompts: list[Prompt]) -> None:
    """Before hours of drawing, and not after them."""
    room = pipeline.model.config.text_length
    cut = pipeline.text_tokenizer.encode_batch([prompt.caption for prompt in prompts], room).cut
    long = np.flatnonzero(cut)
    if len(long):
        first = prompts[long[0]]
        raise DataError(f"{len(long)} of {len(prompts)} prompts are longer than this model reads, such as image "
                        f"{first.image_id}'s {first.caption!r}, by {int(cut[long[0]])} tokens; shorten them or leave "
                        "them out")


def find_reference(given: str | Path, network: Inception, protocol: Protocol, cache: Path) -> Reference:
    """The reference of an .npz of {mu, sigma}, or of the images of a folder (of its ``val2014``, where it has one)."""
    if str(given).endswith(".npz"):
        return read_reference(given, protocol)
    return reference_of(image_features(image_files(given), network, protocol, cache, "reference"))


def score_images(features: Features, reference: Reference, protocol: Protocol, drawn: str, subset_size: int = 1000
                 ) -> Iterator[Score]:
    """FID, IS and, where the reference has features, KID, precision and recall, each with its signature; ``drawn`` says
    where the images come from. What too few images do not allow is left out with a warning that says so."""
    count = len(features.pool)
    warn_of_few(count, "the set of images")
    base = f"{protocol.signature}; {count} images {features.digest}, {drawn}"
    against = f"{base}; reference {reference.signature}"
    yield Score("fid", frechet_distance(gaussian(features.pool), reference.gaussian), f"fid; {against}", "fid")
    parts = [_inception_scores(features, protocol, base)]
    if reference.features is None:
        log.warning("KID, precision and recall are left out: the reference is mu and sigma, without features")
    else:
        parts += [_kernel_scores(features, reference.features, against, subset_size),
                  _precision_scores(features, reference.features, against)]
    for part in parts:
        try:
            yield from part
        except DataError as error:
            log.warning("left out: %s", error)


def _inception_scores(features: Features, protocol: Protocol, base: str) -> Iterator[Score]:
    shuffled = None if protocol.name == "dm-gan" else SEED
    found = inception_score(features.logits, shuffle_seed=shuffled)
    order = "in order" if shuffled is None else f"shuffled, seed {shuffled}"
    signature = f"inception score; {base}; 10 splits {order}"
    yield Score("inception_score", found.mean, signature, "inception_score")
    yield Score("inception_score_std", found.deviation, signature, "inception_score")


def _kernel_scores(features: Features, real: np.ndarray, against: str, subset_size: int) -> Iterator[Score]:
    found = kernel_distance(features.pool, real, subset_size=subset_size)
    signature = f"kid; {against}; 100 subsets of {subset_size}, seed {SEED}"
    yield Score("kid", found.mean, signature, "kid")
    yield Score("kid_std", found.deviation, signature, "kid")


def _precision_scores(features: Features, real: np.ndarray, against: str) -> Iterator[Score]:
    found = precision_recall(features.pool, real)
    yield Score("precision", found.precision, f"precision; {against}; k 3", "precision")
    yield Score("recall", found.recall, f"recall; {against}; k 3", "recall")
