"""What a user of a dual encoder calls: vectors of texts and images, how well they match, the best of several.

>>> import vilg
>>> model = vilg.load("ernie_vil_tiny")
>>> model.similarity(["立体风格的太阳", "一个红色的圆形"], ["sun.png", "circle.png"])  # [2, 2], each in 0–1
>>> model.rerank("一个红色的圆形", ["a.png", "b.png", "c.png"], least=0.5)            # an empty list: nothing matches
>>> model.classify(["a.png"], ["太阳", "月亮"])
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from vilg.app.inputs import Picture, listed, open_picture
from vilg.errors import VilgError
from vilg.models.dual_encoder.preprocess import preprocess
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
from vilg.tokenizers.text.wordpiece import TextBatch

ROWS = 64
"""Texts or images in one pass: enough to fill the cores, few enough for a small machine."""
TEMPLATES = ("{}", "一张{}的图", "图里有{}")
"""How a class is asked for where a caller has no templates of its own; ``{}`` stands for its name."""


@dataclass(frozen=True)
class Match:
    """One of several things that were compared: its place among them, and its similarity in 0–1."""

    index: int
    similarity: float


class Matcher:
    """A released dual encoder, ready to use; made by :func:`vilg.load`.

    ``fingerprint`` is the released folder's: vectors are only to be compared with those of the same one.
    """

    def __init__(self, released: ReleasedDualEncoder):
        self.name, self.fingerprint = released.name, released.fingerprint
        self.model, self.text_tokenizer = released.model, released.text_tokenizer
        self.preprocess, self.text_length = released.preprocess, released.text_length
        self.calibration = released.calibration

    def embed_text(self, texts: str | Sequence[str], strict: bool = True) -> np.ndarray:
        """Texts → unit vectors float32 [N, D].

        Raises VilgError for an empty text and one of which the vocabulary knows no word; for one that is too long when
        ``strict``, else that is cut with a warning.
        """
        encoded = self.read_texts(texts, strict)
        texts = listed(texts)
        order = np.argsort(encoded.length, kind="stable")  # texts of one length have no padding to compute
        vectors = np.zeros([len(texts), self.model.config.vector_width], "float32")
        with paddle.no_grad():
            for start in range(0, len(texts), ROWS):
                rows = order[start:start + ROWS]
                ids = encoded.ids[rows, :encoded.length[rows].max()]
                vectors[rows] = self.model.encode_text(paddle.to_tensor(ids)).numpy()
        return vectors

    def read_texts(self, texts: str | Sequence[str], strict: bool = True) -> TextBatch:
        """Texts as ids, without the model. Raises what :meth:`embed_text` does."""
        texts, words = listed(texts), self.text_tokenizer
        encoded = words.encode_prompts(texts, self.text_length, strict=strict)
        for text, row, length in zip(texts, encoded.ids, encoded.length):
            if (row[1:length - 1] == words.unk_id).all():
                raise VilgError(f"the text {text[:40]!r} has no word that the vocabulary of {self.name} knows, which "
                                f"holds {words.vocab_size}; write it in other words")
        return encoded

    def embed_image(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """Images (paths, PIL images, uint8 [H, W, 3]) → unit vectors float32 [N, D]. Raises DataError naming a file
        that is no image."""
        images, size = listed(images), self.model.config.image.image_size
        vectors = [np.zeros([0, self.model.config.vector_width], "float32")]
        with paddle.no_grad():
            for part in _parts(images):
                pixels = np.stack([preprocess(open_picture(image), size, self.preprocess) for image in part])
                vectors.append(self.model.encode_image(paddle.to_tensor(pixels)).numpy())
        return np.concatenate(vectors)

    def embed_classes(self, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Names of classes → one unit vector each, float32 [C, D]: that of every template filled in, averaged (as
        zero-shot classification is done since CLIP). Raises VilgError for a template without ``{}``."""
        labels, templates = listed(labels), listed(templates)
        odd = [template for template in templates if template.count("{}") != 1]
        if odd or not templates or not labels:
            raise VilgError(f"the template {odd[0]!r} has not one {{}} for the class's name; write it with one" if odd
                            else f"{len(labels)} labels and {len(templates)} templates make no classes; give at least "
                                 "one of each")
        prompts = [template.replace("{}", label) for label in labels for template in templates]
        vectors = self.embed_text(prompts).reshape([len(labels), len(templates), -1]).mean(1)  # [C, D]
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def calibrated(self, cosines: np.ndarray) -> np.ndarray:
        """Cosines of texts and images → their similarity in 0–1, of the same shape: the chance that the two belong
        together, where half of all pairs do. Raises VilgError for a model whose cosines nobody calibrated."""
        if self.calibration is None:
            raise VilgError(f"{self.name} has no calibration, so its cosines are no similarities in 0–1; fit one with "
                            "tools/calibrate.py, or compare embed_text and embed_image yourself")
        return self.calibration.probability(cosines)

    def similarity(self, texts: str | Sequence[str], images: Picture | Sequence[Picture]) -> np.ndarray:
        """How well every text fits every image, in 0–1: float32 [texts, images]; below 0.5 they rather do not match."""
        return self.calibrated(self.embed_text(texts) @ self.embed_image(images).T)

    def paired_similarity(self, texts: Sequence[str], images: Sequence[Picture]) -> np.ndarray:
        """How well each text fits the image in its place, in 0–1: float32 [N], NaN where a text cannot be read (no word
        that is known, or too many). An image that several texts share is looked at once."""
        distinct = {id(image): image for image in images}
        row = {identity: number for number, identity in enumerate(distinct)}
        vectors = self.embed_image(list(distinct.values()))[[row[id(image)] for image in images]]  # [N, D]
        cosines = np.einsum("nd,nd->n", self._embed_readable(list(texts)), vectors) if len(images) else np.zeros([0])
        return np.where(np.isnan(cosines), np.nan, self.calibrated(np.nan_to_num(cosines))).astype("float32")

    def _embed_readable(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts [N, D]; NaN for one that cannot be read, which is found by halving."""
        try:
            return self.embed_text(texts)
        except VilgError:
            if len(texts) == 1:
                return np.full([1, self.model.config.vector_width], np.nan, "float32")
            middle = len(texts) // 2
            return np.concatenate([self._embed_readable(texts[:middle]), self._embed_readable(texts[middle:])])

    def rerank(self, text: str, images: Picture | Sequence[Picture], least: float = 0.0) -> list[Match]:
        """The images by how well they fit ``text``, best first, without those of a similarity below ``least``: with
        0.5, an empty list says that nothing matches."""
        return _best_first(self.similarity([text], images)[0], least)

    def classify(self, images: Picture | Sequence[Picture], labels: Sequence[str],
                 templates: Sequence[str] = TEMPLATES, least: float = 0.0) -> list[list[Match]]:
        """For every image the labels by how well they fit, best first, without those below ``least``; an empty list
        says that it is none of them."""
        cosines = self.embed_image(images) @ self.embed_classes(labels, templates).T  # [images, C]
        return [_best_first(row, least) for row in self.calibrated(cosines)]


def _best_first(similarities: np.ndarray, least: float) -> list[Match]:
    order = np.argsort(-similarities, kind="stable")
    return [Match(int(index), float(similarities[index])) for index in order if similarities[index] >= least]


def _parts(things: list) -> Iterator[list]:
    for start in range(0, len(things), ROWS):
        yield things[start:start + ROWS]
