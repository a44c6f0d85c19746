"""Which calls of a pickle make data, and which are rejected."""

import argparse
import array
import asyncio
import collections
import concurrent.futures
import concurrent.futures.process
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import http.client
import importlib.metadata
import importlib.util
import inspect
import ipaddress
import itertools
import logging
import multiprocessing
import operator
import os
import pathlib
import pickle
import platform
import random
import re
import shutil
import signal
import smtplib
import socket
import sqlite3
import ssl
import subprocess
import tarfile
import time
import types
import typing
import unittest
import urllib.error
import uuid
import zipfile
import zoneinfo

import numpy as np
import pytest

from replk_jax.io.errors import FileError
from replk_jax.torch_import.call_policy import _DANGEROUS_MODULES, Call, classify_call
from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.reader import read
from tests.torch_import.archives import write_archive


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Config:
    lr: float = 0.1
    names: tuple[str, ...] = ("a", "b")


class Pair(typing.NamedTuple):
    left: int
    right: str


T = typing.TypeVar("T")

# What training scripts store beside the weights.
HARMLESS = {
    "paths": [pathlib.PurePath("a"), pathlib.PureWindowsPath("a"), pathlib.Path("a")],
    "type hints": [
        list[int], dict[str, int], int | None, typing.List[int], typing.Optional[int],  # noqa: UP006, UP045
        typing.Dict[str, typing.Any], typing.Callable[[int], str], typing.Tuple[int, ...],  # noqa: UP006
        typing.Literal["a"], typing.Annotated[int, 3], T,
    ],
    "loggers": [logging.getLogger("train"), logging.getLogger()],
    "functions": [
        functools.partial(max, 1), operator.itemgetter(1), operator.attrgetter("a"),
        operator.methodcaller("a"), len, np.add, [].append,
    ],
    "patterns": [re.compile("a+", re.IGNORECASE), re.IGNORECASE],
    "numbers": [
        1 + 2j, 10**50, decimal.Decimal("1.5"), decimal.getcontext(), fractions.Fraction(1, 2),
    ],
    "constants": [Ellipsis, NotImplemented, type(None), range(3), slice(1, 2), object()],
    "dates": [
        datetime.datetime.now(datetime.UTC), datetime.date(2024, 1, 1), datetime.timedelta(1),
        datetime.time(1), time.localtime(0), zoneinfo.ZoneInfo("UTC"),
    ],
    "containers": [
        argparse.Namespace(a=1), types.SimpleNamespace(a=1), collections.deque([1], 3),
        collections.ChainMap({"a": 1}), collections.UserDict(a=1), collections.Counter("a"),
        Config(), Pair(1, "a"), bytearray(b"a"), array.array("f", [1]),
    ],
    "iterators": [
        itertools.count(3), iter([1]), iter({1: 2}), enumerate([1]), zip([1], strict=False),
        itertools.chain([1]), itertools.cycle([1]), itertools.product([1]), reversed([1]),
    ],
    "random states": [
        random.getstate(), random.Random(0), np.random.RandomState(0), np.random.default_rng(0),
    ],
    "numpy": [
        np.float32(1), np.bool_(True), np.arange(3), np.array(["a"]), np.dtype("f4"), np.float64,
        np.array([1, None]), np.dtype([("a", "i4")]), np.datetime64("2020-01-01"),
        np.ma.array([1, 2], mask=[0, 1]),
    ],
    "exceptions": [
        subprocess.CalledProcessError(1, "a"), subprocess.TimeoutExpired("a", 1),
        socket.gaierror(1, "a"), TimeoutError(), urllib.error.URLError("a"),
        zipfile.BadZipFile("a"), tarfile.ReadError("a"), shutil.SameFileError("a"),
        pickle.PicklingError("a"), pickle.UnpicklingError("a"), asyncio.CancelledError(),
        asyncio.QueueEmpty(), asyncio.IncompleteReadError(b"a", 3),
        concurrent.futures.CancelledError(), concurrent.futures.BrokenExecutor("a"),
        concurrent.futures.process.BrokenProcessPool("a"), multiprocessing.TimeoutError("a"),
        sqlite3.OperationalError("a"), ssl.SSLError(1, "a"), http.client.BadStatusLine("a"),
        importlib.metadata.PackageNotFoundError("a"), ctypes.ArgumentError("a"),
        unittest.SkipTest("a"), smtplib.SMTPServerDisconnected("a"),
    ],
    "enumerations": [
        ssl.TLSVersion.TLSv1_2, ssl.CERT_NONE, ssl.Purpose.SERVER_AUTH, signal.SIGINT,
        signal.SIG_DFL, socket.SOCK_STREAM, socket.AI_PASSIVE, http.HTTPStatus.OK,
        inspect.Parameter.POSITIONAL_ONLY,
    ],
    "signatures": [inspect.signature(Config), inspect.signature(classify_call)],
    "facts about the machine": [os.uname(), os.times(), os.statvfs("/"), platform.uname()],
    "others": [
        uuid.uuid4(), ipaddress.ip_address("1.2.3.4"), socket.AF_INET, os.stat("/"),
        ValueError("a"), KeyboardInterrupt(),
    ],
}  # fmt: skip


