"""The dual encoder: parity of both towers, public weights under both names, what its settings do, refusals."""
import math

import ernie_vil_reference as reference
import numpy as np
import paddle
import pytest

from vilg import config
from vilg.engine.parallel.recomputing import put_on_recompute
from vilg.errors import CheckpointError, ConfigError, ShapeError
from vilg.models.dual_encoder.convert import (
    BAIDU, PADDLENLP, convert_dual_encoder, import_dual_encoder, infer_dual_encoder_config, scheme_of,
)
from vilg.models.dual_encoder.model import DualEncoder, DualEncoderConfig
from vilg.weights.files import load_weights, save_weights

HEAD_WIDTH = reference.WIDTH // reference.HEADS
BASE = {"image": {"image_size": 224, "patch_size": 16, "layers": 12, "width": 768, "heads": 12},
        "text": {"vocab_size": 40000, "positions": 2048, "layers": 12, "width": 768, "heads": 12}}


def build(image: dict | None = None, text: dict | None = None, **settings) -> DualEncoder:
    shape = {"layers": reference.LAYERS, "width": reference.WIDTH, "heads": reference.HEADS}
    values = {"image": shape | {"image_size": reference.IMAGE, "patch_size": reference.PATCH} | (image or {}),
              "text": shape | {"vocab_size": reference.VOCAB, "positions": reference.POSITIONS} | (text or {})}
    paddle.seed(1)
    return DualEncoder(config.from_dict(DualEncoderConfig, values | settings))


def tensors() -> tuple[paddle.Tensor, paddle.Tensor]:
    pixels, ids = reference.inputs()
    return paddle.to_tensor(pixels), paddle.to_tensor(ids)


def vectors(model: DualEncoder) -> tuple[np.ndarray, np.ndarray]:
    pixels, ids = tensors()
    return model.encode_image(pixels).numpy(), model.encode_text(ids).numpy()


@pytest.mark.parametrize("eps", [{"text": 1e-5, "image": 1e-5}, {"text": 1e-5, "image": 1e-6},
                                 {"text": 1e-12, "image": 1e-6}])
def test_towers_agree_with_the_published_layers(eps):
    weights = reference.paddlenlp_weights()
    model = build(image={"norm_eps": eps["image"]}, text={"norm_eps": eps["text"]})
    load_weights(model, convert_dual_encoder(weights), "random")
    model.eval()
    pixels, ids = reference.inputs()
    expected = reference.Reference(weights, eps["text"], eps["image"])
    image, text = vectors(model)
    assert np.abs(image - expected.image(pixels)).max() <= 1e-5
    assert np.abs(text - expected.text(ids)).max() <= 1e-5


def test_the_reference_tells_its_parts_apart():
    weights, (pixels, ids) = reference.paddlenlp_weights(), reference.inputs()
    text = reference.Reference(weights, 1e-5, 1e-6).text(ids)
    assert np.abs(text - reference.Reference(weights, 1e-2, 1e-6).text(ids)).max() > 1e-4
    for name in weights:
        changed = reference.Reference(weights | {name: weights[name][..., ::-1] + 0.1}, 1e-5, 1e-6)
        before = reference.Reference(weights, 1e-5, 1e-6)
        # A key's bias adds the same to all scores of a query.
        moved = max(np.abs(changed.text(ids) - text).max(), np.abs(changed.image(pixels) - before.image(pixels)).max())
        assert moved > 1e-5 or name == "temperature" or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("scheme", [PADDLENLP, BAIDU], ids=lambda scheme: scheme.name)
def test_public_weights_become_a_model(tmp_path, scheme):
    weights = reference.paddlenlp_weights()
    theirs = weights if scheme is PADDLENLP else reference.baidu_weights(weights)
    assert scheme_of(theirs) is scheme
    path = tmp_path / "model_state.pdparams"
    paddle.save({name: paddle.to_tensor(value) for name, value in theirs.items()}, str(path))
    model = import_dual_encoder(path, head_width=HEAD_WIDTH)
    assert model.config.text.norm_eps == scheme.text_eps and not model.training
    assert model.config.image.image_size == reference.IMAGE and model.config.text.positions == reference.POSITIONS
    assert model.temperature().item() == pytest.approx(math.exp(2.5))
    pixels, ids = reference.inputs()
    expected = reference.Reference(weights, scheme.text_eps, 1e-6)
    image, text = vectors(model)
    assert np.abs(image - expected.image(pixels)).max() <= 1e-5
    assert np.abs(text - expected.text(ids)).max() <= 1e-5


