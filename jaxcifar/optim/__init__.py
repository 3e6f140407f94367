"""Optimizers, schedules and regularizers, as optax parts that can each be used alone."""

from jaxcifar.optim.optimizers import OPTIMIZERS, l1_and_l2, make_optimizer, options_of
from jaxcifar.optim.regularizers import (
    MASKS,
    Mask,
    Regularizer,
    add_l1,
    add_l2,
    kernels_only,
    l1,
    l1_penalty,
    l2,
    l2_penalty,
    proximal_l1,
)
from jaxcifar.optim.schedules import (
    SCHEDULES,
    cosine_annealing,
    make_schedule,
    multistep,
    triangular,
)

__all__ = [
    "MASKS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Mask",
    "Regularizer",
    "add_l1",
    "add_l2",
    "cosine_annealing",
    "kernels_only",
    "l1",
    "l1_and_l2",
    "l1_penalty",
    "l2",
    "l2_penalty",
    "make_optimizer",
    "make_schedule",
    "multistep",
    "options_of",
    "proximal_l1",
    "triangular",
]
