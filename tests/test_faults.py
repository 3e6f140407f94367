"""What happens to a run from outside: full disks, locks, divergence, files of others."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxcifar import cli, data, replay, restore, start
from jaxcifar.errors import Busy, Interrupted, UserError
from jaxcifar.files import append, replace, write_shared
from jaxcifar.hooks import Hook
from jaxcifar.interop import torch as interop
from jaxcifar.run.checkpoint import Checkpointer
from jaxcifar.run.folder import RunFolder
from jaxcifar.run.lock import locked
from jaxcifar.run.plots import plot_history
from jaxcifar.signals import exit_code
from tests import tiny as tiny_run
from tests.forked import Forked, environment_of
from tests.test_run_integrity import OFTEN, ONE, numbers, run, tiny
from tests.tiny import SignalAt, state_of

ROOT = pathlib.Path(__file__).parent.parent


# --- the disk ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "bytes_of_a_file",
    [
        100,  # config.json
        12_000,  # a checkpoint
    ],
)
def test_a_full_disk_is_one_message_and_the_run_goes_on_afterwards(tmp_path, bytes_of_a_file):
    """No file may grow beyond so many bytes."""
    script = (
        "import resource, sys\n"
        "from tests.test_run_integrity import run, tiny\n"
        "from jaxcifar.signals import exit_code\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_of_a_file}, resource.RLIM_INFINITY))\n"
        "sys.exit(exit_code(lambda: run(tiny(train__epochs=1), sys.argv[1]) and 0))\n"
    )
    # Nothing is added to the cache: an entry that cannot be written is a warning of JAX's own.
    environment = environment_of(devices=8) | {"PYTHONPATH": str(ROOT)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1000"
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 2, found.stderr
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("jaxcifar:")]
    assert str(tmp_path) in line
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "result.json").exists()
    assert run(tiny(train__epochs=1), tmp_path)["last"]["epoch"] == 1


def write_in(folder):
    """Writes in every way that the package has, over what is there, as commands do."""
    picture, text = folder / "picture.png", "x" * 100_000
    record = {"epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0, "train_ce": 1.0} | {
        "train_accuracy": 0.5
    }
    for write in (
        lambda: replace(picture, text),
        lambda: write_shared(picture, text),
        lambda: plot_history([record], "", picture),
        lambda: append(folder / "lines", text),
        lambda: RunFolder(folder / "run").__enter__(),
    ):
        print(exit_code(lambda write=write: write() and None), flush=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("condition", "command"),
    [
        ("No space left on device", "head -c 1M /dev/zero > {0}/filler 2> {0}/said || true"),
        ("Read-only file system", "mount -o remount,ro {0}"),
    ],
)
def test_what_cannot_be_written_is_one_message_and_leaves_all_as_it_was(
    condition, command, tmp_path
):
    """On a file system of its own, which any user may mount in a namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k tmpfs {disk} || exit 77; echo before > {disk}/picture.png; "
        f"{command.format(disk)}; ls {disk} > before; "
        f"{sys.executable} -c 'import pathlib, tests.test_faults as t; "
        f't.write_in(pathlib.Path("{disk}"))\' > codes 2> messages; '
        f"cat {disk}/picture.png > after; ls -A {disk}"
    )
    files = {name: tmp_path / name for name in ("before", "after", "codes", "messages")}
    for name, path in files.items():
        script = script.replace(f"> {name}", f"> {path}")
    found = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if found.returncode == 77 or "unshare" in found.stderr:
        pytest.skip(f"no file system can be mounted here: {found.stderr.strip()}")
    full = "No space" in condition
    assert files["codes"].read_text().split() == ["2"] * (4 if full else 5) + ["0"] * full
    messages = files["messages"].read_text().splitlines()
    for message, name in zip(messages, ["picture.png"] * 3 + ["lines", "run"], strict=False):
        assert message.startswith("jaxcifar: ")
        assert f"{disk}/{name}" in message
        assert condition in message
    assert len(messages) == 4 + (not full)
    assert files["after"].read_text() == "before\n"
    there = set(found.stdout.split())
    assert there - {"lines", "run"} == set(files["before"].read_text().split())


