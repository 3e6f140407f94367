"""How a command ends early: signals, messages and exit codes."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxcifar.errors import Interrupted, UserError
from jaxcifar.signals import Stop, exit_code, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def test_the_first_reason_to_stop_is_kept():
    stop = Stop()
    assert not stop
    stop.request("because of this")
    stop.request("because of that", signal.SIGTERM)
    assert stop
    assert (stop.reason, stop.signum) == ("because of this", 0)


def test_who_waits_for_a_reader_can_be_told_of_a_signal():
    told = []
    with interruptible() as stop:
        stop.requested = lambda: told.append(stop.signum)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert told == [signal.SIGTERM]


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)
def test_signals_become_a_wish_to_stop(signum):
    before = signal.getsignal(signum)
    with interruptible() as stop:
        assert not stop
        os.kill(os.getpid(), signum)
        assert stop
        assert (stop.reason, stop.signum) == (f"by {signum.name}", signum)
    assert signal.getsignal(signum) is before


def test_schedulers_repeat_themselves_and_ctrl_c_does_not():
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


def test_who_called_learns_of_a_signal_too():
    with interruptible() as outer:
        with interruptible() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert inner.signum == outer.signum == signal.SIGUSR1
    with interruptible() as outer, interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert outer


def test_a_signal_that_a_c_library_handled_is_seen_to_as_well(monkeypatch):
    """Python does not know its handler, and so cannot put it back."""
    real = signal.signal

    def of_c(signum, handler):
        before = real(signum, handler)
        return None if (signum, before) == (signal.SIGUSR2, signal.SIG_DFL) else before

    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    monkeypatch.setattr(signal, "signal", of_c)
    with interruptible() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.signum == signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_what_begins_after_a_signal_knows_of_it():
    with interruptible() as outer:
        os.kill(os.getpid(), signal.SIGTERM)
        with interruptible() as inner:
            assert inner.signum == outer.signum == signal.SIGTERM


def command(phase):
    def work():
        print("ready", flush=True)
        if phase == "compiling":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
        with interruptible() as stop:
            print("training", flush=True)
            while not stop or phase == "saving":
                time.sleep(0.01)
            raise Interrupted(stop.signum, f"saved, {stop.reason}")

    return exit_code(work)


def ended(phase, *signums):
    """The exit code and stderr of such a process, after signals."""
    script = (
        "import signal, sys; from tests import test_signals as t\n"
        "for s in t.SIGNALS: signal.signal(s, signal.SIG_DFL)\n"  # a script's "&" ignores some
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.exit(t.command({phase!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    try:
        for word in ("ready", "training")[: 1 if phase == "compiling" else 2]:
            assert process.stdout.readline() == f"{word}\n"
        for signum in signums:
            process.send_signal(signum)
            time.sleep(0.5)  # two that come together are one
        return process.wait(timeout=60), process.communicate()[1]
    finally:
        process.kill()


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)
def test_a_command_with_nothing_to_lose_ends_at_once(signum):
    code, said = ended("compiling", signum)
    assert code == 128 + signum
    assert said == f"jaxcifar: Stopped by {signum.name}. Nothing that was saved is lost.\n"


def test_a_command_that_has_something_to_lose_saves_it():
    assert ended("training", signal.SIGTERM) == (143, "jaxcifar: saved, by SIGTERM\n")


def test_a_signal_that_was_answered_ends_nothing_else():
    ends = []

    def command():
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop
        time.sleep(0.001)

    for _ in range(200):
        assert exit_code(command, lambda *end: ends.append(end)) == 0
    assert ends == []


def test_a_second_ctrl_c_is_one_message_too():
    code, said = ended("saving", signal.SIGTERM, signal.SIGINT, signal.SIGINT)
    assert (code, said.count("\n")) == (130, 1)
    assert said.startswith("jaxcifar: Stopped by a second SIGINT.")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_after_an_error():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(RuntimeError), interruptible():
        raise RuntimeError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_another_thread_leaves_signals_to_whoever_runs_it():
    found = []

    def work():
        with interruptible() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def failing(error):
    def command():
        raise error

    return command


def test_exit_codes_and_messages(capsys):
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 3) == 3
    assert capsys.readouterr().err == ""
    assert exit_code(failing(UserError("fix it"))) == 2
    assert capsys.readouterr().err == "jaxcifar: fix it\n"
    assert exit_code(failing(Interrupted(signal.SIGTERM, "stopped"))) == 143
    assert capsys.readouterr().err == "jaxcifar: stopped\n"
    assert exit_code(failing(Interrupted(signal.SIGINT, "stopped"))) == 130
    with pytest.raises(KeyError):  # a bug is no message
        exit_code(failing(KeyError("bug")))


def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "import sys; from jaxcifar.signals import exit_code; sys.exit(exit_code(lambda: print(1)))"
    )
    readable, writable = os.pipe()
    os.close(readable)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writable, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writable)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def started(code, how=""):
    """A Python process whose stdout nobody reads; returns it once it has begun its work."""
    code = (
        f"import os, signal, subprocess, sys, time\nfrom jaxcifar.signals import exit_code\n{code}"
    )
    readable, writable = os.pipe()  # of which the process says that it has begun
    # Without a buffer no thread waits for the lock of another.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$0" -c "$1" "$2" {how}', sys.executable, code, str(writable)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writable],
        env=buffered,
    )
    os.close(writable)
    assert os.read(readable, 1) == b"!"
    os.close(readable)
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_output_that_nobody_reads_keeps_no_signal_waiting(signum):
    """As after Ctrl-S in a terminal; the process then waits within print."""
    process = started(
        "def work():\n"
        "    os.write(int(sys.argv[1]), b'!')\n"
        "    while True: print('x' * 1000)\n"
        "sys.exit(exit_code(work))"
    )
    time.sleep(1)
    process.send_signal(signum)
    try:
        assert process.wait(timeout=30) == 128 + signum
    finally:
        process.kill()
        process.communicate()


def test_what_a_library_writes_to_a_closed_stderr_reaches_nobody():
    """It was taken for signals, and ended the thread that waits for them."""
    process = started(
        "def work():\n"
        "    os.write(2, b'W a warning')\n"
        "    os.write(int(sys.argv[1]), b'!')\n"
        "    time.sleep(60)\n"
        "sys.exit(exit_code(work))",
        "0>&- >&- 2>&-",
    )
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
        process.communicate()


def test_how_a_child_ended_is_known_where_the_parent_ignores_it():
    code = (
        "import signal, subprocess, sys; from jaxcifar.signals import exit_code\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "sys.exit(exit_code(lambda: subprocess.run(['false']).returncode))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 1


def test_a_process_without_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: sys.exit(3)) == 3


@pytest.mark.parametrize(("code", "returned"), [(None, 0), (0, 0), (3, 3), ("Why.", 1)])
def test_an_exit_is_a_code(code, returned, capsys):
    assert exit_code(lambda: sys.exit(code)) == returned
    assert capsys.readouterr().err == ("jaxcifar: Why.\n" if returned == 1 else "")
