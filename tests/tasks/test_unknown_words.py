"""Data with words that the vocabulary lacks: said before step 1, taught by a wider vocabulary, never written."""
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg import config, release
from vilg.app import pipeline
from vilg.data.sample import Sample
from vilg.errors import CheckpointError
from vilg.run import build
from vilg.tasks.unknown_words import report_unknown
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

ROOT = Path(__file__).resolve().parents[2]
TRADITIONAL = ["一隻貓在左邊", "兩個紅色的圓形", "一个红色的圆形。"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traditional")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(TRADITIONAL[number % 3] + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def wider(folder, released_model, tmp_path_factory):
    target = tmp_path_factory.mktemp("wider")
    subprocess.run([sys.executable, "tools/build_vocab.py", str(folder), "--extend", str(released_model), "--output",
                    str(target / "vocab.txt")], cwd=ROOT, check=True, capture_output=True)
    return target


@pytest.fixture
def run(folder, released_model, tmp_path):
    def make(vocabulary=released_model, steps=2, preview_every=0, **task):
        size = WordPieceTokenizer.from_folder(vocabulary).vocab_size
        shape = dict(layers=2, width=16, heads=2, vocab_size=size, codebook_size=32, text_length=16, rows=4, columns=4)
        values = {"name": "small", "output": str(tmp_path / "run"),
                  "task": {"kind": "bidirectional", "model": shape, "vocabulary": str(vocabulary),
                           "image_tokenizer": str(released_model / "image_tokenizer"), "caption_dropout": 0.0, **task},
                  "data": {"sources": [{"kind": "folder", "path": str(folder)}]}, "optim": {"lr": 1e-2},
                  "train": {"steps": steps, "batch_size": 6, "preview_every": preview_every, "checkpoint_every": 0,
                            "log_every": 1}}
        build.build_trainer(config.from_dict(build.RunConfig, values)).fit()
        lines = (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["unknown_share"] for line in lines]
    return make


def test_unknown_words_are_logged_and_named_before_step_1(run, folder, released_model, caplog):
    words = WordPieceTokenizer.from_folder(released_model)
    letters = [letter for text in TRADITIONAL for letter in text.replace("。", "")]
    share = sum(letter not in words.tokens for letter in letters) / len(letters)
    with caplog.at_level(logging.WARNING):
        shares = run()
    assert 0.3 < share < 0.8 and shares == pytest.approx([share, share])
    told, = [record for record in caplog.records if "are not in the vocabulary" in record.message]
    assert f"{100 * share:.2g} % of the words in the first 6 samples" in told.message
    assert "隻 (2×)" in told.message and "一" not in told.message.split("Each is")[0].split(": ")[1]
    assert f"--extend {released_model}" in told.message


def test_a_wider_vocabulary_teaches_them(run, wider, folder, released_model, tmp_path, caplog):
    assert run(wider, steps=60, init_from=str(released_model)) == [0.0] * 60
    assert "are not in the vocabulary" not in caplog.text
    model = pipeline.load(tmp_path / "run/model")
    told = model.image_to_text([folder / f"{number}.png" for number in range(6)])
    assert not any("[UNK]" in text for text in told) and set("".join(told)) & set("隻貓邊兩紅圓")


def test_a_model_that_saw_unknown_words_does_not_write_them(run, folder, tmp_path):
    run(steps=40)
    model = pipeline.load(tmp_path / "run/model")
    told = model.image_to_text([folder / f"{number}.png" for number in range(6)])
    assert all(told) and not any("[UNK]" in text for text in told)


def test_previews_do_not_write_them(run, released_model, tmp_path):
    model, inclined = release.read(released_model), tmp_path / "inclined"
    bias = model.model.text_head.bias.numpy()
    bias[model.text_tokenizer.unk_id] += 100
    release.write(inclined, "bidirectional", model, {"text_head.bias": bias})
    run(steps=1, preview_every=1, init_from=str(inclined))
    captions = json.loads(next((tmp_path / "run/previews").glob("*/captions.json")).read_text(encoding="utf-8"))
    described = [text for name, text in captions.items() if name.startswith("described")]
    assert len(described) == 4 and not any("[UNK]" in text for text in described)


def test_shared_words_say_the_same_to_the_wider_model(run, wider, released_model):
    narrow = build.BidirectionalTask
    tasks = []
    for vocabulary in (released_model, wider):
        size = WordPieceTokenizer.from_folder(vocabulary).vocab_size
        shape = dict(layers=2, width=16, heads=2, vocab_size=size, codebook_size=32, text_length=16, rows=4, columns=4)
        tasks.append(narrow(config.from_dict(build.BidirectionalTaskConfig, {
            "model": shape, "vocabulary": str(vocabulary), "image_tokenizer": str(released_model / "image_tokenizer"),
            "init_from": str(released_model)}), build.SamplingConfig()))
    assert all(task.step.unk_id == task.words.unk_id for task in tasks)
    batches = [task.words.encode_batch(["一个红色的圆形"], 16).ids for task in tasks]
    np.testing.assert_array_equal(*batches)
    first, second = (task.model.state_dict() for task in tasks)
    count = first["text_embedding.weight"].shape[0]
    for name, cut in (("text_embedding.weight", np.s_[:count]), ("text_head.weight", np.s_[:, :count]),
                      ("text_head.bias", np.s_[:count])):
        np.testing.assert_array_equal(first[name].numpy(), second[name].numpy()[cut])


def test_a_narrower_vocabulary_is_refused(run, wider, released_model, tmp_path):
    folder = shutil.copytree(released_model, tmp_path / "narrow")
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join(tokens[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="lacks 1"):
        run(folder, init_from=str(released_model))


def test_a_report_names_the_commonest_and_stays_short(released_model, caplog):
    words = WordPieceTokenizer.from_folder(released_model)
    captions = [chr(0x9000 + number % 40) * (1 + number % 40) for number in range(40)]
    report_unknown(words, "voc", [Sample("a", None, captions, [("谁？", "她")])])
    commonest = f"{chr(0x9000 + 39)} (40×), {chr(0x9000 + 38)} (39×)"
    assert f"first 1 samples are not in the vocabulary voc: {commonest}" in caplog.text
    assert caplog.text.count("×") == 12 and " …. Each is read as [UNK]" in caplog.text
    caplog.clear()
    report_unknown(words, "voc", [Sample("a", None, ["红色。"])])
    assert not caplog.text
