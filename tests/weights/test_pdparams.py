"""Paddle's weights are read without unpickling: what paddle.save writes comes back, hostile files are refused."""
import os
import pickle
import pickletools
import struct
from collections import OrderedDict

import numpy as np
import paddle
import pytest

from vilg.errors import CheckpointError
from vilg.weights.pdparams import NAMES, PARTS, read_pdparams

ARRAYS = {"a.weight": np.arange(12, dtype="float32").reshape(3, 4), "b": np.array([7, 8], "int64"),
          "half": np.array([0.5, 2.0], "float16"), "flag": np.array([True, False]), "scalar": np.array(4.0, "float64"),
          "empty": np.zeros([0, 3], "float32"), "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
          "big_endian": np.array([1.5, -2], ">f4")}


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found[name], value)


def write(path, content, protocol: int = 4):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_back(tmp_path, protocol):
    same(read_pdparams(write(tmp_path / "x.pdparams", ARRAYS, protocol)), ARRAYS)
    same(read_pdparams(write(tmp_path / "x.pdparams", OrderedDict(ARRAYS), protocol)), ARRAYS)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_is_read(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.BatchNorm1D(4))
    path = tmp_path / "layer.pdparams"
    paddle.save(layer.state_dict(), str(path), protocol=protocol)
    assert NAMES.encode() in path.read_bytes()
    same(read_pdparams(path), {name: value.numpy() for name, value in layer.state_dict().items()})


def test_bfloat16_and_nested_tensors_of_paddle(tmp_path):
    path = tmp_path / "mixed.pdparams"
    values = paddle.to_tensor([1.5, -2.0, 0.0078125])
    paddle.save({"half": values.astype("bfloat16"), "inner": {"left out": values}}, str(path))
    same(read_pdparams(path), {"half": values.numpy()})
    paddle.save({"whole": values, "list": [values]}, str(path))  # no state dict: tensors as (name, array)
    same(read_pdparams(path), {"whole": values.numpy()})


def test_arrays_that_paddle_cut_up_are_put_together(tmp_path):
    array = np.arange(24, dtype="float32").reshape(2, 3, 4)
    cut = {"w@@.0": array.ravel()[:10], "w@@.1": array.ravel()[10:], "b": ARRAYS["b"],
           PARTS: {"w": {"OriginShape": array.shape, "slices": ["w@@.0", "w@@.1"]}}}
    same(read_pdparams(write(tmp_path / "cut.pdparams", cut, 2)), {"b": ARRAYS["b"], "w": array})
    cut[PARTS]["w"]["slices"].append("w@@.2")
    with pytest.raises(CheckpointError, match="cut.pdparams: the pieces of w do not make it whole"):
        read_pdparams(write(tmp_path / "cut.pdparams", cut, 2))


