"""Files of PyTorch, read without it: those that are right to the bit, the others refused."""

import argparse
import collections
import datetime
import decimal
import functools
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from replk_jax.io.errors import FileError
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.tensors import check_total_size
from replk_jax.torch_import.pickle_machine import Unpickler
from replk_jax.torch_import.placeholders import Placeholder, UnreadableTensor
from replk_jax.torch_import.reader import read
from replk_jax.torch_import.writer import write_torch
from tests import reference_data
from tests.helpers import assert_same_bits
from tests.torch_import.archives import state_dict, tensor, write_archive, write_with_header

CHECKPOINTS = reference_data.ROOT / "checkpoints"

# Under which key each of these files has the weights of which .npz file, and what it puts before
# their names.
WEIGHTS = {
    "bare.pth": (None, "", "weights"),
    "bare.safetensors": (None, "", "weights"),
    "channels_last.pth": (None, "", "weights"),
    "deploy.pth": (None, "", "weights_deploy"),
    "from_gpu.pth": ("model", "", "weights"),
    "legacy_bare.pth": (None, "", "weights"),
    "legacy_training.pth": ("model", "", "weights"),
    "older_zip.pth": ("model", "", "weights"),
    "one_storage.pth": (None, "", "weights"),
    "parameters.pth": (None, "", "weights"),
    "training.pth": ("model", "", "weights"),
    "under_model.pth": ("model", "", "weights"),
    "under_model_module.pth": ("model", "module.", "weights"),
    "under_state_dict_module.pth": ("state_dict", "module.", "weights"),
}
NARROWED = {
    "bfloat16.pth": (None, ml_dtypes.bfloat16),
    "bfloat16.safetensors": (None, ml_dtypes.bfloat16),
    "float16.pth": (None, np.float16),
    "float64.pth": ("state_dict", np.float64),
}
RENAMED = {
    "mmpretrain.pth": "state_dict",
    "mmpretrain_bare.pth": None,
    "mmpretrain.safetensors": None,
}
REFUSED = {
    "refuse_runs_code.pth": r"calls posix\.mkdir, so it is a program.*near 'extra'",
    "refuse_whole_model.pth": r"pickled torch\.nn\.\S+\.Sequential object.*state_dict\(\)",
    "refuse_cut_short.pth": r"as if it had been cut short\. Copy or download it again\.",
}
DTYPES = (
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8,
    np.uint8, np.bool_, np.complex64, np.complex128,
)  # fmt: skip


def under(contents, key):
    return contents if key is None else contents[key]


@reference_data.required
class TestGoldenFiles:
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_weights(self, name):
        key, prefix, array_file = WEIGHTS[name]
        weights = under(read(CHECKPOINTS / name), key)
        expected = reference_data.arrays(f"checkpoints/{array_file}.npz")
        assert set(weights) == {prefix + key for key in expected}
        for key, value in expected.items():
            assert_same_bits(weights[prefix + key], value)

    @pytest.mark.parametrize("name", NARROWED)
    def test_other_types(self, name):
        key, dtype = NARROWED[name]
        weights = under(read(CHECKPOINTS / name), key)
        expected = reference_data.arrays("checkpoints/weights.npz")
        assert set(weights) == set(expected)
        for key, value in expected.items():
            floating = value.dtype == np.float32
            assert_same_bits(weights[key], value.astype(dtype) if floating else value)

    @pytest.mark.parametrize("name", RENAMED)
    def test_other_names(self, name):
        weights = under(read(CHECKPOINTS / name), RENAMED[name])
        expected = reference_data.arrays("checkpoints/weights.npz")

        def bits(values):
            return collections.Counter((value.shape, value.tobytes()) for value in values)

        assert bits(map(np.asarray, weights.values())) == bits(expected.values())

    @pytest.mark.parametrize("name", ["training.pth", "legacy_training.pth"])
    def test_what_training_saves(self, name):
        contents = read(CHECKPOINTS / name)
        for key, value in reference_data.arrays("checkpoints/weights_ema.npz").items():
            assert_same_bits(contents["model_ema"][key], value)
        namespace = contents["args"]
        assert (namespace.path, namespace.called) == ("argparse.Namespace", False)
        assert namespace.state["lr"] == 0.004
        assert repr(namespace).startswith("argparse.Namespace({'batch_size': 64, ")
        assert contents["epoch"] == 3
        assert isinstance(contents["optimizer"], dict)

    def test_a_segmenter(self):
        contents = read(CHECKPOINTS / "mmseg_backbone.pth")
        assert contents["meta"]["CLASSES"] == ["a", "b"]
        expected = reference_data.arrays("checkpoints/weights.npz")
        names = [n for n in contents["state_dict"] if n.removeprefix("backbone.") in expected]
        assert len(names) == len([n for n in expected if not n.startswith(("norm.", "head."))])
        for name in names:
            assert_same_bits(contents["state_dict"][name], expected[name.removeprefix("backbone.")])

    @pytest.mark.parametrize("name", ["odd_tensors.pth", "legacy_odd_tensors.pth"])
    def test_odd_tensors(self, name):
        tensors = read(CHECKPOINTS / name)
        expected = reference_data.arrays("checkpoints/odd_tensors.npz")
        assert set(tensors) == set(expected)
        for key, value in expected.items():
            bfloat16 = tensors[key].dtype == ml_dtypes.bfloat16
            assert_same_bits(tensors[key], value.astype(ml_dtypes.bfloat16) if bfloat16 else value)

    def test_a_numpy_scalar_is_a_placeholder(self):
        contents = read(CHECKPOINTS / "under_state_dict_module.pth")
        scalar = contents["best_acc1_as_numpy"]
        assert scalar.path == "numpy._core.multiarray.scalar"
        assert not scalar.called
        assert scalar.args[1] == struct.pack("<d", contents["best_acc1"].read())

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileError, match=REFUSED[name]) as error:
            read(CHECKPOINTS / name)
        assert str(error.value).startswith(f"{CHECKPOINTS / name}: ")
        assert not list(tmp_path.iterdir())

    def test_all_against_pytorch(self):
        torch = pytest.importorskip("torch")
        names = sorted(path.name for path in CHECKPOINTS.glob("*.pth"))
        for name in [name for name in names if name not in REFUSED]:
            expected = torch.load(CHECKPOINTS / name, weights_only=False, map_location="cpu")
            assert_like_pytorch(read(CHECKPOINTS / name), expected)

    def test_names_tell_nothing(self, tmp_path):
        shutil.copy(CHECKPOINTS / "bare.safetensors", tmp_path / "a.pth")
        shutil.copy(CHECKPOINTS / "bare.pth", tmp_path / "b.safetensors")
        shutil.copy(CHECKPOINTS / "legacy_bare.pth", tmp_path / "c")
        first, *others = (read(path) for path in sorted(tmp_path.iterdir()))
        for other in others:
            assert set(other) == set(first)


