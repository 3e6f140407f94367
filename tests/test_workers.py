"""Several processes that share a sweep: where they compute, who restarts them, what they share."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import pytest

from experiments import sweep, workers
from experiments.runs import configs, read
from jaxcifar import train
from jaxcifar.errors import Busy, Interrupted, UserError
from jaxcifar.run import log, signs
from tests.conftest import OPTIONS, pretend, start_sweep, sweep_command
from tests.tiny import without_times

pytestmark = pytest.mark.usefixtures("one_device")


# --- where they compute -----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lets the machine have ten cores, and as many GPUs as it is called with."""
    monkeypatch.setattr(workers, "_cores", lambda: list(range(10)))
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def with_gpus(count):
        lines = "".join(f"echo 'GPU {i}: NVIDIA H100 (UUID: GPU-{i})'\n" for i in range(count))
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{lines}")
        (tmp_path / "nvidia-smi").chmod(0o755)

    with_gpus(0)
    return with_gpus


def test_a_worker_for_each_gpu(machine, monkeypatch):
    machine(3)
    assert [place.gpu for place in workers.places("auto")] == ["0", "1", "2"]
    assert [place.gpu for place in workers.places("2")] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,MIG-7")
    assert [place.gpu for place in workers.places("auto")] == ["2", "MIG-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not any(place.gpu for place in workers.places("auto"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not any(place.gpu for place in workers.places("auto"))


def test_workers_share_the_cores(machine):
    assert len(workers.places("auto")) == 2
    for count in (1, 3, 10):
        shares = [place.cores for place in workers.places(str(count))]
        assert sorted(core for share in shares for core in share) == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("gpus", "text"), [(0, "11"), (3, "4"), (0, "0"), (0, "two"), (0, "-1")])
def test_impossible_numbers_of_workers(machine, gpus, text):
    machine(gpus)
    with pytest.raises(UserError, match="--workers"):
        workers.places(text)


# --- who restarts them ------------------------------------------------------------------------


ONE = (workers.Place(gpu="5"),)


def supervise(tmp_path, script, where=ONE):
    commands = [["bash", "-c", script]] * len(where)
    return workers.supervise(commands, where, tmp_path / "logs", lambda: "")


def test_a_worker_that_dies_is_started_again_three_times(tmp_path, capsys):
    (worker,) = supervise(tmp_path, "echo on GPU $CUDA_VISIBLE_DEVICES; kill -9 $$")
    assert worker.process.returncode == -signal.SIGKILL
    assert worker.said.split("\n") == ["on GPU 5"] * 4
    assert capsys.readouterr().out.count("killed by SIGKILL") == 3


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_is_not(tmp_path, code):
    (worker,) = supervise(tmp_path, f"exit {code}")
    assert worker.process.returncode == code
    assert worker.restarts == 0


def test_a_worker_has_its_cores_from_the_start(tmp_path):
    before = os.sched_getaffinity(0)
    core = max(before)
    where = [workers.Place(cores=frozenset({core}))]
    (worker,) = supervise(tmp_path, "grep Cpus_allowed_list /proc/self/status", where)
    assert worker.said.split()[-1] == str(core)
    assert os.sched_getaffinity(0) == before


