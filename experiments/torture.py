"""Does to tiny runs what happens to long jobs, and compares what comes out with an undisturbed run.

    python -m experiments.torture --out=/tmp/torture --kills=20 --signals=2 --flips=30 --damage=all

  kills     SIGKILL at random moments, in separate processes
  signals   SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2, so many of each, at random moments
  damage    every file of an unfinished and of a finished run cut in half, emptied, one bit of it
            flipped, deleted, and replaced by a folder
  flips     single bits, anywhere in the checkpoints

Kills and signals are counted where they end a process: those that come too late are sent again, in
another run.

Each run is resumed by the same call; a damaged one is evaluated first. It must end with exactly the
numbers of the undisturbed run, or be refused with one message. (If the best checkpoint is older
than the newest two and is lost, there is no copy of it: then all numbers must be the same, and its
loss must be reported.) Anything else is a failure. What was done is kept in OUT/cases.jsonl: the
same command continues where it was stopped, and another --seed adds to it. At the end a table of
all cases is printed. The exit code is 1 if anything failed.
"""

import collections
import contextlib
import functools
import io
import json
import multiprocessing
import os
import pathlib
import platform
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from typing import Any

import jax
import numpy as np

from experiments.runs.table import Table
from jaxcifar import restore, train
from jaxcifar.config import Config, base_config
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import append, read_json, read_lines
from jaxcifar.hooks import Hook, Run
from jaxcifar.options import Parser, user_path
from jaxcifar.run import about
from jaxcifar.run.machine import environment
from jaxcifar.signals import exit_code

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SAME, _LOST, _REFUSED, _FAILED = "same numbers", "same, checkpoint lost", "refused", "FAILED"


def tiny_config(protocol: str) -> Config:
    """A narrow VGG on 100 made-up images: three steps an epoch, each saved, and four epochs."""
    config = base_config()
    config.model.name, config.model.width = "vgg_a_bn", 0.05
    config.data.name, config.data.protocol = "synthetic", protocol
    config.optim.learning_rate = 0.01
    config.train.batch_size, config.train.limit_train_images = 32, 100
    config.train.epochs, config.train.checkpoint_minutes = 4, 1e-9
    config.train.eval_batch_size = 96  # 256 images in 96 + 96 + 64
    return config


# --- what a run is compared by ----------------------------------------------------------------


def numbers(folder: pathlib.Path) -> dict[str, Any]:
    """All numbers of a finished run but its times."""
    records = read_lines(folder / "metrics.jsonl")
    untimed = [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in records
    ]
    result = read_json(folder / "result.json")
    found: dict[str, Any] = {
        "metrics": untimed,
        "steps": read_lines(folder / "steps.jsonl"),
        "best": result["best"]["epoch"],
        "last": result["last"]["epoch"],
        "test": result.get("test"),
    }
    for which in restore.WHICH:
        try:
            _, step, variables = restore.load_variables(folder, which)
        except UserError as error:
            found[f"{which} checkpoint"] = str(error)
            continue
        leaves = jax.tree.leaves(jax.device_get(variables))
        found[f"{which} checkpoint"] = step, b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Which of two runs' numbers differ, in words; "" where none do."""
    return ", ".join(name for name in theirs if ours.get(name) != theirs[name])


# --- the cases --------------------------------------------------------------------------------


class StopAt(Hook):
    """Asks for the end where `step` steps are done."""

    def __init__(self, step: int):
        self.step = step

    def before_call(self, run: Run) -> None:
        if run.step == self.step:
            run.stop.request("on purpose")


