"""All normally distributed weights from one draw: each still has its distribution."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar.kernels import compilation
from jaxcifar.kernels.draw import OneDraw
from jaxcifar.models import create_model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg_a"])
def test_one_draw_gives_every_weight_its_distribution(name):
    model = create_model(name, width=0.5)
    images = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(0)
    plain_init = lambda key: nn.Module.init(model, key, images, train=False)  # noqa: E731
    our_init = lambda key: model.init(key, images, train=False)  # noqa: E731
    plain, drawn, again = (
        flatten_dict(init(key)["params"], sep="/")
        for init in (
            compilation.jit(plain_init, platform="cpu", fast_compile=True),
            compilation.jit(our_init, platform="cpu", fast_compile=True),
            jax.jit(our_init),
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


def test_parts_of_a_draw_are_the_draw():
    key = jax.random.key(1)
    count = OneDraw()
    assert not count.normal(key, (2, 3)).any()  # only counted
    assert not count.normal(key, (5,), jnp.bfloat16).any()
    assert count.taken == 11
    draw = OneDraw(key, 11)
    first, second = draw.normal(key, (2, 3)), draw.normal(key, (5,), jnp.bfloat16)
    expected = jax.random.normal(key, (11,))
    np.testing.assert_array_equal(first.ravel(), expected[:6])
    np.testing.assert_array_equal(second, expected[6:].astype(jnp.bfloat16))
