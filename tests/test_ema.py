"""The average of the weights: by its recurrence, and through a whole run."""

import jax
import numpy as np
import pytest

from jaxcifar import programs, restore
from jaxcifar.errors import Interrupted
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.run.log import best_record
from tests.tiny import SignalAt, mesh, run, state_of, tiny, tiny_task


def averaged(seen):
    """0.9 · average + 0.1 · value after each step, from the first of the values."""
    average = seen[0]
    for values in seen[1:]:
        average = jax.tree.map(
            lambda a, v: np.float32(0.9) * a + np.float32(0.1) * v, average, values
        )
    return average


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


class Collect(Hook):
    """Keeps the variables before each step, and after the last."""

    def __init__(self):
        self.seen = []

    def before_call(self, run):
        self.seen.append(jax.device_get(run.state.variables))

    def end(self, run, result):
        self.before_call(run)


@pytest.mark.slow
def test_a_run_is_judged_by_its_average_and_resumes(tmp_path):
    config = tiny(train__ema_decay=0.9)
    whole = run(config, tmp_path / "a", collected := Collect())
    assert len(collected.seen) == 7
    assert_close(state_of(tmp_path / "a"), averaged(collected.seen))
    with pytest.raises(Interrupted):
        run(config, tmp_path / "b", SignalAt(4))
    resumed = run(config, tmp_path / "b")
    for name in ("best", "last"):
        for field in ("val_loss", "ema_val_loss", "ema_val_accuracy", "train_loss"):
            assert whole[name][field] == resumed[name][field]
        found = restore.evaluate_workdir(tmp_path / "a", name, mesh=mesh(1))
        assert found["accuracy"] == whole[name]["ema_val_accuracy"]
        assert found["loss"] == pytest.approx(whole[name]["ema_val_loss"], rel=1e-6)
    assert whole["last"]["ema_val_loss"] != whole["last"]["val_loss"]
    records = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert whole["best"] == max(records, key=lambda r: (r["ema_val_accuracy"], -r["epoch"]))


def test_the_best_is_by_the_average_where_there_is_one():
    plain = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.4}]
    assert best_record(plain)["epoch"] == 1
    averaged = [r | {"ema_val_accuracy": 0.1 * r["epoch"]} for r in plain]
    assert best_record(averaged)["epoch"] == 2


def test_without_it_nothing_is_kept_or_computed():
    assert programs.abstract_state(tiny_task()).ema is None
    assert programs.abstract_state(tiny_task(train__ema_decay=0.5)).ema is not None
