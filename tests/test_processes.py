"""One run over two processes of four devices each: real processes, which meet on this machine."""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxcifar import main, processes, sharding, team, train
from jaxcifar.errors import Busy, Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.launch import Place
from jaxcifar.run.lock import locked
from jaxcifar.signals import exit_code
from tests import member, tiny
from tests.forked import Forked, environment_of
from tests.sweeps import OPTIONS

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent
# With Adam, rounding grows: its first steps are the signs of the gradients.
WITH_BN = {"optim__name": "sgd", "optim__learning_rate": 0.01}
# Half the layers, which learn more slowly; `of_two` shows that BatchNorm is over all processes.
FIELDS = WITH_BN | {"model__name": "vgg_a", "optim__learning_rate": 0.1}
LIMIT = 240  # seconds; what ends by itself takes a tenth of it on a quiet machine
MINUTE = 60  # within which all end after one has


def environment(devices):
    return environment_of(devices) | {"TF_CPP_MIN_LOG_LEVEL": "3"}


class Member:
    """One process of a run.

    It is a fork of one that has imported all, or with `python` one that starts as any other.
    """

    def __init__(self, port, index, workdir, *, devices=4, python=False, cwd=ROOT, env=(), **told):
        told = {"workdir": str(workdir), "fields": FIELDS, "wait": 120} | told
        told["place"] = [f"127.0.0.1:{port}", 2, index]
        if not python:
            variables = environment(devices) | dict(env)
            self.process = Forked(member.main, told, environment=variables, cwd=cwd)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.member", json.dumps(told)],
            **{"cwd": ROOT, "env": environment(devices), "text": True},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def end(self, *, gloo=False):
        """Returns (exit code, what was printed), see `end_of`."""
        return end_of(self.process, gloo=gloo)


def end_of(process, seconds=LIMIT, *, gloo=False):
    """Returns (exit code, what was printed), without what Gloo says when devices connect."""
    try:
        printed = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hung, and had said: {process.communicate()}")
    said = "".join(printed)
    return process.returncode, said if gloo else without_gloo(said)


def without_gloo(said):
    """Leaves out "[Gloo] Rank 0 is connected to 7 peer ranks. Expected number …" of any threads.

    They write their lines in parts, which lie between those of others.
    """
    part = r"(?:\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of [a-z ]* is : )"
    return re.sub(rf"(?:^\d+)?{part}(?:{part}|[\d\n])*|^\d*\n", "", said, flags=re.MULTILINE)


def test_what_gloo_says_is_left_out_however_its_threads_write():
    line = ["[Gloo] Rank ", "3", " is connected to ", "7", " peer ranks. "]
    line += ["Expected number of connected peer ranks is : ", "7", "\n"]
    draw = random.Random(0)
    for _ in range(100):
        threads, left = [0, 1, 2] * len(line), [iter(line) for _ in range(3)]
        draw.shuffle(threads)
        said = "".join(next(left[thread]) for thread in threads)
        said = f"saved at step 3\n{said}".replace("7\n", "7\njaxcifar: 1 of 2\n", 1)
        assert without_gloo(said) == "saved at step 3\njaxcifar: 1 of 2\n"


