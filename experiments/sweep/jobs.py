"""The runs of a sweep: what each is to train, and its state."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.runs.configs import Source
from experiments.runs.read import read_json, read_records
from jaxcifar import checks, data, sharding, task
from jaxcifar.config import Config
from jaxcifar.errors import UserError, of_file
from jaxcifar.files import file_digest
from jaxcifar.options import with_options
from jaxcifar.run import about, signs
from jaxcifar.run.folder import nothing_trained
from jaxcifar.run.progress import duration


class Job(NamedTuple):
    """One run of a sweep."""

    source: Source
    seed: int
    config: Config  # the source's, with options and seed
    workdir: pathlib.Path

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def key(self) -> str:
        """Its name among the runs of the sweep, which is also the place of its folder in it."""
        return f"{self.name}/seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def images(self) -> data.Splits:
        """Its images; of CIFAR's only how many, see `jaxcifar.data.splits_without_images`."""
        return _counted(*_which_images(self))

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
        """Which file of the run is damaged or unreadable, and why; "" if none is."""
        try:
            finished, epochs = (self.workdir / "result.json").exists(), self.config.train.epochs
            if finished or (self.workdir / "config.json").exists():
                _read(read_json, self.workdir / "config.json")
            records = _read(read_records, self.workdir / "metrics.jsonl")
            if finished and len(records) != epochs:
                raise UserError(
                    f"{self.workdir / 'metrics.jsonl'} has {len(records)} of {epochs} epochs."
                )
            result = _read(read_json, self.workdir / "result.json") if finished else {}
            if not isinstance(result, dict):
                raise UserError(f"{self.workdir / 'result.json'} is not the result of a run.")
            for name, digest in result.get("files", {}).items():
                path = self.workdir / name
                if path.suffix == ".jsonl" and _read(file_digest, path) != digest:
                    raise UserError(f"{path} is lost, or was changed after it was written.")
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
_files: dict[Any, tuple[tuple[int, int], Any]] = {}  # when and how large, and what was read


def _read(read: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
    """Returns what `read` returns of a file, which is not read again before it has changed."""
    try:
        at = path.stat()
    except OSError:
        return read(path)
    stamp = at.st_mtime_ns, at.st_size
    if (read, path) not in _files or _files[read, path][0] != stamp:
        _files[read, path] = stamp, read(path)
    return _files[read, path][1]


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
        for option in options:
            field = option.partition("=")[0].removeprefix("--config.")
            if any(value.startswith(f"{field}=") for value in source.grid):
                raise UserError(f"{option} would undo --grid, which has {field}. Leave one out.")
        config = with_options(source.config, options)
        of_source: list[Job] = []
        for seed in seeds:
            config = config.copy_and_resolve_references()
            job = Job(source, seed, config, out / source.name / f"seed{seed}")
            try:
                config.seed = seed
                checks.check_config(config, mesh)
            except (UserError, KeyError, TypeError) as error:
                raise UserError(f"{source.file or source.name}: {error}") from error
            of_source.append(job)
        _check_there(out / source.name, of_source)
        jobs += of_source
    return jobs


def _check_there(folder: pathlib.Path, jobs: list[Job]) -> None:
    """Checks that what is in the folder of a config, also of other seeds, is of this config.

    Raises:
      UserError: it is of another, so that no report could take them together.
    """
    wanted = {job.workdir: job.config for job in jobs}
    for workdir in sorted({*wanted, *_seeds_in(folder)}):
        saved, empty = _about(workdir)
        if saved:
            config = wanted.get(workdir)
            if config is None:
                config = jobs[0].config.copy_and_resolve_references()
                config.seed = saved.config.seed
            about.check_same_config(saved.config, config, workdir, _WAY_OUT, empty=empty)


def check_dtypes(jobs: list[Job], platform: str) -> None:
    """Checks that runs to be trained on a platform have the dtype of those beside them.

    Raises:
      UserError: a seed of the same name has another, so that no report could take them together.
    """
    left = {job.workdir.parent: job for job in reversed(jobs) if job.state != "done"}  # the first
    for folder, job in left.items():
        here = task.dtype_on(platform, job.config)
        for workdir in sorted(_seeds_in(folder)):
            saved, empty = _about(workdir)
            if not saved or not saved.data or empty:
                continue
            there = saved.environments[0]
            if there["dtype"] != here:
                hint = " (JAX_PLATFORMS=cpu is the CPU)" if there["dtype"] == "float32" else ""
                raise UserError(
                    f"{workdir} was trained in {there['dtype']} (on {there.get('device')}), but "
                    f"here model.dtype is {job.config.model.dtype!r}, which is {here}, and no "
                    f"report takes both together. Train {job} on a device like that one{hint}, or "
                    "in another --out."
                )


def _seeds_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs of a config's seeds."""
    return [path for path in folder.glob("seed*") if path.name[len("seed") :].isdecimal()]


def _about(workdir: pathlib.Path) -> tuple[about.About | None, bool]:
    """What is known of the run in a workdir, and whether nothing was trained in it yet."""
    with contextlib.suppress(UserError, OSError):  # damaged: its turn will come
        saved, sign = about.read(workdir), signs.running(workdir)
        return saved, nothing_trained(workdir) and not (sign and sign.alive)
    return None, False


_WAY_OUT = (
    "Give the same options as before to resume it or to add seeds, or another --out; a config file "
    "of another name has a folder of its own."
)


def in_order(jobs: list[Job]) -> list[Job]:
    """Returns the jobs in the order in which they are to be trained.

    What is done comes first, and what shares compiled programs stays together.
    """
    done = [job for job in jobs if job.state == "done"]
    left = groups([job for job in jobs if job not in done])
    return done + [job for group in left for job in group]


def groups(jobs: list[Job], platform: str | None = None) -> list[list[Job]]:
    """Returns the jobs in groups that share compiled programs on a platform; None: on this one."""
    mesh = sharding.make_mesh()
    found: dict[task.Task, list[Job]] = {}
    for job in jobs:
        try:
            shared = task.build(job.config, job.images.train, mesh, platform=platform)
        except UserError as error:
            raise UserError(f"{job.source.file or job.name}: {error}") from error
        found.setdefault(shared, []).append(job)
    return list(found.values())


def _which_images(job: Job) -> tuple[str, str, str, int]:
    """What decides which images a run has."""
    where = job.config.data
    return where.name, where.dir, where.protocol, job.config.train.limit_train_images


@functools.cache
def _counted(name: str, folder: str, protocol: str, limit: int) -> data.Splits:
    return data.splits_without_images(name, folder, protocol=protocol, limit=limit)


def check_images(jobs: list[Job]) -> None:
    """Reads all images, so that what is missing costs one message, and not one for each run.

    Raises:
      UserError: some are missing.
    """
    for name, folder, protocol, limit in {_which_images(job): None for job in jobs}:
        data.load_splits(name, folder, protocol=protocol, limit=limit)
