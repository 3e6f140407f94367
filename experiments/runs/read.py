"""Reads the runs of sweeps: what they were, how they went, and how they were shortened.

A sweep's folder holds NAME/seedN/ for each run, as `experiments.sweep` leaves it; a folder NAME/
that `jaxcifar.main` trained in is read as well. NAME is a row of the original report, or a config
of your own. Everything that is made of runs starts here.
"""

import dataclasses
import functools
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.runs import marks
from experiments.runs.kinds import check_keys, count, flag, mapping, number, or_none, text
from experiments.runs.rows import ROWS, Row
from experiments.runs.stats import smoothed
from jaxcifar import files, options
from jaxcifar.config import complete, flatten
from jaxcifar.errors import UserError, in_short, of_file, raise_temporary
from jaxcifar.run import log, signs
from jaxcifar.run.about import writer_of
from jaxcifar.run.folder import run_folders


class Run(NamedTuple):
    """One run as read from its folder."""

    name: str  # of the row, or of the config file without .py
    folder: pathlib.Path
    config: dict[str, Any]  # flat: {"model.name": …}
    data: dict[str, Any]  # provenance of "train" and "validation" images
    environment: dict[str, Any]  # of its first start
    resumed: list[dict[str, Any]]  # the environments of its later ones
    # Of metrics.jsonl, one per epoch. If the run averages its weights, "val_…" are the average's.
    records: list[dict[str, Any]]
    result: dict[str, Any] | None  # None while the run is unfinished
    original: dict[str, Any] | None  # the flat config that options changed; None where unknown
    file: str | None  # the config file, or the name of one of the package's; None where unknown
    grid: tuple[str, ...]  # the values by which a sweep varied that: ("optim.l2=0.0001", …)

    @property
    def row(self) -> Row | None:
        """The row of the original report; None for another config."""
        return ROWS.get(self.name)

    @property
    def label(self) -> str:
        """The row's number in its table, or the config's name."""
        return self.row.number if self.row else self.name

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def data_set(self) -> str:
        """What it was trained on, and evaluated: "cifar10", "cifar100, held out"."""
        held_out = ", held out" if self.config["data.protocol"] == "holdout" else ""
        return self.config["data.name"] + held_out

    @property
    def swept(self) -> bool:
        """Whether the folder is of a sweep, rather than of `jaxcifar.main`."""
        whole = pathlib.Path(os.path.abspath(self.folder))
        of_sweep = (whole.parent / options.ORIGIN).exists()
        alone = not of_sweep and (whole / options.ORIGIN).exists()
        return bool(_SEED.fullmatch(whole.name)) and not alone

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The environment of each start of the run."""
        return [self.environment, *self.resumed]

    @property
    def best(self) -> dict[str, Any]:
        """The record of the epoch of highest validation accuracy, the earliest of equals."""
        return log.best_record(self.records)

    @property
    def imported(self) -> bool:
        """Whether it is weights that were imported, and never trained here."""
        return not self.data

    @property
    def progress(self) -> str:
        """How far it is: "epoch 3 of 50", and why its last attempt failed, if it did."""
        if self.imported:
            return "imported weights, not trained"
        done = f"epoch {len(self.records)} of {self.config['train.epochs']}"
        # Its first sentence, as this stands in tables and titles; `jaxcifar runs` shows more.
        why = signs.failure(self.folder).partition("\n")[0].partition(". ")[0].rstrip(".")
        return f"{done}, failed: {why}" if why else done

    @property
    def train_seconds(self) -> float:
        """How long the epochs took, without their evaluation."""
        return sum(record["seconds"] for record in self.records)

    @property
    def shortened(self) -> list[str]:
        """How the run is less than its original: ["3 of 50 epochs", …]; [] for a full one."""
        less = marks.shortened(self.original, self.config) if self.original else {}
        return list(less.values())

    @property
    def mark(self) -> str:
        """How the run differs from its original; "" for a full run of it on the official images."""
        if self.imported:
            return ""
        parts = [marks.mark(self.original, self.config)]
        if any(facts["official"] is False for facts in self.data.values()):
            parts.append(marks.UNOFFICIAL)
        return "; ".join(filter(None, parts))

    @property
    def options(self) -> list[str]:
        """The options that make such a run of its original, except the seed: ["--config.…=…"]."""
        found = marks.options(self.original, self.config) if self.original else []
        folder = self.config["data.dir"]  # changes no number, but without it there are no images
        varied = any(value.startswith("data.dir=") for value in self.grid)
        return found + ([f"--config.data.dir={folder}"] if folder and not varied else [])

    def steps(self, name: str = "ce") -> np.ndarray:
        """Returns a metric of each training step, [steps]: "loss", "ce" or "accuracy".

        Raises:
          UserError: steps.jsonl is damaged.
        """
        path = self.folder / "steps.jsonl"
        epochs = read_records(path)
        try:
            return np.concatenate([np.zeros(0), *(epoch[name] for epoch in epochs)]).astype(float)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({in_short(error)}).") from error


_SEED = re.compile(r"seed\d+")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of one folder: the rows in the original report's order, then others by name."""

    folder: pathlib.Path
    runs: tuple[Run, ...]  # those of one name together, by seed
    left_out: tuple[Run, ...] = ()  # by `finished`

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(run.name for run in self.runs))

    def of(self, name: str) -> list[Run]:
        """Returns the runs of a row or config, by seed; [] where there are none."""
        return [run for run in self.runs if run.name == name]

    def only(self, names: Sequence[str]) -> "Sweep":
        """Returns the sweep without the runs of other names."""
        parts = ([run for run in of if run.name in names] for of in (self.runs, self.left_out))
        return Sweep(self.folder, *map(tuple, parts))

    @property
    def finished(self) -> "Sweep":
        """The sweep without its unfinished runs, which it still names in `left_out`."""
        done = tuple(run for run in self.runs if run.result is not None)
        others = tuple(run for run in self.runs if run.result is None and not run.imported)
        return Sweep(self.folder, done, self.left_out + others)

    @property
    def unfinished(self) -> list[str]:
        """Which runs are not finished: ["vgg1, seed 2: epoch 7 of 50", …]."""
        return [
            f"{run.name}, seed {run.seed}: {run.progress}"
            for run in self.runs
            if run.result is None and not run.imported
        ]

    @property
    def rows(self) -> "Sweep":
        """The sweep without the runs of configs that the original report does not have."""
        return self.only(list(ROWS))

    @property
    def others(self) -> "Sweep":
        """The sweep without the runs of the original report's rows."""
        return self.only([name for name in self.names if name not in ROWS])

    def with_data_in(self, folder: pathlib.Path) -> "Sweep":
        """Returns the sweep as if its runs had found their images in a folder."""
        moved = {"data.dir": str(folder)}
        runs = tuple(run._replace(config=run.config | moved) for run in self.runs)
        return Sweep(self.folder, runs)

    def mark(self, name: str) -> str:
        """Says how the runs of a name differ from their original; "" where they do not."""
        return self.of(name)[0].mark

    @property
    def notes(self) -> list[str]:
        """Says what each name marked † is: "vgg1, vgg2: SHORTENED: …"."""
        by_mark: dict[str, list[str]] = {}
        for name in self.names:
            if mark := self.mark(name):
                by_mark.setdefault(mark, []).append(name)
        return [f"{', '.join(names)}: {mark}" for mark, names in by_mark.items()]

    def loss_curves(self, names: Sequence[str], seed: int, window: int) -> np.ndarray | None:
        """Returns the smoothed training loss by step of one seed's runs, [len(names), steps].

        The loss is the cross-entropy in nats. None where a run of the seed is missing or
        unfinished, or has fewer steps than `window` or no steps.jsonl.
        """
        done = {run.name: run for run in self.finished.runs if run.seed == seed}
        if not set(names) <= set(done):
            return None
        losses = [done[name].steps("ce") for name in names]
        if len({len(loss) for loss in losses}) != 1 or len(losses[0]) < window:
            return None
        return np.stack([smoothed(loss, window) for loss in losses])