@pytest.mark.parametrize("scheme", [PADDLENLP, BAIDU], ids=lambda scheme: scheme.name)
def test_all_398_tensors_are_used(scheme):
    # Twelve layers under PaddleNLP's names; Baidu's fuse queries, keys and values of the image tower.
    weights = reference.paddlenlp_weights(layers=12)
    assert len(weights) == 398
    theirs = weights if scheme is PADDLENLP else reference.baidu_weights(weights)
    state = convert_dual_encoder(theirs)
    model = DualEncoder(infer_dual_encoder_config(state, scheme.text_eps, HEAD_WIDTH))
    assert state.keys() == model.state_dict().keys()
    assert sum(value.size for value in state.values()) == sum(value.size for value in weights.values())


def test_safetensors_are_read_as_well(tmp_path):
    weights = reference.paddlenlp_weights()
    save_weights(tmp_path / "model.safetensors", weights)
    model = import_dual_encoder(tmp_path / "model.safetensors", text_eps=1e-5, head_width=HEAD_WIDTH)
    assert model.config.text.norm_eps == 1e-5


def test_the_base_model_has_its_published_size():
    with paddle.LazyGuard():
        model = DualEncoder(config.from_dict(DualEncoderConfig, BASE))
    assert sum(math.prod(parameter.shape) for parameter in model.parameters()) == 203_738_881


@pytest.mark.extras
def test_paddlenlp_gives_the_same_vectors():
    pytest.importorskip("paddlenlp")
    from paddlenlp.transformers import ErnieViLConfig, ErnieViLModel, ErnieViLTextConfig, ErnieViLVisionConfig

    shape = {"hidden_size": reference.WIDTH, "num_hidden_layers": reference.LAYERS,
             "num_attention_heads": reference.HEADS, "intermediate_size": 4 * reference.WIDTH}
    theirs = ErnieViLModel(ErnieViLConfig.from_text_vision_configs(
        ErnieViLTextConfig(vocab_size=reference.VOCAB, max_position_embeddings=reference.POSITIONS, **shape),
        ErnieViLVisionConfig(image_size=reference.IMAGE, patch_size=reference.PATCH, **shape)))
    weights = reference.paddlenlp_weights()
    assert theirs.state_dict().keys() == weights.keys()
    theirs.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    theirs.eval()
    model = build(text={"norm_eps": PADDLENLP.text_eps})
    load_weights(model, convert_dual_encoder(weights), "random")
    model.eval()
    pixels, ids = tensors()
    image, text = vectors(model)
    for ours, features in ((image, theirs.get_image_features(pixels)), (text, theirs.get_text_features(ids))):
        assert np.abs(ours - reference.unit(features.numpy())).max() <= 1e-5


def test_padding_changes_nothing():
    model = build()
    model.eval()
    _, ids = tensors()
    short = ids[1:2, :5]
    np.testing.assert_allclose(model.encode_text(ids)[1].numpy(), model.encode_text(short)[0].numpy(), atol=1e-6)
    with_mean = build(text={"pooling": "mean"})
    with_mean.eval()
    np.testing.assert_allclose(with_mean.encode_text(ids)[1].numpy(), with_mean.encode_text(short)[0].numpy(),
                               atol=1e-6)


@pytest.mark.parametrize("tower, setting", [
    ("image", {"norm_order": "post"}), ("image", {"activation": "gelu"}), ("image", {"pooling": "mean"}),
    ("image", {"norm_eps": 1e-2}), ("text", {"norm_order": "pre"}), ("text", {"activation": "quick_gelu"}),
    ("text", {"pooling": "cls"}), ("text", {"pooling": "mean"}), ("text", {"pad_id": 3}),
    ("text", {"norm_eps": 1e-2})], ids=str)
