"""L1 and L2 regularization: penalties to add to a loss, and their gradients as optax transforms.

Placed before an optimizer in a chain, `add_l1` and `add_l2` are coupled: the optimizer's moments
see them, as when the penalty is part of the loss. (AdamW's decay, placed after, is decoupled.)

    tx = optax.chain(add_l2(1e-4), optax.adam(1e-3))

`proximal_l1` is another way to minimize the L1 penalty: it goes last in the chain, and small
weights become exactly 0, where `add_l1` only brings them near it.

`l1` and `l2` make a penalty and its gradient together, for code that reports the one and trains by
the other.

A worked example: recover a linear model with three non-zero weights out of twenty from forty
observations, by minimizing ½ ‖xw − y‖² / n + λ Σ|w| (the lasso; Tibshirani 1996).

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxcifar.optim import add_l1, proximal_l1
    >>> w_true = jnp.zeros(20).at[jnp.array([2, 7, 11])].set(jnp.array([1.0, -2.0, 0.5]))
    >>> x = jax.random.normal(jax.random.key(0), (40, 20))
    >>> y = x @ w_true
    >>> gradient = jax.grad(lambda w: jnp.mean(jnp.square(x @ w - y)) / 2)
    >>> def fit(tx, steps=2000):
    ...     def step(carry, _):
    ...         w, state = carry
    ...         updates, state = tx.update(gradient(w), state, w)
    ...         return (optax.apply_updates(w, updates), state), None
    ...     w = jnp.ones(20)
    ...     (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=steps)
    ...     return w

With subgradient steps, the weights that should be 0 keep crossing 0, and end near it:

    >>> w = fit(optax.chain(add_l1(0.01), optax.sgd(0.1)))
    >>> bool(jnp.abs(w - w_true).max() < 0.05), int(jnp.sum(jnp.abs(w) > 0.01))
    (True, 3)
    >>> int(jnp.sum(w == 0)) < 17
    True

With the proximal step of the same penalty, they become exactly 0:

    >>> w = fit(optax.chain(optax.sgd(0.1), proximal_l1(0.01, learning_rate=0.1)))
    >>> bool(jnp.abs(w - w_true).max() < 0.05), int(jnp.sum(w == 0))
    (True, 17)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxcifar.errors import UserError

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
        w = _widened(w)
        return _cast(strength, w) * jnp.sum(w * jax.lax.stop_gradient(jnp.sign(w)))

    return _regularizer(value, lambda w: _cast(strength, w) * jnp.sign(w), mask)


def l2(strength: float | jax.Array, mask: Mask | None = None) -> Regularizer:
    """Returns λ Σw² and its gradient, 2λ·w.

    Note the factor 2: `optax.add_decayed_weights(s)`, and PyTorch's weight_decay=s, correspond to
    `add_l2(s / 2)`.

    Args:
      strength: λ ≥ 0; a number or a traced scalar.
      mask: as in `l1`.
    """

    def value(w: jax.Array) -> jax.Array:
        w = _widened(w)
        return _cast(strength, w) * jnp.sum(jnp.square(w))

    return _regularizer(value, lambda w: 2 * _cast(strength, w) * w, mask)


def add_l1(strength: float | jax.Array, mask: Mask | None = None) -> optax.GradientTransformation:
    """Adds λ·sign(w), the gradient of λ Σ|w|, to the updates. At w = 0 it adds 0.

    Args: see `l1`. With `optax.inject_hyperparams` a mask needs `static_args="mask"`.

    Returns:
      A stateless `optax.GradientTransformation`; its update needs `params`.
    """
    return l1(strength, mask).transform


def add_l2(strength: float | jax.Array, mask: Mask | None = None) -> optax.GradientTransformation:
    """Adds 2λ·w, the gradient of λ Σw², to the updates.

    Args: see `l2`, also for the factor 2. With `optax.inject_hyperparams` a mask needs
      `static_args="mask"`.

    Returns:
      A stateless `optax.GradientTransformation`; its update needs `params`.
    """
    return l2(strength, mask).transform


def proximal_l1(
    strength: float | jax.Array, learning_rate: float | jax.Array, mask: Mask | None = None
) -> optax.GradientTransformation:
    """Makes the updates end at the proximal point of λ Σ|w|, where small weights are exactly 0.

    With w the parameters, u the updates and t = learning_rate · λ, the parameters become
    sign(w + u) · max(|w + u| − t, 0): soft-thresholding (Parikh & Boyd, "Proximal Algorithms",
    2014, section 6.5.2). Last in a chain after plain SGD of the same learning rate this is the
    proximal gradient method (section 4.2), also known as ISTA:

        tx = optax.chain(optax.sgd(0.1), proximal_l1(1e-4, learning_rate=0.1))

    After an optimizer that scales each weight's step, such as Adam, it still gives exact zeros, but
    the point it converges to is not in general that of the penalized loss. Where the parameters are
    float16, t is too, and below 3e-8 it is 0.

    Args:
      strength: λ ≥ 0; a number or a traced scalar.
      learning_rate: the optimizer's, > 0; a number or a traced scalar. For a schedule,
        `optax.inject_hyperparams(proximal_l1, static_args="mask")(1e-4, learning_rate=schedule)`.
      mask: as in `l1`.

    Returns:
      A stateless `optax.GradientTransformation`; its update needs `params`.
    """

    def shrink(u: jax.Array, w: jax.Array) -> jax.Array:
        target = w + u
        wide = _widened(w)
        threshold = (_cast(strength, wide) * _cast(learning_rate, wide)).astype(w.dtype)
        target = jnp.sign(target) * jnp.maximum(jnp.abs(target) - threshold, jnp.zeros((), w.dtype))
        return target - w  # exactly −w where the target is 0

    return _transform(shrink, mask)


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
    """A mask that chooses convolution and linear weights: no bias, no BatchNorm scale.

    These are the leaves that Flax names "kernel", boxed or not (`nn.with_partitioning`). Where
    weights have other names, give a mask of your own, such as
    `lambda params: jax.tree.map(lambda w: w.ndim > 1, params)`.

    Raises:
      UserError: there is none of that name.
    """
    chosen = jax.tree_util.tree_map_with_path(
        lambda path, _: names(path)[-1:] == ["kernel"], params
    )
    if not any(jax.tree.leaves(chosen)):
        raise UserError(
            "No parameter is named 'kernel', which is how kernels_only finds weights. Give a mask "
            "of your own, such as lambda params: jax.tree.map(lambda w: w.ndim > 1, params)."
        )
    return chosen


# What config.optim.penalize names.
MASKS: dict[str, Mask | None] = {"all": None, "kernels": kernels_only}


def names(path: tuple[Any, ...]) -> list[str]:
    """Returns the names of modules and their parameter in a leaf's path.

    They are keys of dictionaries, and attributes but for "value", which is that of Flax's boxes.
    """
    found = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    boxed = jax.tree_util.GetAttrKey("value")
    return [
        name
        for name, entry in zip(found, path, strict=True)
        if isinstance(name, str) and entry != boxed
    ]


def _widened(w: jax.Array) -> jax.Array:
    """At least float32, since in float16 a sum of many weights is infinite."""
    _check_real(w)
    return w.astype(jnp.float32) if w.dtype.itemsize < 4 else w


def _check_real(w: jax.Array) -> None:
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise UserError(
            f"A penalized parameter is {w.dtype}, but L1 and L2 need real ones. Leave it out "
            "with a mask."
        )


def _cast(strength: float | jax.Array, w: jax.Array) -> jax.Array:
    _check_real(w)
    return jnp.asarray(strength).astype(w.dtype)


def _resolve(mask: Mask | None, params: chex.ArrayTree) -> chex.ArrayTree:
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    # As optax has it: a tree of bools may be callable, as a module is, and its leaf may stand for a
    # part of the parameters.
    if (leaves := jax.tree.leaves(mask)) and all(map(callable, leaves)):
        mask = mask(params)  # pyright: ignore
    return jax.tree.map(lambda on, part: jax.tree.map(lambda _: on, part), mask, params)


def _regularizer(
    value: Callable[[jax.Array], jax.Array],
    gradient: Callable[[jax.Array], jax.Array],
    mask: Mask | None,
) -> Regularizer:
    """Makes both halves of a regularizer from the value and the gradient of one leaf."""

    def penalty(params: chex.ArrayTree) -> jax.Array:
        zero = jnp.zeros((), jnp.float32)  # also where jax_enable_x64 is set
        terms = jax.tree.map(
            lambda w, chosen: value(w) if chosen else zero,
            params,
            _resolve(mask, params),
        )
        return sum(jax.tree.leaves(terms), start=zero)

    return Regularizer(penalty, _transform(lambda g, w: g + gradient(w), mask))


def _transform(
    change: Callable[[jax.Array, jax.Array], jax.Array], mask: Mask | None
) -> optax.GradientTransformation:
    """Applies `change`, of an update and its parameter, to the leaves that `mask` chooses."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("update needs the parameters: tx.update(updates, state, params)")
        chosen = _resolve(mask, params)
        updates = jax.tree.map(
            lambda u, w, on: change(u, w) if on and u is not None else u,
            updates,
            params,
            chosen,
            is_leaf=lambda u: u is None,  # which optax passes on for what is not trained
        )
        return updates, state

    return optax.GradientTransformation(optax.init_empty_state, update)
