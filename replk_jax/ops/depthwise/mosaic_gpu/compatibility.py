"""The interpreter of Mosaic GPU kernels, which newer versions of JAX have moved."""

from typing import Any


def interpret_params() -> Any:
    """Parameters that run a kernel on the CPU and look for races between its threads."""
    try:
        from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
    except ImportError:  # before JAX 0.11
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    return InterpretGPUParams(detect_races=True)


def races_found() -> bool:
    """Whether the last kernel that was interpreted had a race."""
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import get_races

    return get_races().races_found


def reset_interpreter() -> None:
    """Clears what a kernel that raised an error has left behind."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    interpret_pallas_call.reset_gpu_interpret_mode_state()
