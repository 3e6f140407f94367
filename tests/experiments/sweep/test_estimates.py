"""Estimates: the work of a run, and how long the rest of a sweep takes."""

import json

import numpy as np
import pytest

from experiments import cost
from experiments.runs import configs
from experiments.sweep import estimates
from experiments.sweep.jobs import checked, in_order
from jaxcifar.files import read_lines
from jaxcifar.run import signs
from tests.sweeps import CIFAR, OPTIONS, start_sweep

pytestmark = pytest.mark.usefixtures("one_device")


def test_time_left_is_work_by_measured_speed(swept_copy):
    (swept_copy / "vgg6" / "seed1" / "result.json").unlink()
    lines = (swept_copy / "vgg6" / "seed1" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (swept_copy / "vgg6" / "seed1" / "metrics.jsonl").write_text(lines[0])
    jobs = in_order(checked(configs.named("vgg2,vgg6", None), [0, 1], swept_copy, OPTIONS))
    each = cost.forward_multiply_adds("vgg_a_bn", 0.05)
    assert estimates.work_left(jobs[3]) == (3 * 100 + 256) * each  # one epoch of two
    speeds = [3 * r["images_per_second"] * each for job in jobs for r in job.records]
    assert estimates.multiply_adds_per_second(jobs) == pytest.approx(np.median(speeds))


def test_time_left_of_runs_at_once(swept_copy, capsys):
    """Two runs are done, and took ten seconds each; three are left."""
    for seed in (0, 1):
        path = swept_copy / "vgg2" / f"seed{seed}" / "metrics.jsonl"
        records = [r | {"images_per_second": 2 * (100 + 256 / 3) / 10} for r in read_lines(path)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        path.with_name("result.json").write_text("{}")  # without digests of the old lines
    jobs = in_order(checked(configs.named("vgg2", None), [*range(5)], swept_copy, OPTIONS))
    left = [estimates.time_left(jobs, at_once=at_once) for at_once in (1, 2, 8)]
    assert left == ["about 30s left", "about 15s left", "about 10s left"]
    # Two show a sign of life, outside of any queue.
    for job in jobs[3:]:
        job.workdir.mkdir()
        signs.give(job.workdir)
    assert start_sweep(swept_copy, "vgg2", "0-4", "--status") == 0
    assert "2 done, 3 new; about 15s left" in capsys.readouterr().out
    # The last epoch of one is done, but the run is not.
    (jobs[0].workdir / "result.json").unlink()
    assert estimates.time_left(jobs[:2]) == "about 0s left"


@pytest.mark.parametrize(
    ("more", "trained", "evaluated"),
    [
        ((), 50_000, 10_000),
        (("--config.data.name=cifar100", "--config.data.protocol=holdout"), 45_000, 5_000),
        (("--config.train.limit_train_images=640",), 640, 10_000),
    ],
)
def test_the_work_of_images_that_are_not_read(no_images, tmp_path, more, trained, evaluated):
    options = [*OPTIONS, *CIFAR, *more]
    jobs = checked(configs.named("vgg6", None), [0], tmp_path, options)
    each = cost.forward_multiply_adds("vgg_a_bn", 0.05)
    assert estimates.work_left(jobs[0]) == 2 * (3 * trained + evaluated) * each
    options += ["--config.data.test_augment=mirror_translate", "--config.train.ema_decay=0.9"]
    (job,) = checked(configs.named("vgg6", None), [0], tmp_path, options)
    assert estimates.work_left(job) == 2 * (3 * trained + 2 * 6 * evaluated) * each
