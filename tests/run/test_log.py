"""The files that a run writes while it trains."""

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


def test_best_is_the_first_of_equals():
    records = [{"epoch": e, "val_accuracy": a} for e, a in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4))]
    assert best_record(records)["epoch"] == best_record(reversed(records))["epoch"] == 2
