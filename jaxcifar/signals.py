"""How a command ends: by what it returns, by an error that the user can fix, or by a signal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NoReturn

from absl import logging

from jaxcifar.errors import Interrupted, UserError, in_short, note, of_file, unread

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """A request to end the work at the next point where it can be saved; true once it is made.

    Attributes:
      signum: the signal that made it; 0 if it was made otherwise.
      reason: why, in a few words.
      requested: called when it is made, even while the main thread waits for its output to be read.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.reason = ""
        self.requested: Callable[[], None] = lambda: None

    def __bool__(self) -> bool:
        return bool(self.reason)

    def request(self, reason: str, signum: int = 0) -> None:
        """Makes the request; if there are several, the first counts."""
        if not self:
            self.signum, self.reason = signum, reason
            self.requested()


@contextlib.contextmanager
def interruptible() -> Generator[Stop]:
    """Turns signals into a request to stop, for the duration of a `with` block.

    Use it for work that an abrupt end would lose. The signals are SIGINT, SIGTERM, SIGHUP, SIGUSR1
    and SIGUSR2; schedulers send the last two before a time limit. A repeated SIGTERM, which
    schedulers send, does not interrupt the saving; a second SIGINT (Ctrl-C) does. Signals that were
    ignored before, as nohup does with SIGHUP, stay ignored. If such blocks are nested, the request
    is made in all of them.
    """
    with _handling(_Handler()) as stop:
        yield stop


class _Handler:
    def __init__(self, drain: Callable[[], None] | None = None):
        self.stop = Stop()
        self.drain = drain  # only that of `exit_code`: waits until its thread has seen all signals
        self.before: dict[int, Any] = {}  # the handlers that it replaced

    def __call__(self, signum: int, frame: object) -> None:
        if isinstance(outer := self.before.get(signum), _Handler):
            outer(signum, frame)
        if signum == signal.SIGINT and not self.drain:
            signal.signal(signum, signal.default_int_handler)
        self.stop.request(f"by {signal.Signals(signum).name}", signum)


@contextlib.contextmanager
def _handling(handler: _Handler) -> Generator[Stop]:
    with contextlib.suppress(ValueError):  # outside the main thread, leave signals to the caller
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                handler.before[signum] = before = signal.signal(signum, handler)
                if isinstance(before, _Handler) and before.stop:
                    handler.stop.request(before.stop.reason, before.stop.signum)
    try:
        yield handler.stop
    finally:
        for signum, previous in handler.before.items():
            if isinstance(previous, _Handler) and previous.drain:
                previous.drain()
            # A handler that C code installed is reported as None, and cannot be put back.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)


def end_by_signals() -> None:
    """Lets signals end this process at once, with a message, until `exit_code` takes over."""
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda signum, _: leave(128 + signum, _message_of(signum)))


def _message_of(signum: int) -> str:
    return f"Stopped by {signal.Signals(signum).name}. Nothing that was saved is lost."


last_words: list[Callable[[], Any]] = []  # called where the process ends without unwinding


def briefly(*calls: Callable[[], Any]) -> None:
    """Calls each, for at most two seconds in all, whatever they raise.

    For what a process does in its last moments: a file server may not answer, and whoever reads its
    output may be gone, or keep it waiting (a terminal after Ctrl-S, a full pipe).
    """

    def do() -> None:
        for call in calls:
            with contextlib.suppress(Exception):
                call()

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(timeout=2)


def leave(code: int, text: str) -> NoReturn:
    """Ends the process at once, from any thread, with a message."""
    try:
        briefly(release_terminal, flush, lambda: note(text))
        briefly(*last_words)
    finally:
        os._exit(code)


def finish(code: int) -> NoReturn:
    """Ends the process with its command's exit code, which a late SIGUSR1 no longer changes."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    sys.exit(code)


def release_terminal() -> None:
    """Takes stdout and stderr back from a progress bar, and shows the cursor, which it hides."""
    # rich puts files of its own around them, which let no control sequence pass.
    sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    if sys.stdout is not None and sys.stdout.isatty():
        print("\x1b[?25h")


@contextlib.contextmanager
def _ending_at_once(leave: Callable[[int, str], NoReturn]) -> Generator[None]:
    """Lets signals end the process at once, except inside `interruptible`.

    Python's handlers have to wait while XLA compiles, so a thread that is woken by the wake-up
    descriptor ends the process. (The default actions would be enough, but the kernel ignores them
    for the first process of a container.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    drained, mark = threading.Event(), 255

    def watch() -> None:
        while signum := os.read(readable, 1)[0]:
            if signum == mark:
                drained.set()
                continue
            handler = signal.getsignal(signum)
            if isinstance(handler, _Handler) and handler.drain:
                leave(128 + signum, _message_of(signum))

    def drain() -> None:
        drained.clear()
        os.write(writable, bytes([mark]))
        drained.wait(timeout=1)  # not forever: a forked child has no such thread

    with _handling(_Handler(drain)):
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(writable, b"\0")
            thread.join()
            os.close(readable)
            os.close(writable)


# How a command may end without a bug.
FORESEEN = (UserError, Interrupted, OSError, KeyboardInterrupt, SystemExit)


def code_and_text(error: BaseException) -> tuple[int, str]:
    """Returns the exit code of a command that raised `error`, and what to say; "" is nothing."""
    match error:
        case UserError():
            return 2, str(error)
        case Interrupted():
            return 128 + error.signum, str(error)
        case BrokenPipeError():  # whoever reads the output, such as head, has seen enough
            return 128 + signal.SIGPIPE, ""
        case OSError():  # a full disk, no permission, a folder where a file is expected
            return 2, str(of_file(error))
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "Stopped by a second SIGINT. What was not saved is lost."
        case SystemExit(code=int() | None as code):  # how argparse and absl end a command
            return code or 0, ""
        case SystemExit():
            return 1, str(error.code)
        case _:
            return 1, f"failed ({in_short(error)})"


def exit_code(
    command: Callable[[], int | None], leave: Callable[[int, str], NoReturn] = leave
) -> int:
    """Runs a command and returns its exit code.

    That is what the command returns (0 for None), 2 after a `UserError` or an `OSError`, or 128
    plus the signal's number after `Interrupted`. The message goes to stderr. Outside of
    `interruptible`, a signal ends the process at once, with that exit code as well.

    `leave` ends the process, from any thread, with an exit code and a message.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook or a test may have replaced it
            stream.reconfigure(errors="replace")  # pyright: ignore # an ASCII terminal shows "?"
    _open_standard_files()
    with contextlib.suppress(ValueError):  # outside the main thread
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Whoever started this process ignores how its children end. Python would then take
            # any end for a good one.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with _ending_at_once(leave):
            try:
                code = command() or 0
            except SystemExit as end:
                code = _told(end)
            flush()
            return code
    except FORESEEN as error:
        if isinstance(error, BrokenPipeError):
            unread(sys.stdout)
        return _told(error)


def _open_standard_files() -> None:
    """Opens those that are closed, so that libraries that write there write to no other file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(opened, True)


def _told(error: BaseException) -> int:
    """Tells the user why a command ended; returns its exit code."""
    code, text = code_and_text(error)
    if text:
        note(text)
    return code


def flush() -> None:
    """Writes what was printed so far."""
    if sys.stdout is not None:  # as under pythonw
        sys.stdout.flush()
