"""The folder of a run: its lock, its config, its checkpoints, logs and result."""

import contextlib
import dataclasses
import math
import pathlib
import re
import shlex
import time
from typing import Any

from jax.sharding import Mesh

from jaxcifar import processes, sharding
from jaxcifar.config import Config
from jaxcifar.errors import UserError, in_short, note, of_file
from jaxcifar.files import file_digest, read_json, walk, write_json
from jaxcifar.run import about, signs
from jaxcifar.run.about import (
    About,
    check_alike,
    check_initial_weights,
    check_same_config,
    note_changes,
)
from jaxcifar.run.checkpoint import Checkpointer, Damaged, Saved
from jaxcifar.run.digest import sha256
from jaxcifar.run.lock import check_shared, locked
from jaxcifar.run.log import Record, RunLog
from jaxcifar.run.machine import environment
from jaxcifar.state import TrainState


@dataclasses.dataclass
class Position:
    """How far a run is; everything about that which is not in its state.

    Attributes:
      epochs_done: epochs trained and evaluated.
      steps: the metrics of the steps done in the current epoch, one list per metric.
      seconds: how long those steps took.
    """

    epochs_done: int = 0
    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def step(self, steps_per_epoch: int) -> int:
        """Returns the number of training steps done."""
        return self.epochs_done * steps_per_epoch + len(self.steps.get("loss", ()))


_LOGS = ("metrics.jsonl", "steps.jsonl")
_LOGGED_AHEAD = 2  # epochs that a killed run may have logged after its last checkpoint


