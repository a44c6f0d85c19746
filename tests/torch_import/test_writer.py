"""Files that PyTorch and the safetensors library read, all of them or nothing."""

import os
import pathlib
import resource
import stat

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from replk_jax.io.safetensors import write_safetensors
from replk_jax.torch_import import writer
from replk_jax.torch_import.reader import WeightsFile, read
from replk_jax.torch_import.writer import write_torch

TORCH_DTYPES = (
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8,
    np.uint8, np.bool_, np.complex64, np.complex128,
)  # fmt: skip
SAFETENSORS_DTYPES = (
    *TORCH_DTYPES[:-1], np.uint64, np.uint32, np.uint16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
)  # fmt: skip


def write_either(path, arrays):
    """By the ending of the name."""
    if path.suffix == ".pth":
        write_torch(path, arrays)
    else:
        write_safetensors(path, arrays, {"format": "pt"})


def arrays_of(dtypes):
    """Arrays of every type, without axes, without elements, and in every order of memory."""
    rng = np.random.default_rng(0)
    arrays = {}
    for dtype in dtypes:
        for shape in ((), (0, 3), (5,), (2, 3, 4)):
            array = np.asarray(3 * rng.standard_normal(shape), np.float32)
            arrays[f"{np.dtype(dtype).name}{shape}"] = array.astype(dtype)
        base = arrays[f"{np.dtype(dtype).name}(2, 3, 4)"]
        arrays[f"{np.dtype(dtype).name} transposed"] = base.T
        arrays[f"{np.dtype(dtype).name} reversed"] = base[:, ::-1, ::2]
    return arrays | {"big-endian": np.arange(5, dtype=">f4"), "scalar": np.int64(7)}


class Lazy:
    """What becomes an array only when it is asked to, and then counts."""

    alive = 0

    def __init__(self, value):
        self.shape, self.dtype = value.shape, value.dtype
        self._value = value

    def __array__(self, dtype=None, copy=None):
        class Counted(np.ndarray):
            def __del__(self):
                Lazy.alive -= 1

        Lazy.alive += 1
        assert Lazy.alive == 1
        return self._value.copy().view(Counted)


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        native = value.astype(value.dtype.newbyteorder("=")) if value.dtype.kind == "f" else value
        assert (actual[name].shape, actual[name].dtype) == (native.shape, native.dtype)
        assert actual[name].read().tobytes() == native.tobytes()


def test_torch_files_are_read_here(tmp_path):
    arrays = arrays_of(TORCH_DTYPES)
    write_torch(tmp_path / "f", arrays)
    assert_same(read(tmp_path / "f"), arrays)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_files_are_read_by_pytorch(mmap, tmp_path):
    torch = pytest.importorskip("torch")
    arrays = arrays_of(TORCH_DTYPES)
    write_torch(tmp_path / "f", arrays)
    loaded = torch.load(tmp_path / "f", weights_only=True, mmap=mmap)
    assert type(loaded).__name__ == "OrderedDict"
    assert list(loaded) == list(arrays)
    for name, value in arrays.items():
        tensor = loaded[name]
        assert tuple(tensor.shape) == np.shape(value)
        assert str(tensor.dtype) == f"torch.{value.dtype.name}"
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        widened = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()
        np.testing.assert_array_equal(widened, np.asarray(value).astype(widened.dtype))


def test_a_module_of_pytorch_takes_them(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state_dict = {name: value.numpy() + 1 for name, value in module.state_dict().items()}
    write_torch(tmp_path / "f", state_dict)
    module.load_state_dict(torch.load(tmp_path / "f"))
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state_dict[name])


def test_safetensors_files_are_read_here_and_by_the_library(tmp_path):
    arrays = arrays_of(SAFETENSORS_DTYPES)
    write_safetensors(tmp_path / "f", arrays, {"b": "größer", "a": "{}"})
    tensors = read(tmp_path / "f")
    assert_same({name: tensors[name] for name in arrays}, arrays)
    assert WeightsFile(tmp_path / "f").metadata == {"b": "größer", "a": "{}"}

    library = pytest.importorskip("safetensors")
    with library.safe_open(tmp_path / "f", "numpy") as file:
        assert file.metadata() == {"b": "größer", "a": "{}"}
        assert set(file.keys()) == set(arrays)
        for name in arrays:
            if "bfloat16" not in name and "float8" not in name:  # as NumPy alone has neither
                np.testing.assert_array_equal(file.get_tensor(name), arrays[name])


def test_safetensors_are_aligned(tmp_path):
    arrays = arrays_of(SAFETENSORS_DTYPES)
    write_safetensors(tmp_path / "f", arrays, {})
    data = (tmp_path / "f").read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    sizes = [tensor.dtype.itemsize for tensor in read(tmp_path / "f").values()]
    assert first % 8 == 0
    assert sizes == sorted(sizes, reverse=True)


