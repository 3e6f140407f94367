"""A sweep as an array of Slurm jobs: the script, its submission, and the state of the queue."""

import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import append, replace
from jaxcifar.signals import interruptible

_WARNING = 180  # seconds before the time limit, at which a task saves; Slurm may be 60 s early
_SHORTEST = 5  # minutes

_SCRIPT = """\
#!/bin/bash
# To submit this by hand, so that --status knows of it once its first task has started:
#   mkdir -p {folder_of_output}
#   sbatch --parsable THIS_FILE >> {folder_of_output}/jobs
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
# USR1 comes before the time limit: the task saves, exits with 75, and is requeued here, unless it
# made no step (138). 70 may be the fault of this node, and so may the end by another signal, or by
# want of memory (253): it is requeued, unless the task has been restarted three times, for
# whatever reason. SIGTERM (143) means scancel, after which no one should requeue it, or preemption
# (which USR1 may tell as well). Slurm requeues preempted tasks itself, but not those that end
# within the grace time of their partition.
cd {folder} || exit 2
# Where a GPU is out of order, JAX would go on with the CPU. (/dev/kfd is AMD's driver.)
if [ "${{SLURM_GPUS_ON_NODE:-0}}" != 0 ] && [ ! -e /dev/kfd ]; then
    export JAX_PLATFORMS="${{JAX_PLATFORMS:-cuda}}"
fi
# The environment is this script's, also where sbatch was told --export=NONE.
srun --export=ALL --kill-on-bad-exit=1 \\
    ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
    {command} --shard="$SLURM_ARRAY_TASK_ID/{tasks}"
code=$?
task="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
is() {{
    scontrol --oneliner show job "$task" | grep -q " JobState=$1"
}}
case $code in
    75) true ;;
    138 | 143) is "RUNNING .* PreemptTime=[0-9]" ;;
    70 | 134 | 135 | 136 | 137 | 139 | 253) [ "${{SLURM_RESTART_COUNT:-0}}" -lt 3 ] && is RUNNING ;;
    *) false ;;
esac && scontrol requeue "$task"
exit $code
"""


def minutes(text: str) -> float:
    """Returns the minutes of a time in Slurm's notation: 90, 1:30:00, 2-12:00.

    Raises:
      UserError: it is not such a time.
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
      command: a command that takes --shard=i/N.
      out: the sweep's folder; the tasks' output goes to slurm/ in it.
      tasks: the number of tasks.
      time: the time limit of each task, in Slurm's notation.
      options: more options for sbatch.

    Raises:
      UserError: the time limit is invalid, or too short for a task to save; or the script cannot
        name the folder.
    """
    output = str(out.resolve() / "slurm")
    if re.search(r'["\\\x00-\x1f]', output):
        raise UserError(
            f"--out is {str(out)!r}, and Slurm's script cannot name the folder {output!r}. Choose "
            "one without quotation marks, backslashes and line ends."
        )
    if minutes(time) < _SHORTEST:
        raise UserError(
            f"--time is {time}, but a task is told to save {_WARNING} seconds before its limit, or "
            f"up to a minute earlier. Give {_SHORTEST} minutes or more."
        )
    return _SCRIPT.format(
        last=tasks - 1,
        tasks=tasks,
        time=time,
        warning=_WARNING,
        output=f"{output.replace('%', '%%')}/%A_%a.out",
        folder_of_output=shlex.quote(output),
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
            "There is no sbatch on the PATH. Run this on a machine from which Slurm jobs are "
            "submitted, or print the script with --print and submit it there."
        )


def keep(text: str, out: pathlib.Path) -> pathlib.Path:
    """Writes a script to OUT/slurm/sweep.sh; returns its path."""
    path = out / "slurm" / "sweep.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, text)
    return path


def submit(text: str, out: pathlib.Path) -> str:
    """Submits a script, which is kept; returns the job's ID.

    Raises:
      UserError: Slurm rejects it.
      Interrupted: a signal came meanwhile; it was submitted.
    """
    path = keep(text, out)
    command = ["sbatch", "--parsable", str(path)]
    # A job that was submitted and not noted would be submitted again. So Ctrl-C waits, and does not
    # reach sbatch.
    with interruptible() as stop:
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
        if done.returncode:
            raise UserError(f"sbatch rejects {path}: {done.stderr.strip()}")
        job = done.stdout.strip()  # ID, or ID;CLUSTER
        append(path.with_name("jobs"), job)
    number = job.partition(";")[0]
    if stop:
        raise Interrupted(
            stop.signum,
            f"Stopped {stop.reason}, but the sweep had been submitted, as job {number}. To cancel "
            f"it: scancel {number}",
        )
    return number


def again(tasks: Sequence[int], script: pathlib.Path) -> str:
    """Returns a command that submits some tasks of a kept script's array once more."""
    file, jobs = (shlex.quote(str(path)) for path in (script, script.with_name("jobs")))
    numbers = ",".join(map(str, tasks))
    # The option would replace that of the script, with how many may run at once.
    given = re.findall(r"^#SBATCH .*?(?:--array[= ]|-a ?)[^%\s]*(%\d+)", script.read_text(), re.M)
    return f"sbatch --parsable --array={numbers}{''.join(given[-1:])} {file} >> {jobs}"


def queue(out: pathlib.Path) -> dict[int, str]:
    """Returns {task: why it waits} for the tasks submitted for OUT that have not ended.

    The reason is "" for a task that runs. Without Slurm the result is empty.

    Raises:
      UserError: Slurm does not answer.
    """
    jobs = out / "slurm" / "jobs"
    if not jobs.exists() or not shutil.which("squeue"):
        return {}
    ours: dict[str, set[str]] = {}  # by cluster; "" is that of this machine
    for line in jobs.read_text().split():
        job, _, cluster = line.partition(";")
        ours.setdefault(cluster, set()).add(job)
    found = {}
    for cluster, numbers in ours.items():
        # Ask for all jobs: another user may have submitted some of these, their partition may be
        # hidden, and squeue fails if asked for one that ended long ago.
        command = ["squeue", "--all", "--array", "--noheader", "--format=%F|%K|%T|%r"]
        command += [f"--clusters={cluster}"] if cluster else []
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode:
            raise UserError(f"squeue does not answer ({listed.stderr.strip()}). Try again later.")
        for line in listed.stdout.splitlines():
            job, task, state, why = (line.strip().split("|") + [""] * 4)[:4]
            if job in numbers and task.isdecimal():
                reason = why if why not in ("", "None") else state.lower()
                found[int(task)] = "" if state in ("RUNNING", "COMPLETING") else reason
    return found