def test_every_setting_changes_its_tower_alone(tower, setting):
    before, after = build(), build(**{tower: setting})
    own = before.state_dict()
    after.set_state_dict({name: own.get(name, value) for name, value in after.state_dict().items()})
    before.eval(), after.eval()
    for kind, old, new in zip(("image", "text"), vectors(before), vectors(after)):
        assert (np.abs(old - new).max() > 1e-6) == (kind == tower)


def test_vectors_are_unit_and_may_be_projected():
    model = build(image={"width": 24, "heads": 3}, projection=10)
    image, text = vectors(model)
    assert image.shape == text.shape == (3, 10) and model.config.vector_width == 10
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([image, text]), axis=1), 1, atol=1e-6)
    with pytest.raises(ConfigError, match="image.width 24 and text.width 16"):
        build(image={"width": 24, "heads": 3})


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_reading_one_row_costs_less_and_gives_the_same(norm_order):
    model = build(text={"norm_order": norm_order, "dropout": 0.0})
    _, ids = tensors()
    stack = model.text_tower.stack
    paddle.seed(3)
    x = paddle.randn([3, ids.shape[1], reference.WIDTH])
    whole, first = stack(x, ids == 0), stack(x, ids == 0, first_only=True)
    assert first.shape == [3, 1, reference.WIDTH]
    np.testing.assert_allclose(first.numpy(), whole[:, :1].numpy(), atol=1e-6)


def test_dropout_gives_two_views_of_a_text_in_training_alone():
    model = build(text={"dropout": 0.1})
    _, ids = tensors()
    model.train()
    assert np.abs(model.encode_text(ids).numpy() - model.encode_text(ids).numpy()).max() > 1e-3
    model.eval()
    np.testing.assert_array_equal(model.encode_text(ids).numpy(), model.encode_text(ids).numpy())


