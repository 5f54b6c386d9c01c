import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image, features

from vilg import release, runtime
from vilg.app import image_files as gallery, pipeline
from vilg.data.images import read_image
from vilg.data.transforms import to_model
from vilg.data.worlds import scenes
from vilg.errors import CheckpointError, DataError, VilgError
from vilg.generation.rerank import score_text
from vilg.kernels.jit import switch as loops
from vilg.kernels.onednn import precision, switch
from vilg.machine import process
from vilg.nn import functional
from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["一个红色的圆形", "蓝色的方块在左边"]


@pytest.fixture(scope="module")
def model(released_model):
    return pipeline.load(released_model)


def arrays(rows):
    return [[np.asarray(picture) for picture in row] for row in rows]


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(model):
    together = arrays(model.text_to_image(PROMPTS, num_images=3, seed=7))
    for row, prompt in enumerate(PROMPTS):
        alone = arrays(model.text_to_image(prompt, num_images=1, seed=7))
        assert np.array_equal(alone[0][0], together[row][0])
    other = arrays(model.text_to_image(PROMPTS[0], seed=8))
    assert not np.array_equal(other[0][0], together[0][0])
    assert not np.array_equal(together[0][0], together[0][1])


def test_every_text_may_have_a_seed_of_its_own(model):
    texts = ["红色的圆形", "蓝色的方块"]
    together = model.text_to_image(texts, seed=[3, 8], temperature=1.0)
    alone = [model.text_to_image(text, seed=seed, temperature=1.0)[0] for text, seed in zip(texts, (3, 8))]
    for ours, theirs in zip(together, alone):
        np.testing.assert_array_equal(np.asarray(ours[0]), np.asarray(theirs[0]))
        assert ours[0].info["seed"] == theirs[0].info["seed"]
    with pytest.raises(VilgError, match="1 seeds for 2 texts"):
        model.text_to_image(texts, seed=[3])


def test_whole_numbers_of_any_kind_are_seeds_and_counts(model):
    texts = ["红色的圆形", "蓝色的方块"]
    plain = arrays(model.text_to_image(texts, num_images=2, best_of=3, seed=[3, 8]))
    for seeds in (np.array([3, 8]), list(np.array([3, 8])), (np.uint8(3), paddle.to_tensor(8))):
        drawn = model.text_to_image(texts, num_images=np.int64(2), best_of=np.int64(3), seed=seeds)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(arrays(drawn), plain))
        assert [type(row[0].info["seed"]) for row in drawn] == [int, int]
    for seed in (np.int64(4), np.array(4)):
        assert np.array_equal(arrays(model.text_to_image(texts, seed=seed)), arrays(model.text_to_image(texts, seed=4)))
    with pytest.raises(VilgError, match="2 seeds for 1 texts"):
        model.text_to_image(texts[0], seed=np.array([3, 8]))


def test_best_of_keeps_the_pictures_that_rank_highest(model):
    drawn = arrays(model.text_to_image(PROMPTS[0], num_images=6, seed=1))[0]
    scores = model.rank(PROMPTS[0], drawn)
    assert scores.shape == (1, 6)
    best = model.text_to_image(PROMPTS[0], num_images=2, best_of=6, seed=1)[0]
    order = np.argsort(-scores[0], kind="stable")
    # Different codes may decode to the same picture's codes again, so the score of the drawn codes decides, not of
    # pixels.
    assert [picture.info["log_p_text"] for picture in best] == sorted(
        (picture.info["log_p_text"] for picture in best), reverse=True)
    assert len(order) == 6 and all(any(np.array_equal(np.asarray(p), d) for d in drawn) for p in best)


def test_known_rows_are_kept_and_the_rest_is_drawn(model):
    given = arrays(model.text_to_image(PROMPTS[0], seed=2))[0][0]
    codes = model.encode(given).numpy()
    drawn, = model.text_to_image(PROMPTS[1], seed=3, known_image=given, known_rows=2)
    again = model.text_to_image(PROMPTS[1], seed=3, known_image=given,
                                known_mask=np.repeat(np.arange(4) < 2, 4).reshape(4, 4))[0]
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(again[0]))
    everything, = model.text_to_image(PROMPTS[1], known_image=given, known_rows=4)
    assert np.array_equal(np.asarray(everything[0]), model.decode(model.encode(given))[0])
    assert codes.shape == (1, 16)


