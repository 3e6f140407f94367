"""What a run shows while it trains."""

import contextlib
import io
import os
import pty
import select
import sys
import time

import pytest

from jaxcifar.errors import note
from jaxcifar.run import progress
from jaxcifar.run.progress import Progress, duration
from jaxcifar.signals import release_terminal

RECORD = {
    **{"epoch": 1, "step": 10, "train_loss": 2.5, "train_ce": 2.25, "train_accuracy": 0.25},
    **{"val_loss": 2.125, "val_accuracy": 0.3, "images_per_second": 1234.5},
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (42.4, "42s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (4364, "1h13m"),
        (7620, "2h07m"),
        (90_000, "25h00m"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def shown(monkeypatch, capsys, quiet=False):
    """The lines of a run of 4 epochs of 10 steps of a second each, resumed after 5 steps."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(4, 10, 0, quiet) as shows:
        shows.say("hello [not markup]")
        shows.started(5)
        now[0] = 19.0
        assert not shows.due()
        now[0] = 20.0
        assert shows.due()
        shows.step(7, {"loss": 3 * [3.0, 2.0], "accuracy": 3 * [0.1, 0.2]}, 6.0, 32)
        assert not shows.due()
        shows.evaluating()
        now[0] = 25.0
        shows.epoch(RECORD)
        shows.epoch(RECORD | {"train_ce": 2.5})
    return capsys.readouterr().out.splitlines()


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    hello, step, epoch, plain = shown(monkeypatch, capsys)
    assert hello == "hello [not markup]"
    # The sixth step took 20 s, and the seventh is begun: 34 to go.
    assert step == ("epoch 1/4  step 7/10  loss 2.0000  accuracy 15.00%  32 images/s  11m20s left")
    # 5 steps in 20 s and an evaluation in 5 s; 30 and 3 to go.
    assert epoch == (
        "epoch 1/4  train loss 2.5000 (cross-entropy 2.2500)  accuracy 25.00%  "
        "val loss 2.1250  accuracy 30.00%  1,234 images/s  2m15s left"
    )
    assert "cross-entropy" not in plain  # without a penalty it is the loss


@pytest.mark.parametrize(
    "surroundings", [{"FORCE_COLOR": "1"}, {"TERM": "dumb", "isatty": True}], ids=["file", "dumb"]
)
def test_lines_where_a_line_cannot_be_replaced(monkeypatch, capsys, surroundings):
    """A file in which colours are wanted, and a terminal that knows no more than lines."""
    if surroundings.pop("isatty", False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    said = shown(monkeypatch, capsys)
    assert len(said) == 4
    assert not any("\x1b[2K" in line for line in said)
    assert "step 7/10" in said[1]


def test_a_terminal_shows_that_it_compiles_and_then_no_more(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shows = Progress(4, 10, 0)
    with shows:
        pass
    assert "compiling" in capsys.readouterr().out
    with shows:
        shows.started(0)
        capsys.readouterr()
        shows.say("begins")
        after = capsys.readouterr().out
        assert "epoch 1/4" in after
        assert "compiling" not in after
        shows.evaluating()
        assert "evaluating" in capsys.readouterr().out
        shows.epoch(RECORD)
        capsys.readouterr()
        shows.say("the next")
        assert "evaluating" not in capsys.readouterr().out


def test_quiet_shows_nothing(monkeypatch, capsys):
    assert shown(monkeypatch, capsys, quiet=True) == []


@contextlib.contextmanager
def a_terminal(monkeypatch):
    """Puts both streams on one; what it yields returns what it has been sent since."""
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()

    def sent():
        said, end = b"", time.monotonic() + 0.3
        while (left := end - time.monotonic()) > 0:  # a bar never stops
            if select.select([reader], [], [], left)[0]:
                said += os.read(reader, 2**16)
        return said.decode()

    with os.fdopen(writer, "w") as stream, os.fdopen(os.dup(writer), "w") as other:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", other)
        yield sent
    os.close(reader)


def test_a_quiet_bar_on_a_terminal_hides_nothing_else(monkeypatch):
    """What hooks print, and what the run has to tell."""
    with a_terminal(monkeypatch) as sent, Progress(4, 10, 0, quiet=True) as shows:
        shows.started(0)
        print("from a hook", flush=True)
        note("a repair")
        assert sent().splitlines() == ["from a hook", "jaxcifar: a repair"]


def test_errors_go_where_they_are_sent_while_a_bar_is_shown(monkeypatch, tmp_path):
    with a_terminal(monkeypatch) as sent:
        with Progress(4, 10, 0):
            note("both on the terminal")
        assert "jaxcifar: both on the terminal" in sent()
        with open(tmp_path / "errors", "w") as errors:
            monkeypatch.setattr(sys, "stderr", errors)
            with Progress(4, 10, 0):
                note("a repair")
        assert "a repair" not in sent()
    assert (tmp_path / "errors").read_text() == "jaxcifar: a repair\n"


def test_a_terminal_is_given_back_from_within_a_bar(monkeypatch):
    """When a signal ends the process while it compiles."""
    with a_terminal(monkeypatch) as sent, Progress(4, 10, 0):
        assert "\x1b[?25l" in sent()  # hidden
        release_terminal()
        sys.stdout.flush()
        note("Stopped.")
        said = sent()  # which the bar goes on to, until the process ends
        assert "\x1b[?25h\r\n" in said  # and shown
        assert "jaxcifar: Stopped.\r\n" in said
        assert "\x1b[?25l" not in said


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_goes_away_ends_no_run(monkeypatch, terminal):
    """`tee` that Ctrl-C has ended too, or a terminal that was closed."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with Progress(4, 10, 0) as shows:
            shows.say("somebody reads this")
            os.close(reader)
            shows.started(5)
            shows.step(7, {"loss": [3.0], "accuracy": [0.1]}, 2.0, 32)
            shows.epoch(RECORD)
        print("nor does what is printed after it", flush=True)


def test_nor_does_a_full_disk_and_it_is_told_once(monkeypatch, capsys, full_disk):
    with open(full_disk, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with Progress(4, 10, 0) as shows:
            shows.started(5)
            shows.epoch(RECORD)
            shows.epoch(RECORD)
    said = capsys.readouterr().err
    assert said.count("Standard output cannot be written to (No space left on device)") == 1
    assert said.count("\n") == 1


def test_nor_does_an_encoding_that_lacks_a_character(monkeypatch):
    """That of PYTHONIOENCODING=ascii, say, and a path whose bytes are no text."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    with Progress(4, 10, 0) as shows:
        shows.say("runs/größe \udcff 3×3")
        shows.epoch(RECORD)
    stdout.flush()
    lines = stdout.buffer.getvalue().decode().splitlines()
    assert lines[0] == "runs/gr??e ? 3?3"
    assert lines[1].startswith("epoch 1/4  train loss 2.5000")


class Tee:
    """As people put in place of standard output, to keep a copy."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("stdout", [None, Tee()])
def test_standard_output_need_not_be_a_file(monkeypatch, stdout):
    """It is None without a console."""
    monkeypatch.setattr(sys, "stdout", stdout)
    with Progress(4, 10, 0) as shows:
        shows.say("hello")
        shows.epoch(RECORD)
    assert stdout is None or "hello\nepoch 1/4" in stdout.text
