"""From files of each public format to the paper's tables, by the commands that a user types."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import made_formats
from vilg import runtime
from vilg.app import pipeline
from vilg.data.benchmarks.coco import read_prompts
from vilg.evaluation import coco, features
from vilg.evaluation.human.kit import make_kit, read_items
from vilg.evaluation.tables import markdown

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run ``tools/evaluate.py`` in an empty folder; returns its status, what it printed, and its last error line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/evaluate.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools/evaluate.py"), run_name="__main__")
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        return left.value.code, output, (error.strip().splitlines() or [""])[-1]

    yield run
    runtime.configure(runtime.RuntimeConfig())


@pytest.fixture
def done(tool):
    """Run a command that has to work; returns what it printed."""
    def run(*arguments):
        status, output, last = tool(*arguments)
        assert status == 0, last
        return output

    return run


@pytest.fixture
def refused(tool):
    """Run a command that has to refuse; returns its sentence."""
    def run(*arguments):
        status, _, last = tool(*arguments)
        assert status == 2 and last.startswith("error: "), last
        return last

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return made_formats.inception_weights(tmp_path_factory.mktemp("weights") / "inception.safetensors")


def figures(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_formats_coco(done, refused, released_model, weights, tmp_path, monkeypatch, caplog):
    prompts = made_formats.coco(tmp_path / "coco")
    scoring = ["coco", "--data", "coco", "--weights", weights, "--protocol", "tf", "--kid-subset", 5]
    command = [*scoring, "--captions", prompts, "--model", released_model, "--best-of", 2, "--output", "runs/coco",
               "--json", "results/coco.json", "--save-reference", "reference.npz"]
    output = done(*command)
    found = figures(tmp_path / "results/coco.json")
    assert found["fid"] > 0 and found["images"] == 12 and 0 <= found["precision"] <= 1 <= found["inception_score"]
    assert "tf; resize pytorch-fid; weights " in found["signature.fid"] and "12 images" in found["signature.kid"]
    assert found["signature.recall"] in output and "fewer than the 2048 features" in caplog.text
    # The same again computes nothing that is there, and a picture that is gone is drawn as it was.
    drawn = sorted(Path("runs/coco/pictures").iterdir())
    before = drawn[3].read_bytes(), drawn[4].stat().st_mtime_ns
    drawn[3].unlink()
    protocol, network = features.load_protocol("tf", None, weights)
    files = coco.draw_prompts(pipeline.load(released_model), read_prompts(prompts), Path("runs/coco"), best_of=2)
    assert files == drawn and (drawn[3].read_bytes(), drawn[4].stat().st_mtime_ns) == before
    with monkeypatch.context() as patch:
        patch.setattr(features, "_computed", None)
        kept = features.image_features(files, network, protocol, Path("runs/coco/features"), "features")
    assert f"12 images {kept.digest}" in found["signature.fid"]
    # A prompt that is too long is refused before anything is drawn, and other settings do not go on with these.
    long = prompts.with_name("long.jsonl")
    long.write_text(prompts.read_text(encoding="utf-8") + '{"image_id": 77, "caption": "' + "圆" * 20 + '"}\n')
    said = refused(*[long if word == prompts else word for word in command])
    assert "image 77" in said and "by 6 tokens" in said
    assert "best_of 2, and this is with 3" in refused(*[3 if word == 2 else word for word in command])
    # Anybody's pictures, against the saved reference, are the same distance.
    done(*scoring, "--pictures", "runs/coco/pictures", "--reference", "reference.npz", "--output", "runs/coco",
         "--json", "given.json")
    given = figures(tmp_path / "given.json")
    assert given["fid"] == pytest.approx(found["fid"], rel=1e-6) and "kid" not in given
    others = [*scoring, "--pictures", "runs/coco/pictures", "--reference", "reference.npz", "--output", "runs/coco"]
    said = refused(*others, "--resize", "clean-fid")
    assert "resize pytorch-fid" in said and "resize clean-fid" in said
    items = read_items("runs/coco/items.jsonl", "images")
    assert len(items) == 12 and len(make_kit(items, "images", tmp_path / "kit", raters=1)["items"]) == 13


def test_formats_coco_refuses_what_does_not_belong(refused, weights, tmp_path):
    made_formats.coco(tmp_path / "coco", 2)
    command = ["coco", "--data", "coco", "--pictures", "coco/val2014", "--weights", weights]
    said = refused(*command, "--protocol", "dm-gan")
    assert "1000 classes" in said and "1008 classes" in said
    assert "by dm-gan, not by clean-fid" in refused(*command, "--protocol", "dm-gan", "--resize", "clean-fid")
    assert "choose one of dm-gan, tf" in refused(*command, "--protocol", "fid")
    np.savez("small.npz", mu=np.zeros(64), sigma=np.eye(64))
    said = refused(*command, "--protocol", "tf", "--reference", "small.npz")
    assert "mu [64]" in said and "[2048]" in said
    np.savez("pickled.npz", mu=np.array([{}], dtype=object), sigma=np.eye(2))
    Path("text.npz").write_text("mu")
    for name in ("pickled.npz", "text.npz"):
        assert name in refused(*command, "--protocol", "tf", "--reference", name)
    Path("coco/val2014/COCO_val2014_000000000002.jpg").write_bytes(b"no image")
    assert "000002.jpg" in refused(*command, "--protocol", "tf")
    Path("twice.jsonl").write_text('{"image_id": 1, "caption": "圆"}\n{"image_id": 1, "caption": "圆"}\n')
    command[3:5] = ["--captions", "twice.jsonl"]
    assert "twice.jsonl: line 2" in refused(*command, "--protocol", "tf")


def test_dm_gan_drops_the_last_partial_batch():
    protocol = features.find_protocol("dm-gan")
    assert protocol.usable(149) == 100 and features.find_protocol("tf").usable(149) == 149
    with pytest.raises(features.DataError, match="whole batches of 50"):
        protocol.usable(49)


def test_features_of_a_changed_image_are_taken_anew(weights, tmp_path):
    made_formats.coco(tmp_path, 2)
    protocol, network = features.load_protocol("tf", "torch-fidelity", weights)
    files = sorted((tmp_path / "val2014").iterdir())

    def take():
        return features.image_features(files, network, protocol, tmp_path / "cache", "features")

    first = take()
    kept = next((tmp_path / "cache").rglob("*.npz"))
    kept.write_bytes(kept.read_bytes()[:1000])  # a damaged file is no features
    assert (take().pool == first.pool).all()
    made_formats.save(files[1], 9)
    second = take()
    assert second.digest != first.digest and (second.pool[0] == first.pool[0]).all()
    assert not np.allclose(second.pool[1], first.pool[1])


def test_formats_aic_icc(done, refused, released_model, tmp_path, monkeypatch):
    names = made_formats.aic_icc(tmp_path / "aic")
    command = ["captions", "--format", "aic-icc", "--data", "aic"]
    done(*command, "--model", released_model, "--output", "said", "--json", "results/aic.json")
    found = figures(tmp_path / "results/aic.json")
    assert found["cuts"] == "aic characters" and "references cut by jieba here" in found["signature.aic"]
    # What the run wrote down is what it scored, and the same command goes on with it.
    done(*command, "--predictions", "said/predictions.jsonl", "--json", "again.json")
    assert figures(tmp_path / "again.json")["characters.meteor"] == found["characters.meteor"]
    path = Path("said/predictions.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    done(*command, "--model", released_model, "--output", "said")
    assert path.read_bytes() == whole
    # The first reference of every image is the best that can be said.
    right = [{"image_id": name, "caption": made_formats.captions(number)[0]} for number, name in enumerate(names)]
    Path("right.json").write_text(json.dumps(right))
    done(*command, "--predictions", "right.json", "--json", "right_figures.json")
    best = figures(tmp_path / "right_figures.json")
    assert best["aic.bleu_4"] == pytest.approx(1) and best["characters.rouge_l"] == 1 > found["characters.rouge_l"]
    for wrong, says in ((right[1:], names[0]), (right + right[:1], names[0]),
                        (right + [{"image_id": "cafe.jpg", "caption": "圆"}], "cafe")):
        Path("wrong.json").write_text(json.dumps(wrong))
        assert says in refused(*command, "--predictions", "wrong.json")
    Path("wrong.json").write_text(json.dumps([{"image_id": names[0], "caption": None}]))
    assert "record 1: caption" in refused(*command, "--predictions", "wrong.json")
    assert "belongs to another" in refused(*command, "--cut", "coco-cn", "--predictions", "right.json")


def test_formats_coco_cn(done, refused, released_model, tmp_path):
    names = made_formats.coco_cn(tmp_path / "cn")
    command = ["captions", "--format", "coco-cn", "--data", "cn"]
    done(*command, "--model", released_model, "--output", "said", "--json", "results/cn.json")
    assert figures(tmp_path / "results/cn.json")["cuts"] == "jieba characters"
    lines = [f"{name}\t{' '.join(made_formats.captions(number + 1, 2)[0])}\n" for number, name in enumerate(names)]
    Path("right.txt").write_text("".join(lines), encoding="utf-8")
    done(*command, "--predictions", "right.txt", "--json", "right.json")
    assert figures(tmp_path / "right.json")["coco-cn.bleu_4"] == pytest.approx(1)
    Path("uncut.txt").write_text("".join(line.replace(" ", "") for line in lines), encoding="utf-8")
    assert "not cut" in refused(*command, "--predictions", "uncut.txt")
    done(*command, "--predictions", "uncut.txt", "--cut", "jieba", "--references", "manually-translated")
    done(*command, "--predictions", "said/predictions.jsonl", "--cut", "characters")
    assert "no such" in refused(*command, "--split", "test", "--model", "absent")
    assert "train, val, test" in refused(*command, "--split", "validation", "--predictions", "right.txt")
    Path("cn/coco-cn-version1805v1.1/imageid.human-written-caption.bosonseg.txt").unlink()
    assert "jieba or characters" in refused(*command, "--predictions", "right.txt")


def test_words_tagged_by_a_segmenter_lose_their_tags(tmp_path):
    from vilg.data.benchmarks.coco_cn import read_coco_cn

    names = made_formats.coco_cn(tmp_path, 2)
    path = tmp_path / "coco-cn-version1805v1.1/imageid.human-written-caption.bosonseg.txt"
    path.write_text(f"{names[0]}#0\t一个:m 男人:n\n{names[1]}#0\t3:2 的 屏幕\n", encoding="utf-8")
    assert list(read_coco_cn(tmp_path).references.values()) == [["一个 男人"], ["3:2 的 屏幕"]]


def test_formats_fmiqa(done, refused, released_model, tmp_path):
    records = made_formats.fmiqa(tmp_path / "qa")
    command = ["fmiqa", "--data", "qa", "--count", 6, "--seed", 3, "--raters", 2]
    done(*command, "--model", released_model, "--output", "judged", "--json", "exact.json")
    found = figures(tmp_path / "exact.json")
    assert found["exact"] == 0 and found["task"] == "fmiqa" and "6 questions" in found["signature.exact"]
    key = figures(tmp_path / "judged/kit/key.json")
    plain = [item for item in key["items"] if item["system"]]
    assert len(plain) == 12 and {item["system"] for item in plain} == {"human", "untrained"}
    truth = {str(record["question_id"]): record for record in records}
    for item in plain:
        assert item["question"] == truth[item["item"]]["Question"]
        assert item["system"] != "human" or item["text"] == truth[item["item"]]["Answer"]
    # Anybody's answers to the same questions make a kit too; half of them are the person's, one with a full stop.
    lines = [json.dumps({"question_id": int(item["item"]), "answer": item["text"] + "。" * (place == 0) if place < 3
                         else "不知道"}) for place, item in enumerate(one for one in plain if one["system"] == "human")]
    Path("theirs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done(*command, "--answers", "theirs.jsonl", "--output", "half", "--json", "exact.json")
    assert figures(tmp_path / "exact.json")["exact"] == 0.5
    done(*command, "--answers", "judged/answers.jsonl", "--name", "theirs", "--output", "theirs")
    assert "human" in refused(*command, "--answers", "judged/answers.jsonl", "--name", "human", "--output", "other")
    lines = Path("judged/answers.jsonl").read_text(encoding="utf-8").splitlines()
    for wrong, says in ((lines[1:], "no answer"), ([*lines, lines[0]], "answered twice"),
                        ([*lines, '{"question_id": 1, "answer": "圆"}'], "question 1 is not among the 6")):
        Path("wrong.jsonl").write_text("\n".join(wrong), encoding="utf-8")
        assert says in refused(*command, "--answers", "wrong.jsonl", "--output", "other")
    assert "the split has 1" in refused(*command, "--split", "train", "--model", released_model)


def test_formats_human_and_tables(done, refused, tmp_path):
    from test_human import export, written

    lines = []
    for number in range(6):
        for place, system in enumerate(("ours", "theirs")):
            made_formats.save(tmp_path / f"{system}{number}.png", number + place)
            lines.append({"item": number, "system": system, "image": f"{system}{number}.png", "text": f"句子{number}",
                          "question": "几个？"})
    Path("items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    good = {"images": [5, 4, 3], "captions": [2, 1, 0], "answers": [1, 2]}
    for kind, numbers in good.items():
        done("human", "make", "--kind", kind, "--items", "items.jsonl", "--raters", 2, "--output", kind)
        key = figures(tmp_path / kind / "key.json")
        paths = written(tmp_path, *(export(key, rater, lambda trial, item: numbers if item["system"] == "ours" else [
            value - (value > 1) for value in numbers]) for rater in (1, 2)))
        done("human", "report", "--key", f"{kind}/key.json", *paths, "--json", f"results/{kind}.json")
    assert "is not the key" in refused("human", "report", "--key", "results/images.json", *paths)
    done("tables", "--results", "results")
    text = Path("results/tables.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ours")]
    assert [row.split(" | ")[1].split()[0] for row in rows] == ["5.00", "2.00", "100.0"]
    assert "| ERNIE-ViLG published | 78.5 | 1.495 |" in text and "kit " in text
    Path("results/images.json").write_text(json.dumps(figures(tmp_path / "results/images.json") | {"signature": ""}))
    assert "images.json" in refused("tables", "--results", "results")
    Path("results/images.json").write_text("{")
    assert "images.json" in refused("tables", "--results", "results")


def test_tables_give_every_value_its_signature(caplog):
    """Figures as the protocols write them, and this project's own table 7."""
    results = {
        "a.json": {"task": "coco", "fid": 12.345, "drawn_by": "we", "protocol": "dm-gan (dm-gan)",
                   "signature.fid": "f1"},
        "b.json": {"task": "captions", "format": "aic-icc", "cuts": "aic", "aic.bleu_4": 0.25, "aic.cider_d": 0.5,
                   "described_by": "we", "signature.aic": "c1"},
        "table7.json": figures(ROOT / "docs/table7.json"), "odd.json": {"speed": 3}}
    text = markdown(results)
    assert "| we, dm-gan (dm-gan) [1] | 12.35 |" in text.replace("12.34 ", "12.35 ") and "[1] `f1`" in text
    assert "| we, by aic [1] | 25.0 |  |  | 50.0 |" in text and "[1] `c1`" in text
    assert "| real picture tokens, end-to-end reconstructor [6] | 91.8 ± 0.3 |" in text and "no Inception FID" in text
    assert text.count("## Table ") == 7 and "odd.json" in caplog.text


