"""Trains rows of the original report, or any configs, with several seeds. Can be run repeatedly.

    jaxcifar sweep --rows=1-12 --seeds=0-2 --out=results/table3
    jaxcifar sweep --rows=vgg1-vgg8 --out=results/table4 --config.train.epochs=3
    jaxcifar sweep --configs=mine/wide.py,mine/deep_*.py --seeds=0-4 --out=results/mine
    jaxcifar sweep --rows=9 --grid=optim.learning_rate=1e-3,3e-4 --seeds=0-4 --out=results/rates

Runs go to OUT/NAME/seedN, where NAME is the row, or the config file without .py. Finished runs are
skipped and unfinished ones are resumed. A run that fails does not stop the others; it is named at
the end. A run that another process is training is left to that process and checked again later, so
several sweeps of one folder share its work. Runs that differ only in numbers (seed, learning rate,
L1, L2, epochs) share one compiled step. `--config.FIELD=VALUE` changes all runs. `--grid` trains
each config with several values of a field, in the folders NAME-learning_rate-0.001 and so on; given
several times, it trains every combination.

    … --workers=auto                             a process for each GPU of this machine
    … --slurm --tasks=12 --time=4:00:00 --sbatch="--gpus-per-node=1"       an array of Slurm jobs
    … --slurm --tasks=4 … --workers=auto         … each with a process for each GPU of its node
    … --shard=3/12                               the fourth of twelve parts, as such a job runs it
    … --status                                   shows the progress of all runs; starts nothing

docs/cluster.md says more about these. Exit codes:

    0        all runs are done
    1        some runs failed
    2        the command or a file must be changed
    70       runs broke, perhaps because of this process, its device or a file server: another
             may train them
    75       SIGUSR1, the warning before a time limit, came after some steps, and everything is
             saved: start it again
    138      SIGUSR1 came before any step was done: allow more time
    128 + N  signal N stopped it, everything is saved, and the same command resumes it
"""

import argparse
import os
import pathlib
import shlex
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from typing import NoReturn

import jax

from experiments.runs.configs import named, varied
from experiments.sweep import shards, slurm, status, workers
from experiments.sweep.estimates import time_left
from experiments.sweep.jobs import (
    Job,
    check_dtypes,
    check_images,
    checked,
    groups,
    in_order,
    parse_seeds,
)
from experiments.sweep.training import AGAIN, BROKE, Observer, Outcome, run, run_workers
from jaxcifar import kernels, processes, sharding
from jaxcifar.checks import unused
from jaxcifar.cli import CHECKOUT
from jaxcifar.errors import Interrupted, Temporary, UserError, note, of_file
from jaxcifar.kernels import compilation
from jaxcifar.options import Parser, user_path
from jaxcifar.run import signs
from jaxcifar.run.progress import duration, say
from jaxcifar.signals import exit_code, finish, leave


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        "jaxcifar sweep",
        __doc__,
        epilog="Fields of the config (--optim.l2=1e-4): docs/config.md or jaxcifar train --help",
    )
    parser.add_argument("--rows", help="1-12, vgg1-vgg8, 9, or a list of these")
    parser.add_argument("--configs", help="configs, files or patterns: resnet20,mine/*.py")
    parser.add_argument("--seeds", default="0", help="0-2, or a list of these (default 0)")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=VALUE,…",
        help="vary the configs by a field: optim.learning_rate=1e-3,3e-4 (repeatable)",
    )
    parser.add_argument("--out", required=True, type=user_path, help="the sweep's folder")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, train none")
    parser.add_argument("--workers", help="processes on this machine: a number, or auto")
    parser.add_argument("--slurm", action="store_true", help="submit an array of Slurm jobs")
    parser.add_argument("--tasks", type=int, help="size of the array (default: one for each run)")
    parser.add_argument("--time", help="time limit of each task, such as 4:00:00")
    parser.add_argument("--sbatch", default="", help='more options for sbatch: "--gpus-per-node=1"')
    parser.add_argument("--print", action="store_true", help="print the script, submit nothing")
    parser.add_argument("--shard", help="i/N: train only part i of N, counted from 0")
    parser.add_argument("--status", action="store_true", help="show progress, start nothing")
    # For workers: which of how many it is, whose, and what to call this start of the sweep.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--began", default=uuid.uuid4().hex, help=argparse.SUPPRESS)
    arguments, options = parser.parse_known_args(argv)
    exclusive = ("workers", "slurm", "shard", "status")
    given = [name for name in exclusive if getattr(arguments, name) != parser.get_default(name)]
    if len(given) > 1 and given not in (["workers", "slurm"], ["workers", "shard"]):
        raise UserError(f"--{given[-2]} and --{given[-1]} cannot be combined. Give one of them.")
    for name in ("tasks", "time", "sbatch", "print"):
        if getattr(arguments, name) != parser.get_default(name) and not arguments.slurm:
            raise UserError(f"--{name} is for --slurm.")
    if arguments.slurm and arguments.dry_run:
        raise UserError("--slurm and --dry-run cannot be combined. Give --print, or --status.")
    return arguments, options


