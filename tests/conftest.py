"""Set-up of all tests: eight CPU devices, strict JAX, a compilation cache, real data if there."""

import os
import pathlib

# Before JAX starts. Eight devices test what one cannot; most tests use the first.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