def test_a_folder_where_a_file_belongs_is_one_message(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: Is a directory"):
        run(tiny(), tmp_path)


def test_checkpoints_that_are_a_file_are_one_message(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"checkpoints: (File exists|Not a directory)"):
        run(tiny(), tmp_path)


def test_an_oserror_of_a_command_is_one_message(tmp_path, capsys):
    def command():
        (tmp_path / "none" / "file").write_text("")

    assert exit_code(command) == 2
    assert (
        capsys.readouterr().err == f"jaxcifar: {tmp_path}/none/file: No such file or directory.\n"
    )


def test_an_address_is_no_workdir():
    with pytest.raises(UserError, match="gs:/bucket/run is a URL"):
        RunFolder(pathlib.Path("gs://bucket/run"))


def test_a_deleted_lock_lets_no_other_in(tmp_path):
    with RunFolder(tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(UserError, match="Another process"), RunFolder(tmp_path):
            pass
    with RunFolder(tmp_path):
        pass


def lock_again_beside_a_fork(workdir):
    with locked(workdir):
        (workdir / "file").touch()  # or the folder would be deleted
        child = os.fork()
        if child == 0:  # it has the file open, too
            time.sleep(60)
            os._exit(0)
    try:
        with locked(workdir):
            print("locked again")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_fork_that_outlives_a_run_does_not_keep_it_locked(tmp_path):
    """As a worker of a pool that a hook has started."""
    process = Forked(lock_again_beside_a_fork, tmp_path / "run", environment=os.environ, cwd=ROOT)
    printed, said = process.communicate(timeout=60)
    assert printed == "locked again\n", said


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path, monkeypatch, number
):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="cannot lock files") as error, RunFolder(tmp_path / "run"):
        pass
    assert not isinstance(error.value, Busy)


# --- divergence -------------------------------------------------------------------------------


def diverging(**fields):
    return tiny(**OFTEN, **fields, optim__learning_rate=100.0, optim__l2=100.0)


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_divergence_can_be_looked_at(tmp_path, steps_per_call):
    with pytest.raises(UserError, match="is not finite") as error:
        run(diverging(train__steps_per_call=steps_per_call), tmp_path)
    message = str(error.value)
    assert f"jaxcifar replay {tmp_path}. A" in message
    assert "learning rate of the step: 100" in message
    rows = message.rpartition("images of its batch (indices in the training set): ")[2]
    assert len(set(map(int, rows.split(", ")))) == 32
    if steps_per_call == 1:  # else there is none: it diverges in the first call
        # The last good checkpoint is good.
        _, _, variables = restore.load_variables(tmp_path, "last", mesh=ONE)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(variables)))
    lines = []
    step = replay.replay(tmp_path, mesh=ONE, say=lines.append)
    assert f"loss of step {step} " in message
    assert f"images of its batch (indices in the training set): {rows}" in lines
    (first,) = [line for line in lines if line.startswith("->")]
    assert first.startswith("-> output of ")
    before = lines[: lines.index(first)]
    assert not any("not finite" in line for line in before)


class Spoil(Hook):
    """Makes a parameter infinite where one step is done: the loss of that step was finite."""

    def before_call(self, run):
        if run.step == 4:
            params = jax.tree.map(lambda x: x.at[:1].set(np.inf), run.state.params)
            run.state = run.state.replace(params=jax.device_put(params, run.state.step.sharding))
            run.stop.request("on purpose")


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="A parameter after step 4 is not finite") as error:
        run(tiny(train__checkpoint_minutes=10.0), tmp_path, Spoil())
    last = Checkpointer(tmp_path / "checkpoints").last()
    assert f"last good checkpoint, of step {last.step}," in str(error.value)
    run(tiny(train__checkpoint_minutes=10.0), tmp_path)
    assert numbers(tmp_path)[0][-1]["epoch"] == 3