def ends_of(*started):
    """Returns [(exit code, what was printed), …] of the processes of a run, which end together."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        time.sleep(0.1)
    return [end_of(process, MINUTE) for process in started]


def under_mpirun(**told):
    """Runs two processes that Open MPI starts; returns (exit code, what was printed)."""
    command = ["mpirun", "-n", "2", "--bind-to", "none", "--oversubscribe"]
    told = json.dumps({"fields": FIELDS, "wait": 120} | told)
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = subprocess.run(
        [*command, sys.executable, "-m", "tests.member", told],
        **{"cwd": ROOT, "env": environment(4) | as_root, "text": True},
        **{"timeout": LIMIT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )
    return ended.returncode, ended.stdout


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_processes_that_were_told_of_other_numbers_of_them():
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    with connect(port) as connection:
        connection.sendall(json.dumps({"jaxcifar": [3, 4]}).encode() + b"\n")
        code, said = end_of(first)
    text = "Process 3 was started as one of 4 (--num_processes), process 0 as one of 3."
    assert (code, said.startswith(text)) == (0, True), said


def meet(port):
    """Awaits two others as the first process."""
    try:
        team.Team(Place(f"127.0.0.1:{port}", 3, 0), 30)
        print("met")
    except UserError as error:
        print(error)


@pytest.mark.parametrize(
    ("hangs_up", "started", "result"),
    [
        ("silently", (1, 1, 2), "met"),
        ("with a word", (1, 1, 2), "met"),
        ("", (1, 1), "Two processes of the run have --process_id=1"),
    ],
)
def test_a_process_that_is_started_again_takes_the_place_of_the_first(hangs_up, started, result):
    """While another is awaited; but not the place of one that is still there."""
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    with contextlib.ExitStack() as connections:
        for number, index in enumerate(started):
            connection = connect(port)
            connections.callback(connection.close)
            connection.sendall(json.dumps({"jaxcifar": [index, 3]}).encode() + b"\n")
            if number == 0 and hangs_up:
                if hangs_up == "with a word":  # as where Ctrl-C ended it
                    connection.sendall(b'{"end": [1, 130, "Stopped by SIGINT."]}\n')
                connection.close()
        code, said = end_of(first)
    assert (code, said.startswith(result)) == (0, True), said


@pytest.mark.parametrize(
    "said",
    [
        b'{"jaxcifar": ["x", 3]}\n',
        b'{"jaxcifar": [[1], 3]}\n',
        b"[" * 100_000,
        b"GET / HTTP/1.0\r\n\r\n",
        b"",
    ],
)
def test_a_stranger_at_the_port_of_a_run_is_sent_away(said):
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    with contextlib.ExitStack() as connections:
        for line in (said, *(json.dumps({"jaxcifar": [i, 3]}).encode() + b"\n" for i in (1, 2))):
            connection = connections.enter_context(connect(port))
            with contextlib.suppress(OSError):  # it has heard enough
                connection.sendall(line)
            if not line:
                connection.shutdown(socket.SHUT_WR)
        assert end_of(first) == (0, "met\n")


def test_a_process_that_has_waited_too_long_is_not_met():
    """It has called in vain, and will call again."""
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    one, two = (json.dumps({"jaxcifar": [index, 3]}).encode() + b"\n" for index in (1, 2))
    with connect(port) as second:
        second.sendall(two)
        with connect(port) as stranger:
            with connect(port) as gave_up:
                gave_up.sendall(one)
            stranger.shutdown(socket.SHUT_WR)  # now the next is heard
        time.sleep(1)
        assert first.poll() is None
        with connect(port) as again:
            again.sendall(one)
            assert end_of(first) == (0, "met\n")


def test_a_stranger_who_speaks_slowly_keeps_nobody_waiting_for_long():
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    with connect(port) as slow, connect(port) as one, connect(port) as two:
        for index, connection in enumerate((one, two), start=1):
            connection.sendall(json.dumps({"jaxcifar": [index, 3]}).encode() + b"\n")
        with contextlib.suppress(OSError):
            while first.poll() is None:
                slow.sendall(b"x")
                time.sleep(1)
        assert end_of(first) == (0, "met\n")


def test_a_run_of_this_machine_cannot_be_reached_from_others():
    port = free_port()
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    # "All addresses" would include the second.
    with connect(port), socket.create_server(("127.0.0.2", port)):
        first.kill()


def test_the_first_process_has_to_answer():
    """Not a proxy in front of it, or another program at its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port, strangers = server.getsockname()[1], []
        second = Forked(join, port, 60, environment=environment(1), cwd=ROOT)
        for _ in range(2):
            strangers.append(server.accept()[0])
            strangers[-1].close()
        silent = server.accept()[0]
    first = Forked(meet, port, environment=environment(1), cwd=ROOT)
    silent.close()
    with connect(port) as third:
        third.sendall(json.dumps({"jaxcifar": [2, 3]}).encode() + b"\n")
        assert [end_of(process) for process in (first, second)] == [(0, "met\n")] * 2


def test_a_program_that_never_answers_is_not_waited_for_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, said = end_of(Forked(join, port, 2, environment=environment(1), cwd=ROOT))
    assert code == 0
    assert "could not reach the first process" in said
    assert "within 2 seconds (what listens there does not answer as a process of the run)" in said


