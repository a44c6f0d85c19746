"""Compiles programs of JAX's; threads may ask for several at once."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# Only XLA's part of a compilation gains by running beside another; Python's would just have to be
# safe for it.
_LOWERING = threading.Lock()


def compile_program(
    function: Callable[..., Any],
    *operands: Any,
    donate_argnums: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[jax.stages.Compiled, float]:
    """A function of the operands, compiled, and the seconds that this took.

    Args:
      function, donate_argnums: as of `jax.jit`.
      operands: arrays, or trees of them.
      options: of XLA.
    """
    with _LOWERING:
        begin = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate_argnums).lower(*operands)
        lowering = time.perf_counter() - begin
    begin = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    return compiled, lowering + time.perf_counter() - begin
