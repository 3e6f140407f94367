"""Sweeps on Slurm: the script (run by bash, Slurm's commands faked), and what is refused."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest

from experiments.sweep import slurm, training
from experiments.sweep.__main__ import main as sweep_main
from jaxcifar import options, train
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.run import signs
from jaxcifar.signals import exit_code, interruptible
from tests.forked import Forked
from tests.sweeps import CIFAR, HOST, OPTIONS, pretend, start_sweep, sweep_command

pytestmark = pytest.mark.usefixtures("one_device")

FAKES = {
    "sbatch": 'echo "77;here"',
    # All of the jobs are another user's.
    "squeue": '[[ " $* " == *" --me "* || " $* " != *" --clusters=here "* ]] || cat "$FAKES/queue"',
    "scontrol": """\
case $1 in
    requeue) echo "$@" >> "$FAKES/calls" ;;
    --oneliner) cat "$FAKES/job" ;;
esac""",
    # Sends a signal to the task, once its run has some epochs.
    "srun": """\
while [[ $1 == --* ]]; do shift; done
"$@" &
if [ "$SIGNAL" ]; then
    until [ "$(cat "$METRICS" 2> /dev/null | wc -l)" -ge "$EPOCHS" ]; do
        kill -0 $! || break
        sleep 0.02
    done
    kill -$SIGNAL $!
