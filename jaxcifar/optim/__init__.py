"""Optimizers, schedules and regularizers, as optax parts that can each be used alone."""

from jaxcifar.optim.optimizer import OPTIMIZERS, make_optimizer
from jaxcifar.optim.regularizers import (
    MASKS,
    add_l1,
    add_l2,
    kernels_only,
    l1_penalty,
    l2_penalty,
)
from jaxcifar.optim.schedules import SCHEDULES, cosine_annealing, make_schedule

__all__ = [
    "MASKS",
    "OPTIMIZERS",
    "SCHEDULES",
    "add_l1",
    "add_l2",
    "cosine_annealing",
    "kernels_only",
    "l1_penalty",
    "l2_penalty",
    "make_optimizer",
    "make_schedule",
]
