"""Where the time of a network goes: its compiled operations, and the layers they are of.

A trace says how long each operation took, by its name in the compiled program; the text of that
program says what it computes and for which layer.
"""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from replk_jax.benchmark.network_programs import SCOPES, network_program
from replk_jax.benchmark.timing import Program
from replk_jax.reparam import reparameterize

# Of a trace, by platform: where each operation that has run is an event.
_PLANES = {"cpu": "/host:CPU", "gpu": "/device:GPU"}
# Lines of a GPU's plane that a reader of traces makes of the streams' events, once more.
_DERIVED = (
    "Steps",
    "XLA Modules",
    "XLA Ops",
    "XLA TraceMe",
    "Framework Name Scope",
    "Framework Ops",
    "Source code",
)
# What the events of a GPU have that are work of it.
_WORK = {"hlo_op", "kernel_details", "memcpy_details", "memset_details"}
# On a CPU they are events too, beside those of what is in them.
_CONTAINERS = ("while", "conditional", "call")
# What a fusion is named after, if it has one; the rest of it is what comes before and after.
_HEAVY = ("convolution", "dot", "custom-call", "reduce-window", "select-and-scatter")

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?:\(.*?\)|\S+) (?P<opcode>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap)\((.*)\)")
_ARGUMENT = re.compile(r"\[\\?'([^'\\]+)\\?'\]")
_STEPS_TO_A_NAME = 3
_WIDEST = 60


@dataclasses.dataclass(frozen=True)
class Operation:
    """What an operation of a compiled program is.

    Attributes:
      instruction: its name there without a number, such as "loop_multiply_fusion".
      opcode: XLA's, such as "fusion"; "" where the program has no such instruction.
      primitive: JAX's, such as "dot_general"; "" where the compiler does not say. Of a fusion the
        heaviest, or that of its result.
      layer: of the network, as `layer_labels` has it; "" for what belongs to none.
      backward: whether it is of the backward pass.
      kernel: what a GPU calls it, without a number; "" on a CPU.
    """

    instruction: str
    opcode: str = ""
    primitive: str = ""
    layer: str = ""
    backward: bool = False
    kernel: str = ""


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

    @property
    def unknown(self) -> float:
        """The share of the costs of which the program has no instruction."""
        unknown = sum(cost.seconds for cost in self.costs if not cost.operation.opcode)
        return unknown / sum(cost.seconds for cost in self.costs)

    def as_dict(self) -> dict[str, Any]:
        costs = [cost.as_dict() for cost in self.costs]
        return {"seconds": self.seconds, "unknown": self.unknown, "costs": costs}


def layer_labels(params: Mapping[str, Any]) -> dict[str, str]:
    """By what name to tell of each module that has parameters, by its path.

    Numbered modules beside each other that have the same parameters, of the same shapes, are
    alike: all are told of by the first and two points, "stages_2/blocks_1../pw1".

    Args:
      params: a network's parameters, or their shapes.
    """
    labels = {}

    def visit(tree: Mapping[str, Any], path: tuple[str, ...], label: tuple[str, ...]) -> None:
        alike = defaultdict(list)
        for name, child in tree.items():
            if isinstance(child, Mapping):
                leaves = jax.tree_util.tree_leaves_with_path(child)
                shapes = tuple((jax.tree_util.keystr(where), leaf.shape) for where, leaf in leaves)
                alike[re.sub(r"_\d+$", "_", name), shapes].append(name)
        for names in alike.values():
            first = min(names, key=lambda name: (len(name), name))
            told = (*label, first + ".." * (len(names) > 1))
            for name in names:
                labels["/".join((*path, name))] = "/".join(told)
                visit(tree[name], (*path, name), told)

    visit(params, (), ())
    return labels


def expect_no_trace(folder: Path) -> None:
    """Checks that a trace can be written to a folder.

    Raises:
      ValueError: it has one already.
      NotADirectoryError: it is no folder.
    """
    for each in (folder, *folder.parents):
        if each.exists() and not each.is_dir():
            raise NotADirectoryError(f"{each} is no folder to write a trace to.")
    if any(folder.rglob("*.xplane.pb")):
        raise ValueError(f"{folder} has a trace already; name another folder.")


def profile_network(
    mode: str, model: nn.Module, variables: Any, images: jax.Array, folder: Path, calls: int = 5
) -> Profile:
    """Traces a network, as `profile_program` does, and as `network_program` has it."""
    expect_no_trace(folder)
    program = network_program(mode, model, variables, images, traceable=True)
    merged = mode == "inference-merged"
    params = (jax.eval_shape(reparameterize, variables) if merged else variables)["params"]
    labels = layer_labels(params) | {scope: scope for scope in SCOPES}
    return profile_program(program, labels, folder, calls)