class Torture:
    """All cases of one output folder, and the runs that they start from."""

    def __init__(self, out: pathlib.Path, seed: int):
        self.out, self.seed = out, seed
        out.mkdir(parents=True, exist_ok=True)
        self.cases = out / "cases.jsonl"
        self.done = {case["case"]: case for case in read_lines(self.cases) if case["seed"] == seed}
        # Its own, as a process of an earlier start that was killed may still write.
        self.folder = out / f"work-{seed}-{os.getpid()}"
        self.where = where()

    @functools.cache  # noqa: B019 (there is one object)
    def sample(self, protocol: str, end: str) -> pathlib.Path:
        """The folder of an undisturbed run, "finished" or "stopped" after ten of twelve steps.

        Raises:
          UserError: one was made on another number of cores, on which sums round otherwise.
        """
        folder, config = self.out / "undisturbed" / f"{protocol}-{end}", tiny_config(protocol)
        made = about.read(folder)
        here = environment({})["cpus"]
        if made and (there := made.environments[-1]["cpus"]) != here:
            raise UserError(
                f"{self.out} has cases of {there} cores, and this process has {here}: sums are "
                "rounded differently there. Use as many cores, or another --out."
            )
        if end == "finished":
            train.train_and_evaluate(config, folder, quiet=True)
        elif not (folder / "stopped").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(Interrupted):
                train.train_and_evaluate(config, folder, hooks=[StopAt(10)], quiet=True)
            (folder / "stopped").touch()
        return folder

    @functools.cache  # noqa: B019 (there is one object)
    def expected(self, protocol: str) -> dict[str, Any]:
        """The numbers of an undisturbed run."""
        return numbers(self.sample(protocol, "finished"))

    @functools.cache  # noqa: B019 (there is one object)
    def evaluated(self, protocol: str, end: str, which: str) -> tuple[Any, ...] | str:
        """What an undisturbed run evaluates to."""
        return _evaluated(self.sample(protocol, end), which)

    def run(
        self,
        case: str,
        kind: str,
        protocol: str,
        disturb: Callable[[pathlib.Path, random.Random], Iterator[None]],
        may_be_lost: Sequence[str] = (),
    ) -> int:
        """Does a case once: a run is disturbed in a folder, and resumed there.

        Args:
          case, kind, protocol: its name, what is done to the run, and the run's data.protocol.
          disturb: disturbs the run in a folder, and yields each time.
          may_be_lost: the checkpoints, by their names in `numbers`, that nothing can make again.

        Returns:
          How often it was disturbed, which is how often `disturb` yields.
        """
        if case in self.done:
            return self.done[case]["times"]
        folder, times = self.folder, 0
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for _ in disturb(folder, random.Random(f"{self.seed} {case}")):
                times += 1
            outcome, said = _REFUSED, _resumed(tiny_config(protocol), folder)
            if not said:
                outcome, ours, theirs = _SAME, numbers(folder), self.expected(protocol)
                lost = [name for name in may_be_lost if isinstance(ours[name], str)]  # is refused
                if wrong := differences(ours | {name: theirs[name] for name in lost}, theirs):
                    outcome, said = _FAILED, f"other {wrong}"
                elif lost:
                    outcome, said = _LOST, "; ".join(ours[name] for name in lost)
            if outcome != _SAME and kind.startswith("SIG"):  # only damage may cost anything
                outcome = _FAILED
        except Interrupted:  # the torture itself is asked to end: the case is done again
            raise
        except Exception:  # whatever it is, it is what is looked for
            outcome, said = _FAILED, traceback.format_exc()
        self.done[case] = {
            "case": case,
            "seed": self.seed,
            "kind": kind,
            "times": times,
            "outcome": outcome,
            "said": said,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "where": self.where,
        }
        append(self.cases, json.dumps(self.done[case]))
        if outcome == _FAILED:
            print(f"FAILED {case}: {said}", flush=True)
            with contextlib.suppress(OSError):
                folder.rename(self.out / f"failed-{self.seed}-{case.replace('/', '-')}")
        shutil.rmtree(folder, ignore_errors=True)
        _said(folder).unlink(missing_ok=True)
        return times

    def damaged(self, protocol: str, end: str, name: str, how: str, number: int = 0) -> None:
        """One file of a run is damaged."""

        def disturb(folder: pathlib.Path, random: random.Random) -> Iterator[None]:
            shutil.copytree(self.sample(protocol, end), folder)
            damage(folder / name, how, random)
            yield
            for which in restore.WHICH if name.startswith(("checkpoints", "config")) else ():
                one, other = self.evaluated(protocol, end, which), _evaluated(folder, which)
                if not isinstance(other, str) and one != other:
                    raise AssertionError(f"evaluates to {other}, not {one}")

        # A finished run reads no checkpoint again: whoever evaluates it is told.
        lost = ("best checkpoint", "last checkpoint")[: 2 if end == "finished" else 1]
        self.run(f"{how} {number} {protocol}-{end} {name}", how, protocol, disturb, lost)

    def killed(self, number: int) -> int:
        """A run is killed up to four times; returns how often that ended a process."""
        protocol = ("test", "holdout")[number % 2]

        def disturb(folder: pathlib.Path, random: random.Random) -> Iterator[None]:
            for _ in range(random.randint(1, 4)):
                with _process(protocol, folder) as process:
                    _wait(process, folder, random)
                    process.kill()
                    process.join()
                if process.exitcode not in (0, -signal.SIGKILL):
                    raise AssertionError(
                        f"exit code {process.exitcode}: {_said(folder).read_text()}"
                    )
                if process.exitcode:
                    yield

        return self.run(f"SIGKILL {number}", "SIGKILL", protocol, disturb)

    def signalled(self, name: str, number: int) -> int:
        """A run gets a signal; returns whether that ended the process."""
        protocol, signum = ("test", "holdout")[number % 2], signal.Signals[name]

        def disturb(folder: pathlib.Path, random: random.Random) -> Iterator[None]:
            with _process(protocol, folder) as process:
                _wait(process, folder, random)
                if process.is_alive():
                    os.kill(process.pid, signum)
                process.join(timeout=120)
                code, said = process.exitcode, ""
                with contextlib.suppress(FileNotFoundError):  # it had not begun
                    said = _said(folder).read_text()
            if "Stopped by" in said:  # else it had ended before, or had not begun
                yield
            expected = (128 + signum,) if "Stopped by" in said else (0, -signum)
            if code not in expected or "Traceback" in said:
                raise AssertionError(f"exit code {code}: {said}")

        return self.run(f"{name} {number}", name, protocol, disturb)