def join(port, seconds):
    """Meets the first of three processes, as the second."""
    try:
        team.Team(Place(f"127.0.0.1:{port}", 3, 1), seconds)
        print("met")
    except UserError as error:
        print(error)


def connect(port):
    """A connection to a port at which somebody will soon listen."""
    for _ in range(900):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        time.sleep(0.1)
    raise AssertionError("nobody listens")


def two(workdir, first=None, second=None):
    """Runs two processes to their ends; returns [(exit code, what was printed), …]."""
    port = free_port()
    members = [
        Member(port, index, **({"workdir": workdir} | (told or {})))
        for index, told in enumerate((first, second))
    ]
    return ends_of(*(member.process for member in members))


def both(function, *arguments):
    """Calls `function(port, index, *arguments)` in two processes; returns their ends."""
    port = free_port()
    made = [
        Forked(function, port, index, *arguments, environment=environment(4), cwd=ROOT)
        for index in (0, 1)
    ]
    return ends_of(*made)


def losses(workdir):
    return [epoch["loss"] for epoch in read_lines(workdir / "steps.jsonl")]


def validation(workdir):
    return [epoch["val_loss"] for epoch in read_lines(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run of one process on eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    tiny.run(tiny.tiny(**FIELDS), workdir, devices=8)
    return workdir


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The workdir of a run of two processes, started as any other, and what they printed."""
    workdir, told = tmp_path_factory.mktemp("of_two") / "run", {"python": True, "fields": WITH_BN}
    (code, said), (other_code, other_said) = two(workdir, told, told)
    assert (code, other_code) == (0, 0), said + other_said
    return workdir, said, other_said


def check_same_numbers(workdir, alone):
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    np.testing.assert_allclose(validation(workdir), validation(alone), rtol=1e-5)


def test_two_processes_are_one_run(of_two, tmp_path):
    workdir, said, other_said = of_two
    alone = tmp_path / "alone"
    tiny.run(tiny.tiny(**WITH_BN), alone, devices=8)
    check_same_numbers(workdir, alone)
    # The first one alone speaks.
    assert "8 × cpu" in said
    assert other_said == ""
    machine = json.loads((workdir / "config.json").read_text())["environment"]
    assert (machine["processes"], machine["devices"]) == (2, 8)


def run_command(port, index, *arguments):
    place = f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"
    return main.run([*arguments, *place])


def test_two_commands_with_the_flags_are_one_run(tmp_path):
    workdir = tmp_path / "run"
    (code, said), (other_code, other_said) = both(
        run_command, "--config=vgg6", f"--workdir={workdir}", "--config.optim.name=sgd", *OPTIONS
    )
    assert (code, other_code, other_said) == (0, 0, ""), said + other_said
    assert f"everything is in {workdir}" in said
    assert json.loads((workdir / "config.json").read_text())["environment"]["processes"] == 2


def cache_of_command(port, index, folders):
    jax.config.update("jax_compilation_cache_dir", folders[index])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    assert run_command(port, index) == 2  # without a config, so that it ends at once
    before = set(os.listdir(folders[0]))
    jax.jit(lambda x: 3 * x + 1)(2.0)
    print(
        jax.config.jax_compilation_cache_dir, "used" if {*os.listdir(folders[0])} - before else ""
    )


def test_processes_compile_without_a_cache_that_they_do_not_share(tmp_path):
    """On GPUs, those that find a program in theirs leave the others waiting."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    (_, said), (_, other_said) = both(cache_of_command, (a, a))
    assert f"{a} used\n" in said
    assert other_said.startswith(f"{a} ")
    (tmp_path / "locked").write_text("")  # no process can use it
    for first, second in ((a, b), (a, str(tmp_path / "locked" / "c"))):
        (_, said), (_, other_said) = both(cache_of_command, (first, second))
        assert said.count("compiling without a cache") == 1
        assert "None \n" in said
        assert "None \n" in other_said


def start_numbered(port, index, numbers):
    def start():
        with processes.together(Place(f"127.0.0.1:{port}", 2, index), 60):
            print("started")

    jax.process_index = lambda: numbers[index]
    return exit_code(start, processes.leave)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            (1, 0),
            r"as 1, 0\. .* --coordinator_address=HOST:PORT, where HOST .* process 1\.",
        ),
        ((0, 0), r"do not share their devices: JAX numbers them 0, 0\. .* hosts of one TPU slice"),
    ],
)
def test_jax_numbers_the_processes_otherwise(numbers, message):
    """As TPUs may, whose runtime knows where in the slice it is."""
    (code, said), (other_code, other_said) = both(start_numbered, numbers)
    assert (code, other_code) == (2, 2)
    assert re.search(message, said)
    assert other_said == ""


