"""All the random numbers of an initialisation in one draw."""

import math
from typing import Any

import jax
import jax.numpy as jnp


class OneDraw:
    """Stands in for `jax.random.normal` where many arrays are drawn: parts of a single draw.

    XLA compiles each draw separately, and a DenseNet-201 has two hundred. The numbers differ from
    those of separate draws; the distribution is the same.

    Args:
      key: a PRNG key; None makes a dry run, which returns zeros.
      total: how many numbers will be asked for, as `taken` says after a dry run.

    Attributes:
      taken: how many have been asked for so far.
      shapes: of the arrays in which they were asked for.
    """

    def __init__(self, key: jax.Array | None = None, total: int = 0):
        self.taken, self.shapes = 0, list[tuple[int, ...]]()
        # The barrier keeps XLA from drawing again for each part.
        self._numbers = (
            None
            if key is None
            else jax.lax.optimization_barrier(jax.random.normal(key, (total,), jnp.float32))
        )

    def normal(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Returns the next standard normal numbers; `key` is not used."""
        del key
        first = self.taken
        self.taken += math.prod(shape)
        self.shapes.append(tuple(shape))
        if self._numbers is None:
            return jnp.zeros(shape, dtype)
        return self._numbers[first : self.taken].reshape(shape).astype(dtype)
