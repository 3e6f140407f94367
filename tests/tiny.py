"""A run of seconds that many tests share, the devices they use, and hooks that watch or stop it."""

import dataclasses
import os
import signal
import time

import jax
import numpy as np
import pytest

from jaxcifar import data, restore, sharding, task, train
from jaxcifar.config import base_config
from jaxcifar.files import replacing
from jaxcifar.hooks import Hook
from jaxcifar.run import plots


def mesh(devices):
    """A mesh of the first so many devices."""
    return jax.sharding.Mesh(np.asarray(jax.devices()[:devices]), (sharding.BATCH_AXIS,))


def tiny(**fields):
    """A narrow VGG on 100 made-up images: three steps an epoch, two epochs."""
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.width = 0.05
    config.data.name = "synthetic"
    config.train.batch_size = 32
    config.train.limit_train_images = 100  # 4 are left over in each epoch
    config.train.epochs = 2
    config.train.eval_batch_size = 96  # 256 images in 96 + 96 + 64
    for field, value in fields.items():
        group, _, name = field.rpartition("__")
        (config[group] if group else config)[name] = value
    return config


def run(config, workdir, *hooks, devices=1, picture=False):
    """Trains on the first device; only with `picture` is history.png more than its numbers."""
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr(plots, "plot_history", write_numbers)
        return train.train_and_evaluate(
            config, workdir, hooks=hooks, mesh=mesh(devices), quiet=True
        )


def write_numbers(records, title, *paths, **_):
    """Writes a picture's numbers in its place, which takes no time."""
    for path in paths:
        with replacing(path) as temporary:
            temporary.write_bytes(b"\x89PNG" + repr((title, records)).encode())


def tiny_task(devices=1, *, platform=None, **fields):
    """The task of `tiny(**fields)`."""
    config = tiny(**fields)
    images = train.load_splits(config).train
    return task.build(config, images, mesh(devices), platform=platform)


def with_inference(made, **fields):
    """A task with another network, other devices or another normalisation."""
    return dataclasses.replace(made, inference=dataclasses.replace(made.inference, **fields))


def state_of(workdir, which="last"):
    """A checkpoint's variables."""
    return jax.device_get(restore.load_variables(workdir, which, mesh=mesh(1))[2])


def first_images(n, split="train"):
    """The first made-up images."""
    return data.load("synthetic", split).take(slice(n), f"the first {n}")


def without_times(records):
    """Records of epochs but for what no two runs have the same."""
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in timed} for r in records]


class Synced:
    """Notes which files and folders are synced to the disk, in `paths`."""

    def __init__(self, monkeypatch):
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("no /proc/self/fd, which says what is open, as on Linux")
        self.paths, fsync = [], os.fsync

        def noted(opened):
            self.paths.append(os.readlink(f"/proc/self/fd/{opened}"))
            fsync(opened)

        monkeypatch.setattr(os, "fsync", noted)


# --- hooks ------------------------------------------------------------------------------------


class SignalAt(Hook):
    """Sends this process a signal where `step` steps are done."""

    def __init__(self, step, *, signum=signal.SIGTERM, where="before_call"):
        self.step, self.signum, self.where = step, signum, where

    def _kill(self, where, run):
        if (where, run.step) == (self.where, self.step):
            os.kill(os.getpid(), self.signum)

    def before_call(self, run):
        self._kill("before_call", run)

    def before_evaluation(self, run):
        self._kill("before_evaluation", run)

    def after_epoch(self, run, record):
        self._kill("after_epoch", run)


class Spoil(Hook):
    """Makes the parameters not a number where `step` steps are done."""

    def __init__(self, step, *, where="before_call"):
        self.step, self.where = step, where

    def _spoil(self, where, run):
        if (where, run.step) == (self.where, self.step):
            spoiled = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), run.state.params)
            run.state = run.state.replace(params=sharding.replicate(spoiled, run.task.mesh))

    def before_call(self, run):
        self._spoil("before_call", run)

    def before_evaluation(self, run):
        self._spoil("before_evaluation", run)


class Look(Hook):
    """Keeps the state that a start begins with."""

    def start(self, run):
        self.state = jax.device_get(run.state)


class Slow(Hook):
    """Waits before each step."""

    def before_call(self, run):
        time.sleep(0.3)


class Watch(Hook):
    """Notes every call as (method, step)."""

    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", run.step))

    def before_call(self, run):
        self.calls.append(("before_call", run.step))

    def before_evaluation(self, run):
        self.calls.append(("before_evaluation", run.step))

    def after_epoch(self, run, record):
        assert record["step"] == run.step
        self.calls.append(("after_epoch", run.step))

    def close(self, run):
        self.calls.append(("close", run.step))

    def end(self, run, result):
        assert result["last"]["step"] == run.step
        self.calls.append(("end", run.step))

    @property
    def steps(self):
        """What `before_call` saw."""
        return [step for method, step in self.calls if method == "before_call"]
