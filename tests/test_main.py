"""The command: what it refuses, and the life of a run from its start to its evaluation."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.report import __main__ as report
from experiments.runs.configs import named
from experiments.sweep.jobs import checked
from jaxcifar import data, restore, train
from jaxcifar.errors import Interrupted
from jaxcifar.files import read_lines
from jaxcifar.main import Origin, run, summary
from jaxcifar.options import load
from jaxcifar.run import plots, signs
from tests import tiny as small
from tests.forked import Forked, environment_of
from tests.sweeps import OPTIONS, on_one_device
from tests.tiny import tiny

ROOT = pathlib.Path(__file__).parent.parent

# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_while_libraries_are_imported_is_no_traceback(tmp_path):
    """The first of them waits for the signal."""
    (tmp_path / "jax.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcifar.main", "--config=row1"],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path},
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert error == "jaxcifar: Stopped by SIGINT. Nothing that was saved is lost.\n"
    assert process.returncode == 128 + signal.SIGINT


def test_a_command_is_not_stopped_by_warnings_of_libraries(tmp_path):
    config = f"--config={ROOT}/configs/quickstart.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "jaxcifar.main", config, "--config.train.epochs=-1"],
        **{"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120},
        env=one_device() | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr.startswith("jaxcifar: config.train.epochs is -1")
    assert done.returncode == 2


def test_a_field_that_refers_to_another_follows_it(tmp_path, monkeypatch):
    """Also where an option changes the other one; the file's own values stay what they are."""
    file, found = tmp_path / "mine.py", []
    file.write_text(
        "from jaxcifar.config import base_config\n\n\ndef get_config():\n"
        "    config = base_config()\n"
        "    config.train.eval_batch_size = config.train.get_ref('batch_size') * 2\n"
        "    return config\n"
    )
    monkeypatch.setattr(
        train, "train_and_evaluate", lambda config, *_, **__: found.append(config) or RESULT
    )
    assert run([f"--config={file}", "--config.train.batch_size=64"]) == 0
    assert [config.train.eval_batch_size for config in found] == [128]
    (job,) = checked(named(None, str(file)), [0], tmp_path, ["--config.train.batch_size=32"])
    assert job.config.train.eval_batch_size == 64
    assert job.source.config.train.eval_batch_size == 512


# --- the summary ------------------------------------------------------------------------------

RESULT = {
    "best": {"epoch": 7, "val_accuracy": 0.9123, "val_loss": 0.31415},
    "last": {"epoch": 9, "val_accuracy": 0.9, "val_loss": 0.4},
    "train_seconds": 3725.0,
    "compile_seconds": 31.4,
    "peak_memory_bytes": 3 * 2**30,
}


def test_summary_of_a_run_validated_on_the_test_set():
    assert summary(RESULT, tiny(), "runs/x").split("\n") == [
        "best epoch 7: validation accuracy 91.23%, loss 0.3141",
        "last epoch 9: validation accuracy 90.00%, loss 0.4000",
        "(validated on the test set, which also chose the best epoch)",
        "training 1h02m, compiling 31s, peak memory 3.0 GiB",
        "everything is in runs/x: result.json, metrics.jsonl, history.png, …",
    ]


def test_summary_of_a_run_whose_last_start_trained_nothing():
    result = RESULT | {"compile_seconds": None, "peak_memory_bytes": None}
    assert summary(result, tiny(), "runs/x").split("\n")[3] == "training 1h02m"


def test_summary_of_a_run_with_a_held_out_part():
    result = RESULT | {"test": {"accuracy": 0.5, "loss": 1.25, "images": 10_000}}
    lines = summary(result, tiny(data__protocol="holdout"), "runs/x").split("\n")
    assert lines[2] == (
        "test set, once, at the best epoch: accuracy 50.00%, loss 1.2500 (10,000 images)"
    )
    assert len(lines) == 5


# --- how it ends ------------------------------------------------------------------------------


