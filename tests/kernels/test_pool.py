"""Max-pooling equals the largest of each square, and so does its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels.pool import max_pool

PLATFORMS = ["cpu", "gpu"]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (3, 7, 5, 2), (1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_largest_of_each_square_and_its_gradient(shape, dtype, platform):
    n, height, width, channels = shape
    # Of few values, so that there are equals in most squares.
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(dtype)
    dy = jax.random.normal(jax.random.key(1), (n, height // 2, width // 2, channels)).astype(dtype)
    y, vjp = jax.vjp(lambda x: max_pool(x, platform=platform), x)
    (dx,) = vjp(dy)

    expected, gradient = np.zeros(dy.shape), np.zeros(shape)
    pixels, arriving = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    for i, h, w, c in np.ndindex(*dy.shape):
        square = pixels[i, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2, c]
        first = np.unravel_index(square.argmax(), (2, 2))  # of equals, in reading order
        expected[i, h, w, c] = square.max()
        gradient[i, 2 * h + first[0], 2 * w + first[1], c] = arriving[i, h, w, c]
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float64), expected)
    np.testing.assert_array_equal(np.asarray(dx, np.float64), gradient)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_nan_in_a_square_is_not_hidden(platform):
    x = jnp.arange(4.0).reshape(1, 2, 2, 1).at[0, 1, 1, 0].set(jnp.nan)
    y, vjp = jax.vjp(lambda x: max_pool(x, platform=platform), x)
    assert np.isnan(y).all()
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][0, :, :, 0], [[0, 0], [0, 1]])