def test_progress_says_the_rate_and_the_time_left():
    from vilg.progress import progress, skip

    with progress(total=100, desc="features", unit="image") as bar:
        skip(bar, 40)
        bar.update(20)
        said = bar.format_meter(**{**bar.format_dict, "elapsed": 10.0, "rate": None})
        assert said.startswith("features:  60% 60/100 [00:10<00:20,  2.00image/s"), said  # not 6 a second
    with progress(total=100, shown=False) as bar:
        skip(bar, 40)  # nothing to count on


@pytest.mark.parametrize("name, make", [("aic_icc", made_formats.aic_icc), ("coco_cn", made_formats.coco_cn),
                                        ("fmiqa", made_formats.fmiqa)])
def test_formats_are_trained_on(name, make, tmp_path):
    """The small fine-tuning configs read the same files, and every sample has what its benchmark is about."""
    from vilg.data.config import build_source
    from vilg.run.build import load_run

    make(tmp_path / name)
    split = {"aic_icc": "validation", "coco_cn": "test", "fmiqa": "val"}[name]
    run = load_run(ROOT / f"configs/vilg/benchmarks/{name}_tiny.yaml", [
        f"data.sources.0.path={tmp_path / name}", f"data.sources.0.split={split}"])
    source = build_source(run.data.sources[0], None)
    sample = source[1]
    assert len(source) >= 8 and sample.image.shape == (48, 48, 3)
    if name == "fmiqa":
        assert len(sample.questions) == 1 and sample.captions == []
    else:
        assert len(sample.captions) >= 2 and " " not in sample.captions[0]


