"""PaddleHub's clients are served by the same app."""
import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import vilg


@pytest.fixture(scope="module")
def pipeline(released_model):
    return vilg.load(released_model)


@pytest.fixture(scope="module")
def predict(served):
    def one(**inputs):
        request = urllib.request.Request(f"{served.url}/predict/ernie_vilg", json.dumps(inputs).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return one


def test_pictures_come_prompt_by_prompt(predict, pipeline):
    status, said = predict(text_prompts=["一个红色的圆形", "蓝色的方块"], topk=2, seed=4, temperature=0.7)
    assert (status, said["status"], said["msg"]) == (200, "000", "")
    own = pipeline.text_to_image(["一个红色的圆形", "蓝色的方块"], num_images=2, seed=4, temperature=0.7)
    drawn = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in said["results"]]
    assert len(drawn) == 4 and len({one.tobytes() for one in drawn}) == 4
    for one, other in zip(drawn, [picture for row in own for picture in row]):
        np.testing.assert_array_equal(one, np.asarray(other))


def test_styles_join_the_prompt_and_old_fields_are_taken(predict, pipeline):
    status, said = predict(text_prompts="圆形", style="卡通", resolution="1024*1536", topk=1, visualization=False,
                           output_dir="nowhere", temperature=1.5)
    assert status == 200 and len(said["results"]) == 1
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(said["results"][0]))))
    own = pipeline.text_to_image("圆形，卡通风格", temperature=1.5)[0][0]
    np.testing.assert_array_equal(drawn, np.asarray(own))
    assert (drawn != np.asarray(pipeline.text_to_image("圆形", temperature=1.5)[0][0])).any()
    assert len(predict(text_prompts="圆形")[1]["results"]) == 6


@pytest.mark.parametrize("inputs,word", [
    ({}, "text_prompts"), ({"text_prompts": ""}, "text_prompts"), ({"text_prompts": []}, "text_prompts"),
    ({"text_prompts": ["圆形", ""]}, "text_prompts"), ({"text_prompts": ["圆"] * 17}, "17"),
    ({"text_prompts": "圆形", "style": "石版画"}, "style"), ({"text_prompts": "圆形", "topk": 0}, "topk"),
    ({"text_prompts": "圆形", "resolution": "64*64"}, "resolution"),
    ({"text_prompts": "圆形", "use_gpu": 1}, "use_gpu"),
    ({"text_prompts": "圆形", "temperature": -1}, "temperature")])
def test_what_is_wrong_is_told_in_the_hubs_form(predict, inputs, word):
    status, said = predict(**inputs)
    assert (status, said["status"], said["results"]) == (400, "101", "") and word in said["msg"]
