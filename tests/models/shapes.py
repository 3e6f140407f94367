"""Networks traced but not computed."""

import jax
import jax.numpy as jnp

from jaxcifar.state import abstract_variables

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))


def shapes(model):
    """The variables of a model, without computing them."""
    return {name: tree for name, tree in abstract_variables(model).items() if tree}