def calls(value):
    """The paths of all calls of unknown effect."""
    match value:
        case Placeholder():
            own = [value.path] if value.called else []
            return own + calls([value.args, value.state, value.items, value.entries])
        case dict():
            return calls([*value.keys(), *value.values()])
        case list() | tuple() | set() | frozenset():
            return [path for inner in value for path in calls(inner)]
    return []


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_harmless_objects(kind, protocol, tmp_path):
    for number, value in enumerate(HARMLESS[kind]):
        write_archive(tmp_path / "f", pickle.dumps({"value": value}, protocol))
        assert not calls(read(tmp_path / "f")), number


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath"])
def test_paths_of_python_3_13(name, tmp_path):
    contents = read(
        write_archive(tmp_path / "f", f"}}Va\ncpathlib._local\n{name}\n(Vb\ntRs.".encode())
    )
    assert repr(contents["a"]) == f"pathlib._local.{name}('b')"
    assert not contents["a"].called


def test_calls_of_unknown_effect_are_listed(tmp_path):
    contents = read(write_archive(tmp_path / "f", pickle.dumps({"value": Color.RED}, 2)))
    assert calls(contents) == [f"{__name__}.Color"]
    contents = read(write_archive(tmp_path / "f", b"}Va\ncbase64\nb64decode\n(Vx\ntRs."))
    assert repr(contents["a"]) == "base64.b64decode('x')"
    assert calls(contents) == ["base64.b64decode"]


DANGEROUS = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.open",
    "builtins.setattr", "importlib.import_module", "runpy.run_path", "pty.spawn", "socket.socket",
    "shutil.rmtree", "ctypes.CDLL", "sys.settrace", "code.InteractiveInterpreter", "pickle.loads",
    "_pickle.loads", "marshal.loads", "pkgutil.resolve_name", "pydoc.locate", "timeit.timeit",
    "webbrowser.open", "urllib.request.urlopen", "http.client.HTTPConnection", "io.open",
    "_io.FileIO", "tempfile.mkdtemp", "multiprocessing.Process", "threading.Thread",
    "_thread.start_new_thread", "asyncio.run", "logging.FileHandler", "types.FunctionType",
    "operator.call", "zipimport.zipimporter", "bdb.Bdb", "os.path.join", "types.LambdaType",
    "code.interact", "site.addsitedir", "inspect.getsource", "zipfile.ZipFile",
    "zipfile._path.Path", "ssl.create_default_context",
    "concurrent.futures.process.ProcessPoolExecutor",
    "sys.monitoring.register_callback", "xmlrpc.client.ServerProxy", "unittest.mock._importer",
)  # fmt: skip


@pytest.mark.parametrize("path", DANGEROUS)
def test_dangerous_calls_are_rejected(path, tmp_path):
    """Wherever they are, and whether or not the result is kept."""
    module, name = path.rsplit(".", 1)
    call = f"c{module}\n{name}\n(Va\ntR".encode()
    for pickle_ in (b"}Va\n" + call + b"s.", b"}Va\n]" + call + b"a0Ns.", b"}" + call + b"0."):
        write_archive(tmp_path / "f", pickle_)
        with pytest.raises(FileError, match=f"calls {re.escape(path)}, so it is a program"):
            read(tmp_path / "f")


