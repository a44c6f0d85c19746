"""Parameters and multiply-adds of a model, counted as in papers; memory of a program.

XLA's cost analysis omits kernel taps on padding. For a 31x31 kernel on a 14x14 feature map those
are most taps, so its counts are not comparable with a paper's. Here every convolution counts
height x width x kernel x channels, as in papers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.extend.core import Jaxpr

from replk_jax.models.description import architecture_in_words
from replk_jax.models.layers import BatchNorm, Conv2D, GlobalAveragePool
from replk_jax.models.network import Network, Path
from replk_jax.models.reparam_convs import DiracConv, ResidualKernelConv
from replk_jax.models.roi_layers import ClassConv2D, Upsampling2D
from replk_jax.models.variables import abstract_image
from replk_jax.ops import DepthwiseConv2D


@dataclasses.dataclass(frozen=True)
class Count:
    """The cost of one image; elements are numbers, not bytes.

    Attributes:
      parameters: trainable numbers, without running statistics.
      convolution: multiply-adds of all convolutions.
      linear: multiply-adds of linear layers, such as the classifier.
      batch_norm_elements: output elements of all batch norms.
      pooled_elements: input elements of all global average pools.
      bias_additions: output elements of convolutions and linear layers with bias.
    """

    parameters: int = 0
    convolution: int = 0
    linear: int = 0
    batch_norm_elements: int = 0
    pooled_elements: int = 0
    bias_additions: int = 0

    def __add__(self, other: "Count") -> "Count":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Count(*(mine + theirs for mine, theirs in pairs))

    @property
    def mmpretrain_flops(self) -> int:
        """FLOPs as in mmpretrain's model index, which does not count the classifier.

        The index has RepLKNet in its training-time structure and RepVGG in the merged one.
        """
        return self.convolution + 5 * self.batch_norm_elements + self.pooled_elements


@dataclasses.dataclass(frozen=True)
class Part:
    """One top-level part of a model.

    Attributes:
      name: see `Network.part_of`.
      shape: of its output, (H, W, C) or (C,).
      training: its cost in the training-time structure.
      merged: its cost in the re-parameterized structure at inference; nothing for a head that only
        training runs.
      in_backbone: whether it is a part of the backbone, which is all of a simple network.
    """

    name: str
    shape: tuple[int, ...]
    training: Count
    merged: Count
    in_backbone: bool = True


@dataclasses.dataclass(frozen=True)
class Summary:
    """Parameters and multiply-adds of both structures of a model.

    Attributes:
      title: the network and the image size.
      parts: the parts of the network (`Network.part_of`), in the order of the forward pass.
      training: total of the training-time structure, including heads that only training runs.
      merged: total of the re-parameterized structure at inference; of the training-time structure
        if the network cannot be merged.
      relu_elements: output elements of all ReLUs (and ReLU6) at inference.
    """

    title: str
    parts: tuple[Part, ...]
    training: Count
    merged: Count
    relu_elements: int

    @property
    def paper_flops(self) -> int:
        """FLOPs as in the papers: multiply-adds of the merged convolutions."""
        return self.merged.convolution

    @property
    def mmsegmentation_flops(self) -> int:
        """FLOPs as RepLKNet's authors published them for segmentation, by mmcv's counter.

        The backbone is merged, the heads are not, and heads that only training runs do not count.
        Every multiply-add of a convolution or linear layer is one, so is every addition of a bias
        and every output of a ReLU. Batch norms, GELU, pooling and resizing are nothing.
        """
        biases = sum(
            part.merged.bias_additions if part.in_backbone else part.training.bias_additions
            for part in self.parts
            if part.merged != Count()
        )
        return self.merged.convolution + self.merged.linear + biases + self.relu_elements

    def __str__(self) -> str:
        head = ("part", "output", "parameters", "conv MACs", "merged: parameters", "conv MACs")
        rows = [
            (p.name, "x".join(map(str, p.shape)), *_figures(p.training), *_figures(p.merged))
            for p in self.parts
        ]
        total = ("total", "", *_figures(self.training), *_figures(self.merged))
        table = [head, *rows, total]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        rule = "-" * len(lines[0])
        return "\n".join(
            [
                self.title,
                "",
                lines[0],
                rule,
                *lines[1:-1],
                rule,
                lines[-1],
                "",
                f"Multiply-adds, of convolutions alone    {self.paper_flops:>20,}   merged",
                f"  by mmpretrain's rule                  {self.training.mmpretrain_flops:>20,}"
                "   training-time",
                f"                                        {self.merged.mmpretrain_flops:>20,}"
                "   merged",
                f"  by mmsegmentation's rule              {self.mmsegmentation_flops:>20,}"
                "   backbone merged",
            ]
        )


def summary(model: Network, image_size: int | tuple[int, int] = 224) -> Summary:
    """Counts the parameters and multiply-adds of both structures of a model.

    It traces shapes and computes nothing.

    Args:
      model: any model of this package, in either structure.
      image_size: one number or (height, width).
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    training, _ = _count(model.clone(deploy=False), (height, width), training=True)
    merged, relu_elements = _count(
        model.clone(deploy=model.mergeable), (height, width), training=False
    )
    parts = tuple(
        Part(
            name,
            part.shape,
            part.cost,
            merged[name].cost if name in merged else Count(),
            part.in_backbone,
        )
        for name, part in training.items()
    )
    title = f"{type(model).__name__} on {height}x{width} images: {architecture_in_words(model)}"
    training_total = sum((part.training for part in parts), Count())
    merged_total = sum((part.merged for part in parts), Count())
    return Summary(title, parts, training_total, merged_total, relu_elements)