def test_storages_are_aligned(tmp_path):
    values = {f"{i}" * i: np.full(i, 7.25 + i) for i in range(1, 20)}
    write_torch(tmp_path / "f", values)
    data = (tmp_path / "f").read_bytes()
    assert all(data.index(value.tobytes()) % 64 == 0 for value in values.values())


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
class TestEither:
    def test_equal_arrays_give_equal_files(self, ending, tmp_path, monkeypatch):
        arrays = arrays_of(TORCH_DTYPES[:-2])
        write_either(tmp_path / f"a{ending}", arrays)
        monkeypatch.setattr("time.time", lambda: 2e9)
        write_either(tmp_path / f"b{ending}", arrays)
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()

    def test_nothing(self, ending, tmp_path):
        write_either(tmp_path / f"f{ending}", {})
        assert read(tmp_path / f"f{ending}") == {}

    def test_what_becomes_an_array(self, ending, tmp_path):
        values = {f"{i}": np.full((3, 2), i, np.float32) for i in range(5)}
        write_either(tmp_path / f"lazy{ending}", {n: Lazy(v) for n, v in values.items()})
        assert_same(read(tmp_path / f"lazy{ending}"), values)
        write_either(tmp_path / f"jax{ending}", {n: jnp.asarray(v) for n, v in values.items()})
        assert_same(read(tmp_path / f"jax{ending}"), values)
        write_either(tmp_path / f"again{ending}", read(tmp_path / f"jax{ending}"))
        assert_same(read(tmp_path / f"again{ending}"), values)

    def test_rights_are_those_of_any_new_file(self, ending, tmp_path):
        write_either(tmp_path / f"f{ending}", {})
        (tmp_path / "other").touch()
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert len(modes) == 1

    @pytest.mark.parametrize("fault", ["interrupt", "full disk", "other shape"])
    @pytest.mark.parametrize("before", [False, True])
    def test_all_or_nothing(self, fault, before, ending, tmp_path):
        path = tmp_path / f"f{ending}"
        old = {"w": np.zeros(3)}
        if before:
            write_either(path, old)

        class Faulty:
            shape, dtype = (100_000,), np.dtype(np.float32)

            def __array__(self, dtype=None, copy=None):
                if fault == "interrupt":
                    raise KeyboardInterrupt
                return np.zeros(4 if fault == "other shape" else 100_000, np.float32)

        error = {"interrupt": KeyboardInterrupt, "full disk": OSError, "other shape": ValueError}
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        if fault == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, most[1]))
        try:
            with pytest.raises(error[fault]):
                write_either(path, {"a": np.ones(100_000, np.float32), "b": Faulty()})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
        assert list(tmp_path.iterdir()) == ([path] if before else [])
        if before:
            assert_same(read(path), old)

    def test_a_name_is_given_when_all_is_on_the_disk(self, ending, tmp_path, monkeypatch):
        path, seen = tmp_path / f"f{ending}", []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), seen.append(path.exists())))

        def check(source, target):
            assert seen == [False]
            assert pathlib.Path(source).parent == tmp_path
            assert read(source)["w"].read().all()
            replace(source, target)

        monkeypatch.setattr(os, "replace", check)
        write_either(path, {"w": np.ones(3)})
        assert list(tmp_path.iterdir()) == [path]

    def test_no_folder(self, ending, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            write_either(tmp_path / "nowhere" / f"f{ending}", {})

    def test_a_type_that_is_not_there(self, ending, tmp_path):
        wrong = np.zeros(3, ml_dtypes.float8_e4m3b11fnuz)
        with pytest.raises(ValueError, match=r"^b is float8_e4m3b11fnuz.*it has float32, "):
            write_either(tmp_path / f"f{ending}", {"a": np.zeros(3), "b": wrong})
        assert not list(tmp_path.iterdir())


def test_more_than_two_gigabytes_need_another_kind_of_entry(tmp_path, monkeypatch):
    """With the limit lowered: the zip archive's 64-bit sizes are read as well."""
    monkeypatch.setattr(writer.zipfile, "ZIP64_LIMIT", 1000)
    arrays = {f"{i}": np.full(1000, i, np.float32) for i in range(3)}
    write_torch(tmp_path / "f.pth", arrays)
    assert_same(read(tmp_path / "f.pth"), arrays)
    torch = pytest.importorskip("torch")
    loaded = torch.load(tmp_path / "f.pth", weights_only=True)
    np.testing.assert_array_equal(loaded["2"].numpy(), arrays["2"])