def assert_like_pytorch(actual, expected):
    """The same tree with the same bits, where `expected` has tensors of PyTorch."""
    torch = pytest.importorskip("torch")
    if isinstance(expected, torch.Tensor):
        values = expected.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
        bits = values.view(torch.uint8).numpy()
        assert actual.shape == tuple(expected.shape)
        assert str(expected.dtype) == f"torch.{actual.dtype}"
        assert actual.read().tobytes() == bits.tobytes()
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_like_pytorch(actual[key], value)
    elif isinstance(expected, list | tuple):
        assert type(actual) is type(expected)
        for inner, value in zip(actual, expected, strict=True):
            assert_like_pytorch(inner, value)
    elif isinstance(actual, Placeholder):
        assert isinstance(expected, argparse.Namespace | np.generic)
    else:
        assert actual == expected
        assert type(actual) is type(expected)


@pytest.mark.parametrize("legacy", [False, True])
class TestAgainstPyTorch:
    """What PyTorch writes here and now."""

    def check(self, contents, path, legacy):
        torch = pytest.importorskip("torch")
        torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
        assert_like_pytorch(read(path), torch.load(path, weights_only=False))

    @pytest.mark.parametrize("seed", range(5))
    def test_views(self, seed, legacy, tmp_path):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(seed)
        tensors = {}
        for key in range(40):
            shape = tuple(rng.integers(0 if key % 8 == 0 else 1, 6, rng.integers(0, 5)))
            base = torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32))
            view = base.permute(rng.permutation(base.ndim).tolist())
            for axis in range(view.ndim):
                start, step = int(rng.integers(0, view.shape[axis] + 1)), int(rng.integers(1, 3))
                view = view[(slice(None),) * axis + (slice(start, None, step),)]
            if rng.random() < 0.3:
                view = view.unsqueeze(0).expand(3, *view.shape)
            tensors[f"{key}"] = view
            tensors[f"{key}.base"] = base
        self.check(tensors, tmp_path / "f", legacy)

    def test_types(self, legacy, tmp_path):
        torch = pytest.importorskip("torch")
        names = [np.dtype(dtype).name for dtype in DTYPES]
        if not legacy:  # PyTorch itself cannot read these in the older format
            names += ["uint64", "uint32", "uint16", "float8_e4m3fn", "float8_e5m2"]
        values = torch.arange(6).reshape(2, 3)
        tensors = {name: values.to(getattr(torch, name)).T for name in names}
        self.check(tensors, tmp_path / "f", legacy)

    def test_parameters_and_attributes(self, legacy, tmp_path):
        torch = pytest.importorskip("torch")
        tensors = {
            "parameter": torch.nn.Parameter(torch.randn(3, 2)),
            "parameter with attribute": torch.nn.Parameter(torch.randn(3, 2)),
            "tensor with attribute": torch.randn(3, 2),
            "shape": [tuple(torch.Size([2, 3])), ()],
        }
        for name in ("parameter with attribute", "tensor with attribute"):
            tensors[name].no_decay = True
        self.check(tensors, tmp_path / "f", legacy)

    def test_state_dict_of_a_module(self, legacy, tmp_path):
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        contents = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
        self.check(contents, tmp_path / "f", legacy)

    @pytest.mark.parametrize("kind", ["sparse", "quantized", "meta", "conjugate"])
    def test_tensors_of_other_kinds_are_not_taken_for_plain_ones(self, kind, legacy, tmp_path):
        torch = pytest.importorskip("torch")
        with warnings.catch_warnings(action="ignore"):  # that quantized tensors will go away
            value = {
                "sparse": lambda: torch.eye(3).to_sparse(),
                "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
                "meta": lambda: torch.ones(3, device="meta"),
                "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
            }[kind]()
        torch.save({"t": value}, tmp_path / "f", _use_new_zipfile_serialization=not legacy)
        placeholder = read(tmp_path / "f")["t"]
        assert isinstance(placeholder, Placeholder)
        assert placeholder.called


