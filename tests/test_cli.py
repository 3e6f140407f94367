"""The program and its commands: what each becomes, and that it needs no JAX to be helpful."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxcifar import cli
from jaxcifar.errors import UserError
from jaxcifar.interop import export
from jaxcifar.version import __version__
from tests.forked import Forked, environment_of

ROOT = pathlib.Path(__file__).parent.parent


def test_train_takes_a_row_by_name_and_fields_without_their_prefix():
    given = ["row9", "--optim.learning_rate=3e-4", "--seed=2", "--workdir=runs/x"]
    assert cli.COMMANDS["train"].translate(given) == [
        "--config=row9",
        "--config.optim.learning_rate=3e-4",
        "--config.seed=2",
        "--workdir=runs/x",
    ]
    assert cli.COMMANDS["train"].translate(["mine/wide.py", "--config.train.epochs=3"]) == [
        "--config=mine/wide.py",
        "--config.train.epochs=3",
    ]


def test_eval_takes_a_folder():
    given = ["runs/x", "--checkpoint=last", "--data.dir=/d"]
    assert cli.COMMANDS["eval"].translate(given) == [
        *("--mode=eval", "--workdir=runs/x", "--checkpoint=last", "--config.data.dir=/d")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train"], "none is named"),
        (["train", "row1", "row2"], "2 are named: row1, row2"),
        (["train", "rwo9"], "There is no config 'rwo9'"),
        (["train", "quickstart", "--seed", "1"], "Options are --NAME=VALUE"),
        (["train", "row1", "--config=row2.py"], "2 are named: row1, row2.py"),
        (["sweep", "--rows=9", "--seed=1", "--out=x"], "Give --seeds instead"),
        (["eval"], "eval takes one run, but none is named. Give its folder"),
        (["landscape", "smoothness", "--rows=9", "--optim.lr=1"], "config.optim.learning_rate=1"),
        (["eval", "a", "b"], "eval takes one run, but 2 are named: a, b"),
        (["eval", "a", "--workdir=b"], "eval takes one run, but 2 are named: a, b"),
        (["export", "/nowhere/x", "--to=npz", "--out=/"], "Name a file in it: --out=/x.npz"),
        (["report", "page", ".", "--out=/"], "Name a file in it: --out=/report.html"),
        (["report", "/nowhere"], "There is no folder /nowhere"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(name, capsys):
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    for example in cli.COMMANDS[name].examples:
        assert f"jaxcifar {name} {example}".rstrip() in said
    assert "usage:" in said
    if name == "eval":  # its defaults are those of the run
        assert "--data.dir=DIR" in said
        assert "--train.epochs" not in said
    if name == "train":
        assert "--optim.learning_rate=" in said
        assert "--workdir" in said


def test_paths_and_values_are_no_fields():
    given = ["slice", "../a.b/seed0", "--extent", "1.5", "--seed=1", "--configs", "mine/wide.py"]
    assert cli.COMMANDS["landscape"].translate(given) == given
    assert cli.COMMANDS["landscape"].translate(["--init_from=a"]) == ["--config.init_from=a"]
    given = ["--rows", "9", "--out", "results/v1.0", "--config.optim.l1=0.1", "--optim.l2=1"]
    assert cli.COMMANDS["sweep"].translate(given) == [*given[:-1], "--config.optim.l2=1"]


def test_the_examples_are_understood():
    for command in cli.COMMANDS.values():
        for example in command.examples:
            assert command.translate(example.split()) is not None


def test_help_and_misspelt_commands_load_no_library():
    code = (
        "import sys; from jaxcifar import cli; cli.main(['--help']); cli.main(['trian']); "
        "print(sorted({'jax', 'numpy', 'flax', 'ml_collections'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}  # which has no "…"
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage: jaxcifar COMMAND" in done.stdout


@pytest.mark.parametrize("how", [("-m", "jaxcifar"), (str(cli.CHECKOUT / "jaxcifar"),)])
def test_in_the_folder_that_holds_the_clone(tmp_path, how):
    """Python takes the clone for the package, if it is installed from there."""
    (tmp_path / "jaxcifar").symlink_to(ROOT)
    (tmp_path / "beside.py").touch()
    code = "import sys; from importlib.util import find_spec as f; sys.exit(f('jaxcifar') is None)"
    if how[0] == "-m" and subprocess.run([sys.executable, "-P", "-c", code]).returncode:
        pytest.skip("jaxcifar is not installed here")
    command = [sys.executable, *how, "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"jaxcifar {__version__}\n"), done.stderr
    (tmp_path / "mine.py").write_text("import beside\nraise SystemExit(str(beside.__file__))\n")
    command = [sys.executable, *how, "train", "mine.py"]  # a config may import a module beside it
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"SystemExit: {tmp_path}/beside.py" in done.stderr


def test_the_first_example_of_export_needs_no_extra():
    (format_,) = re.findall(r"--to=(\w+)", cli.COMMANDS["export"].examples[0])
    assert format_ not in export.NEEDS


def test_windows_is_refused_in_one_line():
    code = "import os; from jaxcifar import cli; os.name = 'nt'; cli.main(['runs'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "jaxcifar needs Linux or macOS; on Windows, use WSL.\n"


def test_experiments_need_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    with pytest.raises(UserError, match="needs a checkout"):
        cli.find_experiments("sweep")


def command(*arguments):
    """As the console script: the arguments are those of the process."""
    sys.argv = ["jaxcifar", *arguments]
    return cli.main()


@pytest.mark.slow
def test_fields_reach_a_run_and_its_evaluation(tmp_path):
    """Not through sys.argv, where ml_collections looks: that has the command's own words."""
    code = "from tests.tiny import tiny\n\n\ndef get_config():\n    return tiny()\n"
    (tmp_path / "small.py").write_text(code)

    def run(*arguments):
        environment = environment_of(devices=1)
        process = Forked(command, *arguments, environment=environment, cwd=tmp_path)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        return out

    run("train", "small.py", "--train.epochs=1", "--seed=3", "--workdir=out", "--profile=2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["config"]
    assert (config["train"]["epochs"], config["seed"]) == (1, 3)
    assert list((tmp_path / "out" / "profile").rglob("perfetto_trace.json.gz"))
    assert run("eval", "out", "--train.eval_batch_size=256").startswith("best checkpoint (step 3)")


def test_a_warning_of_the_time_limit_after_the_end_changes_nothing():
    """It comes while Python ends."""
    late = "import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.SIGUSR1); "
    late += "sys.argv = ['jaxcifar', '--version']; from jaxcifar.cli import command; command()"
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
