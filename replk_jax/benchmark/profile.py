"""Where the time of a network goes: its compiled operations, and the layers they are of.

A trace says how long each operation took, by its name in the compiled program; the text of that
program says what it computes and for which layer.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from replk_jax.benchmark.timing import Program

# Of a trace, by platform: where each operation that has run is an event.
_PLANES = {"cpu": "/host:CPU", "gpu": "/device:GPU"}
# They stand for what is in them, which has times of its own.
_CONTAINERS = ("while", "conditional", "call")
# What a fusion is named after, if it has one; the rest of it is an epilogue.
_HEAVY = ("convolution", "dot", "custom-call", "reduce-window", "select-and-scatter")

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?:\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_STEPS_TO_A_NAME = 3


@dataclasses.dataclass(frozen=True)
class Operation:
    """What an operation of a compiled program is.

    Attributes:
      kernel: its name there without a number, such as "loop_multiply_fusion".
      primitive: JAX's, such as "dot_general"; "" where the compiler does not say. Of a fusion the
        heaviest, or that of its result.
      layer: path in the network, such as "stages_2/blocks_*/pw1/conv": blocks of a stage are
        alike. "" for what belongs to none.
      backward: whether it is of the backward pass.
    """

    kernel: str
    primitive: str = ""
    layer: str = ""
    backward: bool = False


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an operation takes in one call of the program: seconds, and how often it runs."""

    operation: Operation
    seconds: float
    count: float

    def as_dict(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.operation)
        return {**settings, "seconds": self.seconds, "count": self.count}


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of one call goes.

    Attributes:
      seconds: of a call, while it was traced.
      costs: the longest first. On several streams or threads they add up to more than `seconds`.
    """

    seconds: float
    costs: tuple[Cost, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "costs": [cost.as_dict() for cost in self.costs]}


def profile_program(program: Program, folder: Path, calls: int = 5) -> Profile:
    """Traces some calls of a program of XLA's on a CPU or a GPU.

    Args:
      program: with `compiled_text`.
      folder: for the trace, which Perfetto (perfetto_trace.json.gz) and XProf can show.
      calls: traced, one after the other, after one that is not.

    Raises:
      ValueError: another platform, or a folder that has a trace.
    """
    platform = jax.devices()[0].platform
    if platform not in _PLANES:
        raise ValueError(f"Operations are known by their traces on cpu and gpu, not on {platform}.")
    if any(folder.rglob("*.xplane.pb")):
        raise ValueError(f"{folder} has a trace already; name another folder.")
    operations = read_operations(program.compiled_text())
    program.seconds()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls in Python would drown the rest
    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
    try:
        call_seconds = program.seconds(starts=calls)
    finally:
        jax.profiler.stop_trace()
    (trace,) = folder.rglob("*.xplane.pb")
    spent: Counter[Operation] = Counter()
    counts: Counter[Operation] = Counter()
    for name, duration in _events(trace, _PLANES[platform]):
        operation = operations.get(name, Operation(_without_number(name)))
        if operation.kernel not in _CONTAINERS:
            spent[operation] += duration
            counts[operation] += 1
    times = calls * program.calls
    costs = (
        Cost(operation, seconds / times, counts[operation] / times)
        for operation, seconds in spent.most_common()
    )
    return Profile(call_seconds, tuple(costs))


def _events(trace: Path, plane_name: str) -> Iterator[tuple[str, float]]:
    """Name in the program, or else of the kernel, and seconds of all that a device has run."""
    on_gpu = plane_name == _PLANES["gpu"]
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if not plane.name.startswith(plane_name):
            continue
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue  # made from the streams' events
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name if on_gpu else None)
                if name is not None:
                    yield str(name), event.duration_ns / 1e9


def read_operations(text: str) -> dict[str, Operation]:
    """The operations of a compiled program, by name.

    Args:
      text: from `jax.stages.Compiled.as_text`.
    """
    instructions, computations = {}, defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            instruction = _Instruction(found["opcode"], found["rest"])
            instructions[found["name"]] = instruction
            computations[computation].append(instruction)
        elif found := _COMPUTATION.match(line):
            computation = found[1]
    users = defaultdict(list)
    for name, instruction in instructions.items():
        for operand in instruction.operands:
            users[operand].append(name)

    def path_of(name: str, steps: int = _STEPS_TO_A_NAME) -> str:
        """In JAX's program: its own, that of what is in it, or of what uses it."""
        instruction = instructions[name]
        inner = computations[instruction.calls]
        heavy = [each.path for each in inner if each.opcode in _HEAVY]
        roots = [each.path for each in reversed(inner)]
        for path in (*heavy, instruction.path, *roots):
            if path:
                return path
        return next(filter(None, (path_of(user, steps - 1) for user in users[name] if steps)), "")

    return {
        name: _operation(name, instruction.opcode, path_of(name))
        for name, instruction in instructions.items()
    }


