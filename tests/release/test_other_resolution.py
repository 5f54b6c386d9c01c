"""A dual encoder starts from one that was trained on images of another size."""
import dataclasses

import numpy as np
import paddle
import pytest

from vilg import release
from vilg.errors import CheckpointError
from vilg.models.dual_encoder.model import DualEncoder
from vilg.release.kinds.dual_encoder import ReleasedDualEncoder, start_dual_encoder

POSITIONS = "image_tower.position_embedding.weight"


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    path, one = tmp_path_factory.mktemp("dual") / "model", encoder
    released = ReleasedDualEncoder(one.model, one.text_tokenizer, one.preprocess, one.text_length)
    release.write(path, "dual_encoder", released)
    return path


def made(encoder, **changes):
    config = encoder.model.config
    return DualEncoder(dataclasses.replace(config, image=dataclasses.replace(config.image, **changes)))


def test_positions_are_interpolated_and_the_rest_is_kept(folder, encoder):
    words = encoder.text_tokenizer
    rows = encoder.model.state_dict()[POSITIONS].numpy()
    model = made(encoder, image_size=32)  # 8×8 patches of 4 pixels, from 4×4
    start_dual_encoder(model, folder, words)
    started = model.state_dict()
    for name, value in encoder.model.state_dict().items():
        if name != POSITIONS:
            np.testing.assert_allclose(started[name].numpy(), value.numpy(), atol=2e-3)  # stored in half precision
    got = started[POSITIONS].numpy()
    assert got.shape == (65, 32)
    np.testing.assert_allclose(got[0], rows[0], atol=2e-3)
    # Rows first, as patches are read: a grid that grows downwards grows downwards still.
    grid, finer = rows[1:].reshape([4, 4, 32]), got[1:].reshape([8, 8, 32])
    coarse = finer.reshape([4, 2, 4, 2, 32]).mean((1, 3))
    assert np.abs(coarse - grid).mean() < 0.4 * np.abs(coarse.transpose(1, 0, 2) - grid).mean()


def test_a_model_of_the_same_size_is_taken_to_the_bit(folder, encoder):
    model = made(encoder)
    start_dual_encoder(model, folder, encoder.text_tokenizer)
    with paddle.no_grad():
        pixels = paddle.to_tensor(np.random.default_rng(0).normal(size=[2, 3, 16, 16]).astype("float32"))
        stored = release.read(folder).model
        np.testing.assert_array_equal(model.encode_image(pixels).numpy(), stored.encode_image(pixels).numpy())


def test_another_size_of_patch_is_refused(folder, encoder):
    with pytest.raises(CheckpointError, match=r"patch_map.weight is \[32, 3, 4, 4\] in the file and \[32, 3, 8, 8\]"):
        start_dual_encoder(made(encoder, patch_size=8), folder, encoder.text_tokenizer)
