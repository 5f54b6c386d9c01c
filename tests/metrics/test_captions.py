"""Scores of captions: equal to coco-caption's, and every way in which its numbers go wrong silently is refused."""
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from made_captions import made_captions
from vilg.errors import DataError
from vilg.metrics.captions.bleu import bleu
from vilg.metrics.captions.cider import cider
from vilg.metrics.captions.cut import CUTS, aic_words, jieba_words, treebank
from vilg.metrics.captions.meteor import align, meteor
from vilg.metrics.captions.ngrams import count_ngrams
from vilg.metrics.captions.rouge import longest_common, rouge_l
from vilg.metrics.captions.score import score_captions

REFERENCES = {"a": ["一只 黑色 的 猫 坐 在 桌子 上", "桌子 上 有 一只 猫"], "b": ["两个 人 在 骑 自行车", "路上 有 两个 骑车 的 人"],
              "c": ["海边 有 一棵 树", "一棵 树 长 在 海边"]}
HYPOTHESES = {"a": "一只 猫 在 桌子 上", "b": "两个 人 在 路上 骑车", "c": "海边 有 两棵 树"}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs java, which runs the original program")


@pytest.fixture(scope="module")
def cut_captions():
    """300 images with five references, cut by jieba, among them captions without a match and one of a single word."""
    references, hypotheses = made_captions(300, seed=1)
    references = {image: [" ".join(jieba_words(text)) for text in texts] for image, texts in references.items()}
    hypotheses = {image: " ".join(jieba_words(text)) for image, text in hypotheses.items()}
    return references, hypotheses | {"image3.jpg": "没有", "image4.jpg": "飞机 飞过 蓝天 白云", "image5.jpg": "在 在 在 在 在 在"}


def as_words(captions):
    references, hypotheses = captions
    return [text.split() for text in hypotheses.values()], [[text.split() for text in texts]
                                                            for texts in references.values()]


def as_counts(captions):
    words, wanted = as_words(captions)
    return [count_ngrams(own) for own in words], [[count_ngrams(text) for text in texts] for texts in wanted]


def original(module: str, name: str, captions):
    oracle = getattr(pytest.importorskip(f"pycocoevalcap.{module}"), name)()
    references, hypotheses = captions
    arguments = [references, {image: [text] for image, text in hypotheses.items()}]
    return oracle.compute_score(*arguments, **({"verbose": 0} if name == "Bleu" else {}))


def test_bleu_equals_coco_caption(cut_captions):
    whole, each = bleu(*as_counts(cut_captions))
    expected, expected_each = original("bleu.bleu", "Bleu", cut_captions)
    assert 0.2 < whole[3] < whole[0] < 0.95
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(each.T, expected_each, rtol=0, atol=1e-9)


def test_rouge_equals_coco_caption(cut_captions):
    expected, expected_each = original("rouge.rouge", "Rouge", cut_captions)
    each = rouge_l(*as_words(cut_captions))
    np.testing.assert_allclose(each, expected_each, rtol=0, atol=1e-9)
    assert each.mean() == pytest.approx(expected, abs=1e-9)


def test_cider_d_equals_what_coco_caption_calls_cider(cut_captions):
    expected, expected_each = original("cider.cider", "Cider", cut_captions)
    scores = cider(*as_counts(cut_captions))
    np.testing.assert_allclose(scores.clipped, expected_each, rtol=0, atol=1e-9)
    assert scores.clipped.mean() == pytest.approx(expected, abs=1e-9)


@needs_java
def test_meteor_equals_the_original_program(cut_captions):
    references, hypotheses = cut_captions
    expected, expected_each = original("meteor.meteor", "Meteor", cut_captions)
    whole, each = meteor([*hypotheses.values()], [*references.values()])
    assert whole == pytest.approx(expected, abs=5e-4)
    assert np.mean(np.abs(each - expected_each) < 1e-9) >= 0.99


RECORDED = [  # printed by the original program, version 1.5
    ("一个男人和一个女人在红色的沙发上骑着一辆红色的自行车", ["在红色的沙发上一个男人骑着一辆红色的红色的自行车"], 0.4920352019011931),
    ("一只猫在桌子上", ["一只猫在桌子上"], 1.0),
    ("一只猫在桌子上", ["桌子上有一只猫", "猫"], 0.44430433966616706),
    ("3个人，在打2.5米高的球", ["2.5米高的3个人在打球"], 0.4930719956245085),
    ("的的的人的", ["人的的"], 0.4061229573736031),
    ("飞机", ["一只猫"], 0.0),
    ("人来人往的街道上人山人海人多人少的人", ["街道上的人来人往人多人少人山人海的人的人"], 0.47362391538017806)]


def test_meteor_equals_recorded_scores_of_the_original():
    whole, each = meteor([text for text, _, _ in RECORDED], [texts for _, texts, _ in RECORDED])
    np.testing.assert_allclose(each, [score for _, _, score in RECORDED], rtol=0, atol=1e-12)
    assert whole == pytest.approx(0.46881157979791427, abs=1e-12)


