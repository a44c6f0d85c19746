"""Files of the safetensors format: right ones to the bit, damaged ones with an error."""

import json
import struct

import numpy as np
import pytest

from replk_jax.io.errors import FileError
from replk_jax.io.safetensors import write_safetensors
from replk_jax.io.tensors import DTYPES
from replk_jax.torch_import.reader import WeightsFile, read
from replk_jax.torch_import.writer import write_torch
from tests.helpers import assert_same_bits
from tests.torch_import.archives import write_with_header


def header(begin=0, end=8, **changes):
    """Of a .safetensors file with two tensors of 8 bytes each, the second changed."""
    first = {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
    second = {"dtype": "I64", "shape": [], "data_offsets": [8, 16], **changes}
    return json.dumps({"first": first, "second": second}).encode()


WRONG_HEADERS = {
    "no JSON": (b'{"a":', "its header is damaged"),
    "no UTF-8": (b'{"\xff": 1}', "its header is damaged"),
    "nested for ever": (b'{"a":' + b"[" * 200_000, "its header is damaged"),
    "number without end": (b'{"a":' + b"9" * 100_000 + b"}", "its header is damaged"),
    "a name twice": (b'{"a": 1, "a": 1}', "its header is damaged .a name is there twice"),
    "entry that is none": (b'{"a": 1}', "says of 'a' what cannot be: 1"),
    "nothing for sixteen bytes": (b"{}", "up to its end, as if it had been cut"),
    "type that is none": (header(dtype="F7"), "has 'second' in 'F7', which is not known"),
    "shape that is none": (header(shape="a"), "says of 'second' what cannot be"),
    "shape of text": (header(shape=["a"]), "shape, strides or an offset"),
    "shape of fractions": (header(shape=[1.0]), "shape, strides or an offset"),
    "negative shape": (header(shape=[-1, -1]), "shape, strides or an offset"),
    "more than 64 bits count": (header(shape=[2**40, 2**40]), "larger than the file"),
    "nothing, but of what size": (header(shape=[0, 2**40, 2**40]), "larger than the file"),
    "shape of less": (header(shape=[0]), "says of 'second' what cannot be"),
    "shape of more": (header(shape=[2]), "leaves 'second', which has 8 bytes"),
    "offsets of text": (header(data_offsets=["0", "8"]), "says of 'second' what cannot be"),
    "backwards": (header(data_offsets=[16, 8]), "leaves 'second'"),
    "before the beginning": (header(data_offsets=[-8, 0]), "not one after the other"),
    "overlapping": (header(end=12), "not one after the other"),
    "in one place": (header(begin=8, end=16), "not one after the other"),
    "with a gap": (header(end=4), "not one after the other"),
    "ending late": (header(data_offsets=[9, 17]), "not one after the other"),
    "ending early": (header(shape=[0], data_offsets=[8, 8]), "not one after the other"),
}


class TestSafetensors:
    @pytest.mark.parametrize("name", WRONG_HEADERS)
    def test_wrong_headers(self, name, tmp_path):
        text, message = WRONG_HEADERS[name]
        write_with_header(tmp_path / "f", text, bytes(16))
        with pytest.raises(FileError, match=f"^{tmp_path / 'f'}: .*{message}"):
            read(tmp_path / "f")

    def test_a_right_one(self, tmp_path):
        data = struct.pack("<2fq", 1, 2, -3)
        tensors = read(write_with_header(tmp_path / "f", header(), data))
        assert_same_bits(tensors["first"], np.array([1, 2], np.float32))
        assert_same_bits(tensors["second"], np.array(-3))

    def test_cut_anywhere(self, tmp_path):
        whole = write_with_header(tmp_path / "f", header(), bytes(16)).read_bytes()
        for size in range(len(whole)):
            (tmp_path / "f").write_bytes(whole[:size])
            with pytest.raises(FileError):
                read(tmp_path / "f")

    def test_a_header_longer_than_the_file(self, tmp_path):
        for size in (100, 2**24, 2**30):
            (tmp_path / "f").write_bytes(struct.pack("<Q", size) + b"{}" + bytes(50))
            with pytest.raises(FileError, match=r"ends too early|more than that of any"):
                read(tmp_path / "f")

    def test_metadata(self, tmp_path):
        write_safetensors(tmp_path / "f", {"w": np.zeros(2)}, {"a": "b"})
        assert WeightsFile(tmp_path / "f").metadata == {"a": "b"}
        write_safetensors(tmp_path / "f", {"w": np.zeros(2)}, {})
        assert WeightsFile(tmp_path / "f").metadata == {}
        write_torch(tmp_path / "f", {"w": np.zeros(2)})
        assert WeightsFile(tmp_path / "f").metadata == {}
        for wrong in (b'{"__metadata__": 1}', b'{"__metadata__": {"a": 1}}'):
            write_with_header(tmp_path / "f", wrong)
            with pytest.raises(FileError, match="not strings by strings"):
                _ = WeightsFile(tmp_path / "f").metadata

    def test_against_the_library(self, tmp_path):
        library = pytest.importorskip("safetensors.numpy")
        rng = np.random.default_rng(0)
        dtypes = [
            dtype
            for name, dtype in DTYPES.items()
            if "float8" not in name and "complex" not in name
        ]
        arrays = {
            f"{i}": np.asarray(rng.standard_normal(tuple(rng.integers(0, 5, i % 4))), dtype)
            for i, dtype in enumerate(3 * dtypes)
        }
        library.save_file(arrays, tmp_path / "f", {"key": "value"})
        assert WeightsFile(tmp_path / "f").metadata == {"key": "value"}
        tensors = read(tmp_path / "f")
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            assert_same_bits(tensors[name], array)


@pytest.mark.parametrize("metadata_", [{"a": 1}, {1: "a"}])
def test_metadata_that_are_not_strings(metadata_, tmp_path):
    with pytest.raises(ValueError, match=r"must be strings by strings"):
        write_safetensors(tmp_path / "f", {}, metadata_)


def test_a_name_that_is_taken(tmp_path):
    with pytest.raises(ValueError, match="cannot be named '__metadata__'"):
        write_safetensors(tmp_path / "f", {"__metadata__": np.zeros(3)}, {})