def test_a_mask_picture_keeps_the_tokens_that_are_wholly_white(model, tmp_path):
    mask = np.zeros((16, 16, 3), dtype="uint8")
    mask[:8, :] = 255
    mask[8, 0] = 255  # part of a token only
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = arrays(model.text_to_image(PROMPTS[0], seed=2))[0][0]
    by_picture = model.text_to_image(PROMPTS[1], seed=3, known_image=given, known_mask=tmp_path / "mask.png")[0][0]
    by_rows = model.text_to_image(PROMPTS[1], seed=3, known_image=given, known_rows=2)[0][0]
    assert np.array_equal(np.asarray(by_picture), np.asarray(by_rows))


def test_texts_and_answers_come_one_a_picture_or_question(model):
    pictures = [np.asarray(row[0]) for row in model.text_to_image(PROMPTS)]
    assert len(model.image_to_text(pictures)) == 2
    assert model.image_to_text(pictures)[1] == model.image_to_text(pictures[1])[0]
    assert len(model.answer(pictures[0], ["有几个？", "左边有方块？"])) == 2
    with pytest.raises(VilgError, match="2 pictures and 3 questions"):
        model.answer(pictures, ["有几个？"] * 3)


def test_many_samples_of_a_text_are_drawn_in_several_batches(model, monkeypatch, capsys):
    whole = model.text_to_image(PROMPTS, num_images=7, seed=2)
    monkeypatch.setattr(pipeline, "DECODE_ROWS", 3)
    parts = model.text_to_image(PROMPTS, num_images=7, seed=2, progress=True)
    assert "96/96" in capsys.readouterr().err  # 2 texts, 3 batches of at most 3 samples, 16 tokens
    for ours, theirs in zip(parts, whole):
        assert all(np.array_equal(*map(np.asarray, pair)) for pair in zip(ours, theirs, strict=True))
        assert [picture.info for picture in ours] == [picture.info for picture in theirs]


def test_every_text_may_have_a_known_picture_of_its_own(model, monkeypatch):
    known = [np.asarray(row[0]) for row in model.text_to_image(["红色的圆形", "蓝色的方块", "圆形"], seed=2)]
    alone = [model.text_to_image(PROMPTS[0], known_image=one, known_rows=2)[0][0] for one in known]
    monkeypatch.setattr(pipeline, "DECODE_ROWS", 2)
    for together in (known, tuple(known)):
        drawn = model.text_to_image([PROMPTS[0]] * 3, known_image=together, known_rows=2)
        assert all(np.array_equal(ours[0], theirs) for ours, theirs in zip(drawn, alone))
    for count in (1, 2):
        with pytest.raises(VilgError, match=f"3 known pictures for {count} texts"):
            model.text_to_image([PROMPTS[0]] * count, known_image=known, known_rows=2)


def test_lists_tuples_and_nothing_at_all(model):
    pictures = tuple(np.asarray(row[0]) for row in model.text_to_image(PROMPTS))
    assert model.image_to_text(pictures) == model.image_to_text(list(pictures)) == model.image_to_text(iter(pictures))
    assert model.answer(pictures, ("有几个？",) * 2) == model.answer(list(pictures), "有几个？")
    assert np.array_equal(model.rank(tuple(PROMPTS), pictures), model.rank(np.array(PROMPTS), list(pictures)))
    assert model.text_to_image([]) == model.text_to_image([], known_image=pictures[0], known_rows=1) == []
    assert model.image_to_text([]) == model.answer([], []) == []
    assert model.rank([], pictures).shape == (0, 2) and model.rank(PROMPTS, []).shape == (2, 0)
    for images, questions in (([], ["有几个？"]), (pictures, [])):
        with pytest.raises(VilgError, match="do not pair up"):
            model.answer(images, questions)
    given = model.text_to_image(PROMPTS[1], known_image=pictures[0], known_mask=[[True] * 4] * 2 + [[False] * 4] * 2)
    assert np.array_equal(given[0][0], model.text_to_image(PROMPTS[1], known_image=pictures[0], known_rows=2)[0][0])


