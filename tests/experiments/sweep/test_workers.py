"""Several processes that share a sweep: where they compute, who restarts them, what they share."""

import contextlib
import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from experiments.runs import configs
from experiments.sweep import status, training, workers
from experiments.sweep.__main__ import main as sweep_main
from experiments.sweep.jobs import checked
from jaxcifar import train
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import append, read_lines
from jaxcifar.run import signs
from jaxcifar.run.lock import locked
from jaxcifar.signals import exit_code
from tests.forked import Forked, environment_of
from tests.sweeps import (
    HOST,
    OPTIONS,
    leave_sign_of_a_dead_process,
    pretend,
    start_sweep,
    sweep_command,
    until,
)

pytestmark = pytest.mark.usefixtures("one_device")


# --- where they compute -----------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Lets the machine have ten cores, and as many GPUs as it is called with."""
    monkeypatch.setattr(workers, "available_cores", lambda: list(range(10)))
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(workers, "TPU_FILES", ())
    monkeypatch.setattr(workers, "AMD_FILE", tmp_path / "kfd")
    monkeypatch.setattr(workers, "NVIDIA_FILES", f"{tmp_path}/nvidia[0-9]*")

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


@pytest.mark.parametrize(
    ("file", "plugin"), [("kfd", "jax_rocm7_plugin.py"), ("nvidia0", "jax_cuda13_plugin.py")]
)
def test_workers_do_not_share_gpus_that_are_not_listed(
    machine, tmp_path, monkeypatch, file, plugin
):
    """AMD's never are; NVIDIA's are not where nvidia-smi fails, or is missing in a container."""
    monkeypatch.setattr(workers, "AMD_FILE", tmp_path / "kfd")
    monkeypatch.setattr(workers, "NVIDIA_FILES", f"{tmp_path}/nvidia[0-9]*")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / plugin).touch()
    assert len(workers.places("auto")) == 2  # without such a GPU, all workers are on the cores
    (tmp_path / file).touch()
    with pytest.raises(UserError, match="Each of 2 workers would use all GPUs here"):
        workers.places("2")
    assert len(workers.places("1")) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(workers.places("2")) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert workers.places("auto") == [workers.Place(gpu="0"), workers.Place(gpu="1")]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [("--workers=1", "--dry-run"), ("--slurm", "--print", "--time=60"), ("--status",)],
    ids=lambda what: what[0],
)
def test_what_only_starts_or_watches_them_uses_no_accelerator(tmp_path, what):
    """It would take the memory of one that they need; here there is none to take."""
    environment = environment_of(1) | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
    sweep = (start_sweep, tmp_path / "out", "vgg2", "0", *what)
    process = Forked(*sweep, environment=environment, cwd=tmp_path)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error


# --- who restarts them ------------------------------------------------------------------------


ONE = (workers.Place(gpu="5"),)


def has(path, text):
    return path.exists() and text in path.read_text()


def supervise(tmp_path, script, where=ONE):
    commands = [["bash", "-c", script]] * len(where)
    return workers.supervise(commands, where, tmp_path / "logs", lambda _: "")


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


def test_a_worker_that_dies_as_python_does_is_started_again(tmp_path, capsys):
    """Of half an update of the code, say."""
    script = f"[ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once; exit 1"
    (worker,) = supervise(tmp_path, script)
    assert (worker.process.returncode, worker.restarts) == (0, 1)
    assert "died (exit code 1); started again" in " ".join(capsys.readouterr().out.split())


def test_logs_that_are_tidied_away_end_no_worker(tmp_path):
    once = f"[ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once"
    (worker,) = supervise(tmp_path, f"{once}; rm -r {tmp_path}/logs; kill -9 $$")
    assert (worker.process.returncode, worker.restarts, worker.said) == (0, 1, "")