@pytest.mark.slow
def test_an_evaluation_that_diverges_can_be_looked_at(tmp_path):
    """By statistics that no training step uses."""
    config = tiny_run.tiny()  # with BatchNorm
    with pytest.raises(Interrupted):
        run(config, tmp_path / "source", SignalAt(0))
    variables = state_of(tmp_path / "source")
    variables["batch_stats"]["bn1"]["mean"] = np.full_like(
        variables["batch_stats"]["bn1"]["mean"], -3e38
    )
    start.run_of_weights(config, tmp_path / "weights", variables)
    config.init_from = str(tmp_path / "weights")
    with pytest.raises(UserError, match="validation loss after epoch 1 is not finite"):
        run(config, tmp_path / "run")
    for stop in (None, SignalAt(3, where="before_evaluation")):
        if stop:  # the last checkpoint is of the step that was not evaluated
            with pytest.raises(Interrupted):
                run(config, tmp_path / "run", stop)
        lines = []
        assert replay.replay(tmp_path / "run", mesh=ONE, say=lines.append) == 3
        assert "step 3, epoch 1: the validation loss is not finite" in lines
        assert not any(line.startswith("->") for line in lines)  # the weights are finite


@pytest.mark.slow
def test_nothing_is_wrong_with_a_finite_run(tmp_path):
    with pytest.raises(Interrupted):
        run(tiny(train__epochs=1), tmp_path, SignalAt(2))
    lines = []
    assert replay.replay(tmp_path, mesh=ONE, say=lines.append) is None
    assert lines[-1] == "steps 3 to 3: all numbers are finite"
    run(tiny(train__epochs=1), tmp_path)
    with pytest.raises(UserError, match=r"All 3 steps of the run in .* are done"):
        replay.replay(tmp_path, mesh=ONE)
    with pytest.raises(UserError, match="contains no run"):
        replay.replay(tmp_path / "none", mesh=ONE)


def test_a_replay_computes_as_the_last_start_did(tmp_path, monkeypatch, capsys):
    """From images that have moved, in calls of as many steps."""
    with pytest.raises(Interrupted):
        run(tiny(train__epochs=1), tmp_path, SignalAt(1))
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    last = content["environment"] | {"steps_per_call": 3, "cpus": 99}
    # Of a GPU, on which "auto" was bfloat16.
    elsewhere = content["environment"] | {"dtype": "bfloat16"}
    path.write_text(json.dumps(content | {"environment": elsewhere, "resumed": [last]}))
    looked_in, load = [], data.load

    def noted(*arguments, data_dir="", **options):
        looked_in.append(data_dir)
        return load(*arguments, data_dir=data_dir, **options)

    monkeypatch.setattr(data, "load", noted)
    assert cli.main(["replay", str(tmp_path), f"--data-dir={tmp_path}"]) == 0
    assert set(looked_in) == {str(tmp_path)}
    said = capsys.readouterr().err
    assert "replayed under conditions that change rounding: " in said
    assert "cpus 99 -> " in said
    assert "steps_per_call" not in said


# --- files of others --------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused(tmp_path):
    run(tiny(train__epochs=1), tmp_path)
    config, _, variables = restore.load_variables(tmp_path, mesh=ONE)
    weights = {k: v.copy() for k, v in interop.to_torch(config.model.name, variables).items()}
    weights["features.0.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"not finite \(1\): features\.0\.weight"):
        interop.from_torch(config.model.name, weights, width=config.model.width)


class Payload:
    def __reduce__(self):
        return (os.mkdir, (str(Payload.made),))


def test_an_archive_of_pickles_is_refused_and_not_run(tmp_path, capsys):
    Payload.made = tmp_path / "made"
    path = tmp_path / "weights.npz"
    np.savez(path, allow_pickle=True, a=np.array([Payload()], dtype=object))
    arguments = [str(path), "--model=vgg_a", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["import", *arguments]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not Payload.made.exists()
