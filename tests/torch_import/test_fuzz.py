"""Thousands of damaged files: each is read or refused, at once and in little memory."""

import argparse
import codecs
import collections
import functools
import pathlib
import pickle
import random
import sys
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from replk_jax.torch_import.reader import FileError, metadata, read
from replk_jax.torch_import.tensors import Placeholder, StoredTensor
from replk_jax.torch_import.writer import write_safetensors, write_torch
from tests import golden
from tests.torch_import.archives import write_archive

pytestmark = pytest.mark.filterwarnings("error")

CHECKPOINTS = golden.ROOT / "checkpoints"
SECONDS_EACH = 2  # of processor time; a hang is much longer, a busy machine makes it no longer
BYTES_EACH = 32 << 20

# What the interpreter is asked to do while a file is read, by its own account.
_events: list[tuple[str, tuple]] | None = None


@functools.cache
def listen():
    """Hears of every import, compilation, opened file and started process (PEP 578)."""

    def hear(event, args):
        own = event == "builtins.id" or (event == "open" and isinstance(args[0], int))
        if _events is not None and not own:  # not what only looks at what is open already
            _events.append((event, args))

    sys.addaudithook(hear)
    for name in ("raw-unicode-escape", "unicode-escape", "cp437", "latin-1", "utf-8", "ascii"):
        codecs.lookup(name)  # which Python imports when they are first used


def try_to_read(path):
    """Reads everything there is, or is refused; returns which.

    Fails where anything but the file was touched, or time or memory taken beyond reason.
    """
    global _events
    listen()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    begin = time.process_time()
    _events = []
    try:
        metadata(path)
        walk(read(path))
        refusal = None
    except FileError as error:
        refusal = str(error)
    finally:
        events, _events = _events, None
    assert refusal is None or (refusal.startswith(f"{path}: ") and len(refusal) < 2000)
    assert time.process_time() - begin < SECONDS_EACH
    assert tracemalloc.get_traced_memory()[1] - before < BYTES_EACH
    assert all(name == "open" and args[0] == path for name, args in events), events
    return "read" if refusal is None else "refused"


