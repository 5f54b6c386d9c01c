"""InfoNCE: plain against numpy, tiled against plain, equal rows, what a batch of several views adds up to."""
import numpy as np
import paddle
import pytest

from vilg import config
from vilg.errors import ConfigError, DataError, ShapeError
from vilg.losses.contrastive import PAIRS, ContrastiveConfig, Views, info_nce, multi_view_loss

IDS = {"none": None, "ids": [[0], [1], [0], [2], [3], [1], [4], [0], [5], [6], [7]],
       "two columns": [[0, 0], [1, 1], [0, 2], [2, 3], [3, 3], [1, 4], [4, 4], [0, 5], [5, 6], [6, 7], [7, 0]]}


def ids_of(kind: str) -> paddle.Tensor | None:
    if IDS[kind] is None:
        return None
    ids = paddle.to_tensor(np.array(IDS[kind]))
    return ids[:, 0] if kind == "ids" else ids


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(rows: int = 11, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.normal(size=[rows, width])
    return unit(a).astype("float32"), unit(a + 0.7 * random.normal(size=[rows, width])).astype("float32")


def by_hand(a: np.ndarray, b: np.ndarray, scale: float, ids: np.ndarray | None) -> tuple[float, float]:
    """Loss and accuracy, pair by pair, in float64."""
    scores, count = scale * a.astype("float64") @ b.astype("float64").T, len(a)
    seen = np.ones([count, count], bool)
    for i in range(count):
        for j in range(count):
            if ids is not None and i != j and np.any(ids.reshape(count, -1)[i] == ids.reshape(count, -1)[j]):
                seen[i, j] = False
    losses, hits = [], 0
    for i in range(count):
        losses += [np.log(np.exp(scores[i][seen[i]]).sum()) - scores[i, i],
                   np.log(np.exp(scores[:, i][seen[:, i]]).sum()) - scores[i, i]]
        hits += scores[i, i] == scores[i][seen[i]].max()
    return float(np.mean(losses)), hits / count


def run(a: np.ndarray, b: np.ndarray, scale: float, ids: paddle.Tensor | None, tile: int, weight: float = 1.0):
    """Loss, accuracy and the three gradients of ``weight`` times the loss."""
    inputs = [paddle.to_tensor(a), paddle.to_tensor(b), paddle.to_tensor([scale])]
    for x in inputs:
        x.stop_gradient = False
    pair = info_nce(*inputs, ids, tile)
    (weight * pair.loss).backward()
    return pair.loss.item(), pair.accuracy.item(), [x.grad.numpy() for x in inputs]


@pytest.mark.parametrize("tile", [0, 3, 100])
@pytest.mark.parametrize("kind", IDS)
def test_loss_and_accuracy_are_those_of_the_definition(kind, tile):
    a, b = features()
    ids = ids_of(kind)
    loss, accuracy, _ = run(a, b, 9.0, ids, tile)
    expected, share = by_hand(a, b, 9.0, None if ids is None else ids.numpy())
    assert loss == pytest.approx(expected, abs=1e-6) and accuracy == pytest.approx(share, abs=1e-6)


def test_the_three_masks_tell_each_other_apart():
    a, b = features()
    found = {kind: run(a, b, 9.0, ids_of(kind), 0)[0] for kind in IDS}
    assert len({round(loss, 4) for loss in found.values()}) == 3


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("kind", ["none", "few", "columns"])
@pytest.mark.parametrize("tile", [32, 50, 199])
def test_tiles_give_the_plain_value_and_gradients(tile, kind, scale):
    a, b = features(200, 24)
    random = np.random.default_rng(1)
    ids = {"none": None, "few": paddle.to_tensor(random.integers(0, 30, [200])),
           "columns": paddle.to_tensor(random.integers(0, 90, [200, 2]))}[kind]
    plain, tiled = (run(a, b, scale, ids, size, weight=2.5) for size in (0, tile))
    assert abs(plain[0] - tiled[0]) <= 1e-6 * max(1.0, plain[0])
    assert plain[1] == pytest.approx(tiled[1], abs=1e-6)
    for expected, found in zip(plain[2], tiled[2]):
        assert expected.shape == found.shape
        assert np.abs(expected - found).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_tiles_never_hold_all_scores(monkeypatch):
    from vilg.losses import contrastive

    shapes, product = [], contrastive._product

    def noted(x, y, **transposed):
        shapes.append(product(x, y, **transposed).shape)
        return product(x, y, **transposed)

    monkeypatch.setattr(contrastive, "_product", noted)
    run(*features(200, 24), 9.0, None, 64)
    assert max(rows * columns for rows, columns in shapes) == 64 * 200


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_go_where_they_are_wanted_alone(wanted):
    inputs = [*(paddle.to_tensor(x) for x in features(40)), paddle.to_tensor([5.0])]
    inputs[wanted].stop_gradient = False
    info_nce(*inputs, None, 16).loss.backward()
    assert [x.grad is not None for x in inputs] == [number == wanted for number in range(3)]
    expected = run(*features(40), 5.0, None, 0)[2][wanted]
    np.testing.assert_allclose(inputs[wanted].grad.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("tile", [0, 5])
def test_equal_rows_are_no_negatives(tile):
    twice = np.tile(np.eye(6, dtype="float32"), (2, 1))  # every thing twice: the model is perfect and cannot do better
    ids = paddle.arange(6).tile([2])
    assert run(twice, twice, 20.0, ids, tile)[0] == pytest.approx(0, abs=1e-5)
    assert run(twice, twice, 20.0, None, tile)[0] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.parametrize("tile", [0, 8])
def test_a_collapsed_model_has_the_accuracy_of_chance(tile):
    same = np.ones([20, 4], "float32") / 2
    loss, accuracy, _ = run(same, same, 10.0, None, tile)
    assert accuracy == pytest.approx(1 / 20) and loss == pytest.approx(np.log(20), abs=1e-5)


def test_half_precision_vectors_are_compared_in_float32():
    a, b = features(64, 32)
    exact = run(a, b, 8.0, None, 16)[0]
    halves = [paddle.to_tensor(x).astype("bfloat16") for x in (a, b)]
    pair = info_nce(*halves, paddle.to_tensor([8.0]), None, 16)
    rounded = run(*(x.astype("float32").numpy() for x in halves), 8.0, None, 0)[0]
    assert pair.loss.dtype == paddle.float32 and pair.loss.item() == pytest.approx(rounded, abs=1e-5)
    assert rounded != pytest.approx(exact, abs=1e-5)


def views(rows: int = 9) -> Views:
    paddle.seed(0)
    made = {name: paddle.nn.functional.normalize(paddle.randn([rows, 5])) for name in
            ("image", "caption", "other_image", "other_caption", "tags")}
    return Views(**made, ids=paddle.to_tensor([0, 1, 2, 3, 4, 5, 6, 1, 0][:rows]))


def settings(**values) -> ContrastiveConfig:
    off = dict.fromkeys(PAIRS, 0.0)
    return config.from_dict(ContrastiveConfig, off | values)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_weight_counts_its_own_pair(pair):
    scale, batch = paddle.to_tensor([7.0]), views()
    total, figures = multi_view_loss(batch, scale, settings(**{pair: 0.5}))
    left, right = (getattr(batch, name) for name in PAIRS[pair])
    alone = info_nce(left, right, scale, batch.ids)
    assert total.item() == pytest.approx(0.5 * alone.loss.item(), abs=1e-6)
    assert figures.keys() == {"temperature", f"{pair}_loss", f"{pair}_accuracy"}
    assert figures[f"{pair}_loss"].item() == pytest.approx(alone.loss.item(), abs=1e-6)
    assert figures["temperature"].item() == 7.0 and all(value.stop_gradient for value in figures.values())


def test_all_views_add_up_and_tiles_change_nothing():
    scale, batch = paddle.to_tensor([7.0]), views()
    weights = {"image_caption": 1.0, "image_image": 0.5, "image_tags": 0.25, "text_text": 2.0}
    total, figures = multi_view_loss(batch, scale, settings(**weights))
    expected = sum(weight * figures[f"{name}_loss"].item() for name, weight in weights.items())
    assert total.item() == pytest.approx(expected, abs=1e-5)
    tiled, _ = multi_view_loss(batch, scale, settings(**weights, tile=4))
    assert tiled.item() == pytest.approx(total.item(), abs=1e-5)
    unmasked, _ = multi_view_loss(batch, scale, settings(**weights, mask_equal=False))
    assert unmasked.item() > total.item() + 1e-3


def test_tags_are_compared_among_the_rows_that_have_some():
    scale, batch = paddle.to_tensor([7.0]), views()
    batch.tagged = paddle.to_tensor([0, 3, 8])
    total, _ = multi_view_loss(batch, scale, settings(image_tags=1.0))
    rows = [0, 3, 8]
    expected, _ = by_hand(batch.image.numpy()[rows], batch.tags.numpy()[rows], 7.0, np.array([0, 3, 0]))
    assert total.item() == pytest.approx(expected, abs=1e-6)
    batch.tagged = paddle.zeros([0], "int64")
    total, figures = multi_view_loss(batch, scale, settings(image_tags=1.0))
    assert total.item() == 0 and figures.keys() == {"temperature"}


def test_a_batch_of_one_thing_is_refused():
    batch = views()
    batch.ids = paddle.full([9], 3)
    with pytest.raises(DataError, match="9 rows of the same text or concept has no negatives.*train.batch_size"):
        multi_view_loss(batch, paddle.to_tensor([7.0]), settings(text_text=1.0))
    multi_view_loss(batch, paddle.to_tensor([7.0]), settings(text_text=1.0, mask_equal=False))
    with pytest.raises(DataError, match="a batch of one row has no negatives"):
        multi_view_loss(views(1), paddle.to_tensor([7.0]), settings(image_image=1.0, mask_equal=False))


def test_what_does_not_fit_is_refused():
    batch = views()
    batch.tags = None
    with pytest.raises(ConfigError, match="loss.image_tags: is 0.5, but the batch has no tags"):
        multi_view_loss(batch, paddle.to_tensor([7.0]), settings(image_tags=0.5))
    with pytest.raises(ShapeError, match=r"\[9, 5\] and \[8, 5\]"):
        info_nce(batch.image, batch.caption[:8], paddle.to_tensor([7.0]))
    with pytest.raises(ShapeError, match="9 rows need as many ids"):
        info_nce(batch.image, batch.caption, paddle.to_tensor([7.0]), batch.ids[:8])
    for wrong in ({}, {"image_tags": -1.0, "text_text": 1.0}):
        with pytest.raises(ConfigError, match="one of them must be above 0"):
            settings(**wrong)
    with pytest.raises(ConfigError, match="tile must be 0"):
        settings(text_text=1.0, tile=-1)
