"""Re-parameterization: the merged network computes what the training-time one does."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import replk_jax
from replk_jax import RepLKNetArchitecture, check_equivalence, merge_branches, reparameterize
from replk_jax.models.variables import abstract_variables
from tests import reference_data
from tests.helpers import TINY, random_images, random_variables
from tests.models.test_replknet_golden import CASES, load
from tests.reference_data import assert_close


def make(architecture=TINY, **fields):
    return replk_jax.create_model(architecture, **{"num_classes": 4, **fields})


KINDS = {
    "classifier": {},
    "features": {"num_classes": None},
    "backbone": {"out_indices": (0, 1)},
    "normed backbone": {"out_indices": (0, 1), "norm_intermediate_features": True},
}

ARCHITECTURES = st.integers(1, 3).flatmap(
    lambda stages: st.builds(
        RepLKNetArchitecture,
        kernel_sizes=st.tuples(*[st.sampled_from([3, 5, 9, 13])] * stages),
        layers=st.tuples(*[st.integers(1, 2)] * stages),
        channels=st.tuples(*[st.sampled_from([6, 8, 12])] * stages),
        small_kernel=st.sampled_from([None, 1, 3]),
        dw_ratio=st.sampled_from([1.0, 1.5]),
        ffn_ratio=st.sampled_from([2.0, 4.0]),
        in_channels=st.sampled_from([1, 3]),
    )
)


@settings(max_examples=4, deadline=None)
@given(architecture=ARCHITECTURES, kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99))
def test_any_architecture_and_kind_of_network(architecture, kind, seed):
    """In float64, where a wrong merge cannot pass for rounding."""
    fields = {**KINDS[kind], "dtype": jnp.float64, "param_dtype": jnp.float64}
    if "out_indices" in fields:
        fields["out_indices"] = tuple(range(len(architecture.layers)))
    with jax.enable_x64(True):
        model = make(architecture, **fields)
        variables, images = random_variables(model, seed), random_images(model, 1, 32, seed)
        assert images.dtype == np.float64
        assert check_equivalence(model, variables, images).max_rel < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_tree_is_that_of_the_deploy_model(kind, param_dtype):
    for small_kernel in (None, 3):
        model = make(param_dtype=param_dtype, small_kernel=small_kernel, **KINDS[kind])
        merged = jax.eval_shape(reparameterize, abstract_variables(model))
        expected = abstract_variables(model.clone(deploy=True))
        chex.assert_trees_all_equal_structs(merged, expected)
        chex.assert_trees_all_equal_shapes_and_dtypes(merged, expected)
        assert "bn" not in str(jax.tree.structure(merged))


@pytest.mark.parametrize("kind", KINDS)
def test_idempotent(kind):
    merged = reparameterize(random_variables(make(**KINDS[kind])))
    chex.assert_trees_all_equal(reparameterize(merged), merged)


def test_leaves_its_argument_alone():
    variables = random_variables(make())
    before = jax.tree.map(np.copy, variables)
    reparameterize(variables)
    chex.assert_trees_all_equal(variables, before)


def test_merging_in_two_steps_is_merging_in_one():
    variables = random_variables(make())
    in_two = reparameterize(merge_branches(variables))
    chex.assert_trees_all_close(in_two, reparameterize(variables), rtol=1e-6)


def test_gradients_go_through():
    """The derivative of the merged network's logits with respect to the training-time variables
    is that of the training-time network's logits."""
    model = make(implementation="xla")  # which compiles fastest
    variables, images = random_variables(model), random_images(model)

    def through_merged(params):
        merged = reparameterize({**variables, "params": params})
        return jnp.sum(model.clone(deploy=True).apply(merged, images) ** 2)

    def direct(params):
        return jnp.sum(model.apply({**variables, "params": params}, images) ** 2)

    actual = jax.jit(jax.grad(through_merged))(variables["params"])
    expected = jax.jit(jax.grad(direct))(variables["params"])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-5 * largest)


