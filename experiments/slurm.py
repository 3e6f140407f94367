"""A sweep as an array of Slurm jobs: the script, its submission, what the queue says."""

import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from jaxcifar.errors import UserError, note

_WARNING = 180  # seconds before the time limit, at which a task saves; Slurm may be 60 s early
_SHORTEST = 5  # minutes

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=jaxcifar
#SBATCH --array=0-{last}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time={time}
#SBATCH --signal=USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{output}"
{options}
# USR1 comes before the time limit: the task saves and ends with 138, and is put back here. SIGTERM
# (143) is preemption, where Slurm itself puts the task back, or scancel, where nobody should.
cd {folder} || exit 2
srun --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
    {command} --shard="$SLURM_ARRAY_TASK_ID/{tasks}"
code=$?
if [ $code -eq 138 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def minutes(text: str) -> float:
    """Returns the minutes of a time as Slurm writes it: 90, 1:30:00, 2-12:00.

    Raises:
      UserError: it is no such time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise UserError(f"--time is {text!r}; give minutes, or HOURS:MINUTES:SECONDS.")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # days-hours:minutes:seconds
        units = (60.0, 1.0, 1 / 60)
    else:  # minutes:seconds, or hours:minutes:seconds
        units = (60.0, 1.0, 1 / 60) if len(numbers) == 3 else (1.0, 1 / 60)
    spent = sum(n * unit for n, unit in zip(numbers, units, strict=False))
    return 24 * 60 * int(days or 0) + spent


def script(
    command: Sequence[str], out: pathlib.Path, tasks: int, time: str, options: str = ""
) -> str:
    """Returns the script of an array of `tasks` jobs, each of which runs a shard of a command.

    Args:
      command: that takes --shard=i/N.
      out: the sweep's folder; the tasks' output goes to slurm/ in it.
      tasks: how many.
      time: the limit of each, as Slurm writes it.
      options: more options of sbatch.

    Raises:
      UserError: the time is none, or too short to save in.
    """
    if minutes(time) < _SHORTEST:
        raise UserError(
            f"--time is {time}, but a task saves {_WARNING} seconds before its end, or a minute "
            f"earlier. Give {_SHORTEST} minutes or more."
        )
    return _SCRIPT.format(
        last=tasks - 1,
        tasks=tasks,
        time=time,
        warning=_WARNING,
        output=out.resolve() / "slurm" / "%A_%a.out",
        options=f"#SBATCH {options}\n" if options else "",
        folder=shlex.quote(str(pathlib.Path.cwd())),
        command=shlex.join(command),
    )


def check_sbatch() -> None:
    """Checks that jobs can be submitted from here.

    Raises:
      UserError: there is no sbatch.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "There is no sbatch on the PATH. Run this where Slurm jobs are submitted from, or let "
            "--print show the script and submit it there."
        )


def submit(text: str, out: pathlib.Path) -> str:
    """Submits a script, which is kept in OUT/slurm/; returns the job's id.

    Raises:
      UserError: Slurm refuses it.
    """
    folder = out / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.sh"
    path.write_text(text)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"sbatch refuses {path}: {done.stderr.strip()}")
    job = done.stdout.strip().split(";")[0]  # ID, or ID;CLUSTER
    with (folder / "jobs").open("a") as file:
        file.write(job + "\n")
    return job


def queue(out: pathlib.Path) -> dict[int, str]:
    """Returns what the queue says of each task submitted for OUT that has not ended.

    It is the reason why a task waits, or "" for one that runs. Nothing where there is no Slurm.
    """
    jobs = out / "slurm" / "jobs"
    if not jobs.exists() or not shutil.which("squeue"):
        return {}
    # All of the user's: squeue fails when it is asked for a job that is long over.
    command = ["squeue", "--me", "--array", "--noheader", "--format=%F|%K|%T|%r"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        note(f"squeue does not answer ({listed.stderr.strip()}); what waits is not known.")
    ours, found = set(jobs.read_text().split()), {}
    for line in listed.stdout.splitlines():
        job, task, state, why = (line.strip().split("|") + [""] * 4)[:4]
        if job in ours and task.isdecimal():
            reason = why if why not in ("", "None") else state.lower()
            found[int(task)] = "" if state in ("RUNNING", "COMPLETING") else reason
    return found
