"""Hooks: what they see and when, how they stop a run, and what becomes of one that fails."""

import errno
import gzip
import json
import os
import signal
import time
import urllib.error
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments.sweep.training import Observer
from jaxcifar.errors import Busy, Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook, Hooks, Profile
from jaxcifar.main import Origin
from jaxcifar.options import CONFIGS, load
from jaxcifar.run.checkpoint import Checkpointer, Saved
from jaxcifar.run.folder import RunFolder
from tests.tiny import SignalAt, Spoil, Watch, run, tiny, without_times


@pytest.mark.slow
@pytest.mark.parametrize(("steps_per_call", "befores"), [(1, [0, 1, 2, 3, 4, 5]), (3, [0, 3])])
def test_hooks_see_each_call_once_and_in_order(tmp_path, steps_per_call, befores):
    one, other = Watch(), Watch()
    run(tiny(train__steps_per_call=steps_per_call), tmp_path, one, other)
    epochs = [
        [
            *(("before_call", step) for step in befores if end - 3 <= step < end),
            ("before_evaluation", end),
            ("after_epoch", end),
        ]
        for end in (3, 6)
    ]
    assert one.calls == [("start", 0), *epochs[0], *epochs[1], ("close", 6), ("end", 6)]
    assert other.calls == one.calls


class Look(Hook):
    """Checks that what a run shows is true where it shows it."""

    def __init__(self, workdir):
        self.workdir, self.orders, self.first = workdir, [], []

    def locked(self, workdir):
        self.first.append("locked")
        assert workdir == self.workdir
        with pytest.raises(Busy):
            RunFolder(workdir).__enter__()
        assert not (workdir / "checkpoints").exists()

    def start(self, run):
        self.first.append("start")
        assert run.workdir == self.workdir
        assert run.images.shape == (100, 3072)  # a row of bytes each
        assert run.labels.shape == (100,)
        assert run.task.model.width == run.config.model.width
        assert run.hyperparams.learning_rate == np.float32(1e-3)

    def before_call(self, run):
        assert int(run.state.step) == run.step
        if run.step % 3 == 0:
            self.orders.append(np.asarray(run.order))

    def after_epoch(self, run, record):
        assert int(run.state.step) == run.step
        assert read_lines(self.workdir / "metrics.jsonl")[-1] == record  # logged already

    def end(self, run, result):
        assert (self.workdir / "result.json").exists()


@pytest.mark.slow
def test_what_a_run_shows_is_true(tmp_path):
    look = Look(tmp_path)
    run(tiny(), tmp_path, look)
    assert look.first == ["locked", "start"]
    first, second = look.orders
    assert first.shape == (3, 32)
    assert not np.array_equal(first, second)


class Meddle(Hook):
    """Changes what it is shown."""

    def after_epoch(self, run, record):
        record["mine"] = object()
        del record["val_accuracy"]

    def end(self, run, result):
        result.clear()


@pytest.mark.slow
def test_the_devices_have_finished_where_a_step_is_looked_at(tmp_path):
    """Or a hook that waits for the state would wait for the step, outside of the training time."""

    class Look(Hook):
        seen = 0

        def before_call(self, run):
            assert all(leaf.is_ready() for leaf in jax.tree.leaves(run.state.params))
            self.seen += 1

    look = Look()
    run(tiny(model__width=0.2), tmp_path, look)
    assert look.seen == 6


def test_a_hook_may_be_made_of_a_function(tmp_path):
    hook, steps = Hook(), []
    hook.before_call = lambda run: steps.append(run.step)
    run(tiny(), tmp_path, hook)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert Hooks([hook]).any_reads_state


class Slow(Hook):
    reads_state = False

    def before_call(self, run):
        time.sleep(0.3)


def test_the_time_of_a_hook_beside_which_the_device_works_is_counted(tmp_path):
    """Without it, what the device did meanwhile would seem to have taken no time."""
    record = run(tiny(train__epochs=1), tmp_path, Slow())["last"]
    assert record["seconds"] > 3 * 0.3  # of three steps


