"""What a user imports: load a model; draw, describe, answer, rank.

>>> import vilg
>>> model = vilg.load("ernie_vilg_tiny")
>>> model.text_to_image("一个红色的圆形", num_images=4, best_of=8)[0][0].save("circle.png")
>>> model.image_to_text(["circle.png"])
>>> model.answer(["circle.png"], ["图里有几个图形？"])
"""
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from vilg import config as configs
from vilg import release, runtime
from vilg.data.images import plain, read_image
from vilg.data.sample import BrokenSample
from vilg.data.transforms import centre_crop, from_model, to_model
from vilg.errors import DataError, VilgError
from vilg.generation.autoregressive import generate_images, generate_text
from vilg.generation.rerank import score_text
from vilg.generation.sampling import SamplingConfig, as_int, seed_each
from vilg.progress import progress as progress_bar
from vilg.release.kinds.bidirectional import ReleasedModel

Picture = str | Path | Image.Image | np.ndarray
# Rows of one decoding batch: large enough to fill the cores, small enough for a small machine.
DECODE_ROWS = 64
PATHS = ("two_stage", "end_to_end")


def load(name_or_directory: str | Path, device: str | None = None, cpu_math: str | None = None) -> "Pipeline":
    """Load a model that draws and describes, by its name in ``model_zoo/`` or by its folder.

    ``device``: "cpu", "gpu:0" …; ``cpu_math``: "fp32" or "bf16" products on a CPU. Both are the process's: models that
    were loaded before follow them, and a load without them changes neither. Raises CheckpointError when there is no
    such model or the folder is of another kind, and VilgError when the device is not there.
    """
    _prepare(device, cpu_math)
    return Pipeline(release.read(release.find_model(name_or_directory, "bidirectional"), "bidirectional"))


def load_any(name_or_directory: str | Path, device: str | None = None, cpu_math: str | None = None) -> Any:
    """Load a released folder of any kind, as :func:`load`: a :class:`Pipeline` for a bidirectional model, and the thing
    itself for the others (an image tokenizer, a feature network)."""
    _prepare(device, cpu_math)
    thing = release.read(release.find_model(name_or_directory))
    return Pipeline(thing) if isinstance(thing, ReleasedModel) else thing


def _prepare(device: str | None, cpu_math: str | None) -> None:
    if device:
        runtime.set_device(device)
    if cpu_math:
        checked = configs.from_dict(runtime.RuntimeConfig, {"cpu_math": cpu_math}, "load")
        runtime.set_cpu_math(checked.cpu_math)


