"""All uses of private interfaces of JAX, and what to do if a new release breaks them.

Nothing else in this package imports `jax._src` or reads undocumented attributes of JAX. Each
function contains its own imports, so that a name that has moved breaks only this function.
"""

from typing import Any

from jax.extend.core import Primitive


def require_devices_during_lowering(primitive: Primitive) -> None:
    """Makes JAX lower `primitive` only once the devices are known.

    Without it, `lowering_devices_known` is False for programs that run on this machine, and XLA
    partitions implementations that it partitions wrongly.

    If it breaks: see how `jax.experimental.custom_partitioning`, which has the same need, registers
    its primitive.
    """
    from jax._src import dispatch

    dispatch.prim_requires_devices_during_lowering.add(primitive)


def lowering_devices_known(ctx: Any) -> bool:
    """Whether a program is lowered for devices that are known.

    False for a program for export, or for a machine that is absent.

    If it breaks: see how the lowering rule in `jax.experimental.custom_partitioning` finds its
    devices.

    Args:
      ctx: the context that JAX passes to a lowering rule.
    """
    # Under `shard_map` the context lacks this attribute, and the devices are known.
    return getattr(ctx.module_context.axis_context, "device_assignment", ()) is not None


def mosaic_interpret_params() -> Any:
    """Parameters that run a Mosaic GPU kernel on the CPU and detect races between its threads.

    Only tests use this function and the two below. If they break: look in
    `jax.experimental.pallas.mosaic_gpu`, which contains the first since JAX 0.11.
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
    """Clears the state that remains after an interpreted kernel raised an error."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    interpret_pallas_call.reset_gpu_interpret_mode_state()
