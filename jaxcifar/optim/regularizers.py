"""L1 and L2 regularization: penalties to add to a loss, and their gradients as optax transforms.

Placed before an optimizer in a chain, the transforms are coupled: the optimizer's moments see
them, as when the penalty stands in the loss. (AdamW's decay, placed after, is decoupled.)

    tx = optax.chain(add_l2(1e-4), optax.adam(1e-3))

`l1` and `l2` make a penalty and its gradient together, for whoever reports the one and trains by
the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

Mask = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree]


class Regularizer(NamedTuple):
    """A penalty on the parameters, and the transformation that adds its gradient."""

    penalty: Callable[[chex.ArrayTree], jax.Array]  # params -> scalar
    transform: optax.GradientTransformation


def l1(strength: float | jax.Array, mask: Mask | None = None) -> Regularizer:
    """Returns λ Σ|w| and its gradient, λ·sign(w), which is 0 at w = 0.

    Args:
      strength: λ ≥ 0; a number or a traced scalar.
      mask: a tree of bools like the parameters, or a function of the parameters that returns one:
        which of them are penalized; None is all.
    """

    def value(w: jax.Array) -> jax.Array:
        # |w|, written so that its gradient at 0 is 0: JAX's abs has 1 there.
        return _cast(strength, w) * jnp.sum(w * jax.lax.stop_gradient(jnp.sign(w)))

    return _regularizer(value, lambda w: _cast(strength, w) * jnp.sign(w), mask)


def l2(strength: float | jax.Array, mask: Mask | None = None) -> Regularizer:
    """Returns λ Σw² and its gradient, 2λ·w.

    With the factor 2: `optax.add_decayed_weights(s)`, and PyTorch's weight_decay=s, are
    `add_l2(s / 2)`.

    Args:
      strength: λ ≥ 0; a number or a traced scalar.
      mask: as in `l1`.
    """

    def value(w: jax.Array) -> jax.Array:
        return _cast(strength, w) * jnp.sum(jnp.square(w))

    return _regularizer(value, lambda w: 2 * _cast(strength, w) * w, mask)


def add_l1(strength: float | jax.Array, mask: Mask | None = None) -> optax.GradientTransformation:
    """Adds λ·sign(w), the gradient of λ Σ|w|, to the updates. At w = 0 it adds 0.

    Args: see `l1`.

    Returns:
      A stateless `optax.GradientTransformation`; its update needs `params`.
    """
    return l1(strength, mask).transform


def add_l2(strength: float | jax.Array, mask: Mask | None = None) -> optax.GradientTransformation:
    """Adds 2λ·w, the gradient of λ Σw², to the updates.

    Args: see `l2`, also for the factor 2.

    Returns:
      A stateless `optax.GradientTransformation`; its update needs `params`.
    """
    return l2(strength, mask).transform


def l1_penalty(
    params: chex.ArrayTree, strength: float | jax.Array, mask: Mask | None = None
) -> jax.Array:
    """Returns λ Σ|w| over the parameters that `mask` chooses: a scalar. See `l1`."""
    return l1(strength, mask).penalty(params)


def l2_penalty(
    params: chex.ArrayTree, strength: float | jax.Array, mask: Mask | None = None
) -> jax.Array:
    """Returns λ Σw² over the parameters that `mask` chooses: a scalar. See `l2`."""
    return l2(strength, mask).penalty(params)


def kernels_only(params: chex.ArrayTree) -> chex.ArrayTree:
    """A mask that chooses convolution and linear weights: no bias, no BatchNorm scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


# What config.optim.penalize names.
MASKS: dict[str, Mask | None] = {"all": None, "kernels": kernels_only}


def _cast(strength: float | jax.Array, w: jax.Array) -> jax.Array:
    return jnp.asarray(strength).astype(w.dtype)


def _resolve(mask: Mask | None, params: chex.ArrayTree) -> chex.ArrayTree:
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    return mask(params) if callable(mask) else mask


def _regularizer(
    value: Callable[[jax.Array], jax.Array],
    gradient: Callable[[jax.Array], jax.Array],
    mask: Mask | None,
) -> Regularizer:
    """Makes both halves of a regularizer from the value and the gradient of one leaf."""

    def penalty(params: chex.ArrayTree) -> jax.Array:
        terms = jax.tree.map(
            lambda w, chosen: value(w) if chosen else jnp.zeros((), w.dtype),
            params,
            _resolve(mask, params),
        )
        return sum(jax.tree.leaves(terms), start=jnp.zeros(()))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("update needs the parameters: tx.update(updates, state, params)")
        updates = jax.tree.map(
            lambda g, w, chosen: g + gradient(w) if chosen else g,
            updates,
            params,
            _resolve(mask, params),
        )
        return updates, state

    return Regularizer(penalty, optax.GradientTransformation(optax.init_empty_state, update))
