"""The config: every row as the report has it, and configs that were saved."""

import importlib.util
import json
import pathlib
import re

import pytest

from experiments.report_tables import TABLE_3, TABLE_4
from jaxcifar.config import base_config, complete, differences, flatten, validate
from jaxcifar.errors import UserError
from jaxcifar.task import check_config

ROOT = pathlib.Path(__file__).parent.parent


def load_config(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(), module.__doc__


@pytest.mark.parametrize("row", [*TABLE_3, *TABLE_4], ids=lambda row: row.config)
def test_rows_are_as_the_report_has_them(row):
    config, doc = load_config(row.config)
    check_config(config)
    assert flatten(config) == flatten(base_config()) | {
        "model.name": row.model,
        "model.activation": row.activation,
        "model.dropout_rate": row.dropout_rate,
        "data.name": "cifar10",
        "data.augment": row.augment,
        "optim.name": row.optimizer,
        "optim.learning_rate": row.learning_rate,
        "optim.momentum": 0.0,
        "optim.l1": row.l1,
        "optim.l2": row.l2,
        "optim.schedule": "cosine",
        "train.batch_size": row.batch_size,
        "train.epochs": row.epochs,
    }
    assert f"--config=configs/{row.config}.py" in doc
    printed = [float(number) for number in re.findall(r"\d\.\d{4}|\d+\.\d\d(?=%)", doc)]
    accuracies = [round(100 * a, 2) for a in (row.train_accuracy, row.val_accuracy)]
    assert printed == [row.train_loss, row.val_loss, *accuracies]


def test_every_row_has_a_config():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"quickstart"}
    assert {row.config for row in (*TABLE_3, *TABLE_4)} == files


# --- fields -----------------------------------------------------------------------------------


def test_missing_field():
    config = base_config()
    with config.unlocked():
        del config.optim.l1
    with pytest.raises(UserError, match=r"config\.optim\.l1 is missing"):
        validate(config)


def test_differences_ignore_how_a_run_is_carried_out():
    one = base_config().to_dict()
    other = base_config()
    other.data.dir = "elsewhere"
    other.train.steps_per_call = 5
    assert differences(one, other.to_dict()) == []
    other.train.epochs = 51
    other.augment.erasing_area = (0.02, 0.4)
    assert differences(one, other.to_dict()) == [
        "augment.erasing_area: (0.02, 0.33) -> (0.02, 0.4)",
        "train.epochs: 50 -> 51",
    ]


def test_a_tuple_comes_back_from_json_as_it_was():
    saved = json.loads(json.dumps(base_config().to_dict()))
    assert saved["augment"]["erasing_area"] == [0.02, 0.33]
    assert differences(saved, base_config().to_dict()) == []
    assert complete(saved).to_dict() == base_config().to_dict()
    check_config(complete(saved))


def test_a_saved_config_is_laid_over_the_defaults():
    saved = {"seed": 3, "optim": {"name": "sgd"}, "augment": {"erasing_area": [0.1, 0.2]}}
    changes = {"seed": 3, "optim.name": "sgd", "augment.erasing_area": (0.1, 0.2)}
    assert flatten(complete(saved)) == flatten(base_config()) | changes
    assert flatten(complete({})) == flatten(base_config())


def test_an_unknown_saved_field_is_named():
    for saved in ({"optim": {"momentun": 0.5}}, {"optim": {"momentun": {"of": 1}}}):
        with pytest.raises(UserError, match=r"the field 'optim\.momentun.*does not know"):
            complete(saved)
