"""Learning-rate schedules: functions of the step alone, so that a resumed run is the same run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxcifar.errors import choose

SCHEDULES = ("cosine", "cosine_per_step", "constant", "triangular", "multistep")


def _numpy_or_jax(step: Any, *numbers: Any) -> Any:
    """NumPy, which has float64, for a step that is one number, unless another number is traced."""
    plain = isinstance(step, int | float | np.number)
    return np if plain and not any(isinstance(n, Tracer) for n in numbers) else jnp


def cosine_annealing(
    base_lr: float | jax.Array,
    epochs: float | jax.Array,
    steps_per_epoch: int,
    per: str = "epoch",
) -> optax.Schedule:
    """Cosine annealing from `base_lr` to 0, without warm restarts.

    Loshchilov & Hutter, "SGDR", 2016, eq. 5, with η_min = 0: at epoch e of E the learning rate is
    base_lr · (1 + cos(πe/E)) / 2; from E on it is 0. PyTorch's CosineAnnealingLR(T_max=E).

    Args:
      base_lr: the learning rate of the first epoch.
      epochs: E.
      steps_per_epoch: training steps in an epoch.
      per: "epoch", e moves once an epoch, or "step", e = step / steps_per_epoch.

    Returns:
      step -> learning rate. For a Python or NumPy integer it computes in float64; for a JAX array
      it can be traced.

    Raises:
      UserError: `per` is neither.
    """
    choose("per", per, ("epoch", "step"))

    def schedule(step: Any) -> Any:
        xp = _numpy_or_jax(step, epochs)
        step = xp.asarray(step)
        epoch = step // steps_per_epoch if per == "epoch" else step / steps_per_epoch
        # (1 + cos x)/2 as cos²(x/2): the sum cancels near the end, where float32 would lose it.
        epoch = xp.asarray(epoch, float)
        # Of 0 epochs there is no fraction: the schedule is over from the first step on.
        fraction = xp.where(epoch < epochs, epoch / xp.maximum(epochs, 1e-9), 1.0)
        return base_lr * xp.square(xp.cos(np.pi / 2 * fraction))

    return schedule


def triangular(
    base_lr: float | jax.Array,
    epochs: float | jax.Array,
    steps_per_epoch: int,
    *,
    peak_epoch: float | jax.Array,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
) -> optax.Schedule:
    """Linear: start_factor · base_lr up to base_lr at `peak_epoch`, down to end_factor · base_lr.

    Smith, "Cyclical Learning Rates", 2017, one cycle of it; as in Jordan, "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU", 2024, the peak is at a whole step.

    Args:
      base_lr: the highest learning rate.
      epochs: of the whole run; after it the learning rate stays.
      steps_per_epoch: training steps in an epoch.
      peak_epoch: the epoch of the highest learning rate; it need not be whole.
      start_factor, end_factor: shares of base_lr, as PyTorch's LinearLR calls them.

    Returns:
      step -> learning rate.
    """

    def schedule(step: Any) -> Any:
        xp = _numpy_or_jax(step, epochs, peak_epoch)
        step = xp.asarray(step, float)
        total = epochs * steps_per_epoch
        # In float32 the product of a share and a number of steps may miss a whole number.
        top = xp.floor(peak_epoch * steps_per_epoch + 1e-3)
        up = step / xp.maximum(top, 1)
        down = xp.clip((step - top) / xp.maximum(total - top, 1), 0.0, 1.0)
        rising = start_factor + (1 - start_factor) * up
        return base_lr * xp.where(step < top, rising, 1 + (end_factor - 1) * down)

    return schedule


def multistep(
    base_lr: float | jax.Array,
    milestones: Sequence[float],
    steps_per_epoch: int,
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """`base_lr`, multiplied by `decay_factor` after each milestone; PyTorch's MultiStepLR.

    Args:
      base_lr: the first learning rate.
      milestones: epochs; whole ones, or their nearest steps.
      steps_per_epoch: training steps in an epoch.
      decay_factor: what PyTorch calls gamma.

    Returns:
      step -> learning rate.
    """
    steps = [round(epoch * steps_per_epoch) for epoch in milestones]

    def schedule(step: Any) -> Any:
        xp = _numpy_or_jax(step, base_lr)
        rate = base_lr
        for first in steps:
            rate = rate * xp.where(step < first, 1.0, decay_factor)
        return rate

    return schedule


def make_schedule(
    name: str,
    base_lr: float | jax.Array,
    epochs: float | jax.Array,
    steps_per_epoch: int,
    warmup_epochs: float | jax.Array = 0.0,
    *,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
    milestones: Sequence[float] = (),
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """Returns the schedule `name`, one of SCHEDULES: step -> learning rate.

    Args:
      name: "cosine" (see `cosine_annealing`), "cosine_per_step", "constant", "triangular" or
        "multistep".
      base_lr: the highest learning rate.
      epochs: of the whole run, with the warm-up.
      steps_per_epoch: training steps in an epoch.
      warmup_epochs: before the schedule, which then has the rest of the epochs: step n (from 0) of
        the W whole steps of warm-up has base_lr · (n + 1) / W. Goyal et al., "Accurate, Large
        Minibatch SGD", 2017, section 2.2. The rise of "triangular" is its warm-up; the milestones
        of "multistep" are epochs of the whole run, as there.
      start_factor, end_factor: of `triangular`.
      milestones, decay_factor: of `multistep`.

    Raises:
      UserError: there is no such schedule.
    """
    choose("optim.schedule", name, SCHEDULES)
    if name == "triangular":
        return triangular(
            base_lr,
            epochs,
            steps_per_epoch,
            peak_epoch=warmup_epochs,
            start_factor=start_factor,
            end_factor=end_factor,
        )
    if name == "constant":
        after = optax.constant_schedule(base_lr)
    elif name == "multistep":
        after = multistep(base_lr, milestones, steps_per_epoch, decay_factor)
    else:
        per = {"cosine": "epoch", "cosine_per_step": "step"}[name]
        after = cosine_annealing(base_lr, epochs - warmup_epochs, steps_per_epoch, per)

    def schedule(step: Any) -> Any:
        xp = _numpy_or_jax(step, base_lr, epochs, warmup_epochs)
        step = step if xp is np else jnp.asarray(step, float)
        # Whole steps, as in `triangular`: the last of them has the highest rate.
        warm = xp.floor(warmup_epochs * steps_per_epoch + 1e-3)
        rising = base_lr * (step + 1) / xp.maximum(warm, 1)
        since = step if name == "multistep" else xp.maximum(step - warm, 0)
        return xp.where(step < warm, rising, after(since))

    return schedule
