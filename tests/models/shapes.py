"""Networks traced but not computed."""

import jax
import jax.numpy as jnp

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def shapes(model):
    """The variables of a model, without computing them."""
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), KEY, IMAGES)