def test_functions_that_call_their_argument():
    for path in ("builtins.map", "builtins.filter", "functools.reduce", "itertools.starmap"):
        function = Placeholder(*path.rsplit(".", 1))
        for applied, effect in (
            (Placeholder("os", "system"), Call.DANGEROUS),
            (Placeholder("operator", "or_"), Call.DATA),
            (Placeholder("mine", "function"), Call.UNKNOWN),
        ):
            assert classify_call(function, (applied, [])) is effect


def test_names_alone_are_harmless(tmp_path):
    contents = read(write_archive(tmp_path / "f", b"}Va\ncos\nsystem\ns."))
    assert repr(contents["a"]) == "os.system"


@pytest.mark.parametrize("package", ["code", "site", "inspect", "signal", "commands", "shelve"])
def test_packages_named_as_standard_modules(package, tmp_path):
    """Those of a project, such as a folder named `code`."""
    pickle_ = f"}}Va\nc{package}.enums\nMode\n(I1\ntRs.".encode()
    contents = read(write_archive(tmp_path / "f", pickle_))
    assert repr(contents["a"]) == f"{package}.enums.Mode(1)"
    assert calls(contents) == [f"{package}.enums.Mode"]


@pytest.mark.parametrize("name", sorted(_DANGEROUS_MODULES))
def test_standard_modules_by_their_full_names_are_no_packages(name):
    """A module within one of these would not be rejected."""
    try:
        specification = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # sys.monitoring, by the version of Python
        return
    assert specification is None or specification.submodule_search_locations is None


class TestPickledCode:
    """Functions and classes that cloudpickle and dill write with their code."""

    @pytest.mark.parametrize("protocol", [2, 5])
    def test_of_cloudpickle(self, protocol, tmp_path):
        cloudpickle = pytest.importorskip("cloudpickle")
        scale = 3

        class Local(int):
            def double(self):
                return scale * self

        class Color(enum.Enum):
            RED = 1

        Point = collections.namedtuple("Point", "x y")
        for value in (Local, Color, Point):
            value.__module__ = "__main__"
        values = [lambda x: x * scale, Local, Local(5), Local.double, Color.RED, Point(1, 2)]
        for value in values:
            pickle_ = cloudpickle.dumps({"value": value, "w": 1}, protocol)
            contents = read(write_archive(tmp_path / "f", pickle_))
            assert isinstance(contents["value"], Placeholder)
            assert calls(contents)
            assert contents["w"] == 1
        assert repr(contents["value"]) == "__main__.Point(1, 2)"

    @pytest.mark.parametrize(
        ("opcodes", "text"),
        [
            ("cdill._dill\n_create_function\n(cdill._dill\n_create_code\n(I1\ntRtR",
             "dill._dill._create_function(dill._dill._create_code(1))"),
            ("cdill._dill\n_load_type\n(VCodeType\ntR(I1\ntR", "types.CodeType(1)"),
            ("cdill._dill\n_create_type\n(cbuiltins\ntype\nVNet\n(t}tR)\x81", "__main__.Net()"),
            ("cdill._dill\n_create_namedtuple\n(VPair\n(Va\nVb\nttR(I1\nI2\nt\x81",
             "__main__.Pair(1, 2)"),
            ("cjoblib.externals.cloudpickle.cloudpickle\n_builtin_type\n(VCodeType\ntR(I1\ntR",
             "types.CodeType(1)"),
        ],
    )  # fmt: skip
    def test_by_opcodes(self, opcodes, text, tmp_path):
        pickle_ = b"}Va\n" + opcodes.encode("latin-1") + b"sVw\nI1\ns."
        contents = read(write_archive(tmp_path / "f", pickle_))
        assert repr(contents["a"]) == text
        assert contents["a"].called
        assert contents["w"] == 1

    @pytest.mark.parametrize(
        "opcodes",
        [
            b"ccloudpickle.cloudpickle\n_make_function\n(NtR)R",  # the function itself
            b"cdill._dill\n_create_type\n(NVNet\ntR)R)R",  # what a class of the file has made
            b"cdill._dill\n_get_attr\n(NVa\ntR)R",
            b"cdill._dill\n_load_type\n(VFunctionType\ntR(NtR",
        ],
    )
    def test_code_that_is_called_is_rejected(self, opcodes, tmp_path):
        write_archive(tmp_path / "f", b"}Va\n" + opcodes + b"s.")
        with pytest.raises(FileError, match=r"calls (what is not a function|types\.FunctionType)"):
            read(tmp_path / "f")
