"""A profile finds every operation, and whose it is."""

import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from replk_jax import create_model
from replk_jax.benchmark import profile as profiling
from replk_jax.benchmark.network_programs import draw_inputs
from replk_jax.benchmark.profile import (
    Cost,
    Operation,
    Profile,
    expect_no_trace,
    format_profile,
    layer_labels,
    profile_network,
    profile_program,
    read_operations,
)
from replk_jax.benchmark.timing import Program
from replk_jax.models import registry
from replk_jax.models.variables import abstract_variables
from tests.helpers import ONE_STAGE

# Of a GPU's kind: XLA's text has more than this, in these forms.
COMPILED = """
HloModule jit_run, is_scheduled=true

%fused_computation.7 (param_0: f32[2,3], param_1: f32[3]) -> f32[2] {
  %param_0 = f32[2,3]{1,0} parameter(0)
  %param_1 = f32[3]{0} parameter(1)
  %dot.8 = f32[2]{0} dot(%param_0, %param_1), metadata={op_name="jit(run)/Net/a/b_2/c/dot_general"}
  ROOT %maximum.1 = f32[2]{0} maximum(%dot.8, %dot.8), metadata={op_name="jit(run)/Net/relu/max"}
}

%fused_relu (param_0.2: f32[2]) -> f32[2] {
  %param_0.2 = f32[2]{0} parameter(0)
  %multiply.1 = f32[2]{0} multiply(%param_0.2, %param_0.2), metadata={op_name="jit(run)/jvp(Net)/a/b_1/mul;jit(run)/pad"}
  ROOT %maximum.2 = f32[2]{0} maximum(%multiply.1, %multiply.1), metadata={op_name="jit(run)/jvp(Net)/max"}
}

%async_computation (param_0.3: f32[2]) -> f32[2] {
  %param_0.3 = f32[2]{0} parameter(0)
  ROOT %transpose.1 = f32[2]{0} transpose(%param_0.3), metadata={op_name="jit(run)/Net/a/transpose"}
}

ENTRY %main.9 (x: f32[2,3], y: f32[3]) -> (f32[2], f32[2]) {
  %x.1 = f32[2,3]{1,0} parameter(0), metadata={op_name="x"}
  %y.1 = f32[3]{0} parameter(1), metadata={op_name="variables[\\'params\\'][\\'a\\'][\\'b_2\\'][\\'c\\'][\\'kernel\\']"}
  %copy.3 = f32[3]{0} copy(%y.1), metadata={op_name="variables[\\'params\\'][\\'a\\'][\\'b_2\\'][\\'c\\'][\\'kernel\\']"}
  %dot_fusion.3 = f32[2]{0} fusion(%x.1, %copy.3), kind=kLoop, calls=%fused_computation.7, metadata={op_name="jit(run)/Net/relu/max"}
  %loop_fusion_2 = f32[2]{0} fusion(%dot_fusion.3), kind=kLoop, calls=%fused_relu, metadata={op_name="jit(run)/jvp(Net)/max"}
  %fusion-start = ((f32[2]{0}), f32[2]{0}, s32[]) async-start(%loop_fusion_2), calls=%async_computation
  %fusion-done = f32[2]{0} async-done(%fusion-start)
  %copy.12.clone = f32[2]{0} copy(%fusion-done)
  %bitcast.2 = f32[2]{0} bitcast(%copy.12.clone)
  %custom.5 = (f32[2]{0}, s8[16]{0}) custom-call(%bitcast.2), custom_call_target="f", metadata={op_name="jit(run)/transpose(jvp(Net))/a/Net.method/while/body/a/jit(f)/pallas_call" stack_frame_id=3}
  %loss.1 = f32[2]{0} add(%bitcast.2, %bitcast.2), metadata={op_name="jit(run)/transpose(jvp(loss))/sub"}
  %while.4 = (f32[2]{0}, s32[]) while(%custom.5), condition=%region_1, body=%region_2
  ROOT %tuple.6 = (f32[2]{0}, f32[2]{0}) tuple(%custom.5, %loss.1)
}
"""  # noqa: E501
LABELS = {"a": "a", "a/b_1": "a/b_1..", "a/b_2": "a/b_1..", "a/b_2/c": "a/b_1../c", "loss": "loss"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The heaviest of what is in a fusion names it.
        ("dot_fusion.3", Operation("dot_fusion", "fusion", "dot_general", "a/b_1../c")),
        # What has a layer comes before what has none; the first of joined names.
        ("loop_fusion_2", Operation("loop_fusion", "fusion", "mul", "a/b_1..")),
        # Both halves of what runs beside other things.
        ("fusion-start", Operation("fusion-start", "async-start", "transpose", "a")),
        ("fusion-done", Operation("fusion-done", "async-done", "transpose", "a")),
        # A copy of a parameter, and one that is made for what uses it.
        ("copy.3", Operation("copy", "copy", "", "a/b_1../c")),
        ("copy.12.clone", Operation("copy", "copy", "", "a", backward=True)),
        # The scopes of methods, control flow and functions are none of the network.
        ("custom.5", Operation("custom", "custom-call", "pallas_call", "a", backward=True)),
        ("loss.1", Operation("loss", "add", "sub", "loss", backward=True)),
        ("while.4", Operation("while", "while")),
        ("tuple.6", Operation("tuple", "tuple")),
    ],
)
def test_operations_of_a_compiled_program(name, expected):
    assert read_operations(COMPILED, LABELS)[name] == expected


