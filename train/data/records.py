"""Writes a data set in the layout of TensorFlow Datasets, without TensorFlow.

Order and number of shards are those of TensorFlow Datasets: examples are sorted by a hash of their
names. So a data set is the same whichever of the two has prepared it, and a part of a split is a
random sample of it.

Shards are written to a temporary folder beside that of the data set. Each is renamed when it is
complete, and a complete shard is not written again. The folder is renamed last.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from replk_jax.io.files import replace_text, replacing
from train.data.items import AnyItem, Items, Stored
from train.engine.interruption import obey_main_process
from train.engine.workdir import lock
from train.errors import RunError
from train.reporting.console import say
from train.reporting.unreadable import UnreadableList

UNREADABLE_LIST = "unreadable_images.txt"
_SHOWN = 20  # number of unreadable images in an error message


def write_dataset(
    info: tfds.core.DatasetInfo,
    splits: Mapping[str, Items[AnyItem]],
    make_example: Callable[[AnyItem], Stored],
    *,
    processes: int = 1,
    keep_unreadable: bool = False,
) -> None:
    """Writes a data set, or the missing shards of one.

    Args:
      info: with its name, folder and features.
      splits: the items, by name of the split.
      make_example: reads an item, checks and encodes it; must be picklable.
      processes: number of processes that do so.
      keep_unreadable: whether to store images that cannot be read as they are, and list them in
        `unreadable_images.txt`; otherwise they are an error.

    Raises:
      RunError: images cannot be read, or the data set cannot be written.
    """
    folder = Path(info.data_dir)
    work = folder.with_name(f"{folder.name}.incomplete")
    features = info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise TypeError(f"The features must be a FeaturesDict; got {features!r}.")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with lock(work, say):
            if folder.exists() and any(folder.iterdir()):
                raise RunError(
                    f"{folder} has files, but no data set: move them, or use another --data_dir."
                )
            data = work / "data"
            lengths = {split: _shard_lengths(items) for split, items in splits.items()}
            shards = [
                shard
                for split, items in splits.items()
                for shard in _plan(info, split, items, lengths[split], data)
            ]
            _discard_other_plan(data, shards, splits)
            writer = _Writer(features, splits, make_example, keep_unreadable)
            _write_shards(shards, writer, processes, data)
            _write_info(info, lengths, data)
            os.rename(data, folder)
            shutil.rmtree(work)
    except OSError as error:
        raise RunError(
            f"{work} cannot be written: {error}. Free some space, or use another folder with "
            "--data_dir DIR. The same command resumes the preparation."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file to write: its split, and the indices of its images in order."""

    path: Path
    split: str
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes shards; sent to each process once."""

    features: tfds.features.FeaturesDict
    splits: Mapping[str, Items[Any]]
    make_example: Callable[[Any], Stored]
    keep_unreadable: bool

    def write(self, shard: _Shard) -> tuple[int, list[str]]:
        """Writes a shard, unless it has unreadable images and `keep_unreadable` is False.

        Returns:
          The number of its images, and an error message for each that cannot be read.
        """
        unreadable = []
        with (
            contextlib.suppress(_Incomplete),
            replacing(shard.path) as file,
            _record_writer(file.name) as writer,
        ):
            for index in shard.indices:
                example, error = self.make_example(self.splits[shard.split][index])
                if error is not None:
                    unreadable.append(error)
                if not unreadable or self.keep_unreadable:
                    writer.write(self.features.serialize_example(example))
            if unreadable and not self.keep_unreadable:
                raise _Incomplete
        return len(shard.indices), unreadable


class _Incomplete(Exception):
    """A shard lacks some of its images."""


@contextlib.contextmanager
def _record_writer(path: str) -> Iterator[ArrayRecordWriter]:
    try:
        # TensorFlow Datasets compresses by default. JPEGs are compressed already; it reads both.
        writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:  # array_record reports errors of the system like this
        raise OSError(str(error)) from error


def _shard_lengths(items: Items[Any]) -> list[int]:
    """The number of images of each shard, by the rule of TensorFlow Datasets for the data size."""
    sample = [items[i] for i in range(0, len(items), -(-len(items) // 1000))]
    total = round(np.mean([item.bytes for item in sample]) * len(items))
    shards = shard_utils.ShardConfig().get_number_shards(total, len(items))
    return np.diff(shard_utils.get_shard_boundaries(len(items), shards), prepend=0).tolist()


def _order(split: str, items: Items[Any]) -> np.ndarray:
    """The indices of the images in TensorFlow Datasets' order, by a hash of split and name."""
    digests = b"".join(
        hashlib.md5(f"{split}{items[index].name}".encode(), usedforsecurity=False).digest()
        for index in range(len(items))
    )
    high, low = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def _plan(
    info: tfds.core.DatasetInfo, split: str, items: Items[Any], lengths: list[int], data: Path
) -> list[_Shard]:
    """The shards of a split."""
    names = _template(info, split).sharded_filenames(len(lengths))
    parts = np.split(_order(split, items), np.cumsum(lengths)[:-1])
    return [_Shard(data / name, split, part) for name, part in zip(names, parts, strict=True)]


def _template(info: tfds.core.DatasetInfo, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(info.data_dir),
        dataset_name=info.name,
        split=split,
        filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
    )


def _discard_other_plan(
    data: Path, shards: Sequence[_Shard], splits: Mapping[str, Items[Any]]
) -> None:
    """Makes the folder `data`; deletes shards in it that an earlier start made of other images."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.path.name}\n".encode())
        for index in shard.indices:
            item = splits[shard.split][index]
            digest.update(f"{item.name}\0{item.fingerprint}\n".encode())
    plan = data.with_name("plan")
    if not plan.exists() or plan.read_text() != digest.hexdigest():
        shutil.rmtree(data, ignore_errors=True)
        replace_text(plan, digest.hexdigest())
    data.mkdir(exist_ok=True)


def _write_shards(shards: Sequence[_Shard], writer: _Writer, processes: int, data: Path) -> None:
    """Writes the missing shards, and reports images that cannot be read.

    Raises:
      RunError: images cannot be read and are not kept. All shards without such images are written.
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
        masks = " with their masks" if "mask" in writer.features else ""
        raise RunError(
            f"{len(unreadable)} images cannot be read{masks}:\n{shown}{more}\n"
            "Replace them and run the same command again, which resumes. Or store them as they "
            "are with --keep_unreadable, and train with --config.data.unreadable=replace."
        )


def _written(
    shards: Sequence[_Shard], writer: _Writer, processes: int
) -> Iterator[tuple[int, list[str]]]:
    if processes == 1:
        yield from map(writer.write, shards)
        return
    # Spawned, since this process has threads, and a fork of it might deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _set_up, (writer,)) as pool:
        futures = [pool.submit(_write, shard) for shard in shards]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "A process was killed, possibly for lack of memory. Run the same command with "
                "fewer --processes, which resumes."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _set_up(writer: _Writer) -> None:
    """Initialises a process of the pool."""
    global _writer
    _writer = writer
    obey_main_process()


def _write(shard: _Shard) -> tuple[int, list[str]]:
    return _writer.write(shard)


def _write_info(info: tfds.core.DatasetInfo, lengths: Mapping[str, list[int]], data: Path) -> None:
    """Writes the metadata of TensorFlow Datasets."""
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