def test_a_benchmark_without_its_images_is_refused(tmp_path):
    from vilg.data.benchmarks.source import BenchmarkConfig, BenchmarkSource
    from vilg.errors import DataError

    made_formats.fmiqa(tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="looked for as .*COCO_val2014_000000000001.jpg"):
        BenchmarkSource(BenchmarkConfig(format="fmiqa", path=str(tmp_path), split="val"))


def test_formats_fine_tune_then_score(tmp_path):
    """Two steps on FM-IQA's files, whose images have questions alone; the run's model then answers."""
    from vilg.run.build import build_trainer, load_run

    made_formats.fmiqa(tmp_path / "qa")
    run = load_run(ROOT / "configs/vilg/benchmarks/fmiqa_tiny.yaml", [
        f"data.sources.0.path={tmp_path / 'qa'}", "data.sources.0.split=val", "train.steps=2", "train.batch_size=2",
        f"task.init_from={ROOT / 'model_zoo/ernie_vilg_tiny'}", f"output={tmp_path / 'run'}",
        f"task.image_tokenizer={ROOT / 'model_zoo/ernie_vilg_tiny/image_tokenizer'}",
        f"task.vocabulary={ROOT / 'model_zoo/ernie_vilg_tiny'}"])
    trainer = build_trainer(run)
    trainer.fit()
    trainer.export(tmp_path / "run/model")
    model = pipeline.load(tmp_path / "run/model")
    assert isinstance(model.answer([tmp_path / "qa/val2014/COCO_val2014_000000000001.jpg"], ["有什么？"])[0], str)