def damage(path: pathlib.Path, how: str, random: random.Random) -> None:
    """Damages a file: "half", "empty", "flip" or "bit" (a bit of it), "delete" or "folder"."""
    content = bytearray(path.read_bytes())
    if how in ("delete", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    if how == "half":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif content:
        place = random.randrange(8 * len(content))
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def files(folder: pathlib.Path, *, checkpoints: bool = False) -> list[str]:
    """The files of a run, or of its checkpoints."""
    below = folder / "checkpoints" if checkpoints else folder
    found = (path for path in below.rglob("*") if path.is_file() and path.name != "stopped")
    return sorted(str(path.relative_to(folder)) for path in found)


def _resumed(config: Config, folder: pathlib.Path) -> str:
    """Goes on with a run; returns "", or the message that it is refused with."""
    with _silent():
        try:
            train.train_and_evaluate(config, folder, quiet=True)
        except UserError as error:
            return str(error)
    return ""


def _evaluated(folder: pathlib.Path, which: str) -> tuple[Any, ...] | str:
    with _silent():
        try:
            found = restore.evaluate_workdir(folder, which)
        except UserError as error:
            return str(error)
    return found["step"], found["loss"], found["accuracy"]


@contextlib.contextmanager
def _silent() -> Generator[None]:
    """Keeps what is written to stderr, which must be no traceback."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        yield
    if "Traceback" in said.getvalue():
        raise AssertionError(said.getvalue())


def _train(protocol: str, folder: pathlib.Path, cache: pathlib.Path) -> None:
    """What a process does: it trains as the command does, with stderr in `_said`."""
    for stream, name in ((1, os.devnull), (2, str(_said(folder)))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    for name in _SIGNALS:  # nohup and a shell's "&" leave some ignored, and a run keeps that
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    share_compiled(cache)
    run = lambda: train.train_and_evaluate(tiny_config(protocol), folder)  # noqa: E731
    sys.exit(exit_code(lambda: None if run() else 1))


def _said(folder: pathlib.Path) -> pathlib.Path:
    """The file with what the newest process of a folder wrote to stderr."""
    return folder.with_name(f"{folder.name}.stderr")


@contextlib.contextmanager
def _process(protocol: str, folder: pathlib.Path) -> Generator[BaseProcess]:
    # A fork of a process that has imported everything and initialised nothing: importing takes
    # longer than the whole run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jaxcifar.train", "jaxcifar.run.plots", "tensorboardX"])
    process = context.Process(target=_train, args=(protocol, folder, folder.parent / "xla"))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def share_compiled(cache: pathlib.Path) -> None:
    """All runs, in whichever process, share what is compiled."""
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _wait(process: BaseProcess, folder: pathlib.Path, random: random.Random) -> None:
    """Waits for a random moment: of a process's time, or of the progress that its run makes.

    That is, when a random one of the checkpoints to come begins to be written, or the result is.
    """
    if random.random() < 0.3:
        time.sleep(random.uniform(0, 4))
        return
    end = 2 * 4 * 3 + 2  # epochs and steps of `tiny_config`
    wanted = random.randint(_newest(folder) + 1, end)
    while process.is_alive() and _newest(folder) < wanted:
        if (folder / "result.json").exists():
            break
        time.sleep(0.003)
    time.sleep(random.uniform(0, 0.2))


def _newest(folder: pathlib.Path) -> int:
    """The largest number of a checkpoint, written or begun; 0 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        names = (name.partition(".")[0] for name in os.listdir(folder / "checkpoints"))
        return max((int(name) for name in names if name.isdigit()), default=0)
    return 0


def where() -> str:
    """The machine, the versions and the commit, in words."""
    now = environment({})
    packages = [f"{name} {version(name)}" for name in ("jax", "flax", "orbax-checkpoint")]
    return (
        f"{now['cpus']} cores ({now['device']}), {platform.system()} {platform.machine()}, Python "
        f"{now['python']}, {', '.join(packages)}, commit {now['commit']}"
    )


def table(cases: list[dict[str, Any]]) -> Table:
    """Returns the table at the end: what was done how often, and how it ended."""
    outcomes = (_SAME, _LOST, _REFUSED, _FAILED)
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in cases:
        rows[case["kind"]].update({"times": case["times"], "runs": 1, case["outcome"]: 1})
    header = ["times", "runs", *outcomes]
    lines = [[kind, *(str(found[name]) for name in header)] for kind, found in rows.items()]
    dates = sorted({case["date"] for case in cases})
    machines = "; ".join(dict.fromkeys(case["where"] for case in cases))
    title = f"{' to '.join(dates[:: max(1, len(dates) - 1)])}, {machines}"
    return Table(title, ["what", *header], lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m experiments.torture", __doc__)
    parser.add_argument("--out", type=user_path, required=True, help="folder for all runs")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs that end a process")
    parser.add_argument("--signals", type=int, default=0, help="of each kind")
    parser.add_argument("--flips", type=int, default=0, help="single bits of checkpoints")
    parser.add_argument("--damage", choices=("none", "all"), default="none", help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for name in ("kills", "signals", "flips"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 0.")
    share_compiled(arguments.out / "xla")
    torture = Torture(arguments.out, arguments.seed)
    for protocol in ("test", "holdout"):
        torture.expected(protocol)  # before any case, of which it would be a failure
    _until(arguments.kills, torture.killed)
    for name in _SIGNALS:
        _until(arguments.signals, functools.partial(torture.signalled, name))
    if arguments.damage == "all":
        for protocol, end in (("holdout", "stopped"), ("test", "finished")):
            for name in files(torture.sample(protocol, end)):
                for how in ("half", "empty", "flip", "delete", "folder"):
                    torture.damaged(protocol, end, name, how)
    for number in range(arguments.flips):
        draw = random.Random(f"{arguments.seed} flips {number}")
        protocol = draw.choice(("test", "holdout"))
        there = files(torture.sample(protocol, "stopped"), checkpoints=True)
        sizes = [(torture.sample(protocol, "stopped") / name).stat().st_size for name in there]
        (name,) = draw.choices(there, sizes)
        torture.damaged(protocol, "stopped", name, "bit", number)
    cases = read_lines(torture.cases)
    print(table(cases), f"All cases: {torture.cases}", sep="\n\n")
    return int(any(case["outcome"] == _FAILED for case in cases))


def _until(times: int, case: Callable[[int], int]) -> None:
    """Does cases until something was done so many times, or it seems that it never will be."""
    done = number = 0
    while done < times and number < 3 * times + 10:
        done, number = done + case(number), number + 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