def test_a_worker_that_cannot_be_started_again_ends_no_other(tmp_path, capsys):
    """Here a file has taken the place of the logs; or there may be no memory for a process."""
    spoil = f"rm -r {tmp_path}/logs; touch {tmp_path}/logs; kill -9 $$"
    other = f"sleep 1; touch {tmp_path}/other"
    commands = [["bash", "-c", spoil], ["bash", "-c", other]]
    where = (workers.Place(gpu="5"), workers.Place(gpu="6"))
    workers.supervise(commands, where, tmp_path / "logs", lambda _: "")
    assert (tmp_path / "other").exists()
    assert "and cannot be started again" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("code", [0, 2])
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


def test_a_table_that_nobody_reads_keeps_no_signal_from_the_workers(tmp_path):
    """As after Ctrl-S in a terminal, or while a connection to it stalls."""
    worker = "trap 'echo told; exit 143' TERM; echo ready; for i in {1..300}; do sleep 0.1; done"
    code = (
        "import itertools, pathlib; from experiments.sweep import workers\n"
        f"commands, numbers = [['bash', '-c', {worker!r}]], itertools.count()\n"
        f"workers.supervise(commands, (workers.Place(gpu='0'),), pathlib.Path({str(tmp_path)!r}),\n"
        "    lambda _: '\\n'.join(f'{next(numbers)} {\"x\" * 1000}' for _ in range(200)))"
    )
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        until(lambda: has(tmp_path / "worker-0.log", "ready"))
        time.sleep(1)
        assert parent.poll() is None
        parent.send_signal(signal.SIGTERM)
        until(lambda: has(tmp_path / "worker-0.log", "told"))
    finally:
        parent.kill()
        parent.communicate()


def supervise_in_a_group(tmp_path, script):
    """As a shell starts a command: a terminal signals all of its group."""
    os.setpgrp()
    return exit_code(lambda: bool(supervise(tmp_path, script)))


def test_a_ctrl_c_reaches_workers_once_and_the_second_kills_them(tmp_path):
    script = "trap 'echo got it' INT; echo ready; for i in {1..300}; do sleep 0.1; done; echo ended"
    log = tmp_path / "logs" / "worker-0.log"
    told = (supervise_in_a_group, tmp_path, script)
    parent = Forked(*told, environment=environment_of(1), cwd=tmp_path)
    until(lambda: has(log, "ready"))
    os.killpg(parent.pid, signal.SIGINT)
    until(lambda: has(log, "got it"))
    time.sleep(0.5)  # it might come again
    os.killpg(parent.pid, signal.SIGINT)
    _, error = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGINT
    assert "second SIGINT" in error
    assert log.read_text() == "ready\ngot it\n"


def test_an_error_of_the_parent_lets_the_workers_save(tmp_path):
    """One like that of a file system that is gone for a moment."""
    loop = "for i in {1..30}; do sleep 0.1; done"
    script = f"trap 'sleep 0.5; echo saved; exit 143' TERM; echo ready; {loop}"

    def table(_):
        until(lambda: has(tmp_path / "logs" / "worker-0.log", "ready"))
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale"):
        workers.supervise([["bash", "-c", script]], ONE, tmp_path / "logs", table)
    assert (tmp_path / "logs" / "worker-0.log").read_text() == "ready\nsaved\n"


# --- what is shown of them --------------------------------------------------------------------


def let_a_worker_train_one(tmp_path):
    """It trains once the table was shown."""
    jobs = checked(configs.named("vgg2", None), [0], tmp_path / "out", OPTIONS)
    trained, shown = tmp_path / "trained", tmp_path / "shown"
    pretend(jobs[0].config, trained)
    jobs[0].workdir.parent.mkdir(parents=True)

    def table(_):
        text = status.table(jobs)
        shown.touch()
        return text

    wait = f"until [ -e {shown} ]; do sleep 0.1; done"
    command = ["bash", "-c", f"{wait}; cp -r {trained} {jobs[0].workdir}"]
    workers.supervise([command], ONE, tmp_path / "logs", table)


def test_what_changed_in_the_table_is_printed(tmp_path, capsys):
    let_a_worker_train_one(tmp_path)
    first, *rows = map(str.split, capsys.readouterr().out.splitlines())
    assert first == ["name", "seed", "model", "epochs", "state"]
    assert [row[-2:] for row in rows] == [["0/2", "new"], ["2/2", "done"]]


