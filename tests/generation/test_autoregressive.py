import numpy as np
import paddle
import pytest

from test_decoding import build, texts
from vilg.errors import ShapeError
from vilg.generation.autoregressive import generate_images, generate_text
from vilg.generation.rerank import score_text
from vilg.generation.sampling import SamplingConfig

END = 2


@pytest.fixture(scope="module")
def model():
    return build(rows=4, columns=5)


def codes_of(count):
    return paddle.to_tensor(np.random.default_rng(2).integers(0, 12, (count, 20)))


@pytest.mark.parametrize("settings", [{}, {"top_k": 4, "guidance": 2.0}])
def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(model, settings):
    text, length = texts(5, 2, 3, 4, 5, 5, 3, 2)
    sampling = SamplingConfig(**settings)
    seeds = list(range(8))
    together = generate_images(model, text, length, num_images=2, seeds=seeds, sampling=sampling).codes.numpy()
    for row in (0, 3, 7):
        alone = generate_images(model, text[row:row + 1], length[row:row + 1], seeds=[seeds[row]], sampling=sampling)
        np.testing.assert_array_equal(alone.codes.numpy()[0], together[2 * row])
    assert len({tuple(row) for row in together}) == 16


def test_logits_have_the_same_bits_in_every_batch():
    model = build(rows=2, columns=3, width=64, heads=4, text_length=24)
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 20, (8, 24)))
    length = paddle.to_tensor([24, 3, 9, 17, 2, 5, 8, 24])
    known = dict(known_codes=paddle.zeros([1, 6], "int64"), known_mask=paddle.ones([6], "bool"), keep_hidden="predicting")
    together = generate_images(model, ids, length, num_images=3, **known).hidden.numpy()
    for row in range(8):
        alone = generate_images(model, ids[row:row + 1], length[row:row + 1], **known).hidden.numpy()
        np.testing.assert_array_equal(alone[0], together[3 * row])


def test_samples_are_the_same_ones_in_parts(model):
    text, length = texts(5, 2)
    whole = generate_images(model, text, length, num_images=5, seeds=4, keep_hidden="predicting")
    part = generate_images(model, text, length, num_images=2, seeds=4, keep_hidden="predicting", first_sample=3)
    for ours, theirs in ((part.codes, whole.codes), (part.hidden, whole.hidden)):
        ours, theirs = (value.numpy().reshape(2, -1, *value.shape[1:]) for value in (ours, theirs))
        np.testing.assert_array_equal(ours, theirs[:, 3:])


def test_guidance_mixes_the_logits_of_the_text_and_of_no_text(model):
    (text, length), empty = texts(5, 4), (paddle.to_tensor([[1, 2, 0, 0, 0]]), paddle.to_tensor([2]))
    strength = 3.0
    drawn = generate_images(model, text, length, sampling=SamplingConfig(temperature=0.0, guidance=strength)).codes
    told = model.image_logits(model.text_to_image_hidden(text, length, drawn)).numpy()
    free = model.image_logits(model.text_to_image_hidden(empty[0].tile([2, 1]), empty[1].tile([2]), drawn)).numpy()
    np.testing.assert_array_equal((free + strength * (told - free)).argmax(-1), drawn.numpy())
    assert (told.argmax(-1) != drawn.numpy()).any(), "the test shows nothing"


def test_guidance_of_one_is_the_plain_model_and_the_text_is_left_alone(model):
    text, length = texts(5, 4)
    before = text.numpy().copy()
    plain = generate_images(model, text, length, seeds=4).codes.numpy()
    nearly = generate_images(model, text, length, seeds=4, sampling=SamplingConfig(guidance=1 + 1e-6)).codes.numpy()
    np.testing.assert_array_equal(plain, nearly)
    np.testing.assert_array_equal(text.numpy(), before)


def test_known_tokens_are_kept_and_the_rest_is_drawn_around_them(model):
    text, length = texts(5, 3)
    known, mask = codes_of(2), np.arange(20) % 3 == 1
    drawn = generate_images(model, text, length, num_images=2, known_codes=known, known_mask=paddle.to_tensor(mask),
                            sampling=SamplingConfig(temperature=0.0)).codes
    np.testing.assert_array_equal(drawn.numpy()[:, mask], np.repeat(known.numpy(), 2, axis=0)[:, mask])
    logits = model.image_logits(model.text_to_image_hidden(text, length, drawn[::2])).numpy()
    np.testing.assert_array_equal(logits.argmax(-1)[:, ~mask], drawn.numpy()[::2][:, ~mask])


def test_progress_is_told_of_every_step(model):
    steps = []
    generate_images(model, *texts(5), progress=steps.append)
    assert steps == [1] * 20


