"""The config and the command: every row as the report has it, and what is refused."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.runs.rows import ROWS
from jaxcifar import train
from jaxcifar.config import _RANGES, base_config, complete, differences, flatten, validate
from jaxcifar.errors import UserError

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
    train.check_config(config)
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
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"quickstart"}
    assert set(ROWS) == files == {line.split()[0] for line in SETTINGS.split("\n")[1:-1]}


# --- refusals ---------------------------------------------------------------------------------


def changed(**fields):
    config = base_config()
    for field, value in fields.items():
        group, _, name = field.partition("__")
        with config.unlocked(), config.ignore_type():
            if name:
                config[group][name] = value
            else:
                config[group] = value
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__nam": "resnet18"}, r"config\.model\.nam is not a field.*'model\.name'"),
        ({"epochs": 3}, r"config\.epochs is not a field.*'train\.epochs'"),
        ({"model__name": "resnet19"}, "Did you mean 'resnet18'"),
        ({"model__activation": "gleu"}, "Did you mean 'gelu'"),
        ({"model__dtype": "float16"}, "bfloat16"),
        ({"model__remat": "yes"}, r"model\.remat.*'yes'.*auto, on, off"),
        ({"model__remat": True}, "must be a string"),
        ({"model__name": "vgg_a", "model__remat": "on"}, "only DenseNets"),
        ({"data__name": "cifar"}, "Did you mean 'cifar10'"),
        ({"data__augment": "storng"}, "Did you mean 'strong'"),
        ({"data__protocol": "hold-out"}, "Did you mean 'holdout'"),
        ({"optim__name": "adamw"}, "Did you mean 'adam'"),
        ({"optim__schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"optim__penalize": "kernel"}, "Did you mean 'kernels'"),
        ({"optim__l1": -1e-4}, r"optim\.l1 is -0\.0001; it must be at least 0\.0"),
        ({"optim__l2": float("nan")}, r"optim\.l2 is nan"),
        ({"optim__learning_rate": 0.0}, "above 0.0"),
        ({"optim__learning_rate": float("inf")}, "learning_rate is inf"),
        ({"optim__momentum": 0.9}, "only 'sgd' has a momentum"),
        ({"train__epochs": 0}, r"train\.epochs is 0; it must be at least 1"),
        ({"train__epochs": 2.5}, "whole number"),
        ({"train__batch_size": 0}, "at least 1"),
        ({"train__batch_size": 12}, "multiple of 8"),
        ({"model__dropout_rate": 1.0}, "at most 0.99"),
        ({"augment__erasing_area": (0.5, 0.1)}, "first must not be larger"),
        ({"augment__erasing_area": 0.5}, "two numbers"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(UserError, match=message):
        train.check_config(changed(**fields))


def test_missing_field():
    config = base_config()
    with config.unlocked():
        del config.optim.l1
    with pytest.raises(UserError, match=r"config\.optim\.l1 is missing"):
        validate(config)


def test_ranges_are_of_fields_and_hold_the_defaults():
    assert set(_RANGES) <= set(flatten(base_config()))
    train.check_config(base_config())


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


def test_saved_configs_are_laid_over_the_defaults():
    saved = base_config().to_dict()
    del saved["optim"]["momentum"], saved["train"]
    saved["augment"]["erasing_area"] = [0.02, 0.4]  # as JSON has it
    found = complete(saved)
    assert differences(base_config().to_dict(), found) == [
        "augment.erasing_area: (0.02, 0.33) -> [0.02, 0.4]"
    ]
    assert found.keys() == base_config().keys()
    saved["optim"]["momentun"] = 0.9
    with pytest.raises(UserError, match=r"optim\.momentun is not a field.*'optim\.momentum'"):
        complete(saved)


# --- the command ------------------------------------------------------------------------------


def command(*arguments, cwd=ROOT):
    """Runs the command line; one device, so that it starts fast."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "jaxcifar.main", *arguments],
        capture_output=True, text=True, cwd=cwd, env=environment, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=configs/quickstart.py"),
        (("--config=configs/row99.py",), "row99.py"),
        (("--config=configs/row1.py", "--config.train.epoch=3"), "epochs"),
        (("--config=configs/row1.py", "--config.model.name=resnet20"), "resnet50"),
        (("--config=configs/row1.py", "--config.train.epochs=many"), "many"),
        (("--config=configs/row1.py", "--confg.seed=1"), "confg"),
        (("--config=configs/row1.py", "config.seed=1"), "'config.seed=1' is no flag"),
        (("--mode=eval",), "--workdir"),
        (("--mode=eval", "--workdir=nowhere"), "holds no run"),
    ],
)
def test_command_refuses_in_one_message(arguments, message, tmp_path):
    paths = [a.replace("configs/", f"{ROOT}/configs/") for a in arguments]
    done = command(*paths, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # nothing was made


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    config = load_config("quickstart")[0]
    with pytest.raises(UserError, match="cannot be written"):
        train.train_and_evaluate(config, tmp_path / "file" / "run")
