"""What a user imports: load a model; draw, describe, answer, rank.

>>> import vilg
>>> model = vilg.load("ernie_vilg_tiny")
>>> model.text_to_image("一个红色的圆形", num_images=4, best_of=8)[0][0].save("circle.png")
>>> model.image_to_text(["circle.png"])
>>> model.answer(["circle.png"], ["图里有几个图形？"])
"""
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from vilg import config as configs
from vilg import release, runtime
from vilg.app.dual_encoder import Matcher
from vilg.app.half import in_dtype
from vilg.app.image_files import annotate
from vilg.app.inputs import Picture, counts, listed, open_picture, token_mask
from vilg.app.judge import name_of, ready_judge
from vilg.data.transforms import centre_crop, from_model, to_model
from vilg.errors import CheckpointError, VilgError
from vilg.generation.autoregressive import generate_images, generate_text
from vilg.generation.mask_predict import check_steps, predict_images
from vilg.generation.rerank import score_text
from vilg.generation.sampling import DrawingConfig, MaskPredictConfig, SamplingConfig, as_int, seed_each
from vilg.kernels.onednn import precision
from vilg.models.two_level.model import TwoLevelTransformer
from vilg.progress import progress as progress_bar
from vilg.release.kinds.bidirectional import ReleasedModel
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
from vilg.tokenizers.text.wordpiece import TextBatch

# Rows of one decoding batch: large enough to fill the cores, small enough for a small machine.
DECODE_ROWS = 64
PATHS = ("two_stage", "end_to_end")
DRAWERS = ("bidirectional", "two_level")
"""The kinds of released folders that draw and describe."""


def load(name_or_directory: str | Path, device: str | None = None, cpu_math: str | None = None,
         dtype: str | None = None) -> "Pipeline":
    """Load a model that draws and describes, by its name in ``model_zoo/`` or by its folder.

    ``device``: "cpu", "gpu:0" …; ``cpu_math``: "fp32", "bf16" or "int8" products on a CPU. Both are the process's:
    models that were loaded before follow them (but for int8, which is taken at loading), and a load without them
    changes neither. ``dtype``: "bfloat16" or "float16" weights of this model, on a device that computes in them.
    Raises CheckpointError when there is no such model or the folder is of another kind, and VilgError when the device
    is not there or lacks the ``dtype``.
    """
    runtime.prepare(device, cpu_math)
    folder = release.find_model(name_or_directory, *DRAWERS)
    kind = release.describe(folder)[0]["kind"]
    return Pipeline(in_dtype(release.read(folder, kind if kind in DRAWERS else DRAWERS[0]), dtype))


def load_any(name_or_directory: str | Path, device: str | None = None, cpu_math: str | None = None,
             dtype: str | None = None) -> Any:
    """Load a released folder of any kind, as :func:`load`: a :class:`Pipeline` for a bidirectional model, a
    :class:`~vilg.app.dual_encoder.Matcher` for a dual encoder, and the thing itself for the others (an image tokenizer,
    a feature network)."""
    runtime.prepare(device, cpu_math)
    thing = in_dtype(release.read(release.find_model(name_or_directory)), dtype)
    offered = next((offer for kind, offer in _OFFERS.items() if isinstance(thing, kind)), None)
    return thing if offered is None else offered(thing)


def load_encoder(name_or_directory: str | Path, device: str | None = None, cpu_math: str | None = None) -> Any:
    """Load a dual encoder, as :func:`load`; it has ``embed_text``, ``embed_image`` and ``similarity``. Raises
    CheckpointError when the folder is of another kind."""
    thing = load_any(name_or_directory, device, cpu_math)
    if not hasattr(thing, "similarity"):
        raise CheckpointError(f"{name_or_directory}: is no dual encoder, which compares texts and images, but "
                              f"{type(thing).__name__}; name one, such as ernie_vil_tiny")
    return thing


