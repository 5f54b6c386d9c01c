"""Learning rates, weight decay, and config checks."""
import numpy as np
import pydantic
import pytest
from paddle import nn

from vilg.engine.optim import OptimConfig, build_optimizer, learning_rate
from vilg.engine.parallel.distributed import DistributedConfig
from vilg.engine.safety.guards import GuardConfig
from vilg.engine.trainer import TrainConfig
from vilg.errors import ConfigError
from vilg.nn.layers import Embedding, LayerNorm, Linear


def test_warm_up_then_cosine_or_constant():
    config = OptimConfig(lr=1.0, warmup_steps=4, final_lr=0.1)
    rates = [learning_rate(config, step, 24) for step in range(25)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(later <= earlier for earlier, later in zip(rates[4:], rates[5:]))
    np.testing.assert_allclose([rates[14], rates[24]], [0.55, 0.1])
    assert learning_rate(OptimConfig(lr=1.0, schedule="constant"), 99, 100) == 1.0


def test_only_matrices_outside_embeddings_decay():
    model = nn.LayerDict({"linear": Linear(3, 3), "norm": LayerNorm(3), "text_embedding": Embedding(4, 3)})
    parameters = dict(model.named_parameters())
    before = {name: value.numpy() for name, value in parameters.items()}
    before["norm.weight"] = parameters["norm.weight"].numpy()
    optimizer = build_optimizer(OptimConfig(lr=0.5, weight_decay=0.5), parameters, multi_precision=False)
    for value in parameters.values():
        value.grad = value * 0
    optimizer.step()
    moved = {name for name, value in parameters.items() if not np.array_equal(before[name], value.numpy())}
    assert moved == {"linear.weight"}
    np.testing.assert_allclose(parameters["linear.weight"].numpy(), before["linear.weight"] * 0.75, rtol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: OptimConfig(lr=0.0), lambda: OptimConfig(final_lr=1.0), lambda: OptimConfig(beta1=1.0),
    lambda: OptimConfig(clip_norm=-1.0), lambda: TrainConfig(steps=0), lambda: TrainConfig(ema_decay=1.0),
    lambda: TrainConfig(checkpoint_every=-1), lambda: GuardConfig(max_skips=0), lambda: GuardConfig(spike_ratio=0.5),
    lambda: DistributedConfig(level="zero"), lambda: DistributedConfig(offload=True),
    lambda: DistributedConfig(level="os", offload=True, amp="O2", amp_dtype="float16"),
    lambda: DistributedConfig(level="dp", sharding_degree=2),
    lambda: DistributedConfig(level="os", sharding_degree=1), lambda: DistributedConfig(recompute=0)])
def test_values_that_make_no_sense_are_refused(make):
    with pytest.raises(pydantic.ValidationError):
        make()


@pytest.mark.parametrize("config, ranks, message", [
    (DistributedConfig(), 2, "is none, but 2 ranks were started"),
    (DistributedConfig(level="os_g"), 1, "os_g needs at least 2 ranks"),
    (DistributedConfig(level="os_g", sharding_degree=4), 6, "6 ranks do not split into groups of 4")])
def test_levels_and_ranks_must_fit(config, ranks, message):
    with pytest.raises(ConfigError, match=message):
        config.check_ranks(ranks)


def test_previews_need_a_whole_model():
    with pytest.raises(ConfigError, match="preview_every: is 500, .* set it to 0"):
        TrainConfig().check_parallel(DistributedConfig(level="p_g_os"), 2)
