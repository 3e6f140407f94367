"""Everything a training step updates, in one pytree."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.errors import UserError


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` training steps.

    Attributes:
      step: the number of steps done, scalar int32.
      params: the trained parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; {} for a model without BatchNorm.
      opt_state: the state of the optax transformation.
      key: the run's PRNG key. It never changes: step n draws from fold_in(key, n), so any step
        can be recomputed from the seed and its number alone.
      ema: the exponential moving average of `variables`, or None if the run keeps none.
      slow: the slow weights and statistics of Lookahead, or None if it is not used.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: optax.OptState
    key: jax.Array
    ema: dict[str, Any] | None = None
    slow: dict[str, Any] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict[str, Any]:
        """The moving average if there is one, else `variables`: what a run is judged by."""
        return self.variables if self.ema is None else self.ema


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int | jax.Array,
    *,
    images: jax.Array | None = None,
    weights: Mapping[str, Any] | None = None,
    keep_ema: bool = False,
    keep_slow: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: a linen module with a `train` argument.
      tx: the optimizer.
      seed: determines the initial weights and everything random in the run.
      images: normalised training images [N, 32, 32, 3], for models that fit part of their weights
        to them (`jaxcifar.models.network.Network.fitted`).
      weights: {"params", "batch_stats"}, or a part of them, to use instead of initial ones.
      keep_ema: also keep a moving average, which starts at the initial variables.
      keep_slow: also keep Lookahead's slow weights, which start there too.

    It compiles fastest with `jaxcifar.kernels.compilation.jit(…, fast_compile=True)`.

    Raises:
      UserError: the model has other collections than "params" and "batch_stats", or `weights` does
        not fit it.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, 32, 32, 3), jnp.float32), train=False)
    if other := sorted(set(variables) - {"params", "batch_stats"}):
        raise UserError(
            f"{type(model).__name__} has the collections {', '.join(other)}, but a state keeps "
            "only params and batch_stats. Keep what changes in training in batch_stats."
        )
    if images is not None:
        variables = model.fitted(variables, images)  # pyright: ignore
    if weights:
        _check_fit(variables, weights)
        variables = unflatten_dict(flatten_dict(variables) | flatten_dict(weights))
    return first_state(variables, tx, key, keep_ema=keep_ema, keep_slow=keep_slow)


def _check_fit(variables: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    there: dict[tuple[str, ...], Any] = flatten_dict(nn.unbox(variables))  # pyright: ignore
    given: dict[tuple[str, ...], Any] = flatten_dict(nn.unbox(weights))  # pyright: ignore
    for path, leaf in given.items():
        name = "/".join(path)
        if path not in there:
            raise UserError(
                f"weights has {name}, which the model does not have. It must be a part of the "
                'model\'s variables: {"params": {…}, "batch_stats": {…}}.'
            )
        found, wanted = jnp.shape(leaf), jnp.shape(there[path])
        if found != wanted:
            raise UserError(f"weights has {name} of shape {found}; that of the model is {wanted}.")


def first_state(
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    keep_ema: bool = False,
    keep_slow: bool = False,
) -> TrainState:
    """Returns the state before the first step, from given variables and a run's key."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        key=key,
    )
    # Copies, because a step may donate its argument's memory: that of no array twice, and not that
    # of the caller's. (Some optimizers keep the parameters that they begin with.)
    copy = functools.partial(jax.tree.map, jnp.copy)
    return copy(state).replace(
        ema=copy(state.variables) if keep_ema else None,
        slow=copy(state.variables) if keep_slow else None,
    )


@functools.cache  # tracing a network takes about a second
def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """Returns the shapes and dtypes of a model's {"params", "batch_stats"}. Do not modify it."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Flax's own, because that of `jaxcifar.models` traces a network twice.
    init = functools.partial(nn.Module.init_with_output, model, train=False)
    _, shapes = jax.eval_shape(init, key, images)
    return {"params": {}, "batch_stats": {}} | shapes
