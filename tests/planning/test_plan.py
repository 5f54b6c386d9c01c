"""Plans: counts are the built model's, memory adds up, the smallest fleet is the smallest."""
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg.engine.parallel.distributed import DistributedConfig
from vilg.engine.parallel.tensor_parallel import put_on
from vilg.engine.parallel.topology import Topology
from vilg.engine.trainer import TrainConfig
from vilg.errors import ConfigError
from vilg.models.bidirectional import BidirectionalConfig, BidirectionalTransformer
from vilg.nn.attention.patterns import SOURCE, TARGET
from vilg.nn.program import Activation, Attend, Map, Norm
from vilg.nn.transformer import Block
from vilg.planning.memory import StepPlan, backward_peak, block_parameters, kept_bytes, parameter_count
from vilg.planning.plan import Devices, flops_per_token, make_plan, smallest_fleet, train_with
from vilg.planning.report import picture, table
from vilg.run.build import load_run, planned_shape
from vilg.tasks.bidirectional import BidirectionalStep, BidirectionalTaskConfig

CONFIGS = Path(__file__).parents[2] / "configs"

BIG = BidirectionalConfig(layers=48, width=4096, heads=64, vocab_size=18000, codebook_size=8192, text_length=64,
                          rows=32, columns=32)
SMALL = BidirectionalConfig(layers=3, width=32, heads=4, vocab_size=90, codebook_size=70, text_length=6, rows=4,
                            columns=5, sparse=False)
TRAIN = TrainConfig(batch_size=64, preview_every=0, ema_decay=0.0)
SHARDED = DistributedConfig(level="p_g_os", recompute="full", amp="O2")


@pytest.mark.parametrize("config", [BIG, SMALL], ids=["10b", "small"])
def test_parameters_are_the_built_models(config):
    with paddle.LazyGuard():
        model = BidirectionalTransformer(config)
    built = 0
    for tensor in model.parameters():
        count = 1
        for size in tensor.shape:
            count *= size
        built += count
    assert parameter_count(config) == built


def test_memory_by_hand():
    step = StepPlan(batch=2)
    slots = 2 * 2 * (6 + 20)  # directions × batch × stream
    kept = kept_bytes(SMALL, step)
    assert kept["feed-forward"] == 4 * 3 * 2 * 4 * slots * 32
    assert kept["logits"] == 4 * 2 * (20 * 70 + 6 * 90)
    # Dense: every image query meets the whole stream; a text query the text, or the stream when it is the target.
    assert kept["dense attention weights"] == 4 * 3 * 2 * 4 * (20 * 26 * 2 + 6 * 6 + 6 * 26)
    assert kept_bytes(SMALL, StepPlan(2, gelu_again=True))["feed-forward"] * 2 == kept["feed-forward"]
    assert sum(kept_bytes(SMALL, StepPlan(2, half=True)).values()) * 2 == sum(kept.values())
    assert sum(kept_bytes(SMALL, StepPlan(2, recompute_every=1)).values()) < 0.3 * sum(kept.values())
    assert backward_peak(SMALL, step) > sum(kept.values())


@dataclass(frozen=True)
class Other:
    """The shape of a model whose blocks have another program; the rest is SMALL's."""

    program: tuple

    def __getattr__(self, name):
        return getattr(SMALL, name)


def test_a_plan_reads_the_blocks_program():
    wide = Map("extra", 32, 500), Activation("gelu", 500), Map("back", 500, 32)
    other, step = Other((*SMALL.program, Norm("last", 32), *wide)), StepPlan(2, roles=(TARGET, SOURCE))
    built = sum(parameter.size for parameter in Block(0, 1, other.program).parameters())
    assert block_parameters(other) == built
    slots, before, after = 2 * 2 * 26, kept_bytes(SMALL, step), kept_bytes(other, step)
    assert after["feed-forward"] - before["feed-forward"] == 4 * 3 * 2 * 500 * slots
    assert after["residual stream and norms"] - before["residual stream and norms"] == 4 * 3 * (2 * 32 + 2) * slots
    twice = Other((*SMALL.program, Attend(4, 32)))
    assert kept_bytes(twice, step)["queries, keys, values"] - before["queries, keys, values"] == 4 * 3 * 3 * 32 * slots


def test_plan_of_the_big_run():
    plan = make_plan(BIG, TRAIN, SHARDED, Devices(64, 80.0), 145e6)
    assert 9.6e9 < plan.parameters < 10.2e9 and plan.fits and plan.micro_batch == 1
    assert plan.memory["optimizer moments"] == pytest.approx(8 * plan.parameters / 64)
    # 6 FLOPs a parameter and slot, 2 more for computing again, and attention.
    assert 7.5 < flops_per_token(BIG, 1) / plan.parameters < 9
    text = table(plan)
    assert "fits" in text and "9.88 B" in text.replace("9.881", "9.88")
    assert picture(plan).size[0] == 900
    assert plan.figures()["memory_gb"] == pytest.approx(sum(plan.memory.values()) / 1e9)


