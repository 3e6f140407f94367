"""The folder of a run: who holds it, which config it is of, and what it ran on."""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax

import jaxcifar
from jaxcifar import metrics
from jaxcifar.config import Config, differences
from jaxcifar.errors import UserError


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Makes `workdir` and holds it, so that no two runs write there at once."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written: {error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another process is training in {workdir}. Wait for it, or choose another "
                "--workdir."
            ) from error
        yield


def saved_config(workdir: pathlib.Path) -> dict | None:
    """The config of the run in `workdir`; None where there is no run."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())["config"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Choose another --workdir.") from error


def check_same(saved: dict, config: Config, workdir: pathlib.Path) -> None:
    if changed := differences(saved, config.to_dict()):
        raise UserError(
            f"{workdir} holds a run of another config (there -> here):\n  "
            + "\n  ".join(changed)
            + "\nGive the same values to go on with it, or another --workdir to start anew."
        )


def finished(config: Config, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The result of the run in `workdir`, where it is of this config and complete."""
    saved = saved_config(workdir)
    if saved is None:
        return None
    check_same(saved, config, workdir)
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_config(config: Config, workdir: pathlib.Path, provenance: dict, in_force: dict) -> None:
    """Writes config.json, or checks that a run resumed there sees the same images and dtype."""
    path = workdir / "config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    if saved := content.get("data"):  # imported weights have none until they are trained
        dtype = content["environment"]["dtype"]
        if dtype != in_force["dtype"]:
            raise UserError(
                f"{workdir} holds a run in {dtype}, but model.dtype is {config.model.dtype!r}, "
                f"which is {in_force['dtype']} on this {jax.default_backend()}. Go on with it on a "
                "device like the one it began on, or choose another --workdir."
            )
        for part, facts in provenance.items():
            if part in saved and saved[part]["sha256"] != facts["sha256"]:
                raise UserError(
                    f"{workdir} holds a run on other {part} images (from {saved[part]['source']}; "
                    f"these are from {facts['source']}). Choose another --workdir."
                )
        return
    content = {
        "config": config.to_dict(),
        "data": provenance,
        "environment": environment(in_force),
    }
    metrics.write_json(path, content)


def environment(in_force: dict) -> dict[str, Any]:
    """Returns the versions, commit, machine and time, JSON-ready, with `in_force` among them."""
    devices = jax.devices()
    return {
        "jaxcifar": jaxcifar.__version__,  # installed or not
        **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "commit": git_commit(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpus": os.cpu_count(),
        **in_force,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, with '+' where files differ from it; None outside git."""
    here = pathlib.Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # In an installed package the enclosing repository, if any, is another project's.
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextlib.contextmanager
def interruptible(handle: Callable[[int], None]) -> Iterator[None]:
    """Passes the first SIGINT or SIGTERM to `handle`; a second one acts as usual."""

    def first(signum: int, _) -> None:
        for number, previous in before.items():
            signal.signal(number, previous)
        handle(signum)

    try:
        before = {n: signal.signal(n, first) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs it there handles signals
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
