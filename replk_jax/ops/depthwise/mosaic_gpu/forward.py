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

    16-bit operands are multiplied exactly and accumulated in float32. A float32 operand is split
    into two bfloat16 terms, and the smallest of the four products is omitted. The error is about
    5e-6 of the root mean square of the result. The matrix products also multiply with zeros, so an
    infinite or NaN pixel contaminates whole blocks of 16 columns and `plan.rows` rows of its
    channel of its image.

    Args:
      x: (N, H, W, C), bfloat16, float16 or float32.
      kernel: (KH, KW, 1, C), of the same dtype.
      convolution: a convolution for which `unsupported_reason` returns None.
      plan: one of `plans`; None for the one with the shortest estimated time.
      interpret: False compiles for the GPU. Parameters of the interpreter run the kernel on the
        CPU (`replk_jax.compat.mosaic_interpret_params`).

    Returns:
      (N, OH, OW, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_reason` returns.
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
    """Convolves images in the packed layout, without the transpositions of `forward`.

    Args:
      x: (C, H, W', N') from `pack`: W' is W rounded up to a multiple of 8, the padding columns are
        zero, and N' is a multiple of the plan's batch tile.
      kernel, convolution, plan, interpret: as in `forward`.

    Returns:
      (C, OH, OW', N') in the same dtype. The padding columns are undefined.

    Raises:
      ValueError: with the reason that `unsupported_reason` returns, or for a plan that does not fit
        or whose batch tile does not divide the batch.
    """
    # The package must work without Pallas, so it is imported on first use.
    from replk_jax.ops.depthwise.mosaic_gpu.row_toeplitz import row_toeplitz

    channels, _, _, batch = x.shape
    check(convolution, batch, channels, x.dtype)
    plan = plan or choose_plan(convolution, batch, channels, x.dtype, packed=True)
    if not plan.fits(convolution, x.dtype):
        raise ValueError(f"{plan} does not fit on the hardware for {convolution}.")
    if batch % plan.batch_tile:
        raise ValueError(
            f"The packed batch of {batch} is not a multiple of the batch tile {plan.batch_tile}; "
            f"use pack(x, batch_multiple={plan.batch_tile})."
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
      plan: of the transposed convolution, as in `forward`.

    Returns:
      (N, H, W, C) in the same dtype.

    Raises:
      ValueError: with the reason that `unsupported_reason` returns.
    """
    flipped = kernel[::-1, ::-1]
    return forward(g, flipped, convolution.transposed(), plan=plan, interpret=interpret)
