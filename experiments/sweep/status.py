"""How far the runs of a sweep are, in words."""

import pathlib

from experiments.sweep import shards, slurm
from experiments.sweep.estimates import time_left
from experiments.sweep.jobs import STATES, Job
from jaxcifar.errors import UserError, note
from jaxcifar.run import signs


def counts(jobs: list[Job], out: pathlib.Path) -> str:
    """Says how many runs are in each state."""
    states = [job.state for job in jobs]
    found = (f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{len(jobs)} run{'s' * (len(jobs) != 1)} in {out}: {', '.join(found)}"


def table(
    jobs: list[Job], waiting: dict[pathlib.Path, str] | None = None, *, ages: bool = True
) -> str:
    """Returns a table of the runs and their progress; for the arguments see `Job.describe`."""
    wide = max(6, *(len(job.name) for job in jobs))
    lines = [f"{'name':<{wide}} {'seed':>4}  {'model':<12} {'epochs':>9}  state"]
    for job in jobs:
        epochs = f"{len(job.records)}/{job.config.train.epochs}"
        state = job.describe((waiting or {}).get(job.workdir, ""), ages=ages)
        model = job.config.model.name
        lines.append(f"{job.name:<{wide}} {job.seed:>4}  {model:<12} {epochs:>9}  {state}")
    return "\n".join(lines)


def show(jobs: list[Job], out: pathlib.Path) -> None:
    """Prints the progress of the sweep, on any machine; starts nothing."""
    plan = shards.kept_plan(out)
    queue, waiting = {}, {}
    try:
        queue = slurm.queue(out)
    except UserError as error:
        note(f"{error} What is waiting is unknown.")
    try:
        if queue and plan and 0 < plan["tasks"] <= len(jobs):
            for index, part in enumerate(shards.parts(jobs, plan)):
                why = queue.get(index)
                if why is not None:
                    why = why or "for its turn in a task that runs"
                    waiting |= {job.workdir: why for job in part}
        alive = [sign for job in jobs if (sign := signs.running(job.workdir)) and sign.alive]
        at_once = max(list(queue.values()).count(""), len(alive))
        left = time_left(jobs, at_once=at_once, guess=False)
    except UserError as error:
        left = f"the time left is unknown ({error})"
    print(f"{counts(jobs, out)}; {left}")
    print(table(jobs, waiting))
