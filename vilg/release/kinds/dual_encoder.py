"""The folder of a dual encoder: both towers, the text tokenizer and the preprocessing of images that it was trained
with, the longest text that it reads, and what its cosines mean."""
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from vilg.errors import CheckpointError
from vilg.models.dual_encoder.calibration import Calibration
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.models.dual_encoder.preprocess import PreprocessConfig
from vilg.release.folder import DESCRIPTION, WEIGHTS, Opened, open_folder
from vilg.release.registry import Contents, Kind, chosen, register
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer
from vilg.weights.files import load_weights

_POSITIONS = "image_tower.position_embedding.weight"


@dataclass
class ReleasedDualEncoder:
    """A dual encoder with what turns texts and images into its inputs; ``text_length`` counts [CLS] and [SEP].

    ``calibration`` is None until tools/calibrate.py fitted one. ``fingerprint`` is the folder's: vectors of two models
    are not to be compared, and this tells them apart.
    """

    model: DualEncoder
    text_tokenizer: WordPieceTokenizer
    preprocess: PreprocessConfig
    text_length: int
    calibration: Calibration | None = None
    name: str = ""
    fingerprint: str = ""


@register("dual_encoder")
class DualEncoderFolder(Kind):
    """``kind: dual_encoder`` ↔ :class:`ReleasedDualEncoder`."""

    title = "a dual encoder, which compares texts and images"

    def pack(self, thing: ReleasedDualEncoder, replaced: dict[str, np.ndarray]) -> Contents:
        refuse_unfit(thing.model.config, thing.text_tokenizer, thing.text_length, "the dual encoder")
        sections = {"model": thing.model.config, "preprocess": thing.preprocess, "text_length": thing.text_length}
        if thing.calibration is not None:
            sections["calibration"] = thing.calibration
        return Contents("dual_encoder", sections, chosen(thing.model, replaced), text_tokenizer=thing.text_tokenizer)

    def restore(self, opened: Opened, **beside: Any) -> ReleasedDualEncoder:
        config, text_tokenizer = opened.section("model", DualEncoderConfig), opened.text_tokenizer()
        length = opened.said.get("text_length")
        refuse_unfit(config, text_tokenizer, length, str(opened.folder / DESCRIPTION))
        model = opened.build(lambda: DualEncoder(config))
        calibration = opened.section("calibration", Calibration) if "calibration" in opened.said else None
        return ReleasedDualEncoder(model, text_tokenizer, opened.section("preprocess", PreprocessConfig), length,
                                   calibration, opened.folder.name, str(opened.said.get("fingerprint", "")))


def start_dual_encoder(model: DualEncoder, folder: str | Path, text_tokenizer: WordPieceTokenizer) -> None:
    """Give ``model`` the weights of a released folder (fine-tuning). Its images may be larger or smaller than those of
    the folder's, in patches of the same size: positions are interpolated. Raises CheckpointError when anything else is
    of another size, or the weights were trained with another vocabulary than the one in use."""
    opened = open_folder(folder, "dual_encoder")
    opened.refuse_others({"vocabulary": ("vocabulary", text_tokenizer.fingerprint())})
    weights = dict(opened.weights)
    if _POSITIONS in weights:
        weights[_POSITIONS] = _resized_positions(weights[_POSITIONS], model.config.image.patches)
    load_weights(model, weights, str(opened.folder / WEIGHTS))


def _resized_positions(rows: np.ndarray, patches: int) -> np.ndarray:
    """Position vectors [1 + n, D] of n patches in a square → [1 + patches, D]: the class keeps its own, the others
    are interpolated (bicubic). What is no square stays as it is, for the check of shapes to name."""
    side, wanted = math.isqrt(max(0, len(rows) - 1)), math.isqrt(patches)
    if rows.ndim != 2 or side == 0 or side * side != len(rows) - 1 or side == wanted:
        return rows
    width = rows.shape[1]
    columns = rows[1:].astype("float32").T  # [n, D] → [D, n]
    grid = paddle.to_tensor(columns.reshape([1, width, side, side]))
    grid = F.interpolate(grid, [wanted, wanted], mode="bicubic", align_corners=False).numpy()
    return np.concatenate([rows[:1].astype("float32"), grid.reshape([width, -1]).T])  # [1 + wanted², D]


def refuse_unfit(config: DualEncoderConfig, text_tokenizer: WordPieceTokenizer, text_length: Any, source: str) -> None:
    """Raise CheckpointError, which begins with ``source``, when the text tower does not read the tokenizer's ids or
    texts of that length. (A tower may have more rows than there are tokens: the public one has 20.)"""
    text = config.text
    if text_tokenizer.vocab_size > text.vocab_size or text_tokenizer.pad_id != text.pad_id:
        raise CheckpointError(f"{source}: its text tower has {text.vocab_size} rows and pads with {text.pad_id}, but "
                              f"the vocabulary has {text_tokenizer.vocab_size} tokens and pads with "
                              f"{text_tokenizer.pad_id}; use the vocabulary that it was trained with")
    if type(text_length) is not int or not 2 <= text_length <= text.positions:
        raise CheckpointError(f"{source}: text_length must be from 2 to the text tower's {text.positions} positions, "
                              f"not {text_length!r}")
