"""Output strides: a dilated network against the one with strides, whose outputs it contains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import replk_jax
from replk_jax.models.dilation import Sampling, sample_stages
from replk_jax.models.replknet import RepLKNetArchitecture
from replk_jax.models.repvgg import RepVGGArchitecture
from replk_jax.models.resnet import ResNetArchitecture
from replk_jax.models.variables import abstract_variables
from replk_jax.torch_import import convert_state_dict, save_torch
from tests.helpers import assert_equal_in_float64, random_images, random_variables

# Stages that keep their width, where a shortcut could take the place of a convolution.
NETWORKS = {
    "replknet": RepLKNetArchitecture(
        (7, 5, 5, 3), (1, 1, 1, 1), (4, 4, 6, 6), small_kernel=3, dilated_branches=((3, 1),)
    ),
    "repvgg": RepVGGArchitecture((1, 2, 1, 2), (4, 4, 4, 4, 6), groups=(1, 1, 2, 1, 4, 1, 2)),
    "repvgg_residual": RepVGGArchitecture((2, 2, 2, 1), (4, 4, 4, 4, 6), block="residual"),
    "resnet_basic": ResNetArchitecture((1, 2, 1, 2), (4, 4, 4, 6), block="basic"),
    "resnet_bottleneck": ResNetArchitecture((1, 2, 1, 2), (4, 4, 4, 6)),
    "resnet_caffe": ResNetArchitecture((1, 2, 1, 2), (4, 4, 4, 6), stride_in_1x1=True),
}
EVERY_STAGE = (0, 1, 2, 3)


def test_strides_become_dilation_of_what_follows():
    strided = [Sampling(1, 1, 1), *[Sampling(2, 1, 1, reduces=True)] * 3]
    assert sample_stages([1, 2, 2, 2], 4, None) == sample_stages([1, 2, 2, 2], 4, 32) == strided
    assert sample_stages([1, 2, 2, 2], 4, 16) == [*strided[:3], Sampling(1, 1, 2, reduces=True)]
    assert sample_stages([1, 2, 2, 2], 4, 4) == [
        Sampling(1, 1, 1),
        Sampling(1, 1, 2, reduces=True),
        Sampling(1, 2, 4, reduces=True),
        Sampling(1, 4, 8, reduces=True),
    ]
    following = Sampling(1, 4, 4)
    assert Sampling(1, 2, 4, reduces=True).blocks(3) == [
        Sampling(1, 2, 4, reduces=True),
        following,
        following,
    ]


def test_or_of_all_that_read_it():
    """mmsegmentation's MobileNet V2 for segmentation: dilations 1, 1, 1, 2, 2, 4, 4."""
    stages = sample_stages([1, 2, 2, 2, 1, 2, 1], 2, 8, contract_dilation=False)
    assert [stage.stride for stage in stages] == [1, 2, 2, 1, 1, 1, 1]
    assert [stage.entry_dilation for stage in stages] == [1, 1, 1, 2, 2, 4, 4]
    assert [stage.dilation for stage in stages] == [1, 1, 1, 2, 2, 4, 4]
    assert [stage.reduces for stage in stages] == [False, True, True, True, False, True, False]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_strided_feature_maps_are_a_subsample(name):
    """To the border: positions outside of the image are outside of both."""
    with jax.enable_x64(True):
        model = replk_jax.create_model(
            NETWORKS[name], out_indices=EVERY_STAGE, dtype=jnp.float64, param_dtype=jnp.float64
        )
        variables, images = random_variables(model), random_images(model, 1, (75, 64))
        dilated = model.clone(output_stride=min(model.output_strides))

        @jax.jit
        def run(variables, images):
            return model.apply(variables, images), dilated.apply(variables, images)

        strided, dense = run(variables, images)
    for stage, (coarse, fine) in enumerate(zip(strided, dense, strict=True)):
        step = 4 * 2**stage // min(4 * 2**stage, dilated.output_stride)
        assert fine.shape[1:3] == tuple(-(-n // (4 * 2**stage // step)) for n in (75, 64))
        assert_equal_in_float64(fine[:, ::step, ::step], coarse)


@pytest.mark.parametrize("name", NETWORKS)
def test_variables_stay_the_same(name):
    model = replk_jax.create_model(NETWORKS[name], num_classes=3)
    for deploy in (False, True):
        wanted = abstract_variables(model.clone(deploy=deploy))
        for output_stride in model.output_strides:
            dilated = model.clone(deploy=deploy, output_stride=output_stride)
            assert abstract_variables(dilated) == wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_counts(name):
    """Without the last three strides, each stage costs 4, 16 or 64 times as much, or as allowed."""
    model = replk_jax.create_model(NETWORKS[name], out_indices=EVERY_STAGE)
    dilated = model.clone(output_stride=8)
    plain, dense = (replk_jax.summary(m, 64) for m in (model, dilated))
    assert dense.training.parameters == plain.training.parameters
    last, dense_last = plain.parts[-1], dense.parts[-1]
    assert (last.shape[:2], dense_last.shape[:2]) == ((2, 2), (8, 8))
    assert dense_last.merged.convolution > 4 * last.merged.convolution


@pytest.mark.parametrize("name", NETWORKS)
def test_impossible_output_strides(name):
    model = replk_jax.create_model(NETWORKS[name], output_stride=12)
    with pytest.raises(ValueError, match=r"output_stride must be .*8, 16, 32 or None; got 12"):
        model.init(jax.random.key(0), random_images(model))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"resnet_caffe"}))
