"""Moving parameters along a direction, and how far: what both measurements share."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def moved(params: Any, direction: Any, size: float | jax.Array) -> Any:
    """Returns params + size · direction."""
    return jax.tree.map(lambda p, d: p + size * d, params, direction)


@jax.jit
def distance(one: Any, other: Any = None) -> jax.Array:
    """Returns the Euclidean norm of one − other, over all leaves."""
    change = one if other is None else jax.tree.map(jnp.subtract, one, other)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(change)))
