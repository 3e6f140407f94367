"""Reads the runs of a sweep: what they were, how they went, and what they fell short of.

A sweep's folder holds ROW/seedN/ for each run, as `experiments.sweep` leaves it; a folder ROW/ that
`jaxcifar.main` trained in is read as well. Everything that is made of runs starts here.
"""

import importlib
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.report_tables import ROWS, Row
from jaxcifar import metrics
from jaxcifar.config import EXECUTION_FIELDS, Config, base_config, flatten
from jaxcifar.errors import UserError, nearest

CIFAR10_TRAIN_IMAGES = 50_000


class Run(NamedTuple):
    """One run as read from its folder."""

    row: Row
    folder: pathlib.Path
    config: dict[str, Any]  # flat: {"model.name": …}
    data: dict[str, Any]  # provenance of "train" and "validation" images
    environment: dict[str, Any]
    records: list[dict[str, Any]]  # of metrics.jsonl, one an epoch
    result: dict[str, Any] | None  # None while the run is unfinished

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def best(self) -> dict[str, Any]:
        """The record of the epoch of highest validation accuracy."""
        return metrics.best_record(self.records)

    @property
    def shortened(self) -> list[str]:
        """How the run is less than the row's: ["3 of 50 epochs", …]; [] for a full one."""
        return shortened(self.row, self.config)

    @property
    def mark(self) -> str:
        """What sets the run apart from the row; "" for a full run of the row itself."""
        return mark(self.row, self.config)

    @property
    def options(self) -> str:
        """The options that make such a run of its row, but for the seed: " --config.…=…"."""
        differing = _differing(self.row, self.config)
        return "".join(f" --config.{name}={self.config[name]}" for name in differing)

    def steps(self, name: str = "ce") -> np.ndarray:
        """Returns a metric of each training step, [steps]: "loss", "ce" or "accuracy"."""
        epochs = read_records(self.folder / "steps.jsonl")
        return np.concatenate([epoch[name] for epoch in epochs]) if epochs else np.zeros(0)


def shortened(row: Row, config: dict[str, Any]) -> list[str]:
    """Returns how a flat config is less than that of its row: ["3 of 50 epochs", …]."""
    short = []
    if config["train.epochs"] < row.epochs:
        short.append(f"{config['train.epochs']} of {row.epochs} epochs")
    images = config["train.limit_train_images"]
    if 0 < images < CIFAR10_TRAIN_IMAGES:
        short.append(f"{images:,} of {CIFAR10_TRAIN_IMAGES:,} images")
    return short


def changed(row: Row, config: dict[str, Any]) -> list[str]:
    """Returns how else a flat config differs from that of its row."""
    original = flatten(row_config(row.config))
    names = _differing(row, config)
    shorter = {"train.limit_train_images"}
    if config["train.epochs"] < row.epochs:
        shorter.add("train.epochs")
    return [f"{name} {original[name]} -> {config[name]}" for name in names if name not in shorter]


def mark(row: Row, config: dict[str, Any]) -> str:
    """Says what sets a run of a flat config apart from its row; "" for a full run of it."""
    parts = []
    if short := shortened(row, config):
        parts.append(f"SHORTENED: {', '.join(short)}")
    if other := changed(row, config):
        parts.append(f"changed: {', '.join(other)}")
    return "; ".join(parts)


def _differing(row: Row, config: dict[str, Any]) -> list[str]:
    original = flatten(row_config(row.config))
    ignored = ("seed", *EXECUTION_FIELDS)
    return [
        name for name, value in config.items()
        if name not in ignored and _plain(original[name]) != _plain(value)
    ]  # fmt: skip


def row_config(name: str) -> Config:
    """Returns the config of a row of the report, such as "row9" or "vgg2"."""
    return importlib.import_module(f"configs.{name}").get_config()


