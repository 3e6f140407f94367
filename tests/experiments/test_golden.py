"""Golden runs: what computes the same has the same digests, and nothing else has."""

import pytest

from experiments import golden
from jaxcifar.augment import AUGMENTATIONS
from jaxcifar.checks import check_config
from jaxcifar.models import MODELS, create_model
from jaxcifar.optim import OPTIMIZERS
from jaxcifar.run import plots
from tests.tiny import tiny, write_numbers


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_digests_are_those_of_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plot_history", write_numbers)
    first = golden.digests_of(tiny(), tmp_path / "first")
    assert golden.digests_of(tiny(), tmp_path / "again") == first
    losses, variables = golden.digests_of(tiny(optim__learning_rate=0.00101), tmp_path / "other")
    assert losses != first[0]
    assert variables != first[1]


@pytest.mark.parametrize("case", golden.CASES)
def test_cases_are_possible(case):
    check_config(golden.config_of(case))


def test_each_family_and_option_that_changes_numbers_has_a_case():
    configs = [golden.config_of(case) for case in golden.CASES]
    missing = "add a case to experiments/golden.py"
    assert {config.data.augment for config in configs} == {*AUGMENTATIONS}, missing
    assert {config.optim.name for config in configs} == {*OPTIMIZERS}, missing
    families = {type(create_model(name)) for name in MODELS}
    assert {type(create_model(config.model.name)) for config in configs} == families, missing
