"""The processes that share a run: how they meet, what they agree on, and how they end.

All must issue the same computations in the same order. So whatever depends on a clock, a signal or
a file is decided by the first process and sent to the others (`share`), or agreed on (`agree`).

Only the first process writes files and prints. Each of the others keeps a connection to it, from
before JAX starts until the end. The operating system closes that connection when a process dies,
and reports when a host is gone. Then all processes end, whereas JAX would wait for minutes, or for
ever.
"""

import contextlib
import functools
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcifar import signals
from jaxcifar.errors import Interrupted, UserError, in_short, note, of_file
from jaxcifar.launch import Place

_F = TypeVar("_F", bound=Callable)
_GRACE = 5.0  # seconds that the others have to end by themselves after one ended unexpectedly
_CAUSE = 3.0  # seconds to wait for the cause of a failed exchange between devices to become known
_GONE = (
    "is gone: it was killed, or its host is down. All processes have ended; the same command "
    "resumes the run from its last checkpoint."
)


class End(NamedTuple):
    """How a process ended: its number, its exit code, and why."""

    process: int
    code: int
    text: str


_team: "_Team | None" = None  # None: one process
_alone = False  # inside `share`, as if there were one process


def count() -> int:
    """Returns how many processes share the run."""
    return _team.place.count if _team else 1


def index() -> int:
    """Returns the number of this process, from 0."""
    return _team.place.index if _team else 0


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return index() == 0


# --- what they agree on -----------------------------------------------------------------------


def share(make: Callable[[], Any]) -> Any:
    """Returns what `make` returns in the first process; the others wait for it.

    Args:
      make: called in the first process only; returns something that JSON can express.

    Raises:
      UserError: `make` raised it, or an `OSError`; every process raises it then.
    """
    global _alone
    if _team is None or _alone:
        return make()
    if not is_first():
        return _told(_team.receive(0))
    _alone = True
    try:
        made = make()
    except UserError as error:
        _team.tell({"error": [type(error).__name__, str(error)]})
        raise
    except OSError as error:
        told = of_file(error)
        _team.tell({"error": [type(told).__name__, str(told)]})
        raise told from error
    finally:
        _alone = False
    _team.tell({"value": made})
    return made