class TestTensor:
    def test_what_it_is(self, tmp_path):
        values = np.arange(12, dtype=np.float32).reshape(3, 4)
        write_torch(tmp_path / "f", {"w": values})
        stored = read(tmp_path / "f")["w"]
        assert repr(stored) == "StoredTensor(shape=(3, 4), dtype=float32)"
        assert_same_bits(stored, values)
        np.testing.assert_array_equal(np.asarray(stored), values)
        np.testing.assert_array_equal(jnp.asarray(stored), values)
        assert np.asarray(stored, np.float64).dtype == np.float64
        with pytest.raises(ValueError, match="without a copy"):
            np.array(stored, copy=False)
        stored.read()[:] = 0
        assert_same_bits(stored, values)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_big_endian(self, dtype, tmp_path):
        values = np.random.default_rng(0).integers(0, 2, (5, 3)).astype(dtype)
        values = values * 1.7 if values.dtype.kind in "fcV" else values
        values = values.astype(dtype)
        write_torch(tmp_path / "little", {"w": values})
        with zipfile.ZipFile(tmp_path / "little") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        complex_ = np.dtype(dtype).kind == "c"
        word = np.dtype(dtype).itemsize // (2 if complex_ else 1)
        swapped = np.frombuffer(members["archive/data/0"], f"<u{word}").astype(f">u{word}")
        pickle_ = members["archive/data.pkl"]
        others = {"byteorder": b"big", "version": b"3\n"}
        write_archive(tmp_path / "big", pickle_, {"0": swapped.tobytes()}, others)
        assert_same_bits(read(tmp_path / "big")["w"], values)
        write_archive(tmp_path / "odd", pickle_, {"0": b""}, {"byteorder": b"middle"})
        with pytest.raises(FileError, match="byte order is b'middle'; known: little, big"):
            read(tmp_path / "odd")

    def test_one_after_the_other_takes_the_memory_of_one(self, tmp_path):
        shape = (1 << 20,)
        write_torch(tmp_path / "f", {f"{i}": np.full(shape, i, np.float32) for i in range(8)})
        tracemalloc.start()
        try:
            for i, stored in enumerate(read(tmp_path / "f").values()):
                assert stored.read()[-1] == i
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * shape[0] + (1 << 20)

    @pytest.mark.parametrize("format_", ["zip", "safetensors"])
    @pytest.mark.parametrize("change", ["written", "cut"])
    def test_a_file_that_changes(self, change, format_, tmp_path):
        write = write_torch if format_ == "zip" else lambda p, t: write_safetensors(p, t, {})
        write(tmp_path / "f", {"w": np.zeros(1000)})
        stored = read(tmp_path / "f")["w"]
        with open(tmp_path / "f", "r+b") as file:
            if change == "cut":
                file.truncate(2000)
            else:
                file.seek(3000)
                file.write(b"x")
                file.flush()
                # Some file systems count time in steps.
                stamp = pathlib.Path(tmp_path / "f").stat().st_mtime_ns + 10**9
                os.utime(tmp_path / "f", ns=(stamp, stamp))
        with pytest.raises(FileError, match=f"^{tmp_path / 'f'}: it has been written to"):
            stored.read()

    def test_a_file_that_is_replaced_is_read_to_the_end(self, tmp_path):
        write_torch(tmp_path / "f", {"w": np.zeros(1000)})
        stored = read(tmp_path / "f")["w"]
        write_torch(tmp_path / "f", {"w": np.ones(1000)})
        assert not stored.read().any()

    def test_threads_read_at_once(self, tmp_path):
        values = np.arange(400_000, dtype=np.float32)
        views = {f"t{i}": tensor((5000,), (1,), 5000 * i, count=values.size) for i in range(80)}
        write_archive(tmp_path / "f", state_dict(**views), {"0": values.tobytes()})
        tensors = read(tmp_path / "f")
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(np.asarray, tensors.values()))
        np.testing.assert_array_equal(np.concatenate(parts), values)

    def test_files_are_closed(self, tmp_path):
        write_torch(tmp_path / "f", {"w": np.zeros(10)})
        before = len(os.listdir("/dev/fd"))
        tensors = [read(tmp_path / "f") for _ in range(10)]
        assert len(os.listdir("/dev/fd")) == before + 10
        del tensors
        assert len(os.listdir("/dev/fd")) == before


class Odd:
    """A class of the user's."""

    def __init__(self, value):
        self.value = value


class OddList(list):
    pass


class OddDict(dict):
    pass


class OddTuple(collections.namedtuple("OddTuple", "a b")):
    __slots__ = ()


class Outer:
    class Inner:
        def __init__(self):
            self.value = 7


def reading(value, protocol=2):
    return Unpickler(io.BytesIO(pickle.dumps(value, protocol))).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
class TestPickles:
    """Everything that Python pickles in each of its protocols."""

    @pytest.mark.parametrize(
        "value",
        [
            None, True, False, 0, -1, 255, 256, 65535, 65536, 2**31, -(2**31), 2**100, -(2**2000),
            0.0, -1.5, float("inf"), "", "text", "größer\n\\u0041 \U0001f600", "x" * 70_000, b"",
            b"bytes\x00\xff", b"y" * 70_000, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1],
            [1, [2, [3]]], list(range(3000)), {}, {"a": 1}, {1: {None: {True: "x"}}},
            {str(i): i for i in range(3000)}, set(), {1, "a"}, {"nested": [({"x": (1, [2])},)]},
        ],
    )  # fmt: skip
    def test_values(self, value, protocol):
        result = reading(value, protocol)
        assert result == value
        assert type(result) is type(value)

    def test_shared_values(self, protocol):
        shared = [1, 2]
        result = reading({"a": shared, "b": (shared, shared)}, protocol)
        assert result["a"] is result["b"][0] is result["b"][1]

    def test_dicts_of_other_names(self, protocol):
        pairs = [("b", 1), ("a", 2)]
        ordered = collections.OrderedDict(pairs)
        ordered.attribute = "dropped"
        default = collections.defaultdict(list, pairs)
        counter = collections.Counter(b=1, a=2)
        for value in (ordered, default, counter):
            result = reading(value, protocol)
            assert type(result) is dict
            assert list(result.items()) == pairs

    @pytest.mark.parametrize(
        ("value", "path"),
        [
            (datetime.timedelta(3), "datetime.timedelta"),
            (datetime.datetime(2022, 3, 4), "datetime.datetime"),
            (pathlib.PurePosixPath("a/b"), "pathlib.PurePosixPath"),
            (decimal.Decimal("1.5"), "decimal.Decimal"),
            (functools.partial(int, "3"), "functools.partial"),
            (types.SimpleNamespace(a=1), "types.SimpleNamespace"),
            (complex(1, 2), "builtins.complex"),
            (slice(1, 2), "builtins.slice"),
            (bytearray(b"abc"), "builtins.bytearray"),
            (collections.deque([1]), "collections.deque"),
        ],
    )
    def test_harmless_objects(self, value, path, protocol):
        if protocol == 5 and isinstance(value, bytearray):
            assert reading(value, protocol) == b"abc"
            return
        result = reading(value, protocol)
        assert result.path == path
        assert not result.called
        assert repr(result).startswith(f"{path}(")

    def test_objects(self, protocol):
        odd = reading(Odd([1, 2]), protocol)
        assert (odd.path, odd.called) == (f"{__name__}.Odd", False)
        assert odd.state == {"value": [1, 2]}
        assert repr(odd) == f"{__name__}.Odd({{'value': [1, 2]}})"

    def test_a_list_of_ones_own(self, protocol):
        odd = reading(OddList([1, 2]), protocol)
        assert odd.path == f"{__name__}.OddList"
        assert (odd.items or odd.args[0]) == [1, 2]

    def test_a_dict_of_ones_own(self, protocol):
        odd = reading(OddDict(a=1), protocol)
        assert odd.path == f"{__name__}.OddDict"
        assert (odd.entries or odd.args[0]) == {"a": 1}

    def test_a_tuple_of_ones_own(self, protocol):
        odd = reading(OddTuple(1, 2), protocol)
        assert odd.path == f"{__name__}.OddTuple"
        assert odd.args in [(1, 2), ((1, 2),)]

    def test_names(self, protocol):
        name = reading(Odd, protocol)
        assert (name.path, name.args) == (f"{__name__}.Odd", None)
        assert repr(name) == f"{__name__}.Odd"
        assert reading(len, protocol).path == "builtins.len"
        assert reading(Outer.Inner, protocol).path == f"{__name__}.Outer.Inner"
        assert reading(Outer.Inner(), protocol).state == {"value": 7}

    def test_numpy(self, protocol):
        array = reading(np.arange(3), protocol)
        assert array.path.endswith((".multiarray._reconstruct", ".numeric._frombuffer"))
        assert np.arange(3).tobytes() in (array.state or array.args)
        assert not array.called

    def test_keys_that_take_long_to_hash_are_placeholders(self, protocol):
        (key,) = reading({(1, 2): 3}, protocol)
        assert repr(key) == "builtins.tuple((1, 2))"
        (key,) = reading({2**70: 3}, protocol)
        assert repr(key) == f"builtins.int({2**70})"
        (key,) = reading({frozenset([1]): 3}, protocol)
        assert key.path in ("builtins.frozenset", "builtins.Placeholder")


