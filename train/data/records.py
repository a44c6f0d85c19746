"""Writes a classification set as TensorFlow Datasets lays it on disk, without TensorFlow.

The examples of a split are in the order that TensorFlow Datasets gives them, that of a hash of
their names, and in as many shards; so a set has the same examples at the same places whichever
of the two has prepared it, and a part of a split is a random sample of it.

Shards are written one by one in a folder beside the place of the set, each under another name
until it is whole, and a shard that is there is not written again. Only with everything written
does the folder take the name of the set.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from replk_jax.io.files import replace_text, replacing
from replk_jax.vision.images import ImageError, image_error
from train.engine.interruption import obey_main_process
from train.engine.workdir import lock
from train.errors import RunError
from train.reporting.console import say
from train.reporting.unreadable import UnreadableList

# Makes of the bytes of an image and what messages call it the bytes to store.
Encode = Callable[[bytes, str], bytes]

UNREADABLE_LIST = "unreadable_images.txt"
_SHOWN = 20  # of those that cannot be read, in an error


class Item(NamedTuple):
    """An image to store.

    Attributes:
      name: that no other image of the split has; encodes as UTF-8 (see `io.text.storable`).
      label: of its class.
      path: of the file that it is in.
      start, size: of its bytes there; -1 for all to the end.
    """

    name: str
    label: int
    path: str
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Its bytes.

        Raises:
          ImageError: they cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise image_error(str(self), error) from error

    @property
    def bytes(self) -> int:
        """How many they are."""
        return os.path.getsize(self.path) if self.size < 0 else self.size

    def __str__(self) -> str:
        return self.path if self.size < 0 else f"{self.name} in {self.path}"


def write_dataset(
    info: tfds.core.DatasetInfo,
    splits: Mapping[str, Sequence[Item]],
    encode: Encode,
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> None:
    """Writes the set, or what is missing of it.

    Args:
      info: its name, place and features: `image`, `label` and `file_name`.
      splits: the images of each.
      encode: how they are stored; to be pickled.
      processes: that encode.
      keep_unreadable: whether images that cannot be read are stored as they are, and listed in
        `unreadable_images.txt`; they end the preparation otherwise.

    Raises:
      RunError: images that cannot be read, or no place to write to.
    """
    place = Path(info.data_dir)
    work = place.with_name(f"{place.name}.incomplete")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with lock(work, say):
            if place.exists() and any(place.iterdir()):
                raise RunError(f"{place} is in the way: it holds files, but no data set.")
            data = work / "data"
            lengths = {split: _shard_lengths(items) for split, items in splits.items()}
            shards = [
                shard
                for split, items in splits.items()
                for shard in _plan(info, split, items, lengths[split], data)
            ]
            _begin(data, shards, splits)
            writer = _Writer(info.features, splits, encode, keep_unreadable)
            _write_shards(shards, writer, processes, data)
            _write_info(info, lengths, data)
            os.rename(data, place)
            shutil.rmtree(work)
    except OSError as error:
        raise RunError(
            f"{work} cannot be written: {error}. Make room, or name another place with "
            "--data_dir DIR; started again, the preparation goes on."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file to write: of which split, and which of its images in which order."""

    path: Path
    split: str
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes shards; is sent once to each process."""

    features: tfds.features.FeaturesDict
    splits: Mapping[str, Sequence[Item]]
    encode: Encode
    keep_unreadable: bool

    def write(self, shard: _Shard) -> tuple[int, list[str]]:
        """The number of images in the shard, and what is wrong with those that cannot be read.

        Where there are such, and they are not kept, nothing is written.
        """
        unreadable = []
        with (
            contextlib.suppress(_NotWhole),
            replacing(shard.path) as file,
            _record_writer(file.name) as writer,
        ):
            for index in shard.indices:
                item = self.splits[shard.split][index]
                image = b""
                try:
                    image = item.read()
                    image = self.encode(image, str(item))
                except ImageError as error:
                    unreadable.append(str(error))
                if not unreadable or self.keep_unreadable:
                    example = {"image": image, "label": item.label, "file_name": item.name}
                    writer.write(self.features.serialize_example(example))
            if unreadable and not self.keep_unreadable:
                raise _NotWhole
        return len(shard.indices), unreadable


class _NotWhole(Exception):
    """A shard without some of its images."""


@contextlib.contextmanager
def _record_writer(path: str) -> Iterator[ArrayRecordWriter]:
    try:
        # TensorFlow Datasets compresses, which JPEGs are already; it reads both.
        writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:  # so it reports what the system refuses
        raise OSError(str(error)) from error


def _shard_lengths(items: Sequence[Item]) -> list[int]:
    """The numbers of images, by the rule of TensorFlow Datasets for the bytes there are."""
    sample = [items[i] for i in range(0, len(items), -(-len(items) // 1000))]
    total = round(np.mean([item.bytes for item in sample]) * len(items))
    shards = shard_utils.ShardConfig().get_number_shards(total, len(items))
    return np.diff(shard_utils.get_shard_boundaries(len(items), shards), prepend=0).tolist()


def _order(split: str, items: Sequence[Item]) -> np.ndarray:
    """The images in the order of TensorFlow Datasets: that of the hash of split and name."""
    digests = b"".join(
        hashlib.md5(f"{split}{item.name}".encode(), usedforsecurity=False).digest()
        for item in items
    )
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def _plan(
    info: tfds.core.DatasetInfo, split: str, items: Sequence[Item], lengths: list[int], data: Path
) -> list[_Shard]:
    names = _template(info, split).sharded_filenames(len(lengths))
    parts = np.split(_order(split, items), np.cumsum(lengths)[:-1])
    return [_Shard(data / name, split, part) for name, part in zip(names, parts, strict=True)]


def _template(info: tfds.core.DatasetInfo, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=info.data_dir,
        dataset_name=info.name,
        split=split,
        filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
    )


def _begin(data: Path, shards: Sequence[_Shard], splits: Mapping[str, Sequence[Item]]) -> None:
    """Throws away what is there of a set of other images."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.path.name}\n".encode())
        for index in shard.indices:
            item = splits[shard.split][index]
            digest.update(f"{item.name}\0{item.label}\n".encode())
    plan = data.with_name("plan")
    if not plan.exists() or plan.read_text() != digest.hexdigest():
        shutil.rmtree(data, ignore_errors=True)
        replace_text(plan, digest.hexdigest())
    data.mkdir(exist_ok=True)