# --- sweeps -----------------------------------------------------------------------------------


def sweeps(folder: str | pathlib.Path, problems: list[str] | None = None) -> list[Sweep]:
    """Reads all runs under `folder`.

    Runs of measurements (with a settings.json beside or above their config.json) are left out.

    Args:
      folder: of a sweep, or above several.
      problems: a list that takes what cannot be read, if the rest should be read anyway.

    Raises:
      UserError: there are no runs, or one cannot be read, was written by another version, or
        differs from the others of its name by more than the seed.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Make one with jaxcifar sweep.")
    found: dict[pathlib.Path, list[Run]] = {}
    for path in _of_whole_sweeps(folder):
        try:
            found.setdefault(_places(path)[1], []).append(read_run(path))
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
    if not found and not problems:
        raise UserError(
            f"{folder} contains no runs (no config.json below it). Make some with "
            f"jaxcifar sweep --rows=… --out={shlex.quote(str(folder))}."
        )
    return [_sweep(place, runs, problems) for place, runs in found.items() if runs]


def _of_whole_sweeps(top: pathlib.Path) -> list[pathlib.Path]:
    """Returns the runs below a folder, those of a sweep alike wherever above it the folder is.

    A run to which a sweep has a link may be in another sweep, as which alone it would be found.
    """
    found, below = [], {top: _trained(top)}
    for place in dict.fromkeys(_places(path)[1] for path in below[top]):
        start = place if place.is_relative_to(top) else top
        if start not in below:
            below[start] = _trained(start)
        found += [path for path in below[start] if _places(path)[1] == place]
    return found


def _trained(top: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in run_folders(top) if not _is_of_a_measurement(path, top)]


def is_part(folder: pathlib.Path, sweep: Sweep) -> bool:
    """Whether a sweep that was read from `folder` has other runs, outside of it."""
    # Not resolved: a row may be a link to another disk.
    part, whole = (pathlib.Path(os.path.abspath(path)) for path in (folder, sweep.folder))
    # Only where a run of it can be: above it there may be a whole home folder.
    files = (*whole.glob("*/config.json"), *whole.glob("*/*/config.json"))
    return whole in part.parents and any(
        _places(file.parent)[1] == whole and not file.is_relative_to(part) for file in files
    )


def _is_of_a_measurement(run: pathlib.Path, top: pathlib.Path) -> bool:
    above = [run, *run.parents]
    return any((path / "settings.json").exists() for path in above[: above.index(top) + 1])


def _sweep(folder: pathlib.Path, runs: list[Run], problems: list[str] | None) -> Sweep:
    by_name: dict[str, list[Run]] = {name: [] for name in ROWS}
    for run in sorted(runs, key=lambda run: (run.name, run.seed)):
        by_name.setdefault(run.name, []).append(run)
    kept: list[Run] = []
    for alike in by_name.values():
        same: dict[int, Run] = {}  # by seed
        for run in alike:
            try:
                for seed in {*list(same)[:1], run.seed} & same.keys():
                    _check_alike(same[seed], run)
            except UserError as error:
                if problems is None:
                    raise
                problems.append(str(error))
            else:
                same[run.seed] = run
        kept += same.values()
    return Sweep(folder, tuple(kept))


def _check_alike(one: Run, other: Run) -> None:
    differing = differences(one, other)
    if one.seed == other.seed:
        differing.append("nothing, not even the seed")
    if differing:
        raise UserError(
            f"{one.folder} and {other.folder} are both runs of {one.name}, but differ in "
            f"{'; '.join(differing)}. Move one of them to another folder."
        )


def differences(one: Run, other: Run) -> list[str]:
    """Returns what differs between two runs but their seeds: ["model.width 1.0 -> 2.0", …]."""
    changed = marks.differing(one.config, other.config)
    found = [f"{field} {a} -> {b}" for field, (a, b) in changed.items()]
    pixels = [{part: facts["sha256"] for part, facts in run.data.items()} for run in (one, other)]
    if pixels[0] != pixels[1]:
        found.append("the images")
    dtypes = [run.environment["dtype"] for run in (one, other)]
    if dtypes[0] != dtypes[1]:
        found.append(f"dtype {dtypes[0]} -> {dtypes[1]}")
    return found


# --- one run ----------------------------------------------------------------------------------


def read_run(folder: pathlib.Path) -> Run:
    """Reads one run, finished or not.

    Raises:
      UserError: it cannot be read, or was written by another version.
    """
    path = folder / "config.json"
    content = read_json(path)
    try:
        saved, data, environment = content["config"], content["data"], content["environment"]
        config = flatten(complete(saved, writer_of(content)))
        resumed = list(content.get("resumed", []))
    except UserError as error:
        raise UserError(f"{folder}: {error} Or move the folder away.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the config of a run ({error!r}).") from error
    records = read_records(folder / "metrics.jsonl")
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else None
    check_keys(path, environment, _ENVIRONMENT)
    for later in resumed:
        check_keys(path, later, _ENVIRONMENT)
    check_keys(path, content, {"data": mapping})
    for facts in data.values():
        check_keys(path, facts, _FACTS)
    for record in records:
        check_keys(folder / "metrics.jsonl", record, _RECORD)
    if result is not None:
        check_keys(folder / "result.json", result, _RESULT)
    if result is not None and len(records) != config["train.epochs"]:
        raise UserError(
            f"{folder} is damaged: result.json says that it is finished, but metrics.jsonl has "
            f"{len(records)} of {config['train.epochs']} epochs. Delete it and train again."
        )
    name = _places(folder)[0].name
    original, file, grid = origin(name, folder)
    records = [log.averaged(record) for record in records]
    facts = (data, environment, resumed, records, result)
    return Run(name, folder, config, *facts, original, file, grid)


def _places(run: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder NAME/ of a run, and that of its sweep."""
    whole = pathlib.Path(os.path.abspath(run))
    up = 2 if _SEED.fullmatch(whole.name) and _is_a_seed(whole) else 1
    if len(run.parts) < up or ".." in run.parts[-up:]:  # "." and ".." have no name
        run = whole
    named = run.parent if up == 2 else run
    return named, named.parent