class Pipeline:
    """A released model, ready to use; made by :func:`load`."""

    def __init__(self, released: ReleasedModel):
        self.name = released.name
        self.model, self.image_tokenizer = released.model, released.image_tokenizer
        self.text_tokenizer = released.text_tokenizer
        self.reconstructor = released.reconstructor
        if precision.int8():
            self.model.round_to_int8()
        self.features = released.reader
        settings = MaskPredictConfig if isinstance(released.model, TwoLevelTransformer) else SamplingConfig
        self.sampling = configs.from_dict(settings, released.sampling, f"{released.name}: sampling")

    def text_to_image(self, texts: str | Sequence[str], num_images: int = 1, seed: int | Sequence[int] = 0,
                      best_of: int | None = None, judge: Any = None, path: str = "two_stage",
                      known_image: Picture | Sequence[Picture] | None = None, known_rows: int | None = None,
                      known_mask: Picture | np.ndarray | None = None, progress: bool | Callable[[int], object] = False,
                      after_step: Callable[[int, list[np.ndarray]], object] | None = None,
                      **sampling: Any) -> list[list[Image.Image]]:
        """Draw ``num_images`` pictures for every text; the outer list follows ``texts``.

        Sample j of a text depends on the text, ``seed`` (one for all texts or one each), j and the settings, never on
        what is drawn beside it. With ``best_of`` that many are drawn and the ``num_images`` that fit best are kept,
        best first: those with the highest P(text | image), or those most similar to the text by ``judge``, a dual
        encoder (its name, its folder, or what :func:`load_encoder` gives).
        ``known_image`` keeps a part of that picture (one for all texts or one each): its first ``known_rows`` rows of
        tokens, or the tokens that ``known_mask`` covers (a picture whose white parts are kept, or booleans
        [rows, columns]). ``path``: decode the codes ("two_stage") or the hidden vectors ("end_to_end", for models
        with a reconstructor). ``sampling``: any field of the model's settings (``SamplingConfig``, or
        ``MaskPredictConfig`` where ``after_step(step, pictures)`` is called with all pictures of a batch as they are
        after every step); those left out are the model's own. ``progress``: show it, or a function that is called with
        1 after every token or step, and ends the drawing by raising. Each picture's ``info`` holds prompt, seed,
        settings, model, judge, score and, where the vocabulary lacks words, ``unknown_words``. Raises VilgError.
        """
        texts, (num_images, best_of) = listed(texts), counts(num_images, best_of)
        self._check_path(path)
        judge = ready_judge(judge, texts, best_of, load_encoder)
        settings = self._settings(sampling, after_step)
        known_codes, mask = self._known(known_image, known_rows, known_mask, len(texts))
        draws, seeds = best_of or num_images, seed_each(seed, len(texts))
        batch = self.text_tokenizer.encode_prompts(texts, self.model.config.text_length, strict=True)
        results, rows = [], max(1, DECODE_ROWS // draws)
        parts = -(-len(texts) // rows) * -(-draws // DECODE_ROWS)
        unit = ("step", settings.steps) if self._masked else ("token", self.model.layout.image)
        bar = progress_bar(total=parts * unit[1], desc="drawing", unit=unit[0], shown=progress is True)
        tell = progress if callable(progress) else bar.update
        with paddle.no_grad(), bar:
            for start in range(0, len(texts), rows):
                part = slice(start, start + rows)
                ids, length = paddle.to_tensor(batch.ids[part]), paddle.to_tensor(batch.length[part])
                known = None if known_codes is None else known_codes[part]
                pictures, codes = self._draw(ids, length, draws, seeds[part], settings, known, mask, path, tell,
                                             after_step)
                results += [self.chosen(text, batch, start + row, pictures[row], codes[row], seeds[start + row],
                                        settings, num_images, best_of, judge, path)
                            for row, text in enumerate(texts[part])]
        return results

    def chosen(self, text: str, words: TextBatch, row: int, pictures: Sequence[np.ndarray], codes: paddle.Tensor,
               seed: int, settings: DrawingConfig, num_images: int, best_of: int | None = None, judge: Any = None,
               path: str = "two_stage") -> list[Image.Image]:
        """Pictures of a text, row ``row`` of ``words``, and their codes [B, n] → the best, as :meth:`text_to_image`
        returns them."""
        ids, length = (paddle.to_tensor(each[row:row + 1]) for each in (words.ids, words.length))  # [1, m], [1]
        story = {"prompt": text, "model": self.name, "seed": seed, "path": path, **configs.to_dict(settings)}
        story |= {"unknown_words": " ".join(words.unknown[row])} if words.unknown[row] else {}
        return [annotate(pictures[pick], story | {"sample": int(pick)} | score)
                for pick, score in zip(*self._best(text, (ids, length, codes), pictures, num_images, best_of, judge))]

    def __getattr__(self, name: str) -> Any:
        if name == "words":
            raise AttributeError("Pipeline.words is Pipeline.text_tokenizer since version 1.1")
        raise AttributeError(f"a pipeline has no {name!r}")

    def use_sampling(self, **settings: Any) -> None:
        """Make these the model's own sampling settings from here on; those left out or None stay as they are."""
        self.sampling = self._settings(settings, None)

    def image_to_text(self, images: Picture | Sequence[Picture], max_tokens: int | None = None) -> list[str]:
        """A sentence about every picture, of ``max_tokens`` tokens (at least 1) where that is fewer than fit."""
        max_tokens = None if max_tokens is None else as_int(max_tokens, "max_tokens")
        seen = self.read(images)
        prompts = paddle.full([seen.shape[0], 1], self.text_tokenizer.cls_id, dtype="int64")
        return self._write(seen, prompts, paddle.zeros([seen.shape[0]], dtype="int64"), max_tokens)

    def answer(self, images: Picture | Sequence[Picture], questions: str | Sequence[str]) -> list[str]:
        """The answer to question i about picture i; one picture may serve several questions,
        or one question several."""
        images, questions = listed(images), listed(questions)
        count = max(len(images), len(questions))
        if len(images) not in (1, count) or len(questions) not in (1, count):
            raise VilgError(f"{len(images)} pictures and {len(questions)} questions do not pair up; "
                            "give as many of each, or one of either")
        if not count:
            return []
        seen = self.read(images)
        if len(images) != count:
            seen = paddle.concat([seen] * count)
        asked = self.text_tokenizer.encode_questions(questions * (count // len(questions)), None,
                                                     self.model.config.text_length, strict=True)
        return self._write(seen, paddle.to_tensor(asked.ids), paddle.to_tensor(asked.prefix), None)

    def rank(self, texts: str | Sequence[str], images: Picture | Sequence[Picture]) -> np.ndarray:
        """log P(text | image) by the same weights, for every pair: [texts, images]. Higher is better."""
        texts, seen = listed(texts), self.read(images)
        if not texts or not seen.shape[0]:
            return np.zeros([len(texts), seen.shape[0]], dtype=np.float32)
        batch = self.text_tokenizer.encode_prompts(texts, self.model.config.text_length, strict=True)
        ids, length = paddle.to_tensor(batch.ids), paddle.to_tensor(batch.length)
        return np.stack([self._score(ids[i:i + 1], length[i:i + 1], seen) for i in range(len(texts))])

    def encode(self, images: Picture | Sequence[Picture]) -> paddle.Tensor:
        """Pictures, centre-cropped and resized as in training → codes [B, n]."""
        return self._seen(images, self.image_tokenizer.encode, [math.prod(self.image_tokenizer.grid)], "int64")

    def read(self, images: Picture | Sequence[Picture]) -> paddle.Tensor:
        """Pictures → what the model reads to write about them: their codes [B, n], or dense features [B, n, width]."""
        if self.features.kind == "codes":
            return self.encode(images)
        return self._seen(images, self.features.of_images, [self.model.layout.image, self.features.width], "float32")

    def _seen(self, images, look, shape, dtype):
        images = listed(images)
        if not images:
            return paddle.zeros([0, *shape], dtype=dtype)
        size = self.image_tokenizer.image_size
        arrays = np.stack([to_model(centre_crop(open_picture(image), size)) for image in images])
        with paddle.no_grad():
            return paddle.concat([look(paddle.to_tensor(arrays[start:start + DECODE_ROWS]))
                                  for start in range(0, len(arrays), DECODE_ROWS)])

    def decode(self, codes: paddle.Tensor) -> list[np.ndarray]:
        """Codes [B, n] → pictures, uint8 [H, W, 3] each."""
        with paddle.no_grad():
            return [from_model(image) for start in range(0, codes.shape[0], DECODE_ROWS)
                    for image in self.image_tokenizer.decode(codes[start:start + DECODE_ROWS]).numpy()]

    def decode_hidden(self, hidden: paddle.Tensor, codes: paddle.Tensor) -> list[np.ndarray]:
        """Hidden vectors [B, n, D] of tokens ``codes`` [B, n], those that the reconstructor ``reads`` → pictures, uint8
        [H, W, 3] each: the end-to-end path. Raises VilgError for a model without a reconstructor."""
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

    def _settings(self, given: dict[str, Any], after_step: Any) -> DrawingConfig:
        settings = self.sampling.over(given, self.name)
        if self._masked:
            check_steps(settings.steps, *self.image_tokenizer.grid)
        elif after_step is not None:
            raise VilgError(f"{self.name} draws token by token, so there is nothing to see after a step; leave "
                            "after_step to models that draw by mask-predict")
        return settings

    @property
    def _masked(self) -> bool:
        return isinstance(self.model, TwoLevelTransformer)

    def _draw(self, ids, length, draws, seeds, sampling, known_codes, known_mask, path, tell, after_step):
        """Pictures [P][draws] of P texts, and their codes [P, draws, n]; many of one text in several batches."""
        pictures, codes = [[] for _ in seeds], []
        given = {"seeds": seeds, "sampling": sampling, "known_codes": known_codes, "known_mask": known_mask,
                 "progress": tell}
        kept = self.reconstructor.config.reads if path == "end_to_end" else None
        for first in range(0, draws, DECODE_ROWS):
            count = min(DECODE_ROWS, draws - first)
            if self._masked:
                seen = None if after_step is None else (
                    lambda step, codes, _: after_step(step, self.decode(paddle.to_tensor(codes))))
                drawn = predict_images(self.model, ids, length, count, first_sample=first, after_step=seen, **given)
                decoded = self.decode(drawn)
            else:
                made = generate_images(self.model, ids, length, count, first_sample=first,
                                       keep_hidden=kept, **given)
                drawn = made.codes
                decoded = self.decode_hidden(made.hidden, drawn) if made.hidden.shape[1] else self.decode(drawn)
            decoded = iter(decoded)
            for row in pictures:
                row += itertools.islice(decoded, count)
            codes.append(drawn.reshape([len(seeds), count, -1]))
        return pictures, paddle.concat(codes, axis=1)

    def _best(self, text, prompt, pictures, num_images, best_of, judge):
        """The places of a text's pictures to keep, best first, and what is noted of each."""
        if not best_of:
            return range(num_images), [{}] * num_images
        if judge is None:
            ids, length, codes = prompt
            name, key = "P(text | image)", "log_p_text"
            scores = self._score(ids, length, self.features.of_codes(codes))
        else:
            name, key, scores = name_of(judge), "similarity", np.asarray(judge.similarity([text], pictures))[0]
        order = np.argsort(-scores, kind="stable")[:num_images]
        return order, [{"judge": name, key: float(scores[pick])} for pick in order]

    def _score(self, ids, length, seen) -> np.ndarray:
        with paddle.no_grad():
            return score_text(self.model, seen, ids.tile([seen.shape[0], 1]), length.tile([seen.shape[0]]),
                              unk_id=self.text_tokenizer.unk_id).numpy()

    def _write(self, seen, prompts, prefix, max_tokens) -> list[str]:
        with paddle.no_grad():
            texts = []
            for start in range(0, seen.shape[0], DECODE_ROWS):
                part = slice(start, start + DECODE_ROWS)
                ids = generate_text(self.model, seen[part], prompts[part], prefix[part],
                                    end_id=self.text_tokenizer.sep_id, max_tokens=max_tokens,
                                    never=self.text_tokenizer.unk_id)
                texts += [self.text_tokenizer.decode(row) for row in ids.numpy().tolist()]
        return texts

    def _known(self, image, rows, mask, texts):
        """Known codes [texts, n] and which of them to keep [n]; None and None without a picture."""
        if image is None:
            if rows is not None or mask is not None:
                raise VilgError("known_rows and known_mask say which part of known_image to keep; give it too")
            return None, None
        height, width = self.image_tokenizer.grid
        if (rows is None) == (mask is None):
            raise VilgError("say which part of the picture to keep: either known_rows or known_mask")
        if rows is not None:
            if not 0 <= as_int(rows, "known_rows") <= height:
                raise VilgError(f"known_rows is {rows}, but the picture has {height} rows of tokens")
            keep = np.repeat(np.arange(height) < rows, width)
        else:
            keep = token_mask(mask, height, width, self.image_tokenizer.image_size)
        images = listed(image)
        if len(images) not in (1, texts):
            raise VilgError(f"{len(images)} known pictures for {texts} texts; give one for all or one each")
        codes = self.encode(images)
        if len(images) != texts:
            codes = codes.tile([texts, 1])  # [texts, n]
        return codes, paddle.to_tensor(keep)


_OFFERS = {ReleasedModel: Pipeline, ReleasedDualEncoder: Matcher}
