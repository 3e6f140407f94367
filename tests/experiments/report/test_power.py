"""How many seeds decide a comparison: against the t test's tables, and by hand."""

import json

import numpy as np
import pytest
import scipy.stats

from experiments.report import claims, power
from experiments.report.__main__ import main
from experiments.runs import stats
from tests.sweeps import write_fake_runs


def chance(effect_of, expected="above", bound=0.0):
    """Of n seeds, by the rule of the claims for one sample at a time."""

    def of(n):
        effects = effect_of(n)
        halves = np.broadcast_to(effects.half, effects.mean.shape)
        one_by_one = [
            stats.Estimate(float(mean), 0.0, float(half), n)
            for mean, half in zip(effects.mean, halves, strict=True)
        ]
        words = [claims.verdict(effect, expected, bound) for effect in one_by_one]
        return np.mean([word != "undecided" for word in words])

    return of


def power_of_t_test(shift, freedom):
    """Of a two-sided test at 5%, where the t statistic is shifted by `shift`: noncentral t."""
    critical = scipy.stats.t.ppf(0.975, freedom)
    above, below = (
        scipy.stats.nct.sf(critical, freedom, shift),
        scipy.stats.nct.cdf(-critical, freedom, shift),
    )
    return above + below


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0, 3.0, 5.0])
def test_as_many_as_the_t_test_of_one_sample_needs(effect):
    """Few seeds included, whose intervals vary."""
    n = power.seeds_needed(chance(lambda n: stats.estimate(power.imagined(effect, 1.0, n, 0))))
    assert power_of_t_test(effect * np.sqrt(n), n - 1) > 0.8 - 0.02
    assert n == 2 or power_of_t_test(effect * np.sqrt(n - 1), n - 2) < 0.8 + 0.02


@pytest.mark.parametrize("effect", [0.5, 0.8, 1.0])
def test_as_many_as_the_t_test_of_two_samples_needs(effect):
    def difference(n):
        ours, others = power.imagined(effect, 1.0, n, 0), power.imagined(0.0, 1.0, n, 1)
        return stats.difference(ours, others)

    n = power.seeds_needed(chance(difference))
    assert power_of_t_test(effect * np.sqrt(n / 2), 2 * n - 2) > 0.8 - 0.02
    assert power_of_t_test(effect * np.sqrt((n - 1) / 2), 2 * n - 4) < 0.8 + 0.02


def test_an_equivalence_may_fail_on_either_side():
    n = power.seeds_needed(
        chance(lambda n: stats.estimate(power.imagined(0.0, 1.0, n, 0)), "within", 0.5)
    )
    others = np.random.default_rng(99).standard_normal((4000, n))
    interval = scipy.stats.ttest_1samp(others, 0, axis=-1).confidence_interval()
    assert np.mean((interval.low > -0.5) & (interval.high < 0.5)) == pytest.approx(0.8, abs=0.04)


def test_too_many():
    assert (
        power.seeds_needed(chance(lambda n: stats.estimate(power.imagined(0.01, 1.0, n, 0))))
        is None
    )


@pytest.mark.parametrize("n", [2, 3, 8])
def test_imagined_values(n):
    values = power.imagined(0.9, 0.02, n, 0)
    assert values.mean() == pytest.approx(0.9, abs=0.001)
    assert values.std() == pytest.approx(0.02, rel=0.03)
    np.testing.assert_array_equal(values, power.imagined(0.9, 0.02, 8, 0)[:, :n])
    assert abs(np.corrcoef(values[:, 0], power.imagined(0.9, 0.02, n, 1)[:, 0])[0, 1]) < 0.05


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
    shift = record["effect"] / std
    assert power_of_t_test(shift * np.sqrt(n / 2), 2 * n - 2) > 0.8
    assert n == 2 or power_of_t_test(shift * np.sqrt((n - 1) / 2), 2 * n - 4) < 0.8 + 0.02
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
        chance(
            lambda n: stats.contrast(
                (1, power.imagined(gap["effect"], 0.0, n, 0)), (-1, power.imagined(0, std, n, 1))
            ),
            "below",
        )
    )
    assert (gap["spread"], gap["seeds_needed"]) == ("epochs", expected)
