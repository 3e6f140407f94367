"""--grid: a config with each of some values of its fields."""

import json
import shlex

import pytest

from experiments.runs import configs, read
from experiments.runs.provenance import commands
from experiments.sweep.__main__ import main as sweep_main
from jaxcifar.signals import exit_code
from tests.sweeps import start_sweep

pytestmark = pytest.mark.usefixtures("one_device")


def test_each_config_with_each_combination():
    sources = configs.named("vgg2,row10", None)
    found = configs.varied(sources, ["optim.learning_rate=1e-2,0.003", "optim.nesterov=True,False"])
    assert [source.name for source in found[:4]] == [
        "vgg2-learning_rate-0.01-nesterov-True",
        "vgg2-learning_rate-0.01-nesterov-False",
        "vgg2-learning_rate-0.003-nesterov-True",
        "vgg2-learning_rate-0.003-nesterov-False",
    ]
    assert len(found) == 8
    optim = found[6].config.optim
    assert (optim.name, optim.learning_rate, optim.nesterov) == ("sgd", 0.003, True)
    assert sources[0].config.optim.learning_rate == 1e-3  # unchanged
    assert found[6].grid == ("optim.learning_rate=0.003", "optim.nesterov=True")


def test_however_a_number_is_written_the_run_is_the_same():
    (source,) = configs.named("vgg2", None)
    texts = ("1e-3", "0.001", "1.0e-03")
    found = {configs.varied([source], [f"optim.l2={text}"])[0].name for text in texts}
    assert found == {"vgg2-l2-0.001"}


def test_what_is_recorded_is_the_number_itself():
    (source,) = configs.named("vgg2", None)
    values = ["0.00123456789", "0.00123456788"]
    found = configs.varied([source], [f"optim.l2={','.join(values)}"])
    assert [variant.grid for variant in found] == [(f"optim.l2={value}",) for value in values]
    assert [str(variant.config.optim.l2) for variant in found] == values


def test_what_has_no_effect_is_said_before_the_work(tmp_path, capsys):
    given = ("--grid=optim.decay_factor=0.1,0.2", "--config.optim.schedule=multistep")
    more = ("--config.optim.milestones=1,30", "--dry-run")
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", *given, *more) == 0
    said = capsys.readouterr().err
    assert said.count("without effect") == 2
    line = "vgg2-decay_factor-0.2: optim.milestones 30, because the run has 2 epochs"
    assert f"set, but without effect: {line}" in said


def test_a_name_says_what_it_is_the_name_of():
    (source,) = configs.named("vgg2", None)
    grid = ["model.name=vgg_a,resnet18", "optim.name=sgd"]
    names = [source.name for source in configs.varied([source], grid)]
    assert names == ["vgg2-model-vgg_a-optim-sgd", "vgg2-model-resnet18-optim-sgd"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["lr=1e-3"], "Did you mean 'optim.learning_rate'"),
        (["optim.l2"], "give a field and values"),
        (["optim.l2=x"], "must be a number"),
        (["optim.l2=0,"], "must be a number"),
        (["optim.l2=0,0.0"], "two configs of the name vgg2-l2-0"),
        (["optim.l2=0", "optim.l2=1"], "optim.l2 twice"),
        (["seed=0,1"], "--seeds=0,1"),
        (["augment.erasing_area=0.1"], "tuple"),
        (["init_from=runs/a"], "folder's name"),
        (["model.name=vggg"], "Did you mean 'vgg_a'"),
    ],
)
def test_what_cannot_be_a_grid_starts_nothing(tmp_path, capsys, grid, message):
    given = [f"--grid={text}" for text in grid]
    assert start_sweep(tmp_path / "out", "vgg2", "0", *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_option_does_not_undo_a_grid(tmp_path, capsys):
    options = ("--grid=train.epochs=2,3", "--dry-run")  # OPTIONS set it too
    assert start_sweep(tmp_path / "out", "vgg2", "0", *options) == 2
    assert "--config.train.epochs=2 would undo --grid" in capsys.readouterr().err


def test_tasks_of_slurm_get_the_grid(tmp_path, capsys):
    given = ("--grid=optim.l2=0,1e-4", "--slurm", "--time=60", "--print")
    assert start_sweep(tmp_path / "out", "vgg2", "0", *given) == 0
    script = capsys.readouterr().out
    assert " --grid=optim.l2=0,1e-4 " in script
    assert "--array=0-1\n" in script


@pytest.mark.slow
def test_its_runs_are_configs_of_their_own_with_commands_that_find_them(tmp_path, capsys):
    out, grid = tmp_path / "rates", "--grid=optim.learning_rate=1e-2,1e-3"
    assert start_sweep(out, "vgg2", "0", grid) == 0
    (sweep,) = read.sweeps(out)
    assert sweep.names == ["vgg2-learning_rate-0.001", "vgg2-learning_rate-0.01"]
    rates = [run.config["optim.learning_rate"] for run in sweep.runs]
    assert rates == [1e-3, 1e-2]
    assert sweep.runs[0].records[-1]["train_loss"] != sweep.runs[1].records[-1]["train_loss"]
    for run in sweep.runs:  # what the grid changes is what the config is
        assert "SHORTENED: 2 of 50 epochs" in run.mark
        assert "learning_rate" not in run.mark
        origin = json.loads((run.folder.parent / "origin.json").read_text())
        assert origin["file"] == "vgg2"
    capsys.readouterr()
    found = commands(sweep)
    assert len(found) == 2
    for command in found:
        arguments = shlex.split(command)
        assert arguments[:2] == ["jaxcifar", "sweep"]
        assert exit_code(lambda given=arguments[2:]: sweep_main([*given, "--dry-run"])) == 0
    assert capsys.readouterr().out.count("1 done; nothing left") == 2