def walk(value):
    """Everything that a caller might do with the contents."""
    repr(value)
    if isinstance(value, StoredTensor):
        array = value.read()
        assert (array.shape, array.dtype) == (value.shape, value.dtype)
    elif isinstance(value, Placeholder):
        walk([value.module, value.name, value.args, value.state, value.items, value.entries])
    elif isinstance(value, dict):
        walk([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            walk(inner)
    else:
        assert value is None or type(value) in (int, float, bool, str, bytes)


@pytest.fixture(autouse=True)
def _traced_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    yield
    tracemalloc.stop()
    assert not pathlib.Path("PICKLE_WAS_EXECUTED").exists()


# Lengths, and opcodes that many pickles have.
TELLING_BYTES = b"\0\1\x7f\x80\xff()}]tRbause.0QcqhrjXKMJ\x85\x86\x87\x88\x8a\x93\x94"


def mutate(data, rng):
    """Some of: other bytes, bytes more or fewer, parts doubled, exchanged or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        here, there = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
        part = slice(here, here + rng.choice([1, 2, 4, 8, 64]))
        match rng.choice(["flip", "set", "set", "random", "insert", "drop", "double", "exchange"]):
            case "flip":
                data[here : here + 1] = bytes(
                    byte ^ 1 << rng.randrange(8) for byte in data[here : here + 1]
                )
            case "set":
                data[here : here + 1] = [rng.choice(TELLING_BYTES)]
            case "random":
                data[part] = rng.randbytes(len(data[part]))
            case "insert":
                data[here:here] = rng.randbytes(rng.choice([1, 2, 4, 8]))
            case "drop":
                del data[part]
            case "double":
                data[there:there] = data[part]
            case "exchange":
                other = slice(there, there + part.stop - part.start)
                data[part], data[other] = data[other], data[part]
    if rng.random() < 0.05:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def varied_contents():
    """An object of every kind that pickles have words for."""
    return {
        "numbers": [0, -1, 300, 70_000, 2**40, 2**200, 1.5, True, None],
        "texts": ["a", "größer", "x" * 300, b"bytes", bytearray(b"array")],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, frozenset([3]), {}, []],
        "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
        "objects": [argparse.Namespace(lr=0.1), np.float64(2), np.arange(3), complex(1, 2)],
        "names": [len, argparse.Namespace],
        "shared": [["again"]] * 3,
    }


def fuzz(path, make, times, least=10):
    """Tries so many files; that they are all of one outcome would tell that nothing was tried."""
    outcomes = collections.Counter()
    for _ in range(times):
        make(path)
        outcomes[try_to_read(str(path))] += 1
    assert min(outcomes["read"], outcomes["refused"]) >= least, outcomes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_under_right_checksums(protocol, tmp_path):
    """So that nothing stands before the machine."""
    rng = random.Random(protocol)
    data = pickle.dumps(varied_contents(), protocol)
    fuzz(tmp_path / "f", lambda path: write_archive(path, mutate(data, rng)), 150)


def test_random_programs(tmp_path):
    """What no mutation would come to."""
    rng = random.Random(0)
    words = [
        b"(", b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"K\x01", b"K\x02", b"Va\n", b"U\x01c",
        b"0", b"1", b"2", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"a", b"e", b"s", b"u",
        b"\x90", b"\x91", b"q\0", b"q\1", b"h\0", b"h\1", b"\x94", b"R", b"\x81", b"\x92", b"b",
        b"o", b"Q", b"ca\nb\n", b"ccollections\nOrderedDict\n", b"cbuiltins\ngetattr\n", b"\x93",
        b"cbuiltins\nset\n", b"ccopyreg\n_reconstructor\n", b"c_codecs\nencode\n", b"Vstorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"V0\n", b"I00\n",
        b"ctorch\nSize\n", b"cos\nsystem\n",
    ]  # fmt: skip

    def make(path):
        program = b"".join(rng.choices(words, k=rng.randrange(3, 40)))
        end = rng.choice([b".", b"l.", b"\x85.", b"0]."])
        write_archive(path, b"]((((" + program + end, {"0": bytes(16)})

    fuzz(tmp_path / "f", make, 800)


@pytest.mark.parametrize("format_", ["zip", "safetensors"])
def test_small_files(format_, tmp_path):
    rng = random.Random(format_)
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3).astype(ml_dtypes.bfloat16),
        "c": np.int64(7),
    }
    if format_ == "zip":
        write_torch(tmp_path / "sound", tensors)
    else:
        write_safetensors(tmp_path / "sound", tensors, {"key": "value"})
    data = (tmp_path / "sound").read_bytes()
    fuzz(tmp_path / "f", lambda path: path.write_bytes(mutate(data, rng)), 400)


@golden.requires_golden
class TestGoldenFiles:
    @pytest.mark.parametrize(
        ("name", "times"),
        [
            ("odd_tensors.pth", 300),
            ("legacy_odd_tensors.pth", 300),
            ("refuse_whole_model.pth", 100),
            ("bfloat16.safetensors", 60),
            ("one_storage.pth", 15),
            ("legacy_training.pth", 5),
            ("training.pth", 5),
        ],
    )
    def test_files(self, name, times, tmp_path):
        rng = random.Random(name)
        data = (CHECKPOINTS / name).read_bytes()
        fuzz(tmp_path / "f", lambda path: path.write_bytes(mutate(data, rng)), times, least=0)

    @pytest.mark.parametrize(
        ("name", "times"),
        [
            ("odd_tensors.pth", 400),
            ("refuse_whole_model.pth", 200),
            ("refuse_runs_code.pth", 15),
            ("under_state_dict_module.pth", 15),
        ],
    )
    def test_pickles_under_right_checksums(self, name, times, tmp_path):
        rng = random.Random(name)
        with zipfile.ZipFile(CHECKPOINTS / name) as archive:
            members = {entry.split("/", 1)[1]: archive.read(entry) for entry in archive.namelist()}
        data = members.pop("data.pkl")

        def make(path):
            write_archive(path, mutate(data, rng), {}, members)

        fuzz(tmp_path / "f", make, times, least=0)
