"""Sweeps: which runs they start, resume and skip, and what they refuse."""

import errno
import json
import os
import pathlib
import re
import shlex
import shutil
import signal

import pytest

from experiments.runs import configs, read
from experiments.runs.provenance import commands
from experiments.sweep.__main__ import main as sweep_main
from experiments.sweep.jobs import checked
from jaxcifar import data, train
from jaxcifar.errors import Interrupted
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.signals import exit_code
from tests.sweeps import CIFAR, OPTIONS, start_sweep

pytestmark = pytest.mark.usefixtures("one_device")


def test_help_says_where_to_find_the_fields_of_a_config(capsys):
    assert exit_code(lambda: sweep_main(["--help"])) == 0
    assert "docs/config.md" in capsys.readouterr().out


def test_dry_run_does_nothing(tmp_path, capsys):
    assert start_sweep(tmp_path / "out", "vgg2", "0", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "vgg2" in printed
    assert "1 new; roughly" in printed
    assert not (tmp_path / "out").exists()


def test_a_sweep_leaves_its_runs(swept):
    (found,) = read.sweeps(swept)
    assert found.names == ["vgg2", "vgg6"]
    for of_row in map(found.of, found.names):
        assert [run.seed for run in of_row] == [0, 1]
        assert all(len(run.records) == 2 for run in of_row)
    one, other = found.of("vgg2")
    assert one.records[-1]["train_loss"] != other.records[-1]["train_loss"]


@pytest.mark.slow
def test_done_runs_are_skipped_and_a_missing_one_is_made_again(swept_copy, monkeypatch):
    shutil.rmtree(swept_copy / "vgg6" / "seed0")
    trained = []
    real = train.train_and_evaluate
    monkeypatch.setattr(
        train, "train_and_evaluate", lambda c, w, **_: trained.append(w) or real(c, w, quiet=True)
    )
    before = (swept_copy / "vgg2" / "seed0" / "metrics.jsonl").read_bytes()
    assert start_sweep(swept_copy) == 0
    assert trained == [swept_copy / "vgg6" / "seed0"]
    assert (swept_copy / "vgg2" / "seed0" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_stopped_in_the_middle_and_started_again_is_the_same_sweep(swept, tmp_path, monkeypatch):
    out = tmp_path / "table4"
    real, count = train.train_and_evaluate, []

    class StopAfterThreeEpochs(Hook):
        def after_epoch(self, run, record):
            count.append(record["epoch"])
            if len(count) == 3:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(
        train, "train_and_evaluate", lambda c, w, **_: real(c, w, hooks=[StopAfterThreeEpochs()])
    )
    assert start_sweep(out) == 128 + signal.SIGINT
    monkeypatch.setattr(train, "train_and_evaluate", real)
    jobs = checked(configs.named("vgg2,vgg6", None), [0, 1], out, OPTIONS)
    assert [job.state for job in jobs] == ["done", "to resume", "new", "new"]
    assert start_sweep(out) == 0
    for row in ("vgg2", "vgg6"):
        for seed in ("seed0", "seed1"):
            ours, other = (
                read_lines(folder / row / seed / "metrics.jsonl") for folder in (out, swept)
            )
            for one, two in zip(ours, other, strict=True):
                for name in ("train_loss", "val_loss", "val_accuracy"):
                    assert one[name] == two[name]


@pytest.mark.slow
def test_a_failing_row_costs_only_itself(tmp_path, monkeypatch, capsys):
    real = train.train_and_evaluate

    def failing(config, workdir, **_):
        if config.model.name == "vgg_a":
            raise RuntimeError("the machine broke")
        return real(config, workdir, quiet=True)

    monkeypatch.setattr(train, "train_and_evaluate", failing)
    assert start_sweep(tmp_path / "out", "vgg2,vgg6", "0") == 1
    assert (tmp_path / "out" / "vgg6" / "seed0" / "result.json").exists()
    error = capsys.readouterr().err
    assert "failed: vgg2, seed 0" in error
    assert "the machine broke" in error


def test_a_full_disk_costs_one_message_a_row(tmp_path, monkeypatch, capsys):
    def failing(config, workdir, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/path")

    monkeypatch.setattr(train, "train_and_evaluate", failing)
    assert start_sweep(tmp_path / "out", "vgg2,vgg6", "0") == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.count("a/path: No space left on device.") == 2


def test_a_workdir_of_another_config_is_refused_before_any_work(swept_copy, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert start_sweep(swept_copy, "vgg1,vgg2", "0", "--config.train.epochs=3") == 2
    said = capsys.readouterr().err
    assert "train.epochs: 2 -> 3" in said
    assert "another --out" in said
    assert "A run keeps its number of epochs" in said
    assert "--workdir" not in said
    # A new seed would be of another config than those that are there.
    assert start_sweep(swept_copy, "vgg2", "7", "--config.train.epochs=3") == 2
    assert re.search(r"vgg2/seed0 holds .*train\.epochs: 2 -> 3", capsys.readouterr().err, re.S)


def test_where_the_trained_seeds_came_from_is_kept(swept_copy, tmp_path, monkeypatch):
    """Though the file was edited since, and options make up for it."""
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: {})
    for name in ("vgg2", "vgg6"):
        path = swept_copy / name / "origin.json"
        content = json.loads(path.read_text())
        content["config"]["optim"]["learning_rate"] = 0.5
        path.write_text(json.dumps(content))
    shutil.rmtree(swept_copy / "vgg6" / "seed0")
    shutil.rmtree(swept_copy / "vgg6" / "seed1")
    start_sweep(swept_copy, "vgg2,vgg6", "9")
    kept, written = (
        json.loads((swept_copy / name / "origin.json").read_text()) for name in ("vgg2", "vgg6")
    )
    assert kept["config"]["optim"]["learning_rate"] == 0.5
    assert written["config"]["optim"]["learning_rate"] == 1e-3


def test_a_held_out_part_needs_no_labels_of_the_test_images(tmp_path, monkeypatch, capsys):
    """As in Kaggle's copy of CIFAR-10."""
    load = data.load

    def unlabelled(name, split, **options):
        if split == "test":
            raise data.Unlabelled("no labels")
        return load(name, split, **options)

    monkeypatch.setattr(data, "load", unlabelled)
    dry = ("--dry-run", "--config.train.limit_train_images=91")
    assert start_sweep(tmp_path, "vgg2", "0", *dry) == 2
    assert "no labels" in capsys.readouterr().err
    assert start_sweep(tmp_path, "vgg2", "0", *dry, "--config.data.protocol=holdout") == 0


@pytest.mark.parametrize("what", ["--status", "--dry-run"])
def test_a_list_of_the_work_needs_no_images(what, no_images, tmp_path, capsys):
    assert start_sweep(tmp_path / "out", "vgg2,vgg6", "0-1", *CIFAR, what) == 0
    assert "4 new; " in capsys.readouterr().out


def test_missing_images_cost_one_message(no_images, tmp_path, capsys):
    assert start_sweep(tmp_path / "out", "vgg2,vgg6", "0-1", *CIFAR) == 2
    assert capsys.readouterr().err == "jaxcifar: There are no images here.\n"
    assert not (tmp_path / "out").exists()


def test_interrupted_is_no_failure(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(signal.SIGTERM, "Stopped")

    monkeypatch.setattr(train, "train_and_evaluate", stopped)
    assert start_sweep(tmp_path / "out", "vgg2", "0") == 128 + signal.SIGTERM


# --- config files -----------------------------------------------------------------------------

CONFIG = """
from jaxcifar.config import base_config

def get_config():
    config = base_config()
    config.model.name = "vgg_a"
    config.train.epochs = 3
    return config
"""


@pytest.fixture
def mine(tmp_path):
    folder = tmp_path / "my configs"
    folder.mkdir()
    for name in ("wide", "deep"):
        (folder / f"{name}.py").write_text(CONFIG)
    return folder


def start_files(out, files, *more, rows=None):
    return start_sweep(out, rows, "0", f"--configs={files}", *more)


@pytest.mark.slow
def test_config_files_beside_rows(mine, tmp_path, capsys):
    out = tmp_path / "out"
    assert start_files(out, f"{mine}/*.py", rows="vgg2") == 0
    (sweep,) = read.sweeps(out)
    assert sweep.names == ["vgg2", "deep", "wide"]
    (run,) = sweep.of("wide")
    assert run.config["model.name"] == "vgg_a"
    assert run.shortened[0] == "2 of 3 epochs"
    # The commands that are shown find the runs done, each once.
    capsys.readouterr()
    for command in commands(sweep):
        arguments = [*shlex.split(command)[2:], "--dry-run"]
        assert exit_code(lambda arguments=arguments: sweep_main(arguments)) == 0
    listed = capsys.readouterr().out
    assert listed.count("done; nothing left") == len(commands(sweep))
    assert listed.count(" 2/2  done") == 3
    assert start_files(out, f"{mine}/wide.py", "--dry-run") == 0
    assert "1 done" in capsys.readouterr().out


def test_config_files_are_named_once(mine):
    files = configs.parse_files(f"{mine}/wide.py, {mine}/*.py,configs/row9.py")
    assert files == [f"{mine}/wide.py", f"{mine}/deep.py", "configs/row9.py"]
    (source,) = configs.named(None, "configs/row9.py")
    assert (source.name, source.config.train.epochs) == ("row9", 200)


def test_a_config_file_that_cannot_be_used_starts_nothing(mine, tmp_path, capsys):
    (mine / "bad.py").write_text(CONFIG.replace("train.epochs = 3", "train.label_smoothing = 2.0"))
    assert start_files(tmp_path / "out", f"{mine}/*.py") == 2
    error = capsys.readouterr().err
    assert "at most 1.0" in error
    assert f"{mine}/bad.py" in error
    assert error.count("jaxcifar:") == 1
    assert not (tmp_path / "out").exists()


def test_config_files_that_cannot_be_told_apart_start_nothing(mine, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    for name in ("wide", "vgg2"):
        (other / f"{name}.py").write_text(CONFIG)
    for files, rows, message in (
        (f"{mine}/*.py,{other}/wide.py", None, "share the run folder wide"),
        (f"{other}/*.py", "vgg2", "share the run folder vgg2"),
        (f"{mine}/none*.py", None, "matches no file"),
        (f"{mine}/none.py", "vgg2", "matches no file"),
        ("", None, "give config files"),
    ):
        assert start_files(out, files, rows=rows) == 2
        assert message in capsys.readouterr().err
    assert start_sweep(out, None) == 2
    assert "--rows=1-12, --configs=" in capsys.readouterr().err
    assert not out.exists()


def test_status_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", "--status") == 0
    printed = capsys.readouterr().out
    assert "2 new; the time left is unknown" in printed
    assert len(printed.splitlines()) == 4
    assert not pathlib.Path(tmp_path / "out").exists()
