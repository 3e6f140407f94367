"""The distributions that weights start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels.conv import plain_conv2d
from jaxcifar.models import initializers


@pytest.mark.parametrize(
    ("init", "std"),
    [
        (initializers.kaiming_normal_fan_out("relu"), np.sqrt(2 / (9 * 128))),
        (initializers.kaiming_normal_fan_out("gelu"), np.sqrt(1 / (9 * 128))),
        (initializers.xavier_normal(), np.sqrt(2 / (9 * (64 + 128)))),
    ],
)
def test_normal_ones(init, std):
    kernel = init(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    np.testing.assert_allclose(kernel.std(), std, rtol=0.02)
    assert abs(kernel.mean()) < 0.02 * std
    assert np.abs(kernel).max() > 3.5 * std  # not truncated


def test_uniform():
    kernel = initializers.torch_uniform(16)(jax.random.key(0), (16, 1000))
    assert 0.24 < np.abs(kernel).max() <= 0.25
    np.testing.assert_allclose(kernel.std(), 0.25 / np.sqrt(3), rtol=0.02)


def test_dirac_passes_its_input_on():
    kernel = initializers.dirac()(jax.random.key(0), (3, 3, 4, 7), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 4))
    y = plain_conv2d(x, kernel)
    np.testing.assert_array_equal(y[..., :4], x)
    rest = kernel[..., 4:]
    assert 0.9 / 6 < np.abs(rest).max() <= 1 / 6  # 36 inputs
    fewer = initializers.dirac()(jax.random.key(0), (3, 3, 4, 3), jnp.float32)
    np.testing.assert_array_equal(plain_conv2d(x, fewer), x[..., :3])


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (4, 5)])
def test_numbers_come_from_where_they_are_told_to(shape):
    ones = lambda key, shape, dtype: jnp.ones(shape, dtype)  # noqa: E731
    init = initializers.xavier_normal(ones)
    taps = np.prod(shape[:-2])
    np.testing.assert_allclose(init(None, shape), np.sqrt(2 / (taps * 9)), rtol=1e-6)
