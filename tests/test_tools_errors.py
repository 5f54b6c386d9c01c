"""What a tool does with bad input: one sentence that names the thing, status 2, no traceback, nothing lost."""
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vilg
from vilg import runtime
from vilg.evaluation.emoji import read_emoji

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run ``tools/<name>.py`` in this process, in an empty folder; returns (status, standard output,
    last error line)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        return left.value.code, output, (error.strip().splitlines() or [""])[-1]

    yield run
    runtime.configure(runtime.RuntimeConfig())  # a tool sets the process up as its config says


@pytest.fixture
def refused(tool):
    """Run a tool that has to refuse; returns its sentence."""
    def run(name, *arguments):
        status, _, last = tool(name, *arguments)
        assert status == 2, last
        assert last.startswith("error: "), last
        return last.removeprefix("error: ")

    return run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, [24, 24, 3], dtype="uint8")).save(path)
    return path


CONFIG = ROOT / "configs/image_tokenizer/tiny.yaml"


@pytest.mark.parametrize("arguments, sentence", [
    (["--set", "optim.learning_speed=1"], "optim.learning_speed: unknown key"),
    (["--set", "sead=1"], "sead: unknown key (did you mean seed?)"),
    (["--set", "seed=soon"], "seed: must be a whole number, got 'soon'"),
    (["--set", "task.kind=painting"], "task.kind: must be one of"),
    (["--set", "seed"], "--set seed: write it as key.subkey=value"),
    (["--set", "seed=-1"], "seed must not be negative, got -1"),
    (["--set", "output=runs/{run}"], "output may hold {name} and no other braces, got 'runs/{run}'"),
    (["--set", "data.sources=[{kind: folder, path: nowhere}]"], "nowhere: there is no such folder"),
    (["--set", "data.sources=[{kind: table, path: no.tsv}]"], "no.tsv"),
])
def test_train_refuses_a_config_by_the_path_of_its_key(refused, arguments, sentence):
    assert sentence in refused("train", "--config", CONFIG, *arguments)


def test_train_names_a_missing_config_and_prints_a_whole_one(refused, tool):
    assert "absent.yaml: there is no such file" in refused("train", "--config", "absent.yaml")
    status, output, _ = tool("train", "--config", CONFIG, "--set", "seed=7", "--print-config")
    assert status == 0 and yaml.safe_load(output)["seed"] == 7


def test_train_refuses_to_resume_from_nothing(refused, tmp_path):
    assert "nowhere" in refused("train", "--config", CONFIG, "--set", f"output={tmp_path}/run", "--resume",
                                "nowhere", "--set", "data.sources=[{kind: scenes, count: 64}]")


@pytest.mark.parametrize("arguments, sentence", [
    (["text2image", ""], "the prompt '' is empty"),
    (["text2image", "红" * 40], "has 40 tokens and this model reads 14"),
    (["text2image", "\udcba\udcec"], "cannot be read as characters"),
    (["text2image", "红", "--num-images", "0"], "num_images must be at least 1"),
    (["text2image", "红", "--top-p", "0"], "top_p must be above 0"),
    (["text2image", "红", "--device", "gpu:99"], "the device 'gpu:99' is not there"),
    (["image2text", "absent.png"], "absent.png: the image is missing"),
    (["vqa", "absent.png", "--question", "几个？"], "absent.png: the image is missing"),
])
def test_infer_refuses_in_one_sentence(refused, released_model, arguments, sentence):
    assert sentence in refused("infer", arguments[0], *arguments[1:], "--model", released_model)


