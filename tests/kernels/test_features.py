"""Feature maps in parts equal their concatenation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.kernels.features import Features

MAPS = [jax.random.normal(jax.random.key(i), (3, 4, 4, 1 + i)) for i in range(3)]


def collected(maps, platform, train=True):
    features = Features((), (), platform)
    for x in maps:
        features = features.append(x, train=train).for_a_layer()
    return features


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_parts_are_their_concatenation_with_its_moments(platform):
    features = collected(MAPS, platform)
    whole = jnp.concatenate(MAPS, axis=-1)
    np.testing.assert_array_equal(features.concatenated, whole)
    mean, var = features.moments
    np.testing.assert_allclose(mean, whole.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(var, whole.var((0, 1, 2)), rtol=1e-5)
    assert collected(MAPS, platform, train=False).moments is None


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradients_are_those_of_the_concatenation(platform):
    weights = jax.random.normal(jax.random.key(9), (3, 4, 4, 6))

    def ours(maps):
        features = collected(maps, platform)
        mean, var = features.moments
        return (features.concatenated * weights).sum() + jnp.square(mean).sum() + var.sum()

    def plain(maps):
        x = jnp.concatenate(maps, axis=-1)
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x * weights).sum() + jnp.square(mean).sum() + var.sum()

    for a, b in zip(jax.grad(ours)(MAPS), jax.grad(plain)(MAPS), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_only_cpus_get_the_barrier():
    for platform in ("cpu", "gpu"):
        jaxpr = jax.make_jaxpr(lambda maps, p=platform: collected(maps, p).parts)(MAPS)
        assert ("optimization_barrier" in str(jaxpr)) == (platform == "cpu")
