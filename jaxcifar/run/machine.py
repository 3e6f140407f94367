"""What a run ran on: versions, commit, devices, memory."""

import os
import pathlib
import platform
import resource
import subprocess
import time
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

import jaxcifar
from jaxcifar import processes, sharding
from jaxcifar.errors import UserError, note


def environment(in_force: dict[str, Any], mesh: Mesh | None = None) -> dict[str, Any]:
    """Returns versions, commit, machine and time, JSON-ready, with `in_force` among them.

    Args:
      in_force: what "auto" fields of a config became.
      mesh: the devices in use; None is all.
    """
    mesh = mesh or sharding.make_mesh()
    settings: Any = jax.config  # whose fields a type checker cannot know
    return {
        "jaxcifar": jaxcifar.__version__,  # installed or not
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "commit": git_commit(),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "processes": processes.count(),
        "cpus": _cores(),
        "x64": bool(settings.jax_enable_x64),
        "prng": [settings.jax_default_prng_impl, bool(settings.jax_threefry_partitionable)],
        "matmul_precision": settings.jax_default_matmul_precision or "default",
        **in_force,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cores() -> int | None:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count()


# With another of these a run computes something else; with another of those, the same but for
# rounding, which grows.
_DECISIVE = {"x64": "jax_enable_x64", "prng": "JAX's random numbers"}
_ROUNDING = ("device", "devices", "processes", "cpus", "jax", "jaxlib", "matmul_precision")


def check_environment(before: dict[str, Any], now: dict[str, Any], workdir: pathlib.Path) -> None:
    """Compares where a run is resumed with where it was, each as `environment` returns it.

    What changes its numbers by rounding is said; what an earlier version did not record is not
    compared.

    Raises:
      UserError: it would not be the same run.
    """
    for name, what in _DECISIVE.items():
        if before.get(name, now[name]) != now[name]:
            raise UserError(
                f"{workdir} holds a run with {what} as {before[name]}, here {now[name]}. Set it as "
                "it was to resume the run, or choose another --workdir."
            )
    changed = [
        f"{name} {before[name]} -> {now[name]}"
        for name in _ROUNDING
        if name in before and before[name] != now[name]
    ]
    if changed:
        note(f"resumed where numbers are rounded otherwise than before: {', '.join(changed)}")


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


def peak_memory() -> int:
    """Bytes: of the fullest device where it tells, else of the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device_peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if platform.system() == "Darwin" else 1024
    return device_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
