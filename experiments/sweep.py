"""Trains rows of the original report, or any configs, with several seeds. Can be run repeatedly.

    jaxcifar sweep --rows=1-12 --seeds=0-2 --out=results/table3
    jaxcifar sweep --rows=vgg1-vgg8 --out=results/table4 --config.train.epochs=3
    jaxcifar sweep --configs=mine/wide.py,mine/deep_*.py --seeds=0-4 --out=results/mine

Runs go to OUT/NAME/seedN, where NAME is the row, or the config file without .py. Finished runs are
skipped and unfinished ones are resumed. A run that fails does not stop the others; it is named at
the end. A run that another process is training is left to that process and checked again later, so
several sweeps of one folder share its work. Runs that differ only in numbers (seed, learning rate,
L1, L2, epochs) share one compiled step. `--config.FIELD=VALUE` changes all runs.

    … --workers=auto                             a process for each GPU of this machine
    … --slurm --tasks=12 --time=4:00:00 --sbatch="--gpus-per-node=1"       an array of Slurm jobs
    … --shard=3/12                               the fourth of twelve parts, as such a job runs it
    … --status                                   shows the progress of all runs; starts nothing

docs/cluster.md says more about these. Exit codes: 0 all runs are done; 1 some runs failed; 2 the
command or a file must be changed; 70 runs broke, but perhaps because of this process or its device:
another may train them; 75 SIGUSR1, the warning before a time limit, came after some steps:
everything is saved, start it again; 128 plus a signal's number: that signal stopped it, everything
is saved, and the same command resumes it. So 138 (SIGUSR1) means that no step was made.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import re
import shlex
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from experiments import slurm, workers
from experiments.cost import forward_multiply_adds
from experiments.runs.configs import Source, named
from experiments.runs.read import read_json, read_records, write_origin
from jaxcifar import data, sharding, task, train
from jaxcifar.config import Config, base_config, changed_fields, complete, differences
from jaxcifar.data.spec import CIFAR10, CIFAR100
from jaxcifar.errors import (
    Busy,
    Interrupted,
    UserError,
    exit_code,
    in_short,
    interruptible,
    leave,
    note,
    of_file,
)
from jaxcifar.files import write_shared
from jaxcifar.hooks import Hook, Run
from jaxcifar.kernels import compilation
from jaxcifar.options import user_path, with_options
from jaxcifar.run import signs
from jaxcifar.run.folder import check_same, saved_config
from jaxcifar.run.progress import duration, say


class Job(NamedTuple):
    """One run of a sweep."""

    source: Source
    seed: int
    config: Config  # the source's, with options and seed
    workdir: pathlib.Path

    @property
    def name(self) -> str:
        return self.source.name

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.damage:
            return "damaged"
        # These raise nothing: a file server may have a bad moment at any time.
        if os.path.exists(self.workdir / "result.json"):
            return "done"
        return "to resume" if os.path.exists(self.workdir / "config.json") else "new"

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; [] if they are damaged."""
        with contextlib.suppress(UserError):
            return _read(read_records, self.workdir / "metrics.jsonl")
        return []

    @property
    def damage(self) -> str:
        """Which file of the run cannot be right, and why; "" if all can be."""
        try:
            for name in ("config.json", "result.json"):
                if (self.workdir / name).exists():
                    _read(read_json, self.workdir / name)
            records = _read(read_records, self.workdir / "metrics.jsonl")
            finished, epochs = (self.workdir / "result.json").exists(), self.config.train.epochs
            if finished and len(records) != epochs:
                raise UserError(
                    f"{self.workdir / 'metrics.jsonl'} has {len(records)} of {epochs} epochs."
                )
        except UserError as error:
            return f"{error} Training restores what its checkpoint holds."
        except OSError as error:
            return str(of_file(error, self.workdir))
        return ""

    def describe(self, waiting: str = "", *, ages: bool = True) -> str:
        """Returns the state in words, with the host that trains the run or the reason why it waits.

        Args:
          waiting: what it waits for in a queue; "" if it is in none.
          ages: whether to say how long ago the run showed a sign of life.
        """
        state, sign = self.state, signs.running(self.workdir)
        if state == "done":
            return state
        if sign and sign.alive:
            job = f" (job {sign.job})" if sign.job else ""
            age = f", last sign {duration(sign.age)} ago" if ages else ""
            return f"running on {sign.host}{job}{age}"
        if why := self.damage or signs.failure(self.workdir):
            return f"failed: {why.splitlines()[0]}"
        if waiting:
            return f"waiting: {waiting}"
        lost = f" ({sign.host} fell silent {duration(sign.age)} ago)" if sign and ages else ""
        return state + lost


