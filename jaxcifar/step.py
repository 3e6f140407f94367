"""One training step and one evaluation step, as pure functions to jit."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcifar import losses
from jaxcifar.state import TrainState

Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    prepare: Callable[[jax.Array, jax.Array], jax.Array],
    penalty: Callable[[Any], jax.Array] | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """Returns train_step(state, images, labels) -> (state, metrics).

    Args:
      model: a linen module with `train` and BatchNorm state.
      tx: the optimizer; gradients of regularization penalties are its part (see
        `jaxcifar.optim.add_l1`).
      prepare: (key, images) -> what the model takes: augmentation and normalisation.
      penalty: params -> scalar, the penalty whose gradient `tx` adds. It is only reported, as
        part of the objective "loss".

    The step takes images [N, 32, 32, 3] and labels [N] int32, and returns scalars float32 of this
    batch: "loss" (the objective: cross-entropy and penalty), "ce" (cross-entropy) and "accuracy".
    """

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        inputs = prepare(augment_key, images)

        def loss_fn(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            return losses.cross_entropy(logits, labels).mean(), (logits, updates)

        (ce, (logits, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": ce if penalty is None else ce + penalty(state.params),
            "ce": ce,
            "accuracy": losses.correct(logits, labels).mean(),
        }
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=updated.get("batch_stats", {}),
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module, *, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[[dict, jax.Array, jax.Array, jax.Array], Metrics]:
    """Returns eval_step(variables, images, labels, mask) -> sums over the batch.

    Args:
      model: a linen module with `train`.
      prepare: images -> what the model takes: normalisation.

    The step takes images [N, 32, 32, 3], labels [N] and mask [N] bool, False where an example is
    padding, and returns sums over the examples that count: "loss" (cross-entropy) float32,
    "correct" and "count" int32.
    """

    def eval_step(
        variables: dict, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> Metrics:
        logits = model.apply(variables, prepare(images), train=False)
        return {
            "loss": jnp.sum(losses.cross_entropy(logits, labels), where=mask),
            "correct": jnp.sum(losses.correct(logits, labels), where=mask),
            "count": jnp.sum(mask),
        }

    return eval_step
