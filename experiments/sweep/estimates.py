"""How much work the runs of a sweep are, and how long they will take."""

import functools
import time

import jax
import jax.numpy as jnp

from experiments.cost import forward_multiply_adds
from experiments.sweep.jobs import Job
from jaxcifar import augment
from jaxcifar.run.progress import duration


def work(jobs: list[Job]) -> float:
    """Returns the multiply-adds of whole runs."""
    return sum(job.config.train.epochs * _epoch_work(job) for job in jobs)


def work_left(job: Job) -> float:
    """Returns the multiply-adds that a run still needs, evaluation included."""
    return (job.config.train.epochs - len(job.records)) * _epoch_work(job)


def _epoch_work(job: Job) -> float:
    # A training step is about three forward passes; an epoch ends with one over each view of the
    # test images, and the averaged weights are evaluated beside the trained ones.
    config = job.config
    passes = len(augment.VIEWS[config.data.test_augment]) * (2 if config.train.ema_decay else 1)
    forward = 3 * len(job.images.train) + passes * len(job.images.validation)
    return forward * forward_multiply_adds(*_size(job))


def multiply_adds_per_second(jobs: list[Job]) -> float | None:
    """Returns the median speed of all epochs trained so far; None if there are none."""
    speeds: list[float] = []
    for job in jobs:
        image = 3 * forward_multiply_adds(*_size(job))
        found = (record.get("images_per_second") for record in job.records)
        speeds += [image * speed for speed in found if speed is not None]
    return sorted(speeds)[len(speeds) // 2] if speeds else None


def _size(job: Job) -> tuple[str, float]:
    return job.config.model.name, job.config.model.width


@functools.lru_cache
def guessed_multiply_adds_per_second() -> float:
    """Returns half the speed of this device's matrix product: a guess until an epoch is done."""
    cpu = jax.default_backend() == "cpu"
    n = 2048 if cpu else 8192
    matrix = jnp.ones((n, n), jnp.float32 if cpu else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(4):
        began = time.monotonic()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.monotonic() - began)
    return 0.5 * n**3 / min(seconds)


def time_left(jobs: list[Job], *, at_once: int = 1, guess: bool = True) -> str:
    """Says how long the remaining jobs will take, judging by the speed of the epochs so far.

    Args:
      jobs: the jobs of a sweep.
      at_once: how many of them run at the same time.
      guess: whether to measure the speed of this device if no epoch is done yet.
    """
    left = [job for job in jobs if job.state != "done"]
    if not left:
        return "nothing left"
    needed = sum(map(work_left, left)) / max(1, min(at_once, len(left)))
    if speed := multiply_adds_per_second(jobs):
        return f"about {duration(needed / speed)} left"
    if not guess:
        return "the time left is unknown before the first epoch"
    guessed = duration(needed / guessed_multiply_adds_per_second())
    return f"roughly {guessed} left (a guess from this device's matrix product, before any epoch)"
