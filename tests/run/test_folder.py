"""The folder of a run: who holds it, and what it refuses."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import time

import pytest

from jaxcifar.errors import Busy, Temporary, UserError
from jaxcifar.run import about, signs
from jaxcifar.run.folder import Position, RunFolder
from jaxcifar.run.machine import environment
from tests.tiny import mesh, run, tiny

FACTS = {"train": {"sha256": "a", "source": "here"}, "validation": {"sha256": "b", "source": "x"}}
FLOAT32, BFLOAT16 = {"dtype": "float32"}, {"dtype": "bfloat16"}


def opened(path, facts=FACTS, in_force=FLOAT32, initial=None):
    """Opens a folder as a run does, and lets go of it; returns its config.json."""
    with RunFolder(path) as folder:
        folder.open(tiny(), facts, in_force, mesh(1), initial)
    return json.loads((path / "config.json").read_text())


def trained(path, *args):
    """The same, of a run that was killed after its first epoch, before the checkpoint."""
    content = opened(path, *args)
    (path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    return content


@pytest.mark.slow
def test_another_config_is_refused_by_its_differences(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"train\.epochs: 2 -> 3") as error:
        run(tiny(train__epochs=3), workdir)
    assert "new --workdir" in str(error.value)
    assert f"--config.init_from={workdir}" in str(error.value)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_without_checkpoints_is_no_start_for_another(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(UserError, match="of another config") as error:
        run(tiny(train__epochs=3), workdir)
    assert "init_from" not in str(error.value)


@pytest.mark.slow
def test_a_run_without_an_epoch_is_no_start_for_another(stopped):
    with pytest.raises(UserError, match="new --workdir") as error:
        run(tiny(train__epochs=3), stopped)
    assert "init_from" not in str(error.value)


def test_a_folder_in_which_nothing_was_trained(tmp_path):
    """Such as of a run that was stopped while it compiled."""
    opened(tmp_path)
    with pytest.raises(UserError, match=r"Nothing was trained there: delete .*config\.json"):
        run(tiny(train__epochs=3), tmp_path)


def test_a_held_workdir_is_refused(tmp_path):
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process"):
            run(tiny(), tmp_path)
    # Let go of, also by an error, it can be held.
    with RunFolder(tmp_path), pytest.raises(UserError, match="Another process"):
        RunFolder(tmp_path).__enter__()
    with pytest.raises(KeyError), RunFolder(tmp_path):
        raise KeyError
    with RunFolder(tmp_path):
        pass


def test_a_copy_of_hard_links_may_be_held_by_its_original(tmp_path):
    """As `cp -al` makes it."""
    with RunFolder(tmp_path / "a"):
        (tmp_path / "b").mkdir()
        os.link(tmp_path / "a" / ".lock", tmp_path / "b" / ".lock")
        with pytest.raises(Busy, match=r"/b, or in a folder of which this is a hard-linked copy"):
            RunFolder(tmp_path / "b").__enter__()
        (tmp_path / "b" / ".lock").unlink()
        with RunFolder(tmp_path / "b"):
            pass
        with pytest.raises(Busy, match=r"is training in .*/a\. Wait for it, or choose another"):
            RunFolder(tmp_path / "a").__enter__()


def test_whoever_holds_the_lock_is_not_the_process_that_died(tmp_path):
    """A sweep that was killed leaves a sign, which must not be taken for that of another run."""
    sign = {"host": "node7", "pid": 1, "job": "", "time": "2026-01-01T00:00:00Z"}
    (tmp_path / ".running").write_text(json.dumps(sign))
    assert signs.running(tmp_path).host == "node7"
    with RunFolder(tmp_path):
        assert signs.running(tmp_path).here
    assert signs.running(tmp_path) is None


def test_the_lock_of_a_machine_that_seems_to_be_dead(tmp_path):
    """A file server may have kept it."""
    sign = {"host": "node7", "pid": 1, "job": "", "time": "2026-01-01T00:00:00Z"}
    (tmp_path / ".running").write_text(json.dumps(sign))
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy) as error:
            RunFolder(tmp_path).__enter__()
        assert "node7" not in str(error.value)  # it may be alive
        os.utime(tmp_path / ".running", (time.time() - 7200,) * 2)
        with pytest.raises(Busy, match=r"on node7 that fell silent 2h00m ago\. .*delete .*/\.lock"):
            RunFolder(tmp_path).__enter__()


def test_a_folder_that_was_deleted_before_its_lock_was_opened(tmp_path, monkeypatch):
    made = pathlib.Path.mkdir

    def late(path, *arguments, **options):
        made(path, *arguments, **options)
        path.rmdir()

    monkeypatch.setattr(pathlib.Path, "mkdir", late)
    with pytest.raises(Busy, match="has just deleted"):
        RunFolder(tmp_path / "run").__enter__()


def test_a_folder_that_cannot_be_made_was_not_deleted():
    with pytest.raises(UserError, match="No such file") as error:
        RunFolder(pathlib.Path("/proc/none/run")).__enter__()
    assert type(error.value) is UserError


@pytest.mark.parametrize("call", ["mkdir", "flock"])
def test_a_folder_whose_server_does_not_answer_for_a_while(tmp_path, monkeypatch, call):
    def stale(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(*((pathlib.Path, call) if call == "mkdir" else (fcntl, call)), stale)
    with pytest.raises(Temporary, match="run: Stale file handle"):
        RunFolder(tmp_path / "run").__enter__()


def test_a_folder_that_was_deleted_before_it_was_locked(tmp_path, monkeypatch):
    """Two processes would hold the run otherwise: one the old folder, one a new one."""
    workdir, flock = tmp_path / "run", fcntl.flock

    def late(file, how):
        shutil.rmtree(workdir, ignore_errors=True)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Busy, match="has just deleted"):
        RunFolder(workdir).__enter__()
    monkeypatch.undo()
    with RunFolder(workdir):
        (workdir / ".lock").write_text("a mark")
        with pytest.raises(Busy, match="Another process is training"):
            RunFolder(workdir).__enter__()
        assert (workdir / ".lock").read_text() == "a mark"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        (
            {"code": "4567", "commit": "0123", "flax": "0.0"},
            r"resumed with different code: code 4567 -> .*, commit 0123 -> .*, flax 0\.0",
        ),
        ({"commit": "0123"}, ""),  # of documents, for example
        ({"cpus": 99}, "resumed under conditions that change rounding: cpus 99 -> "),
    ],
)
def test_what_changed_since_a_checkpoint_is_said(capsys, changed, said):
    now = environment({"steps_per_call": 1, "remat": False}, mesh(1))
    about.note_changes(now | changed, now)
    told = capsys.readouterr().err
    assert re.search(said, told) if said else not told


def test_what_changes_rounding_and_what_does_not(capsys):
    now = environment({"steps_per_call": 1, "remat": False}, mesh(1))
    other = now | {"cpus": 99, "steps_per_call": 13, "remat": True}
    about.note_changes(other, now)
    said = capsys.readouterr().err
    assert "cpus 99 -> " in said
    assert "steps_per_call 13 -> 1, remat True -> False" in said
    on_gpu = {"cpu": None}
    about.note_changes(now | on_gpu | {"cpus": 99}, now | on_gpu)
    earlier = {
        name: value for name, value in now.items() if name not in ("steps_per_call", "remat")
    }
    about.note_changes(earlier, now)  # of a version that did not record them
    assert capsys.readouterr().err == ""


def test_a_run_of_another_device_is_not_gone_on_with_in_another_dtype(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["environment"]["dtype"] = "bfloat16"  # as on a GPU
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run in bfloat16, .*'auto', which is float32 on"):
        run(tiny(), tmp_path)


def test_imported_weights_are_recorded_as_of_where_they_are_trained(tmp_path):
    opened(tmp_path, {}, FLOAT32)
    content = trained(tmp_path, FACTS, BFLOAT16)
    assert content["data"] == FACTS
    assert content["environment"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="a run in bfloat16"):
        opened(tmp_path, FACTS, FLOAT32)


def test_each_start_is_recorded(tmp_path):
    first = trained(tmp_path)
    assert "resumed" not in first
    third = opened(tmp_path) and opened(tmp_path)
    assert third["environment"] == first["environment"]
    assert [again["dtype"] for again in third["resumed"]] == ["float32"] * 2
    assert {"jaxcifar", "jax", "device", "devices", "started"} <= third["resumed"][0].keys()


def test_a_start_that_trained_nothing_is_forgotten(tmp_path):
    """As of a sweep on a login node without a GPU, stopped while it compiled."""
    weights = {"digests": {"params": "0"}, "source": "a", "step": 6}
    opened(tmp_path, FACTS, FLOAT32, weights)
    other = FACTS | {"train": {"sha256": "c", "source": "there"}}
    content = opened(tmp_path, other, BFLOAT16, weights | {"digests": {"params": "1"}})
    assert content["environment"]["dtype"] == "bfloat16"
    assert content["data"] == other
    assert content["init_from"]["digests"] == {"params": "1"}
    assert "resumed" not in content


def test_other_images_of_any_part_are_refused(tmp_path):
    trained(tmp_path)
    other = FACTS | {"validation": {"sha256": "c", "source": "there"}}
    with pytest.raises(UserError, match=r"other validation images, .*\(from x; .* from there\)"):
        opened(tmp_path, other)
    assert "resumed" not in json.loads((tmp_path / "config.json").read_text())


def test_a_result_is_of_the_run_and_says_that_it_is_complete(tmp_path):
    with RunFolder(tmp_path) as folder:
        assert folder.result(tiny()) is None  # no run
        folder.open(tiny(), FACTS, FLOAT32, mesh(1))
        assert folder.result(tiny()) is None  # not complete
        result = folder.finish({"best": 1})
        assert result["best"] == 1
        assert result["damaged_checkpoints"] == 0
        assert folder.result(tiny(train__eval_batch_size=8)) == result
        with pytest.raises(UserError, match="holds a run of another config"):
            folder.result(tiny(seed=1))


def test_a_damaged_config_is_named(tmp_path):
    assert about.read(tmp_path) is None
    path = tmp_path / "config.json"
    for text in ("", "{", "[]", '{"config": 3}', "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            about.read(tmp_path)


def test_a_config_that_cannot_be_read_now_is_no_damaged_one(tmp_path, monkeypatch):
    """It would be replaced by an older copy."""
    opened(tmp_path)

    def fail(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pathlib.Path, "read_text", fail)
    with pytest.raises(UserError, match=r"config\.json: Stale file handle\.$"):
        about.read(tmp_path)


def test_a_saved_position_does_not_change_with_the_run(tmp_path, monkeypatch):
    saved = []
    position = Position(1, {"loss": [1.0]}, 2.0)
    with RunFolder(tmp_path) as folder:
        folder.open(tiny(), FACTS, FLOAT32, mesh(1))
        monkeypatch.setattr(
            type(folder.checkpoints), "save", lambda self, *arguments: saved.append(arguments)
        )
        folder.save(4, "state", position)
    position.steps["loss"].append(2.0)
    ((step, state, progress, accuracy),) = saved
    assert (step, state, accuracy) == (4, "state", None)
    assert progress["epochs_done"] == 1
    assert progress["steps"] == {"loss": [1.0]}
    assert progress["about"]["config"]["seed"] == tiny().seed
