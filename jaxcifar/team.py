"""The connections between the processes of a run: what they tell each other, and how they end.

Each process keeps a connection to the first, from before JAX starts until the end. The operating
system closes that connection when a process dies, and reports when a host is gone. Then all
processes end, whereas JAX would wait for minutes, or for ever.
"""

import contextlib
import ipaddress
import json
import os
import queue
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from jaxcifar import signals
from jaxcifar.errors import UserError, note
from jaxcifar.launch import Place

# Seconds. Added up, these waits are shorter than the minute within which all processes end after a
# failure.
UNNOTICED = 25  # until the operating system reports that a host is gone
GRACE = 5  # for the others to end by themselves after one ended unexpectedly
CAUSE = 3  # for the cause of a failed exchange between devices to become known
VERDICT = 2 * GRACE  # for the first process to decide how all end
LAST = GRACE + 2  # for the others to end before the first process does
_LONGEST = 10_000  # bytes of a first line
_GONE = (
    "is gone: it was killed, or its host is down. All processes have ended; the same command "
    "resumes the run from its last checkpoint."
)


class End(NamedTuple):
    """How a process ended: its number, its exit code, and why."""

    process: int
    code: int
    text: str


class Team:
    """This process's connections: the first has one to each other process, these one to the first.

    Args:
      place: the place of this process.
      seconds: how long to wait for the other processes.

    Attributes:
      place: the place of this process.
      started: whether JAX has started. Until then, every process says why all end.

    Raises:
      UserError: the processes cannot meet.
    """

    def __init__(self, place: Place, seconds: float):
        self.place, self.started = place, False
        self._ends: dict[int, End] = {}  # of the others, in the order in which they became known
        self._closed: set[int] = set()  # the others whose connection is closed
        self._verdict: bool | None = None  # whether all end alike, as the first process decides
        self._changed = threading.Condition()  # notified when one of these changes
        self._ending = False  # whether the main thread is in end()
        self._writing = threading.Lock()
        self._inbox: dict[int, queue.Queue[Any]] = {}
        self._peers: dict[int, Any] = {}
        self._accepted: dict[int, socket.socket] = {}
        host, _, port = place.address.rpartition(":")
        deadline = time.monotonic() + seconds
        if self.is_first:
            self._wait_for_others(host.strip("[]"), int(port), deadline, seconds)
        else:
            self._peers[0] = self._find_first(host.strip("[]"), int(port), deadline, seconds)
        for peer, connection in self._peers.items():
            self._inbox[peer] = queue.Queue()
            listening = threading.Thread(target=self._listen, args=(peer, connection), daemon=True)
            listening.start()

    # --- meeting ---

    def _wait_for_others(self, host: str, port: int, deadline: float, seconds: float) -> None:
        place, here = self.place, is_loopback(host)
        everywhere = not here and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if everywhere or (here and ":" in host) else socket.AF_INET
        try:
            server = socket.create_server(
                (host if here else "", port),
                family=family,
                backlog=place.count,
                dualstack_ipv6=everywhere,
            )
        except OSError as error:
            raise UserError(
                f"The first process cannot listen on port {port} ({error.strerror}). Choose "
                "another in --coordinator_address (under Slurm or Open MPI: $JAX_COORDINATOR_PORT)."
            ) from error
        with server:
            while len(self._peers) < place.count - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    accepted, _ = server.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, place.count)) - set(self._peers))
                    self._refuse(
                        f"Of the {place.count} processes of the run, these did not connect within "
                        f"{seconds:.0f} seconds: {', '.join(map(str, missing))}. Start the "
                        f"command on every host, with --coordinator_address={place.address}; or "
                        "with --distributed=off, if it is to train alone."
                    )
                self._welcome(accepted)

    def _welcome(self, accepted: socket.socket) -> None:
        try:
            process, processes = _greeting(_first_line(accepted, 5))
        except (OSError, ValueError):
            accepted.close()  # not a process of the run
            return
        accepted.settimeout(5)
        stream = accepted.makefile("rwb")
        if process in self._peers and _hung_up(self._accepted[process]):
            del self._peers[process]  # it was started again
        if processes != self.place.count:
            self._peers[-1] = stream
            self._refuse(
                f"Process {process} was started as one of {processes} (--num_processes), process "
                f"0 as one of {self.place.count}. All need the same."
            )
        if process in self._peers or not 0 < process < self.place.count:
            self._peers[-1] = stream
            self._refuse(f"Two processes of the run have --process_id={process}.")
        with contextlib.suppress(OSError):  # where it hung up, which is seen below
            _write(stream, self._greeting)
        _keep_watch(accepted)
        if _hung_up(accepted):  # it waited for long, and will call again
            with contextlib.suppress(OSError):  # of what it was not told
                stream.close()
            accepted.close()
            return
        self._peers[process], self._accepted[process] = stream, accepted

    def _refuse(self, text: str) -> NoReturn:
        self._tell({"end": [0, 2, text]})
        raise UserError(text)

    def _find_first(self, host: str, port: int, deadline: float, seconds: float) -> Any:
        why: Exception | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self._greet(host, port, min(left, 30))
            except UserError:
                raise
            # It may not have started, or its name may not resolve yet; and what answers in its
            # place may be a proxy, or a program that ends in a moment.
            except (OSError, ValueError) as error:
                why = error
                time.sleep(min(left, 0.2))
        reason = (why.strerror if isinstance(why, OSError) else "") or why
        raise UserError(
            f"Process {self.place.index} could not reach the first process at "
            f"{self.place.address} within {seconds:.0f} seconds ({reason}). "
            "Start the command on every host, with a --coordinator_address of the first process "
            "that all can reach."
        )

    def _greet(self, host: str, port: int, seconds: float) -> Any:
        """Returns a connection to the first process, which has answered."""
        deadline = time.monotonic() + seconds
        found = socket.create_connection((host, port), timeout=seconds)
        with contextlib.ExitStack() as unless_it_answers:
            stream = unless_it_answers.enter_context(found.makefile("rwb"))
            unless_it_answers.enter_context(found)
            _write(stream, self._greeting)
            answer = _first_line(found, deadline - time.monotonic())
            if refusal := _refusal(answer):
                raise UserError(refusal)
            _greeting(answer)
            _keep_watch(found)
            unless_it_answers.pop_all()
        return stream

    @property
    def _greeting(self) -> dict[str, Any]:
        return {"jaxcifar": [self.place.index, self.place.count]}

    # --- exchanging ---

    @property
    def is_first(self) -> bool:
        """Whether this is the process to which all others are connected."""
        return self.place.index == 0

    def send(self, value: Any) -> None:
        """Sends a value, which JSON must be able to express, to those connected to this process."""
        self._tell({"value": value})

    def send_error(self, error: UserError) -> None:
        """Sends an error in place of a value; `receive` raises it."""
        self._tell({"error": [type(error).__name__, str(error)]})

    def receive(self, peer: int) -> Any:
        """Waits for the next value of a process, and returns it."""
        message = self._inbox[peer].get()
        if "error" in message:
            name, text = message["error"]
            kinds = {kind.__name__: kind for kind in (UserError, *UserError.__subclasses__())}
            raise kinds[name](text)
        return message["value"]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes."""
        if not self.is_first:
            self.send(value)
            return self.receive(0)
        values = [value, *(self.receive(peer) for peer in range(1, self.place.count))]
        self.send(values)
        return values

    def _tell(self, message: dict[str, Any]) -> None:
        for stream in self._peers.values():
            with self._writing, contextlib.suppress(OSError, ValueError):
                _write(stream, message)  # if this fails, `_listen` will tell that it is gone

    def _listen(self, peer: int, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                message = json.loads(line)
                if "agreed" in message:
                    self._verdict = message["agreed"]
                if "end" in message:
                    self._record(peer, End(*message["end"]))
                else:
                    self._inbox[peer].put(message)
        self._record(peer, End(peer, 1, _GONE), closed=True)

    # --- ending ---

    def _record(self, peer: int, end: End, *, closed: bool = False) -> None:
        """Records that a process has ended, and ends this one unless it ends by itself."""
        with self._changed:
            if closed:
                self._closed.add(peer)
            known = self._ends.setdefault(peer, end) is not end
            self._changed.notify_all()
        # Without the first process nothing can be agreed, and JAX will abort this one in a moment.
        grace = 0 if closed and not self.is_first else GRACE
        if known or end.code == 0 or self._wait(grace, lambda: self._ending):
            return
        if self.is_first or closed or not self.started:
            _say(end)
        self._exit(end)

    def leave(self, code: int, text: str) -> NoReturn:
        """Ends this process at once, from any thread, and with it the others."""
        end = End(self.place.index, code, text)
        _say(end)
        self._exit(end)

    def end(self, error: BaseException | None) -> int:
        """Returns this process's exit code if all end with the same; otherwise exits.

        Args:
          error: what was raised here, if anything.
        """
        expected = error is None or isinstance(error, signals.FORESEEN)
        mine = End(self.place.index, *(signals.code_and_text(error) if error else (0, "")))
        if not expected and self.is_first:  # the failure of another process may be its cause
            self._wait(CAUSE, lambda: bool(self._failed()))
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        cause, agreed = (self._judge if self.is_first else self._ask)(mine, expected)
        if not agreed:
            if cause == mine and error is not None and not expected:
                signals.briefly(lambda: traceback.print_exception(error))
            if cause == mine or self.is_first or cause == End(0, 1, _GONE):
                _say(cause)
            self._exit(cause)
        return mine.code

    def _judge(self, mine: End, expected: bool) -> tuple[End, bool]:
        """In the first process: returns the cause of the end, and whether all end alike."""
        others = [end for end in self._failed() if not expected or end.code != mine.code]
        cause = (others or [mine])[0]
        if cause.code:
            self._tell({"end": cause})
        self._wait(
            GRACE if cause.code else None,
            lambda: len(self._ends) == len(self._peers) or (not cause.code and self._failed()),
        )
        ends = list(self._ends.values())
        agreed = (
            expected and len(ends) == len(self._peers) and all(e.code == mine.code for e in ends)
        )
        if not agreed and not cause.code:
            cause = self._failed()[0]
        self._tell({"agreed": agreed, "end": cause})
        return cause, agreed

    def _ask(self, mine: End, expected: bool) -> tuple[End, bool]:
        """In the other processes: returns what `_judge` decided in the first."""
        self._tell({"end": mine})
        self._wait(
            VERDICT if mine.code else None,
            lambda: self._verdict is not None or 0 in self._closed,
        )
        cause = self._ends.get(0, mine)
        own = cause.process == mine.process or (expected and mine.code)
        return mine if own else cause, bool(self._verdict)

    def _failed(self) -> list[End]:
        return [end for end in self._ends.values() if end.code]

    def _exit(self, cause: End) -> NoReturn:
        """Exits, without waiting as JAX would; the first process exits last."""
        try:
            self._tell({"end": cause})
            if self.is_first:
                self._wait(LAST, lambda: len(self._closed) == len(self._peers))
            signals.briefly(signals.release_terminal, signals.flush)
            signals.briefly(*signals.last_words)
        finally:
            os._exit(cause.code or 1)

    def _wait(self, seconds: float | None, done: Callable[[], Any]) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(done, seconds))


def _write(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _first_line(connection: socket.socket, seconds: float) -> bytes:
    """Returns the first line that comes within some seconds, and takes nothing after it.

    Raises:
      TimeoutError: it is not complete by then.
      OSError: the connection failed.
    """
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("what listens there does not answer as a process of the run")
        connection.settimeout(left)
        try:
            byte = connection.recv(1)
        except TimeoutError:
            continue
        if not byte:
            break
        line += byte
    return line


def _greeting(line: bytes) -> tuple[int, int]:
    """Returns (number, count) of the process that greets with `line`.

    Raises:
      ValueError: it is no greeting.
    """
    found = re.fullmatch(rb'\{"jaxcifar": \[(\d{1,9}), (\d{1,9})\]\}\n', line)
    if not found:
        raise ValueError("what listens there is no process of the run, or ended at once")
    return int(found[1]), int(found[2])


def _refusal(line: bytes) -> str:
    """Returns why the first process ends; "" if `line` does not say that."""
    try:
        end = json.loads(line)["end"]
        return str(End(*end).text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _hung_up(connection: socket.socket) -> bool:
    try:  # after its greeting, a process sends nothing but its end before all have met
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _keep_watch(connection: socket.socket) -> None:
    """Makes the operating system notice when the other host is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval = 10, 5
    for name, value in {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": idle,
        "TCP_KEEPINTVL": interval,
        "TCP_KEEPCNT": (UNNOTICED - idle) // interval,
        "TCP_USER_TIMEOUT": 1000 * UNNOTICED,  # in milliseconds
    }.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _say(end: End) -> None:
    text = f"process {end.process}: {end.text or f'exit code {end.code}'}"
    signals.briefly(lambda: note(text))
