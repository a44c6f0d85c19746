"""Profiles a network: the time of each compiled operation, attributed to layers.

A trace contains the duration of each operation under its name in the compiled program. The text of
the program contains what the operation computes, and for which layer.
"""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from replk_jax.benchmark.network_programs import SCOPES, network_program
from replk_jax.benchmark.timing import Program
from replk_jax.models.network import Network
from replk_jax.reparam import reparameterize

# By platform: the plane of a trace that contains an event for each executed operation.
_PLANES = {"cpu": "/host:CPU", "gpu": "/device:GPU"}
# Lines of a GPU plane that repeat the events of its streams in another form.
_DERIVED_LINES = (
    "Steps",
    "XLA Modules",
    "XLA Ops",
    "XLA TraceMe",
    "Framework Name Scope",
    "Framework Ops",
    "Source code",
)
# A GPU event is work of the GPU if it has one of these statistics.
_WORK_STATS = {"hlo_op", "kernel_details", "memcpy_details", "memset_details"}
# On a CPU these opcodes are events, and so are the operations inside of them.
_CONTAINERS = ("while", "conditional", "call")
# A fusion is attributed to its operation with one of these opcodes, if it has one.
_HEAVY = ("convolution", "dot", "custom-call", "reduce-window", "select-and-scatter")

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?:\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap)\((.*)\)")
_ARGUMENT = re.compile(r"\[\\?'([^'\\]+)\\?'\]")
_MAX_USER_DISTANCE = 3
_MAX_NAME_LENGTH = 60


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a compiled program.

    Attributes:
      instruction: its name in the program without the number, such as "loop_multiply_fusion".
      opcode: of XLA, such as "fusion"; "" if the program has no such instruction.
      primitive: of JAX, such as "dot_general"; "" if unknown. For a fusion, the primitive of its
        most expensive operation, or else of its result.
      layer: of the network, a label of `layer_labels`; "" if it belongs to no layer.
      backward: whether it belongs to the backward pass.
      kernel: the name of the GPU kernel without the number; "" on a CPU.
    """

    instruction: str
    opcode: str = ""
    primitive: str = ""
    layer: str = ""
    backward: bool = False
    kernel: str = ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The time of an operation in one call of the program, and how often it runs."""

    operation: Operation
    seconds: float
    count: float

    def as_dict(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.operation)
        return {**settings, "seconds": self.seconds, "count": self.count}


@dataclasses.dataclass(frozen=True)
class Profile:
    """The times of the operations in one call.

    Attributes:
      seconds: the duration of a call while it was traced.
      costs: sorted, the longest first. With several streams or threads, their sum exceeds
        `seconds`.
    """

    seconds: float
    costs: tuple[Cost, ...]

    @property
    def unknown(self) -> float:
        """The share of the costs that belong to no instruction of the program."""
        unknown = sum(cost.seconds for cost in self.costs if not cost.operation.opcode)
        return unknown / sum(cost.seconds for cost in self.costs)

    def as_dict(self) -> dict[str, Any]:
        costs = [cost.as_dict() for cost in self.costs]
        return {"seconds": self.seconds, "unknown": self.unknown, "costs": costs}


def layer_labels(params: Mapping[str, Any]) -> dict[str, str]:
    """The label of each module with parameters, by the path of the module.

    Siblings with numbered names and parameters of the same shapes share a label: the name of the
    first, followed by two dots, such as "stages_2/blocks_1../pw1".

    Args:
      params: the parameters of a network, or their shapes.
    """
    labels = {}

    def visit(tree: Mapping[str, Any], path: tuple[str, ...], label: tuple[str, ...]) -> None:
        groups = defaultdict(list)
        for name, child in tree.items():
            if isinstance(child, Mapping):
                leaves = jax.tree_util.tree_leaves_with_path(child)
                shapes = tuple((jax.tree_util.keystr(keys), leaf.shape) for keys, leaf in leaves)
                groups[re.sub(r"_\d+$", "_", name), shapes].append(name)
        for names in groups.values():
            first = min(names, key=lambda name: (len(name), name))
            group_label = (*label, first + ".." * (len(names) > 1))
            for name in names:
                labels["/".join((*path, name))] = "/".join(group_label)
                visit(tree[name], (*path, name), group_label)

    visit(params, (), ())
    return labels