def test_patch_dropout_keeps_the_class_token_and_other_patches_each_time():
    model = build(image={"patch_dropout": 0.5})
    pixels, _ = tensors()
    tower = model.image_tower
    seen = []
    tower.stack.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.train()
    first, second = (model.encode_image(pixels).numpy() for _ in range(2))
    assert seen[0].shape == [3, 1 + reference.PATCHES // 2, reference.WIDTH]
    np.testing.assert_allclose(seen[0][:, 0].numpy(), seen[1][:, 0].numpy())
    assert np.abs(first - second).max() > 1e-5
    model.eval()
    model.encode_image(pixels)
    assert seen[2].shape == [3, 1 + reference.PATCHES, reference.WIDTH]
    for some, every in zip(seen[0].numpy().round(4), seen[2].numpy().round(4)):
        kept, whole = [tuple(row) for row in some], {tuple(row) for row in every}
        assert set(kept) <= whole and len(set(kept)) == len(kept), "patches keep their positions and come once"


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_takes_no_gradient_and_no_dropout(tower):
    model = build(**{tower: {"frozen": True, "dropout": 0.3}}, projection=8)
    model.train()
    pixels, ids = tensors()
    encode = {"image": lambda: model.encode_image(pixels), "text": lambda: model.encode_text(ids)}
    np.testing.assert_array_equal(encode[tower]().numpy(), encode[tower]().numpy())
    (model.encode_image(pixels) @ model.encode_text(ids).T).square().sum().backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    other = "text" if tower == "image" else "image"
    assert trained == {f"{other}_tower", "image_projection", "text_projection"}
    assert all(parameter.stop_gradient for parameter in getattr(model, f"{tower}_tower").parameters())


def test_recomputing_gives_the_same_gradients():
    found = []
    for recomputed in (False, True):
        model = build(text={"dropout": 0.1}, image={"patch_dropout": 0.25})
        model.train()
        if recomputed:
            assert put_on_recompute(model, "full") == 2 * reference.LAYERS
        paddle.seed(9)
        pixels, ids = tensors()
        (model.encode_image(pixels) @ model.encode_text(ids).T).square().sum().backward()
        found.append({name: parameter.grad.numpy() for name, parameter in model.named_parameters()
                      if parameter.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, atol=1e-6)


def test_the_temperature_is_clamped_after_the_step():
    temperature = build().temperature
    assert temperature().item() == pytest.approx(1 / 0.07, rel=1e-4)
    for value, expected in ((9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2))):
        temperature.log.set_value(paddle.to_tensor([value]))
        temperature.clamp()
        assert temperature().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("change, words", [
    (lambda w: w.update(extra=w["temperature"]), "has extra, which no ERNIE-ViL 2.0 in PaddleNLP's names has"),
    (lambda w: w.pop("temperature"), "has neither temperature"),
    (lambda w: w.pop("text_model.encoder.layers.1.self_attn.k_proj.bias"), "do not make one map"),
    (lambda w: w.pop("text_model.encoder.layers.1.norm1.bias"), "lacks text_tower.stack.blocks.1.norm1.bias"),
    (lambda w: w.pop("vision_model.conv1.weight"), "patch_map.weight is missing"),
    (lambda w: w.update({"vision_model.positional_embedding.weight": np.zeros([16, 16], "float32")}), "16 image pos"),
    (lambda w: w.update({"temperature": np.array([2])}), "temperature holds int64"),
    (lambda w: w.update({"vision_model.ln_pre.weight": np.ones([3], "float32")}), r"is \[3\] in the file and \[16\]")])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
    weights = reference.paddlenlp_weights()
    change(weights)
    path = tmp_path / "odd.pdparams"
    paddle.save(weights, str(path))
    with pytest.raises(CheckpointError, match=words) as refused:
        import_dual_encoder(path, head_width=HEAD_WIDTH)
    assert str(refused.value).startswith(f"{path}: ")


def test_towers_of_two_models_are_refused():
    texts, images = reference.paddlenlp_weights(), reference.paddlenlp_weights(width=24)
    mixed = {name: (images if name.startswith("vision") else texts)[name] for name in texts}
    with pytest.raises(CheckpointError, match="sizes make no model.*image.width 24 and text.width 16 differ"):
        infer_dual_encoder_config(convert_dual_encoder(mixed), 1e-5, HEAD_WIDTH)


def test_inputs_that_do_not_fit_are_refused_with_both_sizes():
    model = build()
    with pytest.raises(ShapeError, match=r"\[1, 3, 16, 16\].*\[batch, 3, 32, 32\]"):
        model.encode_image(paddle.zeros([1, 3, 16, 16]))
    with pytest.raises(ShapeError, match="13 tokens.*12"):
        model.encode_text(paddle.ones([1, 13], "int64"))


@pytest.mark.parametrize("tower, setting, words", [
    ("image", {"patch_size": 5}, "image_size 32 must be a multiple of patch_size 5"),
    ("image", {"patch_dropout": 1.0}, "patch_dropout must be in"), ("image", {"heads": 3}, "multiple of heads 3"),
    ("text", {"dropout": 1.0}, "dropout must be in"), ("text", {"pad_id": 50}, "from 0 to 49"),
    ("text", {"norm_order": "both"}, "text.norm_order"), ("text", {"layers": 0}, "layers must be at least 1"),
    ("text", {"norm_eps": 0.0}, "norm_eps must be above 0")])
def test_settings_that_make_no_model_are_refused_by_key(tower, setting, words):
    with pytest.raises(ConfigError, match=words):
        build(**{tower: setting})


@pytest.mark.parametrize("stages", [1, 3])
def test_a_convolution_stem_stands_before_the_patches(stages):
    model = build(image={"stem": stages, "width": 64, "heads": 2}, projection=16)
    assert len(model.image_tower.stem.convolutions) == stages
    assert model.image_tower.patch_map.weight.shape[1:] == [64, *2 * [reference.PATCH // 2**stages]]
    pixels, _ = tensors()
    vectors_before = model.encode_image(pixels)
    assert vectors_before.shape == [pixels.shape[0], 16]
    moved = pixels.clone()
    moved[:, :, :4] = moved[:, :, :4] + 1
    assert float((model.encode_image(moved) - vectors_before).abs().max()) > 1e-4
    vectors_before.sum().backward()
    assert all(float(value.grad.abs().max()) > 0 for value in model.image_tower.stem.parameters())


@pytest.mark.parametrize("image", [{"stem": -1}, {"stem": 4, "width": 64}, {"stem": 2, "width": 8, "heads": 2}])
def test_a_stem_that_does_not_fit_is_refused(image):
    with pytest.raises(ConfigError, match="stem -?[0-9] halves the side"):
        build(image=image, projection=16)
