"""Winograd's convolution: exact but for rounding, and used where it is faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels import winograd


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 8, 12), (2, 7, 15), (2, 3, 5)])
def test_winograd_is_exact_but_for_rounding(shape):
    # In float64, so that a weight that is slightly wrong shows.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*shape, 3))
    kernel = rng.normal(size=(3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + shape[1], j : j + shape[2]] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    cotangent = rng.normal(size=expected.shape)
    of_padded, of_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for i in range(3):
        for j in range(3):
            seen = np.s_[:, i : i + shape[1], j : j + shape[2]]
            of_padded[seen] += cotangent @ kernel[i, j].T
            of_kernel[i, j] = np.einsum("nhwi,nhwo->io", padded[seen], cotangent)
    with jax.enable_x64(True):
        y, back = jax.vjp(winograd.conv3x3, jnp.asarray(x), jnp.asarray(kernel))
        gradients = back(jnp.asarray(cotangent))
    for found, wanted in zip(
        (y, *gradients), (expected, of_padded[:, 1:-1, 1:-1], of_kernel), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "faster"),
    [
        ((8, 32, 32, 64), (3, 3, 64, 64), jnp.float32, True),
        ((8, 4, 4, 512), (3, 3, 512, 64), jnp.float32, True),
        ((8, 32, 32, 32), (3, 3, 32, 64), jnp.float32, False),  # few channels
        ((8, 32, 32, 64), (1, 1, 64, 64), jnp.float32, False),
        ((8, 15, 7, 64), (3, 3, 64, 64), jnp.float32, True),  # no whole tiles
        ((8, 32, 32, 64), (3, 3, 64, 64), jnp.bfloat16, False),  # too few digits
    ],
)
def test_where_it_is_faster(shape, kernel, dtype, faster):
    x, kernel = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(kernel, dtype)
    assert winograd.is_faster(x, kernel) is faster
