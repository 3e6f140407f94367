"""Whole runs: what they leave, resuming, refusing, and that they compute what they say."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data, programs, restore, train
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.run import folder, plots, signs
from jaxcifar.run.checkpoint import Checkpointer, Saved
from jaxcifar.run.folder import RunFolder
from jaxcifar.signals import exit_code
from tests.forked import Forked, environment_of
from tests.tiny import SignalAt, Slow, Spoil, Watch, mesh, run, state_of, tiny, without_times

ROOT = pathlib.Path(__file__).parent.parent


def content(workdir):
    """What no two workdirs of a run may differ in, to the bit."""
    records = [
        without_times(read_lines(workdir / f"{name}.jsonl")) for name in ("metrics", "steps")
    ]
    return records, jax.tree.map(np.ndarray.tobytes, state_of(workdir))


@pytest.fixture(scope="module")
def whole(finished):
    """The content of a run of `tiny()` that was never interrupted."""
    return content(finished[0])


# --- what a run leaves ------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    workdir, result = finished
    left = {path.name for path in workdir.iterdir()}
    logs = {"metrics.jsonl", "steps.jsonl", "history.png", "tensorboard"}
    assert left >= logs | {"config.json", "result.json", "checkpoints"}
    records = read_lines(workdir / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["step"] for record in records] == [3, 6]
    trained, validated = {"train_loss", "train_ce", "train_accuracy"}, {"val_loss", "val_accuracy"}
    others = {"epoch", "step", "learning_rate", "images_per_second", "seconds"}
    assert set(records[0]) == trained | validated | others
    rates = [record["learning_rate"] for record in records]
    assert rates == pytest.approx([1e-3, 0.5e-3])  # cosine over two epochs
    for record, steps in zip(records, read_lines(workdir / "steps.jsonl"), strict=True):
        assert record["train_loss"] == pytest.approx(np.mean(steps["loss"]), rel=1e-5)
        assert len(steps["loss"]) == 3
        assert steps["learning_rate"] == pytest.approx([record["learning_rate"]] * 3, rel=1e-5)
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["model"]["width"] == 0.05
    environment = config["environment"]
    assert set(environment) >= {"jax", "flax", "optax", "jaxcifar", "commit", "device"}
    in_force = [environment[name] for name in ("dtype", "steps_per_call", "remat")]
    assert in_force == ["float32", 1, False]  # not "auto", 0, "auto"
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["data"]["train"]["images"] == 100
    assert result["last"] == records[-1]
    assert result["best"] in records
    variables = state_of(workdir)
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert next((workdir / "tensorboard").iterdir()).stat().st_size > 500
    assert (workdir / "history.png").read_bytes()[:4] == b"\x89PNG"


class Pictures(Hook):
    """Keeps what history.png holds after each epoch."""

    def __init__(self):
        self.seen = []

    def after_epoch(self, run, record):
        path = run.workdir / "history.png"
        self.seen.append(path.read_bytes() if path.is_file() else None)


@pytest.mark.parametrize(
    ("official", "said"),
    [
        ({"train": True, "test": True}, "here: verified as the official files"),
        ({"train": True, "test": False}, "here, validation images: not verified as the official"),
        ({"train": False, "test": False}, "here: not verified as the official files"),
        ({"train": None, "test": None}, None),
    ],
)
def test_a_run_says_which_images_are_official(tmp_path, monkeypatch, capsys, official, said):
    load = data.load

    def known(*arguments, **options):
        images = load(*arguments, **options)
        facts = {"official": official[images.provenance["split"]], "source": "here"}
        return dataclasses.replace(images, provenance=images.provenance | facts)

    monkeypatch.setattr(data, "load", known)
    with pytest.raises(Interrupted):
        train.train_and_evaluate(tiny(), tmp_path, hooks=[SignalAt(0)], mesh=mesh(1))
    lines = [line for line in capsys.readouterr().out.splitlines() if "verified" in line]
    assert [line.startswith(said) for line in lines] == ([True] if said else [])


@pytest.mark.slow
def test_the_picture_is_kept_up_to_date_while_a_run_trains(tmp_path, monkeypatch):
    pictures = Pictures()
    run(tiny(), tmp_path / "short", pictures)
    assert pictures.seen == [None, None]  # it is not time for one
    monkeypatch.setattr(RunFolder, "SECONDS_BETWEEN_PICTURES", 0.0)
    run(tiny(), tmp_path / "long", pictures := Pictures(), picture=True)
    first, second = pictures.seen
    assert first.startswith(b"\x89PNG")
    assert first != second == (tmp_path / "long" / "history.png").read_bytes()


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_harms_no_run(tmp_path, monkeypatch, whole, capfd):
    monkeypatch.setattr(RunFolder, "SECONDS_BETWEEN_PICTURES", 0.0)
    (tmp_path / "history.png").mkdir()
    result = run(tiny(), tmp_path, picture=True)
    assert content(tmp_path) == whole
    # While it trains, it is tried once; and once more at the end.
    assert capfd.readouterr().err.count("history.png cannot be drawn (IsADirectoryError") == 2
    assert run(tiny(), tmp_path) == result


def test_running_again_returns_the_result(finished):
    workdir, result = finished
    watch = Watch()
    assert run(tiny(), workdir, watch) == result
    assert watch.calls == []  # nothing is trained


# --- stopping and resuming --------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 3, 5])  # at the start, in an epoch, between, in the second
def test_stopped_and_resumed_is_the_same_run(whole, tmp_path, step):
    with pytest.raises(Interrupted, match=f"by SIGTERM and saved at step {step} in") as stopped:
        run(tiny(), tmp_path, SignalAt(step))
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # put back
    assert not (tmp_path / "result.json").exists()
    watch = Watch()
    run(tiny(), tmp_path, watch)
    assert watch.steps == list(range(step, 6))  # nothing is trained twice
    assert content(tmp_path) == whole


def test_a_signal_after_the_last_evaluation_changes_nothing(whole, tmp_path):
    """Nothing is left to stop: the last checkpoint is written, and the result."""
    run(tiny(), tmp_path, SignalAt(6, where="after_epoch"))
    assert content(tmp_path) == whole


@pytest.mark.slow
def test_stopped_twice_between_two_epochs(whole, tmp_path):
    """The state is saved already, and evaluated: there is nothing to write."""
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(tiny(), tmp_path, SignalAt(3))
        assert Checkpointer(tmp_path / "checkpoints").all() == [Saved(3, evaluated=True)]
    run(tiny(), tmp_path)
    assert content(tmp_path) == whole


@pytest.mark.slow
def test_stopped_while_evaluating(whole, tmp_path):
    with pytest.raises(Interrupted, match="saved at step 3"):
        run(tiny(), tmp_path, SignalAt(3, signum=signal.SIGINT, where="before_evaluation"))
    assert not read_lines(tmp_path / "metrics.jsonl")
    watch = Watch()
    run(tiny(), tmp_path, watch)
    assert watch.calls[:2] == [("start", 3), ("before_evaluation", 3)]
    assert content(tmp_path) == whole


def run_slowly(workdir):
    run(tiny(), workdir, Slow())


@pytest.mark.slow
def test_killed_and_resumed(whole, tmp_path):
    """SIGKILL, when the first epoch is on disk: nothing is lost, nothing appears twice."""
    process = Forked(run_slowly, tmp_path, environment=environment_of(devices=8), cwd=ROOT)
    deadline = time.monotonic() + 120
    while not read_lines(tmp_path / "metrics.jsonl"):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    run(tiny(), tmp_path)
    assert content(tmp_path) == whole


@pytest.mark.slow
def test_checkpoints_within_an_epoch(tmp_path, monkeypatch):
    saved = []
    original = Checkpointer.save

    def record(self, step, state, progress, val_accuracy):
        saved.append((step, val_accuracy is not None, len(progress["steps"].get("loss", []))))
        original(self, step, state, progress, val_accuracy)

    monkeypatch.setattr(Checkpointer, "save", record)
    run(tiny(train__checkpoint_minutes=1e-9), tmp_path)
    assert saved == [
        *[(1, False, 1), (2, False, 2), (3, False, 3), (3, True, 0)],
        *[(4, False, 1), (5, False, 2), (6, False, 3), (6, True, 0)],
    ]


class Minute(Hook):
    """Moves a clock by a minute before each step."""

    reads_state = False  # else a step would take no time

    def __init__(self, clock):
        self.clock = clock

    def before_call(self, run):
        self.clock.now += 60.0


@pytest.mark.slow
def test_a_checkpoint_is_due_so_many_minutes_after_the_one_before(tmp_path, monkeypatch):
    saved, save, clock = [], Checkpointer.save, types.SimpleNamespace(now=0.0)
    for module in (train, folder):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(
        Checkpointer,
        "save",
        lambda self, step, *more: saved.append(step) or save(self, step, *more),
    )
    run(tiny(train__checkpoint_minutes=1.5), tmp_path, Minute(clock))
    assert saved == [2, 3, 5, 6]


class Break(Hook):
    """Fails after 5 steps, when the checkpoint of a step before it is written."""

    def __init__(self, step):
        self.step = step

    def before_call(self, run):
        if run.step == 5:
            self.wait(run)
            raise ValueError("broken on purpose")

    def wait(self, run):
        for _ in range(300):
            reader = Checkpointer(run.workdir / "checkpoints")
            if reader.last() and reader.last().step == self.step:
                return
            time.sleep(0.1)
        raise AssertionError(f"no checkpoint of step {self.step}")


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "step"), [(1e-9, 5), (10.0, 3)])
def test_a_run_that_breaks_goes_on_from_its_last_checkpoint(whole, tmp_path, minutes, step):
    """`train.checkpoint_minutes` decides how much of an epoch is lost."""
    config = tiny(train__checkpoint_minutes=minutes)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        run(config, tmp_path, Break(step))
    watch = Watch()
    run(config, tmp_path, watch)
    assert watch.steps == list(range(step, 6))
    assert content(tmp_path) == whole


# --- refusing ---------------------------------------------------------------------------------


def test_other_images_are_refused(stopped, monkeypatch):
    real = data.load
    monkeypatch.setattr(
        data, "load", lambda *a, **k: real(*a, **k).take(slice(None, None, -1), "turned around")
    )
    with pytest.raises(UserError, match="other train images"):
        run(tiny(), stopped)


def test_batch_larger_than_the_training_set(tmp_path):
    with pytest.raises(UserError, match="batch_size is 128, more than the 100"):
        run(tiny(train__batch_size=128), tmp_path)
    with pytest.raises(UserError, match="there are 1,024 training"):
        run(tiny(train__limit_train_images=2000), tmp_path)
    with pytest.raises(UserError, match="one of 1, 3, or 0"):
        run(tiny(train__steps_per_call=2), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_what_the_number_of_images_allows_is_checked_before_any_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_splits", lambda *_, **__: pytest.fail("they are read"))
    of_cifar = {"data__name": "cifar10", "train__batch_size": 256, "train__eval_batch_size": 512}
    for fields, message in (
        ({"train__steps_per_call": 50, "train__limit_train_images": 0}, "divide the 195 steps"),
        ({"train__limit_train_images": 50_001}, "there are 50,000 training"),
        ({"train__limit_train_images": 200}, "batch_size is 256, more than the 200"),
    ):
        with pytest.raises(UserError, match=message):
            run(tiny(**of_cifar | fields), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tiny(), tmp_path / "file" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [0, 3])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, steps_per_call):
    # Before the second step of the second epoch, or before the call that contains it.
    step = 4 if steps_per_call == 0 else 3
    with pytest.raises(UserError, match="is not finite") as error:
        run(tiny(train__steps_per_call=steps_per_call), tmp_path, Spoil(step))
    message = str(error.value)
    assert f"training loss of step {step + 1} is not finite (epoch 2)" in message
    assert "last good checkpoint, of step 3," in message
    assert "smaller optim.learning_rate than 0.001" in message
    losses = [float(loss) for loss in re.search(r"last steps: (.*)\n", message)[1].split(", ")]
    assert np.isfinite(losses[:-1]).all()
    assert len(losses) == step + 1 - 3
    assert not np.isfinite(losses[-1])
    assert signs.failure(tmp_path) == message
    assert Checkpointer(tmp_path / "checkpoints").last() == Saved(3, evaluated=True)
    assert [line["epoch"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="validation loss after epoch 1 is not finite") as error:
        run(tiny(), tmp_path, Spoil(3, where="before_evaluation"))
    assert "There is no earlier checkpoint." in str(error.value)
    assert Checkpointer(tmp_path / "checkpoints").last() is None
    assert not read_lines(tmp_path / "metrics.jsonl")


@pytest.mark.slow
def test_a_run_that_really_diverges(tmp_path):
    config = tiny(
        model__name="vgg_a", optim__name="sgd", optim__learning_rate=100.0, train__epochs=20
    )
    with pytest.raises(UserError, match="is not finite"):
        run(config, tmp_path)


# --- that it computes what it says ------------------------------------------------------------


class Wait(Hook):
    """Moves a clock before each step and each evaluation: neither is training."""

    def __init__(self, clock):
        self.clock = clock

    def before_call(self, run):
        self.clock.now += 5.0

    def before_evaluation(self, run):
        self.clock.now += 7.0


@pytest.mark.slow
@pytest.mark.parametrize("saving", [False, True])
def test_the_seconds_of_an_epoch_are_those_of_its_steps(tmp_path, monkeypatch, saving):
    """By a clock that each step moves by 2, stopped and resumed or not; saving takes 11."""
    clock = types.SimpleNamespace(now=time.monotonic() + 1e6 if saving else 0.0)
    original, save = programs.train, Checkpointer.save

    @functools.lru_cache
    def slow(task, steps):
        def step(*arguments):
            clock.now += 2.0
            return original(task, steps)(*arguments)

        return step

    def saved(self, *arguments):
        clock.now += 11.0
        save(self, *arguments)

    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(programs, "train", slow)
    monkeypatch.setattr(Checkpointer, "save", saved)
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, Wait(clock), SignalAt(2))
    run(tiny(), tmp_path, Wait(clock))
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [record["seconds"] for record in records] == pytest.approx([6.0, 6.0])
    assert [record["images_per_second"] for record in records] == pytest.approx([16.0, 16.0])


def test_the_training_time_of_a_run_is_that_of_its_epochs(finished):
    workdir, result = finished
    seconds = [record["seconds"] for record in read_lines(workdir / "metrics.jsonl")]
    assert result["train_seconds"] == pytest.approx(sum(seconds))


@pytest.mark.slow
def test_holdout_uses_the_test_set_once(tmp_path, monkeypatch):
    evaluated = []
    original = programs.evaluate

    def record(inference, variables, images, labels, **options):
        evaluated.append(len(labels))
        return original(inference, variables, images, labels, **options)

    monkeypatch.setattr(programs, "evaluate", record)
    result = run(tiny(data__protocol="holdout", train__ema_decay=0.5), tmp_path)
    held = len(data.split_holdout(data.load("synthetic", "train"))[1])
    assert evaluated == [held] * 4 + [256]  # in each epoch the weights and their average
    found = restore.evaluate_workdir(tmp_path, "best")  # of the average
    assert result["test"]["accuracy"] == found["accuracy"]
    assert result["test"]["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert result["data"]["validation"]["subset"] == "held-out part"


@pytest.mark.slow
def test_objective_contains_the_penalty_and_cross_entropy_does_not(finished, tmp_path):
    run(tiny(optim__l1=1e-3), tmp_path)
    folders = (tmp_path, finished[0])
    first, plain = (read_lines(folder / "steps.jsonl")[0] for folder in folders)
    record, plain_record = (read_lines(folder / "metrics.jsonl")[0] for folder in folders)
    assert record["train_loss"] > record["train_ce"] + 0.01
    # The same as without, to the first step's cross-entropy: the penalty is of the parameters.
    assert first["ce"][0] == plain["ce"][0]
    assert plain_record["train_loss"] == plain_record["train_ce"]


def test_the_host_reads_the_metrics_of_steps_once_an_epoch(tmp_path, monkeypatch):
    compiled, done, read = programs.train, [], []

    class Watched:
        """A metric on the device, which notes when the host reads it."""

        def __init__(self, value):
            self.value = value

        def __array__(self, *_, **__):
            read.append(len(done))
            return np.asarray(self.value)

        def block_until_ready(self):
            self.value.block_until_ready()
            return self

    @functools.lru_cache
    def watched(task, steps):
        def call(*arguments):
            state, metrics = compiled(task, steps)(*arguments)
            done.append(steps)
            return state, metrics | {"loss": Watched(metrics["loss"])}

        return call

    fetched, get = [], jax.device_get
    monkeypatch.setattr(programs, "train", watched)
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or get(x))
    run(tiny(), tmp_path)
    assert read == [3, 3, 3, 6, 6, 6]
    # The sums of an evaluation's three batches are read at once.
    sums = [x for x in fetched if isinstance(x, list) and x and "count" in x[0]]
    assert [len(batches) for batches in sums] == [3, 3]


def end_while_the_result_is_written(workdir):
    def draw(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    plots.plot_history = draw
    return exit_code(lambda: run(tiny(), workdir, picture=True) and 0)


@pytest.mark.slow
def test_a_signal_while_the_result_is_written_ends_the_run_and_it_is_completed(tmp_path):
    workdir = tmp_path / "run"
    told = {"environment": environment_of(devices=8), "cwd": ROOT}
    process = Forked(end_while_the_result_is_written, workdir, **told)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Nothing that was saved is lost" in said
    assert not (workdir / "result.json").exists()
    watch = Watch()
    run(tiny(), workdir, watch)
    assert watch.steps == []
    assert (workdir / "result.json").exists()


@pytest.mark.slow
def test_what_else_a_step_measures_is_logged(tmp_path, monkeypatch):
    """The mean of an epoch's steps, and the sum over the validation images divided by them."""

    def with_step(*args, made=programs.make_train_step, **options):
        def step(state, images, labels):
            after, metrics = made(*args, **options)(state, images, labels)
            return after, metrics | {"number": after.step.astype(np.float32)}

        return step

    def with_label(*args, made=programs.make_eval_step):
        def step(variables, images, labels, mask):
            sums = made(*args)(variables, images, labels, mask)
            return sums | {"label": jnp.sum(labels, where=mask)}

        return step

    monkeypatch.setattr(programs, "make_train_step", with_step)
    monkeypatch.setattr(programs, "make_eval_step", with_label)
    # Sizes that no other test compiles: the programs of equal tasks are kept.
    run(tiny(train__batch_size=33, train__eval_batch_size=99), tmp_path)
    assert [line["number"] for line in read_lines(tmp_path / "steps.jsonl")] == [
        [1, 2, 3],
        [4, 5, 6],
    ]
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [record["number"] for record in records] == [2, 5]
    expected = data.load("synthetic", "test").labels.mean()
    assert [record["val_label"] for record in records] == [pytest.approx(expected)] * 2


