"""Trains the runs of a sweep, one after the other or by several workers."""

import contextlib
import functools
import os
import pathlib
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.sweep import status, workers
from experiments.sweep.estimates import time_left
from experiments.sweep.jobs import Job
from jaxcifar import train
from jaxcifar.errors import Busy, Interrupted, Temporary, UserError, in_short, note, of_file
from jaxcifar.hooks import Hook, Run
from jaxcifar.options import ORIGIN, config_file, write_origin
from jaxcifar.run import signs
from jaxcifar.run.lock import locked
from jaxcifar.run.progress import duration, say
from jaxcifar.signals import interruptible

AGAIN, BROKE = 75, 70  # exit codes; those of sysexits.h for such cases
LOOK_AGAIN = 5.0  # seconds, at runs that another process trains
GIVE_UP = 300.0  # seconds, if none of those processes seems to be alive
REST = 60.0  # seconds, before a run whose files could not be read or written is tried again


class Observer(Hook):
    """Looks at the runs of a sweep, one after the other.

    Attributes:
      announce: called once the next run is locked.
      progressed: whether any of them has made a step, or finished an epoch.
    """

    def __init__(self) -> None:
        self.announce: Callable[[], None] = lambda: None
        self.progressed = False
        self._first = 0

    def locked(self, workdir: pathlib.Path) -> None:
        self.announce()

    def start(self, run: Run) -> None:
        self._first = run.step

    def after_epoch(self, run: Run, record: dict[str, Any]) -> None:
        self.progressed = True

    def close(self, run: Run) -> None:
        self.progressed |= run.step > self._first


Failed = list[tuple[Job, str]]


class Outcome(NamedTuple):
    """What was not trained, and why."""

    failed: Failed
    broke: Failed  # perhaps by the fault of the device, or of a file server
    held: Failed  # locked by processes that have shown no sign of life for long


def run(jobs: list[Job], start: str, observer: Observer) -> Outcome:
    """Trains what is not done.

    A run that raises a `UserError` has failed. One that raises anything else broke, and the next
    run, of another config if possible, shows whether the run or the device is at fault:

    - The next succeeds: the one that broke has failed.
    - The next breaks too: the work ends, and other processes may train both.
    - There is no next: the run has failed if any other succeeded before; otherwise it only broke,
      and other processes may train it.

    A run that raises `Temporary`, of a file server that does not answer, say, is tried again after
    `REST` seconds. After a second time it is left to other processes, and if the same happens to
    the next run, the work ends.

    What failed, broke or ended its process in an earlier start comes last, so that it never keeps
    the others from being trained; if it breaks again, after others succeeded, it has failed.

    A run that another process is training is checked again until it is done or free, or until that
    process has seemed to be dead for `GIVE_UP` seconds and nothing else is left.

    Args:
      jobs: the jobs of the sweep.
      start: the ID of this start of the sweep, common to all its workers (--began); what failed in
        it, here or elsewhere, is not tried again.
      observer: of each run.

    Raises:
      Interrupted: it was stopped, during a run or between two.
    """
    failed: Failed = []
    held: Failed = []
    rested: set[pathlib.Path] = set()  # the runs before whose second try it has waited
    unreached: Failed = []  # those whose files could not be read or written then either
    reached = True  # whether the last run is none of these
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
        at_once = 1 + status.alive([other for other in jobs if other is not job])
        left = time_left([other for other in jobs if other not in gone], at_once=at_once)
        say(f"\n[{number}/{len(jobs)}] {job}: {job.state}; sweep: {left}")

    waiting = [(number, job) for number, job in enumerate(jobs, start=1) if job.state != "done"]
    again = {
        job.workdir
        for _, job in waiting  # a sign is of a process that trains it now, or that died of it
        if signs.failure(job.workdir) or signs.running(job.workdir)
    }
    # Then those first whose last attempt is the longest ago, so that none keeps others from theirs.
    waiting.sort(key=lambda entry: (entry[1].workdir in again, signs.tried_at(entry[1].workdir)))
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
            observer.announce = functools.partial(announce, number, job)
            try:
                _train(job, observer)
                succeeded = reached = True
                blame()
                suspect = None
            except Busy:
                busy.append((number, job))
            except Temporary as error:
                if job.workdir not in rested:
                    rested.add(job.workdir)
                    note(f"{job}: {error} It is tried again in {duration(REST)}.")
                    time.sleep(REST)
                    waiting.insert(0, (number, job))
                    continue
                signs.fail(job.workdir, str(error))  # for --status; others may try it
                unreached.append((job, str(error)))
                if not reached:
                    return Outcome(failed, unreached + ([suspect] if suspect else []), held)
                reached = False
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
                    return Outcome(failed, [*unreached, suspect, broke], held)
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
    broken = [*unreached, *([suspect] if suspect else [])]
    return Outcome(failed, [entry for entry in broken if entry[0].state != "done"], held)