@pytest.mark.parametrize("hypothesis, reference, expected", [  # printed by the original program as well
    ("3个人在人来人往的街道上吃着一个红红的苹果", "在运动场上一个穿着红色T恤的男人吃着一个红红的苹果，很开心", 0.2269938046178484),
    ("3个人在运动场上吃着一个红红的苹果，很开心", "两个戴着帽子的小女孩在人来人往的街道上吃着一个红红的苹果，天上有一朵朵白云",
     0.21565570667543832)])
def test_the_beam_keeps_what_the_originals_keeps(hypothesis, reference, expected):
    """Of these pairs METEOR's beam loses the best alignment, by the distances that it counts a state late."""
    assert meteor([hypothesis], [[reference]])[0] == pytest.approx(expected, abs=1e-12)


def test_a_perfect_sentence_adds_no_chunk_to_the_set():
    whole, each = meteor(["一只猫在桌子上", "桌子上一只猫在"], [["一只猫在桌子上"]] * 2)
    np.testing.assert_allclose([whole, *each], [0.5934334519597114, 1.0, 0.5329776750692976], rtol=0, atol=1e-12)


def test_meteor_counts_matches_and_chunks():
    found = align([*"上下左右"], [*"左右中上下"])
    assert (found.hypothesis, found.reference, found.matches, found.chunks) == (4, 5, 4, 2)


def test_meteor_is_the_same_however_words_are_cut():
    whole = ["一只黑色的猫", "一个人在骑车"]
    pieces = ["一只 黑色 的 猫", "一个 人 在 骑车"]
    other = [["一只猫很黑"], ["人在骑自行车"]]
    assert meteor(whole, other)[0] == meteor(pieces, other)[0] == meteor([" ".join(text) for text in whole], other)[0]


def test_longest_common_subsequence_by_the_usual_table():
    generator = np.random.default_rng(0)
    for _ in range(100):
        first, second = (list(generator.integers(0, 5, generator.integers(0, 80))) for _ in range(2))
        table = np.zeros([len(first) + 1, len(second) + 1], int)
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
        assert longest_common(first, second) == table[-1, -1]


def test_all_scores_come_with_a_signature():
    scores = score_captions(REFERENCES, HYPOTHESES, cut="coco-cn")
    figures = scores.figures()
    assert {"bleu_1", "bleu_4", "meteor", "rouge_l", "cider_d", "cider_plain"} <= figures.keys()
    assert figures["bleu_1"] == scores.bleu[0] > scores.bleu[3] > 0
    assert scores.images == ("a", "b", "c") and all(len(column) == 3 for column in scores.each.values())
    assert scores.each["cider_d"].mean() == scores.cider_d
    assert "cut coco-cn;" in scores.signature and "3 images, 6 references" in scores.signature


def test_signature_tells_protocols_and_references_apart():
    signatures = [score_captions(REFERENCES, HYPOTHESES, cut=cut).signature for cut in CUTS]
    signatures.append(score_captions(REFERENCES | {"c": ["海边 没有 树"]}, HYPOTHESES, cut="coco-cn").signature)
    assert len(set(signatures)) == len(CUTS) + 1
    assert [("jieba 0." in signature) for signature in signatures] == [True, False, True, False, False]


def test_words_and_characters_give_different_scores():
    by = {cut: score_captions(REFERENCES, HYPOTHESES, cut=cut) for cut in CUTS}
    assert by["characters"].bleu[0] > by["coco-cn"].bleu[0] > 0
    assert by["characters"].meteor == by["coco-cn"].meteor


def test_plain_cider_neither_clips_nor_counts_length():
    wanted = [[count_ngrams("一 只 猫".split())], [count_ngrams("两 条 狗".split())]]
    said = [count_ngrams(("一 只 猫 " * 4).split()), count_ngrams("两 条 狗".split())]
    scores = cider(said, wanted)
    assert scores.plain[1] == pytest.approx(scores.clipped[1]) == pytest.approx(7.5)  # no runs of four in three words
    assert scores.clipped[0] < 0.5 * scores.plain[0]


def test_a_word_more_costs_cider_d_its_length_penalty():
    other = [count_ngrams(["狗"])]
    one = cider([count_ngrams(["猫"]), other[0]], [[count_ngrams(["猫"])], other]).clipped[0]
    two = cider([count_ngrams(["猫", "猫"]), other[0]], [[count_ngrams(["猫"])], other]).clipped[0]
    assert two / one == pytest.approx(0.5 * np.exp(-1 / 72), rel=1e-12)


@pytest.mark.parametrize("hypotheses, sentence", [
    ({"a": "一只 猫", "c": "树"}, "lack b of 3 images"),
    (HYPOTHESES | {"d": "一只 猫"}, "caption d, of which there are no references"),
    ([*HYPOTHESES.items(), ("b", "一个 人")], "more than one caption for b"),
    (HYPOTHESES | {"b": ["一个 人"]}, "b: captions are text"),
])
def test_missing_unknown_and_double_images_are_refused(hypotheses, sentence):
    with pytest.raises(DataError, match=sentence):
        score_captions(REFERENCES, hypotheses, cut="coco-cn")