@pytest.mark.parametrize(
    ("when", "step"), [({"term": 1}, 2), ({"term": 3, "where": "before_evaluation"}, 3)]
)
def test_a_signal_to_one_stops_all_and_one_process_goes_on(alone, tmp_path, when, step):
    workdir = tmp_path / "run"
    ends = two(workdir, second=when)
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert f"saved at step {step}" in ends[0][1]
    assert (workdir / "metrics.jsonl").read_text() == ""  # the epoch is not evaluated yet
    tiny.run(tiny.tiny(**FIELDS), workdir, devices=8)
    check_same_numbers(workdir, alone)


@pytest.mark.parametrize(
    ("told", "code"), [({"term": 1}, 128 + signal.SIGTERM), ({"spoil": 1, "fields": WITH_BN}, 2)]
)
def test_an_agreed_end_waits_for_who_takes_long_to_close(tmp_path, told, code):
    """Longer than processes wait for each other once one has ended."""
    told |= {"closes": team.VERDICT + 3}
    first, second = two(tmp_path / "run", told if code == 2 else {"closes": told["closes"]}, told)
    assert (first[0], second[0]) == (code, code), (first, second)
    assert "closed" in first[1]
    assert first[1].count("jaxcifar: ") == 1
    assert second[1] == ""


