"""Set-up of all tests: eight CPU devices, strict JAX, a compilation cache, real data if there."""

import contextlib
import json
import os
import pathlib
import shutil
import sys
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
import numpy as np
import pytest

from experiments.runs import configs
from experiments.runs.rows import ROWS
from experiments.sweep.__main__ import main as sweep_main
from jaxcifar import programs, sharding
from jaxcifar.files import write_json
from jaxcifar.signals import exit_code
from tests.forked import environment_of

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


# --- runs of sweeps ---------------------------------------------------------------------------

# Runs of seconds, whose programs are those of `tests.tiny.tiny` where the model is the same.
OPTIONS = [
    "--config.data.name=synthetic",
    "--config.model.width=0.05",
    "--config.model.dropout_rate=0.2",
    "--config.train.batch_size=32",
    "--config.train.limit_train_images=100",
    "--config.train.epochs=2",
    "--config.train.eval_batch_size=96",
]


@contextlib.contextmanager
def on_one_device():
    """Lets runs use the first device only."""
    with pytest.MonkeyPatch.context() as patch:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
        patch.setattr(sharding, "make_mesh", lambda: mesh)
        yield


@pytest.fixture
def one_device():
    with on_one_device():
        yield


def start_sweep(out, rows="vgg2,vgg6", seeds="0-1", *more):
    """Runs the command on rows shortened by `OPTIONS`; returns its exit code."""
    what = [f"--rows={rows}"] if rows else []
    arguments = [*what, f"--seeds={seeds}", f"--out={out}", *OPTIONS, *more]
    return exit_code(lambda: sweep_main(arguments))


def pretend(config, workdir, **_):
    """Writes what a sweep looks at in a finished run."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    epochs = range(1, config.train.epochs + 1)
    lines = "".join(json.dumps({"epoch": epoch}) + "\n" for epoch in epochs)
    (workdir / "metrics.jsonl").write_text(lines)
    (workdir / "result.json").write_text("{}")


def sweep_command(out, *more):
    """Returns the command of a sweep of runs shortened by `OPTIONS`, and its environment."""
    command = [sys.executable, "-m", "experiments.sweep", f"--out={out}", *OPTIONS, *more]
    return command, environment_of(devices=1)


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A finished sweep of two rows and two seeds; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "table4"
    programs.evaluate_batch.cache_clear()  # whatever ran before, the first of each row compiles
    with on_one_device():
        assert start_sweep(out) == 0
    return out


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "table4")


@pytest.fixture(scope="session")
def swept_vgg(tmp_path_factory):
    """A finished sweep of all eight rows of Table 4; not to be changed."""
    out = tmp_path_factory.mktemp("results") / "table4"
    with on_one_device():
        assert start_sweep(out, "vgg1-8", "0") == 0
    return out


@pytest.fixture
def copied_vgg(swept_vgg, tmp_path):
    return shutil.copytree(swept_vgg, tmp_path / "table4")


def write_fake_runs(out, changes=None, seeds=3, rows=ROWS, epochs=2, **fields):
    """Writes runs whose best epoch has the original's numbers, plus 0.001 × (seed − 1); twice that
    for the training accuracy.

    Args:
      changes: {row: {metric: added}}.
      rows: names; those that are no rows are runs like row 1's.
      fields: of every config, "group__name".
    """
    for name in rows:
        of_row = name if name in ROWS else "row1"
        row = ROWS[of_row]._asdict()
        for metric, added in (changes or {}).get(name, {}).items():
            row[metric] += added
        for seed in range(seeds):
            folder = out / name / f"seed{seed}"
            folder.mkdir(parents=True)
            config = configs.row_config(of_row)
            config.seed, config.train.epochs = seed, epochs
            for field, value in fields.items():
                group, _, field_name = field.partition("__")
                config[group][field_name] = value
            part = {"name": "cifar10", "images": 50_000, "official": True, "sha256": "0123"}
            environment = {
                **{"jaxcifar": "0.1.0", "jax": "0", "flax": "0", "optax": "0", "numpy": "2"},
                **{"python": "3", "commit": "abc", "device": "cpu", "devices": 1, "cpus": 2},
                **{"dtype": "float32", "started": "2026-01-01T00:00:00Z"},
            }
            content = {"config": config.to_dict(), "data": {"train": part, "validation": part}}
            write_json(folder / "config.json", content | {"environment": environment})
            records = []
            for epoch in range(1, epochs + 1):
                best = epoch == epochs - 1  # the last epoch is a little worse
                record = {
                    metric: row[metric]
                    + 0.001 * (seed - 1) * (2 if metric == "train_accuracy" else 1)
                    - (0 if best else 0.002)
                    for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
                }
                record |= {"epoch": epoch, "step": 195 * epoch, "train_ce": record["train_loss"]}
                rates = {"learning_rate": 1e-3, "images_per_second": 1000.0, "seconds": 50.0}
                records.append(record | rates)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "metrics.jsonl").write_text(lines)
            ce = row["train_loss"] * (1 + 0.001 * seed)
            steps = [{"epoch": e, "ce": [ce] * 50} for e in (1, 2)]
            (folder / "steps.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
            result = {"parameters": 1_000_000, "train_seconds": 100.0}
            result |= {"compile_seconds": 5.0, "peak_memory_bytes": 2**30}
            write_json(folder / "result.json", result)
    return out


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
    return workdir, tiny.run(tiny.tiny(), workdir)


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """The workdir of a run of `tiny()`, stopped after 2 of its 6 steps; not to be changed."""
    from jaxcifar.errors import Interrupted
    from tests import tiny

    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        tiny.run(tiny.tiny(), workdir, tiny.SignalAt(2))
    return workdir
