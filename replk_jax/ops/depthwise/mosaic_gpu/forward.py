"""The convolution and its input gradient on Hopper, by the row-Toeplitz kernel."""

import jax

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.bank import toeplitz_bank
from replk_jax.ops.depthwise.mosaic_gpu.packing import pack, split, unpack
from replk_jax.ops.depthwise.mosaic_gpu.plan import Plan, check, choose_plan


def forward(
    x: jax.Array,
    kernel: jax.Array,
    convolution: Convolution,
    *,
    plan: Plan | None = None,
    interpret=False,
) -> jax.Array:
    """Convolves images.

    16-bit types are multiplied exactly and summed in float32. float32 is split into two bfloat16
    parts, of whose four products the smallest is left out: the error is about 5e-6 of the
    result's root mean square. An infinite or NaN pixel contaminates more of its channel of its
    image than the kernel reaches, since the matrix products multiply it with zeros too: whole
    blocks of 16 columns and of the plan's rows.

    Args:
      x: (N, H, W, C), bfloat16, float16 or float32.
      kernel: (KH, KW, 1, C), of the same dtype.
      convolution: one for which `unsupported_reason` gives none.
      plan: how to cut it, one of `plans`; None takes the one with the least estimated time.
      interpret: False compiles for the GPU; parameters of the interpreter run the kernel on
        the CPU (`replk_jax.compat.mosaic_interpret_params`).

    Returns:
      (N, OH, OW, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_reason` gives.
    """
    batch, _, _, channels = x.shape
    plan = plan or choose_plan(convolution, batch, channels, x.dtype)
    packed = pack(x, plan.batch_tile)
    y = forward_packed(packed, kernel, convolution, plan=plan, interpret=interpret)
    return unpack(y, batch, convolution.output_size[1])


def forward_packed(
    x: jax.Array,
    kernel: jax.Array,
    convolution: Convolution,
    *,
    plan: Plan | None = None,
    interpret=False,
) -> jax.Array:
    """Convolves images in the layout of the kernel, which costs `forward` a transposition.

    Args:
      x: (C, H, W', N') as `pack` makes them: W' is W rounded up to a multiple of 8, the columns
        behind the map are zero, and N' is a multiple of the plan's batch tile.
      kernel, convolution, plan, interpret: as in `forward`.

    Returns:
      (C, OH, OW', N') in the same dtype. The columns behind the map are undefined.

    Raises:
      ValueError: with the reason that `unsupported_reason` gives, or for a plan that does not fit
        or whose batch tile does not divide the batch.
    """
    # Pallas is imported with the first convolution: the package must work where it cannot be.
    from replk_jax.ops.depthwise.mosaic_gpu.row_toeplitz import row_toeplitz

    channels, _, _, batch = x.shape
    check(convolution, batch, channels, x.dtype)
    plan = plan or choose_plan(convolution, batch, channels, x.dtype, packed=True)
    if not plan.fits(convolution, x.dtype):
        raise ValueError(f"{plan} does not fit on the hardware for {convolution}.")
    if batch % plan.batch_tile:
        raise ValueError(
            f"A packed batch of {batch} is not a multiple of the batch tile {plan.batch_tile}: "
            "use pack(x, batch_multiple) with the tile."
        )
    bank = toeplitz_bank(kernel, convolution, plan.rows)
    return row_toeplitz(
        split(x), split(bank), convolution, plan, x.dtype, interpret=interpret or None
    )


def input_gradient(
    g: jax.Array,
    kernel: jax.Array,
    convolution: Convolution,
    *,
    plan: Plan | None = None,
    interpret=False,
) -> jax.Array:
    """The gradient with respect to x: the convolution of g with the flipped kernel.

    Args:
      g: the gradient with respect to the convolution's result, (N, OH, OW, C).
      kernel, convolution, interpret: as in `forward`.
      plan: how to cut the transposed convolution; None as in `forward`.

    Returns:
      (N, H, W, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_reason` gives.
    """
    flipped = kernel[::-1, ::-1]
    return forward(g, flipped, convolution.transposed(), plan=plan, interpret=interpret)
