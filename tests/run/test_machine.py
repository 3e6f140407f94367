"""What a run ran on."""

import re
import subprocess

import jax

import jaxcifar
from jaxcifar.run import machine
from tests.tiny import mesh


def test_environment():
    found = machine.environment({"dtype": "float32"}, mesh(4))
    assert (found["jaxcifar"], found["jax"]) == (jaxcifar.__version__, jax.__version__)
    assert (found["devices"], found["dtype"]) == (4, "float32")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["started"])
    assert machine.environment({})["devices"] == 8


def test_commit(monkeypatch):
    found = machine.git_commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}\+?", found)

    def no_git(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert machine.git_commit() is None


def test_peak_memory():
    assert 2**26 < machine.peak_memory() < 2**40  # a process with JAX has more than 64 MiB
