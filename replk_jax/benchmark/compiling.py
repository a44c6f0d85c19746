"""Compiles JAX programs, from several threads if necessary."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# Only XLA's part of a compilation is faster in parallel. Python's part would gain nothing and would
# have to be thread-safe.
_LOWERING = threading.Lock()


def compile_program(
    function: Callable[..., Any],
    *operands: Any,
    donate_argnums: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[jax.stages.Compiled, float]:
    """Compiles a function for the given operands.

    Args:
      function, donate_argnums: as in `jax.jit`.
      operands: arrays, or trees of arrays.
      options: of XLA.

    Returns:
      The compiled function and the seconds that the compilation took.
    """
    with _LOWERING:
        begin = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate_argnums).lower(*operands)
        lowering = time.perf_counter() - begin
    begin = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    return compiled, lowering + time.perf_counter() - begin
