"""Sums, moments and scaling equal their definitions, with the gradients written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels.norm import at_least_float32, channel_sum, moments, scale_and_shift

PLATFORMS = ["cpu", "gpu"]
NEARS = [None, 0.0, 2.5, 3.0]  # estimates of a mean of 3


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", [(5, 7, 6, 3), (4, 2), (1, 3, 3, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("near", [None, 2.5])
def test_normalisation_and_its_gradients_equal_plain_autodiff(shape, dtype, platform, near):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 + jax.random.normal(keys[0], shape)).astype(dtype)
    scale, bias = jax.random.normal(keys[1], (2, shape[-1]))
    dy = jax.random.normal(keys[2], shape)
    weights = jax.random.normal(keys[3], (2, shape[-1]))  # so that moments have gradients too

    def plain(x, scale, bias):
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        scale, bias = (v.reshape(mean.shape) for v in (scale, bias))
        y = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias
        return (y * dy).sum() + (weights[0] * mean.ravel() + weights[1] * var.ravel()).sum()

    def ours(x, scale, bias):
        about = None if near is None else jnp.full(shape[-1], near)
        mean, var = moments(x, platform, near=about)
        y = scale_and_shift(x, mean, jax.lax.rsqrt(var + 1e-5) * scale, bias, platform)
        return (y * dy).sum() + (weights[0] * mean + weights[1] * var).sum()

    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(x, scale, bias)
    found = jax.value_and_grad(ours, argnums=(0, 1, 2))(x, scale, bias)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_scale_and_shift_is_its_line_with_all_four_gradients(platform):
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = jax.random.normal(keys[0], (2, 6, 5, 5, 3))
    arguments = (x, *jax.random.normal(keys[1], (3, 3)))

    def line(x, *channels):
        mean, scale, bias = (v[None, None, None] for v in channels)
        return (x - mean) * scale + bias

    expected, expected_vjp = jax.vjp(line, *arguments)
    found, vjp = jax.vjp(lambda *a: scale_and_shift(*a, platform), *arguments)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for a, b in zip(vjp(dy), expected_vjp(dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_have_the_dtypes_of_what_they_are_of(dtype):
    """Else the state of an optimizer would change its dtype in the first step."""
    arguments = (jnp.ones((2, 3), jnp.bfloat16), *(jnp.ones(3, dtype) for _ in range(3)))
    with jax.numpy_dtype_promotion("standard"):
        found = jax.eval_shape(jax.grad(lambda a: scale_and_shift(*a, "cpu").sum()), arguments)
    assert [d.dtype for d in found] == [a.dtype for a in arguments]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", [(64, 32, 32, 4), (63, 5, 4), (2, 3)])
def test_channel_sum_is_as_exact_as_float32_allows(shape, platform):
    x = 3 + jax.random.normal(jax.random.key(0), shape)
    exact = np.asarray(x, np.float64).sum(tuple(range(len(shape) - 1)))
    np.testing.assert_allclose(channel_sum(x, platform), exact, rtol=2e-6)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("near", NEARS)
def test_moments_are_mean_and_biased_variance(platform, near):
    x = 3 + jax.random.normal(jax.random.key(0), (9, 4, 4, 5))
    near = None if near is None else jnp.full(5, near)
    mean, var = moments(x, platform, near=near)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)
    with jax.enable_x64(True):  # in float64 they stay float64
        x = jnp.ones((4, 2), jnp.float64)
        near = None if near is None else jnp.ones(2)
        assert all(m.dtype == jnp.float64 for m in moments(x, platform, near=near))


def test_moments_near_an_estimate_are_as_exact_as_it_is_near():
    """Chan, Golub & LeVeque 1983: the error grows with 1 + (mean − near)² / var."""
    x = 1000 + jax.random.normal(jax.random.key(0), (64, 8, 8, 4))
    exact = np.asarray(x, np.float64).var((0, 1, 2))
    for near in (998.0, 1000.0, 1003.0):
        _, var = moments(x, "gpu", near=jnp.full(4, near))
        np.testing.assert_allclose(var, exact, rtol=1e-5)
    _, var = moments(x, "gpu", near=jnp.zeros(4))
    assert np.abs(var / exact - 1).max() > 1e-3  # so this is not what two passes give
    np.testing.assert_allclose(moments(x, "gpu")[1], exact, rtol=1e-5)
    np.testing.assert_allclose(moments(x, "cpu", near=jnp.zeros(4))[1], exact, rtol=1e-5)


def test_a_variance_is_never_negative():
    value = 1000.1 + jnp.arange(16) / 7
    x = jnp.broadcast_to(value[None, None, None], (32, 8, 8, 16))  # whose variance is 0
    assert (jnp.square(x).mean((0, 1, 2)) - jnp.square(x.mean((0, 1, 2)))).min() < 0
    assert moments(x, "gpu", near=jnp.zeros(16))[1].min() >= 0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_an_estimate_of_the_mean_has_no_gradient(platform):
    x = jax.random.normal(jax.random.key(0), (8, 3))
    gradient = jax.grad(lambda near: moments(x, platform, near=near)[1].sum())(jnp.ones(3))
    assert not gradient.any()


def test_elsewhere_the_sum_is_the_definition():
    x = jnp.ones((8, 4, 4, 3))
    ours = jax.make_jaxpr(lambda x: channel_sum(x, "gpu"))(x)
    assert str(ours) == str(jax.make_jaxpr(lambda x: x.sum((0, 1, 2)))(x))
    assert "optimization_barrier" in str(jax.make_jaxpr(lambda x: channel_sum(x, "cpu"))(x))


def test_at_least_float32():
    for dtype, expected in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32)):
        assert at_least_float32(jnp.ones(2, dtype)).dtype == expected
    with jax.enable_x64(True):
        assert at_least_float32(jnp.ones(2, jnp.float64)).dtype == jnp.float64
