"""Ways in which scores go wrong without a word, beyond those that tests of a format or a metric hold: what is computed
is told apart by its signature, and protocols that differ in one thing differ in their numbers."""
import json
from dataclasses import replace

import numpy as np
import pytest

import made_formats
from vilg.data.benchmarks.coco import image_key, read_prompts
from vilg.data.benchmarks.coco_cn import read_coco_cn
from vilg.data.benchmarks.files import read_predictions
from vilg.data.benchmarks.fmiqa import read_fmiqa
from vilg.errors import DataError
from vilg.evaluation.coco import score_images
from vilg.evaluation.features import Features, Protocol, Reference, read_reference, save_reference
from vilg.metrics.captions.bleu import bleu
from vilg.metrics.captions.ngrams import count_ngrams
from vilg.metrics.captions.rouge import rouge_l
from vilg.metrics.fidelity import inception_score, kernel_distance, precision_recall
from vilg.metrics.frechet import gaussian

PROTOCOL = Protocol("tf", "pytorch-fid", "0" * 64)


def features(seed=0, count=60, digest="aaaa"):
    random = np.random.default_rng(seed)
    return Features(random.normal(size=[count, 8]) + seed, 3 * random.normal(size=[count, 20]), digest)


def reference(seed=1, name="60 images bbbb"):
    found = features(seed)
    return Reference(gaussian(found.pool), found.pool, 60, name)


def scored(protocol=PROTOCOL, found=None, real=None, drawn="drawn by us, seed 0", subset=20):
    return {score.name: score for score in score_images(found or features(), real or reference(), protocol, drawn,
                                                        subset)}


@pytest.mark.parametrize("changed", [
    {"protocol": replace(PROTOCOL, weights="1" * 64)}, {"protocol": replace(PROTOCOL, resize="torch-fidelity")},
    {"found": features(digest="cccc")}, {"found": features(count=59)}, {"drawn": "drawn by us, seed 1"}],
    ids=["weights", "resize", "images", "count", "seed"])
def test_signatures_tell_apart_what_was_computed(changed):
    before, after = scored(), scored(**changed)
    assert before.keys() == after.keys() and len(before) >= 7
    assert all(after[name].signature != score.signature for name, score in before.items())


def test_a_reference_is_signed_where_it_counts():
    before, after = scored(), scored(real=reference(name="60 images dddd"))
    told = {name for name, score in before.items() if after[name].signature != score.signature}
    assert told == {"fid", "kid", "kid_std", "precision", "recall"}
    assert "seed 2020" in before["kid"].signature and "subsets of 20" in before["kid"].signature


def test_dm_gan_and_tf_take_the_inception_score_in_their_own_order():
    tf, dm_gan = scored(), scored(Protocol("dm-gan", "dm-gan", "0" * 64))
    assert "in order" in dm_gan["inception_score"].signature and "shuffled" in tf["inception_score"].signature
    logits = features().logits
    assert tf["inception_score"].value == inception_score(logits).mean
    assert dm_gan["inception_score"].value == inception_score(logits, shuffle_seed=None).mean
    assert abs(tf["inception_score"].value - dm_gan["inception_score"].value) > 1e-3


