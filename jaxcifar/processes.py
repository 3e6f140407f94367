"""The processes that share a run: how they meet, what they agree on, and how they end.

All must issue the same computations in the same order. So whatever depends on a clock, a signal or
a file is decided by the first process and sent to the others (`share`), or agreed on (`agree`).

Only the first process writes files and prints. If one fails, all end (`jaxcifar.team`). No other
module asks JAX how many processes there are.
"""

import contextlib
import functools
import json
import os
import socket
import sys
from collections.abc import Callable, Generator
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcifar import signals
from jaxcifar.errors import UserError, in_short, of_file
from jaxcifar.launch import Place
from jaxcifar.team import Team, is_loopback

_F = TypeVar("_F", bound=Callable[..., Any])

_PLATFORMS = {"cpu", "cuda", "gpu", "oneapi", "rocm", "tpu"}

_team: Team | None = None  # None: one process
_alone = False  # True inside `share`, where nested calls behave as in one process


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
        return _team.receive(0)
    _alone = True
    try:
        made = make()
    except UserError as error:
        _team.send_error(error)
        raise
    except OSError as error:
        told = of_file(error)
        _team.send_error(told)
        raise told from error
    finally:
        _alone = False
    _team.send(made)
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
                f"Process {process} differs from process 0 in its {what}: {', '.join(shown)}. All "
                "processes of a run need the same. (Processes that each train a run of their own "
                "need --distributed=off.)"
            )


_pending: dict[str, jax.Array] = {}


def agree(topic: str, *values: int) -> list[int]:
    """Returns the maximum of each value over all processes.

    With several processes the answer comes one call later: this returns the maxima of the previous
    call with the same `topic`, or zeros if those were returned already. So no process waits for
    another, and devices never wait for the host. All processes must call this equally often, with
    equally many values.
    """
    if _team is None:
        return list(values)
    if topic in _pending:
        found = np.asarray(_pending.pop(topic)).tolist()
        if any(found):
            return found  # without another round: it may already cover this request
    mesh, largest = _largest()
    rows = np.asarray([values], np.int32)
    shape, split = (mesh.size, len(values)), NamedSharding(mesh, PartitionSpec("devices"))
    _pending[topic] = largest(jax.make_array_from_callback(shape, split, lambda _: rows))
    return [0] * len(values)


@functools.cache
def _largest() -> tuple[Mesh, Callable[[jax.Array], jax.Array]]:
    mesh = Mesh(np.asarray(jax.devices()), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    return mesh, jax.jit(lambda rows: rows.max(0), out_shardings=whole)


# --- how they start and end -------------------------------------------------------------------


class NoDevice(UserError):
    """JAX cannot use a device, and another start or another machine might."""


def devices() -> list[Any]:
    """Returns the devices of all processes.

    Raises:
      NoDevice: JAX has no device.
      UserError: JAX_PLATFORMS is misspelt, the processes cannot connect their CPUs, or JAX sees
        those of others that this process has not joined.
    """
    try:
        with _connecting():
            found = jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        setting = f"JAX_PLATFORMS is {platforms!r}, and " if platforms else ""
        misspelt = platforms and not set(platforms.split(",")) <= _PLATFORMS
        raise (UserError if misspelt else NoDevice)(
            f"{setting}JAX cannot use a device ({str(error) or type(error).__name__}). Unset "
            "JAX_PLATFORMS to use what is there, set it to cpu to use the CPU, or install jaxcifar "
            "for the accelerator ('.[cuda12]', '.[cuda13]', '.[tpu]')."
        ) from error
    if (hosts := jax.process_count()) > count():
        raise UserError(
            f"JAX sees the devices of {hosts} processes, but this one was started alone, as on one "
            "host of a TPU slice. To train one run on all of them, start `jaxcifar train` on every "
            f"host, with --coordinator_address=HOST:PORT, --num_processes={hosts} and --process_id "
            "where the slice does not provide them; a sweep cannot use a slice of several hosts. "
            "Everything else, such as an evaluation, runs in one process: with JAX_PLATFORMS=cpu, "
            "on the CPUs of this host."
        )
    return found


@contextlib.contextmanager
def together(place: Place | None, seconds: float) -> Generator[None]:
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
    _team = team = Team(place, seconds)
    try:
        _start_jax(team)
        yield
    except BaseException as error:
        code = team.end(error)
        jax.distributed.shutdown()
        if is_first():
            raise
        sys.exit(code)
    else:
        team.end(None)
        jax.distributed.shutdown()
    finally:
        _team = None


def leave(code: int, text: str) -> NoReturn:
    """Ends this process at once, from any thread, and with it the others of its run."""
    (_team or signals).leave(code, text)


def _start_jax(team: Team) -> None:
    """Starts JAX over all processes, and connects their devices."""
    place, port = team.place, 0
    if is_first():
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
    port = share(lambda: port)
    host = place.address.rpartition(":")[0]
    everywhere = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"
    # Its SIGTERM handler would replace ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"{host}:{port}",
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{host if is_loopback(host.strip('[]')) else everywhere}:{port}",
    )
    team.started = True
    devices()
    _check_numbers(place)
    here = jax.local_devices()
    kind = {"JAX": jax.__version__, "devices": len(here), "device": here[0].device_kind}
    check_same("machine", kind)
    # Devices connect in their first exchange, which on CPUs times out after 30 seconds. So it is
    # made here, where all processes arrive at about the same time; an exchange after compiling
    # would have to wait for the slowest of them.
    with _connecting():
        while not any(agree("start", 1)):
            pass


def _check_numbers(place: Place) -> None:
    """Checks that JAX numbers the processes as we do; on TPUs, their runtime does.

    Raises:
      UserError: it does not.
    """
    numbers = gather(jax.process_index())
    if sorted(numbers) != list(range(place.count)):
        raise UserError(
            f"The {place.count} processes of this run do not share their devices: JAX numbers them "
            f"{', '.join(map(str, numbers))}. Start it on all hosts of one TPU slice."
        )
    if numbers != list(range(place.count)):
        raise UserError(
            f"The TPU slice numbers the hosts of processes 0 to {place.count - 1} as "
            f"{', '.join(map(str, numbers))}. Start each with its number there as --process_id, "
            "and all with --coordinator_address=HOST:PORT, where HOST is the one that now has "
            f"process {numbers.index(0)}."
        )


@contextlib.contextmanager
def _connecting() -> Generator[None]:
    """Says what may be wrong if Gloo, which connects CPUs by the name of each host, fails."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        raise UserError(
            f"The processes cannot connect their CPUs ({in_short(error)}). Each host's name, here "
            f"{socket.gethostname()!r}, must resolve to an address that the others can reach: in "
            "/etc/hosts, replace a 127.0.1.1 for that name with the address, or add it. The hosts "
            "use ports chosen at each start, which no firewall may block."
        ) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 50 else f"{text[:50]}…"
