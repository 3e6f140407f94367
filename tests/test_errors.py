"""How a command ends early: signals, messages and exit codes."""

import os
import signal
import threading

import pytest

from jaxcifar.errors import Interrupted, Stop, UserError, choose, exit_code, interruptible, nearest

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def test_the_first_reason_to_stop_is_kept():
    stop = Stop()
    assert not stop
    stop.request("because of this")
    stop.request("because of that", signal.SIGTERM)
    assert stop
    assert (stop.reason, stop.signum) == ("because of this", 0)


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


def test_choose():
    assert choose("colour", "red", ["red", "blue"]) == "red"
    with pytest.raises(UserError, match=r"colour is 'blu'. Did you mean 'blue'\? Allowed: red, b"):
        choose("colour", "blu", iter(["red", "blue"]))
    with pytest.raises(UserError, match=r"colour is 'xyz'. Allowed: red, blue\."):
        choose("colour", "xyz", ["red", "blue"])


def test_nearest():
    assert nearest("resnet-18", ["resnet18", "resnet34"]) == " Did you mean 'resnet18'?"
    assert nearest("zzz", ["resnet18"]) == ""
