"""The harness that kills and damages runs: a small share of it, and what it counts and notices."""

import json
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import pytest

from experiments import torture
from jaxcifar.signals import exit_code
from tests.forked import environment_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_a_small_share_and_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    # Signals are for tests/test_train.py. Of this seed both runs have the same protocol, and the
    # kill comes when everything is compiled: nothing that the tests keep is cut short.
    arguments = [f"--out={tmp_path}", "--kills=1", "--flips=1", "--seed=13"]
    (tmp_path / "xla").symlink_to(jax.config.jax_compilation_cache_dir)
    command = [sys.executable, "-m", "experiments.torture", *arguments]
    environment = environment_of(devices=1)
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"All cases: {tmp_path / 'cases.jsonl'}" in found.stdout
    before = (tmp_path / "cases.jsonl").read_text()
    times = {"SIGKILL": 0, "bit": 0}
    for case in map(json.loads, before.splitlines()):
        times[case["kind"]] += case["times"]
        assert case["outcome"] != "FAILED"
    assert times["SIGKILL"] >= 1
    assert times["bit"] == 1
    monkeypatch.setattr(torture, "share_compiled", lambda cache: None)  # tests have a cache
    assert torture.main(arguments) == 0
    assert found.stdout == capsys.readouterr().out
    assert (tmp_path / "cases.jsonl").read_text() == before


def test_cases_of_other_cores_are_not_mixed(finished, tmp_path, monkeypatch, capsys):
    """What rounds otherwise is no failure."""
    monkeypatch.setattr(torture, "share_compiled", lambda cache: None)
    folder = shutil.copytree(finished[0], tmp_path / "undisturbed" / "test-finished")
    content = json.loads((folder / "config.json").read_text())
    content["environment"]["cpus"] += 1
    (folder / "config.json").write_text(json.dumps(content))
    arguments = [f"--out={tmp_path}", "--kills=1"]
    assert exit_code(lambda: torture.main(arguments)) == 2
    assert "Use as many cores, or another --out" in capsys.readouterr().err
    assert not (tmp_path / "cases.jsonl").exists()


@pytest.mark.slow
def test_damaged_files(tmp_path, one_device, capsys):
    tortured = torture.Torture(tmp_path, seed=0)
    outcomes = {}

    def damaged(end, name, how):
        tortured.damaged("test", end, name, how)
        outcomes[name, how] = json.loads(tortured.cases.read_text().splitlines()[-1])

    damaged("finished", "metrics.jsonl", "half")
    damaged("finished", "result.json", "delete")
    damaged("stopped", "config.json", "empty")
    damaged("stopped", ".lock", "folder")
    newest = max((tortured.sample("test", "stopped") / "checkpoints").iterdir(), key=str)
    damaged("stopped", f"checkpoints/{newest.name}/progress/metadata", "flip")
    for (name, how), case in outcomes.items():
        assert case["kind"] == how
        assert case["times"] == 1
        refused = name == ".lock"
        assert case["outcome"] == ("refused" if refused else "same numbers"), case
        assert (str(tortured.folder / name) in case["said"]) == refused
    # A finished run does not read its checkpoints again; whoever evaluates it is told.
    there = sorted((tortured.sample("test", "finished") / "checkpoints").iterdir(), key=str)
    for checkpoint, other in ((there[0], "last"), (there[-1], "best")):
        name = f"checkpoints/{checkpoint.name}/progress/metadata"
        damaged("finished", name, "empty")
        assert outcomes[name, "empty"]["outcome"] == "same, checkpoint lost"
        assert f"The {other} checkpoint may be intact" in outcomes[name, "empty"]["said"]
    # What does not end as the undisturbed run did has failed, and is kept to be looked at.
    tortured.expected("test")["best"] += 1
    damaged("finished", "history.png", "delete")
    failed = outcomes["history.png", "delete"]
    assert (failed["outcome"], failed["said"]) == ("FAILED", "other best")
    assert "FAILED delete" in capsys.readouterr().out
    (kept,) = tmp_path.glob("failed-*")
    assert (kept / "result.json").exists()


@pytest.mark.parametrize(("kind", "outcome"), [("SIGKILL", "FAILED"), ("bit", "refused")])
def test_what_stops_a_run_must_cost_nothing(tmp_path, one_device, kind, outcome):
    """Only what is damaged may be refused."""

    def disturb(folder, random):
        folder.mkdir()
        (folder / "checkpoints").touch()  # a file, which is refused
        yield

    tortured = torture.Torture(tmp_path, seed=0)
    tortured.run(f"{kind} 0", kind, "test", disturb)
    assert json.loads(tortured.cases.read_text())["outcome"] == outcome


def test_every_changed_number_is_noticed():
    expected = {"metrics": [{"epoch": 1, "val_loss": 2.0}], "best": 1, "last checkpoint": (6, b"a")}
    assert torture.differences(dict(expected), expected) == ""
    assert torture.differences(expected | {"last checkpoint": (6, b"b")}, expected) == (
        "last checkpoint"
    )
    assert torture.differences({"best": 2}, expected) == "metrics, best, last checkpoint"


@pytest.mark.parametrize("how", ["half", "empty", "flip", "bit", "delete", "folder"])
def test_damage(how, tmp_path):
    path, content = tmp_path / "file", bytes(range(64))
    path.write_bytes(content)
    torture.damage(path, how, random.Random(0))
    if how in ("delete", "folder"):
        assert path.is_dir() == (how == "folder")
        return
    expected = {"half": 32, "empty": 0}.get(how, 64)
    damaged = path.read_bytes()
    assert len(damaged) == expected
    if expected == 64:
        changed = [(a ^ b).bit_count() for a, b in zip(content, damaged, strict=True)]
        assert sum(changed) == 1


def test_the_table_counts_runs_and_what_was_done_to_them():
    here = {"date": "2026-01-02", "where": "a machine"}
    cases = [
        here | {"kind": "SIGKILL", "times": 3, "outcome": "same numbers"},
        here | {"kind": "SIGKILL", "times": 1, "outcome": "FAILED", "date": "2026-01-04"},
        here | {"kind": "bit", "times": 1, "outcome": "refused"},
    ]
    assert str(torture.table(cases)).splitlines() == [
        "2026-01-02 to 2026-01-04, a machine",
        "",
        "| what | times | runs | same numbers | same, checkpoint lost | refused | FAILED |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| SIGKILL | 4 | 2 | 1 | 0 | 0 | 1 |",
        "| bit | 1 | 1 | 0 | 0 | 1 | 0 |",
    ]