class RunFolder:
    """The folder of one run, locked by this process for the duration of a `with` block.

    It contains config.json, checkpoints/, metrics.jsonl, steps.jsonl, tensorboard/, history.png and
    result.json. All but the checkpoints can be restored from the newest checkpoint.

    If several processes share the run, the first one locks the folder, writes to it and decides
    for all which of its files to trust. All must call the same methods in the same order.

    An `OSError` inside the block, such as a full disk, becomes a `UserError` that names the path.

    Args:
      path: the folder, created if necessary.

    Raises:
      Busy: another process holds the lock.
      UserError: the folder cannot be written to.
    """

    SECONDS_BETWEEN_PICTURES = 180.0  # one takes about half a second, and the devices wait for it

    def __init__(self, path: pathlib.Path):
        if re.match(r"[a-z0-9]+:/", str(path)):
            raise UserError(f"The workdir {path} is a URL. Give a local folder.")
        for folder in (path, *path.parents):
            if folder.name == "checkpoints" and (folder.parent / "config.json").exists():
                raise UserError(f"The workdir {path} is inside the run in {folder.parent}.")
        self.path = path
        # Only the first process lists and writes them; all restore from them.
        self.checkpoints = Checkpointer(path / "checkpoints")
        self.saved_at = time.monotonic()  # the last checkpoint, or the start
        self._closing = contextlib.ExitStack()
        self._about: About | None = None  # what config.json says
        self._history: list[dict[str, Any]] | None = []  # the epochs that the checkpoint recorded
        self._damaged = 0  # checkpoints set aside so far
        self._log: RunLog | None = None
        self._drawn_at = time.monotonic()  # history.png, or the start

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as stack:
            processes.share(lambda: self._hold(stack))
            check_shared(self.path)
            self._closing = stack.pop_all()
        return self

    def _hold(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(locked(self.path))
        stack.enter_context(signs.shown(self.path))

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self._closing.close()
        except (UserError, OSError) as late:
            if error is None:
                if isinstance(late, OSError):
                    raise of_file(late, self.path) from late
                raise
        if isinstance(error, OSError):
            raise of_file(error, self.path) from error

    @processes.on_first
    def result(self, config: Config) -> dict[str, Any] | None:
        """Returns the content of result.json, or None if the run is not complete.

        A result.json that is damaged, or that does not belong to the logs and checkpoints in the
        folder, does not count.

        Raises:
          UserError: the folder holds a run of another config or imported weights, or result.json is
            damaged and there is no checkpoint to restore it from, or all is intact but the
            checkpoints are older.
        """
        self._about = self._about or about.read(self.path)
        if self._about is None:
            return None
        if not self._about.data and self.checkpoints.last() is None:
            raise UserError(about.without_weights(self.path))
        if not self._about.data:
            raise UserError(
                f"{self.path} holds imported weights, which stay as they are. A new run can start "
                f"from them: --config.init_from={shlex.quote(str(self.path))} --workdir=NEW"
            )
        path = self.path / "result.json"
        can_go_on = self.checkpoints.last() is not None
        check_same_config(
            self._about.config,
            config,
            self.path,
            empty=nothing_trained(self.path),
            can_start_from=can_go_on and _epochs_logged(self.path) > 0,
        )
        if not path.exists():
            return None
        result: dict[str, Any] = {}
        try:
            result = read_json(path)
            wrong = self._contradiction(result)
        except UserError:  # which is a ValueError
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = in_short(error)
        if wrong is None:
            self._write_about()  # it may have been lost, and read from a checkpoint
            return self._mended(result)
        if not can_go_on:
            raise UserError(
                f"{path} is damaged ({wrong}), and there is no checkpoint to restore it from. "
                "Restore the folder from a copy, or start in a new workdir."
            )
        note(f"{path} is damaged ({wrong}); it is restored from the last checkpoint.")
        return None

    def _mended(self, result: dict[str, Any]) -> dict[str, Any]:
        """Restores the picture and the TensorBoard file if they changed; returns the result."""
        files = result["files"]
        changed = [name for name in files if file_digest(self.path / name) != files[name]]
        if not changed:
            return result
        note(f"restored in {self.path}: {', '.join(changed)}")
        self._history = None  # then the logs, which are intact, are read
        if last := self.checkpoints.last():
            with contextlib.suppress(UserError):  # it is damaged
                self._history = self.checkpoints.progress(last)["history"]
        self.start_log(result["last"]["epoch"])
        return self.finish(result)

    def _contradiction(self, result: dict[str, Any]) -> str | None:
        """What is wrong with a result, in a few words; None if nothing is."""
        if result["sha256"] != _digest_of(result):
            return "it was changed after it was written"
        for name in _LOGS:
            if file_digest(self.path / name) != result["files"][name]:
                return f"{name} was changed after it was written"
        if last := self.checkpoints.last():
            end, epochs = result["last"]["step"], result["last"]["epoch"]
            saved_epochs = last.step * epochs // end
            if epochs - saved_epochs > _LOGGED_AHEAD:
                raise UserError(
                    f"The run in {self.path} is finished, but its checkpoints/ are older (step "
                    f"{last.step} of {end}). Restore the newer ones, or delete result.json to "
                    f"train again from step {last.step}."
                )
            if last != Saved(end, evaluated=True):
                return "the last checkpoint belongs to another step"
        return None

    @processes.on_first
    def open(
        self,
        config: Config,
        provenance: dict[str, dict[str, Any]],
        in_force: dict[str, Any],
        mesh: Mesh,
        initial: dict[str, Any] | None = None,
    ) -> None:
        """Opens the checkpoints, and records this start of the run in config.json.

        Where there are checkpoints, `restore` records it, once one of them is accepted. A start
        that trained nothing, as one that was stopped while it compiled, is forgotten.

        Args:
          provenance: where the images of each split came from.
          in_force: what the config's "auto" fields were resolved to.
          initial: the origin of the initial weights, see `jaxcifar.start.InitialWeights.facts`;
            None if they are random, or if the run already has a checkpoint.

        Raises:
          UserError: the run was started with other images, other weights, another dtype, or other
            settings of JAX that its numbers depend on; or all of its checkpoints are gone.
        """
        now = environment(in_force, mesh)
        content = {"config": config.to_dict(), "data": provenance, "environment": now}
        before = None if nothing_trained(self.path) else self._about or about.read(self.path)
        check_initial_weights(before and before.init_from, initial, self.path)
        if before is not None and before.data:  # else imported weights
            check_alike(before, config, provenance, now, self.path)
            content = before.resumed(now)
            content["config"]["data"]["dir"] = config.data.dir  # where eval and others will look
        if initial is not None:
            content["init_from"] = initial
        epochs = _epochs_logged(self.path)
        if self.checkpoints.last() is None and epochs > _LOGGED_AHEAD:
            raise UserError(
                f"{self.path} has the logs of {epochs} epochs, and no checkpoint. If checkpoints/ "
                "is elsewhere, move it back. To start from the beginning, delete "
                f"{self.path / 'metrics.jsonl'}, or choose another --workdir."
            )
        signs.forget_failure(self.path)
        self._about = About.of(content)
        self._closing.callback(self.checkpoints.close)
        self.checkpoints.delete_unfinished()  # first, as the disk may be full
        if self.checkpoints.last() is None:  # else `restore` may refuse them, and nothing changes
            self._write_about()

    def _write_about(self) -> None:
        """Writes config.json, unless that is its content."""
        assert self._about is not None, "open() comes first"
        path = self.path / "config.json"
        with contextlib.suppress(OSError, ValueError):
            if read_json(path) == self._about.content:
                return
        write_json(path, self._about.content)

    @processes.on_first
    def wait(self) -> None:
        """See `jaxcifar.run.checkpoint.Checkpointer.wait`."""
        self.checkpoints.wait()

    def last(self) -> Saved | None:
        """See `jaxcifar.run.checkpoint.Checkpointer.last`."""
        found = processes.share(lambda: self.checkpoints.last())
        return found and Saved(*found)

    def best(self) -> Saved | None:
        """See `jaxcifar.run.checkpoint.Checkpointer.best`."""
        found = processes.share(lambda: self.checkpoints.best())
        return found and Saved(*found)

    def state(self, like: TrainState, saved: Saved) -> TrainState:
        """Returns the state of a checkpoint, see `jaxcifar.run.checkpoint.Checkpointer.restore`."""
        state, _ = self.checkpoints.restore(sharding.of_this_process(like), saved)
        return sharding.of_all(state, like)

    def restore(self, like: TrainState) -> tuple[TrainState, Position] | None:
        """Returns the state and position of the newest intact checkpoint.

        Damaged checkpoints after it are set aside, and so is a damaged best one.

        Args:
          like: see `jaxcifar.run.checkpoint.Checkpointer.restore`.

        Returns:
          None if there is no checkpoint.

        Raises:
          UserError: a checkpoint belongs to another config or model, or all are damaged.
        """
        here: list[TrainState] = []  # in the first process

        def newest() -> list[Any] | None:
            found = self._newest(sharding.of_this_process(like))
            if found is None:
                return None
            here.append(found[0])
            return [self.checkpoints.last(), dataclasses.asdict(found[1])]

        found = processes.share(newest)
        if found is None:
            return None
        saved, position = found
        state = sharding.of_all(here[0], like) if here else self.state(like, Saved(*saved))
        return state, Position(**position)

    def _newest(self, like: TrainState) -> tuple[TrainState, Position] | None:
        assert self._about is not None, "open() comes first"
        damaged: list[tuple[Saved, Damaged]] = []
        for saved in reversed(self.checkpoints.all()):
            try:
                of = About.of(self.checkpoints.progress(saved)["about"])
                check_same_config(of.config, self._about.config, self.path)
                state, progress = self.checkpoints.restore(like, saved)
                break
            except Damaged as error:
                damaged.append((saved, error))
        else:
            if damaged:
                raise UserError(
                    "\n  ".join(
                        [
                            f"All checkpoints in {self.checkpoints.directory} are damaged; nothing "
                            "was changed there. Restore one from a copy, or start in a new "
                            "workdir.",
                            *(str(error) for _, error in damaged),
                        ]
                    )
                )
            if _epochs_logged(self.path):
                note(f"there is no checkpoint in {self.path}: the run starts from the beginning")
            return None
        for other, error in damaged:  # only now, as none may be intact
            self.checkpoints.set_aside(other, error)
        note_changes(of.environments[-1], self._about.environments[-1])
        self._write_about()
        self._history = progress["history"]
        # Some may have been set aside by a start that was killed before it saved their number.
        aside = len(list(self.checkpoints.directory.glob("damaged-*")))
        self._damaged = max(progress["damaged"] + len(damaged), aside)
        self._check_best(like)
        position = Position(progress["epochs_done"], progress["steps"], progress["seconds"])
        return state, position

    def _check_best(self, like: TrainState) -> None:
        best = self.checkpoints.best()
        if best is None or best == self.checkpoints.last():
            return
        try:
            self.checkpoints.restore(like, best)
        except Damaged as error:
            if best in self.checkpoints.all():
                self._damaged += 1
                self.checkpoints.set_aside(best, error)
            note(
                f"The best checkpoint so far, of step {best.step}, is lost; the run continues from "
                "the last one."
            )

    @processes.on_first
    def start_log(self, epochs_done: int) -> list[Record]:
        """Opens the logs to continue them after `epochs_done` epochs; returns those records.

        What the logs say about those epochs is replaced by what the checkpoint recorded.
        """
        self._log = RunLog(self.path, epochs_done, self._history)
        self._closing.callback(self._log.close)
        return list(self._log.records)  # the log's own grows with what is logged

    def save(
        self, step: int, state: TrainState, position: Position, val_accuracy: float | None = None
    ) -> None:
        """Saves a checkpoint after `step` steps. Given a `val_accuracy`, it may become the best.

        Raises:
          NotFinite: the state has non-finite variables; nothing is saved.
          UserError: the checkpoint cannot be written.
        """
        processes.share(lambda: self._save(step, state, position, val_accuracy))
        self.saved_at = time.monotonic()

    def _save(
        self, step: int, state: TrainState, position: Position, val_accuracy: float | None
    ) -> None:
        # `asdict` copies the lists, which grow while Orbax writes in the background.
        progress = dataclasses.asdict(position) | {
            "about": self._about and self._about.content,
            "history": list(self._log.history) if self._log else [],
            "damaged": self._damaged,
        }
        # A result.json that `result` rejected must not mark the run as finished. It is deleted only
        # here, because until a checkpoint is about to exist it may be all that is left.
        (self.path / "result.json").unlink(missing_ok=True)
        self.checkpoints.save(step, state, progress, val_accuracy)

    @processes.on_first
    def log(self, record: Record, steps: dict[str, list[float]]) -> None:
        """Logs a finished epoch: its record, and the metrics of its steps.

        history.png is drawn anew if the last one is `SECONDS_BETWEEN_PICTURES` old.
        """
        assert self._log is not None, "start_log() comes first"
        self._log.write(record, steps)
        if time.monotonic() - self._drawn_at >= self.SECONDS_BETWEEN_PICTURES:
            self._drawn_at = time.monotonic() if self._draw() else math.inf

    @processes.on_first
    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Draws history.png and writes result.json, which says that the run is complete.

        Returns:
          Its content: `result`, the number of damaged checkpoints, and digests of the other files
          and of result.json itself.
        """
        files = list(_LOGS)
        if self._log is not None and self._about is not None:
            files.append(str(self._log.events.relative_to(self.path)))
            if self._draw():
                files.append("history.png")
        content = {"damaged_checkpoints": self._damaged} | result
        content["files"] = {name: file_digest(self.path / name) for name in files}
        content["sha256"] = _digest_of(content)
        write_json(self.path / "result.json", content)
        return content

    def _draw(self) -> bool:
        """Draws history.png. A failure is reported, but is no reason to lose a run."""
        assert self._log is not None, "start_log() comes first"
        assert self._about is not None, "open() comes first"
        path = self.path / "history.png"
        try:
            # Here, not above: it imports matplotlib.
            from jaxcifar.run.plots import plot_history, training_loss

            config, images = self._about.config, self._about.data["train"]["name"]
            title = f"{config.model.name} on {images}, seed {config.seed}"
            plot_history(self._log.records, title, path, training=training_loss(config))
        except Exception as error:
            note(f"{path} cannot be drawn ({in_short(error)}). The run does not need it.")
            return False
        return True


def nothing_trained(workdir: pathlib.Path) -> bool:
    """Whether a folder has no checkpoint, no logged epoch and no result."""
    ended = (workdir / "result.json").exists() or _epochs_logged(workdir)
    return not ended and Checkpointer(workdir / "checkpoints").last() is None


def _digest_of(result: dict[str, Any]) -> str:
    return sha256({name: value for name, value in result.items() if name != "sha256"})


def _epochs_logged(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run_folders(top: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of runs below `top`, sorted, even of those that lost their config.json.

    Links are followed, to each folder once. A folder that cannot be read is named on stderr.
    """
    found = []

    def tell(error: OSError) -> None:
        note(f"{error.filename} cannot be read ({error.strerror}); runs in it are left out.")

    for path, folders, files in walk(top, tell):
        if "config.json" in files or {"result.json", "metrics.jsonl"} <= set(files):
            found.append(path)
            folders[:] = [name for name in folders if name != "checkpoints"]
    return sorted(found)