def _is_a_seed(folder: pathlib.Path) -> bool:
    """Whether a folder seedN holds one seed of NAME/, rather than being a --workdir of that name.

    What a sweep left there does. What `jaxcifar train` left there does only if NAME is the name of
    its config file, or NAME/ holds other seeds of the same file.
    """

    def file(folder: pathlib.Path) -> str:
        try:
            return read_json(folder / options.ORIGIN)["file"]
        except (UserError, OSError, KeyError, TypeError):  # damaged, which is said where it matters
            return ""

    if not (folder / options.ORIGIN).exists():
        return True
    # A seed of a sweep that `jaxcifar train` resumed has both files.
    others = (other for other in folder.parent.glob("seed*") if other != folder)
    beside, mine = [file(other) for other in (folder.parent, *others)], file(folder)
    return mine in ("", *beside) or pathlib.Path(mine).stem == folder.parent.name


def origin(
    name: str, folder: pathlib.Path
) -> tuple[dict[str, Any] | None, str | None, tuple[str, ...]]:
    """Returns the flat config that options changed, its file, and the values that varied it.

    Config and file are None where unknown.

    Args:
      name: of the row or config.
      folder: of the run, or of a measurement.

    Raises:
      UserError: origin.json is damaged.
    """
    path = _places(folder)[0] / options.ORIGIN  # of a sweep; that of `jaxcifar.main` is in the run
    path = path if path.exists() else folder / options.ORIGIN
    if name not in ROWS and path.exists():
        content = read_json(path)
        try:
            config, grid = flatten(complete(content["config"])), tuple(content.get("grid", ()))
            if not all(map(text, (content["file"], *grid))):
                raise TypeError("its file or grid is no text")
            return config, content["file"], grid
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be used ({error}). Restore it from a copy, or delete it; without "
                "it, reports cannot tell whether the run was shortened."
            ) from error
    if (options.CONFIGS / f"{name}.py").exists():
        return _config_here(name), name, ()
    return None, None, ()


@functools.cache
def _config_here(name: str) -> dict[str, Any]:
    return flatten(options.load(name))


_ENVIRONMENT = {
    **dict.fromkeys(("jaxcifar", "jax", "flax", "optax", "numpy", "python", "device"), text),
    **{"devices": count, "cpus": count, "dtype": text, "started": text, "commit": or_none(text)},
}
_FACTS = {
    **{"name": text, "images": count, "sha256": text},
    "official": or_none(flag),
}
_RECORD = {
    **{"epoch": count, "step": count, "train_accuracy": number, "val_accuracy": number},
    **dict.fromkeys(("train_loss", "train_ce", "val_loss", "images_per_second", "seconds"), number),
}
_RESULT = {
    **{"parameters": count, "compile_seconds": or_none(number)},
    "peak_memory_bytes": or_none(count),
}


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        raise_temporary(error, path)
        raise UserError(f"{path} cannot be read ({error}).") from error


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, or another file of JSON lines.

    Raises:
      UserError: it, or a line of it, cannot be read.
    """
    try:
        return files.read_lines(path)
    except OSError as error:
        raise of_file(error, path) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from error