def _write_shards(shards: Sequence[_Shard], writer: _Writer, processes: int, data: Path) -> None:
    """Writes what is missing; reports what cannot be read.

    Raises:
      RunError: some images cannot be read, and are not kept; all shards without such are written.
    """
    missing = [shard for shard in shards if not shard.path.exists()]
    total = sum(len(shard.indices) for shard in shards)
    done = total - sum(len(shard.indices) for shard in missing)
    unreadable = []
    report = UnreadableList(data / UNREADABLE_LIST, say)
    with tqdm(total=total, initial=done, unit="image", disable=None) as progress:
        for count, messages in _written(missing, writer, processes):
            progress.update(count)
            unreadable += messages
            if writer.keep_unreadable:
                for message in messages:
                    report(message)
    if unreadable and not writer.keep_unreadable:
        shown = "\n".join(sorted(unreadable)[:_SHOWN])
        more = f"\nand {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        raise RunError(
            f"{len(unreadable)} images cannot be read:\n{shown}{more}\n"
            "Put whole ones in their place and start again: what is written stays. Or store them "
            "as they are, with --keep_unreadable, and train with --config.data.unreadable=replace."
        )


def _written(
    shards: Sequence[_Shard], writer: _Writer, processes: int
) -> Iterator[tuple[int, list[str]]]:
    if processes == 1:
        yield from map(writer.write, shards)
        return
    # Started anew, not forked: libraries of this process have threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _join, (writer,)) as pool:
        futures = [pool.submit(_write, shard) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RunError(
                "A process was killed, perhaps for want of memory. Start again with fewer "
                "--processes: what is written stays."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _join(writer: _Writer) -> None:
    """Makes a process of the pool ready: it has the writer, and ends with the one that began it."""
    global _writer
    _writer = writer
    obey_main_process()


def _write(shard: _Shard) -> tuple[int, list[str]]:
    return _writer.write(shard)


def _write_info(info: tfds.core.DatasetInfo, lengths: Mapping[str, list[int]], data: Path) -> None:
    """Writes what TensorFlow Datasets wants to know of the set."""
    splits = []
    for split, shard_lengths in lengths.items():
        template = _template(info, split)
        files = template.sharded_filenames(len(shard_lengths))
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=shard_lengths,
                num_bytes=sum((data / file).stat().st_size for file in files),
                filename_template=template,
            )
        )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=True)
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(data)
