"""The convolution for CPUs equals its definition, XLA's; elsewhere it is the definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels.conv import conv2d, plain_conv2d, valid_conv2x2


@pytest.mark.parametrize(
    ("pixels", "size", "stride", "channels"),
    [
        *itertools.product((2, 4, 5, 8, 32), (1, 3), (1, 2), [(5, 6)]),
        *((pixels, 3, 1, (64, 72)) for pixels in (4, 5, 8, 32)),  # Winograd's
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_convolution_and_gradients_equal_xla(pixels, size, stride, channels, dtype, tolerance):
    rng = np.random.default_rng(0)
    pad, length = (size - 1) // 2, -(-pixels // stride)
    shapes = [(9, pixels, pixels, channels[0]), (size, size, *channels), (9, length, length)]
    shapes[2] += channels[1:]
    x, kernel, dy = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    def exactly(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )

    def ours(x, kernel):
        return conv2d(x, kernel, stride, platform="cpu")

    @jax.jit
    def both(*arguments):
        results = []
        # The definition in float32, of the same rounded numbers.
        exact = [array.astype(jnp.float32) for array in arguments]
        for function, (x, kernel, dy) in ((ours, arguments), (exactly, exact)):
            y, vjp = jax.vjp(function, x, kernel)
            results.append((y, *vjp(dy)))
        return results

    for found, theirs in zip(*both(x, kernel, dy), strict=True):
        assert found.dtype == dtype
        found = np.asarray(found, np.float32)
        np.testing.assert_allclose(found, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_elsewhere_it_is_the_definition(platform, size, stride):
    x, kernel = jnp.zeros((8, 8, 8, 64)), jnp.zeros((size, size, 64, 64))

    def loss(convolution, **options):
        return jax.value_and_grad(
            lambda x, kernel: convolution(x, kernel, stride, **options).sum(), argnums=(0, 1)
        )

    ours = jax.make_jaxpr(loss(conv2d, platform=platform))(x, kernel)
    assert str(ours) == str(jax.make_jaxpr(loss(plain_conv2d))(x, kernel))
    assert str(ours) != str(jax.make_jaxpr(loss(conv2d, platform="cpu"))(x, kernel))


def test_gradient_of_a_long_product_in_pieces():
    # 49,160 rows: more than twice 2^14, in pieces of a quarter.
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (49_160, 1, 1, 4))
    dy = jax.random.normal(keys[1], (49_160, 1, 1, 3))
    kernel = jax.random.normal(keys[2], (1, 1, 4, 3))
    _, vjp = jax.vjp(lambda x, kernel: conv2d(x, kernel, platform="cpu"), x, kernel)
    expected = np.asarray(x, np.float64)[:, 0, 0].T @ np.asarray(dy, np.float64)[:, 0, 0]
    found = vjp(dy)[1][0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    pieces = str(jax.make_jaxpr(vjp)(dy))
    assert "4,12290,4" in pieces.replace(" ", "")


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_two_by_two_without_padding_by_hand(platform):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(2, 2, 3, 6))
    expected = [
        [[np.tensordot(image[i : i + 2, j : j + 2], kernel, 3) for j in range(4)] for i in range(3)]
        for image in x
    ]
    found = valid_conv2x2(jnp.float32(x), jnp.float32(kernel), platform=platform)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