@pytest.mark.parametrize("call, sentence", [
    (lambda model, picture: model.image_to_text(picture[:0]), r"got uint8 \[0, 16, 3\]"),
    (lambda model, picture: model.image_to_text(None), "got NoneType"),
    (lambda model, picture: model.image_to_text([3]), "got int"),
    (lambda model, picture: model.image_to_text(picture, max_tokens=-1), "max_tokens is -1"),
    (lambda model, picture: model.image_to_text(picture, max_tokens=2.5), "max_tokens is a whole number"),
    (lambda model, picture: model.answer([picture] * 2, []), "2 pictures and 0 questions"),
])
def test_unusable_pictures_and_lengths_are_refused_in_a_sentence(model, call, sentence):
    with pytest.raises(VilgError, match=sentence):
        call(model, np.zeros([16, 16, 3], "uint8"))


@pytest.mark.parametrize("call, sentence", [
    (dict(texts=""), "empty"),
    (dict(texts="一个红色的圆形" * 9), "63"),
    (dict(texts=PROMPTS[0], num_images=0), "num_images"),
    (dict(texts=PROMPTS[0], num_images=4, best_of=2), "best_of"),
    (dict(texts=PROMPTS[0], num_images=2.5), "num_images is a whole number, not 2.5"),
    (dict(texts=PROMPTS[0], best_of="4"), "best_of is a whole number, not '4'"),
    (dict(texts=PROMPTS[0], seed=None), "a seed is a whole number, not None"),
    (dict(texts=PROMPTS[0], seed=1.0), "a seed is a whole number, not 1.0"),
    (dict(texts=PROMPTS[0], seed="3"), "a seed is a whole number, not '3'"),
    (dict(texts=PROMPTS, seed=[1, 2.5]), "a seed is a whole number, not 2.5"),
    (dict(texts=PROMPTS[0], top_p=2.0), "top_p"),
    (dict(texts=PROMPTS[0], known_rows=2), "known_image"),
    (dict(texts=PROMPTS[0], known_image=np.zeros((8, 8, 3), "uint8"), known_rows=9), "9"),
    (dict(texts=PROMPTS[0], known_image=np.zeros((8, 8, 3), "uint8"), known_rows=1.5), "known_rows is a whole number"),
    (dict(texts=PROMPTS[0], known_image=np.zeros((8, 8, 3), "uint8"), known_mask=[[True], []]), r"booleans \[4, 4\]"),
    (dict(texts=PROMPTS[0], known_image=np.zeros((8, 8, 3), "uint8"), known_mask=np.ones((4, 4), int)),
     r"booleans \[4, 4\], one a token; got int64 \[4, 4\]"),
    (dict(texts=PROMPTS[0], path="end_to_end"), "reconstructor"),
])
def test_unusable_calls_are_refused_in_a_sentence(model, call, sentence):
    with pytest.raises(VilgError, match=sentence):
        model.text_to_image(**call)


