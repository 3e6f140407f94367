"""Everything a training step updates, in one pytree."""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


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
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    key: jax.Array
    ema: dict | None = None

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
    keep_ema: bool = False,
) -> TrainState:
    """Returns the state before the first step; initialisation follows from `seed`.

    With `keep_ema`, the average starts at the initial variables.

    Compiles fastest with `jaxcifar.kernels.compilation.jit(…, fast_compile=True)`.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = model.init(init_key, jnp.zeros((1, 32, 32, 3)), train=False)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        key=key,
    )
    # A copy: a step gives the memory of its argument away, each array once.
    return state.replace(ema=jax.tree.map(jnp.copy, state.variables)) if keep_ema else state


@functools.lru_cache(16)  # to trace a network takes a second, and there are a dozen
def abstract_variables(model: nn.Module) -> dict:
    """Returns the shapes and dtypes of a model's {"params", "batch_stats"}; not to be changed."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # Flax's own init: that of `jaxcifar.models` traces a network twice.
    init = functools.partial(nn.Module.init, model, train=False)
    shapes = jax.eval_shape(init, key, images)
    return {"params": {}, "batch_stats": {}} | shapes