@pytest.mark.parametrize("when", ["term_loading", "term_compiling"])
def test_a_signal_before_the_first_step_stops_all_at_once(tmp_path, when):
    ends = two(tmp_path / "run", second={when: True})
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert "process 1: Stopped by SIGTERM. Nothing" in ends[0][1]
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_two_processes_start_from_the_weights_of_a_run(alone, tmp_path):
    of_one, of_two, source = tmp_path / "one", tmp_path / "two", tmp_path / "source"
    shutil.copytree(alone, source)
    fields = FIELDS | {"init_from": str(source)}
    tiny.run(tiny.tiny(**fields), of_one, devices=8)
    told = {"fields": fields}
    ends = two(of_two, told, told | {"term": 4})
    assert [code for code, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert f"starts from {source}" in ends[0][1]
    shutil.rmtree(source)  # what goes on needs it no more
    ends = two(of_two, told, told)
    assert [code for code, _ in ends] == [0, 0], ends
    check_same_numbers(of_two, of_one)
    assert losses(of_one)[0][0] != losses(alone)[0][0]


def test_the_weights_to_start_from_are_the_same_everywhere(alone, tmp_path):
    fields, other = FIELDS | {"init_from": "run"}, tmp_path / "other"
    tiny.run(tiny.tiny(**FIELDS, seed=1), other / "run", devices=8)
    shutil.copytree(alone, tmp_path / "first" / "run")
    workdir, told = tmp_path / "new", {"fields": fields}
    ends = two(workdir, told | {"cwd": str(tmp_path / "first")}, told | {"cwd": str(other)})
    assert [code for code, _ in ends] == [2, 2], ends
    assert "Process 1 differs from process 0 in its weights (config.init_from)" in ends[0][1]
    assert not (workdir / "checkpoints").exists()


def test_two_processes_go_on_where_one_was_stopped(alone, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(Interrupted):
        tiny.run(tiny.tiny(**FIELDS), workdir, tiny.SignalAt(4), devices=8)
    ends = two(workdir)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "resumed after epoch 1, step 4" in ends[0][1]
    assert "processes 1 -> 2" in ends[0][1]
    check_same_numbers(workdir, alone)


def test_the_first_fails_and_two_go_on_from_what_it_saved_within_an_epoch(of_two, tmp_path):
    """Only its clock says when to save."""
    workdir = tmp_path / "run"
    told = {"fields": WITH_BN}
    saves_often = {"fields": WITH_BN | {"train__checkpoint_minutes": 1e-6}}
    (code, said), (other_code, other_said) = two(workdir, saves_often | {"raise": 5}, told)
    assert (code, other_code, other_said) == (1, 1, "")
    assert "jaxcifar: process 0: failed" in said
    assert "on purpose" in said
    ends = two(workdir, saves_often, told)
    assert [code for code, _ in ends] == [0, 0], ends
    assert "resumed after epoch 1, step 4" in ends[0][1]
    assert losses(workdir) == losses(of_two[0])
    assert validation(workdir) == validation(of_two[0])


def test_a_killed_process_ends_the_others(alone, tmp_path):
    workdir = tmp_path / "run"
    (code, said), (killed, _) = two(workdir, second={"kill": 4})
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "jaxcifar: process 1: is gone" in said
    assert "the same command resumes the run" in said
    tiny.run(tiny.tiny(**FIELDS), workdir, devices=8)
    check_same_numbers(workdir, alone)


def test_the_devices_are_connected_before_anything_takes_long(tmp_path):
    # Gloo gives them 30 seconds, which is less than processes are apart after compiling.
    port, stops = free_port(), {"term_loading": True}
    first, second = (Member(port, index, tmp_path / "run", **stops) for index in (0, 1))
    assert "[Gloo] Rank 0 is connected" in first.end(gloo=True)[1]
    second.end()


@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun (Open MPI) on the PATH")
def test_a_process_killed_under_mpirun(alone, tmp_path):
    workdir = tmp_path / "run"
    code, said = under_mpirun(workdir=str(workdir), kill=4, who=1)
    assert code == 128 + signal.SIGKILL, said
    code, said = under_mpirun(workdir=str(workdir))
    assert code == 0, said
    assert "resumed after" in said
    check_same_numbers(workdir, alone)


def test_a_finished_run_is_finished_for_all(alone, tmp_path):
    workdir = shutil.copytree(alone, tmp_path / "run")

    def files():
        found = {path: path.stat() for path in workdir.rglob("*") if path.name != ".lock"}
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}

    before = files()
    assert [code for code, _ in two(workdir)] == [0, 0]
    assert files() == before


def test_the_death_of_the_first_ends_the_others(alone, tmp_path):
    workdir = tmp_path / "run"
    (killed, _), (code, said) = two(workdir, first={"kill": 4})
    assert killed == -signal.SIGKILL
    assert "jaxcifar: process 0: is gone" in said
    assert code != 0  # JAX may abort it right after the message
    tiny.run(tiny.tiny(**FIELDS), workdir, devices=8)
    check_same_numbers(workdir, alone)


@pytest.fixture
def hosts(tmp_path):
    """Two hosts on this one: {name: (address, the beginning of a command that runs there)}.

    Each has a network of its own, and they are connected by a cable.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("hosts are made by root, with ip (Debian's iproute2)")
    names = {f"jc{os.getpid()}{end}": f"10.91.7.{number}" for number, end in enumerate("ab", 1)}
    made = subprocess.run(["ip", "netns", "add", next(iter(names))], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network can be made here: {made.stderr.strip()}")
    first, second = names
    known = tmp_path / "hosts"
    known.write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    try:
        ip("netns", "add", second)
        ends = ("peer", "name", "cable", "netns", second)
        ip("-n", first, "link", "add", "cable", "type", "veth", *ends)
        for name, address in names.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        setup = f'mount --bind {known} /etc/hosts && hostname $0 && exec "$@"'
        inside = ("unshare", "--mount", "--uts", "sh", "-c", setup)
        yield {
            name: (address, ["ip", "netns", "exec", name, *inside, name])
            for name, address in names.items()
        }
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def on_hosts(hosts, **told):
    """Starts a process of a run on each host."""
    (first, _), *_ = hosts.values()
    members = []
    for index, (_, beginning) in enumerate(hosts.values()):
        told |= {"fields": FIELDS, "wait": 120, "place": [f"{first}:4321", 2, index]}
        command = [*beginning, sys.executable, "-m", "tests.member", json.dumps(told)]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        members.append(subprocess.Popen(command, cwd=ROOT, env=environment(4), **out))
    return members


def test_two_hosts_between_which_the_cable_is_cut(hosts, alone, tmp_path):
    """Neither hears of the other's end: both must notice that there is silence."""
    workdir = tmp_path / "run"
    members = on_hosts(hosts, workdir=str(workdir), slow=True)
    deadline = time.monotonic() + LIMIT
    while not (workdir / "metrics.jsonl").exists() or not read_lines(workdir / "metrics.jsonl"):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in members), ends_of(*members)
        time.sleep(0.05)
    ip("-n", list(hosts)[1], "link", "set", "cable", "down")
    for index, process in enumerate(members):
        code, said = end_of(process, MINUTE)
        assert code == 1
        assert f"jaxcifar: process {1 - index}: is gone: it was killed, or its host is down" in said
    assert len(read_lines(workdir / "metrics.jsonl")) == 1
    tiny.run(tiny.tiny(**FIELDS), workdir, devices=8)
    check_same_numbers(workdir, alone)


