"""Several processes that share a sweep: where they compute, who restarts them, what they share."""

import errno
import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from experiments import sweep, workers
from experiments.runs import configs, read
from jaxcifar import sharding, train
from jaxcifar.errors import Busy, Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.run import signs
from jaxcifar.sharding import make_mesh  # itself: `one_device` puts another in its place
from tests.conftest import OPTIONS, pretend, start_sweep, sweep_command
from tests.tiny import without_times

pytestmark = pytest.mark.usefixtures("one_device")
HOST = socket.gethostname()


# --- where they compute -----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lets the machine have ten cores, and as many GPUs as it is called with."""
    monkeypatch.setattr(workers, "available_cores", lambda: list(range(10)))
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


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("0,-1,1", ["0"]), ("-1", []), ("NoDevFiles", []), ("1, 0", ["1", "0"])],
)
def test_the_list_of_gpus_is_read_as_cuda_reads_it(machine, monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place.gpu for place in workers.places("auto") if place.gpu] == gpus


def test_tpus_are_for_one_process(machine, tmp_path, monkeypatch):
    """All other workers would train on the cores, and nobody would notice."""
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(workers, "TPU_FILES", (f"{tmp_path}/accel[0-9]*",))
    monkeypatch.syspath_prepend(tmp_path)
    assert len(workers.places("auto")) == 2  # of another vendor: no libtpu
    (tmp_path / "libtpu.py").touch()
    assert workers.places("auto") == workers.places("1")
    with pytest.raises(UserError, match="--workers is 2, but only one process can use the TPUs"):
        workers.places("2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert len(workers.places("2")) == 2


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


def until(happened):
    """Waits until a function returns true."""
    deadline = time.monotonic() + 60
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail("it did not happen within a minute")
        time.sleep(0.05)


def has(path, text):
    return path.exists() and text in path.read_text()


def supervise(tmp_path, script, where=ONE):
    commands = [["bash", "-c", script]] * len(where)
    return workers.supervise(commands, where, tmp_path / "logs", lambda: "")


def test_a_worker_that_dies_is_started_again_three_times(tmp_path, capsys):
    (worker,) = supervise(tmp_path, "echo on GPU $CUDA_VISIBLE_DEVICES; kill -9 $$")
    assert worker.process.returncode == -signal.SIGKILL
    assert worker.said.split("\n") == ["on GPU 5"] * 4
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("died (killed by SIGKILL); started again") == 3
    assert printed.count("ended (killed by SIGKILL) and is not started again") == 1


@pytest.mark.parametrize(
    ("given", "amd", "where", "expected"),
    [
        ("", False, ONE[0], "cuda"),
        ("", True, ONE[0], ""),
        ("rocm", False, ONE[0], "rocm"),
        ("", False, workers.Place(cores=frozenset({0})), ""),
    ],
)
def test_a_worker_of_a_gpu_does_not_go_on_with_the_cpu(
    tmp_path, monkeypatch, given, amd, where, expected
):
    monkeypatch.setenv("JAX_PLATFORMS", given)
    monkeypatch.setattr(workers, "AMD_FILE", tmp_path / "kfd")
    if amd:
        workers.AMD_FILE.touch()
    (worker,) = supervise(tmp_path, "echo JAX on $JAX_PLATFORMS", [where])
    assert worker.said == f"JAX on {expected}".strip()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_is_not(tmp_path, code, capsys):
    (worker,) = supervise(tmp_path, f"echo why; exit {code}")
    assert worker.process.returncode == code
    assert worker.restarts == 0
    printed = " ".join(capsys.readouterr().out.split())  # what a user has to know, at once
    assert ("ended (exit code 2) and is not started again" in printed) == (code == 2)
    assert ("why" in printed) == (code == 2)


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
        for index in (0, 1):
            until(lambda index=index: has(tmp_path / "logs" / f"worker-{index}.log", "ready"))
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
        until(lambda: has(tmp_path / "logs" / "worker-0.log", "ready"))
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        workers.supervise([["bash", "-c", script]], ONE, tmp_path / "logs", table)
    assert (tmp_path / "logs" / "worker-0.log").read_text() == "ready\nsaved\n"


# --- a sweep by two of them -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(len(workers.available_cores()) < 2, reason="a core for each worker")
def test_one_of_two_workers_is_killed_and_the_sweep_is_the_serial_one(tmp_path):
    what = ("--rows=vgg2", "--seeds=0-2", "--config.train.epochs=6")
    out, serial = tmp_path / "workers", tmp_path / "serial"
    command, environment = sweep_command(serial, *what)
    with workers.on_cores(
        frozenset({min(os.sched_getaffinity(0))})
    ):  # rounding depends on how many
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    command, environment = sweep_command(out, *what, "--workers=2")
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        begun = []

        def has_begun():
            begun[:] = [
                path
                for path in out.glob("vgg2/*/.running")
                if has(path.with_name("metrics.jsonl"), "epoch")
            ]
            return begun or parent.poll() is not None

        until(has_begun)
        os.kill(json.loads(begun[0].read_text())["pid"], signal.SIGKILL)
        printed, _ = parent.communicate(timeout=300)
    finally:
        parent.terminate()
    assert parent.returncode == 0
    assert "killed by SIGKILL" in printed
    assert "3 of 3 runs" in printed
    for seed in ("seed0", "seed1", "seed2"):
        assert not (out / "vgg2" / seed / ".running").exists()
        ours, other = (
            read_lines(folder / "vgg2" / seed / "metrics.jsonl") for folder in (out, serial)
        )
        for one, two in zip(ours, other, strict=True):
            for name in ("train_loss", "val_loss", "val_accuracy"):
                assert one[name] == two[name]


# --- what they share --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(sweep, "GIVE_UP", 0.0)
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


def test_a_run_is_not_waited_for_for_ever_if_its_host_is_dead(tmp_path, monkeypatch, capsys):
    """As where the file server has kept the lock of the node that this task ran on before."""
    monkeypatch.setattr(sweep, "GIVE_UP", -1.0)

    def trained(config, workdir, **_):
        if config.seed == 0:
            raise Busy("Another process")
        if config.seed == 1:
            raise UserError("The loss is not finite.")
        pretend(config, workdir)

    monkeypatch.setattr(train, "train_and_evaluate", trained)
    workdir = tmp_path / "out" / "vgg2" / "seed0"
    leave_sign_of_a_dead_process(workdir, "node7")
    os.utime(workdir / ".running", (time.time() - 7200,) * 2)
    assert start_sweep(tmp_path / "out", "vgg2", "0-2") == sweep.BROKE
    assert (tmp_path / "out" / "vgg2" / "seed2" / "result.json").exists()
    printed = capsys.readouterr()
    assert printed.out.count("on node7 that fell silent 2h00m ago") == 1
    assert "waiting for it" not in printed.out
    assert "1 of 3 runs" in printed.out
    assert f"delete {workdir / '.lock'}" in printed.err
    assert "failed: vgg2, seed 1" in printed.err


@pytest.mark.slow
def test_the_sign_of_a_process_that_died_here_is_not_of_who_holds_the_lock(
    tmp_path, monkeypatch, capsys
):
    """Such as `jaxcifar train`, which shows none."""
    monkeypatch.setattr(sweep, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(sweep, "GIVE_UP", 0.0)
    tried = []

    def trained(config, workdir, **_):
        tried.append(config.seed)
        if len(tried) < 3:
            raise Busy("Another process")
        pretend(config, workdir)

    monkeypatch.setattr(train, "train_and_evaluate", trained)
    leave_sign_of_a_dead_process(tmp_path / "out" / "vgg2" / "seed0")
    assert start_sweep(tmp_path / "out", "vgg2", "0") == 0
    assert "waiting for it" in capsys.readouterr().out


def test_a_locked_workdir_is_busy(tmp_path):
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.checked([source], [0], tmp_path, OPTIONS)
    job.workdir.mkdir(parents=True)
    with (job.workdir / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            train.train_and_evaluate(job.config, job.workdir, quiet=True)


def test_a_run_that_failed_since_the_start_is_not_tried_by_every_worker(tmp_path, monkeypatch):
    tried = []

    def diverging(config, workdir, **_):
        tried.append(workdir)
        raise UserError("The loss is not finite.")

    monkeypatch.setattr(train, "train_and_evaluate", diverging)
    out = tmp_path / "out"
    for index in (0, 1):
        worker = [f"--worker={index}/2", "--began=today"]
        assert start_sweep(out, "vgg2", "0-1", *worker) == 1
        for path in tried:  # whatever the clock of the file server says
            os.utime(path / "failed.json", (0, 0))
    assert tried == [out / "vgg2" / "seed0", out / "vgg2" / "seed1"]
    failed = json.loads((tried[0] / "failed.json").read_text())
    assert failed["message"] == "The loss is not finite."
    assert failed["pid"] == os.getpid()
    assert start_sweep(out, "vgg2", "0-1") == 1  # the next start tries again
    assert len(tried) == 4


def broken(*names):
    """Training that breaks if the run has one of these names; returns it, and what it tried."""
    tried = []

    def train_one(config, workdir, **_):
        tried.append(f"{workdir.parent.name}/{workdir.name}")
        if workdir.parent.name in names:
            raise RuntimeError("INTERNAL: the machine broke")
        pretend(config, workdir)

    return train_one, tried


def test_a_broken_device_fails_no_run(tmp_path, monkeypatch, capsys):
    """The process ends after two runs of different configs, and others train them all."""
    out = tmp_path / "out"
    trained, tried = broken("vgg2", "vgg6")
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(out, "vgg2,vgg6", "0-3", "--worker=0/2", "--began=today") == sweep.BROKE
    assert tried == ["vgg2/seed0", "vgg6/seed0"]
    error = capsys.readouterr().err
    assert "vgg2, seed 0 and vgg6, seed 0 broke" in error
    assert f"({out / 'vgg6' / 'seed0'}): RuntimeError: INTERNAL: the machine broke" in error
    assert "the machine broke" in signs.failure(out / "vgg2" / "seed0")  # for --status
    trained, tried = broken()
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(out, "vgg2,vgg6", "0-3", "--worker=1/2", "--began=today") == 0
    assert len(tried) == 8


def test_runs_that_break_where_others_succeed_cost_only_themselves(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    trained, tried = broken("vgg2")
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(out, "vgg2,vgg6", "0-2", "--began=today") == 1
    assert sorted(tried) == [f"{row}/seed{seed}" for row in ("vgg2", "vgg6") for seed in range(3)]
    assert capsys.readouterr().err.count("failed: vgg2, seed") == 3
    assert start_sweep(out, "vgg2,vgg6", "0-2", "--began=today") == 1  # as another worker
    assert len(tried) == 6
    # Alone, at the end: something was trained before.
    trained, tried = broken("vgg6")
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(tmp_path / "other", "vgg2,vgg6", "0") == 1
    # Nothing was: there is nothing to judge by.
    assert start_sweep(tmp_path / "other", "vgg6", "0") == sweep.BROKE


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_to_a_full_disk_ends_no_sweep(tmp_path, monkeypatch, capsys, full_disk, name):
    trained, tried = broken("vgg2")
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    with open(full_disk, "w", buffering=1) as full:
        monkeypatch.setattr(sys, name, full)
        assert start_sweep(tmp_path / "out", "vgg2,vgg6", "0") == 1
    assert tried == ["vgg2/seed0", "vgg6/seed0"]
    printed = capsys.readouterr()
    assert ("1 of 2 runs" in printed.out) == (name == "stderr")
    assert printed.err.count("No space left") == (name == "stdout")


def test_what_broke_is_tried_last_when_the_sweep_is_started_again(tmp_path, monkeypatch, capsys):
    """Two configs that need too much memory, say, keep the others waiting only once.

    When they break again, in a process that has trained others, they have failed.
    """
    trained, tried = broken("vgg1", "vgg2")
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == sweep.BROKE
    assert "tries again, the others first." in capsys.readouterr().err
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == 1
    assert tried == ["vgg1/seed0", "vgg2/seed0", "vgg6/seed0", "vgg1/seed0", "vgg2/seed0"]
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == sweep.BROKE  # no other to tell
    assert "The same command tries again." in capsys.readouterr().err


def leave_sign_of_a_dead_process(workdir, host=HOST):
    ended = subprocess.Popen(["true"])
    ended.wait()
    workdir.mkdir(parents=True, exist_ok=True)
    sign = {"host": host, "pid": ended.pid, "job": "77_3", "time": ""}
    (workdir / ".running").write_text(json.dumps(sign))


@pytest.mark.parametrize("host", [HOST, "node7"])
def test_a_run_that_ended_its_process_is_tried_last(tmp_path, monkeypatch, host):
    """By a segmentation fault, say. If it does so again, the others are trained by then."""
    leave_sign_of_a_dead_process(tmp_path / "out" / "vgg1" / "seed0", host)
    trained, tried = broken()
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == 0
    assert tried == ["vgg2/seed0", "vgg6/seed0", "vgg1/seed0"]


@pytest.mark.parametrize(
    ("platforms", "code"), [("", sweep.BROKE), ("cuda", sweep.BROKE), ("cdua", 2)]
)
def test_a_device_that_cannot_be_used_is_no_failed_run(
    tmp_path, monkeypatch, capsys, platforms, code
):
    def no_device():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    monkeypatch.setattr(jax, "devices", no_device)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--shard=0/1") == code
    error = capsys.readouterr().err
    assert "Unable to initialize" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nor_is_one_that_fails_between_two_runs(tmp_path, monkeypatch, capsys):
    def no_device(_):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(sweep, "plan", no_device)
    assert start_sweep(tmp_path / "out", "vgg2", "0") == sweep.BROKE
    assert "CUDA_ERROR" in capsys.readouterr().err


@pytest.mark.parametrize(("trained", "code"), [(1, 2), (2, 0)])
def test_a_worker_that_could_not_start_matters_if_runs_are_left(
    tmp_path, monkeypatch, capsys, trained, code
):
    kept = []

    def supervise(commands, where, logs, table):
        kept.append(logs)
        for job in sweep.checked(configs.named("vgg2", None), [0, 1], out, OPTIONS)[:trained]:
            pretend(job.config, job.workdir)
        process = types.SimpleNamespace(returncode=2)
        return [types.SimpleNamespace(process=process, log=logs / "worker-0.log", said="no CUDA")]

    out = tmp_path / "out"
    monkeypatch.setattr(workers, "supervise", supervise)
    assert start_sweep(out, "vgg2", "0-1", "--workers=1") == code
    assert ("no CUDA" in capsys.readouterr().err) == (code == 2)
    # Another sweep of the folder keeps its output elsewhere.
    assert kept == [out / "logs" / f"{HOST}-{os.getpid()}"]


def test_what_workers_ended_with_is_what_the_sweep_ends_with(tmp_path, monkeypatch, capsys):
    """A warning of the time limit, with and without progress; and a device that broke runs, or
    with which none was tried."""

    def stopped(code):
        def supervise(*_):
            raise workers.Stopped(signal.SIGUSR1, "All were stopped.", [0, code])

        return supervise

    for code, expected in ((sweep.AGAIN, sweep.AGAIN), (138, 138)):
        monkeypatch.setattr(workers, "supervise", stopped(code))
        assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == expected
        assert ("No step was made" in capsys.readouterr().err) == (expected == 138)

    def broke(commands, where, logs, table, *, tried=True):
        if tried:
            signs.fail(tmp_path / "out" / "vgg2" / "seed0", "RuntimeError: RESOURCE_EXHAUSTED")
        process = types.SimpleNamespace(returncode=sweep.BROKE)
        return [types.SimpleNamespace(process=process, log=logs / "worker-0.log", said="")]

    monkeypatch.setattr(workers, "supervise", broke)
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == sweep.BROKE
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err
    monkeypatch.setattr(workers, "supervise", functools.partial(broke, tried=False))
    assert start_sweep(tmp_path / "other", "vgg2", "0", "--workers=1") == sweep.BROKE


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
        ours, theirs = (read_lines(p) for p in (path, swept / path.relative_to(copied)))
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


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", ".running"])
def test_a_run_that_cannot_be_looked_at_costs_only_itself(tmp_path, monkeypatch, capsys, name):
    locked, real = tmp_path / "out" / "vgg2" / "seed0" / name, os.stat

    def stat(path, *arguments, **options):
        if path in (locked, str(locked)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    def train_one(config, workdir, **_):
        if workdir == locked.parent:
            locked.stat()
        pretend(config, workdir)

    leave_sign_of_a_dead_process(locked.parent)
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(train, "train_and_evaluate", train_one)
    assert start_sweep(tmp_path / "out", "vgg2", "0-1") == 1
    assert capsys.readouterr().err.count(f"{locked}: Permission denied.") == 1
    jobs = sweep.checked(configs.named("vgg2", None), [0, 1], tmp_path / "out", OPTIONS)
    assert jobs[0].describe().startswith(f"failed: {locked}: Permission denied.")
    assert jobs[1].describe() == "done"


def test_a_run_that_fails_before_it_writes_anything_says_why(tmp_path, capsys):
    out = tmp_path / "out"
    assert start_sweep(out, "vgg2", "0", f"--config.init_from={tmp_path / 'none'}") == 1
    assert f"{tmp_path / 'none'} contains no run" in capsys.readouterr().err
    # So that a supervisor of workers, and --status, do not take it for a new one.
    assert f"{tmp_path / 'none'} contains no run" in signs.failure(out / "vgg2" / "seed0")


# --- signs of life ----------------------------------------------------------------------------


def test_states_in_words(tmp_path, monkeypatch):
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.checked([source], [0], tmp_path, OPTIONS)
    assert job.describe() == "new"
    assert job.describe("Priority") == "waiting: Priority"
    job.workdir.mkdir(parents=True)
    (job.workdir / "config.json").write_text("{}")
    assert job.describe() == "to resume"
    mark = {"host": "node7", "pid": 1, "job": "77_3", "time": ""}
    path = job.workdir / ".running"
    path.write_text(json.dumps(mark))
    os.utime(path, (time.time() + 7200,) * 2)  # however slow this machine is
    assert job.describe("Priority") == "running on node7 (job 77_3), last sign 0s ago"
    os.utime(path, (time.time() - 7200,) * 2)
    assert job.describe() == "to resume (node7 fell silent 2h00m ago)"
    signs.fail(job.workdir, "it broke\nin many words")
    assert job.describe() == "failed: it broke"
    # One that is dead on this machine is known to be.
    signs.give(job.workdir)
    assert signs.running(job.workdir).alive
    leave_sign_of_a_dead_process(job.workdir)
    assert not signs.running(job.workdir).alive
    pretend(job.config, job.workdir)
    assert job.describe() == "done"
    (job.workdir / "metrics.jsonl").write_text("")
    assert job.state == "damaged"
    assert "metrics.jsonl has 0 of 2 epochs" in job.damage


def test_a_run_shows_itself_before_it_compiles(tmp_path, monkeypatch):
    """And no longer as what failed yesterday."""
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.checked([source], [0], tmp_path, OPTIONS)
    signs.fail(job.workdir, "it broke")
    seen = []

    def look(_):
        seen.append(job.describe(ages=False))
        raise UserError("Enough.")

    monkeypatch.setattr(train, "load_splits", look)
    assert start_sweep(tmp_path, "vgg2", "0") == 1
    assert seen == [f"running on {HOST}"]
    assert job.describe() == "failed: Enough."


def test_a_sign_is_renewed_while_nothing_else_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(signs, "EVERY", 0.01)
    with signs.shown(tmp_path):
        os.utime(tmp_path / ".running", (0, 0))
        until(lambda: signs.running(tmp_path).alive)
    assert not (tmp_path / ".running").exists()


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    (source,) = configs.named("vgg2", None)
    (job,) = sweep.checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    real, reads = sweep.read_records, []
    monkeypatch.setattr(sweep, "read_records", lambda path: reads.append(path) or real(path))
    path = job.workdir / "metrics.jsonl"
    assert [job.state, len(job.records), job.describe()] == ["done", 2, "done"]
    assert reads == [path]
    with path.open("a") as file:
        file.write('{"epoch": 3}\n')
    assert len(job.records) == 3
    assert reads == [path] * 2


def test_status_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", "--status") == 0
    printed = capsys.readouterr().out
    assert "2 new; the time left is unknown" in printed
    assert len(printed.splitlines()) == 4
    assert not pathlib.Path(tmp_path / "out").exists()