def write_without_cache(model, codes, prompt, prefix):
    """Greedy decoding by a full forward pass a token."""
    ids, at, written = prompt.copy(), max(prefix, 1), []
    while at < len(ids) and written[-1:] != [END]:
        ids[at:] = 0
        text = paddle.to_tensor(ids[None]), paddle.to_tensor([at]), paddle.to_tensor([prefix])
        hidden = model.image_to_text_hidden(codes, *text)
        written.append(int(model.text_logits(hidden[:, at - 1]).argmax()))
        ids[at] = written[-1]
        at += 1
    return written


@pytest.mark.parametrize("prefixes", [[0, 0, 0], [2, 4, 3], [0, 2, 4]])
def test_text_is_what_full_forward_passes_would_write(prefixes):
    model = build(rows=3, columns=4, text_length=9)
    codes = codes_of(3)[:, :12]
    prompt = np.random.default_rng(5).integers(3, 20, (3, 9))
    written = generate_text(model, codes, paddle.to_tensor(prompt), paddle.to_tensor(prefixes), end_id=END).numpy()
    for row, prefix in enumerate(prefixes):
        wanted = write_without_cache(model, codes[row:row + 1], prompt[row], prefix)
        got = written[row].tolist()
        assert got[:len(wanted)] == wanted and set(got[len(wanted):]) <= {END}


def test_writing_stops_at_the_limit_and_when_all_have_ended(model):
    start = paddle.ones([2, 1], "int64"), paddle.zeros([2], "int64")
    assert generate_text(model, codes_of(2), *start, max_tokens=2).shape == [2, 2]
    first = generate_text(model, codes_of(2)[:1].tile([2, 1]), *start, max_tokens=1).numpy()[0, 0]
    ended = generate_text(model, codes_of(2)[:1].tile([2, 1]), *start, end_id=int(first)).numpy()
    assert ended.tolist() == [[first], [first]]


def test_score_is_the_log_probability_of_the_text(model):
    text, length = texts(5, 3, 4)
    codes = codes_of(3)
    scores = score_text(model, codes, text, length, batch_size=2).numpy()
    for row in range(3):
        one = slice(row, row + 1)
        hidden = model.image_to_text_hidden(codes[one], text[one], length[one], paddle.to_tensor([0]))
        logits = model.text_logits(hidden).numpy()[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = sum(log_p[j, int(text[row, j + 1])] for j in range(int(length[row]) - 1))
        np.testing.assert_allclose(scores[row], wanted, rtol=1e-4)


def test_input_that_does_not_fit_is_refused_with_both_numbers(model):
    text, length = texts(5, 3)
    with pytest.raises(ShapeError, match="6 tokens .* 5"):
        generate_images(model, paddle.ones([1, 6], "int64"), paddle.to_tensor([6]))
    with pytest.raises(ShapeError, match="max_tokens is -1"):
        generate_text(model, codes_of(1), paddle.ones([1, 1], "int64"), paddle.zeros([1], "int64"), max_tokens=-1)
    with pytest.raises(ShapeError, match="3 seeds for 2 texts"):
        generate_images(model, text, length, seeds=[1, 2, 3])
    with pytest.raises(ShapeError, match="known_codes has 19 .* 4×5 has 20"):
        generate_images(model, text, length, known_codes=codes_of(1)[:, :19], known_mask=paddle.ones([20], "bool"))
    with pytest.raises(ShapeError, match="prompt of 5 tokens .* 5"):
        generate_text(model, codes_of(1), text[:1], paddle.to_tensor([5]))


def test_training_mode_is_given_back(model):
    model.train()
    generate_images(model, *texts(5), known_codes=codes_of(1), known_mask=paddle.ones([20], "bool"))
    assert model.training
    model.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_is_never_written(model, temperature):
    codes, prompt, prefix = codes_of(40), paddle.full([40, 1], 1, "int64"), paddle.zeros([40], "int64")
    sampling = SamplingConfig(temperature=temperature)
    write = lambda never: generate_text(model, codes, prompt, prefix, sampling, list(range(40)), never=never).numpy()
    free = write(None)
    commonest = int(np.bincount(free.reshape(-1)).argmax())
    kept = write(commonest)
    assert (free == commonest).sum() > 5 and not (kept == commonest).any()
    absent = next(token for token in range(20) if not (free == token).any()) if temperature == 0 else None
    if absent is not None:
        np.testing.assert_array_equal(write(absent), free)


def test_an_unknown_word_does_not_count_in_a_score(model):
    text, length = paddle.to_tensor([[1, 7, 9, 2, 0]]), paddle.to_tensor([4])
    codes = codes_of(1)
    parts = [score_text(model, codes, text, length, unk_id=unk_id).item() for unk_id in (None, 7, 9, 2)]
    assert sum(parts[1:]) == pytest.approx(2 * parts[0], rel=1e-4) and len(set(parts)) == 4
