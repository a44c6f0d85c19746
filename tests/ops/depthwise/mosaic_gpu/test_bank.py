"""The Toeplitz bank, and that with its windows it makes a convolution."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.bank import toeplitz_bank
from replk_jax.ops.depthwise.mosaic_gpu.plan import BLOCK, Window
from tests.ops.depthwise.mosaic_gpu.cases import same
from tests.ops.depthwise.test_api import reference


@st.composite
def convolutions(draw):
    """Maps, kernels and paddings of all kinds that the kernel takes."""
    sizes, taps, padding = [], [], []
    for _ in range(2):
        k = draw(st.integers(1, 40))
        before, after = draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))
        padding.append((before, after))
        taps.append(k)
        sizes.append(draw(st.integers(max(1, k - before - after), 48)))
    return Convolution(tuple(sizes), tuple(taps), padding=tuple(padding))


def test_bank_is_its_definition():
    convolution, rows = same(24, (5, 7)), 3
    kernel = np.random.default_rng(0).standard_normal((5, 7, 1, 2)).astype(np.float32)
    window = Window.of(convolution)
    expected = np.zeros((2, 5 + 2 * (rows - 1), BLOCK, window.depth), np.float32)
    for u in range(5):
        for j in range(BLOCK):
            for column in range(window.depth):
                v = column - window.reach - j + 3
                if 0 <= v < 7:
                    expected[:, 4 - u + rows - 1, j, column] = kernel[u, v, 0]
    bank = toeplitz_bank(jnp.asarray(kernel), convolution, rows)
    np.testing.assert_array_equal(bank, expected.reshape(bank.shape))


@settings(max_examples=8, deadline=None)
@given(convolution=convolutions(), rows=st.integers(1, 8), seed=st.integers(0, 99))
def test_windows_of_the_bank_make_the_convolution(convolution, rows, seed):
    """The kernel's arithmetic in NumPy: margins, spans and slots, on small integers, exactly."""
    rng = np.random.default_rng(seed)
    (height, width), (taps, _) = convolution.size, convolution.kernel_size
    x = rng.integers(-8, 9, (1, height, width, 1)).astype(np.float32)
    kernel = rng.integers(-8, 9, (*convolution.kernel_size, 1, 1)).astype(np.float32)
    bank = np.asarray(toeplitz_bank(jnp.asarray(kernel), convolution, rows))[0]
    window = Window.of(convolution)
    out_height, out_width = convolution.output_size
    top = convolution.padding[0][0]

    # One row in shared memory: what neither the map nor a margin fills is never to be read.
    memory = np.full((height, window.columns), np.nan, np.float32)
    memory[:, window.left_margin :][:, : window.width] = 0
    memory[:, window.left_margin :][:, :width] = x[0, :, :, 0]
    for margin in window.margins:
        memory[:, margin : margin + 8] = 0

    blocks = len(window.spans)
    y = np.zeros((-(-out_height // rows) * rows, blocks * BLOCK), np.float32)
    for first in range(0, out_height, rows):
        for row in range(max(0, first - top), min(height, first + rows - 1 + taps - top)):
            slot = first - row + taps - 1 - top + rows - 1
            for block, (start, stop) in enumerate(window.spans):
                matrix = bank[BLOCK * slot :][: BLOCK * rows, start:stop]
                values = memory[row, window.offset(block) :][: stop - start]
                columns = slice(BLOCK * block, BLOCK * (block + 1))
                y[first : first + rows, columns] += (matrix @ values).reshape(rows, BLOCK)
    expected = reference(x, kernel, padding=convolution.padding)[0, :, :, 0]
    np.testing.assert_array_equal(y[:out_height, :out_width], expected)
