"""The folder of a run: who holds it, which config it belongs to, what it ran on, what is in it."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import time
from typing import Any

import jax
from jax.sharding import Mesh

from jaxcifar.config import Config, complete, differences
from jaxcifar.errors import Busy, UserError
from jaxcifar.run.checkpoint import Checkpointer
from jaxcifar.run.log import Record, RunLog, write_json
from jaxcifar.run.machine import environment
from jaxcifar.state import TrainState


@dataclasses.dataclass
class Position:
    """Where a run is, beside its state.

    Attributes:
      epochs_done: epochs trained and evaluated.
      steps: the metrics of the steps of the epoch in progress, a list for each metric.
      seconds: that those steps took.
    """

    epochs_done: int = 0
    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


class RunFolder:
    """The folder of one run, held by this process from `with` to its end.

    Holds config.json, checkpoints/, metrics.jsonl, steps.jsonl, tensorboard/, result.json.

    Args:
      path: made where it does not exist.

    Raises:
      Busy: another process holds it.
      UserError: it cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.saved_at = time.monotonic()  # the last checkpoint, or the start
        self._closing = contextlib.ExitStack()
        self._checkpoints: Checkpointer | None = None
        self._log: RunLog | None = None

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as stack:
            stack.enter_context(_lock(self.path))
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def result(self, config: Config) -> dict[str, Any] | None:
        """Returns the content of result.json where the run is of `config` and complete.

        Raises:
          UserError: the folder holds a run of another config.
        """
        saved = saved_config(self.path)
        if saved is None:
            return None
        check_same(saved, config, self.path)
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def open(
        self, config: Config, provenance: dict[str, dict], in_force: dict[str, Any], mesh: Mesh
    ) -> None:
        """Records the start of a run in config.json, and opens its checkpoints.

        Args:
          config: of the run.
          provenance: of the images of each part.
          in_force: what the "auto" fields of the config became.
          mesh: the devices in use.

        Raises:
          UserError: the run began with other images, or in another dtype.
        """
        path, now = self.path / "config.json", environment(in_force, mesh)
        content = {"config": config.to_dict(), "data": provenance, "environment": now}
        # Imported weights have no images until they are trained.
        if path.exists() and (before := json.loads(path.read_text())).get("data"):
            _check_alike(before, config, provenance, in_force["dtype"], self.path)
            content = before | {"resumed": [*before.get("resumed", []), now]}
        write_json(path, content)
        self._checkpoints = Checkpointer(self.path / "checkpoints")
        self._closing.callback(self._checkpoints.close)

    @property
    def checkpoints(self) -> Checkpointer:
        """The run's checkpoints, once it is open."""
        assert self._checkpoints is not None, "open() comes first"
        return self._checkpoints

    def restore(self, like: TrainState) -> tuple[TrainState, Position] | None:
        """Returns the state and position of the last checkpoint; None where there is none."""
        last = self.checkpoints.last()
        if last is None:
            return None
        state, progress = self.checkpoints.restore(like, last)
        return state, Position(**progress)

    def start_log(self, epochs_done: int) -> list[Record]:
        """Opens the logs behind the epochs done; returns the records of those."""
        self._log = RunLog(self.path, epochs_done)
        self._closing.callback(self._log.close)
        return self._log.records

    def save(
        self, step: int, state: TrainState, position: Position, val_accuracy: float | None = None
    ) -> None:
        """Saves a checkpoint after `step` steps; with a `val_accuracy` it may become the best."""
        # Copied: Orbax writes in the background, while the lists grow.
        steps = {name: list(values) for name, values in position.steps.items()}
        progress = dataclasses.asdict(dataclasses.replace(position, steps=steps))
        self.checkpoints.save(step, state, progress, val_accuracy)
        self.saved_at = time.monotonic()

    def log(self, record: Record, steps: dict[str, list[float]]) -> None:
        """Logs a finished epoch: its record, and the metrics of its steps."""
        assert self._log is not None, "start_log() comes first"
        self._log.write(record, steps)

    def finish(self, result: dict[str, Any]) -> None:
        """Writes result.json, which says that the run is complete."""
        write_json(self.path / "result.json", result)


@contextlib.contextmanager
def _lock(workdir: pathlib.Path):
    """Makes `workdir` and holds it, so that no two runs write there at once."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written: {error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(
                f"Another process is training in {workdir}. Wait for it, or choose another "
                "--workdir."
            ) from error
        yield


def saved_config(workdir: pathlib.Path) -> Config | None:
    """Returns the config of the run in `workdir`, complete; None where there is no run.

    Raises:
      UserError: config.json is damaged, or has a field that is unknown today.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())["config"]
        return complete(saved)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Choose another --workdir.") from error


def check_same(saved: Config, config: Config, workdir: pathlib.Path) -> None:
    """Checks that a run's config computes what `config` does.

    Raises:
      UserError: it does not; the message lists the differences.
    """
    if changed := differences(saved.to_dict(), config.to_dict()):
        raise UserError(
            f"{workdir} holds a run of another config (there -> here):\n  "
            + "\n  ".join(changed)
            + "\nUse the same values to resume it, or a new --workdir."
        )


def _check_alike(
    content: dict, config: Config, provenance: dict, dtype: str, workdir: pathlib.Path
) -> None:
    before = content["environment"]["dtype"]
    if before != dtype:
        raise UserError(
            f"{workdir} holds a run in {before}, but model.dtype is {config.model.dtype!r}, "
            f"which is {dtype} on this {jax.default_backend()}. Resume it on a device like the one "
            "it began on, or choose another --workdir."
        )
    saved = content["data"]
    for part, facts in provenance.items():
        if part in saved and saved[part]["sha256"] != facts["sha256"]:
            raise UserError(
                f"{workdir} holds a run on other {part} images (from {saved[part]['source']}; "
                f"these are from {facts['source']}). Choose another --workdir."
            )