def test_kernel_and_neighbours_are_the_protocols():
    """(x·y/d + 1)³ over 100 subsets by seed 2020, three neighbours: each by its definition."""
    found, real = features().pool, reference().features
    draw, values = np.random.RandomState(2020), []
    for _ in range(100):
        x = found[draw.choice(60, 20, replace=False)]
        y = real[draw.choice(60, 20, replace=False)]
        kernels = [(a @ b.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        off = sum(kernel.sum() - np.trace(kernel) for kernel in kernels[:2]) / (20 * 19)
        values.append(off - 2 * kernels[2].mean())
    scores = scored()
    assert scores["kid"].value == pytest.approx(np.mean(values), rel=1e-9)
    assert scores["precision"].value == precision_recall(found, real, neighbours=3).precision
    assert precision_recall(found, real, neighbours=1).precision != scores["precision"].value
    assert kernel_distance(found, real, subset_size=20, seed=1).mean != scores["kid"].value


def test_a_reference_of_other_weights_or_another_resize_is_refused(tmp_path):
    real = Reference(gaussian(np.random.default_rng(0).normal(size=[3, 2048])), None, 3, "3 images")
    save_reference(tmp_path / "kept.npz", real, PROTOCOL)
    assert read_reference(tmp_path / "kept.npz", PROTOCOL).count == 3
    for other in (replace(PROTOCOL, resize="clean-fid"), replace(PROTOCOL, weights="1" * 64),
                  Protocol("dm-gan", "dm-gan", PROTOCOL.weights)):
        with pytest.raises(DataError) as error:
            read_reference(tmp_path / "kept.npz", other)
        assert PROTOCOL.signature in str(error.value) and other.signature in str(error.value)


def test_prompts_are_known_by_their_digest(tmp_path):
    path = made_formats.coco(tmp_path, 3)
    before = read_prompts(path).digest
    assert read_prompts(path).digest == before
    path.write_text(path.read_text(encoding="utf-8").replace("色", "的", 1), encoding="utf-8")
    assert read_prompts(path).digest != before


def test_questions_of_train_are_about_train2014(tmp_path):
    made_formats.fmiqa(tmp_path, 4)
    (tmp_path / "train2014").mkdir()
    assert {one.image.parent.name for one in read_fmiqa(tmp_path, "val")} == {"val2014"}
    (question,) = read_fmiqa(tmp_path, "train")
    assert question.image == tmp_path / "train2014/COCO_train2014_000000000007.jpg"
    content = json.loads((tmp_path / "FM-IQA.json").read_text(encoding="utf-8"))
    content["val"].append(content["val"][0])
    (tmp_path / "FM-IQA.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="val 5: question 101 came before"):
        read_fmiqa(tmp_path, "val")


def test_ids_that_are_none_are_named_with_their_file(tmp_path):
    made_formats.coco_cn(tmp_path / "cn", 3)
    (tmp_path / "said.txt").write_text("cat.png\t一只 猫\n", encoding="utf-8")
    (tmp_path / "said.jsonl").write_text('{"image_id": "cat.png", "caption": "猫"}\n', encoding="utf-8")
    (tmp_path / "zh.jsonl").write_text('{"image_id": "cat.png", "caption": "猫", "source": "me"}\n', encoding="utf-8")
    for name, read in (("said.txt", lambda path: read_predictions(path, image_key)),
                       ("said.jsonl: line 1", lambda path: read_predictions(path, image_key)),
                       ("zh.jsonl: line 1", read_prompts)):
        with pytest.raises(DataError, match=f"{name}.*'cat.png' is not a COCO image"):
            read(tmp_path / name.split(":")[0])
    listing = tmp_path / "cn/coco-cn-version1805v1.1/coco-cn_test.txt"
    listing.write_text("cat.png\n", encoding="utf-8")
    with pytest.raises(DataError, match="coco-cn_test.txt: 'cat.png' is not"):
        read_coco_cn(tmp_path / "cn")


def counted(*texts):
    return [count_ngrams(text.split()) for text in texts]


def test_bleu_takes_the_closest_length_and_of_two_the_shorter():
    """Three words against two and four: two is as close and shorter, so nothing is lost for being short."""
    (own,) = counted("a b c")
    assert bleu([own], [counted("a b", "a b c d")])[1][0, 0] == pytest.approx(1)
    assert bleu([own], [counted("a b c d", "a b c d e")])[1][0, 0] == pytest.approx(np.exp(1 - 4 / 3))


def test_bleu_of_a_set_sums_before_it_divides_and_nothing_is_nearly_zero():
    whole, each = bleu(counted("a b c d", "x"), [counted("a b c d"), counted("y")])
    assert whole[0] == pytest.approx(4 / 5) and each[:, 0].mean() == pytest.approx(0.5)
    assert 0 < each[1, 0] < 1e-14 and np.isfinite(each).all()


def test_rouge_takes_best_precision_and_best_recall_apart():
    """One reference holds all the words said, another is said in whole: both count, as from one sentence."""
    words = "a b c d".split()
    long, short = "a b c d e f g h".split(), "a".split()
    together = rouge_l([words], [[long, short]])[0]
    assert together == pytest.approx(1) and max(rouge_l([words] * 2, [[long], [short]])) < 0.7
    assert rouge_l([words], [[long]])[0] == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))
