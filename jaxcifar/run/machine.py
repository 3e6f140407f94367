"""What a run ran on: versions, commit, devices and memory."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import resource
import subprocess
import time
from typing import Any

from jax.sharding import Mesh

from jaxcifar import processes, sharding
from jaxcifar.kernels import compilation
from jaxcifar.version import __version__


def environment(in_force: dict[str, Any], mesh: Mesh | None = None) -> dict[str, Any]:
    """Returns versions, commit, machine and time, JSON-serialisable, together with `in_force`.

    Args:
      in_force: what the config's "auto" fields were resolved to.
      mesh: the devices in use; None means all of them.
    """
    mesh = mesh or sharding.make_mesh()
    return {
        **numerics(),
        "python": platform.python_version(),
        "commit": git_commit(),
        "device": mesh.devices.flat[0].device_kind,
        "runtime": runtime(mesh),
        "devices": mesh.size,
        "processes": processes.count(),
        "cpus": len(available_cores()),
        "cpu": _cpu() if mesh.devices.flat[0].platform == "cpu" else None,
        **in_force,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def numerics() -> dict[str, Any]:
    """Returns the libraries and settings that numbers depend on, of this process."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {
        "jaxcifar": __version__,  # known even if it is not installed
        "code": code(),
        **{name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "xla_flags": " ".join(flag for flag in flags if not flag.startswith("--xla_dump")),
        **compilation.settings(),
    }


# Once: what is installed or checked out while a process works is not what it has loaded.
_version = functools.cache(importlib.metadata.version)


def available_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def runtime(mesh: Mesh) -> dict[str, str]:
    """Returns what compiles and computes on an accelerator; {} on CPUs, where jaxlib does."""
    if mesh.devices.flat[0].platform == "cpu":
        return {}
    found = {"platform": " ".join(mesh.local_devices[0].client.platform_version.split())}
    for package in ("libtpu", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = _version(package)
    settings = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
    return found | {name: os.environ[name] for name in settings if os.environ.get(name)}


def _cpu() -> str:
    """The model of the CPU, as XLA's code for it, and so its rounding, depends on it."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache  # as `_version`
def code() -> str:
    """Returns a digest of the text of the package's modules, 16 hex digits."""
    package, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        # Configs are here only where a wheel was installed; what is hidden is an editor's.
        if not name.startswith(("configs/", ".")) and "/." not in name:
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache  # as `_version`
def git_commit() -> str | None:
    """Returns the commit of this code, with '+' if its files differ; None outside git."""
    here = pathlib.Path(__file__).parents[1]

    def git(*args: str) -> str:
        # Without optional locks, as a kill or a full disk could leave one in the user's repository.
        command = ["git", "--no-optional-locks", "-C", str(here), *args]
        # Not in the repository that a hook of git is called for.
        environ = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=True, env=environ
        ).stdout.strip()

    try:
        # In an installed package the enclosing repository, if any, is another project's.
        git("ls-files", "--error-unmatch", __file__)
        others = ("../experiments", ":(exclude)../experiments/results")
        changed = git("status", "--porcelain", "--", ".", *others)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class PeakMemory:
    """The peak memory since this object was made."""

    def __init__(self, mesh: Mesh) -> None:
        # Linux can forget the peak of a process, which may have trained another run before. Devices
        # cannot.
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        self._mesh, self._before = mesh, peak_memory(mesh)

    def read(self) -> int | None:
        """Returns the peak in bytes; None if it was reached before this object was made."""
        peak = peak_memory(self._mesh)
        return peak if peak > self._before else None


def peak_memory(mesh: Mesh) -> int:
    """Returns the peak memory in bytes: of the fullest device if known, else of the process."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    device_peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if platform.system() == "Darwin" else 1024
    return device_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
