"""Compiled JAX programs of depthwise convolutions, for timing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from replk_jax.benchmark.compiling import compile_program
from replk_jax.benchmark.timing import Contender, Program
from replk_jax.ops import depthwise_conv2d
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.dispatch import IMPLEMENTATIONS
from replk_jax.ops.depthwise.implementation import Direction
from replk_jax.ops.depthwise.shapes import Shape

Operands = tuple[jax.Array, jax.Array, jax.Array]


def calls_of(platform: str) -> int:
    """The number of convolutions in one program.

    On an accelerator, launching a program takes as long as a small convolution, so several
    convolutions share a launch.
    """
    return 1 if platform == "cpu" else 5


def draw_operands(shape: Shape, batch: int, dtype: str, count: int) -> list[Operands]:
    """Random x (N, H, W, C), kernel (KH, KW, 1, C) and cotangent (N, OH, OW, C), `count` times.

    All differ, so that no result can be reused, and usually not all fit into a cache.
    """
    convolution, channels = shape.convolution, shape.channels
    sizes = (
        (batch, *convolution.size, channels),
        (*convolution.kernel_size, 1, channels),
        (batch, *convolution.output_size, channels),
    )

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, len(sizes))
        return tuple(
            jax.random.normal(each, size, jnp.dtype(dtype))
            for each, size in zip(keys, sizes, strict=True)
        )

    return [draw(key) for key in jax.random.split(jax.random.key(0), count)]


def operator(shape: Shape, backward: bool, implementation: str | None) -> Callable[..., Any]:
    """The operator as a function (x, kernel, cotangent) -> y, or with `backward` -> (y, dx, dk)."""
    convolution = shape.convolution
    convolve = partial(
        depthwise_conv2d,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        implementation=implementation,
    )

    def forward(x, kernel, cotangent):
        return convolve(x, kernel)

    def forward_and_backward(x, kernel, cotangent):
        y, pull_back = jax.vjp(convolve, x, kernel)
        return y, *pull_back(cotangent)

    return forward_and_backward if backward else forward


def direction_function(
    direction: Direction, convolution: Convolution, implementation: str
) -> Callable[..., jax.Array]:
    """One direction of an implementation as a function (x, kernel, cotangent) -> result."""
    compute = getattr(IMPLEMENTATIONS[implementation], direction)

    def run(x, kernel, cotangent):
        if direction == "forward":
            return compute(x, kernel, convolution)
        if direction == "input_gradient":
            return compute(cotangent, kernel, convolution)
        return compute(x, cotangent, convolution)

    return run


def contender(function: Callable[..., Any], operands: Sequence[tuple[Any, ...]]) -> Contender:
    """A contender that calls `function` with each of the operands, arrays or trees of arrays.

    On a CPU it is compiled alone, so that its compile time is meaningful.
    """
    on_cpu = jax.devices()[0].platform == "cpu"

    def run(operands):
        return [function(*each) for each in operands]

    def prepare():
        compiled, seconds = compile_program(run, operands)
        return Program(
            partial(compiled, operands),
            calls=len(operands),
            asynchronous=not on_cpu,
            compile_seconds=seconds if on_cpu else None,
        )

    return Contender(prepare, concurrent=not on_cpu)
