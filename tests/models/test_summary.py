"""Parameters and multiply-adds: the published figures, to the digit."""

import json
import math

import pytest

import replk_jax
from replk_jax.models.summary import planned_memory
from tests import reference_data
from tests.helpers import TINY

# mmpretrain's model index: parameters and FLOPs of the training-time structure.
MMPRETRAIN = {
    ("replknet_31b", 224): (79_864_168, 15_636_547_584),
    ("replknet_31b", 384): (79_864_168, 45_952_303_104),
    ("replknet_31l", 384): (172_671_016, 97_240_006_656),
    ("replknet_xl", 320): (335_435_752, 129_570_201_600),
}
# README of the official code, in 1e9, cut or rounded to one decimal.
OFFICIAL = {
    ("replknet_31b", 224): 15.3,
    ("replknet_31b", 384): 45.1,
    ("replknet_31l", 384): 96.0,
    ("replknet_xl", 320): 128.7,
}
# Table 5 of the paper: parameters in 1e6 and FLOPs in 1e9, cut or rounded as well.
TABLE_5 = {
    "replknet_3": (71.8, 12.9),
    "replknet_7": (72.2, 13.1),
    "replknet_13": (73.7, 13.4),
    "replknet_25": (78.2, 14.8),
    "replknet_31b": (79.3, 15.3),
}
# Each published figure once; the others differ in sizes alone.
FEW = {("replknet_31b", 384), ("replknet_xl", 320), "replknet_13"}


def cut_or_rounded(value):
    """To one decimal; the sources do both."""
    return math.floor(10 * value) / 10, round(value, 1)


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        case if case in FEW else pytest.param(*case, marks=pytest.mark.exhaustive)
        for case in MMPRETRAIN
    ],
)
def test_published_figures(name, image_size):
    counts = replk_jax.summary(replk_jax.create_model(name), image_size)
    parameters, flops = MMPRETRAIN[name, image_size]
    assert counts.training.parameters == parameters
    assert counts.training.mmpretrain_flops == flops
    assert OFFICIAL[name, image_size] in cut_or_rounded(counts.paper_flops / 1e9)


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.exhaustive) for name in TABLE_5],
)
def test_table_5(name):
    counts = replk_jax.summary(replk_jax.create_model(name))
    parameters, flops = TABLE_5[name]
    assert parameters in cut_or_rounded(counts.merged.parameters / 1e6)
    assert flops in cut_or_rounded(counts.paper_flops / 1e9)


def test_parameters_with_every_batch_norm_folded():
    """The official deep-fused 31B has 79,438,952; folding the batch norms before the 48 blocks
    and the final one takes away their 2 C parameters each."""
    counts = replk_jax.summary(replk_jax.create_model("replknet_31b"))
    standing = 2 * (4 * 128 + 4 * 256 + 36 * 512 + 4 * 1024 + 1024)
    assert counts.merged.parameters == 79_438_952 - standing == 79_388_776


@reference_data.required
@pytest.mark.parametrize(
    "official",
    [
        "RepLKNet-31B",
        pytest.param("RepLKNet-31L", marks=pytest.mark.exhaustive),
        pytest.param("RepLKNet-XL", marks=pytest.mark.exhaustive),
    ],
)
def test_every_raw_count(official):
    """macs.json, read off the official models."""
    sizes = json.loads((reference_data.ROOT / "manifests/macs.json").read_text())[official]
    model = replk_jax.create_model(official.replace("RepLKNet-", "replknet_").lower())
    for size, forms in sizes.items():
        counts = replk_jax.summary(model, int(size))
        train = forms["train"]
        assert counts.training.parameters == train["params"]
        assert counts.training.convolution == train["conv_macs"]
        assert counts.training.linear == counts.merged.linear == train["linear_macs"]
        assert counts.training.batch_norm_elements == train["batchnorm_elements"]
        assert counts.training.pooled_elements == train["global_pool_input_elements"]
        assert counts.merged.convolution == forms["deploy"]["conv_macs"]
        assert counts.merged.batch_norm_elements == 0


def test_parts_add_up_and_are_printed():
    model = replk_jax.create_model(TINY, num_classes=4, remat="full")
    counts = replk_jax.summary(model, (33, 64))
    assert [part.name for part in counts.parts] == [
        "stem", "stages_0", "transitions_0", "stages_1", "head",
    ]  # fmt: skip
    assert counts.parts[1].shape == (9, 16, 8)
    assert sum(part.training.parameters for part in counts.parts) == counts.training.parameters
    text = str(counts)
    flops = [count.mmpretrain_flops for count in (counts.training, counts.merged)]
    for figure in (counts.training.parameters, counts.paper_flops, *flops):
        assert f"{figure:,}" in text
    assert replk_jax.summary(model.clone(deploy=True), (33, 64)) == counts


def test_backbone():
    model = replk_jax.create_model(TINY, out_indices=(0, 1), norm_intermediate_features=True)
    counts = replk_jax.summary(model, 64)
    assert counts.training.linear == counts.training.pooled_elements == 0
    # The norms of the stages stay, as scale and bias.
    assert counts.parts[-1].name == "stages_1"
    assert counts.merged.batch_norm_elements == 0


def test_memory_that_the_compiler_does_not_report():
    class Compiled:
        def memory_analysis(self):
            return None

    with pytest.raises(NotImplementedError, match="does not report memory"):
        planned_memory(Compiled())
