"""GELU by its definition, with its derivative, in every dtype that is used."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxcifar.kernels.activation import gelu

X = np.concatenate([np.linspace(-12, 12, 481), [-100.0, 100.0]])
CDF = np.array([(1 + math.erf(x / math.sqrt(2))) / 2 for x in X])
DERIVATIVE = CDF + X * np.exp(-(X**2) / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.float64, 1e-14)])
def test_gelu_and_its_derivative_by_the_formula(dtype, tolerance):
    with jax.enable_x64(True):
        x = jnp.asarray(X, dtype)
        y, vjp = jax.vjp(gelu, x)
        (dy,) = vjp(jnp.ones_like(x))
        assert (y.dtype, dy.dtype) == (dtype, dtype)
        np.testing.assert_allclose(y, X * CDF, atol=tolerance)
        np.testing.assert_allclose(dy, DERIVATIVE, atol=tolerance)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    wide = x.astype(jnp.float32)
    np.testing.assert_array_equal(gelu(x), gelu(wide).astype(jnp.bfloat16))
    vjp = jax.vjp(gelu, x)[1]
    (found,), (expected,) = vjp(x), jax.vjp(gelu, wide)[1](wide)
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
    # What is kept for the gradient is x.
    assert [leaf.dtype for leaf in jax.tree.leaves(vjp) if leaf.shape == x.shape] == [jnp.bfloat16]


def test_gelu_can_be_differentiated_twice():
    with jax.enable_x64(True):
        check_grads(gelu, (jnp.linspace(-3, 3, 13, dtype=jnp.float64),), order=2, modes=["rev"])
