"""What TPUs and GPUs compute in place of the CPU's two passes, against float64 and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import augment
from jaxcifar.kernels.norm import moments, shifted_moments


@pytest.mark.parametrize(("shift", "digits"), [(0.0, 1e-4), (9.0, 2e-6), (10.0, 1e-6)])
def test_moments_and_their_gradients(shift, digits):
    """The mean is 10 and the deviation 1: even a shift of 0 leaves four digits of the variance."""
    x = np.random.default_rng(0).normal(10, 1, (32, 8, 8, 5)).astype(np.float32)
    at = jnp.full(5, shift, jnp.float32)
    exact = x.astype(np.float64)
    mean, var = shifted_moments(x, at)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=digits)

    def loss(of):
        return lambda x: sum(
            (weight * part).sum() for weight, part in zip((2, 3), of(x), strict=True)
        )

    found = jax.grad(loss(lambda x: shifted_moments(x, at)))(x)
    expected = jax.grad(loss(lambda x: moments(x, "cpu")))(x)
    np.testing.assert_allclose(found, expected, atol=1e-7, rtol=1e-4)


def test_variance_is_never_negative():
    x = jnp.full((64, 3), 1000.1)
    assert (shifted_moments(x, jnp.zeros(3))[1] >= 0).all()


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_of_tpus_is_the_same_to_the_bit(padding):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    offsets = jax.random.randint(jax.random.key(1), (64, 2), 0, 2 * padding + 1)
    there = augment.crop(images, offsets, padding=padding, platform="tpu")
    np.testing.assert_array_equal(there, augment.crop(images, offsets, padding=padding))