STATES = ("done", "damaged", "to resume", "new")
_files: dict[pathlib.Path, tuple[tuple[int, int], Any]] = {}  # when and how large, and its content


def _read(read: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
    """Returns what `read` returns of a file, which is not read again before it has changed."""
    try:
        at = path.stat()
    except OSError:
        return read(path)
    stamp = at.st_mtime_ns, at.st_size
    if path not in _files or _files[path][0] != stamp:
        _files[path] = stamp, read(path)
    return _files[path][1]


_MOST_SEEDS = 10_000


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds that "0-2,7" names.

    Raises:
      UserError: it is not such a list.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UserError(f"--seeds has {part!r}; give a number (0), or a range (0-2).")
        if last - first >= _MOST_SEEDS:
            raise UserError(f"--seeds has {part!r}, more than {_MOST_SEEDS:,} seeds.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def plan(jobs: list[Job]) -> list[Job]:
    """Returns the jobs in the order in which they are to be trained.

    What is done comes first, and what shares compiled programs stays together.
    """
    done = [job for job in jobs if job.state == "done"]
    left = groups([job for job in jobs if job not in done])
    return done + [job for group in left for job in group]


def checked(
    sources: list[Source], seeds: list[int], out: pathlib.Path, options: list[str]
) -> list[Job]:
    """Returns the runs of a sweep, checked as far as is possible without reading data.

    Args:
      sources: rows and config files.
      seeds: the seeds that each is trained with.
      out: the sweep's folder.
      options: "--config.FIELD=VALUE" for all runs.

    Raises:
      UserError: a config or an option is invalid, or a workdir contains a run of another config.
    """
    if any(option.startswith("--config.seed") for option in options):
        raise UserError("--config.seed would be the same for all runs. Give --seeds instead.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {out}, which is a file. Give a folder.")
    jobs, mesh = [], sharding.make_mesh()
    for source in sources:
        config = with_options(source.config.copy_and_resolve_references(), options)
        for seed in seeds:
            config = config.copy_and_resolve_references()
            job = Job(source, seed, config, out / source.name / f"seed{seed}")
            try:
                config.seed = seed
                task.check_config(config, mesh)
            except (UserError, KeyError, TypeError) as error:
                raise UserError(f"{source.file or source.name}: {error}") from error
            saved = None
            with contextlib.suppress(UserError, OSError):  # damaged: its turn will come
                saved = saved_config(job.workdir)
            if saved:
                check_same(saved, config, job.workdir)
            jobs.append(job)
    return jobs


def groups(jobs: list[Job], platform: str | None = None) -> list[list[Job]]:
    """Returns the jobs in groups that share compiled programs on a platform; None: on this one."""
    mesh = sharding.make_mesh()
    found: dict[task.Task, list[Job]] = {}
    for job in jobs:
        shared = task.build(job.config, _blank(*_which_images(job)).train, mesh, platform=platform)
        found.setdefault(shared, []).append(job)
    return list(found.values())


_SPECS = {spec.name: spec for spec in (CIFAR10, CIFAR100)}


def _which_images(job: Job) -> tuple[str, str, str, int]:
    """The arguments of `_blank` for a run."""
    where = job.config.data
    return where.name, where.dir, where.protocol, job.config.train.limit_train_images


@functools.cache
def _blank(name: str, folder: str, protocol: str, limit: int) -> data.Splits:
    """The images of a run; without their pixels, and unread, where the set's size is known."""
    if name not in _SPECS:
        return data.load_splits(name, folder, protocol=protocol, limit=limit)

    sets = [data.without_images(name, _SPECS[name].count(split)) for split in ("train", "test")]
    return data.split(*sets, protocol=protocol, limit=limit)


def _check_images(jobs: list[Job]) -> None:
    """Reads all images, so that what is missing costs one message, and not one for each run.

    Raises:
      UserError: some are missing.
    """
    for name, folder, protocol, limit in {_which_images(job): None for job in jobs}:
        data.load_splits(name, folder, protocol=protocol, limit=limit)


# --- shards -----------------------------------------------------------------------------------


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, N) of "i/N".

    Raises:
      UserError: it is not such a text, or i is not one of 0 … N − 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if shard[0] >= shard[1]:
        raise UserError(f"--shard is {text!r}; give i/N, with i from 0 to N − 1: 0/12 … 11/12.")
    return shard


def shards(jobs: list[Job], count: int) -> list[list[Job]]:
    """Splits the jobs into parts of about equal work, regardless of what is already done.

    Runs that share compiled programs stay together, up to a quarter of a part. The parts depend
    only on the jobs, so that all machines compute the same ones.
    """
    # For GPUs wherever this runs: "auto" means something else on the CPU of a login node.
    pieces = groups(jobs, "gpu")
    fair = sum(map(work, pieces)) / count
    # The largest piece is halved while it is too large, or the pieces are too few.
    while divisible := [piece for piece in pieces if len(piece) > 1]:
        largest = max(divisible, key=work)
        if work(largest) <= fair / 4 and len(pieces) >= count:
            break
        at, half = pieces.index(largest), len(largest) // 2
        pieces[at : at + 1] = [largest[:half], largest[half:]]
    parts: list[list[Job]] = [[] for _ in range(count)]
    for piece in sorted(pieces, key=work, reverse=True):
        min(parts, key=work).extend(piece)
    return parts


def work(jobs: list[Job]) -> float:
    """Returns the multiply-adds of whole runs."""
    return sum(job.config.train.epochs * _epoch_work(job) for job in jobs)


def _check_count(what: str, count: int, jobs: list[Job]) -> None:
    if count > len(jobs):
        raise UserError(f"{what}, but there are only {len(jobs)} runs. Choose fewer parts.")


def _differing(config: Config) -> dict[str, Any]:
    """The fields of a config that are not at their defaults."""
    changed = changed_fields(base_config().to_dict(), config.to_dict())
    return {field: value for field, (_, value) in changed.items()}


def _plan_in(path: pathlib.Path, jobs_plan: dict[str, Any]) -> dict[str, Any]:
    """Returns the plan in OUT/sweep.json, or else that of this command.

    Other processes compute by the plan in that file, perhaps much later or earlier than this one.

    Args:
      path: of the file.
      jobs_plan: what this command's runs and shards are derived from.

    Raises:
      UserError: the file has another plan.
    """
    if not path.exists():
        return jobs_plan
    there = read_json(path)
    changed = [
        f"{name}: {there.get(name)} -> {value}"
        for name, value in jobs_plan.items()
        if name != "configs" and there.get(name) != value
    ]
    for name, fields in jobs_plan["configs"].items():
        saved = there.get("configs", {}).get(name)
        if saved is not None:  # else an earlier version wrote the plan
            lines = differences(complete(saved).to_dict(), complete(fields).to_dict())
            changed += [f"{name}: {line}" for line in lines]
    if changed:
        raise UserError(
            f"{path} is of another plan (there -> here):\n  " + "\n  ".join(changed) + "\n"
            "Tasks of two plans would do the same work twice. Use the same values or another "
            f"--out; or, if none of those tasks is left, delete {path}."
        )
    return there


def _parts(jobs: list[Job], there: dict[str, Any]) -> list[list[Job]]:
    """Returns the runs of each shard: as the plan in OUT/sweep.json has them, if it does."""
    if "shards" not in there:
        return shards(jobs, there["tasks"])
    by_key = {_key(job): job for job in jobs}
    return [[by_key[key] for key in part if key in by_key] for part in there["shards"]]


def _take(
    jobs: list[Job], index: int, arguments: argparse.Namespace, jobs_plan: dict[str, Any]
) -> list[Job]:
    """Returns the runs of a shard.

    The first task writes all parts to OUT/sweep.json, from where the others take theirs: whatever
    happens to code or data meanwhile, no run is in two parts, or in none.
    """
    path = arguments.out / "sweep.json"
    there = _plan_in(path, jobs_plan)
    parts = _parts(jobs, there)
    if "shards" not in there and not arguments.dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shared(path, jobs_plan | {"shards": [list(map(_key, part)) for part in parts]})
    return parts[index]


def _key(job: Job) -> str:
    return f"{job.name}/seed{job.seed}"


# --- estimates --------------------------------------------------------------------------------


def work_left(job: Job) -> float:
    """Returns the multiply-adds that a run still needs, evaluation included."""
    return (job.config.train.epochs - len(job.records)) * _epoch_work(job)


def _epoch_work(job: Job) -> float:
    # A training step is about three forward passes; an epoch ends with one over the test images.
    images = _blank(*_which_images(job))
    forward = 3 * len(images.train) + len(images.validation)
    return forward * forward_multiply_adds(*_size(job))


def multiply_adds_per_second(jobs: list[Job]) -> float | None:
    """Returns the median speed of all epochs trained so far; None if there are none."""
    speeds: list[float] = []
    for job in jobs:
        image = 3 * forward_multiply_adds(*_size(job))
        found = (record.get("images_per_second") for record in job.records)
        speeds += [image * speed for speed in found if speed is not None]
    return sorted(speeds)[len(speeds) // 2] if speeds else None


def _size(job: Job) -> tuple[str, float]:
    return job.config.model.name, job.config.model.width


@functools.lru_cache
def guessed_multiply_adds_per_second() -> float:
    """Returns half the speed of this device's matrix product: a guess until an epoch is done."""
    cpu = jax.default_backend() == "cpu"
    n = 2048 if cpu else 8192
    matrix = jnp.ones((n, n), jnp.float32 if cpu else jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(4):
        began = time.monotonic()
        jax.block_until_ready(product(matrix, matrix))
        seconds.append(time.monotonic() - began)
    return 0.5 * n**3 / min(seconds)


def time_left(jobs: list[Job], *, at_once: int = 1, guess: bool = True) -> str:
    """Says how long the remaining jobs will take, judging by the speed of the epochs so far.

    Args:
      jobs: the jobs of a sweep.
      at_once: how many of them run at the same time.
      guess: whether to measure the speed of this device if no epoch is done yet.
    """
    left = [job for job in jobs if job.state != "done"]
    if not left:
        return "nothing left"
    needed = sum(map(work_left, left)) / max(1, min(at_once, len(left)))
    if speed := multiply_adds_per_second(jobs):
        return f"about {duration(needed / speed)} left"
    if not guess:
        return "the time left is unknown before the first epoch"
    guessed = duration(needed / guessed_multiply_adds_per_second())
    return f"roughly {guessed} left (a guess from this device's matrix product, before any epoch)"


# --- training ---------------------------------------------------------------------------------


class Signs(Hook):
    """Shows signs of life of the runs of a sweep, one run after the other.

    Attributes:
      announce: called once the next run is locked.
      progressed: whether any of them has made a step, or finished an epoch.
    """

    def __init__(self) -> None:
        self.announce: Callable[[], None] = lambda: None
        self.progressed = False
        self._first, self._shown = 0, contextlib.ExitStack()

    def locked(self, workdir: pathlib.Path) -> None:
        self.announce()
        self._shown.enter_context(signs.shown(workdir))

    def start(self, run: Run) -> None:
        self._first = run.step

    def after_epoch(self, run: Run, record: dict[str, Any]) -> None:
        self.progressed = True

    def close(self, run: Run) -> None:
        self.progressed |= run.step > self._first

    def withdraw(self) -> None:
        """Removes the sign of the run that has ended, if there is one."""
        self._shown.close()


Failed = list[tuple[Job, str]]
LOOK_AGAIN = 5.0  # seconds, at runs that another process trains
GIVE_UP = 300.0  # seconds, if none of those processes seems to be alive


class Outcome(NamedTuple):
    """What was not trained, and why."""

    failed: Failed
    broke: Failed  # perhaps by the fault of the device
    held: Failed  # locked by processes that have shown no sign of life for long


class _Patience:
    """Waits for runs that other processes have locked, and says so once."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Notes that the work goes on."""
        self._since = time.monotonic()  # when it did, or somebody seemed to be alive
        self._told: bool | None = None  # whether it was said that somebody seems to be alive

    def wait(self, jobs: list[Job]) -> Failed:
        """Waits for a moment; returns who holds all jobs, once nobody has shown a sign for long."""
        gone = [(job, text) for job in jobs if (text := _without_sign(job))]
        if alive := len(gone) < len(jobs):
            self._since = time.monotonic()
        if alive is not self._told:
            waits = f"Another process is training {'; '.join(map(str, jobs))}: waiting for it."
            say(waits if alive else "\n".join(text for _, text in gone))
        self._told = alive
        if time.monotonic() - self._since > GIVE_UP:
            return gone
        time.sleep(LOOK_AGAIN)
        return []


def _without_sign(job: Job) -> str:
    """Says who locked a run without a sign of life since; "" if somebody may be training it."""
    sign = signs.running(job.workdir)
    # `jaxcifar train` shows none; and on this host a dead process holds no lock.
    if sign is None or sign.alive or sign.host == socket.gethostname():
        return ""
    return (
        f"{job} is locked by a process on {sign.host} that fell silent {duration(sign.age)} ago. "
        "If that host is down, the file server has kept its lock: wait until it is released, or, "
        f"if nothing else is training there, delete {job.workdir / '.lock'}."
    )


def run(jobs: list[Job], start: str, sign: Signs) -> Outcome:
    """Trains what is not done.

    A run that another process is training is checked again until it is done or free, or until that
    process has seemed to be dead for `GIVE_UP` seconds and nothing else is left. If a run
    breaks, the next one, of another config if possible, shows whose fault that was. If it succeeds,
    the first has failed. If it breaks as well, or there is none and nothing was trained before, the
    device may be at fault: the work ends, and other processes may train these runs. What broke or
    failed in an earlier start, or ended its process, comes last, so that it never keeps the others
    from being trained; if it breaks again, after others succeeded, it has failed.

    Args:
      jobs: the jobs of the sweep.
      start: which start of the sweep this is; what failed in it, here or elsewhere, is not tried
        again.
      sign: shows signs of life.

    Raises:
      Interrupted: it was stopped, during a run or between two.
    """
    failed: Failed = []
    held: Failed = []
    suspect: tuple[Job, str] | None = None  # it broke, and no run has succeeded since
    at_fault: set[str] = set()  # the names of runs that broke where others succeeded
    succeeded = False

    def fail(job: Job, why: str, *, known: bool = False) -> None:
        failed.append((job, why))
        if not known:  # by another process
            signs.fail(job.workdir, why, start)
        say(f"{job} failed: {why}")

    def blame() -> None:
        if suspect and suspect[0].state != "done":  # by another process meanwhile
            at_fault.add(suspect[0].name)
            fail(*suspect)

    def announce(number: int, job: Job) -> None:
        gone = [other for other, _ in failed]
        left = time_left([other for other in jobs if other not in gone])
        say(f"\n[{number}/{len(jobs)}] {job}: {job.state}; sweep: {left}")

    waiting = [(number, job) for number, job in enumerate(jobs, start=1) if job.state != "done"]
    again = {
        job.workdir
        for _, job in waiting  # a sign is of a process that trains it now, or that died of it
        if signs.failure(job.workdir) or signs.running(job.workdir)
    }
    waiting.sort(key=lambda entry: entry[1].workdir in again)
    patience = _Patience()
    while waiting:
        busy, before = [], len(waiting)
        while waiting:
            number, job = waiting.pop(0)
            if job.state == "done":  # by another process meanwhile
                continue
            with interruptible() as stop:  # which knows of a signal in the last run's last moments
                if stop:
                    raise Interrupted(
                        stop.signum,
                        f"Stopped {stop.reason} before the next run. The same command resumes it.",
                    )
            if why := signs.failure(job.workdir, start):
                fail(job, why, known=True)
                continue
            sign.announce = functools.partial(announce, number, job)
            try:
                _train(job, sign)
                succeeded = True
                blame()
                suspect = None
            except Busy:
                busy.append((number, job))
            except UserError as error:
                fail(job, str(error))
            except Interrupted:
                raise
            except Exception as error:
                note(f"{job} broke:\n{traceback.format_exc()}")
                broke = job, in_short(error)
                if job.name in at_fault or (succeeded and job.workdir in again):
                    fail(*broke)
                    continue
                signs.fail(job.workdir, broke[1])  # for --status; others may try it
                if suspect:
                    return Outcome(failed, [suspect, broke], held)
                suspect = broke
                unlike = [entry for entry in waiting if entry[1].name != job.name]
                waiting = unlike + [entry for entry in waiting if entry not in unlike]
        if len(busy) < before:
            patience.renew()
        elif held := patience.wait([job for _, job in busy]):
            break
        waiting = busy
    if succeeded:
        blame()
        suspect = None
    broken = [suspect] if suspect and suspect[0].state != "done" else []
    return Outcome(failed, broken, held)


def _train(job: Job, sign: Signs) -> None:
    """Trains a run; raises what `train_and_evaluate` does, and `UserError` for an `OSError`."""
    try:
        if job.source.file:
            write_origin(job.source, job.workdir.parent)
        train.train_and_evaluate(job.config, job.workdir, hooks=[sign])
    except OSError as error:  # such as that of a full disk
        raise of_file(error) from error
    finally:
        sign.withdraw()


def _share(
    jobs: list[Job], command: list[str], arguments: argparse.Namespace, sign: Signs
) -> Outcome:
    """Lets workers run the command; returns what `run` does."""
    start, where = uuid.uuid4().hex, workers.places(arguments.workers)
    commands = [
        [*command, f"--worker={index}/{len(where)}", f"--began={start}"]
        for index in range(len(where))
    ]

    def table() -> str:
        left = time_left(jobs, at_once=len(where), guess=False)
        return f"{_table(jobs, ages=False)}\n{left}"

    # Another sweep of this folder, perhaps on another machine, writes elsewhere.
    logs = arguments.out / "logs" / f"{socket.gethostname()}-{os.getpid()}"
    try:
        ended = workers.supervise(commands, where, logs, table)
    except workers.Stopped as error:
        sign.progressed = AGAIN in error.codes
        raise
    failed: Failed = []
    broke: Failed = []
    untried = broke if any(worker.process.returncode == BROKE for worker in ended) else failed
    for job in jobs:
        if job.state == "done":
            continue
        if why := signs.failure(job.workdir, start):
            failed.append((job, why))
        elif why := signs.failure(job.workdir):
            broke.append((job, why))
        else:
            untried.append((job, f"its worker died, see {logs}"))
    for worker in ended:
        if worker.process.returncode == 2 and any(why.endswith(str(logs)) for _, why in failed):
            raise UserError(f"A worker could not start; the end of {worker.log}:\n{worker.said}")
    return Outcome(failed, broke, held=[])


# --- the command ------------------------------------------------------------------------------


def _table(
    jobs: list[Job], waiting: dict[pathlib.Path, str] | None = None, *, ages: bool = True
) -> str:
    """A table of the runs and their progress; for the arguments see `Job.describe`."""
    wide = max(6, *(len(job.name) for job in jobs))
    lines = [f"{'name':<{wide}} {'seed':>4}  {'model':<12} {'epochs':>9}  state"]
    for job in jobs:
        epochs = f"{len(job.records)}/{job.config.train.epochs}"
        state = job.describe((waiting or {}).get(job.workdir, ""), ages=ages)
        model = job.config.model.name
        lines.append(f"{job.name:<{wide}} {job.seed:>4}  {model:<12} {epochs:>9}  {state}")
    return "\n".join(lines)


def _counts(jobs: list[Job], out: pathlib.Path) -> str:
    states = [job.state for job in jobs]
    counts = (f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{len(jobs)} run{'s' * (len(jobs) != 1)} in {out}: {', '.join(counts)}"


def _status(jobs: list[Job], arguments: argparse.Namespace) -> int:
    """Prints the progress of the sweep, on any machine; starts nothing."""
    path = arguments.out / "sweep.json"
    there = read_json(path) if path.exists() else {"tasks": 0}
    queue, waiting = {}, {}
    try:
        queue = slurm.queue(arguments.out)
    except UserError as error:
        note(f"{error} What is waiting is unknown.")
    try:
        if queue and 0 < there["tasks"] <= len(jobs):
            for index, part in enumerate(_parts(jobs, there)):
                why = queue.get(index)
                if why is not None:
                    why = why or "for its turn in a task that runs"
                    waiting |= {job.workdir: why for job in part}
        alive = [sign for job in jobs if (sign := signs.running(job.workdir)) and sign.alive]
        at_once = max(list(queue.values()).count(""), len(alive))
        left = time_left(jobs, at_once=at_once, guess=False)
    except UserError as error:
        left = f"the time left is unknown ({error})"
    print(f"{_counts(jobs, arguments.out)}; {left}")
    print(_table(jobs, waiting))
    return 0


def _submit(
    jobs: list[Job], command: list[str], arguments: argparse.Namespace, jobs_plan: dict[str, Any]
) -> int:
    """Submits the sweep to Slurm, or prints what it would submit."""
    tasks = jobs_plan["tasks"]
    if not arguments.time:
        raise UserError(
            "--slurm needs --time=…, the limit of each task. A task that reaches it is requeued."
        )
    text = slurm.script(command, arguments.out, tasks, arguments.time, arguments.sbatch)
    path = arguments.out / "sweep.json"
    _plan_in(path, jobs_plan)
    if arguments.print:
        print(text, end="")
        return 0
    slurm.check_sbatch()
    if all(job.state == "done" for job in jobs):
        print(f"{_counts(jobs, arguments.out)}; nothing left")
        return 0
    if queued := slurm.queue(arguments.out):  # without an answer nothing is submitted
        raise UserError(
            f"Tasks of this sweep are already in the queue: {', '.join(map(str, sorted(queued)))}. "
            "Wait for them, or scancel their job first; --status shows what each is doing."
        )
    alive = [(job, sign) for job in jobs if (sign := signs.running(job.workdir)) and sign.alive]
    if alive:
        job, sign = alive[0]
        raise UserError(
            f"Outside of the queue, {len(alive)} of these runs are being trained, such as {job}, "
            f"on {sign.host} (last sign {duration(sign.age)} ago). Wait for that process, or stop "
            "it; one that was killed counts as dead after ten minutes."
        )
    if new := not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shared(path, jobs_plan)  # before the first task, which adds the parts
    try:
        job = slurm.submit(text, arguments.out)
    except UserError:
        if new:
            path.unlink()
        raise
    print(
        f"{_counts(jobs, arguments.out)}; submitted as job {job}, {tasks} task{'s' * (tasks > 1)}. "
        f"Output: {arguments.out / 'slurm'}. The same command with --status instead of --slurm "
        "and its options shows the progress."
    )
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="jaxcifar sweep",
        description=__doc__,
        epilog="Fields of the config (--optim.l2=1e-4): docs/config.md or jaxcifar train --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", help="1-12, vgg1-vgg8, 9, or a list of such")
    parser.add_argument("--configs", help="config files, or patterns: configs/row9.py,mine/*.py")
    parser.add_argument("--seeds", default="0", help="0-2, or a list of such (default 0)")
    parser.add_argument("--out", required=True, type=user_path, help="the sweep's folder")
    parser.add_argument("--dry-run", action="store_true", help="list the work, do nothing")
    parser.add_argument("--workers", help="processes on this machine: a number, or auto")
    parser.add_argument("--slurm", action="store_true", help="submit an array of Slurm jobs")
    parser.add_argument("--tasks", type=int, help="its size (default: one for each run)")
    parser.add_argument("--time", help="the limit of each of its tasks: 4:00:00")
    parser.add_argument("--sbatch", default="", help='more for sbatch: "--gpus-per-node=1"')
    parser.add_argument("--print", action="store_true", help="print the script, submit nothing")
    parser.add_argument("--shard", help="i/N: one of N fixed parts of the sweep, from 0/N")
    parser.add_argument("--status", action="store_true", help="show progress, start nothing")
    # For workers: which of how many it is, and what to call this start of the sweep.
    parser.add_argument("--worker", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--began", default=uuid.uuid4().hex, help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args(argv)
    given = [name for name in ("workers", "slurm", "shard", "status") if getattr(arguments, name)]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} cannot be combined. Give one of them.")
    for name in ("tasks", "time", "sbatch", "print"):
        if getattr(arguments, name) and not arguments.slurm:
            raise UserError(f"--{name} is for --slurm.")
    if arguments.slurm and arguments.dry_run:
        raise UserError("--slurm submits, and --dry-run does nothing. Give --print, or --status.")
    return arguments, options


AGAIN, BROKE = 75, 70  # exit codes; those of sysexits.h for such cases
_WARNED = 128 + signal.SIGUSR1
_NO_STEP = "No step was made before that. Allow more time."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    sign = Signs()

    def command() -> int:
        arguments, options = _parse(argv)
        try:
            return _carry_out(arguments, options, sign)
        except Interrupted as error:
            if error.signum != signal.SIGUSR1 or sign.progressed:
                raise
            raise Interrupted(error.signum, f"{error} {_NO_STEP}") from error
        except sharding.NoDevice as error:
            note(str(error))
            return BROKE
        except (UserError, OSError):
            raise
        except Exception:  # such as that of a device that fails between two runs
            note(traceback.format_exc())
            return BROKE

    def end(code: int, text: str) -> NoReturn:  # by a signal, while nothing is to be saved
        sign.withdraw()
        if code == _WARNED:
            code, text = (AGAIN, text) if sign.progressed else (code, f"{text} {_NO_STEP}")
        leave(code, text)

    code = exit_code(command, end)
    return AGAIN if code == _WARNED and sign.progressed else code


def _carry_out(arguments: argparse.Namespace, options: list[str], sign: Signs) -> int:
    seeds = parse_seeds(arguments.seeds)
    sources = named(arguments.rows, arguments.configs)
    shard = parse_shard(arguments.shard) if arguments.shard is not None else None
    if arguments.workers:
        workers.places(arguments.workers)  # for its messages
    command = [sys.executable, "-m", "jaxcifar", "sweep"]  # which finds experiments/ from anywhere
    for name in ("rows", "configs", "seeds", "out"):
        if getattr(arguments, name) is not None:
            command.append(f"--{name}={getattr(arguments, name)}")
    command += options
    if arguments.workers or arguments.slurm or arguments.status:
        jax.config.update("jax_platforms", "cpu")  # the GPUs are for those that train

    jobs_plan = {
        "names": [source.name for source in sources],
        "seeds": seeds,
        "options": options,
        "configs": {source.name: _differing(source.config) for source in sources},
    }
    if arguments.slurm or arguments.status:
        jobs = checked(sources, seeds, arguments.out, options)
        if arguments.status:
            return _status(jobs, arguments)
        jobs_plan["tasks"] = len(jobs) if arguments.tasks is None else arguments.tasks
        if jobs_plan["tasks"] < 1:
            raise UserError(f"--tasks is {arguments.tasks}; give 1 or more.")
        _check_count(f"--tasks is {arguments.tasks}", jobs_plan["tasks"], jobs)
        return _submit(jobs, command, arguments, jobs_plan)

    started = time.monotonic()
    jobs = checked(sources, seeds, arguments.out, options)
    if shard:
        index, count = shard
        _check_count(f"--shard is {arguments.shard}", count, jobs)
        jobs = _take(jobs, index, arguments, jobs_plan | {"tasks": count})
    jobs = plan(jobs)
    if not arguments.dry_run:
        _check_images([job for job in jobs if job.state != "done"])
    left = time_left(jobs, guess=not arguments.workers)
    say(f"{_counts(jobs, arguments.out)}; {left}")
    if arguments.dry_run:
        print(_table(jobs))
        return 0
    if arguments.workers:
        failed, broke, held = _share(jobs, command, arguments, sign)
    else:
        compilation.use_cache()
        index, count = parse_shard(arguments.worker)  # each starts elsewhere in the list
        first = index * len(jobs) // count
        jobs = jobs[first:] + jobs[:first]
        failed, broke, held = run(jobs, arguments.began, sign)
    folder, done = shlex.quote(str(arguments.out)), [job for job in jobs if job.state == "done"]
    say(
        f"\n{len(done)} of {len(jobs)} runs are in {arguments.out}, after "
        f"{duration(time.monotonic() - started)}. Next: jaxcifar report figures "
        f"{folder}; jaxcifar report {folder}"
    )
    for job, why in failed + broke:
        note(f"failed: {job} ({job.workdir}): {why}")
    for _, why in held:
        note(f"not trained: {why}")
    if broke:
        note(
            f"{' and '.join(str(job) for job, _ in broke)} broke, and no run succeeded after that: "
            "this process or its device may be at fault. The same command tries again"
            + (", the others first." if len(done) + len(failed + broke) < len(jobs) else ".")
        )
    return BROKE if broke or held else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