def test_many_operations_without_names():
    """Layers of operations that all use one another; found step by step, not path by path."""
    lines = ["HloModule m", "ENTRY %main (x: f32[2]) -> f32[2] {", "  %n0_0 = f32[2] parameter(0)"]
    wide, deep = 100, 6
    for layer in range(1, deep):
        operands = ", ".join(f"%n{layer - 1}_{i}" for i in range(wide if layer > 1 else 1))
        lines += [f"  %n{layer}_{i} = f32[2] add({operands})" for i in range(wide)]
    operations = read_operations("\n".join([*lines, "}"]), {})
    assert len(operations) == 1 + (deep - 1) * wide


def test_labels():
    """Alike are siblings with numbers and the same parameters, wherever they stand."""

    def params(name):
        return abstract_variables(create_model(registry.ARCHITECTURES[name]))["params"]

    labels = layer_labels(params("replknet_31b"))
    assert labels["stages_2"] == "stages_2"
    assert labels["stages_2/blocks_10/pw1/conv"] == "stages_2/blocks_0../pw1/conv"
    assert labels["stages_2/blocks_11/pw1/conv"] == "stages_2/blocks_1../pw1/conv"
    labels = layer_labels(params("repvgg_a0"))
    assert labels["stage3_0"] == "stage3_0", "it is narrower at its beginning"
    assert labels["stage3_13/rbr_1x1"] == "stage3_1../rbr_1x1"
    labels = layer_labels(params("mobilenet_v2_13_reparam"))
    assert len({labels[f"layer2_1/conv_{i}"] for i in range(3)}) == 3, "of different shapes"


@pytest.mark.parametrize("mode", ["inference", "inference-merged", "training"])
def test_layers_of_a_network(mode, tmp_path):
    """Every layer that computes is found, and all the time that the trace has for operations."""
    model = create_model(ONE_STAGE, implementation="xla")
    profile = profile_network(mode, model, *draw_inputs(model, 2, 32), tmp_path, calls=3)
    costs = {(cost.operation.layer, cost.operation.backward) for cost in profile.costs}
    assert all(cost.count == round(cost.count) > 0 for cost in profile.costs)
    merged = mode == "inference-merged"
    branches = ["lkb_reparam"] if merged else ["lkb_origin/conv", "small_conv/conv"]
    for part in ("pw1/conv", *(f"large_kernel/{branch}" for branch in branches)):
        layer = f"stages_0/blocks_0/{part}"
        assert (layer, False) in costs
        assert ((layer, True) in costs) == (mode == "training")
    assert (("optimizer", False) in costs) == (mode == "training")
    assert (("loss", False) in costs) == (mode == "training")
    assert profile.unknown == 0
    assert profile.seconds > 0
    microseconds, containers = traced(tmp_path)
    total = sum(cost.seconds for cost in profile.costs)
    assert total == pytest.approx((microseconds - containers) / 3e6, rel=0.1)
    with pytest.raises(ValueError, match="already contains a trace; name another folder"):
        profile_network(mode, model, {}, jnp.zeros(()), tmp_path)


def traced(folder):
    """Microseconds of all operations in a trace, and of those that contain others.

    From the file for Perfetto, where the shortest are rounded: up to some per cent of the sum.
    """
    (file,) = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    operations = [event for event in events if "hlo_op" in event.get("args", {})]
    assert operations
    contain = ("while", "cond", "call")
    return tuple(
        sum(event["dur"] for event in operations if event["name"].startswith(names))
        for names in ("", contain)
    )