def profile_program(
    program: Program, labels: Mapping[str, str], folder: Path, calls: int = 5
) -> Profile:
    """Traces some calls of a program of XLA's on a CPU or a GPU.

    Args:
      program: with `compiled_text`.
      labels: names to tell of layers by, for the scopes that its operations are in.
      folder: for the trace, which Perfetto (perfetto_trace.json.gz) and XProf can show.
      calls: traced, one after the other, after one that is not.

    Raises:
      ValueError: another platform, a folder that has a trace, or nothing to be found in the trace.
      NotADirectoryError: as `expect_no_trace`.
    """
    platform = jax.devices()[0].platform
    if platform not in _PLANES:
        raise ValueError(f"Operations are known by their traces on cpu and gpu, not on {platform}.")
    expect_no_trace(folder)
    text = program.compiled_text()
    if text is None:
        raise ValueError("XLA gives no text of the compiled program, which a profile needs.")
    operations = read_operations(text, labels)
    program.seconds()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls in Python would drown the rest
    jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
    try:
        call_seconds = program.seconds(starts=calls)
    finally:
        jax.profiler.stop_trace()
    (trace,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    costs = tuple(_costs(_events(planes, platform), operations, calls * program.calls))
    if not costs:
        raise ValueError(f"The trace in {folder} has no operation of the program.")
    return Profile(call_seconds, costs)


def _costs(
    events: Iterable[tuple[str, str, float]], operations: Mapping[str, Operation], calls: int
) -> Iterator[Cost]:
    """Of one call, the longest first."""
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
    """Of what has run: the name in the program, on a GPU that of the kernel, and seconds."""
    on_gpu = platform == "gpu"
    for plane in planes:
        if not plane.name.startswith(_PLANES[platform]):
            continue
        for line in plane.lines:
            if on_gpu and line.name in _DERIVED:
                continue
            for event in line.events:
                stats = dict(event.stats)
                if on_gpu and _WORK & stats.keys():
                    name = str(stats.get("hlo_op", event.name))
                    yield name, event.name, event.duration_ns / 1e9
                elif not on_gpu and "hlo_op" in stats:
                    yield str(stats["hlo_op"]), "", event.duration_ns / 1e9


def read_operations(text: str, labels: Mapping[str, str]) -> dict[str, Operation]:
    """The operations of a compiled program, by name.

    Args:
      text: from `jax.stages.Compiled.as_text`.
      labels: names to tell of layers by, for scopes such as "stages_0/blocks_1".
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
        """Its own, that of what is in it, or for the second half of a pair that of the first."""
        instruction = instructions[name]
        inner = computations[instruction.calls]
        found = [each.origin for each in inner if each.opcode in _HEAVY]
        found += [instruction.origin, *(each.origin for each in reversed(inner))]
        if instruction.opcode.endswith("-done"):
            found += [origin_of(each) for each in instruction.operands if each in instructions]
        found = [each for each in found if each]
        return next((each for each in found if each.layer), found[0] if found else None)

    def origin_of_use(name: str) -> "_Origin | None":
        """Of the nearest instruction for which it is made, if that is near."""
        seen, nearest = {name}, [name]
        for _ in range(_STEPS_TO_A_NAME):
            nearest = list(dict.fromkeys(itertools.chain(*(users[each] for each in nearest))))
            nearest = [each for each in nearest if each not in seen]
            seen.update(nearest)
            for each in nearest:
                if found := origin_of(each):
                    return dataclasses.replace(found, primitive="")
        return None

    return {
        name: Operation(
            _without_number(name),
            instruction.opcode,
            **dataclasses.asdict(origin_of(name) or origin_of_use(name) or _Origin()),
        )
        for name, instruction in instructions.items()
    }


@dataclasses.dataclass(frozen=True)
class _Origin:
    """What an instruction is of in JAX's program."""

    primitive: str = ""
    layer: str = ""
    backward: bool = False


class _Instruction:
    """One line of a compiled program, from its opcode on."""

    def __init__(self, opcode: str, rest: str, labels: Mapping[str, str]):
        self.opcode = opcode
        arguments, _, attributes = rest.partition("), ")
        self.operands = re.findall(r"%([\w.\-]+)", arguments)
        called = re.search(r"calls=%?([\w.\-]+)", attributes)
        self.calls = called[1] if called else None
        path = re.search(r'op_name="([^"]*)"', attributes)
        self.origin = _origin(path[1], labels) if path else None


def _origin(path: str, labels: Mapping[str, str]) -> _Origin:
    """What "jit(run)/transpose(jvp(RepLKNet))/stages_0/blocks_1/pw1/conv/dot_general" says.

    Between the scopes of the network are those of its methods and of control flow. A parameter is
    named as an argument is, "variables['params']['stem_0']['conv']['kernel']".
    """
    path, _, _ = path.partition(";")  # of several that were joined the first
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
    """The costs as text: by layer and by operation, `lines` of each."""
    total = sum(cost.seconds for cost in profile.costs)

    def layer(operation: Operation) -> str:
        return f"{operation.layer or '(none)'}{' backward' * operation.backward}"

    def kind(operation: Operation) -> str:
        name = (operation.kernel or operation.instruction)[:_WIDEST]
        return " of ".join(filter(None, (name, operation.primitive)))

    head = f"A call takes {1e3 * profile.seconds:.3f} ms, its operations {1e3 * total:.3f} ms."
    if profile.unknown:
        head += f" Of {profile.unknown:.1%} the program does not say what they are."
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
