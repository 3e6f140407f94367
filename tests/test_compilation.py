"""What keeps the training step fast, by what XLA made of it: never by time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from jaxcifar import compilation, sharding
from jaxcifar.config import base_config
from jaxcifar.models import create_model
from jaxcifar.models.initializers import init_from_one_draw
from jaxcifar.models.layers import channel_sum, moments, scale_and_shift
from jaxcifar.programs import Programs, hyperparams_of, static_part


def compiled_step(name: str) -> str:
    """The optimised HLO of a training step on one device."""
    config = base_config()
    config.model.name, config.model.width = name, 0.125
    config.data.augment, config.train.batch_size = "none", 8
    mesh = Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    made = Programs(static_part(config), 16, ((0.5,) * 3, (0.2,) * 3), mesh)
    images, labels = jnp.zeros((16, 32, 32, 3), jnp.uint8), jnp.zeros(16, jnp.int32)
    args = sharding.replicate((hyperparams_of(config), images, labels), mesh)
    order = sharding.replicate(np.zeros((2, 8), np.int32), mesh)
    return made.compiled_train(1, made.abstract_state, *args, order).as_text()  # type: ignore


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 14), ("vgg_a_bn", 5)])
def test_the_step_has_the_convolutions_it_needs_and_no_more(name, convolutions):
    # 3×3 ones of images of at least 3×3 pixels and few channels: each once forward, once for the
    # kernel's gradient, and all but the first once for the input's. The others are products.
    text = compiled_step(name)
    assert text.count(" convolution(") == 3 * convolutions - 1
    assert "ynn" not in text  # the slow convolutions
    assert " opt-barrier(" in text  # which keep layout copies from computing layers anew
    for word in ("infeed", "outfeed", "callback", " send(", " recv("):
        assert word not in text  # nothing goes to the host


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setitem(compilation._FOR_CPU, "xla_cpu_no_such_option", "1")
    compilation.compiler_options.cache_clear()
    try:
        known = compilation.compiler_options()
    finally:
        compilation.compiler_options.cache_clear()
    assert "xla_disable_hlo_passes" in known
    assert "xla_cpu_no_such_option" not in known
    assert compilation.jit(lambda x: x + 1)(1) == 2


# --- fast paths against plain definitions -----------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7, 6, 3), (4, 2), (1, 3, 3, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalisation_and_its_gradients_equal_plain_autodiff(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    x = (3 + jax.random.normal(keys[0], shape)).astype(dtype)
    scale, bias = jax.random.normal(keys[1], (2, shape[-1]))
    dy = jax.random.normal(keys[2], shape)
    weights = jax.random.normal(keys[3], (2, shape[-1]))  # so that moments have gradients too

    def plain(x, scale, bias):
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean, var = x.mean(axes), x.var(axes)
        y = (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias
        return (y * dy).sum() + (weights[0] * mean + weights[1] * var).sum()

    def ours(x, scale, bias):
        mean, var = moments(x)
        y = scale_and_shift(x, mean, jax.lax.rsqrt(var + 1e-5) * scale, bias)
        return (y * dy).sum() + (weights[0] * mean + weights[1] * var).sum()

    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(x, scale, bias)
    found = jax.value_and_grad(ours, argnums=(0, 1, 2))(x, scale, bias)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1))


def test_channel_sum_is_as_exact_as_float32_allows():
    x = 3 + jax.random.normal(jax.random.key(0), (64, 32, 32, 4))
    exact = np.asarray(x, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(channel_sum(x), exact, rtol=2e-6)


# --- initialisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vgg_a"])
def test_one_draw_gives_every_weight_its_distribution(name):
    model = create_model(name, width=0.5)
    images = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(0)
    plain, drawn, again = (
        flatten_dict(init["params"], sep="/")
        for init in (
            jax.jit(lambda key: model.init(key, images, train=False))(key),
            compilation.jit(lambda key: init_from_one_draw(model, key, images), in_haste=True)(key),
            jax.jit(lambda key: init_from_one_draw(model, key, images))(key),
        )
    )
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, drawn)
    for path, leaf in drawn.items():
        np.testing.assert_allclose(leaf, again[path], rtol=1e-5, atol=1e-6)
        if path.endswith("kernel"):
            few = 4 / math.sqrt(leaf.size)  # standard errors
            assert leaf.std() == pytest.approx(float(plain[path].std()), rel=2 * few)
            assert abs(leaf.mean()) < few * leaf.std()
    kernels = [np.ravel(leaf)[:100] for path, leaf in drawn.items() if path.endswith("kernel")]
    kernels = [kernel / kernel.std() for kernel in kernels if kernel.size == 100]
    for i, kernel in enumerate(kernels):  # no two weights are parts of the same numbers
        assert all(abs(np.corrcoef(kernel, other)[0, 1]) < 0.5 for other in kernels[:i])