def test_sharded_arrays():
    """Output channels over eight devices, inside and outside of jit."""
    model = make(RepLKNetArchitecture((7, 5), (1, 1), (8, 16), small_kernel=3), num_classes=8)
    variables = random_variables(model)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def shard(leaf):
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "model")
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded = jax.tree.map(shard, variables)
    expected = reparameterize(variables)
    for transform in (reparameterize, jax.jit(reparameterize)):
        merged = transform(sharded)
        chex.assert_trees_all_close(merged, expected, rtol=1e-5, atol=1e-6)
        kernel = merged["params"]["stages_0"]["blocks_0"]["large_kernel"]["lkb_reparam"]["kernel"]
        assert len(kernel.sharding.device_set) == 8
        assert not kernel.sharding.is_fully_replicated


def without(tree, *path):
    """The tree less one of its nodes."""
    first, *rest = path
    if not rest:
        return {name: child for name, child in tree.items() if name != first}
    return {**tree, first: without(tree[first], *rest)}


def with_node(tree, node, *path):
    """The tree with one more node."""
    first, *rest = path
    return {**tree, first: with_node(tree.get(first, {}), node, *rest) if rest else node}


BLOCK = ("stages_0", "blocks_0")
ARRAY = np.zeros(8, np.float32)


def drop(*path):
    """Takes a part out of both collections."""

    def spoil(variables):
        for collection in ("params", "batch_stats"):
            variables = without(variables, collection, *path)
        return variables

    return spoil


def put(node, *path):
    return lambda variables: with_node(variables, node, *path)


def zeros(*shape):
    return np.zeros(shape, np.float32)


LARGE_KERNEL = ("params", *BLOCK, "large_kernel")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: without(v, "batch_stats", *BLOCK, "pw1", "bn", "mean"),
         r"^stages_0/blocks_0/pw1/bn: missing mean\."),
        (lambda v: without(v, "batch_stats", *BLOCK, "prelkb_bn"), "prelkb_bn: missing mean, var"),
        (lambda v: without(v, "batch_stats"), "the variables: missing the running statistics"),
        (lambda v: without(v, "params", *BLOCK, "pw2"), "blocks_0/pw2/bn: missing scale, bias"),
        (lambda v: without(v, *LARGE_KERNEL, "lkb_origin"), "lkb_origin/bn: missing scale, bias"),
        (lambda v: without(v, "params", "head", "bias"), "head: missing bias"),
        (lambda v: {"params": {}}, "the variables: \"params\" is empty"),
        (lambda v: {**v, "intermediates": {}}, "intermediates"),
        (lambda v: v["params"], "batch_stats"),
        (drop("norm"), "the variables: missing norm"),
        (drop(*BLOCK, "prelkb_bn"), "stages_0/blocks_0: missing prelkb_bn"),
        (drop("stem_2"), "the variables: missing stem_2"),
        (drop("stem_2", "bn"), "the variables: stem_2/conv: missing bias, or a batch norm"),
        (drop("stages_0"), "the variables: missing stages_0"),
        (drop("transitions_0_1"), "missing transitions_0_1"),
        (drop(*BLOCK), "stages_0: missing blocks_0"),
        (drop(*BLOCK, "large_kernel"), "blocks_0: missing large_kernel"),
        (put(ARRAY, "params", *BLOCK, "attention"), "blocks_0: not known here: attention"),
        (put({"kernel": ARRAY}, "params", "neck"), "not known here: neck"),
        (put(ARRAY, "params", "stages_1", "blocks_1"), "stages_1/blocks_1"),
        (put(ARRAY, "batch_stats", "stem_9", "mean"), "not known here: stem_9"),
        (put({"a": ARRAY}, "params", "head", "bias"), "head: missing bias, or no classifier"),
        (put(zeros(3), "batch_stats", "norm", "var"),
         r"norm: var: expected shape \(12,\), that of scale, found"),
        (put(zeros(9), "params", "head", "bias"), r"head: bias: expected shape \(4,\)"),
        (put(zeros(3, 3, 8, 8), "params", *BLOCK, "pw1", "conv", "kernel"),
         r"pw1/conv/kernel: expected shape \(1, 1, 8, 8\), found \(3, 3, 8, 8\)"),
        (put(zeros(8, 8), "params", *BLOCK, "pw2", "conv", "kernel"), "expected the 4 dimensions"),
        (put(None, "params", *BLOCK, "pw2", "conv", "kernel"), "pw2/conv/kernel: .*found None"),
        (put(zeros(1, 1, 99, 12), "params", "stages_1", "blocks_1", "pw2", "conv", "kernel"),
         r"pw2/conv/kernel: expected shape \(1, 1, 48, 12\)"),
        (put(zeros(9, 9, 1, 8), *LARGE_KERNEL, "small_conv", "conv", "kernel"), "be centred"),
        (put(zeros(4, 4, 1, 8), *LARGE_KERNEL, "small_conv", "conv", "kernel"), "be centred"),
    ],
)  # fmt: skip
def test_foreign_and_incomplete_trees_are_refused(spoil, message):
    spoilt = spoil(random_variables(make()))
    for transform in (reparameterize, merge_branches):
        with pytest.raises(ValueError, match=message):
            transform(spoilt)


