"""BatchNorm, convolution, linear layer, pooling and activations, each by its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.errors import UserError
from jaxcifar.kernels.features import Features
from jaxcifar.models import layers
from jaxcifar.models.layers import ACTIVATIONS, BatchNorm, avg_pool, max_pool


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-3, 3, 13)
    exact = 0.5 * x * (1 + jax.scipy.special.erf(x / np.sqrt(2)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    assert np.abs(nn.gelu(x, approximate=True) - exact).max() > 1e-4  # so the line above can fail


# --- BatchNorm --------------------------------------------------------------------------------


def batch_norm(x, train, **options):
    layer = BatchNorm(**options)
    variables = layer.init(jax.random.key(0), x, train=False)
    return layer.apply(variables, x, train=train, mutable=["batch_stats"])


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_batch_norm_by_the_formula(platform):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 7))
    y, updates = batch_norm(x, train=True, platform=platform)
    flat = np.asarray(x, np.float64).reshape(-1, 7)
    mean, var = flat.mean(0), flat.var(0)
    np.testing.assert_allclose(y, (np.asarray(x) - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * 120 / 119, rtol=1e-5)


@pytest.mark.parametrize(("platform", "steps"), [("cpu", 1), ("gpu", 60)])
def test_batch_norm_survives_a_large_mean(platform, steps):
    # E[x²] − E[x]² would be off by 100% here, or negative. Accelerators compute it of what is left
    # after the running mean is subtracted, which has to come near at first.
    x = 1000 + 0.01 * jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
    layer = BatchNorm(epsilon=0.0, platform=platform)
    variables = layer.init(jax.random.key(0), x, train=False)
    step = jax.jit(lambda variables: layer.apply(variables, x, train=True, mutable="batch_stats"))
    for _ in range(steps):
        y, updates = step(variables)
        variables |= updates
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, rtol=1e-2)


def test_batch_norm_statistics_are_float32_of_bfloat16_input():
    x = (10 + jax.random.normal(jax.random.key(0), (64, 8, 8, 2))).astype(jnp.bfloat16)
    y, updates = batch_norm(x, train=True, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    expected = 0.1 * np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, rtol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_of_feature_maps_is_that_of_their_concatenation(platform, train):
    maps = [jax.random.normal(jax.random.key(i), (3, 4, 4, 2 + i)) for i in range(2)]
    features = Features((), (), platform)
    for x in maps:
        features = features.append(x, train=train)
    found = batch_norm(features, train=train, platform=platform)
    expected = batch_norm(jnp.concatenate(maps, -1), train=train, platform=platform)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- the others -------------------------------------------------------------------------------


def test_convolution_pads_both_sides_and_adds_its_bias():
    # Of stride 2: "SAME" would pad (0, 1), and see other pixels.
    layer = layers.Conv(2, stride=2, use_bias=True, platform="cpu")
    x = jnp.arange(16, dtype=jnp.float32).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 2)).at[1, 1].set(1.0)  # the middle pixel
    y = layer.apply({"params": {"kernel": kernel, "bias": jnp.array([0.0, 0.5])}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(y[0, :, :, 1], y[0, :, :, 0] + 0.5)


def test_convolution_refuses_to_leave_out_pixels_of_patches():
    for size, stride in ((1, 1), (2, 2), (3, 2), (4, 2), (7, 3)):
        layer = layers.Conv(2, size, stride)
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(UserError, match="size 4 at stride 4 would leave out the last pixels"):
        layers.Conv(2, 4, stride=4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_linear_is_float32_of_bfloat16():
    layer = layers.Linear(3)
    x = jax.random.normal(jax.random.key(0), (4, 5)).astype(jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x)
    y = layer.apply(variables, x)
    exact = np.asarray(x, np.float64) @ np.asarray(variables["params"]["kernel"], np.float64)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6)
    assert y.dtype == jnp.float32


def test_average_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    squares = np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    np.testing.assert_allclose(avg_pool(x), squares.mean(0), rtol=1e-6, atol=1e-6)
    odd = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=9.0)
    np.testing.assert_array_equal(avg_pool(odd), avg_pool(x))


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (3, 7, 5, 2), (1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pooling_and_its_gradient_go_square_by_square(shape, dtype):
    n, height, width, channels = shape
    # Of few values, so that there are equals in most squares.
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(dtype)
    dy = jax.random.normal(jax.random.key(1), (n, height // 2, width // 2, channels)).astype(dtype)
    y, vjp = jax.vjp(max_pool, x)
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


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_max_pooling_does_not_hide_a_nan(place):
    x = jnp.arange(4.0).reshape(1, 2, 2, 1).at[0, *place, 0].set(jnp.nan)
    assert np.isnan(max_pool(x)).all()


def test_global_average_is_float32():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)).astype(jnp.bfloat16)
    y = layers.global_average(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.asarray(x, np.float64).mean((1, 2)), rtol=1e-5, atol=1e-6)
