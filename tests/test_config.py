"""The config: every row as the report has it, and configs that were saved."""

import importlib.util
import json
import pathlib
import re

import pytest

from experiments.runs.rows import ROWS
from jaxcifar.checks import check_config, unused
from jaxcifar.config import base_config, changed_fields, complete, differences, flatten, validate
from jaxcifar.errors import UserError
from jaxcifar.options import with_options

ROOT = pathlib.Path(__file__).parent.parent


def load_config(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(), module.__doc__


# The settings printed in the original report, transcribed: model, activation, dropout, L1, L2,
# optimizer, learning rate, batch size, epochs, augmentation.
SETTINGS = """
row1  resnet18    relu 0.2 0    0    adam 1e-3 256 50  weak
row2  resnet18    gelu 0.2 0    0    adam 1e-3 256 50  weak
row3  resnet50    relu 0.2 0    0    adam 1e-3 256 50  weak
row4  resnet50    gelu 0.2 0    0    adam 1e-3 256 50  weak
row5  densenet121 relu 0.2 0    0    adam 1e-3 256 50  weak
row6  densenet201 relu 0.2 0    0    adam 1e-3 256 200 weak
row7  densenet264 relu 0.2 0    0    adam 1e-3 256 200 weak
row8  densenet201 relu 0.2 0    0    adam 1e-3 256 200 strong
row9  densenet201 gelu 0.2 0    0    adam 1e-3 256 200 strong
row10 densenet201 relu 0.2 0    0    sgd  1e-3 256 200 strong
row11 densenet201 relu 0.2 1e-4 0    adam 1e-3 256 200 strong
row12 densenet201 relu 0.2 0    1e-4 adam 1e-3 256 200 strong
vgg1  vgg_a       relu 0   0    0    adam 3e-3 256 50  weak
vgg2  vgg_a       relu 0   0    0    adam 1e-3 256 50  weak
vgg3  vgg_a       relu 0   0    0    adam 5e-4 256 50  weak
vgg4  vgg_a       relu 0   0    0    adam 1e-4 256 50  weak
vgg5  vgg_a_bn    relu 0   0    0    adam 3e-3 256 50  weak
vgg6  vgg_a_bn    relu 0   0    0    adam 1e-3 256 50  weak
vgg7  vgg_a_bn    relu 0   0    0    adam 5e-4 256 50  weak
vgg8  vgg_a_bn    relu 0   0    0    adam 1e-4 256 50  weak
"""


@pytest.mark.parametrize("line", SETTINGS.split("\n")[1:-1], ids=lambda line: line.split()[0])
def test_rows_are_as_the_original_report_has_them(line):
    name, model, activation, dropout, l1, l2, optimizer, rate, batch, epochs, augment = line.split()
    config, doc = load_config(name)
    check_config(config)
    assert flatten(config) == flatten(base_config()) | {
        "model.name": model,
        "model.activation": activation,
        "model.dropout_rate": float(dropout),
        "data.name": "cifar10",
        "data.augment": augment,
        "optim.name": optimizer,
        "optim.learning_rate": float(rate),
        "optim.momentum": 0.0,
        "optim.l1": float(l1),
        "optim.l2": float(l2),
        "optim.schedule": "cosine",
        "train.batch_size": int(batch),
        "train.epochs": int(epochs),
    }
    assert f"--config=configs/{name}.py" in doc
    row = ROWS[name]
    printed = [float(number) for number in re.findall(r"\d\.\d{4}|\d+\.\d\d(?=%)", doc)]
    accuracies = [round(100 * a, 2) for a in (row.train_accuracy, row.val_accuracy)]
    assert printed == [row.train_loss, row.val_loss, *accuracies]


def test_every_row_has_a_config():
    others = {"quickstart", "fast", "fast96", "resnet18", "resnet20", "wideresnet"}
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - others
    assert set(ROWS) == files == {line.split()[0] for line in SETTINGS.split("\n")[1:-1]}


@pytest.mark.parametrize(
    ("name", "decay", "milestones", "factor", "epochs"),
    [
        ("resnet18", 5e-4, (), 0.1, 200),
        ("resnet20", 1e-4, (82, 123), 0.1, 164),  # of 390 steps: 32,000, 48,000 and 64,000
        ("wideresnet", 5e-4, (60, 120, 160), 0.2, 200),
    ],
)
def test_baselines_are_as_their_papers_have_them(name, decay, milestones, factor, epochs):
    config, _ = load_config(name)
    check_config(config)
    assert unused(config) == []
    changed = {field: value for field, (_, value) in changed_fields(base_config(), config).items()}
    schedule = {"schedule": "multistep", "milestones": milestones} if milestones else {}
    given = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "l2": decay / 2} | schedule
    given |= {"nesterov": True} if name != "resnet20" else {}
    given |= {"decay_factor": factor} if factor != 0.1 else {}
    expected = {f"optim.{field}": value for field, value in given.items()}
    expected |= {"model.dropout_rate": 0.0, "train.batch_size": 128, "train.epochs": epochs}
    expected |= {"model.name": {"wideresnet": "wideresnet28_10"}.get(name, name)}
    expected |= {"augment.padding_mode": "reflect"} if name == "wideresnet" else {}
    assert changed == {f: v for f, v in expected.items() if v != flatten(base_config())[f]}