def test_uncut_text_is_refused_where_words_are_wanted():
    uncut = {image: text.replace(" ", "") for image, text in HYPOTHESES.items()}
    with pytest.raises(DataError, match="the hypothesis.* cut"):
        score_captions(REFERENCES, uncut | {"b": "两个人骑车路过海边的一棵树"}, cut="coco-cn")
    with pytest.raises(DataError, match="words have .* characters in the mean"):
        score_captions(REFERENCES, uncut, cut="coco-cn")
    whole = {image: [text.replace(" ", "") for text in texts] for image, texts in REFERENCES.items()}
    for cut in ("aic", "coco-cn"):
        with pytest.raises(DataError, match="a: the reference.* is not cut into words"):
            score_captions(whole, HYPOTHESES, cut=cut)
    for cut in ("jieba", "characters"):
        assert score_captions(whole, uncut, cut=cut).bleu[0] > 0.5


def test_one_image_alone_has_no_cider():
    with pytest.raises(DataError, match="at least two images"):
        score_captions({"a": REFERENCES["a"]}, {"a": HYPOTHESES["a"]}, cut="coco-cn")


@pytest.mark.parametrize("wanted, sentence", [([], "a: has no reference"), (["。", "一只 猫"], "no word to score"),
                                              ("一只 猫", "a list of references")])
def test_references_that_cannot_be_scored_are_refused(wanted, sentence):
    with pytest.raises(DataError, match=sentence):
        score_captions(REFERENCES | {"a": wanted}, HYPOTHESES, cut="characters")


def test_an_unknown_cut_is_refused():
    with pytest.raises(DataError, match="called words; choose one of aic, coco-cn, jieba, characters"):
        score_captions(REFERENCES, HYPOTHESES, cut="words")


def test_an_empty_hypothesis_scores_zero_and_is_counted():
    scores = score_captions(REFERENCES, HYPOTHESES | {"b": ""}, cut="coco-cn")
    assert scores.empty == 1
    assert [abs(scores.each[name][1]) < 1e-12 for name in ("bleu_1", "meteor", "rouge_l", "cider_d")] == [True] * 4


def test_a_set_without_a_match_is_scored_zero_aloud(caplog):
    score_captions(REFERENCES, HYPOTHESES, cut="coco-cn")
    assert not caplog.text
    english = {image: "a cat on a table" for image in REFERENCES}
    assert score_captions(REFERENCES, english, cut="coco-cn").bleu[0] < 1e-12
    assert "no word of any hypothesis" in caplog.text and "a cat on a table" in caplog.text


def test_chinese_punctuation_stays_a_word_by_the_papers_tokenizer():
    assert treebank("一只 猫 ， 很 可爱 。") == ["一只", "猫", "，", "很", "可爱", "。"]
    assert treebank("一只 猫 , 很 可爱 . ( T恤 )") == ["一只", "猫", "很", "可爱", "-lrb-", "t恤", "-rrb-"]
    assert aic_words("一只猫，很可爱。") == ["一只", "猫", "，", "很", "可爱"]
    assert jieba_words("一只猫，很可爱。") == ["一只", "猫", "很", "可爱"]


def test_jieba_glues_what_follows_a_digit():
    assert jieba_words("3个光") == jieba_words("3 个 光") == ["3", "个光"]
    assert treebank("3 个 光") == ["3", "个", "光"]


def test_words_that_a_program_teaches_jieba_change_nothing():
    import jieba

    before = jieba_words("双皮奶茶碗")
    jieba.add_word("双皮奶茶碗")
    try:
        assert jieba_words("双皮奶茶碗") == before != ["双皮奶茶碗"]
    finally:
        jieba.del_word("双皮奶茶碗")


@needs_java
def test_treebank_equals_the_original_tokenizer(tmp_path):
    jar = Path(pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").__file__).with_name(
        "stanford-corenlp-3.4.1.jar")
    references, _ = made_captions(200, seed=2)
    cut = [" ".join(jieba_words(text)) for texts in references.values() for text in texts]
    lines = [f"{first} ， {second} 。" if number % 2 else f"“ {first} ” …… 好 ！ {number} % {second} ."
             for number, (first, second) in enumerate(zip(cut, cut[1:]))]
    lines += ["（ 左 ） 、 图里 有 3 个光 ； 是 吗 ？ OK , yes . no ? a - b ... d : e ; 'f' (h) [i] 《 书 》 —— “ 好 ” 50% $5",
              "1,000 只 10:30 \"g\" 3.5cm ① ～ ·"]
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    printed = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines",
         "-lowerCase", str(tmp_path / "lines")], capture_output=True, check=True).stdout.decode()
    punctuation = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PUNCTUATIONS
    expected = [[word for word in line.split() if word not in punctuation] for line in printed.splitlines()]
    assert [treebank(line) for line in lines] == expected