def test_a_merged_tree_of_the_wrong_shape_is_refused():
    merged = reparameterize(random_variables(make()))
    with pytest.raises(ValueError, match=r"stem_0/conv: bias: expected shape \(8,\), found \(5,\)"):
        reparameterize(with_node(merged, zeros(5), "params", "stem_0", "conv", "bias"))


def test_a_stage_norm_without_statistics_is_refused():
    """It must not pass for one that is merged already."""
    variables = random_variables(make(**KINDS["normed backbone"]))
    with pytest.raises(ValueError, match="stages_0/norm: missing mean, var"):
        reparameterize(without(variables, "batch_stats", "stages_0", "norm"))


def test_a_norm_that_stays_is_checked_too():
    variables = random_variables(make(**KINDS["normed backbone"]))
    spoilt = with_node(variables, zeros(1), "batch_stats", "stages_0", "norm", "mean")
    with pytest.raises(ValueError, match=r"stages_0/norm: mean: expected shape \(8,\)"):
        reparameterize(spoilt)
    variables = random_variables(make(**KINDS["features"]))
    merged = reparameterize(variables)
    for tree in (variables, merged):
        with pytest.raises(ValueError, match=r"norm: (bias|mean): expected shape \(99, 12\)"):
            reparameterize(with_node(tree, zeros(99, 12), "params", "norm", "scale"))


def test_a_large_kernel_of_another_width_is_refused():
    variables = random_variables(make(small_kernel=None))
    for collection, leaf in (("params", "scale"), ("params", "bias"),
                             ("batch_stats", "mean"), ("batch_stats", "var")):  # fmt: skip
        path = (*BLOCK, "large_kernel", "lkb_origin", "bn", leaf)
        variables = with_node(variables, np.ones(9, np.float32), collection, *path)
    kernel = (*LARGE_KERNEL, "lkb_origin", "conv", "kernel")
    with pytest.raises(ValueError, match=r"large_kernel/.*expected shape \(7, 7, 1, 8\)"):
        reparameterize(with_node(variables, zeros(7, 7, 1, 9), *kernel))


def test_check_equivalence_sees_a_wrong_merge(monkeypatch):
    model = make()
    variables, images = random_variables(model), random_images(model)

    def forgetful(variables):
        merged = reparameterize(variables)
        merged["params"]["stem_1"]["conv"]["bias"] += 0.1
        return merged

    monkeypatch.setattr("replk_jax.reparam.equivalence.reparameterize", forgetful)
    assert check_equivalence(model, variables, images).max_rel > 1e-3


def test_check_equivalence_does_not_measure_a_small_output_by_a_large_one(monkeypatch):
    model = make(**KINDS["normed backbone"])
    variables, images = random_variables(model), random_images(model)
    for leaf in ("scale", "bias"):
        variables["params"]["stages_0"]["norm"][leaf] *= 1e-5

    def wrong_in_the_small_output(variables):
        merged = reparameterize(variables)
        merged["params"]["stages_0"]["norm"]["bias"] *= 2
        return merged

    assert check_equivalence(model, variables, images).max_rel < 1e-4
    monkeypatch.setattr("replk_jax.reparam.equivalence.reparameterize", wrong_in_the_small_output)
    assert check_equivalence(model, variables, images).max_rel > 1e-2