def test_infer_refuses_pictures_that_are_none(refused, released_model, picture, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png"):
        assert f"{name}: not a whole image" in refused("infer", "image2text", name, "--model", released_model)
    assert "question '' is empty" in refused("infer", "vqa", picture, "--question", "", "--model", released_model)


def test_an_image_that_cannot_be_read_costs_its_own_result_and_a_folder_is_its_images(tool, released_model, picture,
                                                                                      tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    other = folder / "deep" / "b.PNG"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 30, 3)).astype("uint8")).save(other, "PNG")
    shutil.copy(picture, folder / "a.png")
    (folder / "a.txt").write_text("a caption beside it")
    (folder / "cut.png").write_bytes(picture.read_bytes()[:200])
    (folder / "._a.png").write_text("a Mac's")
    model = vilg.load(str(released_model))
    texts = dict(zip([str(folder / "a.png"), str(other)], model.image_to_text([picture, other])))
    for task, more in (("image2text", []), ("vqa", ["--question", "几个？"])):
        status, output, error = tool("infer", task, "absent.png", folder, *more, "--json", "said.jsonl", "--model",
                                     released_model)
        said = [json.loads(line) for line in Path("said.jsonl").read_text(encoding="utf-8").splitlines()]
        assert status == 2 and [record["image"] for record in said] == [*texts]
        assert "absent.png: the image is missing" in error and "(1 more of the 4 images" in error
        if task == "image2text":
            assert {record["image"]: record["text"] for record in said} == texts
    (folder / "empty").mkdir()
    status, _, error = tool("infer", "image2text", folder / "empty", "--model", released_model)
    assert status == 2 and "empty: holds no image" in error


def test_infer_writes_pictures_with_their_story_and_keeps_what_is_there(tool, refused, released_model, tmp_path):
    for _ in range(2):
        status, _, _ = tool("infer", "text2image", "红色的圆形", "--num-images", "2", "--output", "drawn", "--json",
                            "drawn.jsonl", "--model", released_model)
        assert status == 0
    assert len(list((tmp_path / "drawn").glob("[0-9]*.png"))) == 4
    record = json.loads((tmp_path / "drawn.jsonl").read_text(encoding="utf-8").splitlines()[0])
    info = Image.open(tmp_path / record["image"]).info
    assert info["prompt"] == "红色的圆形" and info["seed"] == "0" and info["model"] == "untrained"


def test_infer_checks_where_the_results_go_before_it_draws(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for option, place in (("--output", "file"), ("--output", "file/below"), ("--json", "file/below"), ("--json", ".")):
        sentence = refused("infer", "text2image", "红", option, place, "--model", "no model is looked for")
        assert sentence.startswith(f"{place}: ") and sentence.endswith(option)
    assert (tmp_path / "file").read_text() == "in the way"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_infer_makes_the_folder_of_the_json_file_and_names_one_that_is_full(tool, refused, released_model, picture):
    status, _, _ = tool("infer", "image2text", picture, "--json", "new/deep/x.jsonl", "--model", released_model)
    assert status == 0
    assert json.loads(Path("new/deep/x.jsonl").read_text(encoding="utf-8"))["image"] == str(picture)
    if Path("/dev/full").exists():
        sentence = refused("infer", "image2text", picture, "--json", "/dev/full", "--model", released_model)
        assert sentence.startswith("/dev/full: cannot be written (No space left")


def test_infer_keeps_its_results_where_the_terminal_lacks_a_character(released_model, picture, tmp_path):
    """In a process of its own: the encoding of standard output belongs to the process."""
    shutil.copy(picture, tmp_path / "🍎.png")
    command = [sys.executable, str(ROOT / "tools/infer.py"), "image2text", "🍎.png", "--model", str(released_model)]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "gbk"}}
    for_people = subprocess.run([*command, "--json", "x.jsonl"], capture_output=True, **options)
    assert for_people.returncode == 0 and for_people.stdout.startswith(rb"\U0001f34e.png")
    written = json.loads((tmp_path / "x.jsonl").read_text(encoding="utf-8"))
    assert written["image"] == "🍎.png"
    printed = subprocess.run([*command, "--json", "-"], capture_output=True, **options)
    assert json.loads(printed.stdout.decode("gbk")) == written


