"""The bytes of a file."""

import errno
import io
import os
import stat
import threading
import weakref
import zlib
from typing import TYPE_CHECKING, BinaryIO, overload

from replk_jax.io.errors import FileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Read at once: small enough that the checksum finds the bytes still in the processor's cache.
_CHUNK = 1 << 18


class ByteFile:
    """A regular file, open for reading until nothing refers to it any more.

    Several threads may read at once.

    Attributes:
      path: as it was given.
      size: in bytes.

    Raises:
      FileError: not a regular file.
      OSError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise self.error("this is not a regular file. Name the checkpoint itself.")
        self._raw = open(path, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._raw.close)
        self._lock = threading.Lock()
        self._stamp = self._look()
        self.size = self._stamp[0]

    def error(self, reason: str) -> FileError:
        return FileError(f"{self.path}: {reason}")

    def read(self, start: int, size: int) -> bytearray:
        """The `size` bytes from `start` on.

        Raises:
          FileError: as `read_into`, or the file has fewer.
        """
        if start + size > self.size:
            raise self.error("it ends too early. Copy or download it again.")
        data = bytearray(size)
        self.read_into(start, memoryview(data))
        return data

    @overload
    def read_into(self, start: int, buffer: memoryview) -> None: ...

    @overload
    def read_into(self, start: int, buffer: memoryview, checksum: int) -> int: ...

    def read_into(self, start: int, buffer: memoryview, checksum: int | None = None) -> int | None:
        """Fills the buffer with the bytes from `start` on.

        Returns:
          The CRC-32 `checksum` continued over these bytes; None if it is None.

        Raises:
          FileError: the file has changed since it was opened, or the disk fails.
        """
        filled = 0
        with self._lock:
            if self._look() != self._stamp:
                raise self.error("it has been written to since it was opened. Read it anew.")
            self._raw.seek(start)
            while filled < len(buffer):
                chunk = buffer[filled : filled + _CHUNK]
                count = self._read_chunk(chunk)
                if checksum is not None:
                    checksum = zlib.crc32(chunk[:count], checksum)
                filled += count
        return checksum

    def checksum(self, start: int, size: int) -> int:
        """CRC-32 of the `size` bytes from `start` on."""
        checksum, scratch = 0, memoryview(bytearray(min(size, _CHUNK)))
        for done in range(0, size, _CHUNK):
            checksum = self.read_into(start + done, scratch[: size - done], checksum)
        return checksum

    def stream(
        self, most: int, start: int = 0, size: int | None = None, *, longest_line: int = 1 << 24
    ) -> BinaryIO:
        """A part of the file, for a decoder that reads as many bytes as the file itself says.

        Args:
          most: bytes in one read; more raise a ValueError in the decoder.
          start: of the part.
          size: of the part in bytes; None for the rest of the file.
          longest_line: in bytes; a longer one raises a ValueError in the decoder.
        """
        size = self.size - start if size is None else size
        return _Stream(_Part(self, start, size), size, most, longest_line)

    def _read_chunk(self, chunk: memoryview) -> int:
        try:
            count = self._raw.readinto(chunk)
        except OSError as error:
            raise self.error(f"the disk cannot read it: {error.strerror}.") from error
        if not count:
            raise self.error("it ends too early. Copy or download it again.")
        return count

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._raw.fileno())
        return status.st_size, status.st_mtime_ns


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: ByteFile, start: int, size: int):
        self._file, self._start, self._size = file, start, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = origin + offset
        return self._place

    def tell(self) -> int:  # often called
        return self._place

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        count = max(0, min(len(view), self._size - self._place))
        self._file.read_into(self._start + self._place, view[:count])
        self._place += count
        return count


class _Stream(io.BufferedReader):
    """Limits the size of one read, and allocates no more than the rest of the part."""

    def __init__(self, raw: io.RawIOBase, size: int, most: int, longest_line: int):
        super().__init__(raw)
        self._size, self._most, self._longest_line = size, most, longest_line

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        if size > self._most:
            raise ValueError(f"it has {size} bytes in one piece")
        if size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)

    def readline(self) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]  # decoders ask for whole lines
        line = super().readline(self._longest_line)
        if len(line) == self._longest_line:
            raise ValueError(f"it has a line of over {self._longest_line} bytes")
        return line