HUGE = 2**61 - 1  # to Python, its multiples all have the hash 0


def longs(numbers):
    return b"".join(b"\x8a\x10" + n.to_bytes(16, "little") for n in numbers)


# Pickles to be refused, with what is said of them.
HOSTILE = {
    # What is not a pickle.
    "empty": (b"", "exhausted"),
    "without an end": (b"]", "exhausted"),
    "opcode that is none": (b"\xff.", "unknown"),
    "opcode of an extension": (b"\x82\x01.", "opcode EXT1 is not one of a checkpoint"),
    "opcode of a buffer": (b"\x97.", "opcode NEXT_BUFFER is not one of a checkpoint"),
    "text that is no UTF-8": (b"X\x02\0\0\0\xff\xff.", "utf-8"),
    # What is longer than it is.
    "string": (b"X\xff\xff\xff\xff.", "has 4294967295 bytes in one piece"),
    "long string": (b"\x8d" + struct.pack("<Q", 2**62) + b".", "bytes in one piece"),
    "longest string": (b"\x8d" + struct.pack("<Q", 2**64 - 1) + b".", "sys.maxsize"),
    "bytes": (b"\x8e" + struct.pack("<Q", 2**62) + b".", "bytes in one piece"),
    "bytearray": (b"\x96" + struct.pack("<Q", 2**62) + b".", "bytes in one piece"),
    "integer": (b"\x8b\xff\xff\xff\x7f.", "bytes in one piece"),
    "negative length": (b"\x8b\xff\xff\xff\xff.", "< 0"),
    "integer of 80 kilobits": (b"\x8b\x10\x27\0\0" + b"\x7f" * 10_000 + b".", "79999 bits"),
    "long line that is no number": (b"F" + b"\xff" * 10**6 + b"\n.", "could not convert"),
    "line without end": (b"F" + b"1" * (2**24 + 1) + b"\n.", "line of over 16777216 bytes"),
    "decimals": (b"L" + b"9" * 100_000 + b"L\n.", "digit"),
    "string of less than is left": (b"X\xff\xff\0\0.", "expected 65535 bytes"),
    # What is not there.
    "stack at its end": (b".", "takes more from its stack"),
    "stack of two": (b"]\x86.", "takes more from its stack"),
    "beyond a mark": (b"](a.", "takes more from its stack"),
    "mark": (b"]e.", "no MARK"),
    "memo": (b"h\x05.", "stored nothing under 5"),
    "memo of nothing": (b"q\x05.", "takes more from its stack"),
    "class of an object": (b"(o.", "takes more from its stack"),
    # What is something else.
    "append to a number": (b"K\x01Na.", "appends to a int"),
    "entry in a list": (b"]NNs.", "stores an entry in a list"),
    "item in a dict": (b"}(N\x90.", "adds to a dict"),
    "half an entry": (b"}(Nu.", "a key without a value"),
    "half a dict": (b"(Nd.", "a key without a value"),
    "call of a number": (b"K\x01)R.", "calls what is not a function"),
    "call of an object": (b"ca\nb\n)R)R.", "calls what is not a function"),
    "arguments in a list": (b"ca\nb\n]R.", "a list as arguments"),
    "name that is no string": (b"NN\x93.", "not a string"),
    "name without end": (b"c" + b"a" * 5000 + b"\nb\n.", "too long for a name"),
    "state of a number": (b"K\x01}b.", "gives attributes to 1"),
    "state of a class": (b"ca\nb\n}b.", "gives attributes to a.b"),
    "reference to nothing": (b"NQ.", "refers to None, which is no storage"),
    "reference by name": (b"Pabc\n.", "refers to 'abc', which is no storage"),
    "arguments that do not fit": (b"ccollections\nOrderedDict\n(K\x01tR.", r"not take \(1,\)"),
    # What would do something.
    "os.system": (b"cos\nsystem\n(Vls\ntR.", r"calls os\.system"),
    "posix.system": (b"\x8c\x05posix\x8c\x06system\x93(Vls\ntR.", r"calls posix\.system"),
    "eval": (b"c__builtin__\neval\n(V1\ntR.", r"calls builtins\.eval"),
    "exec, and nothing left of it": (b"cbuiltins\nexec\n(V1\ntR0}.", r"calls builtins\.exec"),
    "by its instance": (b"(Vls\nios\nsystem\n.", r"calls os\.system"),
    "by its object": (b"(cos\nsystem\nVls\no.", r"calls os\.system"),
    "by an attribute": (
        b"cbuiltins\ngetattr\n(cos\npath\nVjoin\ntR(V1\ntR.", r"calls os\.path\.join",
    ),
    "by a function that calls it": (
        b"cbuiltins\nmap\n(cos\nsystem\n(Vls\nltR.", r"calls builtins\.map",
    ),
    "by its name in Python 2": (
        b"c__builtin__\nreduce\n(cposix\nsystem\n(Vls\nltR.", r"calls functools\.reduce",
    ),
    "by its name in Python 2, of a module": (
        b"ccommands\ngetoutput\n(Vls\ntR.", r"calls subprocess\.getoutput",
    ),
    "pickle in a pickle": (b"c_pickle\nloads\n(Va\ntR.", r"calls _pickle\.loads"),
    "open": (b"cio\nopen\n(Va\ntR.", r"calls io\.open"),
    "by an attribute of an object": (
        b"cbuiltins\ngetattr\n(ca\nb\n)RVsystem\ntR(V1\ntR.", "calls what is not a function",
    ),
    "by a module in a package": (
        b"cimportlib.util\nfind_spec\n(Va\ntR.", r"calls importlib\.util\.find_spec",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_hostile_pickles(name, legacy, tmp_path):
    pickle_, message = HOSTILE[name]
    path = tmp_path / "f"
    if legacy:
        path.write_bytes(legacy_bytes(pickle_))
    else:
        write_archive(path, pickle_)
    begin = time.process_time()
    with pytest.raises(FileError, match=f"(?s)^{path}: .*{message}") as error:
        read(path)
    assert time.process_time() - begin < 5  # most take a millisecond; a hang takes for ever
    assert len(str(error.value)) < 1000


EMOJI = "x" * (2**24 - 4) + "\U0001f600"  # in memory it takes four bytes a letter

# Files that are small for what they make, by the kind of what they make.
TRAPS = {
    "lists": lambda path: write_archive(path, b"]" * 2**22 + b"."),
    "memo": lambda path: write_archive(path, b"N" + b"\x94" * 2**22 + b"."),
    "marks": lambda path: write_archive(path, b"(" * 2**22 + b"."),
    "long names": lambda path: write_archive(
        path,
        b"(cbuiltins\ngetattr\nq\0ca\n" + b"b" * 900 + b"\nVc\n\x86q\1" + b"h\0h\1R" * 2**19 + b".",
    ),
    "bytes over and over": lambda path: write_archive(
        path,
        b"(c_codecs\nencode\nq\0V"
        + b"a" * 2**20
        + b"\nVlatin1\n\x86q\1"
        + b"h\0h\1R" * 2**10
        + b".",
    ),
    "wide text": lambda path: write_archive(
        path, b"(" + (b"X" + struct.pack("<I", 2**24) + EMOJI.encode()) * 3 + b"l."
    ),
    "message": lambda path: write_archive(path, b"F" + b"\xff" * (2**24 - 2) + b"\n."),
    "zip directory": lambda path: path.write_bytes(directory(2**16)),
    "tables in a header": lambda path: write_with_header(
        path, b'{"a":[' + b"{}," * 1_390_000 + b"{}]}"
    ),
    "tensors of nothing": lambda path: write_with_header(
        path,
        json.dumps(
            {f"{i}": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}
        ).encode(),
    ),
}

READ_ALL = """
import json, re, sys, time
from pathlib import Path
from replk_jax.io.errors import FileError
from replk_jax.torch_import.reader import read

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before, seconds = peak(), []
for path in sys.argv[1:]:
    begin = time.process_time()
    try:
        read(path)
    except FileError:
        pass
    seconds.append(time.process_time() - begin)
print(json.dumps([peak() - before, max(seconds)]))
"""


def directory(count):
    """That of a zip archive with so many members, of which there is none."""
    entry = struct.Struct("<4s6H3I5H2I")
    entries = b"".join(
        entry.pack(b"PK\1\2", *[0] * 9, 8, *[0] * 6) + b"%08x" % i for i in range(count)
    )
    return entries + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, len(entries), 0, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells a process's peak")
def test_traps_take_no_more_than_is_said(tmp_path):
    """The bound that the reader's docstring gives; of time one far above the seconds it takes."""
    for name, write in TRAPS.items():
        write(tmp_path / name)
    run = subprocess.run(
        [sys.executable, "-c", READ_ALL, *(tmp_path / name for name in TRAPS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    memory, seconds = json.loads(run.stdout)
    assert memory < 300e6
    assert seconds < 10


# What training scripts log, by how many of it a fast test and an exhaustive one have.
LOGS = {
    "numbers": (lambda i: i * 0.1, 200_000, 5_000_000),
    "dicts": (lambda i: {"epoch": i, "loss": i * 0.5, "lr": 0.1 * i}, 30_000, 200_000),
    "small dicts": (lambda i: {"a": i}, 50_000, 1_000_000),
    "texts": (lambda i: f"epoch {i}: loss {i * 0.1}, " * 3, 50_000, 700_000),
    "tuples": (lambda i: (i, i + 1), 50_000, 1_000_000),
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_long_logs_are_read(name, long, tmp_path):
    make, short_count, long_count = LOGS[name]
    log = [make(i) for i in range(long_count if long else short_count)]
    write_archive(tmp_path / "f", pickle.dumps({"log": log}, 2))
    assert read(tmp_path / "f")["log"] == log


@pytest.mark.parametrize("protocol", [2, 5])
def test_long_texts_and_arrays_are_read(protocol, tmp_path):
    text, array = "x" * (1 << 25), np.arange(1 << 22)
    write_archive(tmp_path / "f", pickle.dumps({"text": text, "array": array}, protocol))
    contents = read(tmp_path / "f")
    assert contents["text"] == text
    assert array.tobytes() in (contents["array"].state or contents["array"].args)


def legacy_bytes(pickle_):
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(value, 2) for value in start) + pickle_


def test_what_is_only_strange_is_read(tmp_path):
    colliding = b"}(" + b"".join(longs([HUGE * i]) + b"N" for i in range(1, 50_000)) + b"u"
    strange = {
        "a far place in the memo": (b"]r\xff\xff\xff\xff.", []),
        "a frame without end": (b"\x95" + b"\xff" * 8 + b"].", []),
        "a mark that is dropped": (b"(K\x01K\x0200].", []),
        "a mark that is dropped with all above": (b"(K\x01K\x021].", []),
    }
    for name, (pickle_, expected) in strange.items():
        write_archive(tmp_path / "f", pickle_)
        assert read(tmp_path / "f") == expected, name
    write_archive(tmp_path / "f", colliding + b".")
    begin = time.process_time()
    assert len(read(tmp_path / "f")) == 49_999
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("bits", "protocol"),
    [(4096, 0), (4097, 0), (6645, 0), (4096, 2), (4097, 2), (6645, 4), (1_000_000, 2)],
)
def test_huge_integers_beside_others(bits, protocol, tmp_path):
    """Also as keys. Protocol 0 writes text, and Python has none for over 4300 digits."""
    number = 2 ** (bits - 1)
    value = {"huge": number, "key": {number: 1}, "inner": [-number], "small": 2**4095}
    write_archive(tmp_path / "f", pickle.dumps(value, protocol))
    contents = read(tmp_path / "f")
    assert contents["small"] == 2**4095
    (key,) = contents["key"]
    huge = (contents["huge"], key, contents["inner"][0])
    if bits == 4096:
        assert (contents["huge"], contents["inner"]) == (number, [-number])
    else:
        assert {repr(value) for value in huge} == {f"builtins.int(left out: it has {bits} bits)"}


def test_functions_of_others_become_placeholders(tmp_path):
    pickle_ = b"}Va\nchubconf\nload\n(Vx\ntRsVb\nchubconf\nHub\n)\x81s."
    contents = read(write_archive(tmp_path / "f", pickle_))
    assert repr(contents["a"]) == "hubconf.load('x')"
    assert contents["a"].called
    assert not contents["b"].called


@pytest.mark.parametrize("kind", ["int", "str", "NoneType", "list"])
def test_the_top_must_be_a_container(kind, tmp_path):
    pickle_ = {"int": b"K\x01.", "str": b"Va\n.", "NoneType": b"N.", "list": b"]."}[kind]
    write_archive(tmp_path / "f", pickle_)
    if kind == "list":
        assert read(tmp_path / "f") == []
        return
    with pytest.raises(FileError, match=f"holds a pickled {kind} object, not a state dict"):
        read(tmp_path / "f")


def test_a_single_tensor_is_no_state_dict(tmp_path):
    write_archive(tmp_path / "f", tensor() + b".", {"0": bytes(16)})
    with pytest.raises(FileError, match="it holds a single tensor, not a state dict"):
        read(tmp_path / "f")


# Tensors that cannot be, over a storage of four float32.
WRONG_TENSORS = {
    "beyond the storage": (tensor((5,), (1,)), "leaves storage '0', which has 16 bytes"),
    "beyond by its offset": (tensor((4,), (1,), 1), "leaves storage '0'"),
    "beyond by its strides": (tensor((2, 2), (3, 1)), "leaves storage '0'"),
    "beyond by one great stride": (tensor((2,), (2**62,)), "leaves storage '0'"),
    "negative stride": (tensor((4,), (-1,), 3), "shape, strides or an offset"),
    "negative offset": (tensor((4,), (1,), -1), "shape, strides or an offset"),
    "negative shape": (tensor((-4,), (1,)), "shape, strides or an offset"),
    "fewer strides than axes": (tensor((2, 2), (1,)), "1 strides are not those"),
    "more axes than any": (tensor((1,) * 33, (1,) * 33), "shape, strides or an offset"),
    "more than 64 bits count": (tensor((2**40, 2**40), (0, 0)), "larger than the file"),
    "nothing, but of what size": (tensor((0, 2**40, 2**40), (1, 1, 1)), "larger than the file"),
    "storage that is not there": (tensor(key="1"), "storage '1' is not in the file"),
    "storage elsewhere": (tensor(key="../../version"), "is not in the file"),
    "storage that is larger": (tensor(count=5), "has 16 bytes, which are not 5 elem"),
    "storage of less than nothing": (tensor(count=-1), "has 16 bytes, which are not -1 elem"),
    "storage of a type": (tensor(storage="QInt8Storage"), r"torch\.QInt8Storage is not a type"),
    "shape of text": (
        tensor().replace(b"(I4\nt(I1\nt", b"(Va\nt(I1\nt"), "shape, strides or an offset",
    ),
    "shape of truth": (
        tensor().replace(b"(I4\nt(I1\nt", b"(I01\nt(I1\nt"), "shape, strides or an offset",
    ),
    "shape of nothing": (tensor().replace(b"(I4\nt(I1\nt", b"NN"), "_rebuild_tensor_v2 does not"),
    "storage of nothing": (tensor().replace(b"Q", b"0N"), "_rebuild_tensor_v2 does not take"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors(name, tmp_path):
    opcodes, message = WRONG_TENSORS[name]
    write_archive(tmp_path / "f", state_dict(right=tensor(), wrong=opcodes), {"0": bytes(16)})
    with pytest.raises(FileError, match=f"{message}.*near 'wrong'"):
        read(tmp_path / "f")


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2**40,), (0,)), ((1000, 1000, 1000), (0, 0, 0)), ((3000, 4), (0, 1)), ((2**20, 2), (0, 2))],
)
def test_expanded_tensors_beside_others(shape, strides, tmp_path):
    """Larger than the file, so they are not read, and do not keep the others from it."""
    pickle_ = state_dict(mask=tensor(shape, strides), w=tensor())
    write_archive(tmp_path / "f", pickle_, {"0": np.arange(4, dtype=np.float32).tobytes()})
    contents = read(tmp_path / "f")
    assert isinstance(contents["mask"], UnreadableTensor)
    assert re.search("expanded", contents["mask"].kind)
    assert re.search(r"contiguous\(\)", contents["mask"].remedy)
    assert_same_bits(contents["w"], np.arange(4, dtype=np.float32))


def test_small_expanded_tensors_are_read(tmp_path):
    write_archive(
        tmp_path / "f",
        state_dict(w=tensor((3, 4), (0, 1))),
        {"0": np.arange(4, dtype=np.float32).tobytes()},
    )
    expected = np.tile(np.arange(4, dtype=np.float32), (3, 1))
    assert_same_bits(read(tmp_path / "f")["w"], expected)


def test_expanded_tensors_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"w": torch.arange(6.0).reshape(2, 3), "row": torch.arange(3.0).expand(4, 3)}
    mask = torch.zeros(1).expand(1000, 1000, 1000)
    torch.save({"mask": mask, "state_dict": weights}, tmp_path / "f")
    contents = read(tmp_path / "f")
    assert isinstance(contents["mask"], UnreadableTensor)
    for name, value in weights.items():
        assert_same_bits(contents["state_dict"][name], value.contiguous().numpy())


def test_views_of_one_storage_over_and_over(tmp_path):
    """Each is read, and all of them only one after the other."""
    values = np.arange(1000, dtype=np.float32)
    pickle_ = state_dict(**{f"t{i}": tensor((1000,), (1,), count=1000) for i in range(1000)})
    write_archive(tmp_path / "f", pickle_, {"0": values.tobytes()})
    tensors = read(tmp_path / "f")
    assert_same_bits(tensors["t999"], values)
    size = (tmp_path / "f").stat().st_size
    few = [tensors[f"t{i}"] for i in range(8 * size // values.nbytes)]
    check_total_size(few)
    with pytest.raises(ValueError, match=r"over 8 times as large as the file.*clone\(\)"):
        check_total_size([*few, tensors["t999"]])


def sound_archive(path, compression=zipfile.ZIP_STORED):
    data = np.arange(4, dtype=np.float32).tobytes()
    return write_archive(
        path, state_dict(w=tensor()), {"0": data}, {"version": b"3\n"}, compression
    )


class TestArchives:
    def test_a_sound_one(self, tmp_path):
        stored = read(sound_archive(tmp_path / "f"))["w"]
        assert_same_bits(stored, np.arange(4, dtype=np.float32))

    def test_compressed(self, tmp_path):
        sound_archive(tmp_path / "f", zipfile.ZIP_DEFLATED)
        with pytest.raises(FileError, match=r"'archive/data\.pkl' is compressed.*level 0"):
            read(tmp_path / "f")

    def test_larger_than_it_is_stored(self, tmp_path):
        entry = self.entry(tmp_path, b"archive/data/0")
        self.write(tmp_path, entry + 24, struct.pack("<I", 2**31))  # size
        with pytest.raises(FileError, match="'archive/data/0' is compressed"):
            read(tmp_path / "f")

    def test_beyond_the_end(self, tmp_path):
        entry = self.entry(tmp_path, b"archive/data/0")
        self.write(tmp_path, entry + 20, struct.pack("<II", 2**31, 2**31))  # both sizes
        with pytest.raises(FileError, match="'archive/data/0' is not where its directory says"):
            read(tmp_path / "f")

    def test_encrypted(self, tmp_path):
        self.write(tmp_path, self.entry(tmp_path, b"archive/data/0") + 8, b"\x01")
        with pytest.raises(FileError, match="'archive/data/0' is encrypted"):
            read(tmp_path / "f")

    def test_two_members_in_one_place(self, tmp_path):
        entry = self.entry(tmp_path, b"archive/data/0")
        self.write(tmp_path, entry + 42, struct.pack("<I", 0))  # where its header is
        with pytest.raises(FileError, match="is not where its directory says"):
            read(tmp_path / "f")

    def test_two_members_of_one_name(self, tmp_path):
        with pytest.warns(UserWarning, match="Duplicate name"):
            write_archive(tmp_path / "f", state_dict(), {}, {"data.pkl": state_dict()})
        with pytest.raises(FileError, match=r"two members 'archive/data\.pkl'"):
            read(tmp_path / "f")

    @pytest.mark.parametrize("where", ["pickle", "storage"])
    def test_checksum(self, where, tmp_path):
        data = bytearray(sound_archive(tmp_path / "f").read_bytes())
        place = data.index(b"_rebuild" if where == "pickle" else struct.pack("<2f", 1, 2))
        data[place] ^= 1
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(FileError, match=r"checksum.*damaged.*download it again"):
            read(tmp_path / "f")["w"].read()

    def test_checksum_of_a_storage_that_is_read_in_parts(self, tmp_path):
        values = np.arange(100, dtype=np.float32)
        pickle_ = state_dict(
            first=tensor((10,), (1,), 0, count=100), last=tensor((10,), (1,), 90, count=100)
        )
        write_archive(tmp_path / "f", pickle_, {"0": values.tobytes()})
        assert_same_bits(read(tmp_path / "f")["last"], values[90:])
        data = bytearray((tmp_path / "f").read_bytes())
        data[data.index(values[95:].tobytes())] ^= 1
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(FileError, match="checksum of storage '0' is wrong"):
            read(tmp_path / "f")["first"].read()

    def test_written_without_checksums(self, tmp_path):
        """All of them are 0 then; a single 0 is a checksum that is wrong."""
        values = np.arange(4, dtype=np.float32)
        data = bytearray(sound_archive(tmp_path / "f").read_bytes())
        self.clear_checksum(data, b"archive/data/0")
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(FileError, match="checksum of storage '0' is wrong"):
            read(tmp_path / "f")["w"].read()
        for name in (b"archive/data.pkl", b"archive/version"):
            self.clear_checksum(data, name)
        (tmp_path / "f").write_bytes(data)
        assert_same_bits(read(tmp_path / "f")["w"], values)

    def clear_checksum(self, data, name):
        entry = data.rindex(name) - 46
        data[entry + 16 : entry + 20] = bytes(4)

    def test_written_without_checksums_by_pytorch(self, tmp_path):
        torch = pytest.importorskip("torch")
        set_checksums = getattr(torch.serialization, "set_crc32_options", None)
        if set_checksums is None:
            pytest.skip("this PyTorch always writes checksums")
        set_checksums(False)
        try:
            torch.save({"w": torch.arange(4.0)}, tmp_path / "f")
        finally:
            set_checksums(True)
        assert_same_bits(read(tmp_path / "f")["w"], np.arange(4, dtype=np.float32))

    def test_compressed_members_that_are_not_needed(self, tmp_path):
        sound_archive(tmp_path / "f")
        with zipfile.ZipFile(tmp_path / "f", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/notes.txt", "a" * 1000)
        assert_same_bits(read(tmp_path / "f")["w"], np.arange(4, dtype=np.float32))

    def test_of_something_else(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "f", "w") as archive:
            archive.writestr("weights/data.txt", "")
        with pytest.raises(FileError, match="zip archive, but not one that torch"):
            read(tmp_path / "f")

    def test_of_two(self, tmp_path):
        write_archive(tmp_path / "f", state_dict(), {}, {"../other/data.pkl": state_dict()})
        with zipfile.ZipFile(tmp_path / "f", "a") as archive:
            archive.writestr("other/data.pkl", state_dict())
        with pytest.raises(FileError, match="zip archive, but not one that torch"):
            read(tmp_path / "f")

    def test_torchscript(self, tmp_path):
        write_archive(tmp_path / "f", b"N.", {}, {"constants.pkl": b"N."})
        with pytest.raises(FileError, match=r"TorchScript program.*torch\.jit\.load"):
            read(tmp_path / "f")

    def test_cut_anywhere(self, tmp_path):
        whole = sound_archive(tmp_path / "f").read_bytes()
        for size in range(len(whole)):
            (tmp_path / "f").write_bytes(whole[:size])
            with pytest.raises(FileError):
                read(tmp_path / "f")

    def test_directory_that_is_larger_than_all(self, tmp_path):
        sound_archive(tmp_path / "f")
        data = bytearray((tmp_path / "f").read_bytes())
        data[-10:-6] = struct.pack("<I", 2**32 - 2)  # its size
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(FileError, match="zip directory"):
            read(tmp_path / "f")

    def entry(self, tmp_path, name):
        """Where the directory's entry of a member begins."""
        data = sound_archive(tmp_path / "f").read_bytes()
        return data.rindex(name) - 46

    def write(self, tmp_path, place, data):
        with open(tmp_path / "f", "r+b") as file:
            file.seek(place)
            file.write(data)


class TestLegacyFiles:
    """The format before that of zip archives."""

    contents = state_dict(w=tensor().replace(b"Vcpu\nI4\nt", b"Vcpu\nI4\nNt"))
    data = np.arange(4, dtype=np.float32).tobytes()

    def write(self, path, keys=("0",), count=4, data=data):
        storages = pickle.dumps(list(keys), 2) + struct.pack("<q", count) + data
        path.write_bytes(legacy_bytes(self.contents) + storages)
        return path

    def test_a_sound_one(self, tmp_path):
        stored = read(self.write(tmp_path / "f"))["w"]
        assert_same_bits(stored, np.arange(4, dtype=np.float32))

    def test_a_view_of_a_storage(self, tmp_path):
        view = tensor((2,), (1,)).replace(b"Vcpu\nI4\nt", b"Vcpu\nI4\n(Vview\nI1\nI2\nttQ"[:-1])
        self.contents = state_dict(w=view)
        assert_same_bits(read(self.write(tmp_path / "f"))["w"], np.array([1, 2], np.float32))

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("cut", "ends within its storages"),
            ("cut before", "ends too early"),
            ("other count", "storage '0' does not have its 4 elements"),
            ("negative count", "storage '0' does not have its 4 elements"),
            ("no key", "its storages are not those that its tensors need"),
            ("other key", "its storages are not those that its tensors need"),
            ("key twice", "its storages are not those that its tensors need"),
            ("key that is none", "its storages are not those that its tensors need"),
        ],
    )
    def test_unsound(self, kind, message, tmp_path):
        path = tmp_path / "f"
        {
            "cut": lambda: self.write(path, data=self.data[:-1]),
            "cut before": lambda: path.write_bytes(
                legacy_bytes(self.contents) + pickle.dumps(["0"], 2)
            ),
            "other count": lambda: self.write(path, count=5),
            "negative count": lambda: self.write(path, count=-4),
            "no key": lambda: self.write(path, keys=()),
            "other key": lambda: self.write(path, keys=("1",)),
            "key twice": lambda: self.write(path, keys=("0", "0")),
            "key that is none": lambda: self.write(path, keys=(0,)),
        }[kind]()
        with pytest.raises(FileError, match=message):
            read(path)

    def test_a_pickle_of_something_else(self, tmp_path):
        (tmp_path / "f").write_bytes(pickle.dumps({"w": 1}))
        with pytest.raises(FileError, match="a pickle, but not one that torch"):
            read(tmp_path / "f")

    def test_another_version(self, tmp_path):
        (tmp_path / "f").write_bytes(
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2)
        )
        with pytest.raises(FileError, match="has version 1002; known: 1001"):
            read(tmp_path / "f")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "neither a PyTorch file nor"),
        (b"<!DOCTYPE html>\n<html>", "begins with b'<!DOCTYPE html>.*A download that failed"),
        (b"\x80", "pickle cannot be read: not enough data"),
        (b"PK", "zip directory is not there"),
        (bytes(257) + b"ustar\x0000", "tar archive, as PyTorch wrote before"),
        (bytes(1000), "neither a PyTorch file nor"),
    ],
)
def test_other_formats(start, message, tmp_path):
    (tmp_path / "f").write_bytes(start)
    with pytest.raises(FileError, match=f"^{tmp_path / 'f'}: .*{message}"):
        read(tmp_path / "f")


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(FileError, match=f"^{path}: this is not a regular file"):
            read(path)
