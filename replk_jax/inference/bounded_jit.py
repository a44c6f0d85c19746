"""jax.jit for arguments of many shapes: only the latest compiled programs are kept."""

import functools
from collections.abc import Callable
from typing import Any

import jax


class BoundedJit:
    """A compiled function that keeps the programs of the most recently used shapes.

    `jax.jit` alone keeps a program for every shape, as long as the function exists.

    Args:
      function: maps trees of arrays to a tree of arrays.
      kept: number of programs.
      **options: of `jax.jit`, such as `out_shardings`.
    """

    def __init__(self, function: Callable[..., Any], kept: int, **options: Any):
        self._function, self._options = function, options
        self._program = functools.lru_cache(kept)(self._new_program)

    def __call__(self, *arguments: Any) -> Any:
        """Computes the function; compiles it if there is no program for these shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        return self._program(structure, shapes)(*arguments)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self._program.cache_info().misses

    def _new_program(self, *key: Any) -> Callable[..., Any]:
        # Programs belong to the function that jax.jit was given: a new one for each key.
        return jax.jit(lambda *arguments: self._function(*arguments), **self._options)