def stopped_before_a_step(*arguments):
    """Ends by a signal, as a command does that has nothing to save yet."""

    def loading(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    data.load = loading
    return run(arguments)


def test_a_signal_before_the_first_step_leaves_no_sign_of_life(tmp_path):
    process = Forked(
        stopped_before_a_step,
        *("--config=quickstart", "--workdir=new", "--config.data.name=synthetic"),
        environment=environment_of(devices=1) | {"HOME": str(tmp_path)},
        cwd=tmp_path,
    )
    output(process, code=128 + signal.SIGTERM)
    assert os.listdir(tmp_path / "new") == [".lock"]


def test_a_start_that_is_refused_leaves_nothing_and_the_reason_of_an_earlier_failure(tmp_path):
    signs.fail(tmp_path / "failed", "it broke")
    for name in ("new", "failed"):
        workdir = f"--workdir={tmp_path / name}"
        with on_one_device():
            assert run(["--config=quickstart", workdir, "--config.train.batch_size=60000"]) == 2
    assert os.listdir(tmp_path) == ["failed"]
    assert signs.failure(tmp_path / "failed") == "it broke"


def test_an_evaluation_says_that_its_images_are_not_the_official_ones(
    tmp_path, capsys, monkeypatch
):
    facts = {"official": False, "source": "/data/cifar"}
    found = {"checkpoint": "best", "step": 7, "accuracy": 0.5, "loss": 1.25, "images": 10_000}
    found["dtype"] = "bfloat16"
    for official, lines in ((True, 1), (None, 1), (False, 2)):
        result = found | {"data": facts | {"official": official}}
        monkeypatch.setattr(restore, "evaluate_workdir", lambda *_, result=result, **__: result)
        assert run(["--mode=eval", f"--workdir={tmp_path}"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines
    assert said[1] == "the images of /data/cifar are not verified as the official files"


# --- several commands in one process, as a notebook runs them ---------------------------------


def in_turn(*commands):
    """Runs the commands; returns 0 if all of them did."""
    return int(any([run(command) for command in commands]))


@pytest.mark.slow
def test_a_command_knows_nothing_of_the_one_before(tmp_path):
    (tmp_path / "small.py").write_text(
        "from tests.tiny import tiny\n\n\ndef get_config():\n    return tiny(train__epochs=1)\n"
    )
    first = ["--config=small.py", "--workdir=first", "--config.optim.learning_rate=0.5"]
    commands = (first, ["--mode=eval", "--workdir=first"], ["--config=small.py"], ["--help"])
    environment = environment_of(devices=1) | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    out = output(Forked(in_turn, *commands, environment=environment, cwd=tmp_path))
    assert out.count("best epoch 1") == 2
    assert "--start_timeout SECONDS" in out
    saved = [
        json.loads((tmp_path / name / "config.json").read_text())["config"]
        for name in ("first", "runs/small")
    ]
    assert [config["optim"]["learning_rate"] for config in saved] == [0.5, 0.001]
    origin = json.loads((tmp_path / "first" / "origin.json").read_text())
    assert (origin["file"], origin["config"]["optim"]["learning_rate"]) == ("small.py", 0.001)


@pytest.mark.slow
def test_a_shortened_run_in_a_folder_of_another_name_is_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "plot_history", small.write_numbers)
    with on_one_device():
        assert run(["--config=vgg6", "--workdir=runs/short", *OPTIONS]) == 0
    report.main(["tables", str(tmp_path / "runs")])
    page = (tmp_path / "runs" / "table.md").read_text()
    assert "† short: SHORTENED: 2 of 50 epochs, 100 images" in page
    again = f"jaxcifar train vgg6 --workdir={tmp_path / 'runs' / 'short'} "
    (line,) = [line for line in page.splitlines() if line.startswith(again)]
    assert set(OPTIONS) - set(line.split()) == {"--config.train.eval_batch_size=96"}


@pytest.mark.slow
def test_the_origin_is_that_of_the_first_start(tmp_path):
    """When the run is resumed, the file may be meant for another one."""
    file = tmp_path / "small.py"

    def origin(epochs):
        file.write_text(
            "from tests.tiny import tiny\n\n\n"
            f"def get_config():\n    return tiny(train__epochs={epochs})\n"
        )
        return Origin(file, load(file))

    with pytest.raises(Interrupted):
        small.run(tiny(), tmp_path / "run", origin(epochs=5), small.SignalAt(1))
    small.run(tiny(), tmp_path / "run", origin(epochs=2))
    saved = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert saved["config"]["train"]["epochs"] == 5


@pytest.mark.slow
def test_a_run_is_resumed_by_its_folder(tmp_path, monkeypatch, finished):
    """On another machine, where its config file is not."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        small.run(tiny(), "runs/small", Origin(tmp_path / "small.py", tiny()), small.SignalAt(4))
    pathlib.Path("runs/small").rename("moved")
    origin = pathlib.Path("moved/origin.json").read_text()
    with on_one_device():
        assert run(["--config=moved", "--config.optim.l1=0.1"]) == 2
        pathlib.Path("moved").rename("row9")  # which is the name of a config as well
        pathlib.Path("row9/settings.json").touch()
        assert run(["--config=./row9"]) == 2  # it would not be measured
        pathlib.Path("row9/settings.json").unlink()
        assert not pathlib.Path("row9/result.json").exists()
        assert run(["--config=row9/", "--config.train.eval_batch_size=64"]) == 0
    assert pathlib.Path("row9/origin.json").read_text() == origin
    ours, theirs = (read_lines(f / "steps.jsonl") for f in (tmp_path / "row9", finished[0]))
    assert small.without_times(ours) == small.without_times(theirs)


# --- a whole life -----------------------------------------------------------------------------


def one_device():
    """The environment of a command that starts fast."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


@pytest.fixture
def command(tmp_path):
    """Returns a function of arguments that starts the command in a folder of its own.

    It forks it from a process that has imported all, or with `python` starts it as anyone would.
    """
    config = tmp_path / "small.py"
    config.write_text("from tests.tiny import tiny\n\n\ndef get_config():\n    return tiny()\n")
    environment = one_device() | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def start(*arguments, python=False):
        if not python:
            return Forked(run, arguments, environment=environment, cwd=tmp_path)
        return subprocess.Popen(
            [sys.executable, "-m", "jaxcifar.main", *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
            cwd=tmp_path,
            env=environment,
        )

    return start


def output(process, code=0):
    """What a command printed, once it ended with `code`."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out if code == 0 else err


@pytest.mark.slow
def test_the_headline_command(command, tmp_path):
    """Trains, is stopped by SIGTERM and resumed; again returns at once; evaluates.

    Its programs are compiled as everyone's, and its numbers are those of a run that never stopped.
    """
    arguments, workdir = ("--config=small.py", "--config.train.epochs=10"), tmp_path / "runs/small"
    process = command(*arguments)
    deadline = time.monotonic() + 240
    while not read_lines(workdir / "metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    message = output(process, code=128 + signal.SIGTERM)
    stopped = re.fullmatch(
        r"jaxcifar: Stopped by SIGTERM and saved at step (\d+) in runs/small\. "
        r"The same command resumes it\.\n",
        message,
    )
    assert stopped, message
    assert 3 <= int(stopped[1]) < 30

    trained = output(command(*arguments, python=True))
    lines = trained.splitlines()
    assert re.fullmatch(r"vgg_a_bn \([\d,]+ parameters\) on synthetic \(100 images\), .*", lines[0])
    resumed = re.search(rf"resumed after epoch (\d+), step {stopped[1]}\n", trained)
    assert resumed, trained
    shown = re.findall(r"^epoch +(\d+)/10  train", trained, re.MULTILINE)
    assert shown == [str(epoch) for epoch in range(int(resumed[1]) + 1, 11)]
    output(command(*arguments, "--workdir=runs/whole"))
    for name in ("metrics.jsonl", "steps.jsonl"):
        ours, theirs = (read_lines(tmp_path / "runs" / run / name) for run in ("small", "whole"))
        assert small.without_times(ours) == small.without_times(theirs)
    records = read_lines(workdir / "metrics.jsonl")
    assert [record["epoch"] for record in records] == list(range(1, 11))
    result = json.loads((workdir / "result.json").read_text())
    accuracy = f"{result['best']['val_accuracy']:.2%}"
    assert f"best epoch {result['best']['epoch']}: validation accuracy {accuracy}" in trained
    assert list((tmp_path / "home" / ".cache" / "jaxcifar" / "xla").iterdir())

    written = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = output(command(*arguments, "--config.train.steps_per_call=3"))
    finished = "runs/small is finished: nothing is left to train."
    assert again.splitlines() == [finished, *lines[-5:]]  # the summary alone
    del written[workdir / ".lock"]
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())

    evaluated = output(command("--mode=eval", "--workdir=runs/small", "--nocompilation_cache"))
    step = result["best"]["step"]
    assert evaluated.startswith(f"best checkpoint (step {step}): accuracy {accuracy}, loss ")
    assert evaluated.endswith("(256 test images, float32)\n")
