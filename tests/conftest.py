"""Shared by all tests: a released model folder, untrained and as small as one can be."""
import sys
from types import ModuleType

import numpy as np
import pytest

# PyPI's torchvision for Linux is built for CUDA, so its operators do not load beside a CPU build of torch; then what it
# says of their shapes, for torch.compile, raises as it is imported. No test compiles, and the models want neither.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")


@pytest.fixture(scope="session")
def released_model(tmp_path_factory):
    """A folder that ``vilg.app.pipeline.load`` reads: 2 layers, 4×4 tokens, 16×16 pictures, weights of a fixed seed."""
    import paddle

    from vilg import release
    from vilg.generation.sampling import SamplingConfig
    from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
    from vilg.release.kinds.bidirectional import ReleasedModel
    from vilg.tokenizers.image.kinds import build_image_tokenizer
    from vilg.tokenizers.image.quantize import QuantizerConfig
    from vilg.tokenizers.image.vqvae import VQConfig
    from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text
    from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

    folder = tmp_path_factory.mktemp("zoo") / "untrained"
    source = folder.parent / "vocab.txt"
    source.write_text(vocab_text(build_vocab(["一个红色的圆形在左边，图里有几个蓝色的方块？"], 200)), encoding="utf-8")
    words = WordPieceTokenizer(source)
    paddle.seed(5)
    np.random.seed(5)
    image_tokenizer = build_image_tokenizer(VQConfig(
        image_size=16, channels=8, multipliers=[1, 2, 2], blocks=1, decoder_blocks=1, attention_resolutions=[],
        norm_groups=4, z_channels=8, code_dim=8,
        quantizer=QuantizerConfig(kind="straight_through", codebook_size=32)))
    config = BidirectionalConfig(layers=2, width=16, heads=2, vocab_size=words.vocab_size, codebook_size=32,
                                 text_length=16, rows=4, columns=4)
    model = BidirectionalTransformer(config)
    _tell_inputs_apart(model)
    release.write(folder, "bidirectional", ReleasedModel(model, image_tokenizer, words, SamplingConfig()))
    return folder


def _tell_inputs_apart(model):
    """Fresh weights are so small that every input gives one answer, and tests could not see inputs mixed up: large
    ones make text, image, question and place matter (tests/app/test_telling_apart.py asserts that they do)."""
    rng = np.random.default_rng(11)
    for parameter in model.parameters():
        if len(parameter.shape) == 2:
            scale = 1.5 if "embedding" in parameter.name else 1.2 / parameter.shape[0] ** 0.5
            parameter.set_value(rng.normal(0, scale, parameter.shape).astype("float32"))


@pytest.fixture(scope="session")
def make_older():
    """A function that turns a released folder, parts and all, into the form that was written before version 1.1."""
    import yaml

    from vilg.weights.files import fingerprint, read_weights

    def make(folder):
        for path in folder.rglob("model.yaml"):
            said = yaml.safe_load(path.read_text(encoding="utf-8"))
            said = {key: value for key, value in said.items() if key not in ("format", "parts", "fingerprint")}
            if said["kind"] == "image_tokenizer":
                said["fingerprint"] = fingerprint(read_weights(path.with_name("model.safetensors")))
            path.write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return folder

    return make
