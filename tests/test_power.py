"""How many seeds decide a comparison: against the t test's tables, and by hand."""

import json

import numpy as np
import pytest

from experiments.report import claims, power
from experiments.report.__main__ import main
from experiments.runs import stats
from tests.conftest import write_fake_runs


def above(bound):
    return lambda effect: claims.verdict(effect, "above", bound) == "supported"


@pytest.mark.parametrize(
    ("effect", "of_two", "of_one"),
    # Sizes of the two-sided t test at 5% for a power of 80%, as in Cohen 1988, tables 2.4.1 and
    # (one sample) from the noncentral t distribution: effect / standard deviation -> n.
    [(0.5, 64, 34), (0.8, 26, 15), (1.0, 17, 10)],
)
def test_as_many_as_the_t_test_needs(effect, of_two, of_one):
    def difference(n):
        ours, others = power.imagined(effect, 1.0, n), power.imagined(0.0, 1.0, n)
        return stats.difference(ours, others)

    assert power.seeds_needed(difference, above(0)) == pytest.approx(of_two, abs=1)
    single = power.seeds_needed(lambda n: stats.estimate(power.imagined(effect, 1.0, n)), above(0))
    assert single == pytest.approx(of_one, abs=1)


def test_too_many():
    def tiny_effect(n):
        return stats.estimate(power.imagined(0.01, 1.0, n))

    assert power.seeds_needed(tiny_effect, above(0)) is None


@pytest.mark.parametrize("n", [2, 3, 8])
def test_imagined_values(n):
    values = power.imagined(0.9, 0.02, n)
    assert values.shape == (n,)
    assert np.mean(values) == pytest.approx(0.9)
    assert np.std(values, ddof=1) == pytest.approx(0.02)


def test_spread_between_epochs():
    # Of the second half, 3 … 5: differences 2, −1, 1.
    assert power.spread_between_epochs([9, 0, 7, 1, 3, 5, 4, 5]) == pytest.approx(
        np.sqrt((2**2 + 1 + 1) / 3 / 2)
    )
    assert power.spread_between_epochs([1.0] * 7) is None
    noise = np.random.default_rng(0).normal(0, 0.3, 4000)
    assert power.spread_between_epochs(noise + np.arange(4000) * 1e-3) == pytest.approx(
        0.3, rel=0.05
    )


def needed(folder, **runs):
    write_fake_runs(folder, rows=["row1", "row3"], **runs)
    assert main(["claims", str(folder)]) == 0
    records = json.loads((folder / "claims.json").read_text())
    name = "ResNet-50 − ResNet-18, ReLU, validation accuracy"
    record = next(record for record in records if record["comparison"] == name)
    return record, (folder / "claims.md").read_text()


def test_claims_say_how_many_seeds(tmp_path):
    # An effect of 0.15 points, and a deviation of 0.1 between seeds.
    record, page = needed(tmp_path, seeds=3, changes={"row1": {"val_accuracy": 0.0033}})
    assert record["effect"] == pytest.approx(0.0015)
    assert (record["verdict"], record["spread"]) == ("undecided", "seeds")
    # Cohen 1988 for d = 1.5.
    assert record["seeds_needed"] == pytest.approx(9, abs=1)
    assert f"undecided (on the original's side) † | {record['seeds_needed']} |" in page
    assert "a chance of 80%" in page


def test_one_seed_is_guessed_from_its_epochs(tmp_path):
    record, page = needed(tmp_path, seeds=1, epochs=12)
    # Of epochs 7 … 12 only the eleventh differs, by 0.002.
    std = 0.002 * np.sqrt(2 / 5 / 2)
    assert record["spread"] == "epochs"
    n = record["seeds_needed"]
    assert n == round(
        power.seeds_needed(
            lambda n: stats.difference(
                power.imagined(record["effect"], std, n), power.imagined(0, std, n)
            ),
            above(0),
        )
    )
    assert f"| ≈ {n} |" in page


def test_too_few_epochs_for_a_guess(tmp_path):
    record, page = needed(tmp_path, seeds=1, epochs=4)
    assert record["seeds_needed"] is None
    assert "one seed) † | – |" in page
    assert "Seeds needed:" not in page


def test_a_gap_between_learning_rates_is_followed_through_the_epochs(tmp_path):
    rows = [f"vgg{i}" for i in range(1, 9)]
    write_fake_runs(tmp_path, rows=rows, seeds=1, epochs=12)
    name, epochs = tmp_path / "vgg1" / "seed0" / "metrics.jsonl", []
    for line in name.read_text().splitlines():
        record = json.loads(line)
        if record["epoch"] != 11 and record["epoch"] % 2:  # the worst without BatchNorm
            record["val_accuracy"] -= 0.02
        epochs.append(json.dumps(record) + "\n")
    name.write_text("".join(epochs))
    assert main(["claims", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "claims.json").read_text())
    gap = next(r for r in records if "gap of the validation accuracy" in r["comparison"])
    # The gap without BatchNorm in epochs 7 … 12 swings by 0.02; with it, not.
    std = np.sqrt(3 * 0.02**2 / 5 / 2)
    expected = power.seeds_needed(
        lambda n: stats.difference(
            power.imagined(gap["effect"], 0.0, n), power.imagined(0, std, n)
        ),
        lambda effect: effect.mean + effect.half < 0,
    )
    assert (gap["spread"], gap["seeds_needed"]) == ("epochs", expected)
