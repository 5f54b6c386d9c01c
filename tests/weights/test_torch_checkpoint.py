"""PyTorch checkpoints are read without PyTorch, and nothing that they ask for is run."""
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from vilg.errors import CheckpointError
from vilg.weights.foreign import read_foreign_weights
from vilg.weights.torch_checkpoint import read_torch_checkpoint

import torch_writer

ARRAYS = {"a.weight": np.arange(12, dtype="float32").reshape(3, 4), "b": np.array([7, 8], "int64"),
          "half": np.array([0.5, 2.0], "float16")}


class Touch:
    """Pickles as an order to make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [torch_writer.save, torch_writer.save_stream])
def test_tensors_come_back(tmp_path, save):
    path = tmp_path / "weights.pt"
    save(path, {"state_dict": torch_writer.tensors(ARRAYS), "epoch": 3})
    found = read_foreign_weights(path)
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("save", [torch_writer.save, torch_writer.save_stream])
def test_orders_in_a_checkpoint_are_not_carried_out(tmp_path, save):
    path, mark = tmp_path / "weights.pt", tmp_path / "was_here"
    save(path, {"state_dict": torch_writer.tensors(ARRAYS), "callbacks": [Touch(mark)]})
    assert read_foreign_weights(path).keys() == ARRAYS.keys()
    assert not mark.exists()


class Module:
    """Stands for a module that was pickled whole; the old stream records its class and source."""

    recorded = True

    def __init__(self, parameters, children):
        self._parameters, self._modules = OrderedDict(parameters), OrderedDict(children)
        self._buffers = OrderedDict()


@pytest.mark.parametrize("save", [torch_writer.save, torch_writer.save_stream])
def test_a_module_that_was_pickled_whole_gives_its_weights(tmp_path, save):
    path = tmp_path / "encoder.pkl"
    inner = Module(torch_writer.tensors({"w": ARRAYS["a.weight"]}), {})
    save(path, Module({}, {"blocks": Module({}, {"input": inner})}))
    np.testing.assert_array_equal(read_foreign_weights(path)["blocks.input.w"], ARRAYS["a.weight"])


@pytest.mark.parametrize("damage, word", [
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a whole"),
    (lambda path: path.write_bytes(b""), "not a whole"),
    (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "neither a zip archive"),
    (lambda path: zipfile.ZipFile(path, "w").close(), "data.pkl"),
    (lambda path: path.unlink(), "no such"),
    (lambda path: torch_writer.save(path, [1, 2]), "no named weights")])
def test_damaged_files_are_refused_by_name(tmp_path, damage, word):
    path = tmp_path / "weights.pt"
    torch_writer.save(path, torch_writer.tensors(ARRAYS))
    damage(path)
    with pytest.raises(CheckpointError, match=word) as refused:
        read_foreign_weights(path)
    assert "weights.pt" in str(refused.value)


def test_a_storage_cut_short_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch_writer.save(path, torch_writer.tensors(ARRAYS))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["archive/data/0"] = entries["archive/data/0"][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="cut short"):
        read_foreign_weights(path)


@pytest.mark.extras
def test_what_pytorch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    content = {"turned": base.t(), "slice": base[1:3, ::2], "bf16": torch.tensor([1.5, -2.0]).bfloat16(),
               "parameter": torch.nn.Parameter(torch.ones(3)), "scalar": torch.tensor(4.0), "empty": torch.zeros(0, 3)}
    for stream in (False, True):
        path = tmp_path / f"weights{stream}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not stream)
        found = read_torch_checkpoint(path)
        for name, value in content.items():
            np.testing.assert_array_equal(found[name], value.detach().float().numpy())
