"""Trains rows of the original report, or any configs, over several seeds; can be run repeatedly.

    python -m experiments.sweep --rows=1-12 --seeds=0-2 --out=results/table3
    python -m experiments.sweep --rows=vgg1-vgg8 --out=results/table4 --config.train.epochs=3
    python -m experiments.sweep --configs=mine/wide.py,mine/deep_*.py --seeds=0-4 --out=results/mine

Runs go to OUT/NAME/seedN, where NAME is the row, or the config file without .py. Finished ones are
skipped, an unfinished one is resumed, and one that fails does not stop the others but is named at
the end (exit code 1). Runs that differ only in numbers (seed, learning rate, L1, L2, epochs) share
one compiled step. `--config.FIELD=VALUE` changes all of them.
"""

import argparse
import functools
import pathlib
import re
import shlex
import sys
import time
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cost import forward_multiply_adds
from experiments.runs.configs import Source, named
from experiments.runs.read import write_origin
from jaxcifar import data, sharding, task, train
from jaxcifar.config import Config
from jaxcifar.errors import Interrupted, UserError, exit_code
from jaxcifar.kernels import compilation
from jaxcifar.options import with_options
from jaxcifar.run.folder import check_same, saved_config
from jaxcifar.run.log import read_lines
from jaxcifar.run.progress import duration


class Job(NamedTuple):
    """One run of a sweep."""

    source: Source
    seed: int
    config: Config  # the source's, with options and seed
    workdir: pathlib.Path
    images: int = 0  # that an epoch trains on, and evaluates
    test_images: int = 0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def state(self) -> str:
        """ "done", "to resume" or "new"."""
        if (self.workdir / "result.json").exists():
            return "done"
        return "to resume" if (self.workdir / "config.json").exists() else "new"

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.workdir / "metrics.jsonl")


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
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def plan(
    sources: list[Source], seeds: list[int], out: pathlib.Path, options: list[str]
) -> list[Job]:
    """Returns the runs of a sweep, checked as far as can be before they start.

    Args:
      sources: rows and config files.
      seeds: of each one's runs.
      out: the sweep's folder.
      options: "--config.FIELD=VALUE" for all runs.

    Raises:
      UserError: a config or an option is impossible, a workdir contains a run of another config,
        or the data are not there.
    """
    if any(option.startswith("--config.seed") for option in options):
        raise UserError("--config.seed would be the same for all runs. Give --seeds instead.")
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
            if saved := saved_config(job.workdir):
                check_same(saved, config, job.workdir)
            jobs.append(job)
    # One after the other what shares compiled programs.
    tasks = {
        job.workdir: None if job.state == "done" else task.build(job.config, _images(job)[0], mesh)
        for job in jobs
    }
    different = list(tasks.values())
    jobs.sort(key=lambda job: different.index(tasks[job.workdir]))
    return [_with_sizes(job) if job.state != "done" else job for job in jobs]


def _images(job: Job) -> tuple[data.Dataset, data.Dataset]:
    """The images that a run trains on, and those that each epoch evaluates."""
    where = job.config.data
    return _split(where.name, where.dir, where.protocol, job.config.train.limit_train_images)


@functools.lru_cache(maxsize=2)
def _split(name: str, folder: str, protocol: str, limit: int) -> tuple[data.Dataset, data.Dataset]:
    train_images, test_images = (data.load(name, s, data_dir=folder) for s in ("train", "test"))
    splits = data.split(train_images, test_images, protocol=protocol, limit=limit)
    return splits.train, splits.validation


def _with_sizes(job: Job) -> Job:
    train_images, validation_images = map(len, _images(job))
    return job._replace(images=train_images, test_images=validation_images)


# --- estimates --------------------------------------------------------------------------------


def work_left(job: Job) -> float:
    """Returns the multiply-adds that a run still takes, evaluation counted."""
    # A training step is about three forward passes; an epoch ends with one over the test images.
    passes = (job.config.train.epochs - len(job.records)) * (3 * job.images + job.test_images)
    return passes * forward_multiply_adds(*_size(job))