def test_the_demo_takes_any_seed(tool, monkeypatch):
    monkeypatch.setattr("vilg.app.demo.SCENES", ("一个红色的圆形",))
    monkeypatch.setattr("vilg.app.demo.EMOJI", ())
    monkeypatch.setattr("vilg.app.demo.PROMPTS", ("一个红色的圆形",))
    for seed in (-1, 2 ** 64 - 1):
        status, _, last = tool("infer", "demo", "--seed", seed, "--output", "demo", "--json", f"seed{seed}.jsonl")
        assert status == 0, last
    ours, theirs = (Path(f"seed{seed}.jsonl").read_text(encoding="utf-8").splitlines() for seed in (-1, 2 ** 64 - 1))
    answers = [line for line in ours if "truth" in line]
    assert len(answers) == 8 and answers == [line for line in theirs if "truth" in line]


def test_the_demo_shows_another_model_beside(tool, released_model, monkeypatch, tmp_path):
    monkeypatch.setattr("vilg.app.demo.SCENES", ("一个红色的圆形",))
    monkeypatch.setattr("vilg.app.demo.EMOJI", ())
    monkeypatch.setattr("vilg.app.demo.PROMPTS", ("一个红色的圆形",))
    for name, more in (("alone", []), ("both", ["--beside", released_model])):
        status, _, last = tool("infer", "demo", "--model", released_model, *more, "--output", name)
        assert status == 0, last
    alone, both = ([Image.open(file) for file in sorted((tmp_path / name).glob("[0-9]*.png"))]
                   for name in ("alone", "both"))
    assert len(both) == len(alone) + 4 and {picture.info["model"] for picture in both} == {"untrained"}
    assert Image.open(tmp_path / "both/demo.png").height > Image.open(tmp_path / "alone/demo.png").height


@pytest.fixture
def broken_model(released_model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(released_model, folder)
    return folder


def test_models_that_are_missing_cut_short_or_mixed_up(refused, broken_model, picture):
    describe = ("infer", "image2text", picture, "--model")
    assert "nobody: no such model" in refused(*describe, "nobody")
    weights = broken_model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:len(whole) // 2])
    assert "model.safetensors: not a whole safetensors file" in refused(*describe, broken_model)
    weights.unlink()
    assert "model.safetensors: there is no such weights file" in refused(*describe, broken_model)
    weights.write_bytes(whole)
    vocabulary = (broken_model / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary[5], vocabulary[6] = vocabulary[6], vocabulary[5]
    (broken_model / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    assert "vocab" in refused(*describe, broken_model)


def test_a_model_with_another_image_tokenizer_is_refused(refused, broken_model, picture):
    from vilg.weights.files import read_weights, save_weights

    path = broken_model / "image_tokenizer" / "model.safetensors"
    state = read_weights(path)
    name = next(name for name, value in state.items() if value.dtype == np.float32)
    save_weights(path, {**state, name: state[name] + 1}, dtype="float16")
    sentence = refused("infer", "image2text", picture, "--model", broken_model)
    assert "tokenizer" in sentence


def test_evaluate_and_encode_images_name_what_is_missing(refused, released_model):
    assert "nobody: no such model" in refused("evaluate", "scenes", "--model", "nobody")
    assert "nowhere" in refused("evaluate", "emoji", "--model", released_model, "--data", "nowhere")
    assert "absent.yaml" in refused("encode_images", "--config", "absent.yaml", "--output", "codes")
    sentence = refused("encode_images", "--config", ROOT / "configs/vilg/tiny/7_settle.yaml", "--output", "codes")
    assert sentence.startswith("data.sources.0: holds codes already; name the images")


def test_build_vocab_names_what_it_cannot_count(refused, tmp_path):
    assert "nothing.txt: there is no such file" in refused("build_vocab", "nothing.txt")
    assert "name caption files or folders" in refused("build_vocab")
    (tmp_path / "captions.txt").write_text("红色", encoding="utf-8")
    assert "a vocabulary of 9 tokens is too small" in refused("build_vocab", "captions.txt", "--size", "9")
    assert not (tmp_path / "vocab.txt").exists()
    (tmp_path / "folder").mkdir()
    assert "folder: is a folder; name the file" in refused("build_vocab", "captions.txt", "--output", "folder")


@pytest.mark.parametrize("arguments, sentence", [
    (["index", "one.tar"], "one.tar: is no folder; name the one that holds the .tar files"),
    (["pack", "--scenes", "4", "--output", "new", "--size", "-5"], "a size of -5 pixels is none"),
    (["pack", "--scenes", "4", "--output", "new", "--samples-a-shard", "0"], "0 samples a shard are none"),
    (["pack", "--scenes", "0", "--output", "new"], "count, size, captions and repeat are at least 1"),
    (["scenes", "--count", "4", "--output", "new", "--size", "0"], "a size of 0 pixels is none"),
    (["scenes", "--count", "2", "--output", "older"], "older: holds other images already, such as 9.png"),
])
def test_prepare_data_refuses_in_one_sentence(refused, tmp_path, arguments, sentence):
    tarfile.open(tmp_path / "one.tar", "w").close()
    (tmp_path / "older").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "older/9.png")
    assert sentence in refused("prepare_data", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_every_tool_explains_itself(tool, name):
    status, output, _ = tool(name, "--help")
    assert status == 0 and len(output) > 200


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_help_does_not_wait_for_paddle(path):
    program = ("import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
               "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
               "except SystemExit: pass\n"
               "print('heavy', sorted({'paddle', 'gradio', 'matplotlib', 'fastapi', 'jieba'} & sys.modules.keys()))")
    said = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(path.parent)])})
    assert said.stdout.splitlines()[-1] == "heavy []", said.stderr


