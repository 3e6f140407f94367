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
from jaxcifar import sharding


def environment(in_force: dict[str, Any], mesh: Mesh | None = None) -> dict[str, Any]:
    """Returns versions, commit, machine and time, JSON-ready, with `in_force` among them.

    Args:
      in_force: what "auto" fields of a config became.
      mesh: the devices in use; None is all.
    """
    mesh = mesh or sharding.make_mesh()
    return {
        "jaxcifar": jaxcifar.__version__,  # installed or not
        **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "commit": git_commit(),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
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


def peak_memory() -> int:
    """Bytes: of the fullest device where it tells, else of the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device_peak = max(stat.get("peak_bytes_in_use", 0) for stat in stats)
    unit = 1 if platform.system() == "Darwin" else 1024
    return device_peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