def sweeps(
    folder: str | pathlib.Path, problems: list[str] | None = None
) -> dict[pathlib.Path, dict[str, list[Run]]]:
    """Reads all runs under `folder`.

    Args:
      folder: of a sweep, or above several.
      problems: a list that takes what cannot be read, where the rest should be read all the same.

    Returns:
      {sweep's folder: {row: its runs by seed}}, the rows in the report's order.

    Raises:
      UserError: no run is there, or one cannot be read, is of no row of the report, was written by
        another version, or differs from the others of its row by more than the seed.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Make one with python -m experiments.sweep.")
    found: dict[pathlib.Path, list[Run]] = {}
    for path in sorted(folder.rglob("config.json")):
        # A run of jaxcifar.main is in ROW/, one of a sweep in ROW/seedN/.
        row_folder = path.parent if path.parent.name in ROWS else path.parent.parent
        try:
            found.setdefault(row_folder.parent, []).append(_read(path.parent, row_folder.name))
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
    if not found and not problems:
        raise UserError(
            f"{folder} holds no runs (no config.json below it). Make some with "
            f"python -m experiments.sweep --rows=… --out={folder}."
        )
    return {sweep: _by_row(runs, problems) for sweep, runs in found.items() if runs}


def finished(runs: Iterable[Run]) -> list[Run]:
    """Returns those of `runs` that went to their end."""
    return [run for run in runs if run.result is not None]


def _by_row(runs: list[Run], problems: list[str] | None) -> dict[str, list[Run]]:
    rows: dict[str, list[Run]] = {}
    for name in ROWS:
        of_row = sorted((run for run in runs if run.row.config == name), key=lambda run: run.seed)
        for run in of_row[1:]:
            try:
                _check_alike(of_row[0], run)
            except UserError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                of_row = of_row[:1]
                break
        if of_row:
            rows[name] = of_row
    return rows


def _check_alike(one: Run, other: Run) -> None:
    ignored = {"seed", *EXECUTION_FIELDS}
    differing = [
        f"{field}: {one.config[field]} and {other.config[field]}"
        for field in one.config
        if field not in ignored and one.config[field] != other.config[field]
    ]
    pixels = [{part: facts["sha256"] for part, facts in run.data.items()} for run in (one, other)]
    if pixels[0] != pixels[1]:
        differing.append("the images")
    if one.environment["dtype"] != other.environment["dtype"]:
        differing.append(f"dtype: {one.environment['dtype']} and {other.environment['dtype']}")
    if one.seed == other.seed:
        differing.append("nothing, the seed included")
    if differing:
        raise UserError(
            f"{one.folder} and {other.folder} are runs of one row, but differ in "
            f"{'; '.join(differing)}. Move one of them to another folder."
        )


def _read(folder: pathlib.Path, row: str) -> Run:
    if row not in ROWS:
        raise UserError(
            f"{folder} is of {row!r}, no row of the report.{nearest(row, ROWS)} Runs are read from "
            f"ROW/seedN/ or ROW/, where ROW is one of {', '.join(ROWS)}."
        )
    content = read_json(folder / "config.json")
    try:
        config, data = flatten(content["config"]), content["data"]
        environment = content["environment"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} is no config of a run ({error!r}).") from error
    expected = flatten(base_config())
    # A field that came since, and changes nothing of what was computed, is no hindrance.
    config = {field: expected[field] for field in EXECUTION_FIELDS} | config
    if differing := sorted(config.keys() ^ expected.keys()):
        raise UserError(
            f"{folder} was written by another version of jaxcifar (commit "
            f"{environment.get('commit')}): the config fields {', '.join(differing)} are only on "
            "one side. Read it with that version, or move it away."
        )
    records = read_records(folder / "metrics.jsonl")
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else None
    _check_keys(folder / "config.json", environment, _ENVIRONMENT)
    for facts in data.values():
        _check_keys(folder / "config.json", facts, ("name", "images", "official", "sha256"))
    for record in records:
        _check_keys(folder / "metrics.jsonl", record, _RECORD)
    if result is not None:
        _check_keys(folder / "result.json", result, _RESULT)
    if result is not None and len(records) != config["train.epochs"]:
        raise UserError(
            f"{folder} is damaged: result.json says that it is finished, but metrics.jsonl has "
            f"{len(records)} of {config['train.epochs']} epochs. Delete it and train again."
        )
    return Run(ROWS[row], folder, config, data, environment, records, result)


_ENVIRONMENT = ("jaxcifar", "jax", "flax", "optax", "numpy", "python", "commit", "device",
                "devices", "cpus", "dtype", "started")  # fmt: skip
_RECORD = ("epoch", "step", "train_loss", "train_ce", "train_accuracy", "val_loss", "val_accuracy",
           "images_per_second")  # fmt: skip
_RESULT = ("parameters", "train_seconds", "compile_seconds", "peak_memory_bytes")


def _check_keys(path: pathlib.Path, content: Any, keys: Sequence[str]) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(
            f"{path} is of another version of jaxcifar, or damaged: {', '.join(missing)} missing. "
            "Read it with that version, or move it away."
        )


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, or another file of JSON lines.

    Raises:
      UserError: a line of it cannot be read.
    """
    try:
        return metrics.read_lines(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- loss curves ------------------------------------------------------------------------------

# Table 4's rows at the learning rates 3e-3, 1e-3, 5e-4 and 1e-4.
WITHOUT_BN, WITH_BN = ("vgg1", "vgg2", "vgg3", "vgg4"), ("vgg5", "vgg6", "vgg7", "vgg8")


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of each `window` consecutive values: [n - window + 1]."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window


def loss_curves(
    rows: dict[str, list[Run]], names: Sequence[str], seed: int, window: int
) -> np.ndarray | None:
    """Returns the smoothed training loss by step of one seed's runs, [len(names), steps].

    The loss is the cross-entropy in nats. None where a run of the seed is missing or unfinished, or
    has fewer steps than `window` or no steps.jsonl.
    """
    runs = [
        next((run for run in finished(rows.get(name, [])) if run.seed == seed), None)
        for name in names
    ]
    if not all(runs):
        return None
    losses = [run.steps("ce") for run in runs if run]
    if len({len(loss) for loss in losses}) != 1 or len(losses[0]) < window:
        return None
    return np.stack([smoothed(loss, window) for loss in losses])


# --- statistics -------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over runs. With one run there is no spread: `std` and `half` are NaN."""

    mean: float
    std: float  # of the runs, unbiased variance
    half: float  # of the 95% confidence interval of the mean, by Student's t
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values and its 95% confidence interval."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    std = float(np.std(values, ddof=1))
    return Estimate(mean, std, float(scipy.stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n), n)


def difference(ours: Sequence[float], others: Sequence[float]) -> Estimate:
    """Returns mean(ours) − mean(others) and its 95% interval by Welch's t; NaN with one value."""
    return contrast((1, ours), (-1, others))


def contrast(*terms: tuple[float, Sequence[float]]) -> Estimate:
    """Returns Σ c · mean(values) over independent groups, and its 95% interval.

    The interval is Student's t with the degrees of freedom of Welch (1947) and Satterthwaite
    (1946); NaN where a group has one value.
    """
    groups = [(factor, estimate(values)) for factor, values in terms]
    mean, n = sum(c * group.mean for c, group in groups), min(group.n for _, group in groups)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    variances = [(c * group.std) ** 2 / group.n for c, group in groups]
    error = math.sqrt(sum(variances))
    if error == 0:
        return Estimate(mean, 0.0, 0.0, n)
    freedom = error**4 / sum(
        variance**2 / (group.n - 1) for variance, (_, group) in zip(variances, groups, strict=True)
    )
    return Estimate(mean, error, float(scipy.stats.t.ppf(0.975, freedom)) * error, n)
