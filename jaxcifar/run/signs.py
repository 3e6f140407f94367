"""What a run's workdir says of its processes: a sign of life, or the reason for a failure.

.running exists while a process works on the run, and is touched regularly. failed.json, which
sweeps and runs that diverge write, says why the last attempt failed, and is deleted when the next
one begins.
"""

import contextlib
import functools
import os
import pathlib
import re
import socket
import threading
import time
from collections.abc import Generator
from typing import Any, NamedTuple

from jaxcifar import signals
from jaxcifar.files import read_json, write_shared
from jaxcifar.run.progress import duration

EVERY = 10.0  # seconds, between two touches
_SILENT = 600.0  # seconds after which a run no longer counts as running


class Running(NamedTuple):
    """A run's last sign of life."""

    host: str
    job: str  # of Slurm, "77_3"; "" elsewhere
    age: float  # seconds
    alive: bool  # it is probably still running
    here: bool  # on this machine, and in this container
    dead: bool  # its process is known to have ended


@contextlib.contextmanager
def shown(workdir: pathlib.Path) -> Generator[None]:
    """Shows that this process works on the run, for the duration of a `with` block.

    A thread renews the sign, because the one that trains may compile or evaluate for an hour.
    """
    with contextlib.suppress(OSError):  # a full disk, say, may still have room for the run
        give(workdir)
    ended = threading.Event()
    threading.Thread(target=_renew, args=(workdir, ended), daemon=True).start()
    _shown.add(workdir)
    try:
        yield
    finally:
        ended.set()
        _withdraw(workdir)
        _shown.remove(workdir)


_shown: set[pathlib.Path] = set()
signals.last_words.append(lambda: [_withdraw(workdir) for workdir in list(_shown)])


def _renew(workdir: pathlib.Path, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        with contextlib.suppress(OSError):  # it was withdrawn, or the run itself will say why
            _touch(workdir / ".running")


def give(workdir: pathlib.Path) -> None:
    """Leaves a sign that this process works here."""
    _leave(workdir / ".running", _who())


def _leave(path: pathlib.Path, content: dict[str, Any]) -> None:
    write_shared(path, content)
    _touch(path)


def _touch(path: pathlib.Path) -> None:
    """Sets a file's time by the clock of this machine, from which that of its server may differ."""
    now = time.time()
    try:
        os.utime(path, (now, now))
    except PermissionError:  # some mounts give files another owner, who alone may set their times
        os.utime(path)


def forget_failure(workdir: pathlib.Path) -> None:
    """Removes the reason of the last failure, where another attempt begins."""
    (workdir / "failed.json").unlink(missing_ok=True)


def _withdraw(workdir: pathlib.Path) -> None:
    """Removes the sign, if this process left it."""
    sign = _read(workdir / ".running")
    if sign and (sign["host"], sign["pid"]) == (_who()["host"], _who()["pid"]):
        with contextlib.suppress(OSError):  # it will grow old
            (workdir / ".running").unlink()


def clear(workdir: pathlib.Path) -> None:
    """Removes the sign of a process that died; only while the run is locked by this process."""
    with contextlib.suppress(OSError):
        (workdir / ".running").unlink()


def running(workdir: pathlib.Path) -> Running | None:
    """Returns a run's last sign of life; None if nothing trains there, or it ended properly."""
    path = workdir / ".running"
    sign = _read(path)
    if not sign:
        return None
    try:
        age = max(0.0, time.time() - path.stat().st_mtime)
    except OSError:  # the run ended meanwhile, or nothing can be said about it
        return None
    # Containers and machines that take each other's place have the same name, and may have the same
    # process number.
    who = _who()
    machine = sign.get("machine", who["machine"])  # earlier versions did not write it
    same_name = sign["host"] == who["host"]
    here = same_name and machine == who["machine"]
    before_boot = same_name and time.time() - age < _booted()
    # An old sign does not count even if its process number is in use here: it was used again.
    dead = before_boot or (here and _is_dead(sign["pid"]))
    return Running(sign["host"], sign["job"], age, age < _SILENT and not dead, here, dead)


def silent(workdir: pathlib.Path) -> str:
    """Says who keeps a run locked without a sign of life; "" if somebody may be training it."""
    sign = running(workdir)
    # On this machine, a dead process holds no lock.
    if sign is None or sign.alive or sign.here:
        return ""
    return (
        f"locked by a process on {sign.host} that fell silent {duration(sign.age)} ago. If that "
        "host is down, the file server has kept its lock: wait until it is released, or, if "
        f"nothing else is training there, delete {workdir / '.lock'}."
    )


def fail(workdir: pathlib.Path, message: str, start: str = "") -> None:
    """Writes failed.json, if that is possible.

    `start` is the start of a sweep that need not try it again; "" if the run may not be at fault.
    """
    with contextlib.suppress(OSError):
        workdir.mkdir(parents=True, exist_ok=True)  # the run may have failed before it wrote there
        _leave(workdir / "failed.json", _who() | {"message": message, "start": start})


def failure(workdir: pathlib.Path, start: str | None = None) -> str:
    """Returns why a run failed, in this start of a sweep or (None) in any; "" if it did not."""
    content = _read(workdir / "failed.json") or {}
    return content.get("message", "") if start in (None, content.get("start")) else ""


def failed_at(workdir: pathlib.Path) -> int:
    """Returns when failed.json was written, in nanoseconds; 0 if it is not there."""
    try:
        return (workdir / "failed.json").stat().st_mtime_ns
    except OSError:
        return 0


def tried_at(workdir: pathlib.Path) -> int:
    """Returns when the run was last tried and not finished, in nanoseconds; 0 if never."""
    try:
        last = (workdir / ".running").stat().st_mtime_ns
    except OSError:
        last = 0
    return max(last, failed_at(workdir))


def _who() -> dict[str, Any]:
    environ = os.environ
    task = f"{environ.get('SLURM_ARRAY_JOB_ID')}_{environ.get('SLURM_ARRAY_TASK_ID')}"
    job = task if "SLURM_ARRAY_JOB_ID" in environ else environ.get("SLURM_JOB_ID", "")
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "job": job}


@functools.cache
def _machine() -> str:
    """Identifies this container, within this boot of its machine; "" where that is unknown.

    A machine may have the name of one that died, or of many ("localhost").
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return f"{boot} {namespace}"


@functools.cache
def _booted() -> float:
    """When this machine was started, in seconds since the epoch; 0 where that is unknown."""
    try:
        found = re.search(r"^btime (\d+)$", pathlib.Path("/proc/stat").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """The content of one of the two files; None if it does not exist or cannot be used."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    kinds = {"host": str, "pid": int, "job": str, "message": str, "start": str}
    needed = {"host", "pid", "job"}
    if not isinstance(content, dict) or not needed <= content.keys():
        return None
    good = (isinstance(content[name], kinds[name]) for name in kinds.keys() & content.keys())
    return content if all(good) else None


def _is_dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # of another user
        pass
    return False
