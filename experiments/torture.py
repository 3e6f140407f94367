"""Does to tiny runs what happens to long jobs, and compares what comes out with an undisturbed run.

python -m experiments.torture --out=/tmp/torture --kills=20 --signals=2 --flips=30 --damage=all

  kills     SIGKILL at random moments, in separate processes; those that end one are counted
  signals   SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2, so many of each, at random moments
  damage    every file of an unfinished and of a finished run cut in half, emptied, one bit of it
            flipped, deleted, and replaced by a folder
  flips     single bits, anywhere in the checkpoints

--cost instead measures what the digest of a checkpoint costs: one of a ResNet-18's state beside one
training step, in turns.

Each run is resumed by the same call, and each damaged one evaluated before. It must end with the
numbers of the undisturbed run, to the bit, or be refused with one message. (Where the best
checkpoint is older than the newest two and is lost, there is none before it to go on from: then
all numbers must be the same, and its loss be said.) Anything else is a failure. What was done is
kept in OUT/cases.jsonl: the same command goes on where it was stopped. The exit code is 1 where
anything failed.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import jax
import numpy as np

from jaxcifar import data, programs, restore, sharding, train
from jaxcifar.config import Config, base_config
from jaxcifar.errors import Interrupted, UserError, exit_code
from jaxcifar.hooks import Hook, Run
from jaxcifar.options import user_path
from jaxcifar.run.digest import digests
from jaxcifar.run.log import append, read_lines
from jaxcifar.task import build, hyperparams

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SAME, _LOST, _REFUSED, _FAILED = "same numbers", "same, best lost", "refused", "FAILED"


def tiny_config(protocol: str) -> Config:
    """A narrow VGG on 100 made-up images: three steps an epoch, each saved, and four epochs."""
    config = base_config()
    config.model.name, config.model.width = "vgg_a_bn", 0.05
    config.data.name, config.data.protocol = "synthetic", protocol
    config.optim.learning_rate = 0.01
    config.train.batch_size, config.train.limit_train_images = 32, 100
    config.train.epochs, config.train.checkpoint_minutes = 4, 1e-9
    return config


# --- what a run is compared by ----------------------------------------------------------------


def numbers(folder: pathlib.Path) -> dict[str, Any]:
    """All numbers of a finished run but its times."""
    records = read_lines(folder / "metrics.jsonl")
    untimed = [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in records
    ]
    result = json.loads((folder / "result.json").read_text())
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

    def before_step(self, run: Run) -> None:
        if run.step == self.step:
            run.stop.request("on purpose")


class Slow(Hook):
    """Makes a run long enough to be hit."""

    def before_step(self, run: Run) -> None:
        time.sleep(0.1)


class Torture:
    """All cases of one output folder, and the runs that they start from."""

    def __init__(self, out: pathlib.Path, seed: int):
        self.out, self.seed = out, seed
        out.mkdir(parents=True, exist_ok=True)
        self.cases = out / "cases.jsonl"
        self.done = {case["case"]: case for case in read_lines(self.cases)}
        self.expected: dict[str, dict[str, Any]] = {}
        for protocol in ("test", "holdout"):
            finished, stopped = (self.sample(protocol, end) for end in ("finished", "stopped"))
            config = tiny_config(protocol)
            train.train_and_evaluate(config, finished, quiet=True)
            self.expected[protocol] = numbers(finished)
            if not (stopped / "stopped").exists():
                shutil.rmtree(stopped, ignore_errors=True)
                with contextlib.suppress(Interrupted):
                    train.train_and_evaluate(config, stopped, hooks=[StopAt(10)], quiet=True)
                (stopped / "stopped").touch()

    def sample(self, protocol: str, end: str) -> pathlib.Path:
        """The folder of an undisturbed run, "finished" or "stopped" after ten of twelve steps."""
        return self.out / "runs" / f"{protocol}-{end}"

    @functools.cache  # noqa: B019 (there is one object)
    def evaluated(self, protocol: str, end: str, which: str) -> tuple | str:
        """What an undisturbed run evaluates to."""
        return _evaluated(self.sample(protocol, end), which)

    def run(
        self,
        case: str,
        protocol: str,
        work: Callable[[pathlib.Path, random.Random], str],
        counts: collections.Counter | None = None,
    ):
        """Does a case once: `work` disturbs and resumes a run in a folder, and says how it ended.

        It returns "" and the numbers are compared, or the message that the run was refused with.
        What it counted in `counts` is kept with the outcome.
        """
        if case in self.done:
            return
        folder = self.out / "work"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            said = work(folder, random.Random(f"{self.seed} {case}"))
            outcome = _REFUSED
            if not said:
                outcome, ours = _SAME, numbers(folder)
                wrong = differences(ours, self.expected[protocol])
                if wrong == "best checkpoint" and "it is not there" in ours[wrong]:
                    outcome, said = _LOST, ours[wrong]
                elif wrong:
                    outcome, said = _FAILED, f"other {wrong}"
        except Interrupted:  # the torture itself is asked to end: the case is done again
            raise
        except Exception:  # whatever it is, it is what is looked for
            outcome, said = _FAILED, traceback.format_exc()
        self.done[case] = {"case": case, "outcome": outcome, "said": said, **(counts or {})}
        append(self.cases, json.dumps(self.done[case]))
        if outcome == _FAILED:
            print(f"FAILED {case}: {said}", flush=True)

    def damaged(self, protocol: str, end: str, name: str, how: str) -> None:
        """One file of a run is damaged."""

        def work(folder: pathlib.Path, random: random.Random) -> str:
            source = self.sample(protocol, end)
            shutil.copytree(source, folder)
            damage(folder / name, how, random)
            for which in restore.WHICH if name.startswith(("checkpoints", "config")) else ():
                one, other = self.evaluated(protocol, end, which), _evaluated(folder, which)
                if not isinstance(other, str) and one != other:
                    raise AssertionError(f"evaluates to {other}, not {one}")
            return _resumed(tiny_config(protocol), folder)

        self.run(f"{how.replace('-', ' ')} {protocol}-{end} {name}", protocol, work)

    def killed(self, number: int) -> int:
        """A run is killed up to three times; returns how often it had not ended before."""
        protocol = ("test", "holdout")[number % 2]
        draw = random.Random(f"{self.seed} kills {number}")
        kills, counts = draw.randint(1, 3), collections.Counter(kills=0)

        def work(folder: pathlib.Path, random: random.Random) -> str:
            for _ in range(kills):
                with _process(protocol, folder) as process:
                    _wait(process, folder, random, anywhen=random.random() < 0.3)
                    process.kill()
                    process.join()
                    counts["kills"] += process.exitcode == -signal.SIGKILL
            return _resumed(tiny_config(protocol), folder)

        self.run(f"kill {number}", protocol, work, counts)
        return self.done[f"kill {number}"]["kills"]

    def signalled(self, name: str, number: int) -> None:
        """A run gets a signal."""
        protocol, signum = ("test", "holdout")[number % 2], signal.Signals[name]

        def work(folder: pathlib.Path, random: random.Random) -> str:
            with _process(protocol, folder) as process:
                _wait(process, folder, random, anywhen=False)
                if process.is_alive():
                    os.kill(process.pid, signum)
                process.join(timeout=120)
                code, said = process.exitcode, _said(folder).read_text()
            expected = 128 + signum if "saved at step" in said else 0  # it had ended before
            if code != expected or "Traceback" in said:
                raise AssertionError(f"exit code {code}: {said}")
            return _resumed(tiny_config(protocol), folder)

        self.run(f"signal {name} {number}", protocol, work)


def damage(path: pathlib.Path, how: str, random: random.Random) -> None:
    """Damages a file: "half", "empty", "flip" (a bit of it), "delete" or "folder"."""
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


def _evaluated(folder: pathlib.Path, which: str) -> tuple | str:
    with _silent():
        try:
            found = restore.evaluate_workdir(folder, which)
        except UserError as error:
            return str(error)
    return found["step"], found["loss"], found["accuracy"]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
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
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        signal.signal(signal.Signals[name], default)
    _share_compiled(cache)
    config, hooks = tiny_config(protocol), [Slow()]
    run = lambda: train.train_and_evaluate(config, folder, hooks=hooks)  # noqa: E731
    sys.exit(exit_code(lambda: None if run() else 1))


def _said(folder: pathlib.Path) -> pathlib.Path:
    """The file with what the newest process of a folder wrote to stderr."""
    return folder.with_name(f"{folder.name}.stderr")


@contextlib.contextmanager
def _process(protocol: str, folder: pathlib.Path) -> Iterator[BaseProcess]:
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


def _share_compiled(cache: pathlib.Path) -> None:
    """All runs, in whichever process, share what is compiled."""
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _wait(
    process: BaseProcess, folder: pathlib.Path, random: random.Random, *, anywhen: bool
) -> None:
    """Waits for a random moment: of the whole process, or after its run has begun."""
    began = os.path.getmtime(folder / "config.json") if (folder / "config.json").exists() else 0.0
    while not anywhen and process.is_alive():
        with contextlib.suppress(FileNotFoundError):
            if os.path.getmtime(folder / "config.json") > began:
                break
        time.sleep(0.02)
    time.sleep(random.uniform(0, 8 if anywhen else 5))


def cost() -> str:
    """Returns what a digest and a training step of a ResNet-18 take, the median of five each."""
    config, mesh = base_config(), sharding.make_mesh()
    images = data.load("synthetic", "train", size=512)
    task = build(config, images, mesh)
    numbers = sharding.replicate(hyperparams(config), mesh)
    arrays = programs.on_devices(images, mesh)
    state = programs.init(task)(sharding.replicate(np.uint32(0), mesh), numbers, arrays[0])
    order = programs.order(task)(state.key, sharding.replicate(np.int32(1), mesh))
    step, times = programs.train(task, 1), []
    for _ in range(6):
        began = time.perf_counter()
        state, metrics = step(state, numbers, *arrays, order)
        jax.block_until_ready((state, metrics))
        middle = time.perf_counter()
        digests({"params": state.params, "opt_state": state.opt_state, "stats": state.batch_stats})
        times.append((middle - began, time.perf_counter() - middle))
    one_step, digest = np.median(times[1:], axis=0)  # the first compiles
    steps = 50_000 // task.batch_size
    share = digest / (steps * one_step)
    return (
        f"digest {1000 * digest:.0f} ms, step of {task.batch_size} images "
        f"{1000 * one_step:.0f} ms: {share:.3%} of an epoch of {steps} steps"
    )


def table(cases: list[dict[str, Any]]) -> str:
    """Returns the table at the end: how many cases of each kind ended how."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for case in cases:
        counts[case["case"].split()[0]][case["outcome"]] += 1
    outcomes = (_SAME, _LOST, _REFUSED, _FAILED)
    lines = ["| what | cases | " + " | ".join(outcomes) + " |", "|---" * 6 + "|"]
    for kind, found in counts.items():
        each = " | ".join(str(found[outcome]) for outcome in outcomes)
        lines.append(f"| {kind} | {found.total()} | {each} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.torture")
    parser.add_argument("--out", type=user_path, required=True, help="folder for all runs")
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs that hit a run")
    parser.add_argument("--signals", type=int, default=0, help="of each kind")
    parser.add_argument("--flips", type=int, default=0, help="single bits of checkpoints")
    parser.add_argument("--damage", choices=("none", "all"), default="none", help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="measure the digest instead")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _torture(arguments))


def _torture(arguments: argparse.Namespace) -> int:
    for name in ("kills", "signals", "flips"):
        if getattr(arguments, name) < 0:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 0.")
    _share_compiled(arguments.out / "xla")
    if arguments.cost:
        print(cost())
        return 0
    torture = Torture(arguments.out, arguments.seed)
    kills = number = 0
    while kills < arguments.kills and number < 2 * arguments.kills:  # none may hit a living run
        kills, number = kills + torture.killed(number), number + 1
    for name in _SIGNALS:
        for number in range(arguments.signals):
            torture.signalled(name, number)
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
        torture.damaged(protocol, "stopped", name, f"bit-{number}")
    cases = list(torture.done.values())
    print(table(cases), f"SIGKILLs: {kills}", f"all cases: {torture.cases}", sep="\n\n")
    return int(any(case["outcome"] == _FAILED for case in cases))


if __name__ == "__main__":
    sys.exit(exit_code(main))
