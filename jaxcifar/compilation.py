"""How XLA compiles: the options that make it fast on CPUs, and the cache of compiled programs."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

_FOR_CPU = {
    # The library that XLA now computes convolutions with is slower than the one it had before.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # It drops optimization barriers before it fuses loops, where those of `jaxcifar.models.conv`
    # are needed. Without this pass they stay.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}

# For a program that runs once and has many small parts, such as an initialisation.
_IN_HASTE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def compiler_options(*, in_haste: bool = False) -> dict[str, str | int | bool]:
    """The `compiler_options` of `jax.jit` for this backend.

    They change no result beyond rounding. Those that the installed XLA does not know are left out.

    Args:
      in_haste: to compile in a fraction of the time what then runs slower.
    """
    if jax.default_backend() != "cpu":
        return {}
    known = {}
    for name, value in (_FOR_CPU | _IN_HASTE if in_haste else _FOR_CPU).items():
        probe = jax.jit(jax.lax.optimization_barrier, compiler_options={name: value})
        try:
            probe.lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def jit(function: Callable, *, in_haste: bool = False, **kwargs: Any) -> Any:
    """`jax.jit` with `compiler_options`: for whatever runs a model."""
    return jax.jit(function, compiler_options=compiler_options(in_haste=in_haste), **kwargs)


def use_cache() -> None:
    """Lets JAX keep compiled programs in a private folder of the user's."""
    folder = pathlib.Path("~/.cache/jaxcifar/xla").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        print(f"jaxcifar: compiling without a cache: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