def test_what_contains_others_is_none(tmp_path):
    """Ten steps of a loop with a branch are ten products; the loop and the branch are none."""

    def run(x):
        def step(i, x):
            return jax.lax.cond(i % 2 == 0, lambda x: jnp.sin(x @ x), lambda x: x @ x, x)

        return jax.lax.fori_loop(0, 10, step, x)

    x = jnp.ones((200, 200))
    compiled = jax.jit(run).lower(x).compile()

    def twice():
        return [compiled(x), compiled(x)]

    program = Program(twice, calls=2, compiled_text=compiled.as_text)
    profile = profile_program(program, {}, tmp_path)
    opcodes = {cost.operation.opcode for cost in profile.costs}
    assert not opcodes & {"while", "conditional", "call"}
    products = [cost for cost in profile.costs if cost.operation.primitive == "dot_general"]
    assert sum(cost.count for cost in products) == 10
    microseconds, containers = traced(tmp_path)
    assert containers > 0
    total = sum(cost.seconds for cost in profile.costs)
    assert total == pytest.approx((microseconds - containers) / 10e6, rel=0.1)


def event(name, nanoseconds, **stats):
    return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=stats.items())


def test_events_of_a_gpu():
    """Kernels and copies on all streams, once; neither the host's events nor what is derived."""
    kernel = event("ampere_gemm_3", 5, hlo_op="dot.1", kernel_details="regs:8")
    lines = {
        "Stream #13(Compute)": [kernel, event("MemcpyD2D", 3, memcpy_details="size:4")],
        "CUPTI overhead": [event("loop_add_4", 2, hlo_op="add.4"), event("Buffer Flush", 9)],
        "XLA Ops": [event("dot.1", 5, hlo_op="dot.1")],
    }
    planes = {
        "/host:CPU": {"python": [event("dot.1", 7, hlo_op="dot.1")]},
        "/device:GPU:0": lines,
    }
    planes = [
        SimpleNamespace(
            name=name, lines=[SimpleNamespace(name=line, events=each) for line, each in all.items()]
        )
        for name, all in planes.items()
    ]
    events = list(profiling._events(planes, "gpu"))
    assert events == [
        ("dot.1", "ampere_gemm_3", 5e-9),
        ("MemcpyD2D", "MemcpyD2D", 3e-9),
        ("add.4", "loop_add_4", 2e-9),
    ]
    operations = {"dot.1": Operation("dot", "dot"), "add.4": Operation("call", "call")}
    costs = list(profiling._costs(events, operations, 2))
    assert [(cost.operation.kernel, cost.seconds, cost.count) for cost in costs] == [
        ("ampere_gemm", 2.5e-9, 0.5),
        ("MemcpyD2D", 1.5e-9, 0.5),
        ("loop_add", 1e-9, 0.5),
    ]
    np.testing.assert_allclose(Profile(1.0, tuple(costs)).unknown, 0.3)


def test_mistakes(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(
        NotADirectoryError, match="file is not a folder, so no trace can be written to it"
    ):
        expect_no_trace(file / "inference")
    program = Program(lambda: 0, lambda _: None, compiled_text=lambda: "")
    with pytest.raises(ValueError, match="contains no operation of the program"):
        profile_program(program, {}, tmp_path / "trace")
    with pytest.raises(ValueError, match="text of the compiled program"):
        profile_program(Program(lambda: 0), {}, tmp_path / "other")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu")])
    with pytest.raises(ValueError, match="on cpu and gpu, not on tpu"):
        profile_program(program, {}, tmp_path)


def test_text():
    """Sorted by time, shares of the sum, what is left out in one line."""
    costs = [
        Cost(Operation("dot", "dot", "dot_general", "a/b"), 3e-3, 1),
        Cost(Operation("dot", "dot", "dot_general", "c"), 5e-3, 2),
        Cost(Operation("copy", "", backward=True, kernel="memcpy"), 2e-3, 4),
    ]
    lines = format_profile(Profile(0.0125, tuple(costs)), lines=2).splitlines()
    head = "A call takes 12.500 ms, its operations 10.000 ms. 20.0% belongs to no instruction"
    assert lines[0].startswith(head)
    assert [line.split() for line in lines[1:]] == [
        ["ms", "share", "count", "layer"],
        ["5.000", "50.0%", "2", "c"],
        ["3.000", "30.0%", "1", "a/b"],
        ["2.000", "20.0%", "1", "others"],
        ["ms", "share", "count", "operation"],
        ["8.000", "80.0%", "3", "dot", "of", "dot_general"],
        ["2.000", "20.0%", "4", "memcpy"],
    ]
