"""How far the runs of a sweep are, in words."""

import pathlib

from experiments.sweep import shards, slurm
from experiments.sweep.estimates import time_left
from experiments.sweep.jobs import STATES, Job
from jaxcifar.errors import UserError, note, printable
from jaxcifar.run import signs


def counts(jobs: list[Job], out: pathlib.Path | None = None) -> str:
    """Says how many runs, of a folder if it is given, are in each state."""
    states = [job.state for job in jobs]
    found = (f"{states.count(state)} {state}" for state in STATES if state in states)
    where = f" in {out}" if out else ""
    return f"{len(jobs)} run{'s' * (len(jobs) != 1)}{where}: {', '.join(found)}"


def alive(jobs: list[Job]) -> int:
    """Returns how many of the runs show a sign of life."""
    return sum((sign := signs.running(job.workdir)) is not None and sign.alive for job in jobs)


def table(
    jobs: list[Job],
    waiting: dict[pathlib.Path, str] | None = None,
    *,
    ages: bool = True,
    most: int | None = None,
) -> str:
    """Returns a table of the runs and their progress.

    Args:
      jobs: the runs.
      waiting, ages: see `Job.describe`.
      most: how many lines there is room for; runs that are done, then new ones, are left out.
    """
    wide = max(6, *(len(job.name) for job in jobs))
    rows: list[tuple[str, str]] = []
    for job in jobs:
        epochs = f"{len(job.records)}/{job.config.train.epochs}"
        state = job.describe((waiting or {}).get(job.workdir, ""), ages=ages)
        model = job.config.model.name
        row = f"{job.name:<{wide}} {job.seed:>4}  {model:<12} {epochs:>9}  {state}"
        rows.append((state, row))
    surplus, left_out = 0, []
    if most is not None and len(rows) >= most:
        surplus = len(rows) + 2 - most  # with the header, and the line that says what is left out
    for state in ("done", "new"):
        alike = [row for row in rows if row[0] == state]
        if gone := alike[max(0, len(alike) - surplus) :]:
            rows = [row for row in rows if row not in gone]
            left_out.append(f"{len(gone)} {state}")
            surplus -= len(gone)
    header = f"{'name':<{wide}} {'seed':>4}  {'model':<12} {'epochs':>9}  state"
    end = [f"… {', '.join(left_out)}"] if left_out else []
    return "\n".join([header, *(line for _, line in rows), *end])


def show(jobs: list[Job], out: pathlib.Path) -> None:
    """Prints the progress of the sweep, on any machine; starts nothing."""
    plan = shards.kept_plan(out)
    queue, waiting = {}, {}
    try:
        queue = slurm.queue(out)
    except UserError as error:
        note(f"{error} What is waiting is unknown.")
    try:
        if queue and plan and ("shards" in plan or 0 < plan["tasks"] <= len(jobs)):
            for index, part in enumerate(shards.planned_shards(jobs, plan)):
                why = queue.get(index)
                if why is not None:
                    why = why or "for its turn in a task that runs"
                    waiting |= {job.workdir: why for job in part}
        at_once = max(list(queue.values()).count(""), alive(jobs))
        left = time_left(jobs, at_once=at_once, guess=False)
    except UserError as error:
        left = f"the time left is unknown ({error})"
    print(f"{counts(jobs, out)}; {left}")
    print(printable(table(jobs, waiting)))