def test_a_divided_plan_counts_what_a_rank_of_the_model_holds():
    with paddle.LazyGuard():
        step = BidirectionalStep(BidirectionalTransformer(SMALL), BidirectionalTaskConfig(
            model=SMALL, image_tokenizer="", vocabulary=""))
    put_on(step, Topology(2, 0, 2))
    held = sum(cut.part(np.zeros(cut.shape, "int8")).size if cut.divided else prod(cut.shape)
               for cut in (parameter.cut for parameter in step.parameters()))
    assert parameter_count(SMALL, 2) == held < 0.7 * parameter_count(SMALL)


def test_the_plan_of_a_divided_run():
    whole, divided = (make_plan(BIG, TRAIN, DistributedConfig(level="os_g", amp="O2", mp_degree=degree),
                                Devices(64, 80.0), 1e6) for degree in (1, 4))
    assert divided.micro_batch == 4 * whole.micro_batch and whole.node_bytes == 0
    # Two sums forward and two backward a layer, and one before the heads, of which a device sends 2 · 3/4.
    stream = 2 * divided.micro_batch * BIG.layout.length * 4096 * 2
    assert divided.node_bytes == pytest.approx((4 * 48 + 1) * stream * 1.5)
    share = parameter_count(BIG, 4) / parameter_count(BIG)
    assert 0.25 < share < 0.27 and divided.memory["weights"] == pytest.approx(share * whole.memory["weights"])
    # States are shared by a quarter as many ranks, which hold about a quarter each.
    assert divided.memory["optimizer moments"] == pytest.approx(4 * share * whole.memory["optimizer moments"])
    assert divided.exchanged_bytes < 0.27 * whole.exchanged_bytes
    assert divided.start.checkpoint == whole.start.checkpoint and divided.start.init_peak < whole.start.init_peak
    slower = make_plan(BIG, TRAIN, DistributedConfig(level="os_g", amp="O2", mp_degree=4),
                       Devices(64, 80.0, node_bandwidth=100.0), 1e6)
    assert slower.step_seconds - divided.step_seconds == pytest.approx(divided.node_bytes / 200e9)
    assert "exchanged within a model" in table(divided)


@pytest.mark.parametrize("degree, devices, words", [
    (3, 64, "mp_degree: 64 ranks do not split into models of 3"),
    (128, 128, "mp_degree: 64 attention heads do not divide over 128 ranks; use a divisor of 64")])
def test_a_plan_that_cannot_be_divided_is_refused(degree, devices, words):
    with pytest.raises(ConfigError, match=words):
        level = "none" if degree == devices else "os_g"
        make_plan(BIG, TRAIN, DistributedConfig(level=level, mp_degree=degree), Devices(devices, 80.0), 1e6)


def test_offload_moves_memory_to_the_host():
    held = make_plan(BIG, TRAIN, SHARDED, Devices(64, 80.0), 1e6)
    config = DistributedConfig(level="p_g_os", recompute="full", amp="O2", offload=True)
    moved = make_plan(BIG, TRAIN, config, Devices(64, 80.0), 1e6)
    assert held.total_bytes - moved.total_bytes == pytest.approx(moved.host_bytes)
    assert moved.host_traffic_bytes > 0 == held.host_traffic_bytes


def test_the_shipped_10b_config_is_not_bound_by_its_wires():
    run = load_run(CONFIGS / "vilg" / "10b.yaml")
    fleet = Devices(64, 80.0)
    plan = make_plan(planned_shape(run), run.train, run.distributed, fleet, 145e6)
    before = DistributedConfig(level="p_g_os", offload=True, recompute="full", amp="O2")
    old = make_plan(planned_shape(run), train_with(run.train, accumulate_steps=8), before, fleet, 145e6)
    figures = plan.figures()
    assert plan.fits and figures["step_seconds"] <= 0.65 * old.step_seconds
    assert figures["mfu"] >= 0.35 > old.mfu and figures["init_peak_gb"] <= 40
    assert figures["restart_bytes_over_checkpoint"] <= 1.2
    # 6 FLOPs a parameter and slot, less for heads and tables: over what the devices could do meanwhile.
    assert figures["mfu"] == pytest.approx(5.92 * plan.parameters * plan.tokens_per_step
                                           / (plan.step_seconds * 64 * 312e12), rel=0.01)