class Pipeline:
    """A released model, ready to use; made by :func:`load`."""

    def __init__(self, released: ReleasedModel):
        self.name = released.name
        self.model, self.image_tokenizer = released.model, released.image_tokenizer
        self.text_tokenizer = released.text_tokenizer
        self.reconstructor = released.reconstructor
        self.sampling = configs.from_dict(SamplingConfig, released.sampling, f"{released.name}: sampling")

    def text_to_image(self, texts: str | Sequence[str], num_images: int = 1, seed: int | Sequence[int] = 0,
                      best_of: int | None = None, path: str = "two_stage",
                      known_image: Picture | Sequence[Picture] | None = None, known_rows: int | None = None,
                      known_mask: Picture | np.ndarray | None = None,
                      progress: bool | Callable[[int], object] = False,
                      **sampling: Any) -> list[list[Image.Image]]:
        """Draw ``num_images`` pictures for every text; the outer list follows ``texts``.

        Sample j of a text depends on the text, ``seed`` (one for all texts or one each), j and the settings, never on
        what is drawn beside it. With ``best_of`` that many are drawn and the ``num_images`` with the highest
        P(text | image) are kept, best first.
        ``known_image`` keeps a part of that picture (one for all texts or one each): its first ``known_rows`` rows of
        tokens, or the tokens that ``known_mask`` covers (a picture whose white parts are kept, or booleans
        [rows, columns]). ``path``: decode the codes ("two_stage") or the hidden vectors ("end_to_end", for models
        with a reconstructor). ``sampling``: any field of :class:`~vilg.generation.sampling.SamplingConfig`, such as
        ``temperature``; those left out are the model's own. ``progress``: show it, or a function that
        is called with 1 after every token, and ends the drawing by raising. Each picture's ``info`` holds prompt, seed,
        settings and model. Raises VilgError on unusable input.
        """
        texts = _listed(texts)
        num_images = as_int(num_images, "num_images")
        best_of = None if best_of is None else as_int(best_of, "best_of")
        if num_images < 1 or (best_of is not None and best_of < num_images):
            raise VilgError(f"num_images must be at least 1 and best_of at least num_images; got {num_images} and "
                            f"{best_of}")
        self._check_path(path)
        settings = self.sampling.over(sampling)
        known_codes, mask = self._known(known_image, known_rows, known_mask, len(texts))
        draws = best_of or num_images
        seeds = seed_each(seed, len(texts))
        batch = self.text_tokenizer.encode_prompts(texts, self.model.config.text_length, strict=True)
        rows = max(1, DECODE_ROWS // draws)
        parts = -(-len(texts) // rows) * -(-draws // DECODE_ROWS)
        bar = progress_bar(total=parts * math.prod(self.image_tokenizer.grid), desc="drawing", unit="token",
                           shown=progress is True)
        tell = progress if callable(progress) else bar.update
        results = []
        with paddle.no_grad(), bar:
            for start in range(0, len(texts), rows):
                part = slice(start, start + rows)
                ids, length = paddle.to_tensor(batch.ids[part]), paddle.to_tensor(batch.length[part])
                known = None if known_codes is None else known_codes[part]
                pictures, codes = self._draw(ids, length, draws, seeds[part], settings, known, mask, path, tell)
                for row, text in enumerate(texts[part]):
                    chosen, scores = self._best(ids[row:row + 1], length[row:row + 1], codes[row], num_images, best_of)
                    story = {"prompt": text, "model": self.name, "seed": seeds[start + row],
                             "path": path, **configs.to_dict(settings)}
                    results.append([_annotate(pictures[row][pick], story | {"sample": int(pick)} | score)
                                    for pick, score in zip(chosen, scores)])
        return results

    def __getattr__(self, name: str) -> Any:
        if name == "words":
            raise AttributeError("Pipeline.words is Pipeline.text_tokenizer since version 1.1")
        raise AttributeError(f"a pipeline has no {name!r}")

    def use_sampling(self, **settings: Any) -> None:
        """Make these the model's own sampling settings from here on; those left out or None stay as they are."""
        self.sampling = self.sampling.over(settings)

    def image_to_text(self, images: Picture | Sequence[Picture], max_tokens: int | None = None) -> list[str]:
        """A sentence about every picture, of ``max_tokens`` tokens (at least 1) where that is fewer than fit."""
        max_tokens = None if max_tokens is None else as_int(max_tokens, "max_tokens")
        codes = self.encode(images)
        prompts = paddle.full([codes.shape[0], 1], self.text_tokenizer.cls_id, dtype="int64")
        return self._write(codes, prompts, paddle.zeros([codes.shape[0]], dtype="int64"), max_tokens)

    def answer(self, images: Picture | Sequence[Picture], questions: str | Sequence[str]) -> list[str]:
        """The answer to question i about picture i; one picture may serve several questions,
        or one question several."""
        images, questions = _listed(images), _listed(questions)
        count = max(len(images), len(questions))
        if len(images) not in (1, count) or len(questions) not in (1, count):
            raise VilgError(f"{len(images)} pictures and {len(questions)} questions do not pair up; "
                            "give as many of each, or one of either")
        if not count:
            return []
        codes = self.encode(images)
        if len(images) != count:
            codes = codes.tile([count, 1])
        asked = self.text_tokenizer.encode_questions(questions * (count // len(questions)), None,
                                                     self.model.config.text_length, strict=True)
        return self._write(codes, paddle.to_tensor(asked.ids), paddle.to_tensor(asked.prefix), None)

    def rank(self, texts: str | Sequence[str], images: Picture | Sequence[Picture]) -> np.ndarray:
        """log P(text | image) by the same weights, for every pair: [texts, images]. Higher is better."""
        texts, codes = _listed(texts), self.encode(images)
        if not texts or not codes.shape[0]:
            return np.zeros([len(texts), codes.shape[0]], dtype=np.float32)
        batch = self.text_tokenizer.encode_prompts(texts, self.model.config.text_length, strict=True)
        ids, length = paddle.to_tensor(batch.ids), paddle.to_tensor(batch.length)
        return np.stack([self._score(ids[i:i + 1], length[i:i + 1], codes) for i in range(len(texts))])

    def encode(self, images: Picture | Sequence[Picture]) -> paddle.Tensor:
        """Pictures, centre-cropped and resized as in training → codes [B, n]."""
        images = _listed(images)
        if not images:
            return paddle.zeros([0, math.prod(self.image_tokenizer.grid)], dtype="int64")
        size = self.image_tokenizer.image_size
        arrays = np.stack([to_model(centre_crop(open_picture(image), size)) for image in images])
        with paddle.no_grad():
            return paddle.concat([self.image_tokenizer.encode(paddle.to_tensor(arrays[start:start + DECODE_ROWS]))
                                  for start in range(0, len(arrays), DECODE_ROWS)])

    def decode(self, codes: paddle.Tensor) -> list[np.ndarray]:
        """Codes [B, n] → pictures, uint8 [H, W, 3] each."""
        with paddle.no_grad():
            return [from_model(image) for start in range(0, codes.shape[0], DECODE_ROWS)
                    for image in self.image_tokenizer.decode(codes[start:start + DECODE_ROWS]).numpy()]

    def decode_hidden(self, hidden: paddle.Tensor, codes: paddle.Tensor) -> list[np.ndarray]:
        """Hidden vectors [B, n, D] that tokens ``codes`` [B, n] were predicted from → pictures, uint8 [H, W, 3] each:
        the end-to-end path. Raises VilgError for a model without a reconstructor."""
        self._check_path("end_to_end")
        with paddle.no_grad():
            return [from_model(image) for start in range(0, hidden.shape[0], DECODE_ROWS)
                    for image in self.image_tokenizer.picture_of(self.reconstructor(
                        hidden[start:start + DECODE_ROWS], codes[start:start + DECODE_ROWS])).numpy()]

    def _check_path(self, path: str) -> None:
        if path not in PATHS:
            raise VilgError(f"path is one of {', '.join(PATHS)}, not {path!r}")
        if path == "end_to_end" and self.reconstructor is None:
            raise VilgError(f"{self.name} has no reconstructor, so it cannot draw with path='end_to_end'; "
                            "use path='two_stage'")

    def _draw(self, ids, length, draws, seeds, sampling, known_codes, known_mask, path, tell):
        """Pictures [P][draws] of P texts, and their codes [P, draws, n]; many of one text in several batches."""
        pictures, codes = [[] for _ in seeds], []
        for first in range(0, draws, DECODE_ROWS):
            count = min(DECODE_ROWS, draws - first)
            drawn = generate_images(self.model, ids, length, num_images=count, first_sample=first, seeds=seeds,
                                    sampling=sampling, known_codes=known_codes, known_mask=known_mask,
                                    keep_hidden=path == "end_to_end", progress=tell)
            decoded = iter(self.decode_hidden(drawn.hidden, drawn.codes) if path == "end_to_end"
                           else self.decode(drawn.codes))
            for row in pictures:
                row += itertools.islice(decoded, count)
            codes.append(drawn.codes.reshape([len(seeds), count, -1]))
        return pictures, paddle.concat(codes, axis=1)

    def _best(self, ids, length, codes, num_images, best_of):
        if not best_of:
            return range(num_images), [{}] * num_images
        scores = self._score(ids, length, codes)
        order = np.argsort(-scores, kind="stable")[:num_images]
        return order, [{"log_p_text": float(scores[pick])} for pick in order]

    def _score(self, ids, length, codes) -> np.ndarray:
        with paddle.no_grad():
            return score_text(self.model, codes, ids.tile([codes.shape[0], 1]), length.tile([codes.shape[0]])).numpy()

    def _write(self, codes, prompts, prefix, max_tokens) -> list[str]:
        with paddle.no_grad():
            texts = []
            for start in range(0, codes.shape[0], DECODE_ROWS):
                part = slice(start, start + DECODE_ROWS)
                ids = generate_text(self.model, codes[part], prompts[part], prefix[part],
                                    end_id=self.text_tokenizer.sep_id, max_tokens=max_tokens)
                texts += [self.text_tokenizer.decode(row) for row in ids.numpy().tolist()]
        return texts

    def _known(self, image, rows, mask, texts):
        """Known codes [texts, n] and which of them to keep [n]; None and None without a picture."""
        if image is None:
            if rows is not None or mask is not None:
                raise VilgError("known_rows and known_mask say which part of known_image to keep; give that picture "
                                "too")
            return None, None
        height, width = self.image_tokenizer.grid
        if (rows is None) == (mask is None):
            raise VilgError("say which part of the picture to keep: either known_rows or known_mask")
        if rows is not None:
            if not 0 <= as_int(rows, "known_rows") <= height:
                raise VilgError(f"known_rows is {rows}, but the picture has {height} rows of tokens")
            keep = np.repeat(np.arange(height) < rows, width)
        else:
            keep = _token_mask(mask, height, width, self.image_tokenizer.image_size)
        images = _listed(image)
        if len(images) not in (1, texts):
            raise VilgError(f"{len(images)} known pictures for {texts} texts; give one for all or one each")
        codes = self.encode(images)
        if len(images) != texts:
            codes = codes.tile([texts, 1])  # [texts, n]
        return codes, paddle.to_tensor(keep)


def _listed(given: Any) -> list[Any]:
    """One text or picture, or several in a list, a tuple or the like → a list."""
    one = isinstance(given, (str, bytes, Image.Image)) or hasattr(given, "read") or getattr(given, "ndim", 1) != 1
    return [given] if one or not isinstance(given, Iterable) else list(given)


def open_picture(picture: Picture) -> np.ndarray:
    """A path, PIL picture or array → uint8 [H, W, 3], upright and on white as in training (:func:`plain`).
    Raises DataError naming the file."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise DataError(f"a picture array is uint8 [H, W, 3]; got {picture.dtype} {list(picture.shape)}")
        return picture
    if not isinstance(picture, (str, os.PathLike, Image.Image)) and not hasattr(picture, "read"):
        raise DataError(f"a picture is a path, a PIL picture or an array uint8 [H, W, 3]; got {type(picture).__name__}")
    try:
        return plain(picture) if isinstance(picture, Image.Image) else read_image(picture, str(picture))
    except BrokenSample as broken:
        raise DataError(f"{broken}; save it again or leave it out") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged image that PIL has not decoded yet makes decoders raise anything
        raise DataError(f"{picture}: not a whole image ({error}); save it again or leave it out") from None


def _annotate(picture: np.ndarray, info: dict[str, Any]) -> Image.Image:
    image = Image.fromarray(picture)
    image.info.update(info)
    return image


def _token_mask(mask: Picture | np.ndarray, rows: int, columns: int, size: int) -> np.ndarray:
    """Booleans [rows · columns]: tokens that lie wholly under the white part of a mask picture, or as given."""
    wanted = f"known_mask is a picture or booleans [{rows}, {columns}], one a token"
    if isinstance(mask, (list, tuple)):
        try:
            mask = np.array(mask)
        except ValueError:
            raise VilgError(f"{wanted}; got rows of several lengths") from None
    if isinstance(mask, np.ndarray) and mask.ndim != 3:
        if mask.dtype != bool or mask.shape != (rows, columns):
            raise VilgError(f"{wanted}; got {mask.dtype} {list(mask.shape)}")
        return mask.reshape(-1)
    white = centre_crop(open_picture(mask), size).min(axis=2) > 127
    return white.reshape(rows, size // rows, columns, size // columns).all(axis=(1, 3)).reshape(-1)
