"""The original report's conclusions: that each verdict follows from the runs."""

import html
import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats

from experiments.report import claims
from experiments.report.__main__ import main
from experiments.runs import read, stats
from experiments.runs.stats import difference
from jaxcifar.files import read_lines
from tests.sweeps import write_fake_runs

pytestmark = pytest.mark.usefixtures("one_device")


OVER_FITTING = "over-fitting (training accuracy, on augmented images, − validation accuracy)"
MARGINAL = "validation accuracy (marginal: within half a point)"


def verdicts(folder):
    """The records by their whole lines: two comparisons differ only in the brackets."""
    records = json.loads((folder / "claims.json").read_text())
    found = {record["comparison"]: record for record in records}
    assert len(found) == len(records)
    return found


@pytest.mark.slow
def test_claims_of_the_reports_own_numbers(tmp_path):
    write_fake_runs(tmp_path)
    main(["claims", str(tmp_path)])
    found = verdicts(tmp_path)
    deeper = found["ResNet-50 − ResNet-18, ReLU, validation accuracy"]
    assert deeper["effect"] == pytest.approx(deeper["original"]) == pytest.approx(0.0048)
    assert deeper["verdict"] == "supported"
    # With GELU the original's deeper network is the worse one: 92.76% against 93.35%.
    assert found["ResNet-50 − ResNet-18, GELU, validation accuracy"]["verdict"] == "contradicted"
    assert found["strong − weak, training loss"]["verdict"] == "supported"
    over_fitting = found[f"strong − weak, {OVER_FITTING}"]
    assert over_fitting["effect"] == pytest.approx((0.9750 - 0.9499) - (0.9982 - 0.9425))
    assert over_fitting["verdict"] == "supported"
    regularized = found["L1 − none, validation accuracy"]
    assert regularized["effect"] == pytest.approx(0.9105 - 0.9499)
    assert regularized["verdict"] == "supported"
    for influence in (
        "ResNet-18, GELU − ReLU, validation accuracy (an influence)",
        "ResNet-50, GELU − ReLU, validation accuracy (an influence)",
        "ResNet-50, GELU − ReLU, validation accuracy (not better; here: worse)",
    ):
        assert found[influence]["verdict"] == "supported"
    name = "with − without BN, gap of the validation accuracy between the best and the worst "
    gap = found[name + "learning rate"]
    assert gap["effect"] == pytest.approx((0.8865 - 0.8623) - (0.8716 - 0.7702))
    loss_gap = next(r for name, r in found.items() if "gap of the training loss" in name)
    # The fake steps have the rows' training losses throughout, and seed thousandths more.
    assert loss_gap["effect"] == pytest.approx(1.001 * ((0.2759 - 0.1038) - (0.6817 - 0.1168)))
    assert loss_gap["verdict"] == "supported"


@pytest.mark.slow
def test_claims_turn_with_the_data(tmp_path):
    write_fake_runs(tmp_path, {"row8": {"val_accuracy": -0.02}, "row7": {"val_accuracy": 0.005}})
    main(["claims", str(tmp_path)])
    found = verdicts(tmp_path)
    assert found["strong − weak, validation accuracy"]["verdict"] == "contradicted"
    assert found[f"DenseNet-264 − 201, {MARGINAL}"]["verdict"] == "undecided"


def test_one_seed_decides_nothing(tmp_path, capsys):
    write_fake_runs(tmp_path, seeds=1)
    main(["claims", str(tmp_path)])
    found = verdicts(tmp_path)
    assert {record["verdict"] for record in found.values()} == {"undecided"}
    assert "on the original's side, one seed" in capsys.readouterr().out
    # That there is an influence has no side.
    influence = found["ResNet-18, GELU − ReLU, validation accuracy (an influence)"]
    assert claims.describe(influence)["Verdict"] == "undecided (one seed) †"


