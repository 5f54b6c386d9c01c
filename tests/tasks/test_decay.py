"""Which parameters weight decay applies to, over every kind of model that this project trains."""
import paddle
import pytest

from vilg import config
from vilg.engine.optim import decays
from vilg.losses.adversarial import PatchDiscriminator
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.models.end_to_end import EndToEndReconstructor, ReconstructorConfig
from vilg.models.scene_features import SceneFeatures, SceneFeaturesConfig
from vilg.tasks.scene_features import SceneFeaturesStep
from vilg.tokenizers.image.dvae import DVAEConfig
from vilg.tokenizers.image.kinds import build_image_tokenizer
from vilg.tokenizers.image.vqvae import VQConfig

AUTOENCODER = {"image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1, "decoder_blocks": 1,
               "attention_resolutions": [8], "norm_groups": 4, "z_channels": 8, "code_dim": 8}


def autoencoder(kind, quantizer):
    values = {"kind": kind, **AUTOENCODER, "quantizer": {"kind": quantizer, "codebook_size": 16}}
    return build_image_tokenizer(config.from_dict(VQConfig, values))


def dvae():
    return build_image_tokenizer(config.from_dict(DVAEConfig, {
        "kind": "dvae", "image_size": 16, "channels": 8, "multipliers": [1, 2], "blocks": 1, "codebook_size": 16,
        "decoder_channels": 8}))


def transformer():
    return BidirectionalTransformer(BidirectionalConfig(
        layers=1, width=32, heads=2, vocab_size=50, codebook_size=20, text_length=8, rows=4, columns=4))


def reconstructor(anchor):
    return EndToEndReconstructor(ReconstructorConfig(anchor=anchor), 32, autoencoder("vqgan", "ema"))


TABLES = {
    "transformer": (transformer, {"text_embedding.weight", "text_position.weight", "image_embedding.weight",
                                  "row_position.weight", "column_position.weight", "begin_of_image.weight"}),
    "vqvae": (lambda: autoencoder("vqvae", "straight_through"), {"quantizer.codebook"}),
    "vqgan": (lambda: autoencoder("vqgan", "ema"), set()),
    "vqgan_gumbel": (lambda: autoencoder("vqgan", "gumbel"), {"quantizer.codebook.weight"}),
    "dvae": (dvae, {"code_in.weight"}),
    "discriminator": (lambda: PatchDiscriminator(2, 8), set()),
    "reconstructor": (lambda: reconstructor("none"), set()),
    "reconstructor_by_token": (lambda: reconstructor("token"), {"token_embedding.weight"}),
    "scene_features": (lambda: SceneFeaturesStep(SceneFeatures(SceneFeaturesConfig(image_size=32, channels=8))), set()),
}
"""Per model its tables: looked up or added, never multiplied with."""


@pytest.mark.parametrize("name", TABLES)
def test_matrices_and_kernels_decay_and_tables_do_not(name):
    build, tables = TABLES[name]
    paddle.seed(0)
    parameters = dict(build().named_parameters())
    assert tables <= parameters.keys()
    matrices = {key for key, value in parameters.items() if value.ndim > 1} - tables
    assert len(matrices) >= 3
    assert {key for key, value in parameters.items() if decays(value)} == matrices


def test_a_matrix_may_be_called_an_embedding():
    network = SceneFeatures(SceneFeaturesConfig(image_size=32, channels=8))
    assert decays(network.embedding.weight)
