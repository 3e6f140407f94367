"""Sweeps, tables and claims: that they compute what they say, and refuse what they cannot read."""

import csv
import io
import json
import math
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import scipy.stats

from experiments import claims, cost, figures, runs, sweep, tables
from experiments.report_tables import ROWS, TABLE_3, TABLE_4
from jaxcifar import metrics, sharding, train
from jaxcifar.errors import Interrupted, UserError, exit_code

OPTIONS = [
    "--config.data.name=synthetic", "--config.model.width=0.05", "--config.train.batch_size=32",
    "--config.train.limit_train_images=100", "--config.train.epochs=2",
    "--config.train.eval_batch_size=128",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)


def start(out, rows="vgg2,vgg6", seeds="0-1", *more):
    return exit_code(
        lambda: sweep.main([f"--rows={rows}", f"--seeds={seeds}", f"--out={out}", *OPTIONS, *more])
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of two rows and two seeds."""
    patch = pytest.MonkeyPatch()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    patch.setattr(sharding, "make_mesh", lambda: mesh)
    out = tmp_path_factory.mktemp("results") / "table4"
    assert start(out) == 0
    patch.undo()
    return out


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "table4")


# --- fake results, as a full reproduction would leave them ------------------------------------


def fake(out, changes=None, seeds=3, rows=ROWS, epochs=2, **fields):
    """Writes runs whose best epoch has the report's numbers, plus 0.001 × (seed − 1); twice that
    for the training accuracy.

    Args:
      changes: {row: {metric: added}}.
      fields: of every config, "group__name".
    """
    for name in rows:
        row = ROWS[name]._asdict()
        for metric, added in (changes or {}).get(name, {}).items():
            row[metric] += added
        for seed in range(seeds):
            folder = out / name / f"seed{seed}"
            folder.mkdir(parents=True)
            config = runs.row_config(name)
            config.seed, config.train.epochs = seed, epochs
            for field, value in fields.items():
                group, _, field_name = field.partition("__")
                config[group][field_name] = value
            part = {"name": "cifar10", "images": 50_000, "official": True, "sha256": "0123"}
            environment = {
                "jaxcifar": "0.1.0", "jax": "0", "flax": "0", "optax": "0", "numpy": "2",
                "python": "3", "commit": "abc", "device": "cpu", "devices": 1, "cpus": 2,
                "dtype": "float32", "started": "2026-01-01T00:00:00Z",
            }  # fmt: skip
            content = {"config": config.to_dict(), "data": {"train": part, "validation": part}}
            metrics.write_json(folder / "config.json", content | {"environment": environment})
            records = []
            for epoch in range(1, epochs + 1):
                best = epoch == epochs - 1  # the last epoch is a little worse
                record = {
                    metric: row[metric]
                    + 0.001 * (seed - 1) * (2 if metric == "train_accuracy" else 1)
                    - (0 if best else 0.002)
                    for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
                }
                records.append(record | {
                    "epoch": epoch, "step": 195 * epoch, "train_ce": record["train_loss"],
                    "learning_rate": 1e-3, "images_per_second": 1000.0, "seconds": 50.0,
                })  # fmt: skip
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "metrics.jsonl").write_text(lines)
            ce = row["train_loss"] * (1 + 0.001 * seed)
            steps = [{"epoch": e, "ce": [ce] * 50} for e in (1, 2)]
            (folder / "steps.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
            result = {"parameters": 1_000_000, "train_seconds": 100.0, "compile_seconds": 5.0,
                      "peak_memory_bytes": 2**30}  # fmt: skip
            metrics.write_json(folder / "result.json", result)
    return out


# --- sweeps -----------------------------------------------------------------------------------


def test_rows_and_seeds():
    assert sweep.parse_rows("1-3,vgg2") == ["row1", "row2", "row3", "vgg2"]
    assert sweep.parse_rows("vgg1-vgg8") == [f"vgg{i}" for i in range(1, 9)]
    assert sweep.parse_rows("vgg7-8,row9,9") == ["vgg7", "vgg8", "row9"]
    assert sweep.parse_seeds("0-2,7,1") == [0, 1, 2, 7]


@pytest.mark.parametrize("text", ["13", "vgg9", "3-1", "row1-vgg2", "", "1-2-3", "vg2"])
def test_unknown_rows(text):
    with pytest.raises(UserError, match="--rows"):
        sweep.parse_rows(text)


@pytest.mark.parametrize("text", ["", "a", "2-1", "-1"])
def test_impossible_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        sweep.parse_seeds(text)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.train.epochz=2", "epochs"),
        ("--config.train.epochs=0", "at least 1"),
        ("--config.seed=3", "--seeds"),
        ("--epochs=3", "epochs"),
        ("surplus", "no option"),
    ],
)
def test_bad_options_start_nothing(tmp_path, capsys, option, message):
    code = exit_code(lambda: sweep.main(["--rows=vgg2", f"--out={tmp_path / 'out'}", option]))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_does_nothing(tmp_path, capsys):
    assert start(tmp_path / "out", "vgg2", "0", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "vgg2" in printed
    assert "1 new; roughly" in printed
    assert not (tmp_path / "out").exists()


def test_a_sweep_leaves_its_runs_and_shares_compiled_steps(swept):
    found = runs.sweeps(swept)[swept]
    assert list(found) == ["vgg2", "vgg6"]
    for of_row in found.values():
        assert [run.seed for run in of_row] == [0, 1]
        assert all(len(run.records) == 2 for run in of_row)
        compiled = [run.result["compile_seconds"] for run in of_row]
        assert compiled[0] > 0
        assert compiled[1] == 0
    one, other = found["vgg2"]
    assert one.records[-1]["train_loss"] != other.records[-1]["train_loss"]


def test_done_runs_are_skipped_and_a_missing_one_is_made_again(copied, monkeypatch):
    shutil.rmtree(copied / "vgg6" / "seed0")
    trained = []
    real = train.train_and_evaluate
    monkeypatch.setattr(
        train, "train_and_evaluate", lambda c, w: trained.append(w) or real(c, w, quiet=True)
    )
    before = (copied / "vgg2" / "seed0" / "metrics.jsonl").read_bytes()
    assert start(copied) == 0
    assert trained == [copied / "vgg6" / "seed0"]
    assert (copied / "vgg2" / "seed0" / "metrics.jsonl").read_bytes() == before


def test_stopped_in_the_middle_and_started_again_is_the_same_sweep(swept, tmp_path, monkeypatch):
    out = tmp_path / "table4"
    finish, count = train._Run._finish_epoch, []

    def stop_after_three_epochs(self, epoch):
        count.append(epoch)
        if len(count) == 3:
            signal.raise_signal(signal.SIGINT)
        finish(self, epoch)

    monkeypatch.setattr(train._Run, "_finish_epoch", stop_after_three_epochs)
    assert start(out) == 128 + signal.SIGINT
    jobs = sweep.plan(["vgg2", "vgg6"], [0, 1], out, OPTIONS)
    assert [job.state for job in jobs] == ["done", "to resume", "new", "new"]
    assert start(out) == 0
    for row in ("vgg2", "vgg6"):
        for seed in ("seed0", "seed1"):
            ours, other = (
                metrics.read_lines(folder / row / seed / "metrics.jsonl") for folder in (out, swept)
            )
            for one, two in zip(ours, other, strict=True):
                for name in ("train_loss", "val_loss", "val_accuracy"):
                    assert one[name] == two[name]


def test_a_failing_row_costs_only_itself(tmp_path, monkeypatch, capsys):
    real = train.train_and_evaluate

    def failing(config, workdir):
        if config.model.name == "vgg_a":
            raise RuntimeError("the machine broke")
        return real(config, workdir, quiet=True)

    monkeypatch.setattr(train, "train_and_evaluate", failing)
    assert start(tmp_path / "out", "vgg2,vgg6", "0") == 1
    assert (tmp_path / "out" / "vgg6" / "seed0" / "result.json").exists()
    error = capsys.readouterr().err
    assert "failed: vgg2, seed 0" in error
    assert "the machine broke" in error


def test_a_workdir_of_another_config_is_refused_before_any_work(copied, monkeypatch, capsys):
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_: pytest.fail("it started"))
    assert start(copied, "vgg1,vgg2", "0", "--config.train.epochs=3") == 2
    assert "train.epochs: 2 -> 3" in capsys.readouterr().err


def test_multiply_adds_by_hand():
    # VGG-A: 3×3 convolutions at their resolutions, and three linear layers.
    convolutions = ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4),
                    (512, 512, 4), (512, 512, 2), (512, 512, 2))  # fmt: skip
    total = sum(9 * i * o * side**2 for i, o, side in convolutions)
    assert cost.forward_multiply_adds("vgg_a") == total + 512 * 512 * 2 + 512 * 10
    # "0.56 GFLOPs", as ResNet-18 for CIFAR is known.
    assert cost.forward_multiply_adds("resnet18") == pytest.approx(0.555e9, rel=2e-3)


def test_time_left_is_work_by_measured_speed(copied):
    (copied / "vgg6" / "seed1" / "result.json").unlink()
    lines = (copied / "vgg6" / "seed1" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "vgg6" / "seed1" / "metrics.jsonl").write_text(lines[0])
    jobs = sweep.plan(["vgg2", "vgg6"], [0, 1], copied, OPTIONS)
    each = cost.forward_multiply_adds("vgg_a_bn", 0.05)
    assert sweep.work_left(jobs[3]) == (3 * 100 + 256) * each  # one epoch of two
    speeds = [3 * r["images_per_second"] * each for job in jobs for r in job.records]
    assert sweep.multiply_adds_per_second(jobs) == pytest.approx(np.median(speeds))


# --- reading results --------------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"experiments\.sweep"):
        runs.sweeps(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        runs.sweeps(tmp_path / "absent")


def test_an_unknown_row(copied):
    (copied / "vgg2").rename(copied / "vgg9")
    with pytest.raises(UserError, match=r"'vgg9', no row of the report\. Did you mean"):
        runs.sweeps(copied)


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_file(copied, name):
    path = copied / "vgg2" / "seed0" / name
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        runs.sweeps(copied)


def test_damaged_metrics(copied):
    path = copied / "vgg2" / "seed0" / "metrics.jsonl"
    path.write_text("{oops}\n" + path.read_text())
    with pytest.raises(UserError, match="damaged"):
        runs.sweeps(copied)


def test_a_result_without_all_its_epochs(copied):
    path = copied / "vgg2" / "seed0" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="1 of 2 epochs"):
        runs.sweeps(copied)


def test_runs_of_mixed_configs(tmp_path):
    fake(tmp_path, rows=["vgg2"], seeds=2)
    path = tmp_path / "vgg2" / "seed1" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["optim"]["learning_rate"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"differ in optim\.learning_rate: 0\.001 and 0\.5"):
        runs.sweeps(tmp_path)
    content["config"]["optim"]["learning_rate"] = 0.001
    content["data"]["train"]["sha256"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="differ in the images"):
        runs.sweeps(tmp_path)


def test_a_run_of_another_version(copied):
    path = copied / "vgg2" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["optim"]["nesterov"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another version.*optim\.nesterov"):
        runs.sweeps(copied)
    del content["config"]["optim"]["nesterov"], content["config"]["optim"]["momentum"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another version.*optim\.momentum"):
        runs.sweeps(copied)


def test_a_run_from_before_a_field_that_changes_no_number(copied):
    path = copied / "vgg2" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["model"].pop("remat", None)
    path.write_text(json.dumps(content))
    (sweep,) = runs.sweeps(copied).values()
    assert sweep["vgg2"][0].config["model.remat"] == "auto"


@pytest.mark.parametrize(
    ("name", "key"),
    [("result.json", "peak_memory_bytes"), ("config.json", "cpus"), ("metrics.jsonl", "val_loss")],
)
def test_files_of_another_version(tmp_path, name, key):
    fake(tmp_path, rows=["vgg2"], seeds=1)
    path = tmp_path / "vgg2" / "seed0" / name
    path.write_text(path.read_text().replace(f'"{key}"', '"renamed"'))
    with pytest.raises(UserError, match=f"{name} is of another version.*{key} missing"):
        runs.sweeps(tmp_path)


def test_nothing_is_written_where_nothing_is_finished(copied):
    for path in copied.rglob("result.json"):
        path.unlink()
    for command in (tables.main, claims.main, figures.main):
        with pytest.raises(UserError, match=r"No run in .* is finished .*vgg2 seed 0: 2 of 2"):
            command([str(copied)])
    assert {path.name for path in copied.iterdir()} == {"vgg2", "vgg6"}


def test_runs_of_the_main_command_are_read_too(copied, tmp_path):
    (tmp_path / "runs").mkdir()
    (copied / "vgg2" / "seed0").rename(tmp_path / "runs" / "vgg2")
    assert list(runs.sweeps(tmp_path / "runs")[tmp_path / "runs"]) == ["vgg2"]


# --- the report's tables as data --------------------------------------------------------------


def test_results_of_the_report():
    # Sums of the printed columns, added up from the report itself.
    for table, sums in (
        (TABLE_3, (2.6070, 5.0851, 11.1674, 10.6758)),
        (TABLE_4, (1.8389, 4.1138, 7.3693, 6.8325)),
    ):
        columns = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
        found = [sum(getattr(row, column) for row in table) for column in columns]
        assert found == pytest.approx(sums)
    assert [row.size for row in TABLE_3].count("10.29M") == 6


def test_rows_are_their_configs():
    assert len(TABLE_3) == 12
    assert len(TABLE_4) == 8
    for name, row in ROWS.items():
        config = runs.row_config(name)
        assert config.model.name == row.model
        assert config.model.activation == row.activation
        assert config.model.dropout_rate == row.dropout_rate
        assert (config.optim.name, config.optim.learning_rate) == (row.optimizer, row.learning_rate)
        assert (config.optim.l1, config.optim.l2) == (row.l1, row.l2)
        assert (config.train.batch_size, config.train.epochs) == (row.batch_size, row.epochs)
        assert config.data.augment == row.augment


# --- statistics -------------------------------------------------------------------------------


def test_estimate_and_difference_are_students_and_welchs():
    ours, others = [0.91, 0.93, 0.925], [0.90, 0.905]
    value = runs.estimate(ours)
    interval = scipy.stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    assert (value.mean - value.half, value.mean + value.half) == pytest.approx(interval)
    assert value.std == pytest.approx(np.std(ours, ddof=1))
    change = runs.difference(ours, others)
    welch = scipy.stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
    assert (change.mean - change.half, change.mean + change.half) == pytest.approx(welch)
    assert math.isnan(runs.estimate([0.9]).half)
    assert math.isnan(runs.difference([0.9], [0.8, 0.7]).half)


def test_smoothing_is_a_moving_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = np.convolve(values, np.ones(7) / 7, mode="valid")
    np.testing.assert_allclose(runs.smoothed(values, 7), expected)


# --- tables -----------------------------------------------------------------------------------


def test_table_numbers_are_those_of_metrics_jsonl(copied):
    tables.main([str(copied)])
    lines = csv.DictReader(io.StringIO((copied / "table.csv").read_text()))
    for line in lines:
        best, last = [], []
        for path in sorted((copied / line["row"]).glob("seed*/metrics.jsonl")):
            records = [json.loads(text) for text in path.read_text().splitlines()]
            best.append(max(records, key=lambda record: record["val_accuracy"]))
            last.append(records[-1])
        assert len(best) == int(line["seeds"]) == 2
        for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            mean = sum(record[metric] for record in best) / 2
            std = abs(best[0][metric] - best[1][metric]) / math.sqrt(2)
            report = getattr(ROWS[line["row"]], metric)
            for column, value in (
                ("best", mean), ("std", std), ("interval_half", 12.7062 * std / math.sqrt(2)),
                ("last", sum(record[metric] for record in last) / 2),
                ("report", report), ("difference", mean - report),
            ):  # fmt: skip
                assert float(line[f"{metric}_{column}"]) == pytest.approx(value, rel=1e-4, abs=1e-9)


def test_shortened_runs_are_marked_in_every_format(copied, tmp_path):
    tables.main([str(copied)])
    marked = "2 of 50 epochs, 100 of 50,000 images"
    page = (copied / "table.md").read_text()
    assert "**Runs marked SHORTENED" in page
    lines = [line for line in page.splitlines() if line.startswith("| 2")]
    assert len(lines) == 6  # results, comparison of four metrics, cost
    assert all(line.startswith("| 2† |") for line in lines)
    assert f"† vgg2, vgg6: SHORTENED: {marked}; changed: " in page
    assert "data.name cifar10 -> synthetic" in page
    line = next(csv.DictReader(io.StringIO((copied / "table.csv").read_text())))
    assert line["shortened"] == marked.replace(", 100", "; 100")
    assert "SHORTENED" in (copied / "table.tex").read_text()
    assert "% commit" in (copied / "table.tex").read_text()
    full = fake(tmp_path / "full", rows=["row5"], epochs=50)
    tables.main([str(full)])
    for name in tables.FORMATS:
        assert "†" not in (full / name).read_text()
        assert "SHORTENED" not in (full / name).read_text()


def test_unfinished_runs_are_named_and_not_counted(copied):
    (copied / "vgg2" / "seed1" / "result.json").unlink()
    tables.main([str(copied)])
    page = (copied / "table.md").read_text()
    assert "- vgg2, seed 1: epoch 2 of 2" in page
    lines = list(csv.DictReader(io.StringIO((copied / "table.csv").read_text())))
    assert [line["seeds"] for line in lines] == ["1", "2"]
    assert lines[0]["val_accuracy_std"] == ""


def test_markdown_shows_mean_deviation_interval_report_and_difference(tmp_path):
    fake(tmp_path, rows=["row1"], epochs=50)
    tables.main([str(tmp_path)])
    lines = (tmp_path / "table.md").read_text().splitlines()
    # Seeds 92.54, 92.64, 92.74: deviation 0.10, half interval 4.3027 × 0.1 / √3 = 0.25.
    expected = ("| 1 | ResNet-18 | 3 | Val. acc. | 92.64% ± 0.10 | 92.39 … 92.89 | 92.44% ± 0.10 | "
                "92.64% | +0.00 |")  # fmt: skip
    assert expected in lines
    # 0.3709 at the best epoch, 0.3689 after the last.
    expected = ("| 1 | ResNet-18 | 3 | Val. loss | 0.3709 ± 0.0010 | 0.3684 … 0.3734 | "
                "0.3689 ± 0.0010 | 0.3709 | +0.0000 |")  # fmt: skip
    assert expected in lines


def test_holdout_runs_are_compared_by_their_test_accuracy_too(tmp_path):
    fake(tmp_path, rows=["row1"], epochs=50, data__protocol="holdout")
    for seed in range(3):
        path = tmp_path / "row1" / f"seed{seed}" / "result.json"
        test = {"test": {"loss": 0.5, "accuracy": 0.90 + 0.01 * seed, "images": 10_000}}
        metrics.write_json(path, json.loads(path.read_text()) | test)
    tables.main([str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "Test accuracy, once | 91.00% ± 1.00 | 88.52 … 93.48 | – | 92.64% | -1.64 |" in page
    assert "changed: data.protocol test -> holdout" in page
    line = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert float(line["test_accuracy"]) == pytest.approx(0.91)


def test_settings_are_those_of_the_run(tmp_path):
    fake(tmp_path, rows=["vgg2"], epochs=50, model__name="resnet18", optim__learning_rate=1.25e-3,
         optim__l1=1e-4, optim__l2=3e-5)  # fmt: skip
    tables.main([str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "| ResNet-18 | 1.00M | ReLU | 0 | L1, 1e-4; L2, 3e-5 | Adam | 1.25e-3 | 256 |" in page


def test_several_sweeps_and_one_that_is_not_finished(tmp_path, capsys):
    fake(tmp_path / "a", rows=["row1"], epochs=50)
    fake(tmp_path / "b", rows=["row1"], epochs=50, seeds=1)
    (tmp_path / "b" / "row1" / "seed0" / "result.json").unlink()
    tables.main([str(tmp_path)])
    assert "No run in " + str(tmp_path / "b") in capsys.readouterr().out
    assert (tmp_path / "a" / "table.md").exists()
    assert not (tmp_path / "b" / "table.md").exists()


def test_latex_is_balanced_and_escaped(copied):
    tables.main([str(copied)])
    text = (copied / "table.tex").read_text()
    assert text.count(r"\begin{") == text.count(r"\end{")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("% "))
    assert "_" not in text.replace(r"\_", "")
    assert "%" not in text.replace(r"\%", "").replace("{%\n", "")
    header = next(line for line in text.splitlines() if "Train. loss" in line)
    body = next(line for line in text.splitlines() if "VGG-A" in line and "&" in line)
    assert header.count("&") == body.count("&")


# --- claims -----------------------------------------------------------------------------------


def verdicts(folder):
    records = json.loads((folder / "claims.json").read_text())
    return {record["comparison"].split(" (")[0]: record for record in records}


def test_claims_of_the_reports_own_numbers(tmp_path):
    fake(tmp_path)
    claims.main([str(tmp_path)])
    found = verdicts(tmp_path)
    deeper = found["ResNet-50 − ResNet-18, ReLU, validation accuracy"]
    assert deeper["effect"] == pytest.approx(deeper["report"]) == pytest.approx(0.0048)
    assert deeper["verdict"] == "supported"
    # With GELU the report's deeper network is the worse one: 92.76% against 93.35%.
    assert found["ResNet-50 − ResNet-18, GELU, validation accuracy"]["verdict"] == "contradicted"
    assert found["strong − weak, training loss"]["verdict"] == "supported"
    over_fitting = found["strong − weak, over-fitting"]
    assert over_fitting["effect"] == pytest.approx((0.9750 - 0.9499) - (0.9982 - 0.9425))
    assert over_fitting["verdict"] == "supported"
    regularized = found["the worse of L1 and L2 − none, validation accuracy"]
    assert regularized["effect"] == pytest.approx(0.9105 - 0.9499)
    assert regularized["verdict"] == "supported"
    assert found["ResNet-18, GELU − ReLU, validation accuracy"]["verdict"] == "supported"
    gap = found["with − without BN, gap of the validation accuracy between the best and the worst "
                "learning rate"]  # fmt: skip
    assert gap["effect"] == pytest.approx((0.8865 - 0.8623) - (0.8716 - 0.7702))
    loss_gap = next(r for name, r in found.items() if "gap of the training loss" in name)
    # The fake steps have the rows' training losses throughout, and seed thousandths more.
    assert loss_gap["effect"] == pytest.approx(1.001 * ((0.2759 - 0.1038) - (0.6817 - 0.1168)))
    assert loss_gap["verdict"] == "supported"


def test_claims_turn_with_the_data(tmp_path):
    fake(tmp_path, {"row8": {"val_accuracy": -0.02}, "row7": {"val_accuracy": 0.005}})
    claims.main([str(tmp_path)])
    found = verdicts(tmp_path)
    assert found["strong − weak, validation accuracy"]["verdict"] == "contradicted"
    assert found["DenseNet-264 − 201, validation accuracy"]["verdict"] == "undecided"


def test_one_seed_decides_nothing(tmp_path, capsys):
    fake(tmp_path, seeds=1)
    claims.main([str(tmp_path)])
    assert {record["verdict"] for record in verdicts(tmp_path).values()} == {"undecided"}
    assert "on the report's side, one seed" in capsys.readouterr().out


def test_rows_of_different_lengths_are_not_judged(tmp_path):
    fake(tmp_path, rows=["row8"], epochs=200)
    fake(tmp_path, rows=["row6"], epochs=3)
    claims.main([str(tmp_path)])
    found = verdicts(tmp_path)["strong − weak, validation accuracy"]
    assert found["verdict"] == "undecided"
    assert found["notes"] == {"row6": "SHORTENED: 3 of 200 epochs"}
    page = (tmp_path / "claims.md").read_text()
    assert "but trained for different lengths) †" in page
    assert "**† row6: SHORTENED: 3 of 200 epochs**" in page


def test_runs_without_a_common_seed_or_without_steps(tmp_path):
    fake(tmp_path, rows=[f"vgg{i}" for i in range(1, 9)], seeds=2)
    for i in range(1, 9):
        shutil.rmtree(tmp_path / f"vgg{i}" / f"seed{i % 2}")
    claims.main([str(tmp_path)])
    assert "NaN" not in (tmp_path / "claims.json").read_text()
    assert figures.main([str(tmp_path), "--only=fig5"]) == 1
    fake(tmp_path / "more", rows=[f"vgg{i}" for i in range(1, 9)], seeds=1)
    (tmp_path / "more" / "vgg3" / "seed0" / "steps.jsonl").unlink()
    assert figures.main([str(tmp_path / "more"), "--only=fig5"]) == 1
    (tmp_path / "more" / "vgg3" / "seed0" / "steps.jsonl").write_text("{oops\n")
    with pytest.raises(UserError, match=r"steps\.jsonl is damaged"):
        figures.main([str(tmp_path / "more"), "--only=fig5"])


def test_size_of_a_change_against_another():
    values = {"a": [0.93, 0.94, 0.95], "b": [0.90, 0.91, 0.89], "base": [0.92, 0.921, 0.922]}
    found = claims._larger(lambda row, _: values[row], "a", "b", "base")
    # |0.94 − 0.921| − |0.90 − 0.921|: the base counts twice, negatively.
    assert found.mean == pytest.approx(0.019 - 0.021)
    error = math.sqrt(0.01**2 / 3 + 0.01**2 / 3 + 4 * 0.001**2 / 3)
    assert found.std == pytest.approx(error)


def test_claims_without_their_runs(copied):
    claims.main([str(copied)])
    assert {record["verdict"] for record in verdicts(copied).values()} == {"no runs"}


@pytest.mark.parametrize(
    ("mean", "half", "expected", "bound", "word"),
    [
        (0.5, 0.4, "above", 0.0, "supported"), (0.5, 0.6, "above", 0.0, "undecided"),
        (-0.5, 0.4, "above", 0.0, "contradicted"), (-0.5, 0.4, "below", 0.0, "supported"),
        (0.1, 0.3, "within", 0.5, "supported"), (0.1, 0.5, "within", 0.5, "undecided"),
        (0.9, 0.3, "within", 0.5, "contradicted"), (0.5, math.nan, "above", 0.0, "undecided"),
        (0.5, 0.0, "above", 0.0, "undecided"), (0.5, 0.4, "not", 0.0, "supported"),
        (-0.5, 0.6, "not", 0.0, "undecided"),
        (-0.4, 0.05, "above", -0.5, "supported"),
    ],
)  # fmt: skip
def test_verdicts(mean, half, expected, bound, word):
    assert claims.verdict(runs.Estimate(mean, 0.0, half, 3), expected, bound) == word


def test_interrupted_is_no_failure(tmp_path, monkeypatch):
    def stopped(*_):
        raise Interrupted(signal.SIGTERM, "Stopped")

    monkeypatch.setattr(train, "train_and_evaluate", stopped)
    assert start(tmp_path / "out", "vgg2", "0") == 128 + signal.SIGTERM


# --- the results in the repository ------------------------------------------------------------


def test_the_tables_of_the_kept_results_are_those_of_their_runs(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    for folder, rows in runs.sweeps("experiments/results").items():
        assert tables.markdown(rows) == (folder / "table.md").read_text()
        assert tables.comma_separated(rows) == (folder / "table.csv").read_text()
        assert claims.markdown(claims.judge(rows), rows) == (folder / "claims.md").read_text()
        assert all(run.shortened for of_row in rows.values() for run in of_row)