def test_milestones():
    def changed(*options):
        return with_options(base_config(), [f"--config.optim.{option}" for option in options])

    config = changed("schedule=multistep", "milestones=20,30.5,70", "decay_factor=0.2")
    check_config(config)
    assert config.optim.milestones == (20, 30.5, 70)
    assert unused(config) == ["optim.milestones 70, because the run has 50 epochs"]
    assert changed("milestones=20").optim.milestones == (20,)
    twice = ["--config.optim.milestones", "20,30", "--config.optim.milestones", "5"]
    assert with_options(base_config(), twice).optim.milestones == (5,)
    with pytest.raises(UserError, match=r"'multistep', but optim\.milestones is \(\)"):
        check_config(changed("schedule=multistep"))
    with pytest.raises(UserError, match="only for 'multistep'"):
        check_config(changed("milestones=20,30"))
    with pytest.raises(UserError, match="above 0"):
        check_config(changed("schedule=multistep", "milestones=0,30"))
    with pytest.raises(UserError, match="milestones"):
        check_config(changed("schedule=multistep", "milestones=soon"))


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


# --- the command ------------------------------------------------------------------------------


def test_a_saved_config_is_laid_over_the_defaults():
    saved = {"seed": 3, "optim": {"name": "sgd"}, "augment": {"erasing_area": [0.1, 0.2]}}
    changes = {"seed": 3, "optim.name": "sgd", "augment.erasing_area": (0.1, 0.2)}
    assert flatten(complete(saved)) == flatten(base_config()) | changes
    assert flatten(complete({})) == flatten(base_config())


def test_an_unknown_saved_field_is_named():
    for saved in ({"optim": {"momentun": 0.5}}, {"optim": {"momentun": {"of": 1}}}):
        with pytest.raises(UserError, match=r"the field 'optim\.momentun.*does not know"):
            complete(saved)


def test_a_normalisation_of_ones_own_has_three_channels():
    config = base_config()
    config.data.mean, config.data.std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    validate(config)
    saved = json.loads(json.dumps(config.to_dict()))
    assert complete(saved).data.std == (0.2, 0.2, 0.2)
    for std, wrong in (
        ((0.2, 0.2), "three numbers"),
        ((0.2, 0.0, 0.2), "above 0"),
        ((63.0, 62.1, 66.7), "63"),  # of pixels from 0 to 255
    ):
        config.data.std = std
        with pytest.raises(UserError, match=rf"config\.data\.std.*{wrong}"):
            validate(config)
