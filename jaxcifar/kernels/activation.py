"""GELU, with the derivative written out."""

import math

import jax
import jax.numpy as jnp

from jaxcifar.kernels.norm import at_least_float32


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns x · Φ(x), with the exact Φ: x · (1 + erf(x / √2)) / 2, in float32 for bfloat16.

    Hendrycks & Gimpel, "Gaussian Error Linear Units (GELUs)", 2016. `jax.nn.gelu` computes Φ from
    erfc, whose tail is more exact; programs for TPUs take much longer to compile with it.
    """
    wide = at_least_float32(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    wide = at_least_float32(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    derivative = _normal_cdf(wide) + wide * density
    return ((derivative * at_least_float32(dy)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(math.sqrt(0.5) * x))
