"""Processes that need not start Python: forks of one that has imported all and touched no device.

Importing JAX and the rest takes longer than most of what tests do in a process of its own. A test
of the start itself uses `subprocess`.
"""

import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import jax

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "xla"
if not os.access(CACHE if CACHE.exists() else CACHE.parents[1], os.W_OK):
    CACHE = pathlib.Path(tempfile.gettempdir(), f"jaxcifar-tests-{os.getuid()}")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["jaxcifar.main", "jaxcifar.run.plots", "tensorboardX"])


def environment_of(devices):
    """Returns the environment of a process of so many devices, with the tests' compiled programs.

    Rounding depends on the number of devices.
    """
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    return os.environ | {
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }


class Forked:
    """A process that calls `function(*arguments)`; what that returns is its exit code.

    It has these attributes and methods of `subprocess.Popen`, and both streams of output.

    Args:
      function: of a module.
      arguments: of the function.
      environment: of the process. What JAX reads when it is imported is read again.
      cwd: its working directory.
    """

    def __init__(self, function, *arguments, environment, cwd):
        self._output = pathlib.Path(tempfile.mkdtemp())
        told = (function, arguments, dict(environment), cwd, self._output)
        self._process = _CONTEXT.Process(target=_call, args=told, daemon=True)
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, signum):
        os.kill(self.pid, signum)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Waits for the end; returns (stdout, stderr)."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("a forked process", timeout)
        printed = tuple((self._output / name).read_text() for name in _STREAMS)
        shutil.rmtree(self._output)
        return printed


_STREAMS = {"stdout": 1, "stderr": 2}


def _call(function, arguments, environment, cwd, output):
    for name, number in _STREAMS.items():
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    cache = environment.get("JAX_COMPILATION_CACHE_DIR")  # the parent's may be another
    jax.config.update("jax_compilation_cache_dir", cache)
    for name, kind in (
        ("jax_platforms", str),
        ("jax_persistent_cache_min_compile_time_secs", float),
    ):
        if name.upper() in environment:
            jax.config.update(name, kind(environment[name.upper()]))
    sys.exit(function(*arguments))
