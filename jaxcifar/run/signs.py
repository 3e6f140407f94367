"""What a sweep adds to a run's workdir: a sign of life, or the reason of a failure.

.running exists while the run trains, and is touched regularly. failed.json says why the last
attempt failed, and is deleted when the run is complete.
"""

import contextlib
import json
import os
import pathlib
import socket
import time
from typing import Any, NamedTuple

from jaxcifar.run.log import write_shared

_SILENT = 600.0  # seconds after which a run no longer counts as running


class Running(NamedTuple):
    """A run's last sign of life."""

    host: str
    job: str  # of Slurm, "77_3"; "" elsewhere
    age: float  # seconds
    alive: bool  # it is probably still running


def give(workdir: pathlib.Path) -> None:
    """Leaves a sign that this process trains here."""
    write_shared(workdir / ".running", _who())


def renew(workdir: pathlib.Path) -> None:
    """Renews the sign."""
    with contextlib.suppress(OSError):  # the run itself will report a full disk
        (workdir / ".running").touch()


def withdraw(workdir: pathlib.Path) -> None:
    """Removes the sign, if this process left it."""
    sign = _read(workdir / ".running")
    if sign and (sign["host"], sign["pid"]) == (_who()["host"], _who()["pid"]):
        (workdir / ".running").unlink(missing_ok=True)


def running(workdir: pathlib.Path) -> Running | None:
    """Returns a run's last sign of life; None if nothing trains there, or it ended properly."""
    path = workdir / ".running"
    sign = _read(path)
    if not sign:
        return None
    try:
        age = max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:  # the run ended meanwhile
        return None
    here = sign["host"] == socket.gethostname()
    alive = age < _SILENT and not (here and _is_dead(sign["pid"]))
    return Running(sign["host"], sign["job"], age, alive)


def fail(workdir: pathlib.Path, message: str) -> None:
    """Writes failed.json, if that is possible."""
    with contextlib.suppress(OSError):
        workdir.mkdir(parents=True, exist_ok=True)  # the run may have failed before it wrote there
        write_shared(workdir / "failed.json", _who() | {"message": message})


def failure(workdir: pathlib.Path, since: float = 0.0) -> str:
    """Returns why a run failed after `since` (seconds since the epoch); "" if it did not."""
    path = workdir / "failed.json"
    content = _read(path)
    with contextlib.suppress(OSError):
        if content and path.stat().st_mtime >= since:
            return content["message"]
    return ""


def succeeded(workdir: pathlib.Path) -> None:
    """Removes failed.json."""
    (workdir / "failed.json").unlink(missing_ok=True)


def _who() -> dict[str, Any]:
    environ = os.environ
    task = f"{environ.get('SLURM_ARRAY_JOB_ID')}_{environ.get('SLURM_ARRAY_TASK_ID')}"
    job = task if "SLURM_ARRAY_JOB_ID" in environ else environ.get("SLURM_JOB_ID", "")
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "time": started}


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """The content of one of the two files; None if it does not exist or cannot be used."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    names = {"host", "pid", "job"}
    return content if isinstance(content, dict) and names <= content.keys() else None


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