def in_a_terminal(monkeypatch, use):
    """Returns what `use()` shows in a terminal."""
    reading, terminal = os.openpty()
    os.set_blocking(reading, False)
    monkeypatch.setenv("TERM", "xterm")
    with open(terminal, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        use()
        monkeypatch.undo()
        printed = b""
        with contextlib.suppress(BlockingIOError):  # a terminal hands over a part at a time
            while True:
                printed += os.read(reading, 100_000)
    os.close(reading)
    return printed.decode()


UP = "\x1b[1A"  # it goes back up to the first line


def test_a_terminal_shows_the_table_in_place(tmp_path, monkeypatch):
    printed = in_a_terminal(monkeypatch, lambda: let_a_worker_train_one(tmp_path))
    before, after = printed.split(UP, 1)
    assert re.search("name .*\n.* 0/2  new", before)
    assert re.search("name .*\n.* 2/2  done", after)


def test_a_terminal_shows_what_there_is_room_for(tmp_path, monkeypatch):
    """And first how much is left; at the end, all of it."""
    jobs = checked(configs.named("vgg2", None), list(range(20)), tmp_path / "out", OPTIONS)
    for job in jobs[:9]:
        pretend(job.config, job.workdir)
    for job in jobs[9:13]:
        job.workdir.mkdir(parents=True)
        (job.workdir / "config.json").write_text("{}")
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "80")
    shown, counts = tmp_path / "shown", status.counts
    monkeypatch.setattr(status, "counts", lambda jobs: shown.touch() or counts(jobs))
    wait = f"until [ -e {shown} ]; do sleep 0.1; done"
    told = (jobs, ["bash", "-c", wait], ONE, tmp_path / "logs", training.Observer())
    printed = in_a_terminal(monkeypatch, lambda: training.run_workers(*told))
    before, after = printed.split(UP, 1)
    first, header, *rows, rest, _ = before.splitlines()
    assert "20 runs: 9 done, 4 to resume, 7 new; " in first
    assert header.startswith("name")
    assert [row.split("  ")[-1].strip() for row in rows] == ["to resume"] * 4 + ["new"]
    assert rest == "… 9 done, 6 new"
    assert len(re.findall("vgg2 .* [0-2]/2  ", after.rpartition(UP)[2])) == 20


# --- a sweep by two of them -------------------------------------------------------------------


def sweep_on_one_core(arguments):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # rounding depends on how many
    return sweep_main(arguments)


@pytest.mark.slow
@pytest.mark.skipif(len(workers.available_cores()) < 2, reason="a core for each worker")
def test_one_of_two_workers_is_killed_and_the_sweep_is_the_serial_one(tmp_path):
    what = ("--rows=vgg2", "--seeds=0-1", "--config.train.epochs=6")
    out, serial = tmp_path / "workers", tmp_path / "serial"
    command, environment = sweep_command(serial, *what)
    alone = Forked(sweep_on_one_core, command[3:], environment=environment, cwd=tmp_path)
    error = alone.communicate(timeout=300)[1]
    assert alone.returncode == 0, error
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
    assert "2 of 2 runs" in printed
    for seed in ("seed0", "seed1"):
        assert not (out / "vgg2" / seed / ".running").exists()
        ours, other = (
            read_lines(folder / "vgg2" / seed / "metrics.jsonl") for folder in (out, serial)
        )
        for one, two in zip(ours, other, strict=True):
            for name in ("train_loss", "val_loss", "val_accuracy"):
                assert one[name] == two[name]