class Order:
    """Pickles as an order to call ``function``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_tensors_of_static_graphs_are_read_without_evaluating(tmp_path):
    tensor = Order(eval, "data", {"data": ARRAYS["a.weight"]})  # how Paddle spells them
    same(read_pdparams(write(tmp_path / "x.pdparams", {"w": tensor})), {"w": ARRAYS["a.weight"]})


@pytest.mark.parametrize("function, arguments, words", [
    (os.system, ("touch {mark}",), "asks for posix.system"),
    (eval, ("open({mark!r}, 'w')", {}), "asks for an expression"),
    (eval, ("data", {"data": 1, "more": 2}), "asks for an expression"),
    (eval, ("open({mark!r}, 'w')", {"data": 1}), "asks for an expression"),
    (exec, ("open({mark!r}, 'w')",), "asks for builtins.exec"),
    (open, ("{mark}", "w"), "asks for (io|_io).open"),
    (np.load, ("{mark}",), "asks for numpy.load"),
    (getattr, ("", "join"), "asks for builtins.getattr"),
    (bytearray, (1 << 40,), "asks for builtins.bytearray")])
@pytest.mark.parametrize("protocol", [2, 4])
def test_orders_are_refused_and_not_carried_out(tmp_path, function, arguments, words, protocol):
    mark = tmp_path / "was_here"
    filled = [text.format(mark=str(mark)) if isinstance(text, str) else text for text in arguments]
    words = words.replace("builtins", "(builtins|__builtin__)")
    with pytest.raises(CheckpointError, match=f"bad.pdparams: {words}"):
        read_pdparams(write(tmp_path / "bad.pdparams", ARRAYS | {"more": Order(function, *filled)}, protocol))
    assert not mark.exists()


def array_by_hand(shape: bytes, kind: bytes = b"X\x02\x00\x00\x00f4", raw: bytes = b"C\x04abcd") -> bytes:
    """A state dict of one array, spelled out: reconstruct, then shape, type, order and bytes."""
    dtype = (b"cnumpy\ndtype\n" + kind + b"\x89\x88\x87R"
             b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    return (b"\x80\x02}X\x01\x00\x00\x00wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
            b"(K\x01" + shape + dtype + b"\x89" + raw + b"tbs.")


def test_the_array_by_hand_is_one(tmp_path):
    content = array_by_hand(b"K\x01\x85")
    pickletools.dis(content, out=open(os.devnull, "w"))
    same(read_pdparams(write(tmp_path / "x.pdparams", content)), {"w": np.frombuffer(b"abcd", "float32")})


HUGE = b"\x8a\x05\x00\x00\x00\x00\x01"  # 2**32
HOSTILE = {
    "a shape beyond its bytes": (array_by_hand(HUGE + b"\x85"), "takes 17179869184 bytes and has 4"),
    "two of them that overflow": (array_by_hand(HUGE + HUGE + b"\x86"), "takes 73786976294838206464 bytes and has 4"),
    "no such many axes": (array_by_hand(b"(" + b"K\x01" * 40 + b"t"), "malformed shape"),
    "a negative side": (array_by_hand(b"J\xff\xff\xff\xff\x85"), "malformed shape"),
    "a side that is no number": (array_by_hand(b"C\x01a\x85"), "malformed shape"),
    "a side that is a truth": (array_by_hand(b"\x88\x85"), "malformed shape"),
    "bytes that are none": (array_by_hand(b"K\x01\x85", raw=b"K\x04"), "malformed shape or type"),
    "objects": (array_by_hand(b"K\x01\x85", kind=b"X\x02\x00\x00\x00O8"), "an array of the type 'O8'"),
    "bytes beyond the file": (b"\x80\x04}\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "claims 1099511627776 bytes"),
    "a frame beyond the file": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.", "claims 1099511627776 bytes"),
    "a text beyond the file": (b"\x80\x02}X\xff\xff\xff\x7fabc.", "claims 2147483647 bytes"),
    "a place beyond all memory": (b"\x80\x02}r\xff\xff\xff\x7f.", "holds no named weights"),
    "a bytearray beyond all": (b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b".", "not a whole .pdparams file"),
    "a newer protocol": (b"\x80\x05}.", "does not begin as"),
    "an outside object": (b"\x80\x02X\x01\x00\x00\x00aQ.", "not a whole .pdparams file"),
    "a registered function": (b"\x80\x02\x82\x01)R.", "not a whole .pdparams file"),
    "state for a function": (b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.", "sets the state of something"),
    "a new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "not a whole .pdparams file"),
    "an array never filled": (b"\x80\x02}X\x01\x00\x00\x00wcnumpy\nndarray\n)Rs.", "never filled"),
    "an empty stack": (b"\x80\x02ss.", "not a whole .pdparams file"),
    "a call of an array": (b"\x80\x02cnumpy\nndarray\n)R)R.", "not a whole .pdparams file"),
    "nesting": (b"\x80\x02" + b"(" * 100000 + b"t" * 100000 + b".", "holds a tuple|not a whole"),
    "no end": (b"\x80\x02}", "not a whole|claims"),
    "nothing": (b"", "does not begin as"),
    "text": (b"not a pickle at all", "does not begin as"),
    "a list": (pickle.dumps([1, 2]), "holds a list, not weights by name"),
    "no arrays": (pickle.dumps({"a": 1}), "holds no named weights"),
    "numbered arrays": (pickle.dumps({1: ARRAYS["b"]}, 2), "holds no named weights"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_files_are_refused_by_name(tmp_path, kind):
    content, words = HOSTILE[kind]
    with pytest.raises(CheckpointError, match=f"bad.pdparams: .*({words})"):
        read_pdparams(write(tmp_path / "bad.pdparams", content))


def test_one_array_under_many_names_is_counted_each_time(tmp_path):
    array = np.zeros(100_000, "uint16")
    with pytest.raises(CheckpointError, match="claims weights of 200000000 bytes in a file of"):
        read_pdparams(write(tmp_path / "bad.pdparams", {f"w{number}": array for number in range(1000)}))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = pickle.dumps(ARRAYS, 4)
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(CheckpointError, match="bad.pdparams: "):
            read_pdparams(write(tmp_path / "bad.pdparams", whole[:length]))


def test_a_byte_changed_anywhere_gives_arrays_or_a_sentence(tmp_path):
    whole, random = pickle.dumps({"w": ARRAYS["a.weight"], "b": ARRAYS["b"]}, 2), np.random.default_rng(0)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] = random.integers(256)
        try:
            found = read_pdparams(write(tmp_path / "bad.pdparams", bytes(changed)))
        except CheckpointError as error:
            assert str(error).startswith(f"{tmp_path / 'bad.pdparams'}: ")
        else:
            assert all(isinstance(array, np.ndarray) for array in found.values())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.pdparams: there is no such weights file"):
        read_pdparams(tmp_path / "none.pdparams")
