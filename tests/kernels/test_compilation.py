"""The options of the compiler, and the cache of compiled programs."""

import importlib.util
import os
import random
import warnings

import jax
import jax.numpy as jnp
import pytest

from experiments.torture import damage
from jaxcifar import kernels
from jaxcifar.kernels import compilation
from tests.forked import Forked
from tests.tiny import mesh


def test_platform_is_that_of_the_mesh(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert kernels.platform_of(mesh(2)) == "cpu"


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    # A fresh copy of the module, in which nothing has been tried yet.
    spec = importlib.util.spec_from_file_location("fresh", compilation.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    real = jax.jit

    def of_an_older_xla(function, *, compiler_options, **options):
        if "xla_cpu_experimental_ynn_fusion_type" in compiler_options:
            compiler_options = {"xla_cpu_no_such_option": "1"}
        return real(function, compiler_options=compiler_options, **options)

    monkeypatch.setattr(jax, "jit", of_an_older_xla)
    assert "xla_cpu_experimental_ynn_fusion_type" not in fresh.compiler_options("cpu")
    assert "xla_disable_hlo_passes" in fresh.compiler_options("cpu")
    assert fresh.jit(lambda x: x + 1, platform="cpu")(1) == 2


def test_options_are_for_cpus_alone():
    known = compilation.compiler_options("cpu")
    assert "xla_disable_hlo_passes" in known  # the barriers of the kernels need it
    fast = compilation.compiler_options("cpu", fast_compile=True)
    assert fast.items() > known.items()
    for platform in ("gpu", "tpu"):
        assert compilation.compiler_options(platform) == {}
        assert compilation.compiler_options(platform, fast_compile=True) == {}


@pytest.mark.parametrize("fast_compile", [False, True])
def test_jit_keeps_the_barriers(fast_compile):
    # Of a product and a sum that XLA would otherwise fuse.
    function = lambda x: jax.lax.optimization_barrier(x * 2) + 1  # noqa: E731
    jitted = compilation.jit(function, platform="cpu", fast_compile=fast_compile)
    assert " opt-barrier(" in jitted.lower(jnp.ones(3)).compile().as_text()
    assert " opt-barrier(" not in jax.jit(function).lower(jnp.ones(3)).compile().as_text()
    assert jitted(jnp.ones(3)).tolist() == [3.0] * 3


def use_and_print():
    compilation.use_cache()
    print(jax.config.jax_compilation_cache_dir)


@pytest.mark.slow
def test_the_cache_is_a_private_folder_or_the_users(tmp_path):
    def run(**variables):
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        process = Forked(use_and_print, environment=environment | variables, cwd=tmp_path)
        printed, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return printed.strip(), said

    folder = tmp_path / ".cache" / "jaxcifar" / "xla"
    assert run(HOME=str(tmp_path)) == (str(folder), "")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == (str(tmp_path / "mine"), "")
    (tmp_path / "file").write_text("")
    for unusable in (
        {"HOME": str(tmp_path / "file")},
        {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file")},
        {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file" / "below")},
    ):
        used, said = run(**unusable)
        assert used == "None"
        assert said.startswith("jaxcifar: compiling without a cache: ")
        assert str(tmp_path / "file") in said
        assert said.count("\n") == 1
    used, said = run(JAX_COMPILATION_CACHE_DIR="~nobody-here/xla")  # as without a home
    assert (used, said.count("\n")) == ("None", 1)
    assert said.startswith("jaxcifar: compiling without a cache: Could not determine home")


def test_a_bucket_is_left_to_jax():
    """XLA, which would keep its own cache there on GPUs, could not write to it."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches"
    before = [getattr(jax.config, name) for name in names]
    try:
        jax.config.update(names[0], "gs://bucket/cache")
        compilation.use_cache()
        assert [getattr(jax.config, name) for name in names] == ["gs://bucket/cache", "none"]
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)


@pytest.mark.parametrize(
    ("flags", "shared"),
    [
        ("--xla_gpu_deterministic_ops=true", False),
        ("--a=b --xla_gpu_exclude_nondeterministic_ops", False),
        ("--xla_gpu_deterministic_ops=false", True),
        ("", True),
    ],
)
def test_kernels_of_a_deterministic_program_are_not_those_of_another(
    flags, shared, tmp_path, monkeypatch
):
    """XLA's own cache on GPUs, which JAX keeps beside its programs, mixes them up."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches"
    before = [getattr(jax.config, name) for name in names]
    try:
        jax.config.update(names[0], str(tmp_path))
        compilation.use_cache()
        assert (getattr(jax.config, names[1]) == before[1]) == shared
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)


@pytest.mark.parametrize(
    ("reason", "left"),
    [("OSError: [Errno 116] Stale file handle", 2), ("JaxRuntimeError: INTERNAL: bad", 0)],
)
def test_an_entry_is_deleted_only_where_it_is_damaged(tmp_path, monkeypatch, capsys, reason, left):
    """A read may fail that would succeed now; and another process may have been writing."""
    from jax._src.compilation_cache import compress_executable

    monkeypatch.setattr(warnings, "showwarning", print)
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        compilation.use_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    for name in ("a", "b"):
        (tmp_path / f"jit_run-{name}-cache").write_bytes(compress_executable(b"intact"))
    text = f"Error reading persistent compilation cache entry for 'jit_run': {reason}"
    warnings.showwarning(UserWarning(text), UserWarning, "x.py", 1)
    assert len(list(tmp_path.iterdir())) == left
    how = "could not be read" if left else "is damaged"
    said = f"jaxcifar: a compiled program in {tmp_path} {how} and is compiled again: jit_run\n"
    assert capsys.readouterr().err == said


def compile_two():
    # As a user's process, which nobody told to keep warnings back.
    warnings.simplefilter("default", UserWarning)
    compilation.use_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def thrice(x):
        return 3 * x

    print(jax.jit(thrice)(2.0), jax.jit(thrice)(jnp.ones(1)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "half", "empty"])
def test_a_damaged_entry_is_compiled_again_once(how, tmp_path):
    def said():
        environment = os.environ | {"HOME": str(tmp_path)}
        process = Forked(compile_two, environment=environment, cwd=tmp_path)
        printed, error = process.communicate(timeout=60)
        assert (process.returncode, printed) == (0, "6.0 [3.]\n"), error
        return error

    assert said() == ""
    entry, other = tmp_path.glob(".cache/jaxcifar/xla/jit_thrice-*-cache")
    whole = other.stat().st_ino, other.stat().st_mtime_ns
    damage(entry, how, random.Random(0))
    damaged = entry.read_bytes()
    message = said()
    assert message.startswith("jaxcifar: a compiled program in ")
    assert message.endswith("compiled again: jit_thrice\n")
    assert message.count("\n") == 1
    assert entry.read_bytes() != damaged
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == whole
    assert said() == ""
