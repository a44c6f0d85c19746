"""Locates the uncompressed members of zip archives, as `torch.save` writes them."""

import dataclasses
import struct
import zipfile
from typing import BinaryIO

from replk_jax.io.byte_file import ByteFile
from replk_jax.io.text import brief

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_MOST_DIRECTORY_BYTES = 1 << 22  # of about fifty thousand members


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """The location of a member in the file.

    Attributes:
      name: of the member.
      start: of its bytes.
      size: in bytes.
      checksum: CRC-32 of the bytes; None if the archive has no checksums.
      compressed: whether the bytes are compressed, which is unsupported.
    """

    name: str
    start: int
    size: int
    checksum: int | None
    compressed: bool

    def require_stored(self) -> None:
        """Raises ValueError if the member is compressed."""
        if self.compressed:
            raise ValueError(
                f"its member {brief(self.name)} is compressed, as torch.save never does. "
                "Unzip it, and zip it again with compression level 0."
            )


def read_members(file: ByteFile) -> dict[str, Member]:
    """The members in the archive's directory, by name.

    Raises:
      ValueError: an archive without a directory, or with members that are encrypted, duplicate or
        overlapping.
    """
    entries, directory = _read_directory(file)
    # With torch.serialization.set_crc32_options(False), PyTorch writes 0 for all of them.
    checked = any(entry.CRC for entry in entries)
    members: dict[str, Member] = {}
    free = 0  # where the next member may begin
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.filename in members:
            raise ValueError(f"it has two members {brief(entry.filename)}.")
        if entry.flag_bits & _ENCRYPTED:
            raise ValueError(f"its member {brief(entry.filename)} is encrypted.")
        member = _locate(file, entry, free, directory, checked)
        members[entry.filename] = member
        free = member.start + member.size
    return members


def open_member(file: ByteFile, member: Member, most: int) -> BinaryIO:
    """The bytes of a member, for a decoder; `most` as in `ByteFile.stream`.

    Raises:
      ValueError: the member is compressed, or its checksum is wrong.
    """
    member.require_stored()
    if member.checksum not in (None, file.checksum(member.start, member.size)):
        raise ValueError("a checksum is wrong, so it is damaged. Copy or download it again.")
    return file.stream(most, member.start, member.size)


def _read_directory(file: ByteFile) -> tuple[list[zipfile.ZipInfo], int]:
    """The entries of the directory, and its position."""
    try:
        with zipfile.ZipFile(file.stream(_MOST_DIRECTORY_BYTES)) as archive:
            return archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f"its zip directory is not there or damaged ({error}), as if it had been cut short. "
            "Copy or download it again."
        ) from error


def _locate(file: ByteFile, entry: zipfile.ZipInfo, free: int, end: int, checked: bool) -> Member:
    start = entry.header_offset
    if not free <= start <= end - _LOCAL_HEADER.size:
        raise _misplaced(entry)
    magic, name, extra = _LOCAL_HEADER.unpack(file.read(start, _LOCAL_HEADER.size))
    start += _LOCAL_HEADER.size + name + extra
    if magic != b"PK\x03\x04" or start + entry.compress_size > end:
        raise _misplaced(entry)
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
    checksum = entry.CRC if checked else None
    return Member(entry.filename, start, entry.compress_size, checksum, not stored)


def _misplaced(entry: zipfile.ZipInfo) -> ValueError:
    return ValueError(
        f"its member {brief(entry.filename)} is not where its directory says. "
        "Copy or download it again."
    )