@pytest.mark.slow
def test_norms_are_logged_when_asked_for(finished, tmp_path):
    """Also from the middle of a run that began without: in the epochs that have all of them."""
    config = tiny(train__epochs=3)
    with pytest.raises(Interrupted):
        run(config, tmp_path, SignalAt(1))
    config.train.log_norms = True
    with pytest.raises(Interrupted):
        run(config, tmp_path, SignalAt(7))
    config.train.log_norms = False
    run(config, tmp_path)
    lines, plain = (read_lines(folder / "steps.jsonl") for folder in (tmp_path, finished[0]))
    norms = {"gradient_norm", "update_norm"}
    assert [line.keys() - plain[0].keys() for line in lines] == [set(), norms, set()]
    assert {len(values) for values in lines[1].values() if isinstance(values, list)} == {3}
    for line in lines:
        assert len(line["loss"]) == len(line["learning_rate"]) == 3
    np.testing.assert_allclose(lines[0]["loss"], plain[0]["loss"], rtol=1e-5)
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [norms <= record.keys() for record in records] == [False, True, False]
    for name in norms:
        assert records[1][name] == pytest.approx(np.mean(lines[1][name]), rel=1e-5)
        assert min(lines[1][name]) > 0


@pytest.mark.slow
def test_one_and_eight_devices_give_the_same_losses(finished, tmp_path):
    run(tiny(train__epochs=1), tmp_path, devices=8)
    ours, theirs = (read_lines(f / "steps.jsonl")[0] for f in (tmp_path, finished[0]))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.mark.slow