def test_check_equivalence_does_not_hide_nan():
    model = make(out_indices=(0, 1))
    variables = random_variables(model)
    variables["params"]["stages_1"]["blocks_0"]["pw1"]["bn"]["bias"][0] = np.nan
    assert np.isnan(check_equivalence(model, variables, random_images(model)).max_abs)


def test_check_equivalence_of_outputs_that_are_zero():
    model = make()
    variables = jax.tree.map(np.zeros_like, random_variables(model))
    assert check_equivalence(model, variables, random_images(model)).max_rel == 0


def test_check_equivalence_wants_the_training_time_model():
    with pytest.raises(ValueError, match="deploy=True"):
        check_equivalence(make(deploy=True), {}, np.zeros((1, 32, 32, 3)))


# Of kernels between those of the others, or with fewer outputs.
LIKE_OTHERS = {"replk_13_7_5", "replk_backbone_two_maps"}


@reference_data.required
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.exhaustive) if n in LIKE_OTHERS else n for n in CASES],
)
def test_golden_merged_kernels_and_outputs(name):
    """The official `structural_reparam()` gives the same kernels, and its network the same
    outputs. Kernels are sums of two products: 1e-6 is ten roundings."""
    model, variables = load(name)
    expected = reference_data.arrays(f"small/{name}.npz")
    merged = merge_branches(variables)
    for key, value in expected.items():
        if not key.startswith("merged."):
            continue
        *modules, last = reference_data.flax_path(key.removeprefix("merged."))
        node = merged["params"]
        for part in modules:
            node = node[part]
        leaf = np.asarray(node["kernel" if last == "weight" else "bias"])
        leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        assert_close(leaf, value, 1e-6, key)

    x = reference_data.nhwc(expected["x1"])
    outputs = jax.jit(model.clone(deploy=True).apply)(reparameterize(variables), x)
    for form in ("deploy_form", "deep_fused_form"):
        if f"x1.logits.{form}" in expected:
            assert_close(outputs, expected[f"x1.logits.{form}"], 1e-5, form)
        if f"x1.out0.{form}" in expected:
            for i, output in enumerate(outputs):
                assert_close(output, reference_data.nhwc(expected[f"x1.out{i}.{form}"]), 1e-5, form)


@reference_data.required
def test_golden_deep_fused_file():
    """The official `deep_fuse_BN()` leaves the batch norms before blocks standing; its state
    dict, which is merged in part, comes to the same as ours from the training-time weights."""
    _, variables = load("replk_31")
    fused = _partly_merged(reference_data.state_dict("small/replk_31.deep_fused.pth"))
    chex.assert_trees_all_close(
        reparameterize(fused), reparameterize(variables), rtol=1e-4, atol=1e-5
    )


def _partly_merged(state_dict):
    """Official names to a variable tree, for a structure that no model here has."""
    variables = {"params": {}, "batch_stats": {}}
    leaf_names = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    for key, value in state_dict.items():
        if key.endswith("num_batches_tracked"):
            continue
        *path, last = reference_data.flax_path(key)
        kind = {1: "scale", 2: "kernel", 4: "kernel"}[value.ndim]
        leaf = leaf_names.get(last, kind)
        collection = "batch_stats" if last.startswith("running") else "params"
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        variables = with_node(variables, value, collection, *path, leaf)
    return variables


@reference_data.required
@pytest.mark.parametrize("name", ["replknet_31b", "replknet_31l", "replknet_xl"])
def test_golden_parameter_counts(name):
    """Counts of the training-time form and of the official merged form, to the digit."""
    index = reference_data.manifest_index()
    abstract = abstract_variables(replk_jax.create_model(name))
    merged = jax.eval_shape(merge_branches, abstract)

    def count(variables):
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    assert count(abstract) == index[f"{name}.official.train.json"]["params"]
    assert count(merged) == index[f"{name}.official.deploy.json"]["params"]
