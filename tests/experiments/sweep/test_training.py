"""Training runs in turn: who waits, who has failed, who is to blame, who shows himself."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import sys
import time

import jax
import pytest

from experiments.runs import configs, read
from experiments.sweep import __main__, training
from experiments.sweep.jobs import checked
from jaxcifar import sharding, train
from jaxcifar.errors import Busy, UserError
from jaxcifar.files import read_lines
from jaxcifar.run import signs
from jaxcifar.sharding import make_mesh  # itself: `one_device` puts another in its place
from tests.sweeps import HOST, OPTIONS, leave_sign_of_a_dead_process, pretend, start_sweep, until
from tests.tiny import without_times

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(training, "GIVE_UP", 0.0)
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
    monkeypatch.setattr(training, "GIVE_UP", -1.0)

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
    assert start_sweep(tmp_path / "out", "vgg2", "0-2") == training.BROKE
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
    monkeypatch.setattr(training, "LOOK_AGAIN", 0.01)
    monkeypatch.setattr(training, "GIVE_UP", 0.0)
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


def test_the_time_left_is_shared_with_those_that_train_beside(tmp_path, monkeypatch, capsys):
    """One run is done, and took ten seconds; of three, two are trained by others."""
    out = tmp_path / "out"
    (source,) = configs.named("vgg2", None)
    done, _, *others = checked([source], [*range(4)], out, OPTIONS)
    pretend(done.config, done.workdir)
    lines = read_lines(done.workdir / "metrics.jsonl")
    speed = {"images_per_second": 2 * (100 + 256 / 3) / 10}
    text = "".join(json.dumps(line | speed) + "\n" for line in lines)
    (done.workdir / "metrics.jsonl").write_text(text)
    for job in others:
        job.workdir.mkdir(parents=True)
        signs.give(job.workdir)

    def trained(config, workdir, hooks):
        workdir.mkdir(parents=True, exist_ok=True)
        for hook in hooks:
            hook.locked(workdir)
        pretend(config, workdir)

    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(out, "vgg2", "0-3") == 0
    printed = capsys.readouterr().out
    assert f"4 runs in {out}: 1 done, 3 new; about 10s left" in printed
    assert "[2/4] vgg2, seed 1: new; sweep: about 10s left" in printed


def test_a_locked_workdir_is_busy(tmp_path):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
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
        assert start_sweep(out, "vgg2", "0-1", *worker) == 0  # who started it knows what failed
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
    assert start_sweep(out, "vgg2,vgg6", "0-3", "--worker=0/2", "--began=today") == training.BROKE
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
    assert start_sweep(tmp_path / "other", "vgg6", "0") == training.BROKE


def unanswered(answers):
    """Training whose next run is trained for each true one of `answers`, else cannot be saved."""
    answers = iter(answers)

    def train_one(config, workdir, **_):
        if not next(answers):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(workdir))
        pretend(config, workdir)

    return train_one


def test_a_file_server_that_does_not_answer_for_a_while_fails_no_run(tmp_path, monkeypatch, capsys):
    """What it keeps from being trained in the end, other processes may train."""
    waited = []
    monkeypatch.setattr(training, "REST", 0.25)
    monkeypatch.setattr(time, "sleep", waited.append)
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    # It answers again.
    monkeypatch.setattr(train, "train_and_evaluate", unanswered([False, True, True]))
    assert start_sweep(one, "vgg1,vgg2", "0") == 0
    assert waited == [0.25]
    assert "Traceback" not in capsys.readouterr().err
    # It does for the next run.
    monkeypatch.setattr(train, "train_and_evaluate", unanswered([False, False, True]))
    assert start_sweep(two, "vgg1,vgg2", "0", "--began=today") == training.BROKE
    assert f"{two / 'vgg1' / 'seed0'}: {os.strerror(errno.ESTALE)}." in capsys.readouterr().err
    assert signs.failure(two / "vgg1" / "seed0", "today") == ""
    monkeypatch.setattr(train, "train_and_evaluate", unanswered([True]))
    assert start_sweep(two, "vgg1,vgg2", "0", "--began=today") == 0
    # It does not.
    monkeypatch.setattr(train, "train_and_evaluate", unanswered([False] * 4))
    assert start_sweep(three, "vgg1,vgg2,vgg6", "0") == training.BROKE
    assert "vgg1, seed 0 and vgg2, seed 0 broke." in capsys.readouterr().err


def test_nor_one_that_does_not_answer_at_the_start(tmp_path, monkeypatch, capsys):
    """Of a task, which is then requeued."""
    path, read_text = tmp_path / "sweep.json", pathlib.Path.read_text
    path.write_text("{}")

    def stale(self, *arguments, **options):
        if self == path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return read_text(self, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "read_text", stale)
    assert start_sweep(tmp_path, "vgg2", "0", "--shard=0/1") == training.BROKE
    assert capsys.readouterr().err == f"jaxcifar: {path}: {os.strerror(errno.ESTALE)}.\n"


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
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == training.BROKE
    assert "tries again, the others first." in capsys.readouterr().err
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == 1
    assert tried == ["vgg1/seed0", "vgg2/seed0", "vgg6/seed0", "vgg1/seed0", "vgg2/seed0"]
    # There is no other to tell whose fault it is.
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == training.BROKE
    assert "The same command tries again." in capsys.readouterr().err


def test_those_that_always_break_keep_none_from_its_turn(tmp_path, monkeypatch):
    """One whose disk was full, or whose node died, while it was first."""
    out, rows = tmp_path / "out", "vgg1,vgg2,vgg6"
    for names in (["vgg1", "vgg2"], ["vgg1", "vgg2", "vgg6"]):
        monkeypatch.setattr(train, "train_and_evaluate", broken(*names)[0])
        assert start_sweep(out, rows, "0") == training.BROKE
    monkeypatch.setattr(train, "train_and_evaluate", broken("vgg1", "vgg2")[0])
    assert start_sweep(out, rows, "0") == 1
    assert (out / "vgg6" / "seed0" / "result.json").exists()


def test_a_machine_in_place_of_a_dead_one_is_another(tmp_path):
    """A pod has its name and its process number, perhaps on another node; so may a node have."""
    signs.give(tmp_path)
    assert signs.running(tmp_path)[3:5] == (True, True)
    sign = json.loads((tmp_path / ".running").read_text())
    assert sign["machine"] or not pathlib.Path("/proc/sys/kernel/random/boot_id").exists()
    (tmp_path / ".running").write_text(json.dumps(sign | {"machine": "another"}))
    assert signs.running(tmp_path)[3:5] == (True, False)
    os.utime(tmp_path / ".running", (time.time() - 7200,) * 2)
    assert signs.running(tmp_path)[3:5] == (False, False)


@pytest.mark.parametrize("host", [HOST, "node7"])
def test_a_run_that_ended_its_process_is_tried_last(tmp_path, monkeypatch, host):
    """By a segmentation fault, say. If it does so again, the others are trained by then."""
    leave_sign_of_a_dead_process(tmp_path / "out" / "vgg1" / "seed0", host)
    trained, tried = broken()
    monkeypatch.setattr(train, "train_and_evaluate", trained)
    assert start_sweep(tmp_path / "out", "vgg1,vgg2,vgg6", "0") == 0
    assert tried == ["vgg2/seed0", "vgg6/seed0", "vgg1/seed0"]


@pytest.mark.parametrize(
    ("platforms", "code"), [("", training.BROKE), ("cuda", training.BROKE), ("cdua", 2)]
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

    monkeypatch.setattr(__main__, "in_order", no_device)
    assert start_sweep(tmp_path / "out", "vgg2", "0") == training.BROKE
    assert "CUDA_ERROR" in capsys.readouterr().err


DAMAGES = [
    ("config.json", "{"),
    ("metrics.jsonl", "[\n"),
    ("result.json", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), DAMAGES[:2])
def test_a_damaged_file_is_restored_from_the_checkpoint(swept, swept_copy, name, text):
    (swept_copy / "vgg2" / "seed0" / name).write_text(text)
    assert start_sweep(swept_copy) == 0
    assert len(read.sweeps(swept_copy)[0].finished.runs) == 4  # which reads all files of all runs
    for path in swept_copy.glob("*/*/metrics.jsonl"):
        ours, theirs = (read_lines(p) for p in (path, swept / path.relative_to(swept_copy)))
        assert without_times(ours) == without_times(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), DAMAGES[1:])
def test_a_run_that_cannot_be_restored_costs_only_itself(swept_copy, capsys, name, text):
    broken = swept_copy / "vgg2" / "seed0"
    (broken / name).write_text(text)
    shutil.rmtree(broken / "checkpoints")
    shutil.rmtree(swept_copy / "vgg6" / "seed1")
    assert start_sweep(swept_copy) == 1
    assert (swept_copy / "vgg6" / "seed1" / "result.json").exists()
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
    jobs = checked(configs.named("vgg2", None), [0, 1], tmp_path / "out", OPTIONS)
    assert jobs[0].describe().startswith(f"failed: {locked}: Permission denied.")
    assert jobs[1].describe() == "done"


def test_a_run_that_fails_before_it_writes_anything_says_why(tmp_path, capsys):
    out = tmp_path / "out"
    assert start_sweep(out, "vgg2", "0", f"--config.init_from={tmp_path / 'none'}") == 1
    assert f"{tmp_path / 'none'} contains no run" in capsys.readouterr().err
    # So that a supervisor of workers, and --status, do not take it for a new one.
    assert f"{tmp_path / 'none'} contains no run" in signs.failure(out / "vgg2" / "seed0")


def test_a_sign_goes_by_the_clock_of_its_machine(tmp_path, monkeypatch):
    """That of a file server may be off, and so give others a wrong age."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)  # here, and not in the kernel
    monkeypatch.setattr(signs, "EVERY", 0.05)
    with signs.shown(tmp_path):
        assert signs.running(tmp_path).age < 60
        os.utime(tmp_path / ".running", (0, 0))
        until(lambda: signs.running(tmp_path).age < 60)


def test_a_run_shows_itself_before_it_compiles(tmp_path, monkeypatch):
    """And no longer as what failed yesterday."""
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
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