fi
wait $!""",
}


# What `scontrol --oneliner show job` says, in part.
JOB = (
    "JobId=78 ArrayJobId=77 ArrayTaskId=1 JobName=jaxcifar JobState={state} Reason=None Requeue=1 "
    "PreemptEligibleTime=2026-11-25T15:50:36 PreemptTime={preempted} SuspendTime=None\n"
)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A folder with Slurm's commands, in front of all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").touch()
    (folder / "job").write_text(JOB.format(state="RUNNING", preempted="None"))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("FAKES", str(folder))
    return folder


def states(out, what, capsys):
    """What --status says of the runs."""
    capsys.readouterr()
    assert start_sweep(out, *what, "--status") == 0
    return [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[2:]]


# --- the script -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_is_requeued_before_its_time_limit_and_its_run_is_the_serial_one(
    fakes, tmp_path, monkeypatch, capsys
):
    what = ("vgg2", "0-1", "--config.train.epochs=9")
    command, environment = sweep_command(tmp_path / "serial", "--rows=vgg2", "--seeds=1", what[2])
    serial = Forked(sweep_main, command[3:], environment=environment, cwd=tmp_path)
    serial.communicate(timeout=300)
    assert serial.returncode == 0
    out = tmp_path / "it's an array"
    assert start_sweep(out, *what, "--slurm", "--tasks=2", "--time=1:00:00") == 0
    metrics = out / "vgg2" / "seed1" / "metrics.jsonl"

    def execute(signum="", epochs=0):
        task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "78"}
        faked = {"SIGNAL": signum, "EPOCHS": str(epochs), "METRICS": str(metrics)}
        script = ["bash", str(out / "slurm" / "sweep.sh")]
        return subprocess.run(script, env=environment | task | faked, cwd=tmp_path).returncode

    calls = fakes / "calls"
    assert execute("USR1", 1) == training.AGAIN
    assert calls.read_text() == "requeue 77_1\n"
    assert not (out / "vgg2" / "seed1" / "result.json").exists()

    (fakes / "queue").write_text(
        "77|0|PENDING|Resources\n77|1|PENDING|BeginTime\n5|1|RUNNING|None\n"
    )
    assert states(out, what, capsys) == ["waiting: Resources", "waiting: BeginTime"]

    assert execute() == 0
    assert calls.read_text() == "requeue 77_1\n"
    assert not (out / "vgg2" / "seed0").exists()  # of the other task
    ours = read_lines(metrics)
    serial = read_lines(tmp_path / "serial" / "vgg2" / "seed1" / "metrics.jsonl")
    for one, other in zip(ours, serial, strict=True):
        for name in ("train_loss", "val_loss", "val_accuracy"):
            assert one[name] == other[name]


@pytest.mark.parametrize(
    ("code", "state", "preempted", "requeued", "restarts"),
    [
        (training.AGAIN, "RUNNING", "None", True, "9"),  # saved before the time limit
        (138, "RUNNING", "None", False, ""),  # so soon that nothing was saved
        (training.BROKE, "RUNNING", "None", True, ""),
        (training.BROKE, "RUNNING", "None", True, "2"),
        (training.BROKE, "RUNNING", "None", False, "3"),
        *((died, "RUNNING", "None", True, "2") for died in (134, 135, 136, 137, 139, 253)),
        (139, "RUNNING", "None", False, "3"),
        (137, "CANCELLED", "None", False, ""),  # it took too long to save
        (143, "RUNNING", "2026-11-25T15:51:09", True, ""),  # it ended within its grace time
        (138, "RUNNING", "2026-11-25T15:51:09", True, ""),  # and had done no step before
        (143, "RUNNING", "None", False, ""),
        (143, "CANCELLED", "2026-11-25T15:51:09", False, ""),
        (143, "PENDING", "2026-11-25T15:51:09", False, ""),  # Slurm has requeued it
        (1, "RUNNING", "2026-11-25T15:51:09", False, ""),
    ],
)
def test_what_the_script_requeues(code, state, preempted, requeued, restarts, fakes, tmp_path):
    (fakes / "job").write_text(JOB.format(state=state, preempted=preempted))
    (fakes / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    text = slurm.script(["sweep"], tmp_path, 2, "1:00:00")
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "78"}
    task["SLURM_RESTART_COUNT"] = restarts
    done = subprocess.run(["bash"], input=text, text=True, env=os.environ | task)
    assert done.returncode == code
    calls = fakes / "calls"
    assert (calls.read_text() if calls.exists() else "") == "requeue 77_1\n" * requeued


@pytest.mark.parametrize(
    ("gpus", "given", "expected"), [("", "", ""), ("2", "", "cuda"), ("2", "cpu", "cpu")]
)
def test_a_task_with_gpus_does_not_go_on_with_the_cpu(gpus, given, expected, fakes, tmp_path):
    if pathlib.Path("/dev/kfd").exists():
        pytest.skip("this machine's GPUs are AMD's, which the script leaves to JAX")
    # Without it srun would do as sbatch was told, which may have been --export=NONE.
    (fakes / "srun").write_text('#!/bin/bash\n[ $1 = --export=ALL ] && echo "$JAX_PLATFORMS"\n')
    text = slurm.script(["sweep"], tmp_path, 2, "1:00:00")
    environment = os.environ | {"SLURM_GPUS_ON_NODE": gpus, "JAX_PLATFORMS": given}
    done = subprocess.run(["bash"], input=text, text=True, env=environment, capture_output=True)
    assert done.stdout == f"{expected}\n"


def test_tasks_keep_to_the_files_that_a_pattern_found(tmp_path, capsys):
    """A file that is added while they wait is of another sweep."""
    for name in ("a", "b"):
        path = tmp_path / f"{name}.py"
        path.write_text((options.CONFIGS / "row1.py").read_text())
    arguments = [f"--configs={tmp_path}/*.py", f"--out={tmp_path}/out", *OPTIONS]
    assert sweep_main([*arguments, "--slurm", "--time=1:00:00", "--print"]) == 0
    assert f" --configs={tmp_path}/a.py,{tmp_path}/b.py " in capsys.readouterr().out


def test_no_requeue_without_progress(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise Interrupted(signal.SIGUSR1, "Stopped.")

    monkeypatch.setattr(train, "train_and_evaluate", stopped)
    assert start_sweep(tmp_path / "out", "vgg2", "0") == 128 + signal.SIGUSR1
    assert "Stopped. No step was done before that. Allow more" in capsys.readouterr().err


def train_none(arguments, progressed, begun):
    """A sweep that gets no further than the compilation of its first run."""

    def compile_one(config, workdir, hooks):
        hooks[0].locked(workdir)
        hooks[0].progressed |= progressed
        begun.touch()
        time.sleep(600)  # which goes on after a handler of Python, as a compilation does

    train.train_and_evaluate = compile_one
    return sweep_main(arguments)


@pytest.mark.parametrize(
    ("signum", "progressed", "code"),
    [
        (signal.SIGUSR1, False, 128 + signal.SIGUSR1),
        (signal.SIGUSR1, True, training.AGAIN),
        (signal.SIGTERM, True, 128 + signal.SIGTERM),
    ],
)
def test_a_signal_during_a_compilation_is_answered_at_once(tmp_path, signum, progressed, code):
    begun, environment = tmp_path / "begun", sweep_command(tmp_path)[1]
    workdir = tmp_path / "out" / "vgg2" / "seed0"
    workdir.mkdir(parents=True)
    arguments = ["--rows=vgg2", f"--out={tmp_path / 'out'}", *OPTIONS]
    told = (train_none, arguments, progressed, begun)
    process = Forked(*told, environment=environment, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert ("Allow more time" in error) == (code == 128 + signal.SIGUSR1)
    assert not (workdir / ".running").exists()


@pytest.mark.parametrize(
    ("signum", "progressed", "code"),
    [
        (signal.SIGUSR1, False, 128 + signal.SIGUSR1),
        (signal.SIGUSR1, True, training.AGAIN),
        (signal.SIGTERM, True, 128 + signal.SIGTERM),
    ],
)
def test_a_signal_that_no_run_answers_is_not_lost(signum, progressed, code, tmp_path, monkeypatch):
    trained = []

    def train_one(config, workdir, hooks):
        trained.append(workdir)
        hooks[0].progressed |= progressed
        with interruptible():  # the last moments of a run
            os.kill(os.getpid(), signum)
        pretend(config, workdir)

    monkeypatch.setattr(train, "train_and_evaluate", train_one)
    before = signal.signal(signum, lambda *_: pytest.fail("nobody took the signal"))
    try:
        assert start_sweep(tmp_path / "out", "vgg2", "0-2") == code
    finally:
        signal.signal(signum, before)
    assert len(trained) == 1


def test_what_the_queue_says(fakes, tmp_path, capsys):
    what, out = ("vgg2", "0-3"), tmp_path / "out"
    array = (*what, "--slurm", "--tasks=4", "--time=1:00:00")
    assert start_sweep(out, *array) == 0
    assert "submitted as job 77, 4 tasks." in capsys.readouterr().out
    # As Slurm 22.05 prints it, %r of a job that waits for nothing in particular included.
    lines = ["0|RUNNING|None", "1|PENDING|None", "2|PENDING|Priority", "3|COMPLETING|None"]
    (fakes / "queue").write_text("".join(f"77|{line}\n" for line in lines))
    turn = "waiting: for its turn in a task that runs"
    assert states(out, what, capsys) == [turn, "waiting: pending", "waiting: Priority", turn]
    parts = {"shards": [[f"vgg2/seed{seed}"] for seed in range(4)]}  # as the first task keeps them
    plan = json.loads((out / "sweep.json").read_text())
    (out / "sweep.json").write_text(json.dumps(plan | parts))
    assert states(out, ("vgg2", "2"), capsys) == ["waiting: Priority"]
    (out / "sweep.json").write_text(json.dumps(plan))
    assert start_sweep(out, *array) == 2
    assert "already in the queue: 0, 1, 2, 3." in capsys.readouterr().err
    assert (out / "slurm" / "jobs").read_text() == "77;here\n"
    # One has ended by itself.
    (fakes / "queue").write_text("".join(f"77|{line}\n" for line in lines[:3]))
    assert start_sweep(out, *array) == 2
    again = capsys.readouterr().err.rstrip().partition("To start only what is not in it: ")[2]
    assert "--array=3 " in again
    subprocess.run(["bash", "-c", again], check=True)
    assert (out / "slurm" / "jobs").read_text() == "77;here\n77;here\n"
    script = out / "slurm" / "sweep.sh"
    for option in ("--array=0-3%2", "-a 0-3%2"):
        script.write_text(script.read_text() + f"#SBATCH --gpus-per-node=1 {option} --mem=0\n")
        assert "--array=1,3%2 " in slurm.again([1, 3], script)
    (fakes / "queue").write_text("")
    (out / "vgg2" / "seed1").mkdir(parents=True)
    with signs.shown(out / "vgg2" / "seed1"):
        assert start_sweep(out, *array) == 2
    error = capsys.readouterr().err
    assert f"1 of these runs are being trained, such as vgg2, seed 1, on {HOST}" in error
    (fakes / "squeue").write_text("#!/bin/bash\necho 'Unable to contact controller' >&2\nexit 1\n")
    assert states(out, what, capsys) == ["new"] * 4
    # Without an answer a second array might train the same runs beside the first.
    assert start_sweep(out, *array) == 2
    assert "squeue does not answer (Unable to contact controller)" in capsys.readouterr().err
    assert (out / "slurm" / "jobs").read_text() == "77;here\n77;here\n"


def test_nothing_is_submitted_without_images(fakes, no_images, tmp_path, capsys):
    options = (*CIFAR, "--slurm", "--time=1:00:00")
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith("jaxcifar: There are no images here. If only the nodes have the images")
    assert not (tmp_path / "out").exists()
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", *options, "--print") == 0


def test_a_dry_run_submits_nothing(fakes, tmp_path, capsys):
    options = ("--slurm", "--time=1:00:00", "--dry-run")
    assert start_sweep(tmp_path / "out", "vgg2", "0-3", *options) == 2
    assert "Give --print" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_script_is_shown_and_nothing_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    options = ("--slurm", "--time=1-12", "--sbatch=--gpus-per-node=1 -p gpu", "--print")
    options += ("--workers=64",)  # of GPUs that this machine lacks
    assert start_sweep(tmp_path / "out", "vgg2", "0-2", *options) == 0
    text = capsys.readouterr().out
    assert text.startswith("#!/bin/bash\n# To submit this by hand")
    lines = text.splitlines()
    by_hand = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    assert f"mkdir -p {tmp_path}/out/slurm\n" in by_hand
    given = ("--array=0-2", "--time=1-12", "--gpus-per-node=1 -p gpu")
    for line in (*given, "--signal=USR1@180", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in text
    (command,) = (line for line in lines if line.endswith('--shard="$SLURM_ARRAY_TASK_ID/3"'))
    assert "--workers=64" in shlex.split(command)
    python = shlex.split(command)[:2]
    (tmp_path / "jaxcifar").mkdir()  # in a folder where `python -m jaxcifar` would find this
    subprocess.run([*python, "--version"], cwd=tmp_path, check=True)
    assert not (tmp_path / "out").exists()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    # As it says, with an sbatch of a federation.
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho '78;there'\n")
    (tmp_path / "sbatch").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", by_hand], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "out" / "slurm" / "jobs").read_text() == "78;there\n"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("1-0", 1440), ("1-1:30", 1530)],
)
def test_times_as_slurm_writes_them(text, minutes):
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize("name", ['q"uote', "line\nend", r"back\slash"])
def test_folders_that_a_script_cannot_name(tmp_path, name):
    with pytest.raises(UserError, match="Slurm's script cannot name the folder"):
        slurm.script(["true"], tmp_path / name, 2, "60")


def test_a_percent_sign_in_a_folder_is_not_slurms(tmp_path):
    text = slurm.script(["true"], tmp_path / "100%j", 2, "60")
    assert f'#SBATCH --output="{tmp_path}/100%%j/slurm/%A_%a.out"' in text


def test_times_that_slurm_does_not_write():
    for text in ("", "4h", "1:2:3:4", "-5", "infinite"):
        with pytest.raises(UserError, match="--time"):
            slurm.minutes(text)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard=2/2"], "from 0 to N − 1"),
        (["--shard=0/0"], "from 0 to N − 1"),
        (["--shard=1"], "give i/N"),
        (["--shard="], "give i/N"),
        (["--shard=-1/2"], "give i/N"),
        (["--shard=0/3"], "only 2 runs"),
        (["--shard=0/2", "--slurm"], "cannot be combined"),
        (["--workers=2", "--status"], "cannot be combined"),
        (["--slurm", "--time=1:00:00", "--workers=two"], "a number, or auto"),
        (["--slurm", "--time=1:00:00", "--workers="], "a number, or auto"),
        (["--workers="], "a number, or auto"),
        (["--workers=", "--status"], "cannot be combined"),
        (["--slurm", "--status"], "cannot be combined"),
        (["--tasks=2"], "is for --slurm"),
        (["--tasks=0"], "is for --slurm"),
        (["--slurm", "--time=1:00:00"], "no sbatch"),
        (["--slurm"], "needs --time"),
        (["--slurm", "--time=0:04:00"], "5 minutes or more"),
        (["--slurm", "--time=1:00:00", "--tasks=3"], "only 2 runs"),
        (["--slurm", "--time=1:00:00", "--tasks=0"], "1 or more"),
        (
            ["--slurm", "--time=1:00:00", "--config.train.steps_per_call=2"],
            "vgg2: config.train.steps_per_call is 2",
        ),
    ],
)
def test_what_cannot_be_starts_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert start_sweep(tmp_path / "out", "vgg2", "0-1", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_script_of_another_plan_is_refused(fakes, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(train, "train_and_evaluate", lambda _, w, **__: trained.append(w))
    out, array = tmp_path / "out", ("--slurm", "--time=1:00:00", "--tasks=2")
    assert start_sweep(out, "vgg2", "0-3", *array) == 0
    for rows, seeds, option in (
        ("vgg2", "0-3", "--shard=0/3"),
        ("vgg2", "0-4", "--shard=0/2"),
        ("vgg6", "0-3", "--shard=0/2"),
    ):
        capsys.readouterr()
        assert start_sweep(out, rows, seeds, option) == 2
        assert "another plan" in capsys.readouterr().err
    assert start_sweep(out, "vgg2", "0-3", *array[:2]) == 2
    assert start_sweep(out, "vgg2", "0-3", *array[:2], "--print") == 2
    assert not capsys.readouterr().out
    assert not trained
    assert start_sweep(out, "vgg2", "0-3", *array) == 0
    assert start_sweep(out, "vgg2", "0-3", "--shard=1/2") == 0
    assert len(trained) == 2
    assert (out / "slurm" / "jobs").read_text() == "77;here\n77;here\n"


def test_a_ctrl_c_while_sbatch_answers_loses_no_job(fakes, tmp_path, capsys):
    """The same command would submit it again."""
    # Ctrl-C signals all of the terminal's processes.
    (fakes / "sbatch").write_text("#!/bin/bash\nkill -INT $PPID; sleep 0.5; echo 77\n")
    array = ("--slurm", "--time=1:00:00", "--tasks=2")
    assert start_sweep(tmp_path / "out", "vgg2", "0-3", *array) == 130
    assert (tmp_path / "out" / "slurm" / "jobs").read_text() == "77\n"
    assert "submitted, as job 77. To cancel it: scancel 77" in capsys.readouterr().err


def test_what_sbatch_says_is_passed_on(fakes, tmp_path, capsys):
    (fakes / "sbatch").write_text("#!/bin/bash\necho 'no such partition' >&2\nexit 1\n")
    code = exit_code(
        lambda: sweep_main(
            ["--rows=vgg2", f"--out={tmp_path / 'out'}", *OPTIONS, "--slurm", "--time=1:00:00"]
        )
    )
    assert code == 2
    assert "no such partition" in capsys.readouterr().err
    assert not (tmp_path / "out" / "slurm" / "jobs").exists()
    assert not (tmp_path / "out" / "sweep.json").exists()  # it may be another plan next time
