"""Optimizers, schedules and regularizers, as optax parts that can each be used alone."""

from jaxcifar.optim.optimizers import OPTIMIZERS, WITH_MOMENTUM, make_optimizer, regularizers
from jaxcifar.optim.regularizers import (
    MASKS,
    Regularizer,
    add_l1,
    add_l2,
    kernels_only,
    l1,
    l1_penalty,
    l2,
    l2_penalty,
)
from jaxcifar.optim.schedules import SCHEDULES, cosine_annealing, make_schedule

__all__ = [
    "MASKS",
    "OPTIMIZERS",
    "SCHEDULES",
    "WITH_MOMENTUM",
    "Regularizer",
    "add_l1",
    "add_l2",
    "cosine_annealing",
    "kernels_only",
    "l1",
    "l1_penalty",
    "l2",
    "l2_penalty",
    "make_optimizer",
    "make_schedule",
    "regularizers",
]