@pytest.mark.parametrize("task, model", [("scenes", "ernie_vilg_tiny"), ("emoji", "ernie_vilg_tiny"),
                                         ("coco", "ernie_vilg_tiny"), ("retrieval", "ernie_vil_tiny"),
                                         ("zero-shot", "ernie_vil_tiny")])
def test_each_evaluation_has_the_shipped_model_that_it_is_about(tool, task, model):
    status, output, _ = tool("evaluate", task, "--help")
    assert status == 0 and f"model folder ({model})" in " ".join(output.split())


def test_a_refusal_leaves_a_process_with_status_2():
    command = [sys.executable, "tools/train.py", "--config", "absent.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: absent.yaml: there is no such file")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name, arguments, sentence", [
    ("plan", [ROOT / "configs/vilg/10b.yaml", "--device-memory", 80, "--devices", 8, "--efficiency", 0], "are above 0"),
    ("plan", [ROOT / "configs/vilg/10b.yaml", "--device-memory", 80, "--devices", 8, "--picture", "p.xyz"], "plan.png"),
    ("evaluate", ["scenes", "--seed", -1], "--seed not negative"),
    ("evaluate", ["emoji", "--count", 0], "--count and --best-of are at least 1"),
])
def test_a_number_that_cannot_be_meant_is_refused_before_any_work(tool, name, arguments, sentence):
    status, _, last = tool(name, *arguments)
    assert status == 2 and sentence in last


def test_a_plan_makes_the_folder_that_it_writes_to(tool, tmp_path):
    status, _, _ = tool("plan", ROOT / "configs/vilg/10b.yaml", "--device-memory", 80, "--devices", 8, "--json",
                        tmp_path / "new" / "plan.json", "--picture", tmp_path / "other" / "plan.png")
    assert status == 0 and json.loads((tmp_path / "new" / "plan.json").read_text())["devices"] == 8
    assert (tmp_path / "other" / "plan.png").is_file()


def test_a_broken_emoji_is_left_out_and_named(tmp_path, caplog):
    for name in ("a", "b"):
        Image.new("RGB", [64, 64], "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    names, pictures = read_emoji(str(tmp_path), 64)
    assert names == ["a"] and len(pictures) == 1 and "left out: " in caplog.text and "b.png" in caplog.text