def test_only_hooks_that_read_the_state_hold_the_host_back():
    assert not Hooks(
        [Observer(), Origin(CONFIGS / "row1.py", load("row1")), Hook()]
    ).any_reads_state
    assert Hooks([Hook(), SignalAt(0)]).any_reads_state


@pytest.mark.slow
def test_what_hooks_do_to_a_record_changes_no_run(finished, tmp_path, capsys):
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, Meddle(), SignalAt(5))
    result = run(tiny(), tmp_path, Meddle())
    assert "damaged" not in capsys.readouterr().err
    assert result["best"]["val_accuracy"] == finished[1]["best"]["val_accuracy"]
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (tmp_path, finished[0]))
    assert without_times(ours) == without_times(theirs)


class Ask(Hook):
    """Asks for the end after the first epoch."""

    def after_epoch(self, run, record):
        run.stop.request("because it is enough")
        run.stop.request("for another reason", signal.SIGTERM)  # the first is kept


@pytest.mark.slow
def test_a_hook_can_ask_for_the_end(finished, tmp_path):
    with pytest.raises(Interrupted, match="Stopped because it is enough and saved at step 3") as e:
        run(tiny(), tmp_path, Ask())
    assert e.value.signum == 0
    watch = Watch()
    run(tiny(), tmp_path, watch)
    assert watch.steps == [3, 4, 5]
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (tmp_path, finished[0]))
    assert without_times(ours) == without_times(theirs)


def traced(workdir):
    """The calls of the training program in the trace of a run."""
    (folder,) = (workdir / "profile" / "plugins" / "profile").iterdir()
    assert list(folder.glob("*.xplane.pb"))  # for TensorBoard
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return sum(event.get("name") == "train" for event in events)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "steps_per_call", "traced_steps", "calls"),
    [(4, 1, 4, 4), (4, 3, 6, 2)],
)
def test_a_profile_is_of_so_many_steps(tmp_path, steps, steps_per_call, traced_steps, calls):
    profile = Profile(steps)
    run(tiny(train__steps_per_call=steps_per_call), tmp_path, profile)
    assert (profile.traced, traced(tmp_path)) == (traced_steps, calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "error"),
    [(SignalAt(3, where="before_evaluation"), Interrupted), (Spoil(2), UserError)],
)
def test_a_profile_is_written_however_the_run_ends(tmp_path, other, error):
    """In the middle of an evaluation, and by a loss that is not finite."""
    profile = Profile(100)
    with pytest.raises(error):
        run(tiny(), tmp_path, other, profile)
    assert (profile.traced, traced(tmp_path)) == (3, 3)


@pytest.mark.slow
def test_a_profile_changes_no_number_and_ends_if_the_run_is_stopped(finished, tmp_path):
    profile = Profile(100)
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path, SignalAt(2), profile)
    assert (profile.traced, traced(tmp_path)) == (2, 2)
    run(tiny(), tmp_path, profile)
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (tmp_path, finished[0]))
    assert without_times(ours) == without_times(theirs)