def test_resumed_with_another_number_of_steps_a_call(finished, tmp_path):
    """Stopped at step 2 of 3 by one step a call, gone on by three."""
    before, after = Watch(), Watch()
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, before, SignalAt(2))
    run(tiny(train__steps_per_call=3), tmp_path, after)
    assert (before.steps, after.steps) == ([0, 1, 2], [2, 3])
    ours, theirs = (read_lines(f / "steps.jsonl") for f in (tmp_path, finished[0]))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2e-4)
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [3, 6]
    assert restore.load_variables(tmp_path, "last")[1] == 6  # by the device's own count


@pytest.mark.slow
def test_bfloat16_trains(finished, tmp_path):
    """On eight devices."""
    result = run(tiny(model__dtype="bfloat16", train__epochs=1), tmp_path, devices=8)
    assert np.isfinite(result["last"]["train_loss"])
    assert json.loads((tmp_path / "config.json").read_text())["environment"]["dtype"] == "bfloat16"
    ours, theirs = (
        np.array(read_lines(folder / "steps.jsonl")[0]["loss"])
        for folder in (tmp_path, finished[0])
    )
    assert np.abs(ours / theirs - 1).max() > 1e-4  # which eight devices in float32 stay within
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-2)
    variables = state_of(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_a_finished_run_says_that_it_is(finished, capsys):
    workdir, result = finished
    assert train.train_and_evaluate(tiny(), workdir, mesh=mesh(1)) == result
    assert capsys.readouterr().out == f"{workdir} is finished: nothing is left to train.\n"
