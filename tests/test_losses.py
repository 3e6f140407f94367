"""Losses and correctness of single examples."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar import losses


def test_cross_entropy_by_the_formula():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 10))
    labels = jnp.array([0, 3, 9, 9, 1, 5])
    exact = np.asarray(logits, np.float64)
    expected = np.log(np.exp(exact).sum(1)) - exact[np.arange(6), labels]
    found = losses.cross_entropy(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == jnp.float32


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([0, 0])), [0, 1e4])


def test_correct_is_of_the_largest_logit_and_the_first_of_equals():
    logits = jnp.array([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = losses.correct(logits, jnp.array([1, 2, 0, 1]))
    np.testing.assert_array_equal(found, [True, False, True, False])
