"""tools/convert_weights.py ernie-vil: public weights of both name schemes become a folder that loads and compares."""
import subprocess
import sys
from pathlib import Path

import ernie_vil_reference as reference
import numpy as np
import paddle
import pytest

import vilg
from vilg.weights.files import save_weights

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 64  # one head of the width that all public ones have


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A vocabulary in the form that ERNIE-ViL 2.0 comes with: token, tab, id; fewer tokens than the tower has rows."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "，", *"的一是红蓝色圆形方块太阳月亮左右上下有图里猫狗", "[UNK]"]
    (folder / "vocab.txt").write_text("".join(f"{token}\t{number}\n" for number, token in enumerate(tokens)),
                                      encoding="utf-8")
    return folder


def weights(scheme):
    values = reference.paddlenlp_weights(width=WIDTH)
    return values if scheme == "PaddleNLP" else reference.baidu_weights(values)


def convert(*arguments):
    return subprocess.run([sys.executable, "tools/convert_weights.py", "ernie-vil", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("scheme, file, eps", [("PaddleNLP", "model.pdparams", "1e-12"),
                                               ("Baidu", "model.safetensors", "1e-05")])
def test_public_weights_become_a_folder(scheme, file, eps, vocabulary, tmp_path):
    values = weights(scheme)
    if file.endswith(".pdparams"):
        paddle.save({name: paddle.to_tensor(value) for name, value in values.items()}, str(tmp_path / file))
    else:
        save_weights(tmp_path / file, values)
    run = convert("--checkpoint", tmp_path / file, "--vocabulary", vocabulary, "--text-length", 12,
                  "--preprocess", "paddlenlp_squash", "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert f"32 pixels, 3 and 3 layers, vectors of 64, text eps {eps}, fingerprint " in run.stdout
    model = vilg.load(tmp_path / "out")
    assert model.fingerprint == run.stdout.split()[-1] and model.preprocess.fit == "squash"
    expected = reference.Reference(reference.paddlenlp_weights(width=WIDTH), float(eps), 1e-6, heads=1)
    ids = model.text_tokenizer.encode_batch(["一只猫", "红色的圆形"], 12).ids
    assert np.abs(model.embed_text(["一只猫", "红色的圆形"]) - expected.text(ids)).max() <= 1e-5


def test_a_vocabulary_larger_than_the_tower_is_refused(tmp_path):
    save_weights(tmp_path / "model.safetensors", weights("PaddleNLP"))
    run = convert("--checkpoint", tmp_path / "model.safetensors", "--vocabulary", ROOT / "configs/ernie_vil/vocabulary",
                  "--text-length", 12, "--output", tmp_path / "out")
    assert run.returncode == 2 and not (tmp_path / "out").exists()
    assert "its text tower has 50 rows and pads with 0, but the vocabulary has" in run.stderr.splitlines()[-1]


def test_a_text_length_beyond_the_positions_is_refused(vocabulary, tmp_path):
    save_weights(tmp_path / "model.safetensors", weights("PaddleNLP"))
    run = convert("--checkpoint", tmp_path / "model.safetensors", "--vocabulary", vocabulary,
                  "--output", tmp_path / "out")
    assert run.returncode == 2
    assert "text_length must be from 2 to the text tower's 12 positions, not 48" in run.stderr.splitlines()[-1]
