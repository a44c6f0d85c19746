"""Tensors that are stored in a file."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.text import brief

_MOST_DIMENSIONS = 32
_MOST_ELEMENTS = 1 << 40  # NumPy counts those of an empty array along its other axes as well
# Tensors may share bytes, but a file whose tensors are so many times as large as it is a trap.
_MOST_SHARING = 8


# Of the elements of stored tensors, by name; those that NumPy lacks are of ml_dtypes.
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
        "complex64",
        "complex128",
    )
}


class TensorLike(Protocol):
    """What NumPy makes an array of, and knows before: an array, of NumPy or JAX; a `StoredTensor`.

    Attributes:
      shape: of the tensor.
      dtype: of NumPy or ml_dtypes.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> np.ndarray: ...


@dataclasses.dataclass(eq=False, slots=True)
class Storage:
    """Consecutive bytes of a file that tensors are views of.

    Attributes:
      file: where they are.
      name: for error messages.
      size: in bytes.
      start: in the file.
      checksum: CRC-32 that is still to be compared, or None.
      big_endian: whether a number's most significant byte comes first.
    """

    file: ByteFile
    name: str
    size: int
    start: int = 0
    checksum: int | None = None
    big_endian: bool = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer; the first time, the checksum of the whole storage is compared.

        Raises:
          FileError: the bytes are not there any more, or not those that were written.
        """
        expected, actual = self.checksum, None  # another thread may meanwhile have compared it
        if expected is not None and len(buffer) == self.size:
            actual = self.file.read_into(self.start, buffer, checksum=0)
        else:
            if expected is not None:
                actual = self.file.checksum(self.start, self.size)
            self.file.read_into(self.start + offset, buffer)
        if actual != expected:
            raise self.file.error(
                f"the checksum of {self.name} is wrong, so the file is damaged. "
                "Copy or download it again."
            )
        self.checksum = None


class StoredTensor:
    """A tensor in a file, read when it is asked for.

    `np.asarray` and `jnp.asarray` take it as well.

    Attributes:
      shape: of the tensor.
      dtype: of NumPy, or of ml_dtypes where NumPy has none.
    """

    __slots__ = ("_offset", "_storage", "_strides", "dtype", "shape")

    def __init__(
        self,
        storage: Storage,
        dtype: np.dtype,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
    ):
        """Reads nothing; `offset` is in bytes, `strides` are in elements, None if C-contiguous.

        Raises:
          ValueError: not a shape, or a view that leaves the storage.
        """
        _check_lengths(shape)
        strides = contiguous_strides(shape) if strides is None else strides
        _check_lengths(strides)
        _check_lengths((offset,))
        if len(shape) != len(strides):
            raise ValueError(f"{len(strides)} strides are not those of shape {brief(shape)}")
        self.shape, self.dtype = shape, dtype
        self._storage, self._offset = storage, offset
        self._strides = tuple(
            stride * dtype.itemsize if length > 1 else 0  # of one or none, no step is taken
            for length, stride in zip(shape, strides, strict=True)
        )
        if math.prod(filter(None, shape)) > _MOST_ELEMENTS:
            raise ValueError(f"a tensor of shape {brief(shape)} is larger than the file")
        if self.size and offset + self.span > storage.size:
            raise ValueError(
                f"a tensor of shape {brief(shape)}, strides {brief(strides)} and offset "
                f"{brief(offset)} bytes leaves {storage.name}, which has {storage.size} bytes"
            )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Bytes of the storage from its first element to the end of its last."""
        if not self.size:
            return 0
        steps = zip(self.shape, self._strides, strict=True)
        return sum((length - 1) * stride for length, stride in steps) + self.dtype.itemsize

    @property
    def file(self) -> ByteFile:
        """That it is stored in."""
        return self._storage.file

    def read(self) -> np.ndarray:
        """The values, as a C-contiguous array of its own in the machine's byte order.

        Raises:
          FileError: the file is damaged, or has been written to since it was opened.
        """
        if not self.size:
            return np.empty(self.shape, self.dtype)
        data = np.empty(self.span, np.uint8)
        self._storage.read_into(self._offset, data.data)
        if self._storage.big_endian:
            _swap_bytes(data, self.dtype)
        return np.asarray(np.ndarray(self.shape, self.dtype, data, 0, self._strides), order="C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("A tensor in a file cannot become an array without a copy.")
        return np.asarray(self.read(), dtype)

    def __repr__(self) -> str:
        return f"StoredTensor(shape={self.shape}, dtype={self.dtype})"


def check_total_size(tensors: Iterable[StoredTensor]) -> None:
    """Checks that reading all tensors takes memory in proportion to their files.

    Raises:
      ValueError: tensors that share bytes, and are together over 8 times as large as their file.
    """
    totals: collections.Counter[ByteFile] = collections.Counter()
    for tensor in tensors:
        totals[tensor.file] += tensor.nbytes
    for file, total in totals.items():
        if total > _MOST_SHARING * file.size:
            raise ValueError(
                f"its tensors share bytes, and are together over {_MOST_SHARING} times as large "
                "as the file. In PyTorch, save a clone() of each tensor."
            )


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a C-contiguous array, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def dtype_code(codes: Mapping[str, str], name: str, tensor: TensorLike) -> str:
    """What a format calls the dtype of a tensor.

    Args:
      codes: of the format, by the names of dtypes.
      name: of the tensor, for the error.
      tensor: whose dtype it is.

    Raises:
      ValueError: the format does not have the dtype.
    """
    dtype = np.dtype(tensor.dtype)
    if dtype.name not in codes:
        known = ", ".join(codes)
        raise ValueError(f"{name} is {dtype}, which this format does not have; it has {known}.")
    return codes[dtype.name]


def element_bytes(name: str, tensor: TensorLike) -> memoryview:
    """The elements of a tensor in C order, little-endian.

    Raises:
      ValueError: it becomes an array of another shape or dtype.
    """
    array = np.asarray(tensor, order="C")
    if (array.shape, array.dtype) != (tuple(tensor.shape), np.dtype(tensor.dtype)):
        raise ValueError(f"{name} is not of the shape and dtype that it says it is.")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def _check_lengths(lengths: tuple[int, ...]) -> None:
    valid = all(type(length) is int and length >= 0 for length in lengths)
    if not valid or len(lengths) > _MOST_DIMENSIONS:
        raise ValueError(f"no tensor has a shape, strides or an offset like {brief(lengths)}")


def _swap_bytes(data: np.ndarray, dtype: np.dtype) -> None:
    size = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    data.view(f"u{size}").byteswap(inplace=True)