def test_a_host_whose_name_leads_nowhere(tmp_path):
    name = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh"]
    if os.geteuid() != 0 or subprocess.run([*name, "true"], capture_output=True).returncode:
        pytest.skip("only root gives hosts their names, with unshare (of util-linux)")
    port, ends = free_port(), []
    for index in (0, 1):
        told = {"workdir": str(tmp_path / "run"), "place": [f"127.0.0.1:{port}", 2, index]}
        command = [*name, sys.executable, "-m", "tests.member", json.dumps(told)]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ends.append(subprocess.Popen(command, cwd=ROOT, env=environment(1), **out))
    (code, said), (other_code, _) = ends_of(*ends)
    assert (code, other_code) == (2, 2), said
    assert "Each host's name, here 'nowhere.invalid', must resolve to an address" in said
    assert "Traceback" not in said


def test_a_device_that_cannot_be_used_in_a_run_of_several_processes(tmp_path):
    place = f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=1", "--process_id=0"
    arguments = ["--config=vgg6", f"--workdir={tmp_path / 'run'}", *OPTIONS, *place]
    broken = environment(1) | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    code, said = end_of(Forked(main.run, arguments, environment=broken, cwd=tmp_path))
    assert code == 2, said
    assert "JAX_PLATFORMS is 'cuda', and JAX cannot use a device" in said
    assert "Traceback" not in said


def test_all_end_within_a_minute():
    waits = (team.UNNOTICED, team.GRACE, team.CAUSE, team.VERDICT, team.LAST)
    assert sum(waits) < MINUTE


def test_an_exception_in_one_ends_all(tmp_path):
    (code, said), (other_code, other_said) = two(tmp_path / "run", second={"raise": 1})
    assert code == other_code == 1
    assert "jaxcifar: process 1: failed" in said
    assert "on purpose" in other_said


def test_divergence_is_told_once(tmp_path):
    spoil = {"spoil": 1}
    (code, said), (other_code, other_said) = two(tmp_path / "run", spoil, spoil)
    assert code == other_code == 2
    assert said.count("The training loss of step 2 is not finite") == 1
    assert "is not finite" not in other_said


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"images": True}, r"Process 1 differs from process 0 in its data \(SHA-256\)"),
        ({"fields": FIELDS | {"seed": 7}}, "Process 1 .* its config: seed 0 -> 7"),
        ({"devices": 2}, "Process 1 .* its machine: .*devices 4 -> 2"),
        ({"jax": {"jax_default_matmul_precision": "highest"}}, "Process 1 .* default -> highest"),
    ],
)
def test_processes_that_are_not_alike(second, message, tmp_path):
    (code, said), (other_code, _) = two(tmp_path / "run", second=second)
    assert code == other_code == 2, said
    assert re.search(message, said)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_processes_of_other_code(tmp_path):
    (code, said), (other_code, _) = two(tmp_path / "run", second={"code": "0123"})
    assert code == other_code == 2, said
    assert "Process 1 differs from process 0 in its environment: code" in said


def refused(port, index, workdir, kind):
    with processes.together(Place(f"127.0.0.1:{port}", 2, index), 60):
        with pytest.raises(kind) as caught:
            train.train_and_evaluate(tiny.tiny(**FIELDS), workdir)
        print(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"), [(Busy, "Another process is training in"), (UserError, "seed: 1 -> 0")]
)
def test_what_only_the_first_can_find_ends_all_alike(alone, tmp_path, kind, message):
    workdir = shutil.copytree(alone, tmp_path / "run")
    about = json.loads((workdir / "config.json").read_text())
    about["config"]["seed"] = 1
    (workdir / "config.json").write_text(json.dumps(about))
    with locked(workdir) if kind is Busy else contextlib.nullcontext():
        ends = both(refused, str(workdir), kind)
    assert [code for code, _ in ends] == [0, 0], ends
    assert all(message in said for _, said in ends)


