"""tools/search.py from the images to the sheet, with the model that it loads replaced by an untrained one."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.app import pipeline
from vilg.data.worlds import scenes

TOOL = Path(__file__).resolve().parents[3] / "tools/search.py"
COUNT = 6


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, encoder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "load_any", lambda *_: encoder)
    Path("photos").mkdir()
    for number in range(COUNT):
        Image.fromarray(scenes.render(scenes.sample_scene(number, "train"), 32)).save(f"photos/{number}.png")

    def go(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/search.py", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(TOOL), run_name="__main__")
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        return left.value.code, output, error

    return go


def test_from_images_to_hits_and_a_sheet(run, encoder, tmp_path):
    status, output, _ = run("index", "photos", "--output", "index")
    assert status == 0 and output == "index: 6 images, 6 of them embedded now; 0 could not be read\n"
    assert "0 of them embedded now" in run("index", "photos", "--output", "index")[1]
    status, output, _ = run("query", "一个红色的圆形", "蓝色的方块", "--index", "index", "--count", "3", "--threshold", "0",
                            "--sheet", "out/hits.png", "--json", "hits.jsonl")
    found = [json.loads(line) for line in Path("hits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert status == 0 and [row["query"] for row in found] == ["一个红色的圆形", "蓝色的方块"]
    similarities = encoder.similarity(["一个红色的圆形", "蓝色的方块"], [f"photos/{number}.png" for number in range(COUNT)])
    for row, truth in zip(found, similarities):
        best = np.argsort(-truth)[:3]
        assert [Path(hit["image"]).name for hit in row["hits"]] == [f"{number}.png" for number in best]
        assert [hit["similarity"] for hit in row["hits"]] == pytest.approx(truth[best], abs=1e-5)
    assert output.splitlines()[1] == f"  {similarities[0].max():.3f}  {found[0]['hits'][0]['image']}"
    sheet = Image.open("out/hits.png").convert("RGB")
    first = Image.open(found[0]["hits"][0]["image"])  # 32 pixels, in the middle of a cell of 96
    assert sheet.crop((330 + 32, 8 + 32, 330 + 64, 8 + 64)).tobytes() == first.convert("RGB").tobytes()


def test_images_find_their_like(run):
    run("index", "photos", "--output", "index")
    status, output, _ = run("query", "--image", "photos/3.png", "--index", "index", "--json", "-", "--sheet", "s.png")
    assert status == 0 and json.loads(output)["hits"][0]["image"].endswith("photos/3.png")


def test_nothing_matches_is_said(run):
    run("index", "photos", "--output", "index")
    status, output, _ = run("query", "红色", "--index", "index", "--threshold", "1")
    assert status == 0 and output == "红色\n  nothing matches\n"


@pytest.mark.parametrize("arguments, sentence", [
    (["index", "nowhere", "--output", "index"], "nowhere: there is no such folder"),
    (["index", "photos", "--output", "photos"], "holds other data already"),
    (["query", "红色", "--index", "photos"], "photos: holds no index"),
    (["query", "龘", "--index", "index"], "has no word that the vocabulary of untrained_3 knows"),
    (["query", "红色" * 40, "--index", "index"], "80 tokens and this model reads 38"),
    (["query", "--image", "no.png", "--index", "index"], "no.png: "),
    (["query", "红色", "--index", "index", "--count", "0"], "at least 1, not 0"),
    (["query", "红色", "--index", "index", "--json", "photos"], "name another with --json"),
])
def test_bad_input_is_a_sentence(run, arguments, sentence):
    run("index", "photos", "--output", "index")
    status, _, error = run(*arguments)
    assert status == 2 and error.splitlines()[-1].startswith("error: ") and sentence in error.splitlines()[-1]


def test_texts_or_images_and_not_both(run):
    for arguments in (["query", "--index", "index"], ["query", "红", "--image", "a.png", "--index", "index"]):
        assert "give texts or --image" in run(*arguments)[2]