_WARNED = 128 + signal.SIGUSR1
_NO_STEP = "No step was done before that. Allow more time."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    observer = Observer()

    def command() -> int:
        arguments, options = _parse(argv)
        try:
            return _carry_out(arguments, options, observer)
        except Interrupted as error:
            if error.signum != signal.SIGUSR1 or observer.progressed:
                raise
            raise Interrupted(error.signum, f"{error} {_NO_STEP}") from error
        except (UserError, OSError) as error:
            told = of_file(error) if isinstance(error, OSError) else error
            if not isinstance(told, (processes.NoDevice, Temporary)):
                raise
            note(str(told))
            return BROKE
        except Exception:  # such as that of a device that fails between two runs
            note(traceback.format_exc())
            return BROKE

    def end(code: int, text: str) -> NoReturn:  # by a signal, while nothing is to be saved
        if code == _WARNED:
            code, text = (AGAIN, text) if observer.progressed else (code, f"{text} {_NO_STEP}")
        leave(code, text)

    code = exit_code(command, end)
    return AGAIN if code == _WARNED and observer.progressed else code


def _carry_out(arguments: argparse.Namespace, options: list[str], observer: Observer) -> int:
    seeds = parse_seeds(arguments.seeds)
    sources = named(arguments.rows, arguments.configs)
    shard = shards.parse_shard(arguments.shard) if arguments.shard is not None else None
    asked = arguments.workers  # "auto", a number as text, or None
    where = workers.places(asked) if asked is not None and not arguments.slurm else []
    if where or arguments.slurm or arguments.status:
        jax.config.update("jax_platforms", "cpu")  # the GPUs are for those that train
    command = [sys.executable, str(CHECKOUT / "jaxcifar"), "sweep"]  # works in every folder
    for name in ("rows", "seeds", "out"):
        if getattr(arguments, name) is not None:
            command.append(f"--{name}={getattr(arguments, name)}")
    # Not the pattern: a file that is added later is of another sweep.
    if files := [source.file for source in sources if source.file]:
        command.append(f"--configs={','.join(files)}")
    command += [f"--grid={text}" for text in arguments.grid]
    command += options
    sources = varied(sources, arguments.grid)

    started, out = time.monotonic(), arguments.out
    jobs = checked(sources, seeds, out, options)
    if arguments.status:
        status.show(jobs, out)
        return 0
    for line in dict.fromkeys(f"{job.name}: {line}" for job in jobs for line in unused(job.config)):
        note(f"set, but without effect: {line}")
    if arguments.slurm:
        tasks = len(jobs) if arguments.tasks is None else arguments.tasks
        if tasks < 1:
            raise UserError(f"--tasks is {tasks}; give 1 or more.")
        shards.check_count(f"--tasks is {tasks}", tasks, jobs)
        groups(jobs, "gpu")  # what no task could train is said here, and not by each of them
        if asked is not None:
            workers.parse(asked)  # the GPUs are those of the nodes
            command.append(f"--workers={asked}")
        return _submit(jobs, command, arguments, shards.plan_of(sources, seeds, options, tasks))
    if shard:
        index, count = shard
        shards.check_count(f"--shard is {arguments.shard}", count, jobs)
        plan = shards.plan_of(sources, seeds, options, count)
        jobs = shards.take(jobs, index, plan, out, keep=not arguments.dry_run)
        command.append(f"--shard={arguments.shard}")
    if not where:
        check_dtypes(jobs, kernels.platform_of(sharding.make_mesh()))
    elif where[0].gpu:  # other workers find out themselves what they have
        check_dtypes(jobs, "gpu")
    jobs = in_order(jobs)
    if not arguments.dry_run:
        check_images([job for job in jobs if job.state != "done"])
    at_once = len(where) or 1 + status.alive(jobs)
    say(f"{status.counts(jobs, out)}; {time_left(jobs, at_once=at_once, guess=not where)}")
    if arguments.dry_run:
        print(status.table(jobs))
        return 0
    if where:
        # Another sweep of this folder, perhaps on another machine, writes elsewhere.
        logs = out / "logs" / f"{socket.gethostname()}-{os.getpid()}"
        outcome = run_workers(jobs, command, where, logs, observer)
    else:
        compilation.use_cache()
        if arguments.parent:
            workers.end_with(arguments.parent)
        index, count = shards.parse_shard(arguments.worker or "0/1")
        first = index * len(jobs) // count  # each worker begins elsewhere
        outcome = run(jobs[first:] + jobs[:first], arguments.began, observer)
    code = _conclude(jobs, out, outcome, time.monotonic() - started)
    # A worker has done its part; who started it knows which runs failed.
    return 0 if arguments.worker and code == 1 else code