def test_a_signal_is_passed_on_once_and_nothing_is_started_again(tmp_path):
    loop = "for i in {1..30}; do sleep 0.1; done; exit 143"
    script = f"trap 'echo got it' TERM; echo ready; {loop}"

    def end():
        while (
            not (tmp_path / "logs" / "worker-1.log").exists()
            or "ready" not in (tmp_path / "logs" / "worker-1.log").read_text()
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        supervise(tmp_path, script, [workers.Place(gpu="0"), workers.Place(gpu="1")])
    thread.join()
    assert caught.value.signum == signal.SIGTERM
    for index in (0, 1):
        text = (tmp_path / "logs" / f"worker-{index}.log").read_text()
        assert text == "ready\ngot it\n"


def test_an_error_of_the_parent_lets_the_workers_save(tmp_path):
    """One like that of a file system that is gone for a moment."""
    loop = "for i in {1..30}; do sleep 0.1; done"
    script = f"trap 'sleep 0.5; echo saved; exit 143' TERM; echo ready; {loop}"

    def table():
        path = tmp_path / "logs" / "worker-0.log"
        while "ready" not in path.read_text():
            time.sleep(0.05)
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        workers.supervise([["bash", "-c", script]], ONE, tmp_path / "logs", table)
    assert (tmp_path / "logs" / "worker-0.log").read_text() == "ready\nsaved\n"


# --- a sweep by two of them -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a core for each worker")
def test_one_of_two_workers_is_killed_and_the_sweep_is_the_serial_one(tmp_path):
    what = ("--rows=vgg2", "--seeds=0-2", "--config.train.epochs=6")
    out, serial = tmp_path / "workers", tmp_path / "serial"
    command, environment = sweep_command(serial, *what)
    with workers._on(frozenset({min(os.sched_getaffinity(0))})):  # rounding depends on how many
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    command, environment = sweep_command(out, *what, "--workers=2")
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        victim = None
        while victim is None and parent.poll() is None:
            for path in out.glob("vgg2/*/.running"):
                if (path.parent / "metrics.jsonl").read_text():
                    victim = json.loads(path.read_text())["pid"]
                    os.kill(victim, signal.SIGKILL)
                    break
            time.sleep(0.02)
        printed, _ = parent.communicate(timeout=300)
    finally:
        parent.terminate()
    assert parent.returncode == 0
    assert "killed by SIGKILL" in printed
    assert "3 of 3 runs" in printed
    for seed in ("seed0", "seed1", "seed2"):
        assert not (out / "vgg2" / seed / ".running").exists()
        ours, other = (
            log.read_lines(folder / "vgg2" / seed / "metrics.jsonl") for folder in (out, serial)
        )
        for one, two in zip(ours, other, strict=True):
            for name in ("train_loss", "val_loss", "val_accuracy"):
                assert one[name] == two[name]


# --- what they share --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "_LOOK_AGAIN", 0.01)
    tried = []

    def trained(config, workdir, **_):
        tried.append(config.seed)
        if config.seed == 0 and tried.count(0) < 3:
            raise Busy("Another process")
        pretend(config, workdir)

    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(tmp_path / "out", "vgg2", "0-1") == 0
    assert tried == [0, 1, 0, 0]
    printed = capsys.readouterr().out
    assert printed.count("waiting for it") == 1
    assert "2 of 2 runs" in printed


def test_a_locked_workdir_is_busy(tmp_path):
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.plan([source], [0], tmp_path, OPTIONS)
    job.workdir.mkdir(parents=True)
    with (job.workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            train.train_and_evaluate(job.config, job.workdir, quiet=True)


def test_a_run_that_failed_since_the_start_is_not_tried_by_every_worker(tmp_path, monkeypatch):
    tried = []

    def broken(config, workdir, **_):
        tried.append(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        raise RuntimeError("the machine broke")

    monkeypatch.setattr(train, "train_and_evaluate", broken)
    out, began = tmp_path / "out", time.time() - 1
    for index in (0, 1):
        worker = [f"--worker={index}/2", f"--began={began}"]
        assert start_sweep(out, "vgg2", "0-1", *worker) == 1
    assert tried == [out / "vgg2" / "seed0", out / "vgg2" / "seed1"]
    failed = json.loads((tried[0] / "failed.json").read_text())
    assert failed["message"] == "RuntimeError: the machine broke"
    assert failed["pid"] == os.getpid()
    # The next start tries again, and success removes the mark.
    monkeypatch.setattr(train, "train_and_evaluate", pretend)
    assert start_sweep(out, "vgg2", "0-1") == 0
    assert not (tried[0] / "failed.json").exists()


def test_workers_begin_with_different_runs(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(train, "train_and_evaluate", lambda c, _, **__: tried.append(c.seed))
    for index in (0, 1):
        assert start_sweep(tmp_path / "out", "vgg2", "0-3", f"--worker={index}/2") == 0
    assert tried == [0, 1, 2, 3, 2, 3, 0, 1]


DAMAGES = [
    ("config.json", "{"),
    ("metrics.jsonl", "[\n"),
    ("metrics.jsonl", ""),
    ("result.json", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), DAMAGES)
def test_a_damaged_file_is_restored_from_the_checkpoint(swept, copied, name, text):
    (copied / "vgg2" / "seed0" / name).write_text(text)
    assert start_sweep(copied) == 0
    assert len(read.sweeps(copied)[0].finished.runs) == 4  # which reads all files of all runs
    for path in copied.glob("*/*/metrics.jsonl"):
        ours, theirs = (log.read_lines(p) for p in (path, swept / path.relative_to(copied)))
        assert without_times(ours) == without_times(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), DAMAGES[1:2] + DAMAGES[3:])
def test_a_run_that_cannot_be_restored_costs_only_itself(copied, capsys, name, text):
    broken = copied / "vgg2" / "seed0"
    (broken / name).write_text(text)
    shutil.rmtree(broken / "checkpoints")
    shutil.rmtree(copied / "vgg6" / "seed1")
    assert start_sweep(copied) == 1
    assert (copied / "vgg6" / "seed1" / "result.json").exists()
    error = capsys.readouterr().err
    assert "failed: vgg2, seed 0" in error
    assert name in error
    assert "seed 1" not in error


def test_a_run_that_fails_before_it_writes_anything_says_why(tmp_path, capsys):
    out = tmp_path / "out"
    assert start_sweep(out, "vgg2", "0", f"--config.init_from={tmp_path / 'none'}") == 1
    assert f"{tmp_path / 'none'} contains no run" in capsys.readouterr().err
    # So that a supervisor of workers, and --status, do not take it for a new one.
    assert f"{tmp_path / 'none'} contains no run" in signs.failure(out / "vgg2" / "seed0")


# --- signs of life ----------------------------------------------------------------------------


def test_states_in_words(tmp_path, monkeypatch):
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.plan([source], [0], tmp_path, OPTIONS)
    assert job.describe() == "new"
    assert job.describe("Priority") == "waiting: Priority"
    job.workdir.mkdir(parents=True)
    (job.workdir / "config.json").write_text("{}")
    assert job.describe() == "to resume"
    mark = {"host": "node7", "pid": 1, "job": "77_3", "time": ""}
    path = job.workdir / ".running"
    path.write_text(json.dumps(mark))
    assert job.describe("Priority") == "running on node7 (job 77_3), last sign 0s ago"
    os.utime(path, (time.time() - 7200,) * 2)
    assert job.describe() == "to resume (node7 fell silent 2h00m ago)"
    signs.fail(job.workdir, "it broke\nin many words")
    assert job.describe() == "failed: it broke"
    # One that is dead on this machine is known to be.
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = signs._who() | {"pid": ended.pid}
    path.write_text(json.dumps(here))
    assert not signs.running(job.workdir).alive
    path.write_text(json.dumps(here | {"pid": os.getpid()}))
    assert signs.running(job.workdir).alive
    pretend(job.config, job.workdir)
    assert job.describe() == "done"
    (job.workdir / "metrics.jsonl").write_text("")
    assert job.state == "damaged"
    assert "metrics.jsonl has 0 of 2 epochs" in job.damage


def test_status_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", "--status") == 0
    printed = capsys.readouterr().out
    assert "2 new; the time left is unknown" in printed
    assert len(printed.splitlines()) == 4
    assert not pathlib.Path(tmp_path / "out").exists()
