"""Max-pooling whose gradient is one pass over the pixels."""

import jax
import jax.numpy as jnp


def max_pool(x: jax.Array, *, platform: str) -> jax.Array:
    """Takes the largest of each 2×2 of [N, H, W, C]: [N, ⌊H/2⌋, ⌊W/2⌋, C].

    If the height or width is odd, the last row or column is left out, as in PyTorch. The gradient
    goes to the first of equals in reading order, as in PyTorch. (That of XLA's reduce_window, a
    select-and-scatter, is slow on CPUs.)
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    if platform == "cpu":
        # Its gradient, a pad, would become a branch for each pixel in the loop of what is padded.
        x = jax.lax.optimization_barrier(x) if height % 2 or width % 2 else x
    squares = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    return _largest(squares) if platform == "cpu" else plain_largest(squares)


def plain_largest(x: jax.Array) -> jax.Array:
    """The largest of [N, H, 2, W, 2, C] over both axes of 2, the first of equals: [N, H, W, C]."""
    upper = _larger(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    return _larger(upper, _larger(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a >= b, a, b)


@jax.custom_vjp
def _largest(x: jax.Array) -> jax.Array:
    return plain_largest(x)


def _largest_forward(x):
    a, b, c, d = (x[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    lower = jnp.where(c >= d, jnp.int8(2), jnp.int8(3))
    upper = jnp.where(a >= b, jnp.int8(0), jnp.int8(1))
    return plain_largest(x), jnp.where(_larger(a, b) >= _larger(c, d), upper, lower)


def _largest_backward(which, dy):
    # The barrier keeps XLA from computing what led to dy four times, once for each pixel.
    dy = jax.lax.optimization_barrier(dy)[:, :, None, :, None]
    squares = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    return (jnp.where(which[:, :, None, :, None] == squares, dy, jnp.zeros_like(dy)),)


_largest.defvjp(_largest_forward, _largest_backward)
