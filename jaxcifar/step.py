"""One training step and one evaluation step, as pure functions to jit."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcifar import losses
from jaxcifar.errors import UserError
from jaxcifar.optim import Regularizer
from jaxcifar.state import TrainState

Metrics = dict[str, jax.Array]
# (params, state, images, labels) -> (cross-entropy, (logits, batch_stats)). See `make_loss`.
Loss = Callable[[Any, TrainState, jax.Array, jax.Array], tuple[jax.Array, tuple[Any, ...]]]


class Lookahead(NamedTuple):
    """Every k steps, slow weights move towards the fast (trained) ones, then replace them.

    Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019; with slow weights that
    move less and less over the run, and with BatchNorm's statistics treated alike, as in Jordan,
    "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024: at step t of T, for multiples t of k,
    slow ← d · slow + (1 − d) · fast and fast ← slow, with d = 0.95⁵ (t / T)³.

    Attributes:
      every: k.
      steps: T, the length of the whole run.
    """

    every: int
    steps: float | jax.Array

    def synchronize(self, state: TrainState) -> TrainState:
        """Returns the state after Lookahead's part of a training step."""
        decay = 0.95**5 * (state.step.astype(jnp.float32) / self.steps) ** 3
        due = state.step % self.every == 0

        def moved(slow: jax.Array, fast: jax.Array) -> jax.Array:
            return jnp.where(due, fast + decay * (slow - fast), slow)

        slow = jax.tree.map(moved, state.slow, state.variables)
        fast = jax.tree.map(lambda s, f: jnp.where(due, s, f), slow, state.variables)
        return state.replace(slow=slow, **fast)


def make_loss(
    model: nn.Module,
    prepare: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    cross_entropy: Callable[[jax.Array, Any], jax.Array] = losses.cross_entropy,
) -> Loss:
    """Returns loss(params, state, images, labels) -> (cross-entropy, (logits, batch_stats)).

    This is the mean cross-entropy of the batch, in nats, as the step that follows `state` computes
    it (training mode, that step's augmentation and dropout), but at the given `params`. It has no
    penalties: the optimizer adds their gradients.

    Args:
      model: a linen module with a `train` argument, with or without BatchNorm state.
      prepare: (key, images, labels) -> (inputs, targets): augments and normalises the images, and
        makes what the logits are compared with.
      cross_entropy: (logits, targets) -> [N]. The targets are whatever `prepare` returns, such as
        labels and the logits of a teacher.

    The loss takes images [N, 32, 32, 3] and labels [N] int32. Its logits are [N, classes] float32;
    `batch_stats` are the running statistics after the batch.
    """

    def loss(params: Any, state: TrainState, images: jax.Array, labels: jax.Array):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        inputs, targets = prepare(augment_key, images, labels)
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        ce = cross_entropy(logits, targets).mean()
        return ce, (logits, updated.get("batch_stats", {}))

    return loss


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    schedule: optax.Schedule | None = None,
    regularizers: Sequence[Regularizer] = (),
    ema_decay: float = 0.0,
    lookahead: Lookahead | None = None,
    norms: bool = False,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
    """Returns train_step(state, images, labels) -> (state, metrics).

    Args:
      loss: the cross-entropy of a batch, see `make_loss`.
      tx: the optimizer, which adds the gradients of the penalties itself.
      schedule: the learning rate in `tx`, so that it can be reported.
      regularizers: those whose transforms are in `tx`, so that the penalties can be reported.
      ema_decay: d, for a state that keeps an average of the variables v: each step makes it
        d · average + (1 − d) · v (PyTorch's get_ema_avg_fn).
      lookahead: for a state that keeps slow weights.
      norms: report "gradient_norm" and "update_norm" as well.

    The metrics are float32 scalars of this batch: "loss" (the objective: cross-entropy plus
    penalties), "ce" (cross-entropy), "accuracy" and, given a schedule, "learning_rate". The norms
    are Euclidean, over all parameters: of the cross-entropy's gradient, before penalties and
    clipping, and of what the optimizer adds to the parameters.

    Raises:
      UserError: from the step: the state keeps an average, or slow weights, and the step does not
        move them, or the other way round.
    """

    # Some, such as optax.contrib.reduce_on_plateau, need the loss.
    update = optax.with_extra_args_support(tx).update

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        averages = isinstance(ema_decay, jax.Array) or ema_decay != 0  # it may be traced
        if (state.ema is None) == averages or (state.slow is None) != (lookahead is None):
            raise UserError(
                "The state and the step must average the same weights: create_state has "
                f"{'no ' if state.ema is None else ''}keep_ema and "
                f"{'no ' if state.slow is None else ''}keep_slow, but make_train_step has "
                f"ema_decay {ema_decay} and {'no ' if lookahead is None else ''}lookahead."
            )
        (ce, (logits, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state, images, labels
        )
        updates, opt_state = update(grads, state.opt_state, state.params, value=ce)
        metrics = {
            "loss": ce + sum(r.penalty(state.params) for r in regularizers),
            "ce": ce,
            "accuracy": losses.correct(logits, labels).mean(),
        }
        if schedule is not None:
            metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        if norms:
            metrics["gradient_norm"] = optax.tree.norm(grads)
            metrics["update_norm"] = optax.tree.norm(updates)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.ema is not None:
            ema = optax.incremental_update(state.variables, state.ema, 1 - ema_decay)
            state = state.replace(ema=ema)
        if lookahead is not None:
            state = lookahead.synchronize(state)
        return state, metrics

    return train_step


def make_eval_step(
    logits_of: Callable[[dict[str, Any], jax.Array], jax.Array],
) -> Callable[[dict[str, Any], jax.Array, jax.Array, jax.Array], Metrics]:
    """Returns eval_step(variables, images, labels, mask) -> sums over the batch.

    Args:
      logits_of: (variables, images) -> logits [N, classes]: the network in evaluation mode.

    The step takes images [N, 32, 32, 3], labels [N] and mask [N] bool, which is False for padding,
    and returns sums over the other examples: "loss" (cross-entropy) float32, "correct" and "count"
    int32.
    """

    def eval_step(
        variables: dict[str, Any], images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> Metrics:
        logits = logits_of(variables, images)
        return {
            "loss": jnp.sum(losses.cross_entropy(logits, labels), where=mask),
            "correct": jnp.sum(losses.correct(logits, labels), where=mask),
            "count": jnp.sum(mask),
        }

    return eval_step
