"""What the tests of sweeps share."""

import json
import socket
import subprocess
import time

import pytest

from jaxcifar import data
from jaxcifar.errors import UserError

CIFAR = ("--config.data.name=cifar10", "--config.train.limit_train_images=0")
HOST = socket.gethostname()


@pytest.fixture
def no_images(monkeypatch):
    def missing(*_, **__):
        raise UserError("There are no images here.")

    monkeypatch.setattr(data, "load", missing)


def until(happened):
    """Waits until a function returns true."""
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail("it did not happen within a minute")
        time.sleep(0.05)


def leave_sign_of_a_dead_process(workdir, host=HOST):
    ended = subprocess.Popen(["true"])
    ended.wait()
    workdir.mkdir(parents=True, exist_ok=True)
    sign = {"host": host, "pid": ended.pid, "job": "77_3", "time": ""}
    (workdir / ".running").write_text(json.dumps(sign))
