"""Half-precision training state at every parallel level, on the CPU with Paddle's own sharding code over gloo and
level O2 emulated (:mod:`half_emulation`): what a checkpoint holds, and that a resumed run is the uninterrupted one.
"""
import json
import os
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from vilg.engine.safety.supervisor import Supervisor

PROGRAM, ROOT = Path(__file__).with_name("half_cases.py"), Path(__file__).parents[2]
STEPS, CUT = 8, 4
SHARDED = {"segment_size": 20, "level": "p_g_os"}
LEVELS = {
    "none": {"level": "none"}, "none_recompute": {"level": "none", "recompute": "full"},
    "none_half_gradients": {"level": "none", "float32_gradients": False},
    "none_float16": {"level": "none", "amp_dtype": "float16", "loss_scale": 64.0},
    "dp": {"level": "dp"}, "os": {"level": "os", "buffer_size": 200}, "os_g": {"level": "os_g", "buffer_size": 200},
    "os_g_recompute": {"level": "os_g", "buffer_size": 200, "recompute": "full"}, "p_g_os": SHARDED,
    "p_g_os_ahead": SHARDED, "p_g_os_recompute": SHARDED | {"recompute": 2},
    "p_g_os_offload": SHARDED | {"offload": True},
    "p_g_os_offload_recompute": SHARDED | {"offload": True, "recompute": "full"},
    "p_g_os_half_gradients": SHARDED | {"float32_gradients": False},
    "none_late": {"level": "none"}, "os_g_late": {"level": "os_g", "buffer_size": 200}, "p_g_os_late": SHARDED,
    "p_g_os_offload_late": SHARDED | {"offload": True},
    "dp_float16": {"level": "dp", "amp_dtype": "float16", "loss_scale": 64.0}}