@pytest.mark.slow
def test_workers_whose_parent_is_killed_save_and_end(tmp_path):
    """Else they would train beside those of the same command, and no Ctrl-C would reach them."""
    run = tmp_path / "out" / "vgg2" / "seed0"
    more = ("--rows=vgg2", "--workers=1", "--config.train.epochs=5000")
    command, environment = sweep_command(tmp_path / "out", *more)
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        until(lambda: has(run / "metrics.jsonl", "\n"))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not (run / ".running").exists())
    with locked(run):
        before = (run / "metrics.jsonl").read_text()
        assert before.count("\n") < 5000
    (log,) = (tmp_path / "out" / "logs").glob("*/worker-0.log")
    assert "Stopped by SIGTERM and saved" in log.read_text()


@pytest.mark.parametrize(("trained", "code"), [(1, 2), (2, 0)])
def test_a_worker_that_could_not_start_matters_if_runs_are_left(
    tmp_path, monkeypatch, capsys, trained, code
):
    kept = []

    def supervise(commands, where, logs, table):
        kept.append(logs)
        for job in checked(configs.named("vgg2", None), [0, 1], out, OPTIONS)[:trained]:
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

    for code, expected in ((training.AGAIN, training.AGAIN), (138, 138)):
        monkeypatch.setattr(workers, "supervise", stopped(code))
        assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == expected
        assert ("No step was done" in capsys.readouterr().err) == (expected == 138)

    def after_an_epoch(*arguments):  # of a worker that died since, and was started again
        (tmp_path / "out" / "vgg2" / "seed0").mkdir(parents=True)
        append(tmp_path / "out" / "vgg2" / "seed0" / "metrics.jsonl", "{}")
        stopped(138)(*arguments)

    monkeypatch.setattr(workers, "supervise", after_an_epoch)
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == training.AGAIN

    def broke(code, commands, where, logs, table, *, tried=True):
        if tried:
            signs.fail(tmp_path / "out" / "vgg2" / "seed0", "RuntimeError: RESOURCE_EXHAUSTED")
        process = types.SimpleNamespace(returncode=code)
        return [types.SimpleNamespace(process=process, log=logs / "worker-0.log", said="")]

    monkeypatch.setattr(workers, "supervise", functools.partial(broke, training.BROKE))
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == training.BROKE
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err
    for code in (training.BROKE, -signal.SIGABRT):
        monkeypatch.setattr(workers, "supervise", functools.partial(broke, code, tried=False))
        assert start_sweep(tmp_path / "other", "vgg2", "0", "--workers=1") == training.BROKE
    capsys.readouterr()
    # Whether a dead host has kept the lock of a run, so that no worker could have it.
    monkeypatch.setattr(workers, "supervise", functools.partial(broke, training.BROKE, tried=False))
    workdir = tmp_path / "locked" / "vgg2" / "seed0"
    for kept in (True, False):
        with locked(workdir) if kept else contextlib.nullcontext():
            leave_sign_of_a_dead_process(workdir, "node7")
            os.utime(workdir / ".running", (time.time() - 7200,) * 2)
            assert start_sweep(tmp_path / "locked", "vgg2", "0", "--workers=1") == training.BROKE
        said = capsys.readouterr().err
        assert (f"delete {workdir / '.lock'}" in said, "died" in said) == (kept, not kept)
    # What failed yesterday is not why a worker could not start today.
    monkeypatch.setattr(workers, "supervise", functools.partial(broke, 2, tried=False))
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--workers=1") == 2
    assert "A worker could not start" in capsys.readouterr().err


def test_workers_of_a_shard_train_that_only(tmp_path, monkeypatch):
    started = []

    def supervise(commands, where, logs, table):
        started.extend(commands)
        return []

    monkeypatch.setattr(workers, "supervise", supervise)
    start_sweep(tmp_path / "out", "vgg2", "0-3", "--shard=1/2", "--workers=1")
    (command,) = started
    assert "--shard=1/2" in command
    assert "--worker=0/1" in command


def test_workers_begin_with_different_runs(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(train, "train_and_evaluate", lambda c, _, **__: tried.append(c.seed))
    for index in (0, 1):
        assert start_sweep(tmp_path / "out", "vgg2", "0-3", f"--worker={index}/2") == 0
    assert tried == [0, 1, 2, 3, 2, 3, 0, 1]
