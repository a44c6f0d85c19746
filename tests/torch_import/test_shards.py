"""Folders as Hugging Face's libraries write them, and weights in shards."""

import json
import re

import numpy as np
import pytest

from replk_jax.io.errors import FileError
from replk_jax.io.safetensors import write_safetensors
from replk_jax.torch_import.reader import WeightsFile, read
from replk_jax.torch_import.writer import write_torch
from tests.torch_import.archives import write_archive

TENSORS = {f"layer{i}.weight": np.full((2, 3), i, np.float32) for i in range(5)}


def write_with_metadata(path, tensors):
    write_safetensors(path, tensors, {"a": "b"})


KINDS = {
    "safetensors": ("model", ".safetensors", write_with_metadata),
    "torch": ("pytorch_model", ".bin", write_torch),
}


def write_shards(folder, kind="safetensors", **changes):
    """Two shards and their index, whose path is returned; `changes` are those of its map."""
    stem, ending, write = KINDS[kind]
    places = {}
    for number, names in enumerate((list(TENSORS)[:2], list(TENSORS)[2:]), 1):
        shard = f"{stem}-{number:05}-of-00002{ending}"
        write(folder / shard, {name: TENSORS[name] for name in names})
        places |= dict.fromkeys(names, shard)
    index = folder / f"{stem}{ending}.index.json"
    places = {name: place for name, place in (places | changes).items() if place}
    index.write_text(json.dumps({"metadata": {"total_size": 120}, "weight_map": places}, indent=2))
    return index


def assert_is_all(contents):
    assert list(contents) == list(TENSORS)
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(contents[name].read(), value)


@pytest.mark.parametrize("kind", KINDS)
class TestShards:
    def test_by_the_index_and_by_the_folder(self, kind, tmp_path):
        index = write_shards(tmp_path, kind)
        for path in (index, str(index), tmp_path):
            assert_is_all(read(path))
            assert WeightsFile(path).metadata == {}
            files = WeightsFile(path).files
            assert files[0] == index
            assert [re.search("-0000(.)-of", file.name)[1] for file in files[1:]] == ["1", "2"]

    def test_one_shard(self, kind, tmp_path):
        index = write_shards(tmp_path, kind)
        shard = WeightsFile(index).files[2]
        with pytest.raises(FileError, match=f"^{shard}: it is shard 2 of 2.*{index.name}"):
            WeightsFile(shard)
        index.unlink()
        with pytest.raises(FileError, match=rf"shard 2 of 2.*Put all of them.*{index.name}"):
            read(shard)

    def test_a_missing_shard(self, kind, tmp_path):
        index = write_shards(tmp_path, kind)
        shard = WeightsFile(index).files[2]
        shard.unlink()
        with pytest.raises(
            FileError, match=rf"^{index}: 1 of its 2 shards are missing.*{shard.name}"
        ):
            read(tmp_path)

    def test_a_tensor_that_is_in_another_shard(self, kind, tmp_path):
        index = write_shards(tmp_path, kind)
        first, second = (file.name for file in WeightsFile(index).files[1:])
        write_shards(tmp_path, kind, **{"layer4.weight": first, "absent": second})
        with pytest.raises(FileError, match=r"2 tensors are not.*'layer4\.weight', 'absent'"):
            read(index)

    def test_a_tensor_that_the_index_lacks_is_not_dropped(self, kind, tmp_path):
        assert_is_all(read(write_shards(tmp_path, kind, **{"layer4.weight": None})))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b", "c:a"],
)
def test_shards_elsewhere(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_safetensors(tmp_path / "model.safetensors", TENSORS, {})
    index = write_shards(folder)
    text = json.loads(index.read_text())
    text["weight_map"]["layer0.weight"] = name
    index.write_text(json.dumps(text))
    with pytest.raises(FileError, match=r"names a shard .*, which is not a file next to it"):
        read(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": 1}}', "does not say which file"),
        ('{"weight_map": []}', "does not say which file"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "damaged .a name is there twice"),
        ('{"weight_map": {"a": "b"', "damaged"),
        ('{"weight_map": ' + "[" * 100_000, "damaged"),
        ('{"metadata": {}}', "JSON text, not weights"),
    ],
)
def test_wrong_indices(text, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FileError, match=message):
        read(tmp_path)


def test_an_index_that_names_itself(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": index.name}}))
    with pytest.raises(FileError, match="JSON text, not weights"):
        read(index)


def test_one_shard_of_one_is_whole(tmp_path):
    write_safetensors(tmp_path / "model-00001-of-00001.safetensors", TENSORS, {})
    assert_is_all(read(tmp_path / "model-00001-of-00001.safetensors"))


class TestFolders:
    @pytest.mark.parametrize("kind", KINDS)
    def test_hugging_face(self, kind, tmp_path):
        """With what accelerate and transformers write beside the weights."""
        stem, ending, write = KINDS[kind]
        write(tmp_path / f"{stem}{ending}", TENSORS)
        for name in ("config.json", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
            (tmp_path / name).write_bytes(b"{}")
        assert_is_all(read(tmp_path))
        assert WeightsFile(tmp_path).files == (tmp_path / f"{stem}{ending}",)
        assert WeightsFile(tmp_path).metadata == ({"a": "b"} if kind == "safetensors" else {})

    def test_both_formats(self, tmp_path):
        write_safetensors(tmp_path / "model.safetensors", TENSORS, {})
        (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
        assert_is_all(read(tmp_path))

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_several_networks(self, name, tmp_path):
        second = name.replace(".", "_1.")
        for file in (name, second):
            (tmp_path / file).write_bytes(b"")
        with pytest.raises(FileError, match=f"several networks. Name one: {name}, {second}"):
            read(tmp_path)

    def test_errors_name_the_file(self, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(FileError, match=f"^{tmp_path / 'model.safetensors'}: it is empty"):
            read(tmp_path)


def test_shards_that_are_no_state_dict(tmp_path):
    write_archive(tmp_path / "a.bin", b"].")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    with pytest.raises(FileError, match=r"shards \['a\.bin'\] hold no tensors by name"):
        read(index)