def replicate_what_differs(port, index):
    with processes.together(Place(f"127.0.0.1:{port}", 2, index), 60):
        mesh = sharding.make_mesh()
        whole = sharding.replicate(np.full(3, index), mesh)
        assert whole.sharding == sharding.replicated(mesh)
        assert mesh.size == 2 * len(whole.addressable_shards)
        for shard in whole.addressable_shards:
            assert jax.device_get(shard.data).tolist() == [index] * 3


def test_replication_sends_nothing_to_other_processes():
    """What it does not compare may differ."""
    ends = both(replicate_what_differs)
    assert [code for code, _ in ends] == [0, 0], ends


def leave_on_a_full_disk(port, full_disk):
    """What it prints cannot be written, as where its output goes to a file."""
    with open(full_disk, "w") as full, processes.together(Place(f"127.0.0.1:{port}", 1, 0), 60):
        sys.stdout = full
        print("this is buffered")
        os.dup2(full.fileno(), sys.stderr.fileno())
        thread = threading.Thread(target=processes.leave, args=(143, "Stopped."))
        thread.start()
        thread.join()  # it is not the main thread that answers a signal, or the end of another


def test_an_end_that_cannot_be_told_is_an_end(tmp_path, full_disk):
    told = (leave_on_a_full_disk, free_port(), full_disk)
    process = Forked(*told, environment=environment(1), cwd=tmp_path)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 143


def exit_inside(port, code):
    with processes.together(Place(f"127.0.0.1:{port}", 1, 0), 60):
        sys.exit(code)


@pytest.mark.parametrize("code", [None, 3])
def test_an_exit_is_an_end(code):
    process = Forked(exit_inside, free_port(), code, environment=environment(1), cwd=ROOT)
    ended, said = end_of(process)
    assert (ended, "Traceback" in said) == (code or 0, False), said


def test_the_cursor_is_shown_again(monkeypatch):
    """That a progress bar has hidden."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        team.Team(Place(f"127.0.0.1:{free_port()}", 1, 0), 1).leave(143, "Stopped.")
    assert (ended.value.code, terminal.getvalue()) == (143, "\x1b[?25h\n")


@pytest.mark.parametrize(("platform", "kind"), [("gpu", processes.NoDevice), ("gpus", UserError)])
def test_a_device_that_breaks_is_not_a_platform_that_is_misspelt(monkeypatch, platform, kind):
    def broken():
        raise RuntimeError("no GPU")

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "devices", broken)
    with pytest.raises(UserError, match=f"JAX_PLATFORMS is '{platform}'") as error:
        processes.devices()
    assert type(error.value) is kind


def test_what_only_one_process_has_differs(monkeypatch):
    monkeypatch.setattr(processes, "gather", lambda _: [{"a": 1}, {"a": 1, "b": 2}])
    with pytest.raises(UserError, match=r"Process 1 .* its data: .*b None -> 2"):
        processes.check_same("data", {"a": 1})


def test_another_folder(tmp_path):
    (code, said), (other_code, _) = two(tmp_path / "a", second={"workdir": str(tmp_path / "b")})
    assert code == other_code == 2
    assert "of process 1 is not the same folder as that of process 0" in said
    assert not (tmp_path / "b").exists()


def test_a_process_that_never_comes(tmp_path):
    code, said = Member(free_port(), 0, tmp_path / "run", wait=2).end()
    assert code == 2
    assert "did not connect within 2 seconds: 1." in said
    assert "--distributed=off" in said
    assert not (tmp_path / "run").exists()


def test_a_first_process_that_is_not_there(tmp_path):
    code, said = Member(free_port(), 1, tmp_path / "run", wait=2).end()
    assert code == 2
    assert "Process 1 could not reach the first process at 127.0.0.1" in said


def test_a_port_in_use(tmp_path):
    with socket.create_server(("", 0)) as server:
        code, said = Member(server.getsockname()[1], 0, tmp_path / "run", wait=2).end()
    assert code == 2
    assert "cannot listen on port" in said
