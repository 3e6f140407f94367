"""Moving parameters along a direction, and how far: what both measurements share."""

from typing import Any

import jax
import optax


@jax.jit
def moved(params: Any, direction: Any, size: float | jax.Array) -> Any:
    """Returns params + size · direction."""
    return optax.tree.add_scale(params, size, direction)


@jax.jit
def distance(one: Any, other: Any = None) -> jax.Array:
    """Returns the Euclidean norm of one − other, over all leaves."""
    return optax.tree.norm(one if other is None else optax.tree.sub(one, other))
