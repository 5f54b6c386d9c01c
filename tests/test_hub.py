"""The hub entries: paddle.hub's, which need nothing extra, and the PaddleHub module, which needs the hub extra."""
import base64
import io
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from vilg.errors import VilgError

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["一个红色的圆形", "蓝色的方块"]


def same(left, right):
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(left, right, strict=True))


def test_paddle_hub_lists_explains_and_loads(released_model):
    entries = paddle.hub.list(str(ROOT), source="local")
    assert sorted(entries) == ["answer", "ernie_vilg", "ernie_vilg_tiny", "image_to_text", "text_to_image"]
    assert "list of PIL pictures" in paddle.hub.help(str(ROOT), "text_to_image", source="local")
    model = paddle.hub.load(str(ROOT), "ernie_vilg", source="local", name=str(released_model))
    drawn = model.text_to_image(PROMPTS, num_images=2, seed=3)
    at_once = paddle.hub.load(str(ROOT), "text_to_image", source="local", texts=PROMPTS, num_images=2, seed=3,
                              name=str(released_model))
    assert [len(row) for row in at_once] == [2, 2]
    assert all(same(left, right) for left, right in zip(drawn, at_once, strict=True))
    guarded = paddle.hub.load(str(ROOT), "text_to_image", source="local", texts=PROMPTS[0], name=str(released_model),
                              guidance=4.0, guidance_min_p=0.5)[0][0]
    assert (guarded.info["guidance"], guarded.info["guidance_min_p"]) == (4.0, 0.5)
    said = paddle.hub.load(str(ROOT), "image_to_text", source="local", images=[drawn[0][0]], name=str(released_model))
    assert said == model.image_to_text([drawn[0][0]])
    answered = paddle.hub.load(str(ROOT), "answer", source="local", images=[drawn[0][0]], questions=["有几个？"],
                               name=str(released_model))
    assert answered == model.answer([drawn[0][0]], ["有几个？"])


@pytest.fixture(scope="module")
def module(released_model, tmp_path_factory):
    hub = pytest.importorskip("paddlehub", reason="the hub extra is not installed")
    # Loaded from elsewhere, as `hub install` copies it.
    folder = tmp_path_factory.mktemp("hub") / "ernie_vilg"
    shutil.copytree(ROOT / "model_zoo/hub/ernie_vilg", folder)
    return hub.Module(directory=str(folder), model=str(released_model))


@pytest.mark.extras
def test_the_module_draws_as_the_service_did(module, tmp_path):
    pictures = module.generate_image(PROMPTS, topk=3, output_dir=str(tmp_path))
    assert len(pictures) == 6 and all(isinstance(picture, Image.Image) for picture in pictures)
    written = sorted(tmp_path.glob("[0-9]*.png"))
    assert len(written) == 6 and same(pictures, map(Image.open, written))
    assert same(pictures[3:], module.generate_image(PROMPTS[1], topk=3, visualization=False))
    assert not same(pictures[3:], module.generate_image(PROMPTS[1], topk=3, visualization=False, seed=1))


@pytest.mark.extras
def test_equal_prompts_are_drawn_twice_and_styles_join_the_prompt(module):
    pictures = module.generate_image([PROMPTS[0]] * 2, topk=1, visualization=False)
    assert len(pictures) == 2
    styled, = module.generate_image(PROMPTS[0], style="卡通", topk=1, visualization=False)
    assert styled.info["prompt"] == "一个红色的圆形，卡通风格"
    with pytest.raises(ValueError, match="style must be one of"):
        module.generate_image(PROMPTS[0], style="石版画")
    with pytest.raises(VilgError, match="empty"):
        module.generate_image("")


@pytest.mark.extras
def test_the_module_takes_the_settings_of_drawing(module, tmp_path):
    settings = {"temperature": 0.5, "top_p": 0.9, "guidance": 4.0, "guidance_min_p": 0.5}
    drawn, = module.generate_image(PROMPTS[0], topk=1, visualization=False, **settings)
    assert {name: drawn.info[name] for name in settings} == settings
    told = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    ran = module.run_cmd(["--text_prompts", PROMPTS[0], "--topk", "1", "--output_dir", str(tmp_path), *told])
    assert same([drawn], ran) and ran[0].info == drawn.info
    served, = module.serving_method(PROMPTS[0], topk=1, **settings)
    assert same([drawn], [Image.open(io.BytesIO(base64.b64decode(served)))])
    with pytest.raises(VilgError, match="guidance_min_p must be from 0 to 1"):
        module.generate_image(PROMPTS[0], guidance_min_p=2.0)


@pytest.mark.extras
def test_the_module_runs_and_serves(module, tmp_path):
    pictures = module.run_cmd(["--text_prompts", *PROMPTS, "--topk", "1", "--output_dir", str(tmp_path / "out")])
    assert len(pictures) == 2 and len(list((tmp_path / "out").glob("[0-9]*.png"))) == 2
    served = module.serving_method(PROMPTS, topk=1)
    assert same(pictures, [Image.open(io.BytesIO(base64.b64decode(text))) for text in served])


@pytest.mark.extras
def test_every_call_of_version_1_1_is_taken(module, tmp_path, caplog):
    plain = module.generate_image(PROMPTS[0], topk=1, visualization=False)
    assert not caplog.text
    drawn = module.generate_image(PROMPTS[0], "探索无限", "1024*1536", 1, False, str(tmp_path))
    assert same(plain, drawn) and "resolution 1024*1536 has no effect: this model draws 16×16" in caplog.text
    caplog.clear()
    ran = module.run_cmd(["--text_prompts", PROMPTS[0], "--resolution", "1024*1024", "--topk", "1", "--ak", "a", "--sk",
                          "b", "--visualization", "False", "--output_dir", str(tmp_path / "none")])
    assert same(plain, ran) and not (tmp_path / "none").exists()
    assert "ak and sk have no effect" in caplog.text and "resolution 1024*1024" in caplog.text
    assert "b" not in [record.args for record in caplog.records]
    with pytest.raises(ValueError, match="resolution must be one of"):
        module.generate_image(PROMPTS[0], resolution="64*64")
    for style, told in (("像素风格", "，像素风格"), ("超现实主义", "，超现实主义风格"), ("概念艺术", "，概念艺术风格")):
        assert module.generate_image("圆", style, topk=1, visualization=False)[0].info["prompt"] == "圆" + told


@pytest.mark.extras
def test_keys_of_the_service_are_taken(module, released_model, caplog):
    hub = pytest.importorskip("paddlehub", reason="the hub extra is not installed")
    hub.Module(directory=str(ROOT / "model_zoo/hub/ernie_vilg"), ak="a", sk="b", model=str(released_model))
    assert "ak and sk have no effect" in caplog.text


@pytest.mark.extras
def test_a_style_without_room_is_left_out_with_a_warning(module, caplog):
    fits = "一个红色的圆形在左边"  # 10 of the 14 tokens that the model reads
    styled, = module.generate_image(fits, style="卡通", topk=1, visualization=False)
    assert styled.info["prompt"] == fits and "it is 1 too long: drawn without the style" in caplog.text
    with pytest.raises(VilgError, match="has 15 tokens and this model reads 14"):
        module.generate_image("一" * 15, style="卡通", topk=1, visualization=False)