def test_a_repeated_signal_does_not_cut_the_closing_short(tmp_path, monkeypatch):
    """Schedulers repeat theirs."""
    closed = []

    class Closing(SignalAt):
        def close(self, run):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            closed.append(run.step)

    cut = lambda *_: pytest.fail("it is cut short")  # noqa: E731
    before = signal.signal(signal.SIGTERM, cut)
    try:
        with pytest.raises(Interrupted):
            run(tiny(), tmp_path, Closing(1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert closed == [1]


def test_the_last_call_that_is_traced_counts_as_training(tmp_path, monkeypatch):
    """The loop waits for it, and not the hook, whose time is not counted."""
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    hook, calls = Profile(5), SimpleNamespace(steps_from=lambda step: 2)
    seen = SimpleNamespace(workdir=tmp_path, state=(), task=calls)
    waited = []
    for seen.step in (6, 8, 10, 12, 14):
        hook.before_call(seen)
        waited.append(Hooks([hook]).any_reads_state)
    assert waited == [False, False, True, False, False]
    assert hook.traced == 6  # whole calls


def test_a_trace_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "profile").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/a/profile: File exists"):
        run(tiny(), tmp_path / "a", Profile(1))
    assert capsys.readouterr().err == ""

    class InTheWay(Hook):
        def after_epoch(self, run, record):
            if record["epoch"] == 1:
                (run.workdir / "profile").rmdir()
                (run.workdir / "profile").write_text("")

    profile = Profile(100)
    run(tiny(), tmp_path / "b", InTheWay(), profile)  # it is complete all the same
    assert profile.traced == 0
    said = capsys.readouterr().err
    assert said.startswith(f"jaxcifar: the trace in {tmp_path}/b/profile is not written: ")
    assert said.count("\n") == 1


def test_of_hooks_that_fail_at_the_end_none_is_passed_over(tmp_path, capsys):
    hooks = Hooks([Raise("close", ValueError(name)) for name in ("one", "two")])
    seen = SimpleNamespace(workdir=tmp_path, step=3)
    with pytest.raises(RuntimeError, match="one"), hooks.closing(seen):
        pass
    assert "two" in capsys.readouterr().err


class Raise(Hook):
    """Raises where it is told to."""

    def __init__(self, method, error):
        self.error = error
        setattr(self, method, self.fail)

    def fail(self, *_):
        raise self.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("locked", 0),
        ("start", 0),
        ("before_call", 0),
        ("before_evaluation", 3),
        ("after_epoch", 3),
        ("close", 6),
        ("end", 6),
    ],
)
def test_a_hook_that_fails_is_named(finished, tmp_path, method, step):
    with pytest.raises(RuntimeError) as error:
        run(tiny(), tmp_path, Raise(method, KeyError("lost")))
    message = str(error.value)
    when = "before the first step" if method == "locked" else f"at step {step}"
    assert f"hook Raise.{method} failed {when} (KeyError: 'lost')" in message
    then = "The run is complete" if method == "end" else "The same command resumes the run"
    assert then in message
    assert isinstance(error.value.__cause__, KeyError)
    last = Checkpointer(tmp_path / "checkpoints").last()
    after = {"after_epoch": Saved(3, True), "close": Saved(6, True), "end": Saved(6, True)}
    assert last == after.get(method)
    # Nothing is held, and the run can be finished to the same numbers.
    run(tiny(), tmp_path)
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (tmp_path, finished[0]))
    assert without_times(ours) == without_times(theirs)


def test_a_hook_that_finds_no_server_is_named_and_one_that_finds_no_room_is_not(tmp_path):
    with pytest.raises(RuntimeError, match=r"hook Raise\.locked failed.*refused"):
        run(tiny(), tmp_path, Raise("locked", ConnectionRefusedError(111, "refused")))
    answer = urllib.error.HTTPError("https://a/b", 500, "Internal", {}, None)
    with pytest.raises(RuntimeError, match=r"hook Raise\.locked failed.*500"):
        run(tiny(), tmp_path, Raise("locked", answer))
    answer.close()
    for error in (OSError(errno.ENOSPC, "No space left"), FileNotFoundError(2, "no", "a/b")):
        with pytest.raises(UserError, match=r"No space left|a/b"):
            run(tiny(), tmp_path, Raise("locked", error))


@pytest.mark.slow
def test_every_hook_is_closed_and_what_ended_the_run_is_what_is_raised(tmp_path, capsys):
    watch = Watch()
    with pytest.raises(Interrupted) as error:
        run(tiny(), tmp_path, Raise("close", KeyError("lost")), watch, SignalAt(2))
    assert error.value.signum == signal.SIGTERM
    assert watch.calls[-1] == ("close", 2)
    assert "The hook Raise.close failed at step 2 (KeyError: 'lost')" in capsys.readouterr().err


@pytest.mark.parametrize("error", [UserError("fix it"), Interrupted(2, "enough")])
def test_messages_for_the_user_pass_through(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        run(tiny(), tmp_path, Raise("start", error))
    assert raised.value is error
