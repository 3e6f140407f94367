"""The moments of each channel, and scaling by them, with the gradients written out."""

from functools import partial, reduce

import jax
import jax.numpy as jnp

Moments = tuple[jax.Array, jax.Array]  # mean and biased variance, each [C]

_ADDENDS = 4


def at_least_float32(x: jax.Array) -> jax.Array:
    """float32 for bfloat16; float64 stays, so that tests can be sharp."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def per_channel(v: jax.Array, x: jax.Array) -> jax.Array:
    """Returns v [C] in the rank of x [N, …, C], to be broadcast over all axes but the last."""
    return jnp.expand_dims(v, range(x.ndim - 1))


def channel_sum(x: jax.Array, platform: str) -> jax.Array:
    """Sums [N, …, C] over all axes but the last: [C]. That is x.sum(range(x.ndim - 1))."""
    if platform == "cpu":
        # There XLA's sum is much slower than computing it as a matrix product. Adding up a few
        # at first spares writing all of x to memory; the barrier keeps its channels innermost.
        if len(x) % _ADDENDS == 0:
            x = reduce(jnp.add, jnp.split(x, _ADDENDS))
        x = jnp.tensordot(jnp.ones(len(x), x.dtype), jax.lax.optimization_barrier(x), axes=1)
    return x.sum(tuple(range(x.ndim - 1)))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def moments(x: jax.Array, platform: str, near: jax.Array | None = None) -> Moments:
    """Returns x.mean(…) and x.var(…) [C] of [N, …, C] over all axes but the last.

    In float32 (float64 for such inputs). The variance is the biased one. It is the mean square
    about the mean: E[x²] − E[x]² cancels, and can even be negative. That takes two passes over x,
    and over a batch that is split two all-reduces, the second waiting for the first. With an
    estimate of the mean, accelerators compute both sums at once, of x − near: the shifted
    variance of Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance", 1983, whose
    relative error is the precision of float32 times 1 + (mean − near)² / var.

    Args:
      x: [N, …, C].
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.
      near: an estimate of the mean [C], such as a running mean. The result depends on it by
        rounding alone, so it has no gradient.
    """
    x = at_least_float32(x)
    n = x.size // x.shape[-1]
    if near is None or platform == "cpu":
        mean = channel_sum(x, platform) / n
        return mean, channel_sum(jnp.square(x - per_channel(mean, x)), platform) / n
    x = x - per_channel(near, x)
    mean, square = channel_sum(x, platform) / n, channel_sum(jnp.square(x), platform) / n
    return near + mean, jnp.maximum(square - jnp.square(mean), 0)


def _moments_forward(
    x: jax.Array, platform: str, near: jax.Array | None = None
) -> tuple[Moments, tuple[jax.Array, jax.Array, jax.Array | None]]:
    mean, var = moments(x, platform, near)  # pyright: ignore
    return (mean, var), (x, mean, near)


def _moments_backward(
    platform: str, saved: tuple[jax.Array, jax.Array, jax.Array | None], gradients: Moments
) -> tuple[jax.Array, jax.Array | None]:
    del platform
    x, mean, near = saved
    dmean, dvar = gradients
    n = x.size // x.shape[-1]
    mean, dmean, dvar = (per_channel(v, x) for v in (mean, dmean / n, 2 * dvar / n))
    dx = dmean + (at_least_float32(x) - mean) * dvar
    return dx.astype(x.dtype), None if near is None else jnp.zeros_like(near)


moments.defvjp(_moments_forward, _moments_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def scale_and_shift(
    x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, platform: str
) -> jax.Array:
    """Returns (x − mean) · scale + bias for each channel of [N, …, C], in float32 for bfloat16."""
    mean, scale, bias = (per_channel(v, x) for v in (mean, scale, bias))
    return (at_least_float32(x) - mean) * scale + bias


def _scale_and_shift_forward(
    x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array, platform: str
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return scale_and_shift(x, mean, scale, bias, platform), (x, mean, scale, bias)


def _scale_and_shift_backward(
    platform: str, saved: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, ...]:
    x, mean, scale, _ = saved
    dscale = channel_sum(dy * (at_least_float32(x) - per_channel(mean, x)), platform)
    dbias = channel_sum(dy, platform)
    found = dy * per_channel(scale, x), -scale * dbias, dscale, dbias
    return tuple(d.astype(of.dtype) for d, of in zip(found, saved, strict=True))


scale_and_shift.defvjp(_scale_and_shift_forward, _scale_and_shift_backward)
