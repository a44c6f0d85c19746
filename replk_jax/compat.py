"""All uses of private JAX: what may break with a new release, and what to do then.

Nothing else in this package imports `jax._src` or reads undocumented attributes of JAX. Imports
are inside the functions that need them, so that a name that has moved breaks only these.
"""

from typing import Any

from jax.extend.core import Primitive


def require_devices_during_lowering(primitive: Primitive) -> None:
    """Makes JAX lower `primitive` only once the devices are known.

    Without it, `lowering_devices_known` is False for programs that run here, and XLA divides
    implementations over a mesh that it divides wrongly.

    When it goes: look for how `jax.experimental.custom_partitioning`, which has the same need,
    registers its primitive.
    """
    from jax._src import dispatch

    dispatch.prim_requires_devices_during_lowering.add(primitive)


def lowering_devices_known(ctx: Any) -> bool:
    """Whether a program is lowered for devices that are known.

    False for a program that is to be exported, or that is lowered for a machine that is not there.

    When it goes: look for how the lowering rule in `jax.experimental.custom_partitioning` finds
    its devices.

    Args:
      ctx: the context that JAX hands to a lowering rule.
    """
    # Under `shard_map` the context has no such attribute, and the devices are known.
    return getattr(ctx.module_context.axis_context, "device_assignment", ()) is not None


def mosaic_interpret_params() -> Any:
    """Parameters that run a Mosaic GPU kernel on the CPU and look for races between its threads.

    Only tests need this function and the two below. When they go: look in
    `jax.experimental.pallas.mosaic_gpu`, which has had the first since JAX 0.11.
    """
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams  # pyright: ignore[reportAttributeAccessIssue]  # since JAX 0.11
    except ImportError:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    return InterpretGPUParams(detect_races=True)


def mosaic_races_found() -> bool:
    """Whether the last Mosaic GPU kernel that was interpreted had a race."""
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    return get_races().races_found


def reset_mosaic_interpreter() -> None:
    """Clears the state that an interpreted kernel leaves behind when it raises an error."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    interpret_pallas_call.reset_gpu_interpret_mode_state()
