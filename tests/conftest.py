"""Set-up of all tests: eight CPU devices, strict JAX, a compilation cache, real data if there."""

import functools
import gc
import os
import pathlib
import shutil
import signal
from importlib.metadata import version

# Before JAX starts. Eight devices test what one cannot; most tests use the first. Programs that run
# for milliseconds are compiled in a sixth of the time and less well: but for rounding they compute
# the same, and test_main.py's commands are compiled as everyone's. $XLA_FLAGS can turn it back.
os.environ["JAX_PLATFORMS"] = "cpu"
# No operation of ours, in this process or in those that it starts, mixes dtypes or ranks unseen.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1",
        # A jaxlib that does not know a flag ends the process; 0.12 does not know this one.
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import jax
import pytest

from jaxcifar import programs
from tests.forked import CACHE
from tests.sweeps import on_one_device, start_sweep

# Tests send themselves signals, which nohup and a script's "&" have told this process to ignore.
# (So the suite ends with its terminal, unless it is started by setsid.)
for _signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        _is_int = _signum == signal.SIGINT
        signal.signal(_signum, signal.default_int_handler if _is_int else signal.SIG_DFL)

# A trace makes many small objects, and next to no garbage among them.
gc.set_threshold(50_000, 10, 20)

# More programs are kept than in a run: most tests come back to those of `tests.tiny.tiny`.
for _name in ("init", "order", "train", "evaluate_batch", "probabilities_of_batch"):
    setattr(programs, _name, functools.lru_cache(16)(getattr(programs, _name).__wrapped__))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Three for two cores: processes that tests start wait for each other as much as they work."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # then xdist takes it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 3 * (cores or 1) // 2


jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory) -> str:
    """A folder with real CIFAR-10, from $JAXCIFAR_DATA or packed beside the repository."""
    if folder := os.environ.get("JAXCIFAR_DATA"):
        return folder
    packed = pathlib.Path(__file__).parents[2] / "shared" / "cifar10"
    if not (packed / "unpack.py").exists():
        pytest.skip("no real CIFAR-10: set JAXCIFAR_DATA to a folder that holds it")
    import runpy

    folder = tmp_path_factory.mktemp("cifar10")
    runpy.run_path(str(packed / "unpack.py"))["main"](str(folder))
    return str(folder)


# --- runs of sweeps ---------------------------------------------------------------------------


@pytest.fixture
def one_device():
    with on_one_device():
        yield


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A finished sweep of two rows and two seeds; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "table4"
    with on_one_device():
        assert start_sweep(out) == 0
    return out


@pytest.fixture
def swept_copy(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "table4")


@pytest.fixture
def full_disk():
    """A file on a disk that is always full."""
    if not pathlib.Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full, which is always full, as on Linux")
    return "/dev/full"


# --- runs of the core: see tests/tiny.py ------------------------------------------------------


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(workdir, result) of a run of `tiny()`, never interrupted; not to be changed."""
    from tests import tiny

    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, tiny.run(tiny.tiny(), workdir, picture=True)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The workdir of a run of `tiny()`, stopped after 2 of its 6 steps; not to be changed."""
    from jaxcifar.errors import Interrupted
    from tests import tiny

    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        tiny.run(tiny.tiny(), workdir, tiny.SignalAt(2))
    return workdir
