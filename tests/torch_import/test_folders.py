"""Folders without weights of the usual names: what they have, and what to do."""

import json
import os
import re

import numpy as np
import pytest

from replk_jax import checkpoint
from replk_jax.io.errors import FileError
from replk_jax.io.safetensors import write_safetensors
from replk_jax.torch_import.folders import UnknownFolderError
from replk_jax.torch_import.reader import WeightsFile, read
from replk_jax.torch_import.writer import write_torch

ZERO_TO_FP32 = r"zero_to_fp32\.py \. pytorch_model\.bin"

# The files in a folder, and what is said of it.
FOLDERS = {
    "FSDP of accelerate": (
        ["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp",
         "optimizer_0/.metadata", "optimizer_0/__0_0.distcp", "scheduler.bin",
         "random_states_0.pkl"],
        "In its folder pytorch_model_fsdp_0: it is a checkpoint of torch.distributed.*dcp_to_torch",
    ),
    "FSDP of accelerate, all in one file": (
        ["pytorch_model_fsdp.bin", "optimizer.bin"], r"in it: \['pytorch_model_fsdp\.bin'\]\.$",
    ),
    "a run of the Trainer": (
        ["checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors",
         "checkpoint-1000/optimizer.pt", "runs/events", "trainer_state.json"],
        r"no weights itself\. Name one of these in it: \['checkpoint-500', 'checkpoint-1000'\]",
    ),
    "a run with files of other names": (
        ["weights/best.pt", "weights/last.pt", "args.yaml"],
        r"one of these in it: \['weights/best\.pt', 'weights/last\.pt'\]",
    ),
    "a run with DeepSpeed": (
        ["checkpoint-5/zero_to_fp32.py", "checkpoint-5/latest", "checkpoint-5/global_step5/a"],
        f"In its folder checkpoint-5: it is a checkpoint of DeepSpeed.*{ZERO_TO_FP32}",
    ),
    "the cache of Hugging Face": (
        ["blobs/0a1b", "refs/main", "snapshots/f00d/model.safetensors"],
        r"one of these in it: \['snapshots/f00d'\]",
    ),
    "a pipeline of diffusers": (
        ["unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
         "model_index.json"],
        r"one of these in it: \['unet'\]",
    ),
    "TensorFlow": (["tf_model.h5", "config.json"], r"tf_model\.h5 \(Keras or TensorFlow\)"),
    "TensorFlow 1": (
        ["checkpoint", "model.ckpt-9.index", "model.ckpt-9.data-00000-of-00001"],
        r"model\.ckpt-9\.data-00000-of-00001 \(TensorFlow\)",
    ),
    "Flax": (
        ["flax_model.msgpack", "config.json"],
        r"flax_model\.msgpack \(Flax\)\. Download model\.safetensors or pytorch_model\.bin",
    ),
    "ONNX": (["model.onnx"], r"model\.onnx \(ONNX\)"),
    "settings only": (
        ["config.json", "preprocessor_config.json", "README.md"],
        r"\['config\.json', 'preprocessor_config\.json'\], but no weights\. "
        r"Expected in it: model\.safetensors or pytorch_model\.bin",
    ),
    "what training needs to resume": (
        ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt", "training_args.bin",
         "trainer_state.json"],
        r"'optimizer\.pt'.*but no weights\. Expected in it",
    ),
    "a checkpoint beside that": (
        ["optimizer.pt", "rng_state.pth", "last.pth", "optimized_model.pt", "best.pth.tar"],
        r"in it: \['best\.pth\.tar', 'last\.pth', 'optimized_model\.pt'\]\.$",
    ),
    "shards": (
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"],
        r"shards without their index: \['model-00001-of-00002\.safetensors', .*"
        r"Download the index into it: \['model\.safetensors\.index\.json'\]",
    ),
    "shards of other names": (
        ["pytorch_model.fp16-00002-of-00003.bin"],
        r"Download the index into it: \['pytorch_model\.fp16\.bin\.index\.json'\]",
    ),
    "one step of DeepSpeed": (
        ["mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        r"DeepSpeed\. Name the file in it that has the weights: mp_rank_00_model_states\.pt\.$",
    ),
    "one step of DeepSpeed, partitioned": (
        ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
        f"DeepSpeed.*partitioned.*folder above: python {ZERO_TO_FP32}",
    ),
    "one step of DeepSpeed, for several devices": (
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], ZERO_TO_FP32,
    ),
}  # fmt: skip


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("load", [read, checkpoint.load])
def test_folders_without_weights(kind, load, tmp_path):
    names, message = FOLDERS[kind]
    fill(tmp_path, names)
    with pytest.raises(FileError, match=f"^{re.escape(str(tmp_path))}: it .*{message}") as caught:
        load(tmp_path)
    assert not isinstance(caught.value, UnknownFolderError)


@pytest.mark.parametrize("names", [[], ["x.txt"], ["images/a.png"], ["params/manifest.ocdbt"]])
def test_folders_of_something_else(names, tmp_path):
    fill(tmp_path, names)
    with pytest.raises(
        UnknownFolderError, match=r"a folder without a checkpoint\. Expected in it: model"
    ):
        read(tmp_path)
    with pytest.raises(ValueError, match="nor weights of PyTorch" if names else "it is empty"):
        checkpoint.load(tmp_path)


def test_a_run_of_this_package(tmp_path):
    """Its checkpoints are named, whatever else is in its folder."""
    fill(tmp_path, ["checkpoints/30/description/metadata", "config.json"])
    with pytest.raises(ValueError, match=r"Name one of its checkpoints, .*30\.$"):
        checkpoint.load(tmp_path)


def test_folders_that_must_not_be_read_are_left_out(tmp_path, monkeypatch):
    fill(tmp_path, ["lost+found/a.pth", "checkpoint-1/model.safetensors"])
    listdir = os.listdir

    def restricted(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(path)
        return listdir(path)

    monkeypatch.setattr("os.listdir", restricted)
    with pytest.raises(FileError, match=r"in it: \['checkpoint-1'\]"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("stem", "ending", "write"),
    [
        ("diffusion_pytorch_model", ".safetensors", lambda p, t: write_safetensors(p, t, {})),
        ("pytorch_model.fp16", ".bin", write_torch),
    ],
)
def test_an_index_of_another_name(stem, ending, write, tmp_path):
    shards = [f"{stem}-{number:05}-of-00002{ending}" for number in (1, 2)]
    for number, shard in enumerate(shards):
        write(tmp_path / shard, {f"w{number}": np.full(3, number, np.float32)})
    index = tmp_path / f"{stem}{ending}.index.json"
    places = {f"w{number}": shard for number, shard in enumerate(shards)}
    index.write_text(json.dumps({"weight_map": places}))
    tensors = read(tmp_path)
    for number in range(2):
        np.testing.assert_array_equal(tensors[f"w{number}"].read(), np.full(3, number, np.float32))
    assert WeightsFile(tmp_path).files[0] == index


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.ckpt.data-00000-of-00001"])
def test_files_that_are_known_by_their_names(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x83\xa6params")
    with pytest.raises(FileError, match=r"it is weights of (Flax|TensorFlow), by its name"):
        read(tmp_path / name)
