"""The files that a run writes while it trains."""

import importlib.util
import json
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from jaxcifar.files import read_lines
from jaxcifar.run.log import RunLog, best_record


def test_what_was_logged_after_a_checkpoint_is_dropped(tmp_path):
    log = RunLog(tmp_path, 0)
    for epoch in (1, 2, 3):
        log.write({"epoch": epoch, "val_loss": 1.0}, {"loss": [1 / 3, epoch]})
    log.close()
    log = RunLog(tmp_path, 1)
    assert log.records == [{"epoch": 1, "val_loss": 1.0}]
    log.write({"epoch": 2, "val_loss": 0.5}, {"loss": [2.0]})
    log.close()
    assert [record["val_loss"] for record in read_lines(tmp_path / "metrics.jsonl")] == [1.0, 0.5]
    assert read_lines(tmp_path / "steps.jsonl") == [
        {"epoch": 1, "loss": [0.333333, 1.0]},
        {"epoch": 2, "loss": [2.0]},
    ]


def test_more_dropped_epochs_than_a_kill_leaves_are_told(tmp_path, capsys):
    log = RunLog(tmp_path, 0)
    for epoch in (1, 2, 3, 4):
        log.write({"epoch": epoch}, {"loss": [1.0]})
    log.close()
    RunLog(tmp_path, 2).close()
    assert capsys.readouterr().err == ""
    log = RunLog(tmp_path, 2)
    for epoch in (3, 4):
        log.write({"epoch": epoch}, {"loss": [1.0]})
    log.close()
    RunLog(tmp_path, 1).close()
    for line, name in zip(
        capsys.readouterr().err.splitlines(), ("metrics.jsonl", "steps.jsonl"), strict=True
    ):
        assert f"{name}: the checkpoint is 3 epochs older; these are trained again" in line


def events(folder):
    (path,) = (folder / "tensorboard").iterdir()
    content = path.read_bytes()
    while content:  # length, its checksum, event, its checksum
        size = int.from_bytes(content[:8], "little")
        yield event_pb2.Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]


def test_tensorboard_keeps_the_times_of_epochs_before_a_resumption(tmp_path, monkeypatch):
    def times(folder):
        return {event.step: event.wall_time for event in events(folder) if event.summary.value}

    now = iter(range(100, 1000))
    monkeypatch.setattr("time.time", lambda: next(now))
    log = RunLog(tmp_path, 0)
    for epoch in (1, 2):
        log.write({"epoch": epoch, "val_loss": 1.0}, {"loss": [1.0]})
    log.close()
    before = times(tmp_path)
    assert before[1] < before[2]
    RunLog(tmp_path, 2, json.loads(json.dumps(log.history))).close()
    assert times(tmp_path) == before
    earlier = [{key: epoch[key] for key in ("record", "steps")} for epoch in log.history]
    RunLog(tmp_path, 2, earlier).close()
    assert times(tmp_path)[1] > before[2]


def test_tensorboard_gets_each_number_of_an_epoch(tmp_path):
    record = {"epoch": 2, "step": 6, "val_loss": 0.5, "learning_rate": 1e-3, "images_per_second": 9}
    log = RunLog(tmp_path, 0)
    log.write(record | {"ema_val_loss": 0.25, "gradient_norm": 4.0}, {"loss": [2.0]})
    log.close()
    found = {}
    for event in events(tmp_path):
        found |= {v.tag: (event.step, v.simple_value) for v in event.summary.value}
    assert found == {
        "val/loss": (2, 0.5),
        "learning_rate": (2, pytest.approx(1e-3)),
        "images_per_second": (2, 9),
        "ema/val_loss": (2, 0.25),
        "gradient_norm": (2, 4.0),
    }


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch_is_not_loaded_to_write_for_tensorboard(tmp_path):
    code = (
        "import pathlib, sys; from jaxcifar.run.log import RunLog; "
        "RunLog(pathlib.Path(sys.argv[1]), 0).close(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


def test_best_is_the_first_of_equals():
    records = [{"epoch": e, "val_accuracy": a} for e, a in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4))]
    assert best_record(records)["epoch"] == best_record(reversed(records))["epoch"] == 2
