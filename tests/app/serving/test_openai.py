"""The real client of OpenAI against a running server: what it gets is what the pipeline gives, to the bit."""
import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

import vilg
from vilg.app.serving.pictures import as_png

PROMPTS = ["一个红色的圆形", "圆形在左边", "图里有几个", "蓝色的方块"]


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pipeline(released_model):
    return vilg.load(released_model)


@pytest.fixture(scope="module")
def pictures(pipeline):
    return [np.asarray(pipeline.text_to_image(text, seed=number)[0][0]) for number, text in enumerate(PROMPTS)]


def seen(item):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))).convert("RGB"))


def address(picture):
    return f"data:image/png;base64,{as_png(picture)}"


def asked(text, picture):
    return [{"role": "user", "content": [{"type": "text", "text": text},
                                         {"type": "image_url", "image_url": {"url": address(picture)}}]}]


def test_pictures_are_those_of_the_pipeline(client, pipeline, served):
    drawn = []
    for text in PROMPTS:
        got = client.images.generate(model=pipeline.name, prompt=text, n=3, size="16x16",
                                     extra_body={"seed": 5, "temperature": 0.8, "guidance": 1.7})
        own = pipeline.text_to_image(text, num_images=3, seed=5, temperature=0.8, guidance=1.7)[0]
        assert len(got.data) == 3 and got.seed == 5
        for one, other in zip(got.data, own):
            np.testing.assert_array_equal(seen(one), np.asarray(other))
        drawn += [seen(one).tobytes() for one in got.data]
    assert len(set(drawn)) == len(drawn)


def test_without_a_seed_every_picture_is_another(client):
    first, second = (client.images.generate(prompt="圆形", extra_body={"temperature": 1.5}) for _ in range(2))
    assert first.seed != second.seed


def test_a_stream_shows_the_picture_row_by_row(client, pipeline):
    events = list(client.images.generate(model=pipeline.name, prompt="圆形", stream=True, extra_body={"seed": 3}))
    own = np.asarray(pipeline.text_to_image("圆形", seed=3)[0][0])
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    np.testing.assert_array_equal(seen(events[-1]), own)
    for row, event in enumerate(events[:-1], 1):
        assert event.partial_image_index == row - 1
        assert (seen(event)[4 * row:] == 128).all() and (seen(event)[:4 * row] != 128).any()


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_stream_shows_no_more_pictures_than_wanted(client, most):
    events = list(client.images.generate(prompt="圆形", stream=True, partial_images=most, extra_body={"seed": 3}))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * most + ["completed"]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_an_edit_draws_what_is_transparent_and_keeps_the_rest(client, pipeline, pictures):
    alpha = np.full([16, 16], 255, "uint8")
    alpha[8:, :6] = 0  # the second token of a row is transparent in part
    mask = png(np.dstack([pictures[0], alpha]))
    got = client.images.edit(model=pipeline.name, image=("a.png", png(pictures[0])), mask=("m.png", mask),
                             prompt="方块", extra_body={"seed": 9, "temperature": 1.2})
    keep = np.ones([4, 4], bool)
    keep[2:, :2] = False
    own = pipeline.text_to_image("方块", seed=9, temperature=1.2, known_image=pictures[0], known_mask=keep)[0][0]
    np.testing.assert_array_equal(seen(got.data[0]), np.asarray(own))
    without = client.images.edit(model=pipeline.name, image=("a.png", mask), prompt="方块",
                                 extra_body={"seed": 9, "temperature": 1.2})
    assert seen(without.data[0]).shape == (16, 16, 3)
    noise = np.random.default_rng(0).integers(0, 256, [16, 16, 3]).astype("uint8")
    other = client.images.edit(model=pipeline.name, image=("a.png", png(noise)), mask=("m.png", mask),
                               prompt="方块", extra_body={"seed": 9, "temperature": 1.2})
    assert (seen(other.data[0]) != seen(got.data[0])).any()


def test_chat_describes_and_answers(client, pipeline, pictures):
    said = []
    for picture in pictures:
        described = client.chat.completions.create(model=pipeline.name, messages=asked("描述这张图片", picture))
        answered = client.chat.completions.create(model=pipeline.name, messages=asked("图里有几个？", picture))
        assert described.choices[0].message.content == pipeline.image_to_text([picture])[0]
        assert answered.choices[0].message.content == pipeline.answer([picture], ["图里有几个？"])[0]
        said += [described.choices[0].message.content, answered.choices[0].message.content]
    assert len(set(said)) > len(pictures)


def test_tokens_that_were_read_and_written_are_counted(client, pipeline, pictures):
    spent = [client.chat.completions.create(model=pipeline.name, messages=asked(text, pictures[0]))
             for text in ("几个？", "图里有几个？")]
    words = pipeline.text_tokenizer
    for got, text in zip(spent, ("几个？", "图里有几个？")):
        said = got.choices[0].message.content
        assert got.usage.prompt_tokens == len(text)  # every character is a token
        assert got.usage.completion_tokens == len(words.encode(said, 99)) - 2
    drawn = client.images.generate(model=pipeline.name, prompt="圆形", n=2)
    assert (drawn.usage.input_tokens, drawn.usage.output_tokens) == (2, 2 * 16)


