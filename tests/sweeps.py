"""Sweeps of seconds, and what looks like a finished one to those who read it."""

import contextlib
import json
import socket
import subprocess
import sys
import time

import pytest

from experiments.runs.rows import ROWS
from experiments.sweep.__main__ import main as sweep_main
from jaxcifar import sharding
from jaxcifar.files import write_json
from jaxcifar.options import load
from jaxcifar.run import plots
from jaxcifar.signals import exit_code
from tests import tiny
from tests.forked import environment_of

# Runs of seconds, whose programs are those of `tests.tiny.tiny` where the model is the same.
OPTIONS = [
    "--config.data.name=synthetic",
    "--config.model.width=0.05",
    "--config.model.dropout_rate=0.2",
    "--config.train.batch_size=32",
    "--config.train.limit_train_images=100",
    "--config.train.epochs=2",
    "--config.train.eval_batch_size=96",
]
CIFAR = ("--config.data.name=cifar10", "--config.train.limit_train_images=0")
HOST = socket.gethostname()


@contextlib.contextmanager
def on_one_device():
    """Lets runs use the first device only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda of=None: of or tiny.mesh(1))
        yield


def start_sweep(out, rows="vgg2,vgg6", seeds="0-1", *more):
    """Runs the command on rows shortened by `OPTIONS`; returns its exit code.

    Each history.png is no more than its numbers.
    """
    what = [f"--rows={rows}"] if rows else []
    arguments = [*what, f"--seeds={seeds}", f"--out={out}", *OPTIONS, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_history", tiny.write_numbers)
        return exit_code(lambda: sweep_main(arguments))


def sweep_command(out, *more):
    """Returns the command of a sweep of runs shortened by `OPTIONS`, and its environment."""
    command = [sys.executable, "-m", "experiments.sweep", f"--out={out}", *OPTIONS, *more]
    return command, environment_of(devices=1)


def pretend(config, workdir, **_):
    """Writes what a sweep looks at in a finished run."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    epochs = range(1, config.train.epochs + 1)
    lines = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in epochs)
    (workdir / "metrics.jsonl").write_text(lines)
    (workdir / "result.json").write_text("{}")


def write_fake_runs(out, changes=None, seeds=3, rows=ROWS, epochs=2, **fields):
    """Writes runs whose best epoch has the original's numbers, plus 0.001 × (seed − 1); twice that
    for the training accuracy.

    Args:
      changes: {row: {metric: added}}.
      rows: names; those that are no rows are runs like row 1's.
      fields: of every config, "group__name".
    """
    for name in rows:
        of_row = name if name in ROWS else "row1"
        row = ROWS[of_row]._asdict()
        for metric, added in (changes or {}).get(name, {}).items():
            row[metric] += added
        for seed in range(seeds):
            folder = out / name / f"seed{seed}"
            folder.mkdir(parents=True)
            config = load(of_row)
            config.seed, config.train.epochs = seed, epochs
            for field, value in fields.items():
                group, _, field_name = field.partition("__")
                config[group][field_name] = value
            part = {"name": "cifar10", "images": 50_000, "official": True, "sha256": "0123"}
            environment = {
                **{"jaxcifar": "0.1.0", "jax": "0", "flax": "0", "optax": "0", "numpy": "2"},
                **{"python": "3", "commit": "abc", "device": "cpu", "devices": 1, "cpus": 2},
                **{"dtype": "float32", "started": "2026-01-01T00:00:00Z"},
            }
            content = {"config": config.to_dict(), "data": {"train": part, "validation": part}}
            write_json(folder / "config.json", content | {"environment": environment})
            records = []
            for epoch in range(1, epochs + 1):
                best = epoch == epochs - 1  # the last epoch is a little worse
                record = {
                    metric: row[metric]
                    + 0.001 * (seed - 1) * (2 if metric == "train_accuracy" else 1)
                    - (0 if best else 0.002)
                    for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
                }
                record |= {"epoch": epoch, "step": 195 * epoch, "train_ce": record["train_loss"]}
                rates = {"learning_rate": 1e-3, "images_per_second": 1000.0, "seconds": 50.0}
                records.append(record | rates)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "metrics.jsonl").write_text(lines)
            ce = row["train_loss"] * (1 + 0.001 * seed)
            steps = [{"epoch": e, "ce": [ce] * 50} for e in (1, 2)]
            (folder / "steps.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
            result = {"parameters": 1_000_000, "train_seconds": 100.0}
            result |= {"compile_seconds": 5.0, "peak_memory_bytes": 2**30}
            write_json(folder / "result.json", result)
    return out


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