ALONE = [name for name, settings in LEVELS.items() if settings["level"] == "none"]
TWO_PHASES = ("dp", "os", "os_g", "p_g_os", "p_g_os_offload")
KINDS = {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc", "master"}


def cases(name):
    """A run of :data:`STEPS` steps, and one that is cut after :data:`CUT` and resumed."""
    distributed = {"amp": "O2", "amp_dtype": "bfloat16"} | LEVELS[name]
    return [{"name": f"{name}-{kind}", "distributed": distributed, "ahead": name.endswith("ahead"),
             "late": name.endswith("late"),
             "train": {"steps": steps, "resume": resume, "checkpoint_every": CUT, "accumulate_steps": 2}}
            for kind, steps, resume in (("whole", STEPS, "none"), ("cut", CUT, "none"), ("cut", STEPS, "auto"))]


def launch(folder, ranks, listed):
    for case in listed:
        case["output"] = str(folder / case["name"])
    listing = folder / f"cases-{ranks}.list"
    listing.write_text(json.dumps(listed))
    os.environ["PYTHONPATH"] = str(ROOT)
    assert Supervisor([sys.executable, str(PROGRAM), str(listing)], ranks, 0, list, folder / "logs").run() == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case, in one job of one rank and one of two."""
    folder = tmp_path_factory.mktemp("half")
    plain = {"train": {"steps": STEPS, "checkpoint_every": CUT, "accumulate_steps": 2}}
    full = {"amp": "O2", "amp_dtype": "bfloat16"}
    alone = [case for name in ALONE for case in cases(name)]
    launch(folder, 1, [*alone, plain | {"name": "undecayed", "decay": 0.0, "distributed": full | LEVELS["none"]}])
    pair = [case for name in LEVELS if name not in ALONE for case in cases(name)]
    aside = [plain | {"name": f"{name}-aside", "aside": True, "distributed": full | LEVELS[name]}
             for name in ("dp", "os", "os_g", "p_g_os")]
    sour = [{"name": f"{name}-{kind}", "sour": [CUT], "distributed": full | LEVELS[name], "train": {"steps": steps}}
            for name in TWO_PHASES for kind, steps in (("sweet", CUT), ("sour", CUT + 1))]
    launch(folder, 2, [*pair, *aside, *sour])
    return folder


def result(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def tensors(folder, name):
    with np.load(folder / name / "final.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def rounded(values, dtype):
    if dtype == "float16":
        # By Paddle itself: numpy rounds to nearest, Paddle 3.0 on a CPU does not.
        return paddle.to_tensor(values).astype("float16").astype("float32").numpy()
    bits = values.astype("float32").view("uint32").astype("uint64")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype("uint32").view("float32")


@pytest.mark.parametrize("name", LEVELS)
def test_a_resumed_half_precision_run_is_the_whole_one_to_the_bit(runs, name):
    whole, cut = result(runs, f"{name}-whole"), result(runs, f"{name}-cut")
    assert len(whole["losses"]) == STEPS and whole["losses"] == cut["losses"] and whole["norms"] == cut["norms"]
    first, second = tensors(runs, f"{name}-whole"), tensors(runs, f"{name}-cut")
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.mark.parametrize("name", [name for name in LEVELS if name.endswith("late")])
def test_half_precision_made_layer_by_layer_is_that_made_at_once(runs, name):
    assert result(runs, f"{name}-whole")["losses"] == result(runs, f"{name.removesuffix('_late')}-whole")["losses"]


@pytest.mark.parametrize("name", LEVELS)
def test_half_precision_checkpoints_hold_every_kind_of_state(runs, name):
    found = tensors(runs, f"{name}-whole")
    parameters = {key.removeprefix("model/") for key in found if key.startswith("model/")} - {"seen"}
    assert len(parameters) == 16
    float16 = "float16" in name  # in which Paddle leaves layer norms alone, so that they have no masters
    for parameter in parameters:
        kinds = KINDS - {"master"} if float16 and ".norm." in parameter else KINDS
        states = {kind: found[f"optimizer/model/model/{parameter}/{kind}"] for kind in kinds}
        assert all(np.abs(value).max() > 0 for value in states.values()), parameter
        assert all(states[kind].shape == found[f"model/{parameter}"].shape for kind in kinds if "beta" not in kind)
    gone = result(runs, f"{name}-whole")
    assert gone["dtypes"] == (["paddle.float16", "paddle.float32"] if float16 else ["paddle.bfloat16"])
    assert gone["buffers"] == ["paddle.float32"]


@pytest.mark.parametrize("name", LEVELS)
def test_half_precision_weights_are_their_masters_rounded(runs, name):
    found, dtype = tensors(runs, f"{name}-whole"), LEVELS[name].get("amp_dtype", "bfloat16")
    for key, master in found.items():
        if key.endswith("/master"):
            weight = found[key.removeprefix("optimizer/model/").removesuffix("/master")]
            np.testing.assert_array_equal(rounded(weight, dtype), rounded(master, dtype), err_msg=key)
            assert not np.array_equal(master, rounded(master, dtype)), f"{key} has no digits that half precision lacks"


@pytest.mark.parametrize("name", [name for name in LEVELS if "float16" not in name and name != "none"])
def test_half_precision_levels_agree_and_decay_alike(runs, name):
    one, other = result(runs, "none-whole"), result(runs, f"{name}-whole")
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=0.02)
    np.testing.assert_allclose(one["norms"], other["norms"], rtol=0.05)
    key = "optimizer/model/model/blocks.1.linear.weight/master"
    decayed, same, undecayed = (tensors(runs, run)[key] for run in ("none-whole", f"{name}-whole", "undecayed"))
    apart = np.abs(decayed - undecayed).mean()
    assert np.abs(decayed - same).mean() < 0.2 * apart, "weight decay differs"


@pytest.mark.parametrize("name", ["dp", "os", "os_g", "p_g_os"])
def test_half_precision_parameters_without_gradient_are_exchanged_too(runs, name):
    plain, aside = result(runs, f"{name}-whole"), result(runs, f"{name}-aside")
    np.testing.assert_allclose(aside["losses"], plain["losses"], rtol=0.02)
    assert "optimizer/model/model/aside.weight/master" in tensors(runs, f"{name}-aside")


@pytest.mark.parametrize("name", TWO_PHASES)
def test_a_half_precision_step_that_is_skipped_leaves_every_phase_where_it_was(runs, name):
    before, after = tensors(runs, f"{name}-sweet"), tensors(runs, f"{name}-sour")
    assert before.keys() == after.keys() and any(key.startswith("optimizer/second/") for key in before)
    for key, value in before.items():
        if name == "p_g_os_offload" and key.startswith("model/"):
            value, after[key] = (rounded(each, "bfloat16") for each in (value, after[key]))
        np.testing.assert_array_equal(value, after[key], err_msg=key)