def test_chat_streams_the_same_words(client, pipeline, pictures):
    chunks = list(client.chat.completions.create(model=pipeline.name, messages=asked("描述", pictures[1]),
                                                 stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == pipeline.image_to_text([pictures[1]])[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat_takes_the_last_question_and_the_last_picture(client, pipeline, pictures):
    talk = [*asked("描述", pictures[0]), {"role": "assistant", "content": "好"},
            *asked("图里有几个？", pictures[2])]
    got = client.chat.completions.create(model=pipeline.name, messages=talk).choices[0].message.content
    assert got == pipeline.answer([pictures[2]], ["图里有几个？"])[0]


def test_embeddings_of_texts_and_pictures(client, encoder, pictures):
    inputs = ["红苹果", address(pictures[0]), "立体风格", address(pictures[1])]
    for form in ("float", "base64"):
        got = client.embeddings.create(model="matcher", input=inputs, encoding_format=form)
        vectors = np.array([np.frombuffer(base64.b64decode(one.embedding), "<f4") if form == "base64"
                            else one.embedding for one in got.data])
        np.testing.assert_allclose(vectors[[0, 2]], encoder.embed_text([inputs[0], inputs[2]]), atol=2e-3)
        np.testing.assert_allclose(vectors[[1, 3]], encoder.embed_image(pictures[:2]), atol=2e-3)
        assert [one.index for one in got.data] == [0, 1, 2, 3] and got.usage.prompt_tokens > 0


def test_many_embeddings_are_one_request_of_the_queue(client, encoder, served):
    inputs = [("红苹果", "立体风格")[number % 2] for number in range(2 * served.api.engine.queue)]
    got = client.embeddings.create(model="matcher", input=inputs)
    vectors, two = np.array([one.embedding for one in got.data]), encoder.embed_text(inputs[:2])
    np.testing.assert_allclose(vectors, np.tile(two, [len(inputs) // 2, 1]), atol=2e-3)


def test_models_are_listed(client, pipeline):
    assert {model.id for model in client.models.list()} == {pipeline.name, "matcher"}
    assert client.models.retrieve("matcher").id == "matcher"
    with pytest.raises(openai.NotFoundError, match="'nobody' is not loaded; there are"):
        client.models.retrieve("nobody")


WRONG = [
    ({"prompt": ""}, "prompt", "is empty"), ({"prompt": "红" * 40}, "prompt", "40"),
    ({"prompt": "红" * 20000}, "prompt", "10000"), ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 11}, "n", "less than or equal to 10"), ({"n": "2"}, "n", "integer"), ({"n": 1.5}, "n", "integer"),
    ({"n": True}, "n", "integer"), ({"size": "64x64"}, "size", "draws 16x16"), ({"seed": -1}, "seed", "0"),
    ({"seed": 2 ** 60}, "seed", "less than"), ({"seed": "1"}, "seed", "integer"),
    ({"response_format": "url"}, "response_format", "b64_json"), ({"quality": "hd"}, "quality", "auto"),
    ({"temperature": -1}, "temperature", "temperature must be 0 or"), ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "above 0"), ({"top_k": -1}, "top_k", "0 for all"), ({"guidance": 1e9}, "guidance", "1e6"),
    ({"steps": 4}, "steps", "draws token by token"), ({"best": 3}, "best", "no field"),
    ({"stream": True, "n": 2}, "n", "one picture is streamed"), ({"stream": "yes"}, "stream", "boolean"),
    ({"partial_images": 2}, "partial_images", "say stream: true"), ({"model": 3}, "model", "string"),
]


@pytest.mark.parametrize("fields,param,words", WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_told_by_its_field(client, fields, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "圆形", "extra_body": fields})
    assert caught.value.param == param and words in caught.value.message


CHATS = [([], "messages"), ([{"role": "user", "content": "你好"}], "messages"),
         ([{"role": "assistant", "content": "好"}], "messages"),
         ([{"role": "system", "content": "好"}, *asked("描述", np.zeros([4, 4, 3], "uint8"))], "messages.0"),
         ([{"role": "user", "content": 3}], "messages"),
         (asked("描述", np.zeros([4, 4, 3], "uint8"))[:0] + [{"role": "user", "content": [
             {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}]}], "messages"),
         ([{"role": "user", "content": [{"type": "image_url", "image_url": {
             "url": "data:image/png;base64,aGVsbG8="}}]}], "messages"),
         ([{"role": "user", "content": [{"type": "image_url", "image_url": {
             "url": "data:image/png;base64,*"}}]}], "messages")]


@pytest.mark.parametrize("messages,param", CHATS, ids=range(len(CHATS)))
def test_a_talk_about_nothing_is_refused(client, pipeline, messages, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=pipeline.name, messages=messages)
    assert caught.value.param.startswith(param)


def test_models_of_another_kind_and_none_are_refused(client, pipeline, pictures):
    with pytest.raises(openai.BadRequestError, match="'matcher' is none that draws"):
        client.images.generate(model="matcher", prompt="圆形")
    with pytest.raises(openai.BadRequestError, match="none that makes vectors"):
        client.embeddings.create(model=pipeline.name, input="圆形")
    with pytest.raises(openai.NotFoundError, match="'gone' is not loaded"):
        client.chat.completions.create(model="gone", messages=asked("描述", pictures[0]))


@pytest.mark.parametrize("image,mask,param", [
    (b"nothing", None, "image"), (png(np.zeros([16, 16, 3], "uint8")), None, "image"),
    (png(np.zeros([16, 16, 3], "uint8")), png(np.zeros([16, 16, 3], "uint8")), "mask"),
    (png(np.zeros([16, 16, 3], "uint8")), b"nothing", "mask")])
def test_an_edit_of_nothing_is_refused(client, image, mask, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("a.png", image), prompt="圆形", **({"mask": ("m.png", mask)} if mask else {}))
    assert caught.value.param == param


def test_embeddings_of_nothing_are_refused(client):
    for given, words in (([], "1 to 256"), (["圆形"] * 257, "1 to 256"), ("", "empty"), ("\u0001", "empty"),
                         ("红" * 20000, "characters")):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(model="matcher", input=given)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="matcher", input="圆形", dimensions=7)