def _train(job: Job, observer: Observer) -> None:
    """Trains a run; raises what `train_and_evaluate` does, and `UserError` for an `OSError`."""
    try:
        file, folder = config_file(job.source.file or job.name), job.workdir.parent
        # The file may have been edited since other seeds were trained, and options make up for it.
        if not (folder / ORIGIN).exists() or not any(folder.glob("seed*/config.json")):
            write_origin(folder, file, job.source.config, job.source.grid)
        train.train_and_evaluate(job.config, job.workdir, hooks=[observer])
    except OSError as error:  # such as that of a full disk
        raise of_file(error) from error


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
    why = signs.silent(job.workdir)
    return f"{job} is {why}" if why else ""


def _held(job: Job) -> str:
    """Says what `_without_sign` does; "" if nobody holds the lock."""
    if why := _without_sign(job):
        with contextlib.suppress(Busy), locked(job.workdir):
            return ""
    return why


def run_workers(
    jobs: list[Job],
    command: list[str],
    where: Sequence[workers.Place],
    logs: pathlib.Path,
    observer: Observer,
) -> Outcome:
    """Lets a worker at each place run the command, a sweep of these jobs.

    Args:
      jobs: the jobs of the sweep.
      command: what trains them all; each worker trains what no other has begun.
      where: the places of the workers.
      logs: the folder for what the workers print.
      observer: notes whether any of them made a step, if they are stopped.

    Raises:
      UserError: a worker could not start.
      Stopped: a signal stopped the workers.
    """
    start = uuid.uuid4().hex
    commands = [
        [*command, f"--worker={index}/{len(where)}", f"--parent={os.getpid()}", f"--began={start}"]
        for index in range(len(where))
    ]

    def table(most: int | None) -> str:
        tried = [job for job in jobs if not signs.failure(job.workdir, start)]
        left = time_left(tried, at_once=len(where), guess=False)
        rows = status.table(jobs, ages=False, most=most and most - 1)
        return f"{status.counts(jobs)}; {left}\n{rows}"

    earlier = {job.workdir: signs.failed_at(job.workdir) for job in jobs}
    epochs = sum(len(job.records) for job in jobs)
    try:
        ended = workers.supervise(commands, where, logs, table)
    except workers.Stopped as error:
        # A worker that died after hours of progress may just have been started again.
        observer.progressed = AGAIN in error.codes or sum(len(job.records) for job in jobs) > epochs
        raise
    failed: Failed = []
    broke: Failed = []
    codes = [worker.process.returncode for worker in ended]
    killed = any(code == BROKE or code < 0 for code in codes)  # the device may be at fault
    untried = broke if killed else failed
    held: Failed = []
    for job in jobs:
        if job.state == "done":
            continue
        if why := signs.failure(job.workdir, start):
            failed.append((job, why))
        elif signs.failed_at(job.workdir) != earlier[job.workdir] and (
            why := signs.failure(job.workdir)
        ):
            broke.append((job, why))
        elif why := _held(job):
            held.append((job, why))
        else:
            untried.append((job, f"its worker died, see {logs}"))
    for worker in ended:
        if worker.process.returncode == 2 and any(why.endswith(str(logs)) for _, why in failed):
            raise UserError(f"A worker could not start; the end of {worker.log}:\n{worker.said}")
    return Outcome(failed, broke, held)
