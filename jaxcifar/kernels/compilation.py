"""How XLA compiles: the options that make it fast on CPUs, and the cache of compiled programs."""

import contextlib
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax

from jaxcifar.errors import note

_FOR_CPU = {
    # The library that XLA now uses for convolutions is slower than the one before.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # This pass drops optimization barriers before loops are fused, but conv.py relies on them;
    # disabling it keeps them.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}

# For a program that runs once and has many small parts, such as an initialisation.
_FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


_DETERMINISTIC = r"--xla_gpu_(deterministic|exclude_nondeterministic)_ops(?!=(false|0))"


@functools.cache
def compiler_options(platform: str, *, fast_compile: bool = False) -> dict[str, Any]:
    """Returns the `compiler_options` of `jax.jit` for a platform.

    They change no result beyond rounding. Those that the installed XLA does not know are left out.

    Args:
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.
      fast_compile: compile in a fraction of the time, to code that runs slower.
    """
    if platform != "cpu":
        return {}
    options = _FOR_CPU | _FAST_COMPILE if fast_compile else _FOR_CPU
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    probe = jax.jit(jax.lax.optimization_barrier, compiler_options={name: value})
    on_cpu = jax.device_put(0.0, jax.local_devices(backend="cpu")[0])
    try:
        probe.lower(on_cpu).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def jit(
    function: Callable[..., Any], *, platform: str, fast_compile: bool = False, **kwargs: Any
) -> Any:
    """`jax.jit` with `compiler_options`: for whatever runs a model.

    Args:
      function: to compile.
      platform, fast_compile: see `compiler_options`.
      kwargs: of `jax.jit`.
    """
    options = compiler_options(platform, fast_compile=fast_compile)
    return jax.jit(function, compiler_options=options, **kwargs)


def settings() -> dict[str, Any]:
    """Returns JAX's settings that decide what a program computes."""
    config: Any = jax.config  # whose fields a type checker cannot know
    return {
        "x64": bool(config.jax_enable_x64),
        "prng": [config.jax_default_prng_impl, bool(config.jax_threefry_partitionable)],
        "matmul_precision": config.jax_default_matmul_precision or "default",
    }


def use_cache() -> None:
    """Lets JAX keep compiled programs, in `$JAX_COMPILATION_CACHE_DIR` or in our own folder."""
    given = jax.config.jax_compilation_cache_dir  # pyright: ignore
    bucket = bool(given) and "://" in given  # which JAX writes to by itself
    # Below it is XLA's own cache of how fast kernels are on a GPU, which knows no buckets, and does
    # not tell the kernels of a program that must be deterministic from those of another.
    if bucket or re.search(_DETERMINISTIC, os.environ.get("XLA_FLAGS", "")):
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if bucket:
        return
    try:
        folder = pathlib.Path(given or "~/.cache/jaxcifar/xla").expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        note(f"compiling without a cache: {error}")
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not given:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _mend(folder)


@functools.cache
def _mend(folder: pathlib.Path) -> None:
    """Has entries of the cache that cannot be read written again, and reports it in one line.

    JAX only warns of one, compiles the program and keeps the file, at every start anew. The warning
    names no more than the function, so of the entries with its name those are deleted that cannot
    be unpacked; or all, where each can be and XLA still refuses what is in one. An entry that could
    not be read, or that another process was just writing, is left alone. Of entries that cannot be
    written JAX warns one by one; the first warning is enough.
    """
    before, told = warnings.showwarning, False

    def show(message: Any, *rest: Any) -> None:
        nonlocal told
        found = re.match(r"Error reading persistent .* entry for '(\w+)': (\w+)", str(message))
        unwritten = re.match(r"Error writing persistent .* entry for '\w+': (.*)", str(message))
        if unwritten:
            if not told:
                note(f"compiled programs are not kept: {unwritten[1]}")
            told = True
            return
        if not found:
            before(message, *rest)
            return
        entries = list(folder.glob(f"{found[1]}-*-cache"))
        damaged = list(filter(_is_damaged, entries))
        if not damaged and found[2].endswith("RuntimeError"):  # it was unpacked, and XLA refused it
            damaged = entries
        how = "is damaged" if damaged else "could not be read"
        note(f"a compiled program in {folder} {how} and is compiled again: {found[1]}")
        for path in damaged:
            with contextlib.suppress(OSError):  # it may be another user's
                path.unlink()

    warnings.showwarning = show


def _is_damaged(entry: pathlib.Path) -> bool:
    try:
        from jax._src.compilation_cache import decompress_executable
    except ImportError:  # it is JAX's own, and may go
        return False
    try:
        content = entry.read_bytes()
    except OSError:
        return False
    try:
        decompress_executable(content)
    except Exception:  # of either of the libraries that it may use
        return True
    return False
