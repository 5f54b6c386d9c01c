"""From one step's logits to the next step's input: on the host, or where the model is, so that no token travels."""
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from vilg.generation import device_sampling
from vilg.generation.decoding.decoder import Decoder
from vilg.generation.sampling import SamplingConfig, guide, sample_token


class HostDrawing:
    """The codes of R pictures, drawn step by step from ``decoder`` under ``sampling``.

    ``known`` codes [R, n] are kept where ``mask`` [R, n] says so; ``random`` [R, n] are the uniform numbers of every
    step. Under guidance the decoder has 2R rows: those told of the text, and then those that are not.
    """

    def __init__(self, decoder: Decoder, sampling: SamplingConfig, known: np.ndarray, mask: np.ndarray,
                 random: np.ndarray):
        self._decoder, self._sampling, self._known, self._mask, self._random = decoder, sampling, known, mask, random
        self._codes = np.zeros(known.shape, dtype=np.int64)

    def next(self, step: int) -> Any:
        """Choose token number ``step`` from the decoder's logits; what goes into the decoder after it."""
        self._codes[:, step] = self._choose(step)
        token = self._codes[:, step]
        rows = self._decoder.attention.rows
        return self._decoder.embed(np.tile(token, rows // len(token)), np.full([rows], step))

    def codes(self) -> Tensor:
        """What was drawn: int64 [R, n]."""
        return paddle.to_tensor(self._codes)

    def _choose(self, step: int) -> np.ndarray:
        known, mask = self._known[:, step], self._mask[:, step]
        if mask.all():
            return known
        logits = self._decoder.logits()
        logits = logits if self._sampling.guidance == 1 else guide(*np.split(logits, 2), self._sampling)
        return np.where(mask, known, sample_token(logits, self._sampling, self._random[:, step]))


class DeviceDrawing:
    """:class:`HostDrawing` in tensors."""

    def __init__(self, decoder: Decoder, sampling: SamplingConfig, known: np.ndarray, mask: np.ndarray,
                 random: np.ndarray):
        self._decoder, self._sampling, self._all_known = decoder, sampling, mask.all(axis=0)
        self._known, self._mask = paddle.to_tensor(known.astype("int64")), paddle.to_tensor(mask)
        self._random, self._codes = paddle.to_tensor(random), []

    def next(self, step: int) -> Any:
        """As :meth:`HostDrawing.next`."""
        token = self._choose(step)
        self._codes.append(token)
        rows = self._decoder.attention.rows
        return self._decoder.embed(token.tile([rows // token.shape[0]]), paddle.full([rows], step, "int64"))

    def codes(self) -> Tensor:
        """As :meth:`HostDrawing.codes`."""
        return paddle.stack(self._codes, axis=1)

    def _choose(self, step: int) -> Tensor:
        known = self._known[:, step]
        if self._all_known[step]:
            return known
        logits = self._decoder.device_logits()
        if self._sampling.guidance != 1:
            logits = device_sampling.guide(*paddle.split(logits, 2), self._sampling)
        drawn = device_sampling.sample_token(logits, self._sampling, self._random[:, step])
        return paddle.where(self._mask[:, step], known, drawn)