def test_a_judge_chooses_and_scores_the_pictures(released_model, encoder, other_encoder, tmp_path):
    from vilg.errors import ConfigError

    prompts, model = read_prompts(made_formats.coco(tmp_path, 4)), pipeline.load(released_model)
    scores = {}
    for name, judge in (("own", None), ("judged", encoder), ("single", None)):
        count = 1 if name == "single" else 6
        files = coco.draw_prompts(model, prompts, tmp_path / name, count, judge=judge)
        found = next(coco.text_image_score(encoder, prompts, files, name))
        scores[name] = found.value
    assert scores["judged"] > scores["own"] and scores["judged"] > scores["single"]
    assert encoder.fingerprint[:12] in found.signature and "4 images single" in found.signature
    texts, images = encoder.embed_text([one.caption for one in prompts.prompts]), encoder.embed_image(files)
    wanted = 100 * np.maximum(np.diag(texts @ images.T), 0).mean()
    assert scores["single"] == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ConfigError, match=f"judge {encoder.fingerprint}.*{other_encoder.fingerprint}"):
        coco.draw_prompts(model, prompts, tmp_path / "judged", 6, judge=other_encoder)


def test_formats_coco_with_a_judge(done, released_model, encoder, weights, tmp_path, monkeypatch):
    prompts = made_formats.coco(tmp_path / "coco", 4)
    monkeypatch.setattr(pipeline, "load_encoder", {"named": encoder}.get)
    output = done("coco", "--data", "coco", "--weights", weights, "--protocol", "tf", "--captions", prompts, "--model",
                  released_model, "--best-of", 2, "--judge", "named", "--output", "run", "--json", "figures.json")
    found = figures(tmp_path / "figures.json")
    assert 0 <= found["clip_score"] <= 100 and found["signature.clip_score"] in output
    assert f"best of 2 by {encoder.name} {encoder.fingerprint[:12]}" in found["signature.fid"]