def test_a_pytorch_file_has_no_dilation(name, tmp_path):
    model = replk_jax.create_model(NETWORKS[name], output_stride=8)
    with pytest.raises(ValueError, match=r"output_stride=8.*clone\(output_stride=None\)"):
        save_torch({}, model, tmp_path / "x.pth")


def with_random_statistics(torch, network):
    """A PyTorch network in float64 and eval mode, whose batch norms do something."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return network.double().eval()


def assert_equal_to_torch(torch, network, features, model):
    """`features(x)` of the network in PyTorch are the feature map of our last stage."""
    state_dict = {key: value.numpy() for key, value in network.state_dict().items()}
    with jax.enable_x64(True):
        model = model.clone(
            out_indices=(-1,), num_classes=None, dtype=jnp.float64, param_dtype=jnp.float64
        )
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
        variables = convert_state_dict(state_dict, model)
        images = random_images(model, 1, (65, 48))
        (actual,) = jax.jit(model.apply)(variables, images)
    with torch.no_grad():
        expected = features(torch.from_numpy(np.moveaxis(images, 3, 1).copy())).numpy()
    assert_equal_in_float64(actual, np.moveaxis(expected, 1, 3))


@pytest.mark.parametrize(
    ("replaced", "output_stride"),
    [((False, False, False), None), ((False, False, True), 16), ((False, True, True), 8)],
)
def test_bottlenecks_are_torchvisions(replaced, output_stride):
    torch = pytest.importorskip("torch")
    resnet = pytest.importorskip("torchvision").models.resnet
    torch.manual_seed(0)
    layers = [1, 1, 2, 2]
    network = with_random_statistics(
        torch,
        resnet.ResNet(resnet.Bottleneck, layers, replace_stride_with_dilation=list(replaced)),
    )

    def features(x):
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x))))

    model = replk_jax.create_model("resnet50", layers=layers, output_stride=output_stride)
    assert_equal_to_torch(torch, network, features, model)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_basic_blocks_are_timms(output_stride):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    network = with_random_statistics(
        torch, timm.create_model("resnet18", output_stride=output_stride, num_classes=0)
    )
    model = replk_jax.create_model("resnet18", output_stride=output_stride)
    assert_equal_to_torch(torch, network, network.forward_features, model)
