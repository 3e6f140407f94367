"""All that a step changes, in one pytree."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcifar.models.initializers import init_from_one_draw


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` training steps.

    Attributes:
      step: scalar int32.
      params: the trained parameters, float32.
      batch_stats: BatchNorm's running statistics, float32; {} for a model without.
      opt_state: of the optax transformation.
      key: the run's PRNG key. It never changes: step n draws from fold_in(key, n), so that any
        step can be computed again from the seed and its number alone.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    key: jax.Array

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: int | jax.Array
) -> TrainState:
    """Returns the state before the first step; initialisation follows from `seed`.

    Compiles fastest with `jaxcifar.compilation.jit(…, in_haste=True)`.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = init_from_one_draw(model, init_key, jnp.zeros((1, 32, 32, 3)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        key=key,
    )
