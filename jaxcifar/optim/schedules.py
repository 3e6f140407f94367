"""Learning-rate schedules: functions of the step alone, so that a resumed run is the same run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcifar.errors import choose

SCHEDULES = ("cosine", "cosine_per_step", "constant")


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

    def schedule(step: Any):
        xp: Any = np if isinstance(step, int | float | np.number) else jnp
        step = xp.asarray(step)
        epoch = step // steps_per_epoch if per == "epoch" else step / steps_per_epoch
        # (1 + cos x)/2 as cos²(x/2): the sum cancels near the end, where float32 would lose it.
        fraction = xp.minimum(epoch / epochs, 1.0)
        return base_lr * xp.square(xp.cos(np.pi / 2 * fraction))

    return schedule


def make_schedule(
    name: str,
    base_lr: float | jax.Array,
    epochs: float | jax.Array,
    steps_per_epoch: int,
    warmup_epochs: float | jax.Array = 0.0,
) -> optax.Schedule:
    """Returns the schedule `name`, one of SCHEDULES: step -> learning rate.

    Args:
      name: "cosine" (see `cosine_annealing`), "cosine_per_step" or "constant".
      base_lr: the highest learning rate.
      epochs: of the whole run, with the warm-up.
      steps_per_epoch: training steps in an epoch.
      warmup_epochs: before the schedule, which then has the rest of the epochs: step n of the W
        steps of warm-up, from 0, has base_lr · (n + 1) / W. Goyal et al. 2017, section 2.2.

    Raises:
      UserError: there is no such schedule.
    """
    choose("optim.schedule", name, SCHEDULES)
    if name == "constant":
        after = optax.constant_schedule(base_lr)
    else:
        per = "step" if name == "cosine_per_step" else "epoch"
        after = cosine_annealing(base_lr, epochs - warmup_epochs, steps_per_epoch, per)

    def schedule(step):
        xp = np if isinstance(step, int | np.integer) else jnp
        warm = warmup_epochs * steps_per_epoch
        rising = base_lr * (step + 1) / xp.maximum(warm, 1)
        return xp.where(step < warm, rising, after(xp.maximum(step - warm, 0)))

    return schedule
