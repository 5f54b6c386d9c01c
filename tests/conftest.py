"""Shared by all tests: a released model folder, untrained and as small as one can be."""
import json
import sys
from types import ModuleType

import numpy as np
import pytest

# PyPI's torchvision for Linux is built for CUDA, so its operators do not load beside a CPU build of torch; then what it
# says of their shapes, for torch.compile, raises as it is imported. No test compiles, and the models want neither.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

CONCEPTS = {"sun": "太阳", "moon": "月牙", "star": "星辰", "tree": "树木", "house": "房屋", "fish": "游鱼", "bird": "飞鸟",
            "book": "书本"}
STYLES = {"flat": "平面风格", "line": "线描风格", "glass": "玻璃风格"}


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


def draw_concept(concept: str, style: str, size: int = 32) -> np.ndarray:
    """A pattern that belongs to the concept, inked as the style says; uint8 [size, size, 3]."""
    pattern = np.random.default_rng(list(CONCEPTS).index(concept)).random([4, 4]) < 0.5
    ink = {"flat": (200, 60, 40), "line": (30, 30, 30), "glass": (60, 120, 210)}[style]
    image = np.full([size, size, 3], 255, "uint8")
    image[np.kron(pattern, np.ones([size // 4, size // 4])).astype(bool)] = ink
    return image


@pytest.fixture(scope="session")
def styled_table(tmp_path_factory):
    """``table.jsonl`` of eight concepts in three styles, and ``vocabulary/`` with their words."""
    from PIL import Image

    from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text

    folder = tmp_path_factory.mktemp("styled")
    rows = []
    for concept, name in CONCEPTS.items():
        for style, description in STYLES.items():
            Image.fromarray(draw_concept(concept, style)).save(folder / f"{style}-{concept}.png")
            rows.append({"picture": f"{style}-{concept}.png", "captions": [name, f"{description}的{name}"],
                         "concept": concept, "style": style, "tags": [f"{name}图形", "物品"]})
    (folder / "table.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (folder / "vocabulary").mkdir()
    texts = [text for row in rows for text in (*row["captions"], *row["tags"], "图里有、")]
    (folder / "vocabulary" / "vocab.txt").write_text(vocab_text(build_vocab(texts, 400)), encoding="utf-8")
    return folder / "table.jsonl"


@pytest.fixture(scope="session")
def contrastive_values(styled_table):
    """A contrastive run over that table, as a config's values."""
    vocabulary = styled_table.parent / "vocabulary"
    words = len((vocabulary / "vocab.txt").read_text(encoding="utf-8").splitlines())
    shape = {"layers": 2, "width": 32, "heads": 2}
    return {
        "name": "contrastive",
        "task": {"kind": "contrastive", "vocabulary": str(vocabulary), "text_length": 16, "other_caption": "written",
                 "model": {"image": {"image_size": 32, "patch_size": 8, **shape},
                           "text": {"vocab_size": words, "positions": 16, "dropout": 0.0, "norm_order": "pre",
                                    **shape}},
                 "augment": {"crop": 1.0, "mirror": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0},
                 "loss": {"tile": 0}},
        "data": {"sources": [{"kind": "table", "path": str(styled_table), "twins": "concept"}]},
        "optim": {"lr": 3e-3, "warmup_steps": 5, "weight_decay": 0.0},
        "train": {"steps": 60, "batch_size": 24, "log_every": 1, "preview_every": 0, "checkpoint_every": 0,
                  "ema_decay": 0.0}}


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


def _untrained_encoder(seed):
    """An untrained dual encoder, behind what a user calls, that tells its inputs apart."""
    import paddle

    from vilg.app.dual_encoder import Matcher
    from vilg.models.dual_encoder.calibration import Calibration
    from vilg.models.dual_encoder.image import ImageTowerConfig
    from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
    from vilg.models.dual_encoder.preprocess import PreprocessConfig
    from vilg.models.dual_encoder.text import TextTowerConfig
    from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
    from vilg.weights.files import fingerprint

    words = _scene_words()
    paddle.seed(seed)
    shape = {"layers": 1, "width": 32, "heads": 2}
    model = DualEncoder(DualEncoderConfig(image=ImageTowerConfig(image_size=16, patch_size=4, **shape),
                                          text=TextTowerConfig(vocab_size=words.vocab_size, positions=40, **shape)))
    _tell_inputs_apart(model)
    model.eval()
    return Matcher(ReleasedDualEncoder(model, words, PreprocessConfig(), 40, Calibration(slope=8.0, offset=0.0),
                                       f"untrained_{seed}", fingerprint(model.state_dict())))


def _scene_words():
    import tempfile
    from pathlib import Path

    from vilg.data.worlds import scenes
    from vilg.tokenizers.text.vocabulary import build_vocab, vocab_text
    from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

    texts = [text for seed in range(200) for text in scenes.captions(scenes.sample_scene(seed, "train"),
                                                                     np.random.default_rng(seed))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text(vocab_text(build_vocab([*texts, "风格的立体线描红苹果猫脸火箭房子书"], 400)), encoding="utf-8")
        return WordPieceTokenizer(path)


@pytest.fixture(scope="session")
def encoder():
    """An untrained dual encoder that tells its inputs apart."""
    return _untrained_encoder(3)


@pytest.fixture(scope="session")
def other_encoder():
    """Another of the same shape."""
    return _untrained_encoder(4)
