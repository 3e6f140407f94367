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


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` training steps.

    Attributes:
      step: scalar int32.
      params: the trained parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; {} for a model without.
      opt_state: of the optax transformation.
      key: the run's PRNG key. It never changes: step n draws from fold_in(key, n), so that any
        step can be computed again from the seed and its number alone.
      ema: the exponential moving average of `variables`, where it is kept; else None.
      slow: the slow weights and statistics of Lookahead, where it is used; else None.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    key: jax.Array
    ema: dict | None = None
    slow: dict | None = None

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def averaged(self) -> dict:
        """The average where it is kept, else `variables`: what a run is judged by."""
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
    """Returns the state before the first step; initialisation follows from `seed`.

    With `images` [N, 32, 32, 3], normalised training images, it also follows from them where the
    model wants it (`jaxcifar.models.network.Network.fitted`). `weights`, {"params", "batch_stats"}
    or a part of them, take the place of what was initialised. With `keep_ema` or `keep_slow`, the
    average, or the slow weights, start at the initial variables.

    Compiles fastest with `jaxcifar.kernels.compilation.jit(…, fast_compile=True)`.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, 32, 32, 3)), train=False)
    if images is not None:
        variables = model.fitted(variables, images)  # pyright: ignore
    if weights:
        variables = unflatten_dict(flatten_dict(variables) | flatten_dict(weights))
    return first_state(variables, tx, key, keep_ema=keep_ema, keep_slow=keep_slow)


def first_state(
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    keep_ema: bool = False,
    keep_slow: bool = False,
) -> TrainState:
    """Returns the state before the first step from given variables and a run's key."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        key=key,
    )
    # A copy: a step gives the memory of its argument away, each array once.
    copy = functools.partial(jax.tree.map, jnp.copy, state.variables)
    return state.replace(ema=copy() if keep_ema else None, slow=copy() if keep_slow else None)


@functools.lru_cache(16)  # to trace a network takes a second, and there are a dozen
def abstract_variables(model: nn.Module) -> dict:
    """Returns the shapes and dtypes of a model's {"params", "batch_stats"}; not to be changed."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Flax's own init: that of `jaxcifar.models` traces a network twice.
    init = functools.partial(nn.Module.init, model, train=False)
    shapes = jax.eval_shape(init, key, images)
    return {"params": {}, "batch_stats": {}} | shapes
