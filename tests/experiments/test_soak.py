"""The soak: what is read after each epoch, and which growth is too much."""

import contextlib
import mmap
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import soak
from jaxcifar.hooks import Hook
from jaxcifar.signals import exit_code
from tests.tiny import run, tiny

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, as on Linux")


class Leak(Hook):
    """Opens thirty files in each epoch, and keeps them; and makes one of 10 MB, which is sparse.

    It also keeps 100 MB of memory, of which it uses 30.
    """

    def __init__(self):
        self.files, self.kept = contextlib.ExitStack(), []

    def after_epoch(self, run, record):
        for _ in range(30):
            self.files.enter_context((run.workdir / "config.json").open())
        with (run.workdir / f"leak{record['epoch']}").open("wb") as file:
            file.truncate(10**7)
        self.kept.append(mmap.mmap(-1, 10**8))
        self.kept[-1].write(bytes(3 * 10**7))


@needs_proc
@pytest.mark.slow
def test_a_leak_is_read(tmp_path):
    config, leak, gauges = tiny(train__epochs=6), Leak(), soak.Gauges()
    with leak.files:
        run(config, tmp_path / "run", leak, gauges)
    memory, files, threads, disk, cpu = np.array(gauges.read).T
    assert len(files) == 6
    assert files[-1] - files[2] == pytest.approx(3 * 30, abs=30)  # Orbax closes some
    assert disk[-1] - disk[2] == pytest.approx(30_000, abs=3_000)  # a checkpoint comes or goes
    assert memory[-1] - memory[2] == pytest.approx(90_000, abs=30_000)  # kB: what is used
    assert threads.min() >= 1
    assert cpu.min() > 0


@needs_proc
def test_folders_that_are_renamed_while_they_are_measured(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1000" * 250)
    real = os.stat

    def stat(path, *args, **kwargs):  # as Orbax, when the first file is measured
        if "b" in os.listdir(tmp_path):
            os.rename(tmp_path / "b", tmp_path / "c")
        return real(path, *args, **kwargs)

    gauges = soak.Gauges()
    monkeypatch.setattr(os, "stat", stat)
    gauges.after_epoch(SimpleNamespace(workdir=tmp_path, config=tiny()), {"epoch": 1})
    monkeypatch.undo()
    assert gauges.read[0][3] in (1.0, 2.0)  # kB, of "a" or of both


def readings(**slopes):
    """40 epochs of readings that grow by so much per epoch, after a jump in the first ten."""
    epochs = np.arange(40)[:, None]
    slope = [slopes.get(name.split(",")[0].split()[-1], 0) for name in soak.LIMITS]
    return 100 + epochs * np.array(slope) + 1000 * np.minimum(epochs, 10)


def test_growth_beyond_its_limit_is_named():
    assert soak.growing(readings()) == []
    read = readings(RSS=19, files=0.021, threads=0.019, disk=9, time=-1)
    assert soak.growth(read)["open files"] == pytest.approx(0.021)
    assert soak.growing(read) == ["open files", "disk, kB"]


def test_the_table_has_tenths_growth_and_limits():
    found = soak.table(readings(disk=10))
    assert found.title.startswith("These keep growing: disk, kB (")
    assert found.header == ["epochs", *soak.LIMITS]
    assert [line[0] for line in found.lines[:2]] == ["1 … 4", "5 … 8"]
    assert found.lines[9] == ["37 … 40", "10,100", "10,100", "10,100", "10,475", "10,100"]
    assert [line[0] for line in found.lines[10:]] == ["growth per epoch", "limit"]
    assert (found.lines[10][4], found.lines[11][4]) == ("10", "8")


@needs_proc
@pytest.mark.slow
def test_what_grows_fails(tmp_path, monkeypatch, capsys, one_device):
    monkeypatch.setattr(soak, "share_compiled", lambda cache: None)  # tests have a cache
    # Not to lose a thread in each epoch is already too much.
    limits = dict.fromkeys(soak.LIMITS, np.inf) | {"threads": -1.0}
    monkeypatch.setattr(soak, "LIMITS", limits)
    assert exit_code(lambda: soak.main([f"--out={tmp_path}", "--epochs=20"])) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("These keep growing: threads (")
    assert "20 of 20 epochs" in printed.err
