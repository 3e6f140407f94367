"""Golden runs: what computes the same has the same digests, and nothing else has."""

import pytest

from experiments import golden
from jaxcifar.augment import AUGMENTATIONS, FLIPS, PADDING_MODES
from jaxcifar.checks import check_config
from jaxcifar.config import base_config, flatten
from jaxcifar.models import MODELS, create_model
from jaxcifar.optim import MASKS, OPTIMIZERS, SCHEDULES
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


CHOICES = {
    "data.augment": AUGMENTATIONS,
    "augment.flip": FLIPS,
    "augment.padding_mode": PADDING_MODES,
    "optim.name": OPTIMIZERS,
    "optim.penalize": MASKS,
    "optim.schedule": SCHEDULES,
}
# What is off by default, and changes no number of the state when it is on.
NUMBERS_STAY = {"train.steps_per_call", "train.log_norms"}


def test_each_family_and_option_that_changes_numbers_has_a_case():
    configs = [golden.config_of(case) for case in golden.CASES]
    given = [flatten(config) for config in configs]
    missing = "add a case to experiments/golden.py"
    for field, choices in CHOICES.items():
        assert {fields[field] for fields in given} == {*choices}, missing
    groups = ("augment.", "optim.", "train.")
    off = {k for k, v in flatten(base_config()).items() if k.startswith(groups) and not v}
    on = {field for fields in given for field in off if fields[field]}
    assert off - on == NUMBERS_STAY, missing
    families = {type(create_model(name)) for name in MODELS}
    assert {type(create_model(config.model.name)) for config in configs} == families, missing