def planned_memory(compiled: jax.stages.Compiled) -> int:
    """The peak memory of a compiled program on each device in bytes, as planned by the compiler.

    It covers arguments, results and temporaries. A result that reuses a donated argument's memory
    counts once.

    Args:
      compiled: from `jax.jit(f).lower(...).compile()`.

    Raises:
      NotImplementedError: the compiler of this platform does not report its plan.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        raise NotImplementedError("The compiler of this platform does not report memory.")
    occupied = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return occupied - plan.alias_size_in_bytes


class _PartOfStructure(NamedTuple):
    """One part in one structure; the attributes are those of `Part`."""

    shape: tuple[int, ...] = ()
    cost: Count = Count()
    in_backbone: bool = True


def _count(
    model: Network, image_size: tuple[int, int], training: bool
) -> tuple[dict[str, _PartOfStructure], int]:
    """The parts by name, and the output elements of all ReLUs.

    Args:
      model: the network.
      image_size: (height, width).
      training: count all modules with variables, not only those that inference runs; without
        ReLUs.
    """
    model = model.clone(remat=None)
    initialized = counted = _Calls()
    with nn.intercept_methods(initialized.record):
        # Not `abstract_variables`, which calls no module when it has the variables already.
        variables = jax.eval_shape(model.init, jax.random.key(0), abstract_image(model, image_size))
    relu_elements = 0
    if not training:
        counted = _Calls()
        with nn.intercept_methods(counted.record):
            program = jax.make_jaxpr(model.apply)(variables, abstract_image(model, image_size))
        relu_elements = _relu_elements(program.jaxpr)
    parts: dict[str, _PartOfStructure] = {}

    def add(path: Path, shape: tuple[int, ...] | None, count: Count) -> None:
        name = model.part_of(path)
        so_far = parts.get(name, _PartOfStructure())
        parts[name] = _PartOfStructure(
            so_far.shape if shape is None else shape,
            so_far.cost + count,
            model.in_backbone(path),
        )

    for path, shape, count in counted.costs:
        add(path, shape, count)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables.get("params", {})):
        path = tuple(key.key for key in keys)
        prefixes = (path[:length] for length in reversed(range(len(path))))
        module = next(prefix for prefix in prefixes if prefix in initialized.modules)
        if module in counted.modules:
            add(path, None, Count(parameters=leaf.size))
    return parts, relu_elements


def _relu_elements(jaxpr: Jaxpr) -> int:
    """Output elements of every `nn.relu` and `nn.relu6` in a program and all that it calls."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") in ("relu", "relu6"):
            output: Any = equation.outvars[0].aval
            count += output.size
            continue
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if isinstance(inner, Jaxpr):
                count += _relu_elements(inner)
    return count


class _Calls:
    """The calls of modules while a network is traced with one image.

    Attributes:
      modules: paths of the modules of which a method was called.
      costs: path, output shape without the batch, and cost without parameters of every call of a
        module that is no network and returns an array.
    """

    def __init__(self) -> None:
        self.modules: set[Path] = set()
        self.costs: list[tuple[Path, tuple[int, ...], Count]] = []

    def record(
        self,
        call: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """An interceptor of Flax: calls the method and returns what it returns."""
        y = call(*args, **kwargs)
        module = context.module
        self.modules.add(module.path)
        is_part = context.method_name == "__call__" and not isinstance(module, Network)
        if is_part and hasattr(y, "shape"):
            cost = _cost(module, jax.tree.leaves((args, kwargs)), y)
            self.costs.append((module.path, y.shape[1:], cost))
        return y


# The parameter that holds the kernel of each kind of convolution.
_KERNELS: dict[type[nn.Module], str] = {
    Conv2D: "kernel",
    DepthwiseConv2D: "kernel",
    ResidualKernelConv: "residual_kernel",
    DiracConv: "dirac_kernel",
    nn.Conv: "kernel",
}


def _cost(module: nn.Module, inputs: list[Any], y: jax.Array) -> Count:
    """The cost of a call of a module without its parameters.

    Args:
      module: bound, with its variables.
      inputs: its arguments, the array it is called on first.
      y: what it returns.
    """
    biases = y.size if "bias" in module.variables.get("params", {}) else 0
    for kind, name in _KERNELS.items():
        if isinstance(module, kind):
            kernel = module.variables["params"][name]
            return Count(convolution=y.size * math.prod(kernel.shape[:-1]), bias_additions=biases)
    if isinstance(module, nn.ConvTranspose):  # every pixel of the input meets the whole kernel
        pixels = math.prod(inputs[0].shape[:-1])
        return Count(
            convolution=pixels * module.variables["params"]["kernel"].size, bias_additions=biases
        )
    if isinstance(module, Upsampling2D | ClassConv2D):  # the same, and all classes, as in papers
        parameters, pixels = module.variables["params"], math.prod(inputs[0].shape[:-1])
        outputs = parameters["kernel"].size // inputs[0].shape[-1]
        return Count(
            convolution=pixels * parameters["kernel"].size, bias_additions=pixels * outputs
        )
    if isinstance(module, nn.Dense):
        return Count(linear=y.size * inputs[0].shape[-1], bias_additions=biases)
    if isinstance(module, BatchNorm) and not module.deploy:
        return Count(batch_norm_elements=y.size)
    if isinstance(module, GlobalAveragePool):
        return Count(pooled_elements=inputs[0].size)
    return Count()


def _figures(count: Count) -> tuple[str, str]:
    return f"{count.parameters:,}", f"{count.convolution:,}"
