"""The list of runs: each state, from real runs."""

import json
import os
import pathlib
import re
import shutil
import time

import pytest

from jaxcifar import runs, start
from jaxcifar.errors import UserError
from jaxcifar.hooks import Hook
from jaxcifar.run import signs
from tests import tiny
from tests.sweeps import HOST


def states(folder):
    return {run["run"]: run["state"] for run in runs.find(folder)}


def test_finished_and_stopped_runs(finished, stopped, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "a" / "seed0")
    shutil.copytree(stopped, tmp_path / "b")
    assert runs.main([str(tmp_path), "--json"]) == 0
    done, begun = json.loads(capsys.readouterr().out)
    result = finished[1]
    assert done == {
        "run": "a/seed0",
        "state": "finished",
        "model": "vgg_a_bn",
        "data": "synthetic",
        "epochs": 2,
        "epochs done": 2,
        "best": result["best"]["val_accuracy"],
        "best epoch": result["best"]["epoch"],
        "last": result["last"]["val_accuracy"],
        "images per second": result["last"]["images_per_second"],
    }
    assert (begun["state"], begun["epochs done"], begun["epochs"]) == ("stopped", 0, 2)
    assert runs.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    best = f"{result['best']['val_accuracy']:.2%} ({result['best']['epoch']})"
    assert all(word in said for word in ("a/seed0", best, "2/2", "0/2", "stopped"))


def test_a_run_in_progress(tmp_path):
    class Look(Hook):
        def before_call(self, run):
            self.seen = states(tmp_path)

    look = Look()
    tiny.run(tiny.tiny(train__epochs=1), tmp_path / "run", look)
    assert re.fullmatch(f"running on {HOST}, last sign .* ago", look.seen["run"])
    assert states(tmp_path) == {"run": "finished"}
    assert not (tmp_path / "run" / ".running").exists()


def test_signs_and_failures_of_sweeps(stopped, tmp_path, monkeypatch):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    signs.fail(workdir, "it broke\nbadly")
    assert states(tmp_path) == {"run": "failed: it broke"}
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    signs.forget_failure(workdir)  # as it is tried again
    signs.give(workdir)
    monkeypatch.undo()
    os.utime(workdir / ".running", (time.time() + 3600,) * 2)  # however slow this machine is
    assert states(tmp_path)["run"].startswith("running on node7, last sign 0s ago")
    hour_ago = time.time() - 3600
    os.utime(workdir / ".running", (hour_ago, hour_ago))
    assert states(tmp_path) == {"run": "stale: node7 fell silent 1h00m ago"}
    # One from before this machine was started, whose number another process may have by now.
    sign = json.loads((workdir / ".running").read_text())
    (workdir / ".running").write_text(json.dumps(sign | {"host": HOST, "machine": "another boot"}))
    booted = float(pathlib.Path("/proc/stat").read_text().split("btime ")[1].split()[0])
    os.utime(workdir / ".running", (booted - 60,) * 2)
    assert states(tmp_path)["run"] == "stopped"
    # If that was another machine of this name, a file server may have kept its lock.
    assert f"on {HOST} that fell silent" in signs.silent(workdir)
    signs.give(workdir)
    os.utime(workdir / ".running", (hour_ago, hour_ago))  # a dead process of this machine
    assert states(tmp_path) == {"run": "stopped"}


def test_measurements_along_the_gradient_are_not_stopped_runs(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "vgg2_seed0")
    (tmp_path / "vgg2_seed0" / "settings.json").write_text("{}")
    assert states(tmp_path) == {"vgg2_seed0": "measured"}


@pytest.mark.slow
def test_imported_weights(tmp_path):
    config = tiny.tiny()
    variables = tiny.state_of(_trained(tmp_path / "x"))
    start.run_of_weights(config, tmp_path / "y" / "imported", variables)
    assert states(tmp_path / "y") == {"imported": "imported"}


def _trained(workdir):
    tiny.run(tiny.tiny(train__epochs=1), workdir)
    return workdir


def test_runs_of_other_versions_are_listed(finished, tmp_path):
    """With a field that this one does not know, or without one that it knows."""
    for name in ("later", "earlier"):
        path = shutil.copytree(finished[0], tmp_path / name) / "config.json"
        content = json.loads(path.read_text())
        if name == "later":
            content["config"]["train"]["new_field"] = 1
        else:
            del content["config"]["model"]["name"]
        path.write_text(json.dumps(content))
    assert states(tmp_path) == {"later": "finished", "earlier": "finished"}


def test_a_damaged_run_does_not_hide_the_others(finished, tmp_path):
    for name in ("bad", "good"):
        shutil.copytree(finished[0], tmp_path / name)
    (tmp_path / "bad" / "config.json").write_text("{oops")
    assert states(tmp_path) == {"bad": "damaged", "good": "finished"}


@pytest.mark.parametrize("line", ["null", "3", '{"val_accuracy": null}', '{"val_accuracy": "x"}'])
def test_damaged_records_do_not_hide_the_others(finished, tmp_path, capsys, line):
    for name in ("bad", "good"):
        shutil.copytree(finished[0], tmp_path / name)
    (tmp_path / "bad" / "metrics.jsonl").write_text(line + "\n")
    assert states(tmp_path) == {"bad": "damaged", "good": "finished"}
    assert runs.main([str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize(("folder", "message"), [("none", "no folder"), (".", "contains no runs")])
def test_nothing_there(folder, message, tmp_path):
    with pytest.raises(UserError, match=message):
        runs.find(tmp_path / folder)


def test_links_are_followed_and_a_folder_named_checkpoints_may_hold_runs(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "checkpoints" / "a")
    (tmp_path / "checkpoints" / "b").symlink_to(tmp_path / "checkpoints" / "a")
    (tmp_path / "again").symlink_to(tmp_path)  # a circle
    elsewhere = shutil.copytree(stopped, tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "link").symlink_to(elsewhere)
    assert len(states(tmp_path / "checkpoints")) == 1  # the same run twice
    assert set(states(tmp_path)) == {"checkpoints/a", "link"}


def test_a_folder_that_cannot_be_read_is_named(stopped, tmp_path, monkeypatch, capsys):
    shutil.copytree(stopped, tmp_path / "a")
    real, closed = os.scandir, tmp_path / "closed"
    closed.mkdir()

    def scandir(path):
        if str(path) == str(closed):  # to root nothing is closed
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(states(tmp_path)) == {"a"}
    assert f"{closed} cannot be read (Permission denied)" in capsys.readouterr().err


def test_no_run_is_started_within_another(stopped, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(UserError, match="inside the run"):
        tiny.run(tiny.tiny(), workdir / "checkpoints" / "other")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match=r"is a link to .*missing, which is missing"):
        tiny.run(tiny.tiny(), tmp_path / "dangling")