@pytest.mark.parametrize("epochs", [3, 200])
def test_shortened_runs_are_compared_but_counted_apart(tmp_path, epochs):
    write_fake_runs(tmp_path, rows=["row6", "row8"], epochs=epochs)
    main(["claims", str(tmp_path)])
    assert verdicts(tmp_path)["strong − weak, validation accuracy"]["verdict"] == "supported"
    page = (tmp_path / "claims.md").read_text()
    apart = "which do not test the conclusions: 3 supported, 0 contradicted, 0 undecided."
    assert (apart in page) == (epochs == 3)
    whole = 0 if epochs == 3 else 3
    assert f"{whole} supported, 0 contradicted, 0 undecided, 23 no runs.\n" in page
    assert "images: cifar10, 50,000, official files" in page


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["config"]["model"].update(name="resnet18"),
        lambda content: content["data"]["validation"].update(sha256="4567"),
        lambda content: content["environment"].update(dtype="bfloat16"),
    ],
)
def test_rows_that_differ_by_more_than_the_rows_are_not_judged(tmp_path, change):
    write_fake_runs(tmp_path, rows=["row6", "row8"], epochs=200)
    for path in tmp_path.glob("row8/*/config.json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    main(["claims", str(tmp_path)])
    found = verdicts(tmp_path)["strong − weak, validation accuracy"]
    assert (found["verdict"], found["alike"]) == ("undecided", False)
    assert "of different lengths, options, images or dtypes" in (tmp_path / "claims.md").read_text()


def test_rows_of_different_lengths_are_not_judged(tmp_path):
    write_fake_runs(tmp_path, rows=["row8"], epochs=200)
    write_fake_runs(tmp_path, rows=["row6"], epochs=3)
    main(["claims", str(tmp_path)])
    found = verdicts(tmp_path)["strong − weak, validation accuracy"]
    assert found["verdict"] == "undecided"
    assert found["notes"] == {"row6": "SHORTENED: 3 of 200 epochs"}
    page = (tmp_path / "claims.md").read_text()
    assert "of different lengths, options, images or dtypes) †" in page
    assert "**† row6: SHORTENED: 3 of 200 epochs**" in page


def test_runs_without_a_common_seed_or_without_steps(tmp_path, capsys):
    write_fake_runs(tmp_path, rows=[f"vgg{i}" for i in range(1, 9)], seeds=2)
    for i in range(1, 9):
        shutil.rmtree(tmp_path / f"vgg{i}" / f"seed{i % 2}")
    main(["claims", str(tmp_path)])
    assert "NaN" not in (tmp_path / "claims.json").read_text()
    assert main(["figures", str(tmp_path), "--only=fig5"]) == 1
    write_fake_runs(tmp_path / "more", rows=[f"vgg{i}" for i in range(1, 9)], seeds=1)
    (tmp_path / "more" / "vgg3" / "seed0" / "steps.jsonl").unlink()
    assert main(["figures", str(tmp_path / "more"), "--only=fig5"]) == 1
    (tmp_path / "more" / "vgg3" / "seed0" / "steps.jsonl").write_text("{oops\n")
    assert main(["figures", str(tmp_path / "more"), "--only=fig5"]) == 1
    assert "steps.jsonl is damaged" in capsys.readouterr().out
    assert main(["figures", str(tmp_path / "more"), "--only=accuracy"]) == 0  # it needs no steps


def test_runs_of_too_few_steps_are_not_missing(tmp_path):
    write_fake_runs(tmp_path, rows=[f"vgg{i}" for i in range(1, 9)], epochs=1)
    for path in tmp_path.rglob("steps.jsonl"):
        path.write_text('{"ce": [1.0, 0.9]}\n')
    found = [claims.describe(record)["Ours"] for record in claims.judge(read.sweeps(tmp_path)[0])]
    why = "a seed that all have, with as many steps (at least 20) in steps.jsonl"
    assert found.count(f"no finished run of {why}") == 1


@pytest.mark.parametrize(
    ("line", "message"), [("{", "is damaged"), ('{"cd": [1.0]}', "is damaged (KeyError: 'ce')")]
)
def test_damaged_steps_leave_the_other_comparisons(tmp_path, line, message):
    write_fake_runs(tmp_path, rows=[f"vgg{i}" for i in range(1, 9)], epochs=50)
    (tmp_path / "vgg1" / "seed0" / "steps.jsonl").write_text(line + "\n")
    records = [record for record in claims.judge(read.sweeps(tmp_path)[0]) if "damage" in record]
    (record,) = records  # of the loss gap
    assert record["damage"].startswith(f"{tmp_path}/vgg1/seed0/steps.jsonl {message}")
    assert claims.describe(record)["Ours"] == record["damage"]
    main([str(tmp_path)])  # the page
    text = html.unescape((tmp_path / "report.html").read_text())
    assert text.count(f"<pre>{record['damage']}</pre>") == 1
    assert "gap of the validation accuracy" in text


def test_equal_values_decide_nothing_however_their_mean_is_rounded():
    values = [0.1] * 3  # whose mean is not 0.1, as computed
    assert claims.verdict(difference(values, values), "within", 0.005) == "undecided"
    several = np.full((4, 3), 0.1)
    assert not difference(several, several).half.any()


@pytest.mark.parametrize("seeds", [2, 3])
def test_rows_that_learned_nothing_need_more_seeds_than_there_can_be(tmp_path, seeds):
    write_fake_runs(tmp_path, rows=["row6", "row7"], seeds=seeds, epochs=200)
    for path in tmp_path.glob("row*/seed*/metrics.jsonl"):
        lines = [line | {"val_accuracy": 0.1} for line in read_lines(path)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = claims.judge(read.sweeps(tmp_path)[0])
    (record,) = (r for r in records if "marginal" in r["comparison"] and r["effect"] is not None)
    assert (record["verdict"], record["seeds_needed"]) == ("undecided", None)


def test_size_of_a_change_against_another():
    one, other, base = [0.93, 0.94, 0.95], [0.90, 0.91, 0.89], [0.92, 0.921, 0.922]
    found = claims.larger(one, other, base)
    # |0.94 − 0.921| − |0.90 − 0.921|: the base counts twice, negatively.
    assert found.mean == pytest.approx(0.019 - 0.021)
    variances = np.array([0.01**2, 0.01**2, 4 * 0.001**2]) / 3
    freedom = variances.sum() ** 2 / (variances**2 / 2).sum()
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variances.sum())
    assert found.half == pytest.approx(half)


@pytest.mark.slow
def test_claims_without_their_runs(swept_copy):
    main(["claims", str(swept_copy)])
    assert {record["verdict"] for record in verdicts(swept_copy).values()} == {"no runs"}


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
    assert claims.verdict(stats.Estimate(mean, 0.0, half, 3), expected, bound) == word


@pytest.mark.slow
def test_other_configs_are_ignored(tmp_path, capsys):
    write_fake_runs(tmp_path / "a")
    main(["claims", str(tmp_path / "a")])
    alone = (tmp_path / "a" / "claims.md").read_text()
    write_fake_runs(tmp_path / "a", rows=["wide"])
    write_fake_runs(tmp_path / "b", rows=["wide"])
    assert main(["claims", str(tmp_path)]) == 0
    assert (tmp_path / "a" / "claims.md").read_text() == alone
    assert not (tmp_path / "b" / "claims.md").exists()
    assert f"{tmp_path / 'b'} has no run of the original report's rows" in capsys.readouterr().out