def expect_no_trace(folder: Path) -> None:
    """Checks that a trace can be written to a folder.

    Raises:
      ValueError: the folder already contains a trace.
      NotADirectoryError: the path, or a parent of it, is not a folder.
    """
    for each in (folder, *folder.parents):
        if each.exists() and not each.is_dir():
            raise NotADirectoryError(f"{each} is not a folder, so no trace can be written to it.")
    if any(folder.rglob("*.xplane.pb")):
        raise ValueError(f"{folder} already contains a trace; name another folder.")


def profile_network(
    mode: str, model: Network, variables: Any, images: jax.Array, folder: Path, calls: int = 5
) -> Profile:
    """Profiles a network in one of `MODES`.

    Args:
      mode, model, variables, images: as in `network_program`.
      folder, calls: as in `profile_program`.

    Raises:
      ValueError, NotADirectoryError: as in `profile_program`.
    """
    expect_no_trace(folder)
    program = network_program(mode, model, variables, images, traceable=True)
    merged = mode == "inference-merged"
    params = (jax.eval_shape(reparameterize, variables) if merged else variables)["params"]
    labels = layer_labels(params) | {scope: scope for scope in SCOPES}
    return profile_program(program, labels, folder, calls)


def profile_program(
    program: Program, labels: Mapping[str, str], folder: Path, calls: int = 5
) -> Profile:
    """Profiles a program of XLA on a CPU or GPU.

    Args:
      program: with `compiled_text`.
      labels: the layer labels of the scopes of its operations, as from `layer_labels`.
      folder: for the trace, which Perfetto (perfetto_trace.json.gz) and XProf can display.
      calls: number of consecutive calls to trace, after one call without a trace.

    Raises:
      ValueError: an unsupported platform, a program without text, a folder that contains a trace,
        or a trace without operations of the program.
      NotADirectoryError: as in `expect_no_trace`.
    """
    platform = jax.devices()[0].platform
    if platform not in _PLANES:
        raise ValueError(f"Profiles are supported on cpu and gpu, not on {platform}.")
    expect_no_trace(folder)
    text = program.compiled_text()
    if text is None:
        raise ValueError("A profile needs the text of the compiled program, and XLA returns none.")
    operations = read_operations(text, labels)
    program.seconds()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python calls would dominate the trace
    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
    try:
        call_seconds = program.seconds(starts=calls)
    finally:
        jax.profiler.stop_trace()
    (trace,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    costs = tuple(_costs(_events(planes, platform), operations, calls * program.calls))
    if not costs:
        raise ValueError(f"The trace in {folder} contains no operation of the program.")
    return Profile(call_seconds, costs)


def _costs(
    events: Iterable[tuple[str, str, float]], operations: Mapping[str, Operation], calls: int
) -> Iterator[Cost]:
    """The costs of one call, the longest first."""
    spent: defaultdict[Operation, float] = defaultdict(float)
    counts: Counter[Operation] = Counter()
    for name, kernel, seconds in events:
        operation = operations.get(name, Operation(_without_number(name)))
        if not kernel and operation.opcode in _CONTAINERS:
            continue
        operation = dataclasses.replace(operation, kernel=_without_number(kernel))
        spent[operation] += seconds
        counts[operation] += 1
    for operation, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        yield Cost(operation, seconds / calls, counts[operation] / calls)


def _events(planes: Iterable[Any], platform: str) -> Iterator[tuple[str, str, float]]:
    """The executed operations: (name in the program, GPU kernel or "", seconds)."""
    on_gpu = platform == "gpu"
    for plane in planes:
        if not plane.name.startswith(_PLANES[platform]):
            continue
        for line in plane.lines:
            if on_gpu and line.name in _DERIVED_LINES:
                continue
            for event in line.events:
                stats = dict(event.stats)
                if on_gpu and _WORK_STATS & stats.keys():
                    name = str(stats.get("hlo_op", event.name))
                    yield name, event.name, event.duration_ns / 1e9
                elif not on_gpu and "hlo_op" in stats:
                    yield str(stats["hlo_op"]), "", event.duration_ns / 1e9


def read_operations(text: str, labels: Mapping[str, str]) -> dict[str, Operation]:
    """The operations of a compiled program, by name.

    Args:
      text: from `jax.stages.Compiled.as_text`.
      labels: the layer labels of scopes such as "stages_0/blocks_1", as from `layer_labels`.
    """
    instructions, computations = {}, defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            instruction = _Instruction(found["opcode"], found["rest"], labels)
            instructions[found["name"]] = instruction
            computations[computation].append(instruction)
        elif found := _COMPUTATION.match(line):
            computation = found[1]
    users = defaultdict(list)
    for name, instruction in instructions.items():
        for operand in instruction.operands:
            users[operand].append(name)

    def origin_of(name: str) -> "_Origin | None":
        """The origin of an instruction.

        Candidates in order: the heavy operations inside of it, itself, the other operations inside
        of it, and for an asynchronous "-done" its "-start". The first with a layer wins.
        """
        instruction = instructions[name]
        inner = computations[instruction.calls]
        found = [each.origin for each in inner if each.opcode in _HEAVY]
        found += [instruction.origin, *(each.origin for each in reversed(inner))]
        if instruction.opcode.endswith("-done"):
            found += [origin_of(each) for each in instruction.operands if each in instructions]
        found = [each for each in found if each]
        return next((each for each in found if each.layer), found[0] if found else None)

    def origin_of_user(name: str) -> "_Origin | None":
        """The origin of the nearest instruction that uses its result, without the primitive."""
        seen, frontier = {name}, [name]
        for _ in range(_MAX_USER_DISTANCE):
            frontier = list(dict.fromkeys(itertools.chain(*(users[each] for each in frontier))))
            frontier = [each for each in frontier if each not in seen]
            seen.update(frontier)
            for each in frontier:
                if found := origin_of(each):
                    return dataclasses.replace(found, primitive="")
        return None

    return {
        name: Operation(
            _without_number(name),
            instruction.opcode,
            **dataclasses.asdict(origin_of(name) or origin_of_user(name) or _Origin()),
        )
        for name, instruction in instructions.items()
    }


@dataclasses.dataclass(frozen=True)
class _Origin:
    """The part of the JAX program that an instruction was compiled from."""

    primitive: str = ""
    layer: str = ""
    backward: bool = False


class _Instruction:
    """A line of a compiled program, without the name of its result."""

    def __init__(self, opcode: str, rest: str, labels: Mapping[str, str]):
        self.opcode = opcode
        arguments, _, attributes = rest.partition("), ")
        self.operands = re.findall(r"%([\w.\-]+)", arguments)
        called = re.search(r"calls=%?([\w.\-]+)", attributes)
        self.calls = called[1] if called else None
        path = re.search(r'op_name="([^"]*)"', attributes)
        self.origin = _origin(path[1], labels) if path else None


def _origin(path: str, labels: Mapping[str, str]) -> _Origin:
    """Parses "jit(run)/transpose(jvp(RepLKNet))/stages_0/blocks_1/pw1/conv/dot_general".

    Between the scopes of modules there are scopes of methods and of control flow. A parameter has
    the name of an argument: "variables['params']['stem_0']['conv']['kernel']".
    """
    path, _, _ = path.partition(";")  # several paths may be joined; the first is used
    if keys := _ARGUMENT.findall(path):
        return _Origin(layer=labels.get("/".join(keys[1:-1]), ""))
    module, backward = "", False
    *scopes, last = path.split("/")
    for scope in scopes:
        backward |= scope.startswith("transpose(")
        while transformed := _TRANSFORMED.fullmatch(scope):
            scope = transformed[1]
        inner = f"{module}/{scope}" if module else scope
        if inner in labels:
            module = inner
    primitive = last if re.fullmatch(r"\w+", last) else ""
    return _Origin(primitive, labels.get(module, ""), backward)


def _without_number(name: str) -> str:
    return re.sub(r"([._](\d+|clone))+$", "", name)


def format_profile(profile: Profile, lines: int = 15) -> str:
    """The costs as two tables of up to `lines` rows: by layer and by operation."""
    total = sum(cost.seconds for cost in profile.costs)

    def layer(operation: Operation) -> str:
        return f"{operation.layer or '(none)'}{' backward' * operation.backward}"

    def kind(operation: Operation) -> str:
        name = (operation.kernel or operation.instruction)[:_MAX_NAME_LENGTH]
        return " of ".join(filter(None, (name, operation.primitive)))

    head = f"A call takes {1e3 * profile.seconds:.3f} ms, its operations {1e3 * total:.3f} ms."
    if profile.unknown:
        head += f" {profile.unknown:.1%} belongs to no instruction of the program."
    return "\n".join(
        [
            head,
            *_table("layer", _grouped(profile, layer), total, lines),
            *_table("operation", _grouped(profile, kind), total, lines),
        ]
    )


def _grouped(
    profile: Profile, name: Callable[[Operation], str]
) -> Mapping[str, tuple[float, float]]:
    """(seconds, count) by the name of the operations, the longest first."""
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