class _Instruction:
    """One line of a compiled program, from its opcode on."""

    def __init__(self, opcode: str, rest: str):
        self.opcode = opcode
        arguments, _, attributes = rest.partition("), ")
        self.operands = re.findall(r"%([\w.\-]+)", arguments)
        called = re.search(r"calls=%?([\w.\-]+)", attributes) if opcode == "fusion" else None
        self.calls = called[1] if called else None
        path = re.search(r'op_name="([^"]*)"', attributes)
        self.path = path[1] if path else ""


def _operation(name: str, opcode: str, path: str) -> Operation:
    """By names such as "jit(run)/transpose(jvp(RepLKNet))/stages_0/blocks_1/pw1/conv/dot_general".

    Transformations and the network have parentheses about them or capitals, methods a point.
    """
    *scopes, primitive = path.split("/")
    layers = [each for each in scopes if re.fullmatch(r"[a-z][a-z0-9_]*", each)]
    inner = [re.sub(r"_\d+$", "_*", each) for each in layers[1:]]
    kernel = opcode if opcode in _CONTAINERS else _without_number(name)
    return Operation(kernel, primitive, "/".join([*layers[:1], *inner]), "transpose(" in path)


def _without_number(name: str) -> str:
    return re.sub(r"([._](\d+|clone))+$", "", name)


def format_profile(profile: Profile, lines: int = 15) -> str:
    """The costs as text: by layer and by operation, `lines` of each."""
    total = sum(cost.seconds for cost in profile.costs)

    def layer(operation: Operation) -> str:
        return f"{operation.layer or '(none)'}{' backward' * operation.backward}"

    def kind(operation: Operation) -> str:
        return " of ".join(filter(None, (operation.kernel, operation.primitive)))

    return "\n".join(
        [
            f"A call takes {1e3 * profile.seconds:.3f} ms, its operations {1e3 * total:.3f} ms.",
            *_table("layer", _grouped(profile, layer), total, lines),
            *_table("operation", _grouped(profile, kind), total, lines),
        ]
    )


def _grouped(
    profile: Profile, name: Callable[[Operation], str]
) -> Mapping[str, tuple[float, float]]:
    """Seconds and counts by a name of the operations, the longest first."""
    groups: dict[str, tuple[float, float]] = {}
    for cost in profile.costs:
        seconds, count = groups.get(name(cost.operation), (0.0, 0.0))
        groups[name(cost.operation)] = seconds + cost.seconds, count + cost.count
    return dict(sorted(groups.items(), key=lambda item: -item[1][0]))


def _table(
    head: str, groups: Mapping[str, tuple[float, float]], total: float, lines: int
) -> Iterator[str]:
    yield f"{'ms':>10}{'share':>8}{'count':>7}  {head}"
    rows = list(groups.items())
    for name, (seconds, count) in rows[:lines]:
        yield f"{1e3 * seconds:10.3f}{seconds / total:8.1%}{count:7.0f}  {name}"
    if rest := sum(seconds for _, (seconds, _) in rows[lines:]):
        yield f"{1e3 * rest:10.3f}{rest / total:8.1%}{'':7}  {len(rows) - lines} others"
