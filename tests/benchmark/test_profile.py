"""A profile finds every operation, and whose it is."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from replk_jax import create_model
from replk_jax.benchmark.network_programs import draw_inputs, network_program
from replk_jax.benchmark.profile import (
    Cost,
    Operation,
    Profile,
    format_profile,
    profile_program,
    read_operations,
)
from replk_jax.benchmark.timing import Program
from tests.helpers import TINY

COMPILED = """
HloModule jit_run, is_scheduled=true

%fused_computation.7 (param_0: f32[2,3], param_1: f32[3]) -> f32[2] {
  %param_0 = f32[2,3]{1,0} parameter(0)
  %param_1 = f32[3]{0} parameter(1)
  %dot.8 = f32[2]{0} dot(%param_0, %param_1), metadata={op_name="jit(run)/Net/a_1/b_2/c/dot_general"}
  ROOT %maximum.1 = f32[2]{0} maximum(%dot.8, %dot.8), metadata={op_name="jit(run)/Net/relu/max"}
}

ENTRY %main.9 (x: f32[2,3], y: f32[3]) -> (f32[2], f32[2]) {
  %x.1 = f32[2,3]{1,0} parameter(0), metadata={op_name="x"}
  %y.1 = f32[3]{0} parameter(1), metadata={op_name="y"}
  %dot_fusion.3 = f32[2]{0} fusion(%x.1, %y.1), kind=kLoop, calls=%fused_computation.7, metadata={op_name="jit(run)/Net/relu/max"}
  %copy.12.clone = f32[2]{0} copy(%dot_fusion.3)
  %bitcast.2 = f32[2]{0} bitcast(%copy.12.clone)
  %custom.5 = (f32[2]{0}, s8[16]{0}) custom-call(%bitcast.2), custom_call_target="f", metadata={op_name="jit(run)/transpose(jvp(Net))/a_1/Net.method/conv/pallas_call" stack_frame_id=3}
  %while.4 = (f32[2]{0}, s32[]) while(%custom.5), condition=%region_1, body=%region_2
  ROOT %tuple.6 = (f32[2]{0}, f32[2]{0}) tuple(%custom.5, %custom.5)
}
"""  # noqa: E501


def test_operations_of_a_compiled_program():
    operations = read_operations(COMPILED)
    product = Operation("dot_fusion", "dot_general", "a_1/b_*/c")
    assert operations["dot_fusion.3"] == product, "the heaviest names a fusion"
    convolution = Operation("custom", "pallas_call", "a_1/conv", backward=True)
    assert operations["custom.5"] == convolution
    moved = Operation("copy", "pallas_call", "a_1/conv", backward=True)
    assert operations["copy.12.clone"] == moved, "it is for what uses it"
    assert operations["while.4"].kernel == "while"
    assert operations["tuple.6"] == Operation("tuple")


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("mode", ["inference", "inference-merged", "training"])
def test_layers_of_a_network(mode, tmp_path):
    """Every layer that computes is found, as often as it runs, and nothing twice."""
    model = create_model(TINY, implementation="xla")
    program = network_program(mode, model, *draw_inputs(model, 2, 32))
    profile = profile_program(program, tmp_path, calls=3)
    costs = {}
    for cost in profile.costs:
        assert cost.seconds >= 0
        assert cost.count == round(cost.count) > 0, "each call runs the same"
        costs.setdefault((cost.operation.layer, cost.operation.backward), []).append(cost)
    merged = mode == "inference-merged"
    branches = ["lkb_reparam"] if merged else ["lkb_origin/conv", "small_conv/conv"]
    for stage in ("stages_0", "stages_1"):
        layers = [f"{stage}/blocks_*/pw1/conv", f"{stage}/blocks_*/pw2/conv"]
        layers += [f"{stage}/blocks_*/large_kernel/{branch}" for branch in branches]
        for layer in layers:
            assert (layer, False) in costs
            assert ((layer, True) in costs) == (mode == "training")
    assert (("optimizer", False) in costs) == (mode == "training")
    # On two threads at most the time of both; a trace has some milliseconds of its own.
    total = sum(cost.seconds for cost in profile.costs)
    assert 0 < total < 20 * profile.seconds + 0.1
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))
    with pytest.raises(ValueError, match="has a trace already; name another folder"):
        profile_program(program, tmp_path)


def test_refuses_other_platforms(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu")])
    with pytest.raises(ValueError, match="on cpu and gpu, not on tpu"):
        profile_program(None, tmp_path)


def test_loops_are_counted_by_what_is_in_them(tmp_path):
    """Ten steps of a loop are ten operations; the loop itself is none."""

    def run(x):
        return jax.lax.fori_loop(0, 10, lambda _, x: jnp.sin(x @ x), x)

    x = jnp.ones((200, 200))
    compiled = jax.jit(run).lower(x).compile()
    program = Program(lambda: compiled(x), compiled_text=compiled.as_text)
    profile = profile_program(program, tmp_path)
    assert not [cost for cost in profile.costs if cost.operation.kernel == "while"]
    (product,) = (cost for cost in profile.costs if cost.operation.primitive == "dot_general")
    assert product.count == 10


def test_text():
    """Sorted by time, shares of the sum, what is left out in one line."""
    operations = [Operation("dot", "dot_general", "a/b"), Operation("dot", "dot_general", "c")]
    costs = [Cost(operations[0], 3e-3, 1), Cost(operations[1], 5e-3, 2)]
    costs.append(Cost(Operation("copy", backward=True), 2e-3, 4))
    lines = format_profile(Profile(0.0125, tuple(costs)), lines=2).splitlines()
    assert [line.split() for line in lines] == [
        ["A", "call", "takes", "12.500", "ms,", "its", "operations", "10.000", "ms."],
        ["ms", "share", "count", "layer"],
        ["5.000", "50.0%", "2", "c"],
        ["3.000", "30.0%", "1", "a/b"],
        ["2.000", "20.0%", "1", "others"],
        ["ms", "share", "count", "operation"],
        ["8.000", "80.0%", "3", "dot", "of", "dot_general"],
        ["2.000", "20.0%", "4", "copy"],
    ]