def _conclude(jobs: list[Job], out: pathlib.Path, outcome: Outcome, seconds: float) -> int:
    """Says what was trained and what was not; returns the exit code."""
    failed, broke, held = outcome
    done, folder = [job for job in jobs if job.state == "done"], shlex.quote(str(out))
    say(
        f"\n{len(done)} of {len(jobs)} runs are in {out}, after {duration(seconds)}. Next: "
        f"jaxcifar report figures {folder}; jaxcifar report {folder}"
    )
    for job, why in failed + broke:
        note(f"failed: {job} ({job.workdir}): {why}")
    for _, why in held:
        note(f"not trained: {why}")
    if broke:
        note(
            f"{' and '.join(str(job) for job, _ in broke)} broke. This process, its device or a "
            "file server may be at fault. The same command tries again"
            + (", the others first." if len(done) + len(failed + broke) < len(jobs) else ".")
        )
    return BROKE if broke or held else 1 if failed else 0


def _submit(
    jobs: list[Job], command: list[str], arguments: argparse.Namespace, plan: shards.Plan
) -> int:
    """Submits the sweep to Slurm, or prints what it would submit."""
    tasks, out = plan["tasks"], arguments.out
    if not arguments.time:
        raise UserError(
            "--slurm needs --time=…, the limit of each task. A task that reaches it is requeued."
        )
    text = slurm.script(command, out, tasks, arguments.time, arguments.sbatch)
    plan = shards.check_plan(plan, out)
    if arguments.print:
        print(text, end="")
        return 0
    slurm.check_sbatch()
    if all(job.state == "done" for job in jobs):
        print(f"{status.counts(jobs, out)}; nothing left")
        return 0
    if queued := slurm.queue(out):  # without an answer nothing is submitted
        planned = shards.planned_shards(jobs, plan)
        left = [any(job.state != "done" for job in part) for part in planned]
        idle = [task for task in range(tasks) if left[task] and task not in queued]
        message = (
            f"Tasks of this sweep are already in the queue: {', '.join(map(str, sorted(queued)))}. "
            "Wait for them, or scancel their job first; --status shows what each is doing."
        )
        if idle:  # the script is written again, with the options of this command
            again = slurm.again(idle, slurm.keep(text, out))
            message += f" To start only what is not in it: {again}"
        raise UserError(message)
    alive = [(job, sign) for job in jobs if (sign := signs.running(job.workdir)) and sign.alive]
    if alive:
        job, sign = alive[0]
        raise UserError(
            f"Outside of the queue, {len(alive)} of these runs are being trained, such as {job}, "
            f"on {sign.host} (last sign {duration(sign.age)} ago). Wait for that process, or stop "
            "it; one that was killed counts as dead after ten minutes."
        )
    try:  # here, because a node may not reach the internet
        check_images([job for job in jobs if job.state != "done"])
    except UserError as error:
        raise UserError(
            f"{error} If only the nodes have the images, submit what --print prints."
        ) from error
    if new := shards.kept_plan(out) is None:
        shards.keep_plan(plan, out)  # before the first task, which adds the parts
    try:
        job = slurm.submit(text, out)
    except UserError:
        if new:
            shards.forget_plan(out)
        raise
    print(
        f"{status.counts(jobs, out)}; submitted as job {job}, {tasks} task{'s' * (tasks > 1)}. "
        f"Output: {out / 'slurm'}. The same command with --status instead of --slurm "
        "and its options shows the progress."
    )
    return 0


if __name__ == "__main__":
    finish(main())
