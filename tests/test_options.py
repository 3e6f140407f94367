"""Config files and options that cannot be used: one message each, with the way out."""

import os
import pathlib
import sys

import pytest

from jaxcifar import options
from jaxcifar.config import base_config, differences
from jaxcifar.errors import UserError

GOOD = "from jaxcifar.config import base_config\n\n\ndef get_config():\n    return base_config()\n"
CHANGED = GOOD.replace("return base_config()", "config = base_config()\n    {}\n    return config")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "from ml_collections.config_dict import required_placeholder\n"
            + CHANGED.format("config.optim.l1 = required_placeholder(float)"),
            "required",
        ),
        (CHANGED.format("config.train.epochs = 0"), "train.epochs is 0; it must be at least 1"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        options.load(file)
    assert str(file) in str(error.value)
    assert "Traceback" not in str(error.value)


def test_every_config_is_found_by_name():
    for path in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py"):
        assert options.config_file(path.stem) == path
    with pytest.raises(UserError, match=r"no config 'rwo9'. Did you mean 'row9'\?"):
        options.load("rwo9")


def test_a_config_may_start_from_another(tmp_path):
    file = tmp_path / "slower.py"
    file.write_text(
        "from jaxcifar.options import load\n\n\ndef get_config():\n    config = load('row9')\n"
        "    config.optim.learning_rate = 3e-4\n    return config\n"
    )
    config, row = options.load(file), options.load("row9")
    assert differences(row, config) == ["optim.learning_rate: 0.001 -> 0.0003"]


def test_a_config_file_is_read_as_it_is_now(tmp_path, monkeypatch):
    """Though a saved module of the same second and size would count as the same."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    for l2 in (1e-4, 2e-4):
        file.write_text(
            "from jaxcifar.options import load\n\n\ndef get_config():\n    config = load('row9')\n"
            f"    config.optim.l2 = {l2}\n    return config\n"
        )
        os.utime(file, (9, 9))
        assert options.load(file).optim.l2 == l2
    assert list(tmp_path.iterdir()) == [file]


def test_a_config_that_starts_from_another_the_wrong_way(tmp_path):
    file = tmp_path / "slower.py"
    file.write_text("from configs_of_mine.row9 import get_config\n")
    with pytest.raises(UserError) as error:
        options.load(file)
    assert "options.load" not in str(error.value)
    file.write_text("from configs.no_such_row import get_config\n")
    with pytest.raises(UserError, match=r"To start from .*: jaxcifar\.options\.load\('row9'\)"):
        options.load(file)


def test_what_is_no_config_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no config file"):
        options.load(tmp_path / "none.py")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"run is the folder of a run, not a config. To resume it: jaxcifar train /"
    ):
        options.load(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"There is no config file none.py in {tmp_path}"):
        options.load("none.py")
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(UserError, match="To resume a run, give its folder"):
        options.load(file)
    (tmp_path / "good.py").write_text(GOOD)
    assert options.load(tmp_path / "good.py").to_dict() == base_config().to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--optim.l1=0.1"], r"Did you mean --config\.optim\.l1=0\.1\?"),
        (["--train.log-norms=True"], r"Did you mean --config\.train\.log_norms=True\?"),
        (["--config.data.mean[0]=0.5"], r"a part of a field\..*: --config\.data\.mean=VALUE,"),
        (["--config.train.epochs[0]=5"], r"a part of a field"),
    ],
)
def test_options_that_cannot_be_used(given, message):
    with pytest.raises(UserError, match=message):
        options.with_options(base_config(), given)


@pytest.mark.parametrize(
    ("given", "hints"),
    [
        (["--config.optim.learning_rate=3e-4", "--config.train.epohcs=3"], 1),
        (["--config.train.epochs=abc"], 0),
    ],
)
def test_only_what_is_wrong_is_suggested_otherwise(given, hints):
    assert options.hint(given).count("Did you mean") == hints


def test_what_is_given_twice_counts_the_second_time():
    given = ["--config.data.mean=0.5,0.5,0.5", "--config.train.epochs=3", "--config.train.epochs=4"]
    config = options.with_options(base_config(), [*given, "--config.data.mean=0.4,0.3,0.2"])
    assert (tuple(config.data.mean), config.train.epochs) == ((0.4, 0.3, 0.2), 4)
    assert (
        tuple(options.with_options(base_config(), [*given, "--config.data.mean=()"]).data.mean)
        == ()
    )
    given = [
        "--config.train.log_norms=False",
        "--config.train.log_norms",
        "--config.train.epochs=3",
    ]
    config = options.with_options(base_config(), [*given, "--config.train.epochs", "4"])
    assert (config.train.log_norms, config.train.epochs) == (True, 4)


@pytest.mark.parametrize(
    "line",
    [
        "return FrozenConfigDict(config)",
        "config.optim.learning_rate = np.float64(1e-3)\n    return config",
        "config.optim = {**config.optim, 'learning_rate': np.float64(1e-3)}\n    return config",
    ],
)
def test_options_change_what_a_file_has_made_its_own_way(tmp_path, line):
    text = "import numpy as np\nfrom ml_collections import FrozenConfigDict\n" + CHANGED.format(
        "pass"
    )
    (tmp_path / "mine.py").write_text(text.replace("return config\n", f"{line}\n"))
    config = options.load(tmp_path / "mine.py")
    assert type(config.optim.learning_rate) is float
    changed = options.with_options(config, ["--config.optim.learning_rate=0.5"])
    assert changed.optim.learning_rate == 0.5


def test_options_change_a_copy_of_a_config():
    given = base_config()
    config = options.with_options(
        given, ["--config.train.epochs=3", "--config.augment.erasing_area=(0.1, 0.2)"]
    )
    assert given == base_config()
    assert config.train.epochs == 3
    assert tuple(config.augment.erasing_area) == (0.1, 0.2)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options.user_path("~/runs/x") == tmp_path / "runs" / "x"
    assert options.user_path("runs/~x") == pathlib.Path("runs/~x")
    # As for a user of a container, who has no entry in /etc/passwd.
    with pytest.raises(UserError, match=r"'~nobody-here/x': .*Set HOME, or give the full path"):
        options.user_path("~nobody-here/x")
