"""What a run ran on."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxcifar
from jaxcifar.run import machine
from tests.tiny import mesh


@pytest.fixture(autouse=True)
def asked_anew():
    """Commit and code are asked for once in a process."""
    for known in (machine.git_commit, machine.code):
        known.cache_clear()
    yield
    for known in (machine.git_commit, machine.code):
        known.cache_clear()


def test_environment():
    found = machine.environment({"dtype": "float32"}, mesh(4))
    assert (found["jaxcifar"], found["jax"]) == (jaxcifar.__version__, jax.__version__)
    assert (found["devices"], found["dtype"]) == (4, "float32")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["started"])
    assert machine.environment({})["devices"] == 8


def test_commit(monkeypatch):
    found = machine.git_commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}\+?", found)

    def no_git(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_git)
    assert machine.git_commit() == found  # of what was loaded, whatever is checked out now
    machine.git_commit.cache_clear()
    assert machine.git_commit() is None


def test_the_code_is_known_by_its_text(tmp_path, monkeypatch):
    """Wherever it is installed, and whether or not it is committed."""
    found, copy = machine.code(), copied(tmp_path)
    (copy / "configs").mkdir()
    (copy / "configs" / "row1.py").touch()  # as of a wheel
    (copy / ".#step.py").symlink_to("user@host.1:2")  # as Emacs locks what it edits
    (copy / "run" / ".ipynb_checkpoints").mkdir()
    (copy / "run" / ".ipynb_checkpoints" / "log-checkpoint.py").touch()
    monkeypatch.setattr(machine, "__file__", str(copy / "run" / "machine.py"))
    machine.code.cache_clear()
    assert machine.code() == found
    (copy / "step.py").write_text("# another")
    assert machine.code() == found  # what was loaded
    machine.code.cache_clear()
    assert machine.code() != found


def test_only_files_of_the_package_make_another_commit(tmp_path, monkeypatch):
    """Such as a config of one's own does not."""
    copy = copied(tmp_path)
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of_another"))  # as in a hook of git
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=environ, check=True)
    monkeypatch.setattr(machine, "__file__", str(copy / "run" / "machine.py"))
    (tmp_path / "slower.py").touch()
    results = tmp_path / "experiments" / "results" / "mine"
    results.mkdir(parents=True)
    (results / "origin.json").touch()
    assert re.fullmatch("[0-9a-f]{40}", machine.git_commit() or "")
    for changed in (tmp_path / "experiments" / "benchmark.py", copy / "step.py"):
        machine.git_commit.cache_clear()
        before = changed.read_text() if changed.exists() else ""
        changed.write_text("# another")
        assert (machine.git_commit() or "").endswith("+")
        changed.write_text(before) if before else changed.unlink()


def copied(folder):
    """Copies the package's modules into a folder."""
    here = pathlib.Path(jaxcifar.__file__).parent
    return shutil.copytree(
        here, folder / "jaxcifar", ignore=shutil.ignore_patterns("__pycache__", "configs")
    )


def test_names_of_files_that_are_no_text(monkeypatch):
    real = subprocess.run

    def run(command, **how):
        changed = ["printf", r"?? gr\377\337e"] if "status" in command else ["echo", "0123"]
        return real(changed, **how)

    monkeypatch.setattr(subprocess, "run", run)
    assert machine.git_commit() == "0123+"


def test_the_users_repository_is_only_read():
    """`git status` would write its index anew, and a kill or a full disk leave the lock there."""
    here = pathlib.Path(machine.__file__)
    if machine.git_commit() is None:
        pytest.skip("the package is not in a git checkout")
    command = ["git", "-C", str(here.parent), "rev-parse", "--path-format=absolute", "--git-path"]
    index = subprocess.run([*command, "index"], capture_output=True, text=True, check=True)
    path = pathlib.Path(index.stdout.strip())
    (here.parents[1] / "__init__.py").touch()  # the index has another time for it
    before = path.stat().st_mtime_ns, path.read_bytes()
    machine.git_commit.cache_clear()
    machine.git_commit()
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_what_compiles_for_an_accelerator(tmp_path, monkeypatch):
    assert machine.runtime(mesh(1)) == {}
    client = SimpleNamespace(platform_version="cuda 12.9\nPJRT C API")
    device = SimpleNamespace(platform="gpu", client=client)
    gpus = SimpleNamespace(devices=np.array([device]), local_devices=[device])
    installed = tmp_path / "nvidia_cudnn_cu12-9.1.dist-info"
    installed.mkdir()
    metadata = "Metadata-Version: 2.1\nName: nvidia-cudnn-cu12\nVersion: 9.1\n"
    (installed / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = machine.runtime(gpus)  # type: ignore[arg-type]
    expected = {
        "platform": "cuda 12.9 PJRT C API",
        "nvidia-cudnn-cu12": "9.1",
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    assert found.items() >= expected.items()  # and cuDNN for CUDA 13, where that is installed


def test_peak_memory():
    assert 2**26 < machine.peak_memory(mesh(1)) < 2**40  # a process with JAX has more than 64 MiB


def forgets_its_peak():
    """Only Linux can forget a peak, and not in every container."""
    large = np.ones(2**26)
    before = machine.peak_memory(mesh(1))
    del large
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return machine.peak_memory(mesh(1)) < before - 2**28


def test_the_peak_memory_of_a_run_is_not_that_of_the_one_before():
    forgets = forgets_its_peak()
    large = np.ones(2**26)  # half a gigabyte
    before = machine.peak_memory(mesh(1))
    del large
    memory = machine.PeakMemory(mesh(1))
    small = np.ones(2**24)  # more than what may be freed elsewhere meanwhile
    del small
    here = machine.peak_memory(mesh(1))
    assert (here < before - 2**28) == forgets
    if forgets:
        assert here <= (memory.read() or 0) <= machine.peak_memory(mesh(1))
    else:
        assert memory.read() is None

    class Device:
        """One whose peak cannot be forgotten."""

        peak = 100

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    one, other = (SimpleNamespace(local_devices=[Device()]) for _ in range(2))
    memory, of_other = machine.PeakMemory(one), machine.PeakMemory(other)
    assert memory.read() is None
    one.local_devices[0].peak = 200
    assert memory.read() == 200
    assert of_other.read() is None