def test_broken_pictures_are_named(model, tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8")).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(DataError, match="cut.png"):
        model.image_to_text([str(cut)])
    with pytest.raises(DataError, match="absent.png"):
        model.image_to_text([str(tmp_path / "absent.png")])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses to open what has twice as many
    with pytest.raises(DataError, match="whole.png.*4096 pixels"):
        model.image_to_text([str(whole)])


def test_whatever_decoders_raise_for_damaged_pictures_is_the_same_sentence(tmp_path):
    picture, damaged = Image.fromarray(np.arange(3072).reshape(32, 32, 3).astype("uint8")), tmp_path / "damaged"
    # The pixel format of a DDS raises a NotImplementedError, the first pixels of an AVIF a RuntimeError.
    for kind, mark in (("DDS", b"DDS "), ("AVIF", b"mdat"))[:1 + features.check("avif")]:
        picture.save(damaged, kind)
        content = bytearray(damaged.read_bytes())
        start = content.index(mark) + (80 if kind == "DDS" else 4)
        content[start:start + 4] = bytes(4)
        damaged.write_bytes(content)
        with pytest.raises(DataError, match="damaged: not a whole image"):
            pipeline.open_picture(damaged)


def test_transparent_pictures_are_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (pipeline.open_picture(tmp_path / "clear.png") == 255).all()


def test_a_photo_is_turned_upright_as_in_training(tmp_path):
    photo, tag = Image.new("RGB", (4, 2), "white"), Image.Exif()
    photo.putpixel((0, 0), (255, 0, 0))
    tag[0x0112] = 6  # the camera was turned: the right side is the top one
    photo.save(tmp_path / "photo.png", exif=tag)
    upright = pipeline.open_picture(tmp_path / "photo.png")
    assert upright.shape == (4, 2, 3) and upright[0, 1].tolist() == [255, 0, 0]
    with Image.open(tmp_path / "photo.png") as opened:
        assert (pipeline.open_picture(opened) == upright).all()
    assert (read_image(tmp_path / "photo.png", "photo") == upright).all()


def test_the_shipped_tokenizer_reads_plain_pictures_alike_with_stock_operators():
    """A background on the border between two codes was read as the one here and as the other elsewhere."""
    drawn = [scenes.sample_scene(seed, "test") for seed in range(300)]
    plain = [scene for scene in drawn if scene.background.start == scene.background.end][:100]
    assert len({scene.background.start for scene in plain}) == 4  # every tint
    tokenizer = release.read(ROOT / "model_zoo/ernie_vilg_tiny/image_tokenizer", "image_tokenizer")
    pixels = paddle.to_tensor(np.stack([to_model(scenes.render(scene, 64)) for scene in plain]))
    with paddle.no_grad():
        fast = tokenizer.encode(pixels).numpy()
        with functional.stock_operators():
            stock = tokenizer.encode(pixels).numpy()
    assert (fast != stock).mean() < 0.005


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "tools/infer.py"])
def test_the_shipped_model_has_learned_every_character_of_the_examples(page):
    words = WordPieceTokenizer.from_folder(ROOT / "model_zoo/ernie_vilg_tiny")
    examples = re.findall('"([\u4e00-\u9fff，？]+)"', (ROOT / page).read_text(encoding="utf-8"))
    assert len(examples) > 3
    assert {text: words.unknown(text) for text in examples if words.unknown(text)} == {}


def test_loading_sets_the_precision_and_nothing_else(released_model):
    before = process.threads()
    try:
        runtime.configure(runtime.RuntimeConfig(threads=1, onednn=False, jit=False))
        pipeline.load(released_model, cpu_math="fp32")
        assert (process.threads(), switch.active(), loops.active()) == (1, False, False)
        runtime.configure(runtime.RuntimeConfig(cpu_math="bf16"))
        gains = precision.gains()
        pipeline.load(released_model)
        assert precision.gains() is gains
        pipeline.load(released_model, cpu_math="fp32")
        assert not precision.gains()
        with pytest.raises(VilgError, match="cpu_math"):
            pipeline.load(released_model, cpu_math="fp16")
    finally:
        runtime.configure(runtime.RuntimeConfig(threads=before))


def test_an_unknown_model_names_the_way_out():
    with pytest.raises(CheckpointError, match="model.yaml"):
        pipeline.load("no_such_model")


def test_another_image_tokenizer_or_vocabulary_is_refused(released_model, tmp_path):
    folder = tmp_path / "swapped"
    shutil.copytree(released_model, folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="vocabulary"):
        pipeline.load(folder)


def colours(count, first=0):
    return [[Image.new("RGB", (16, 16), (first, index, 0)) for index in range(count)]]