def on_first(method: _F) -> _F:
    """Decorates a function so that only the first process carries it out, see `share`."""

    @functools.wraps(method)
    def shared(*args: Any, **kwargs: Any) -> Any:
        return share(lambda: method(*args, **kwargs))

    return cast(_F, shared)


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in order; JSON must be able to express them."""
    if _team is None or _alone:
        return [value]
    return _team.gather(json.loads(json.dumps(value)))


def check_same(what: str, values: dict[str, Any]) -> None:
    """Checks that named values, which JSON must be able to express, are equal in all processes.

    Raises:
      UserError: they are not (raised in every process); the message lists what differs from the
        first process.
    """
    first, *others = gather(values)
    for process, other in enumerate(others, start=1):
        pairs = {name: (first.get(name), other.get(name)) for name in {**first, **other}}
        if changed := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
            shown = [f"{name} {_short(a)} -> {_short(b)}" for name, (a, b) in changed.items()]
            raise UserError(
                f"The {what} of process {process} is not that of process 0: {', '.join(shown)}. "
                "All processes of a run need the same."
            )


_pending: dict[str, jax.Array] = {}


def agree(about: str, *values: int) -> list[int]:
    """Returns the maximum of each value over all processes.

    With several processes the answer comes one call later: this returns the maxima of the previous
    call with the same `about`, or zeros if those were returned already. So no process waits for
    another, and devices never wait for the host. All processes must call this equally often, with
    equally many values.
    """
    if _team is None:
        return list(values)
    if about in _pending:
        found = np.asarray(_pending.pop(about)).tolist()
        if any(found):
            return found  # it may already answer what was asked for meanwhile
    mesh, largest = _largest()
    rows = np.asarray([values], np.int32)
    shape, split = (mesh.size, len(values)), NamedSharding(mesh, PartitionSpec("devices"))
    _pending[about] = largest(jax.make_array_from_callback(shape, split, lambda _: rows))
    return [0] * len(values)


@functools.cache
def _largest() -> tuple[Mesh, Callable[[jax.Array], jax.Array]]:
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    return mesh, jax.jit(lambda rows: rows.max(0), out_shardings=whole)


# --- how they start and end -------------------------------------------------------------------


@contextlib.contextmanager
def together(place: Place | None, seconds: float) -> Iterator[None]:
    """Joins the processes of a run for the duration of a `with` block.

    JAX must not have initialised its devices before. If one process fails, all end within a minute
    with one message that names it; this process then exits here. Otherwise all end alike: an
    exception of the first is passed on, and those of the others become their exit codes.

    Args:
      place: the place of this process; None if it is alone, which makes this do nothing.
      seconds: how long to wait for the other processes.

    Raises:
      UserError: the processes cannot meet, or differ in their JAX version or devices.
    """
    global _team
    if place is None:
        yield
        return
    _team = team = _Team(place, seconds)
    try:
        team.start_jax()
        yield
    except BaseException as error:
        team.end(*_code_and_text(error), error)
        if is_first():
            raise
        sys.exit(_code_and_text(error)[0])
    else:
        team.end(0, "", None)
    finally:
        _team = None


def leave(code: int, text: str) -> NoReturn:
    """Ends this process at once, from any thread, and with it the others of its run."""
    if _team is None:
        signals.leave(code, text)
    end = End(index(), code, text)
    _say(end)
    _team._leave(end)


def _code_and_text(error: BaseException) -> tuple[int, str]:
    match error:
        case Interrupted():
            return 128 + error.signum, str(error)
        case UserError():
            return 2, str(error)
        case OSError():
            return 2, str(of_file(error))
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, signals.SECOND_SIGINT
        case SystemExit():
            return int(error.code or 0) if str(error.code or 0).isdigit() else 1, str(error.code)
        case Exception():
            return 1, f"failed ({in_short(error)})"
    return 1, f"failed ({type(error).__name__})"


class _Team:
    """This process's connections: one to each other process in the first, one to it elsewhere."""

    def __init__(self, place: Place, seconds: float):
        self.place = place
        self._ends: dict[int, End] = {}  # of the others, in the order in which they became known
        self._closed: set[int] = set()  # the others whose connection is closed
        self._verdict: bool | None = None  # whether all end alike, as the first process decides
        self._changed = threading.Condition()  # notified when one of these changes
        self._started = False  # whether JAX has started
        self._ending = False  # whether the main thread is in end()
        self._writing = threading.Lock()
        self._inbox: dict[int, queue.Queue] = {}
        self._peers: dict[int, Any] = {}
        host, _, port = place.address.rpartition(":")
        deadline = time.monotonic() + seconds
        if place.index == 0:
            self._wait_for_others(int(port), deadline, seconds)
        else:
            self._peers[0] = self._find_first(host.strip("[]"), int(port), deadline, seconds)
        for peer, connection in self._peers.items():
            self._inbox[peer] = queue.Queue()
            listening = threading.Thread(target=self._listen, args=(peer, connection), daemon=True)
            listening.start()

    # --- meeting ---

    def _wait_for_others(self, port: int, deadline: float, seconds: float) -> None:
        place, everywhere = self.place, socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if everywhere else socket.AF_INET
        try:
            server = socket.create_server(
                ("", port), family=family, backlog=place.count, dualstack_ipv6=everywhere
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
                        f"command on every host, with --coordinator_address={place.address}."
                    )
                self._welcome(accepted)

    def _welcome(self, accepted: socket.socket) -> None:
        accepted.settimeout(5)
        stream = accepted.makefile("rwb")
        try:
            process, processes = json.loads(stream.readline())["jaxcifar"]
        except (OSError, ValueError, KeyError, TypeError):
            accepted.close()  # not a process of the run
            return
        if process in self._peers or not 0 < process < self.place.count:
            self._peers[-1] = stream
            self._refuse(f"Two processes of the run have --process_id={process}.")
        if processes != self.place.count:
            self._peers[process] = stream
            self._refuse(
                f"Process {process} was started as one of {processes} (--num_processes), process "
                f"0 as one of {self.place.count}. All need the same."
            )
        _keep_watch(accepted)
        self._peers[process] = stream

    def _refuse(self, text: str) -> NoReturn:
        self.tell({"end": [0, 2, text]})
        raise UserError(text)

    def _find_first(self, host: str, port: int, deadline: float, seconds: float) -> Any:
        why: OSError | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                found = socket.create_connection((host, port), timeout=min(left, 10))
            except OSError as error:  # it may not have started, or its name may not resolve yet
                why = error
                time.sleep(min(left, 0.2))
                continue
            _keep_watch(found)
            stream = found.makefile("rwb")
            _write(stream, {"jaxcifar": [self.place.index, self.place.count]})
            return stream
        raise UserError(
            f"Process {self.place.index} could not reach the first process at "
            f"{self.place.address} within {seconds:.0f} seconds ({why and (why.strerror or why)}). "
            "Start the command on every host, with a --coordinator_address of the first process "
            "that all can reach."
        )

    def start_jax(self) -> None:
        """Starts JAX over all processes, and connects their devices.

        Raises:
          UserError: the processes differ in their JAX version or devices.
        """
        everywhere, port = socket.has_dualstack_ipv6(), 0
        if self.place.index == 0:
            with socket.create_server(("", 0)) as free:
                port = free.getsockname()[1]
        port = share(lambda: port)
        # Its SIGTERM handler would replace ours.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            f"{self.place.address.rpartition(':')[0]}:{port}",
            self.place.count,
            self.place.index,
            local_device_ids=self.place.local_devices,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{'[::]' if everywhere else '0.0.0.0'}:{port}",
        )
        self._started = True
        here = jax.local_devices()
        kind = {"JAX": jax.__version__, "devices": len(here), "device": here[0].device_kind}
        check_same("machine", kind)
        # Devices connect when they first exchange something, and on CPUs they have 30 seconds for
        # that: here all are about to. Later exchanges wait for the slowest to compile.
        while not any(agree("start", 1)):
            pass

    # --- exchanging ---

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message to the first process, or from it to all others."""
        for stream in self._peers.values():
            with self._writing, contextlib.suppress(OSError, ValueError):
                _write(stream, message)  # if that fails, its end will be known in a moment

    def receive(self, peer: int) -> dict[str, Any]:
        """Waits for the next message of a process."""
        return self._inbox[peer].get()

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes."""
        if self.place.index:
            self.tell({"value": value})
            return _told(self.receive(0))
        values = [value, *(_told(self.receive(i)) for i in range(1, self.place.count))]
        self.tell({"value": values})
        return values

    def _listen(self, peer: int, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                message = json.loads(line)
                if "agreed" in message:
                    self._verdict = message["agreed"]
                if "end" in message:
                    self._note(peer, End(*message["end"]))
                else:
                    self._inbox[peer].put(message)
        self._note(peer, End(peer, 1, _GONE), closed=True)

    # --- ending ---

    def _note(self, peer: int, end: End, *, closed: bool = False) -> None:
        """Notes that a process has ended, and ends this one unless it ends by itself."""
        with self._changed:
            if closed:
                self._closed.add(peer)
            known = self._ends.setdefault(peer, end) is not end
            self._changed.notify_all()
        # Without the first process nothing can be agreed, and JAX will abort this one in a moment.
        grace = 0 if closed and not is_first() else _GRACE
        if known or end.code == 0 or self._wait(grace, lambda: self._ending):
            return
        if is_first() or closed or not self._started:
            _say(end)
        self._leave(end)

    def end(self, code: int, text: str, error: BaseException | None) -> None:
        """Returns if all processes end with the same exit code; otherwise exits.

        Args:
          code: this process's exit code.
          text: what to tell the user.
          error: the exception that was raised here, if any.
        """
        foreseen = (UserError, Interrupted, OSError, KeyboardInterrupt)
        expected = error is None or isinstance(error, foreseen)
        mine = End(self.place.index, code, text)
        if not expected and is_first():  # the failure of another process may be its cause
            self._wait(_CAUSE, lambda: bool(self._failed()))
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        cause, agreed = (self._judge if is_first() else self._ask)(mine, expected)
        if agreed:
            jax.distributed.shutdown()
            return
        if cause == mine and error is not None and not expected:
            with contextlib.suppress(OSError):
                traceback.print_exception(error)
        if cause == mine or is_first() or cause == End(0, 1, _GONE):
            _say(cause)
        self._leave(cause)

    def _judge(self, mine: End, expected: bool) -> tuple[End, bool]:
        """In the first process: returns the cause of the end, and whether all end alike."""
        others = [end for end in self._failed() if not expected or end.code != mine.code]
        cause = (others or [mine])[0]
        if cause.code:
            self.tell({"end": cause})
        self._wait(
            _GRACE if cause.code else None,
            lambda: len(self._ends) == len(self._peers) or (not cause.code and self._failed()),
        )
        ends = list(self._ends.values())
        agreed = (
            expected and len(ends) == len(self._peers) and all(e.code == mine.code for e in ends)
        )
        if not agreed and not cause.code:
            cause = self._failed()[0]
        self.tell({"agreed": agreed, "end": cause})
        return cause, agreed

    def _ask(self, mine: End, expected: bool) -> tuple[End, bool]:
        """In another process: returns the same, as the first process decides."""
        self.tell({"end": mine})
        self._wait(
            2 * _GRACE if mine.code else None,
            lambda: self._verdict is not None or 0 in self._closed,
        )
        cause = self._ends.get(0, mine)
        own = cause.process == mine.process or (expected and mine.code)
        return mine if own else cause, bool(self._verdict)

    def _failed(self) -> list[End]:
        return [end for end in self._ends.values() if end.code]

    def _leave(self, cause: End) -> NoReturn:
        """Exits, without waiting as JAX would; the first process exits last."""
        try:
            self.tell({"end": cause})
            if is_first():
                self._wait(_GRACE + 2, lambda: len(self._closed) == len(self._peers))
            sys.stdout.flush()
        finally:  # whoever reads its output may be gone, and its disk full
            os._exit(cause.code or 1)

    def _wait(self, seconds: float | None, done: Callable[[], Any]) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(done, seconds))


def _told(message: dict[str, Any]) -> Any:
    if "error" in message:
        name, text = message["error"]
        kinds = {kind.__name__: kind for kind in (UserError, *UserError.__subclasses__())}
        raise kinds[name](text)
    return message["value"]


def _write(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _keep_watch(connection: socket.socket) -> None:
    """Makes the operating system notice within half a minute that a host is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    for name, value in (options | {"TCP_USER_TIMEOUT": 25_000}).items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _say(end: End) -> None:
    note(f"process {end.process}: {end.text}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 50 else f"{text[:50]}…"