def multiply_adds_per_second(jobs: list[Job]) -> float | None:
    """Returns the median speed of all epochs that were trained so far; None where there is none."""
    speeds = sorted(
        3 * record["images_per_second"] * forward_multiply_adds(*_size(job))
        for job in jobs
        for record in job.records
    )
    return speeds[len(speeds) // 2] if speeds else None


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


def time_left(jobs: list[Job]) -> str:
    """Says how long the jobs that are not done will take, by the speed of the epochs so far."""
    work = sum(work_left(job) for job in jobs if job.state != "done")
    if not work:
        return "nothing left"
    if speed := multiply_adds_per_second(jobs):
        return f"about {duration(work / speed)} left"
    guess = duration(work / guessed_multiply_adds_per_second())
    return f"roughly {guess} left (a guess from this device's matrix product, before any epoch)"


# --- the command ------------------------------------------------------------------------------


def run(jobs: list[Job]) -> list[tuple[Job, str]]:
    """Trains what is not done; returns what failed and why."""
    failed = []
    for number, job in enumerate(jobs, start=1):
        if job.state == "done":
            continue
        gone = [other for other, _ in failed]
        left = time_left([other for other in jobs if other not in gone])
        which = f"{job.name}, seed {job.seed}"
        print(f"\n[{number}/{len(jobs)}] {which}: {job.state}; sweep: {left}", flush=True)
        try:
            if job.source.file:
                write_origin(job.source, job.workdir.parent)
            train.train_and_evaluate(job.config, job.workdir)
        except Interrupted:
            raise
        except UserError as error:
            failed.append((job, str(error)))
        except Exception as error:  # one run that breaks must not stop the others
            failed.append((job, f"{type(error).__name__}: {error}"))
            traceback.print_exc()
        if failed and failed[-1][0] is job:
            print(f"{which} failed: {failed[-1][1]}", flush=True)
    return failed


def _table(jobs: list[Job]) -> str:
    wide = max(6, *(len(job.name) for job in jobs))
    lines = [f"{'name':<{wide}} {'seed':>4}  {'model':<12} {'epochs':>9}  {'state':<10} folder"]
    for job in jobs:
        epochs = f"{len(job.records)}/{job.config.train.epochs}"
        lines.append(
            f"{job.name:<{wide}} {job.seed:>4}  {job.config.model.name:<12} {epochs:>9}  "
            f"{job.state:<10} {job.workdir}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rows", help="1-12, vgg1-vgg8, 9, or a list of such")
    parser.add_argument("--configs", help="config files, or patterns: configs/row9.py,mine/*.py")
    parser.add_argument("--seeds", default="0", help="0-2, or a list of such (default 0)")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the sweep's folder")
    parser.add_argument("--dry-run", action="store_true", help="list the work, do nothing")
    arguments, options = parser.parse_known_args(argv)

    seeds = parse_seeds(arguments.seeds)
    jobs = plan(named(arguments.rows, arguments.configs), seeds, arguments.out, options)
    states = [job.state for job in jobs]
    counts = ", ".join(
        f"{states.count(s)} {s}" for s in ("done", "to resume", "new") if s in states
    )
    print(f"{len(jobs)} runs in {arguments.out}: {counts}; {time_left(jobs)}")
    if arguments.dry_run:
        print(_table(jobs))
        return 0
    compilation.use_cache()
    began = time.monotonic()
    failed = run(jobs)
    folder = shlex.quote(str(arguments.out))
    print(
        f"\n{len(jobs) - len(failed)} of {len(jobs)} runs are in {arguments.out}, after "
        f"{duration(time.monotonic() - began)}. Next: python -m experiments.report figures "
        f"{folder}; python -m experiments.report {folder}"
    )
    for job, why in failed:
        print(f"failed: {job.name}, seed {job.seed} ({job.workdir}): {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