def test_what_is_there_while_a_model_is_made():
    peaks = {}
    for name, level, amp, offload in (("whole", "os_g", "none", False), ("cast", "os_g", "O2", False),
                                      ("sliced", "p_g_os", "O2", False), ("offloaded", "p_g_os", "O2", True)):
        config = DistributedConfig(level=level, amp=amp, offload=offload)
        peaks[name] = make_plan(BIG, TRAIN, config, Devices(64, 80.0), 1e6).start.init_peak
    count, largest = parameter_count(BIG), 4096 * 18000
    assert peaks["whole"] == pytest.approx(1.5e9 + 4 * count)
    assert peaks["cast"] == pytest.approx(1.5e9 + 2 * count + 6 * largest)
    assert peaks["sliced"] == pytest.approx(1.5e9 + 6 * count / 64 + 6 * largest)
    assert peaks["offloaded"] == pytest.approx(1.5e9 + 6 * largest)


def test_a_checkpoint_holds_weights_moments_masters_and_the_average():
    sizes = [make_plan(BIG, train, DistributedConfig(level="os_g", amp=amp), Devices(64, 80.0), 1e6).start.checkpoint
             for train, amp in ((TRAIN, "none"), (TRAIN, "O2"), (train_with(TRAIN, ema_decay=0.9), "O2"))]
    assert sizes == [factor * parameter_count(BIG) for factor in (12, 16, 20)]


def test_logits_that_are_computed_again_are_not_kept():
    kept = kept_bytes(BIG, StepPlan(4, half=True))["logits"]
    assert kept > 0 == kept_bytes(BIG, StepPlan(4, half=True, logits_again=True))["logits"]
    assert make_plan(BIG, TRAIN, SHARDED, Devices(64, 80.0), 1e6).memory["activations: logits"] == 0


def test_casting_operators_halves_no_weight_and_no_activation():
    plans = {amp: make_plan(BIG, TRAIN, DistributedConfig(level="p_g_os", recompute="full", amp=amp), Devices(64, 80.0),
                            1e6) for amp in ("none", "O1", "O2")}
    for part in ("weights", "activations: block inputs"):
        found = {amp: plan.memory[part] for amp, plan in plans.items() if part in plan.memory}
        if found:
            assert found["O1"] == found["none"] == 2 * found["O2"]
    assert plans["O1"].exchanged_bytes == plans["none"].exchanged_bytes > plans["O2"].exchanged_bytes


def test_float32_gradients_take_and_exchange_twice_the_bytes():
    half = DistributedConfig(level="os_g", recompute="full", amp="O2", float32_gradients=False)
    full = DistributedConfig(level="os_g", recompute="full", amp="O2")
    half, full = (make_plan(BIG, TRAIN, config, Devices(64, 80.0), 1e6) for config in (half, full))
    assert full.memory["gradients"] == 2 * half.memory["gradients"]
    assert full.exchanged_bytes - half.exchanged_bytes == pytest.approx(2 * full.parameters * 63 / 64)


def test_the_smallest_fleet_fits_and_half_of_it_does_not():
    plan = smallest_fleet(BIG, TRAIN, SHARDED, Devices(1, 24.0), 1e6)
    half = plan.devices.count // 2
    assert plan.fits and half >= 2
    train = TrainConfig(batch_size=64, preview_every=0, ema_decay=0.0, accumulate_steps=64 // half)
    assert not make_plan(BIG, train, SHARDED, Devices(half, 24.0), 1e6).fits
    soon = smallest_fleet(BIG, TRAIN, SHARDED, Devices(1, 24.0), 1e6, 0.8 * plan.days)
    assert soon.devices.count > plan.devices.count and soon.fits and soon.days <= 0.8 * plan.days
    with pytest.raises(ConfigError, match="is done within 0.001 days on no fleet .* or allow more days"):
        smallest_fleet(BIG, TRAIN, SHARDED, Devices(1, 24.0), 1e6, 0.001)
    with pytest.raises(ConfigError, match="fits on no fleet of up to 64; use level p_g_os"):
        smallest_fleet(BIG, TRAIN, DistributedConfig(level="dp"), Devices(1, 80.0), 1e6)


def test_a_fleet_that_the_batch_does_not_divide_over_is_named():
    devices = Devices(1, 80.0, 312.0, 0.4, 100.0, 20.0)
    with pytest.raises(ConfigError, match="train.batch_size: 33 does not divide over 2 devices"):
        smallest_fleet(SMALL, TrainConfig(batch_size=33, preview_every=0), SHARDED, devices, 1e6)
    threes = DistributedConfig(level="p_g_os", sharding_degree=3)
    assert smallest_fleet(SMALL, TrainConfig(batch_size=48, preview_every=0), threes, devices, 1e6).devices.count == 3
