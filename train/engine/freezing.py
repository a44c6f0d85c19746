"""Frozen stages and batch norms."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import optax

from replk_jax.models.layers import BatchNorm, DropPath
from replk_jax.models.network import Network
from train.engine.optimizer import Params, Path, by_path
from train.errors import RunError


@dataclasses.dataclass(frozen=True)
class Freezing:
    """Which stages and batch norms of a network are frozen.

    A frozen stage gets no gradient, update or weight decay, is not part of the gradient norm, and
    runs in eval mode, without stochastic depth.

    Attributes:
      network: with the stages.
      stages: -1 freezes none; 0 the stem; n the stem and the first n stages (`frozen_stages` of
        mmdetection).
      batch_norm: whether the batch norms of the backbone, or of a network without heads on a
        backbone all of them, use their running statistics and do not update them (`norm_eval` of
        mmdetection). Their scales and biases are trained.

    Raises:
      RunError: the network has fewer stages.
    """

    network: Network
    stages: int = -1
    batch_norm: bool = False

    def __post_init__(self):
        if self.stages >= 0 and self.stages > (most := len(self.network.stage_channels)):
            raise RunError(
                f"config.freeze.stages = {self.stages} is more than the {most} stages of the "
                "network."
            )

    def is_frozen(self, path: Path) -> bool:
        """Whether the parameter, or the module, at a path is in a frozen stage."""
        return self.stages >= 0 and self.network.stage_of(path) <= self.stages

    def constant(self, params: Params) -> Params:
        """The parameters, with `stop_gradient` on the frozen ones."""
        return jax.tree.map(
            lambda frozen, leaf: jax.lax.stop_gradient(leaf) if frozen else leaf,
            by_path(self.is_frozen, params),
            params,
        )

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer of the parameters that are not frozen; it has no state for the others."""
        if self.stages < 0:
            return optimizer

        def labels(params: Params) -> Params:
            return by_path(lambda path: "frozen" if self.is_frozen(path) else "trained", params)

        return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)

    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[None]:
        """A context in which `apply(..., train=True)` runs frozen modules in eval mode.

        Under `jax.jit`, it must be active while the function is traced.
        """

        def intercept(
            call: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            context: nn.module.InterceptorContext,
        ) -> Any:
            if context.method_name == "__call__" and self._in_eval_mode(context.module):
                x, *_ = args
                return call(x, train=False)
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            yield

    def _in_eval_mode(self, module: nn.Module) -> bool:
        if isinstance(module, BatchNorm) and self.batch_norm:
            return self.network.in_backbone(module.path)
        return isinstance(module, BatchNorm | DropPath) and self.is_frozen(module.path)