def test_two_that_write_to_one_folder_overwrite_nothing(tmp_path):
    start = threading.Barrier(2)

    def write(first):
        start.wait()
        return gallery.write_pictures(["红"], colours(40, first), tmp_path)

    with ThreadPoolExecutor(2) as threads:
        records = [record for part in threads.map(write, (1, 2)) for record in part]
    written = {record["image"]: Image.open(record["image"]).getpixel((0, 0)) for record in records}
    assert len(written) == 80 and len(set(written.values())) == 80
    names = [*(f"{number:05d}.png" for number in range(80)), "contact_sheet.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_file_names_that_only_look_like_numbers_are_passed_over(tmp_path):
    for name in ("1².png", "٣.png", "7x.png", "3.png"):
        (tmp_path / name).touch()
    record, = gallery.write_pictures(["红"], colours(1), tmp_path)
    assert Path(record["image"]).name == "00004.png"


def test_a_full_disk_leaves_no_part_of_a_picture(tmp_path):
    resource = pytest.importorskip("resource", reason="this system sets no limits")
    gallery.write_pictures(["红"], colours(1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype("uint8"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (lambda: gallery.write_pictures(["红"], [[noise]], tmp_path),
                  lambda: gallery.save_whole(noise, tmp_path / "contact_sheet.png")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(VilgError, match="pictures cannot be written there"):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_tool_writes_pictures_that_say_how_they_were_made(released_model, tmp_path):
    command = [sys.executable, "tools/infer.py", "text2image", *PROMPTS, "--model", str(released_model),
               "--num-images", "2", "--seed", "4", "--output", str(tmp_path / "out"),
               "--json", str(tmp_path / "lines.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    read = Image.open(lines[3]["image"])
    assert read.text["prompt"] == PROMPTS[1] and read.text["seed"] == "4" and read.text["sample"] == "1"
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and len(list((tmp_path / "out").glob("0*.png"))) == 8
    first, second = Image.open(tmp_path / "out" / "00003.png"), Image.open(tmp_path / "out" / "00007.png")
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_words_that_the_vocabulary_lacks_are_named_in_warning_and_picture(model, tmp_path, caplog):
    drawn = model.text_to_image(["红色的龙和凤。", "红色的圆形。"], num_images=2)
    assert caplog.text.count("lacks 龙 和 凤 of the prompt '红色的龙和凤。'") == 1
    assert [[picture.info.get("unknown_words") for picture in row] for row in drawn] == [["龙 和 凤"] * 2, [None] * 2]
    gallery.write_pictures(["a", "b"], drawn, tmp_path)
    with Image.open(tmp_path / "00000.png") as written:
        assert written.info["unknown_words"] == "龙 和 凤"
    caplog.clear()
    model.answer([drawn[0][0]], ["龙在左边？"])
    assert "lacks 龙 of the question '龙在左边？'" in caplog.text


def test_the_tool_names_words_that_the_vocabulary_lacks(released_model, tmp_path):
    command = [sys.executable, "tools/infer.py", "text2image", "红色的龙", "--model", str(released_model), "--output",
               str(tmp_path), "--json", str(tmp_path / "lines.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "lacks 龙 of the prompt" in done.stderr
    assert json.loads((tmp_path / "lines.jsonl").read_text(encoding="utf-8"))["unknown_words"] == "龙"


def test_unknown_words_follow_their_prompts_through_several_batches(model, monkeypatch):
    monkeypatch.setattr(pipeline, "DECODE_ROWS", 1)
    drawn = model.text_to_image(["红色", "红色的龙", "蓝色"])
    assert [row[0].info.get("unknown_words") for row in drawn] == [None, "龙", None]


def test_the_unknown_word_is_never_written_and_never_scored(released_model, model):
    eager = pipeline.load(released_model)
    words, images = eager.text_tokenizer, model.text_to_image(PROMPTS[0], num_images=3)[0]
    bias = eager.model.text_head.bias
    bias.set_value(bias + 1e3 * paddle.nn.functional.one_hot(paddle.to_tensor(words.unk_id), len(words.tokens)))
    told = eager.image_to_text(images) + eager.answer(images, "有几个？")
    assert all(told) and not any("[UNK]" in text for text in told)
    asked = words.encode_batch(["红色的龙"], 16)
    codes = model.encode(images)
    ids, length = (paddle.to_tensor(value).tile([3, 1][:value.ndim]) for value in (asked.ids, asked.length))
    with paddle.no_grad():
        known = score_text(model.model, codes, ids, length, unk_id=words.unk_id).numpy()
    np.testing.assert_allclose(model.rank("红色的龙", images)[0], known, rtol=1e-5)
