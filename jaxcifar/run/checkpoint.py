"""Saving and restoring a run with Orbax: the best checkpoint and the two newest.

A checkpoint is a folder named by a number (see `Saved`) that appears complete or not at all:

  state/     the arrays of a `TrainState`, as Orbax stores them
  progress/  one JSON file: {"progress", "val_accuracy", "best", "digests", "sha256"}

"digests" protects the arrays of the state, "sha256" everything else in the file; both are verified
when the checkpoint is read. No other module depends on Orbax, whose interface changes often.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import traceback
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxcifar import processes, sharding
from jaxcifar.errors import TEMPORARY, Temporary, UserError, in_short, note
from jaxcifar.files import sync
from jaxcifar.run.digest import Digest, digests, sha256, shapes, shapes_digest
from jaxcifar.state import TrainState

_KEPT = 2  # of the newest, beside the best
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
_DELETED = ".deleted"  # the end of the name of a folder that is being deleted
# Read errors after which what is on the disk may be intact.
_PASSING = TEMPORARY | {errno.EACCES, errno.EPERM}


class Damaged(UserError):
    """A checkpoint cannot be read, or differs from what was saved."""


class NotFinite(UserError):
    """A state was not saved, because a variable in it is infinite or not a number."""


class Saved(NamedTuple):
    """Identifies a checkpoint: after `step` steps, with the epoch evaluated or not.

    (A run that is stopped at the end of an epoch may be saved before the epoch's evaluation and,
    after it is resumed, once more after it.)
    """

    step: int
    evaluated: bool

    @property
    def number(self) -> int:
        """The number that its folder is named by."""
        return 2 * self.step + self.evaluated

    @classmethod
    def of(cls, number: int) -> "Saved":
        """Returns the checkpoint whose folder is named `number`."""
        return cls(number // 2, number % 2 == 1)


class _Document(NamedTuple):
    """The JSON file of a checkpoint."""

    progress: dict[str, Any]
    val_accuracy: float | None
    best: tuple[int, float] | None  # number and accuracy, up to this checkpoint
    digests: dict[str, Digest]


class Checkpointer:
    """The checkpoints of one run.

    A checkpoint holds the state and `progress`, a JSON-serialisable dict (the run's `Position`, its
    config.json and its logs so far; `RunFolder` makes it). It is written in the background while
    training continues. A checkpoint that was half-written when the process was killed is ignored.
    While a `Checkpointer` only reads, another process may write.

    Args:
      directory: where they are; the first save creates it.
    """

    def __init__(self, directory: pathlib.Path):
        _silence()
        self.directory = directory.absolute()
        self._writer: ocp.AsyncCheckpointer | None = None
        self._writing: Saved | None = None

    # --- which there are ----------------------------------------------------------------------

    def all(self) -> list[Saved]:
        """Returns the checkpoints, from the oldest to the newest."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return [Saved.of(number) for number in sorted(map(int, filter(_is_number, names)))]

    def last(self) -> Saved | None:
        """Returns the newest checkpoint; None if there is none."""
        there = self.all()
        return there[-1] if there else None

    def best(self) -> Saved | None:
        """Returns the checkpoint with the highest validation accuracy, the earliest of equals.

        It may be lost or damaged; `restore` finds out. Before the first epoch is evaluated there is
        none, except in a run of imported weights: there it is checkpoint 0.

        Raises:
          Damaged: the newest evaluated checkpoint, which names the best one, cannot be read.
        """
        if best := self._newest_best():
            return Saved.of(best[0])
        first = Saved(0, False)
        if first not in self.all():
            return None
        with contextlib.suppress(Damaged):
            if self.progress(first).get("about", {}).get("data"):
                return None  # random weights
        return first

    def progress(self, saved: Saved) -> dict[str, Any]:
        """Returns the progress in a checkpoint, without its state.

        Raises:
          Damaged: it cannot be read.
        """
        return self._document(saved).progress

    # --- saving -------------------------------------------------------------------------------

    def delete_unfinished(self) -> None:
        """Deletes what a process that was killed has left half-written, or half-deleted."""
        with contextlib.suppress(FileNotFoundError):
            for path in list(self.directory.iterdir()):
                if _TEMPORARY in path.name or path.name.endswith(_DELETED):
                    shutil.rmtree(path, ignore_errors=True)

    def save(
        self, step: int, state: TrainState, progress: dict[str, Any], val_accuracy: float | None
    ) -> None:
        """Starts to save the state after `step` steps. Given a `val_accuracy`, it may become best.

        Raises:
          NotFinite: a variable of the state is not finite; nothing is saved.
          UserError: this checkpoint, or the one before it, cannot be written. One that was not
            evaluated is only reported: this one takes its place.
        """
        saved = Saved(step, val_accuracy is not None)
        newest = self._writing or self.last()
        if newest and newest.step == step and (newest.evaluated or not saved.evaluated):
            return  # this step is saved already, and evaluated if it is now
        before = self._writing
        try:
            self.wait()
        except UserError as error:
            if before is None or before.evaluated:
                raise
            why = in_short(error.__cause__ or error)
            note(f"The checkpoint of step {before.step} was not written: {why}. Trying the next.")
            self.close()
            self.delete_unfinished()
        found, finite = digests(vars(sharding.of_this_process(state)))
        if not finite:
            raise NotFinite(f"The parameters after step {step} are not finite.")
        best = self._newest_best()
        if val_accuracy is not None and (best is None or val_accuracy > best[1]):
            best = saved.number, val_accuracy
        content = {
            "progress": progress,
            "val_accuracy": val_accuracy,
            "best": best,
            "digests": found,
        }
        content["sha256"] = sha256(content)
        with self._saving(saved) as path:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self._writer is None:
                alone = _this_process()
                self._writer = ocp.AsyncCheckpointer(
                    ocp.CompositeCheckpointHandler(
                        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                        state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                        progress=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                    ),
                    async_options=ocp.options.AsyncOptions(
                        post_finalization_callback=self._sync_unfinished
                    ),
                    multiprocessing_options=alone,
                )
            self._writing = saved
            self._writer.save(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(content)
                ),
            )

    def wait(self) -> None:
        """Waits until everything is written and synced to the disk.

        Raises:
          UserError: it cannot be written.
        """
        if self._writing is None or self._writer is None:
            return
        saved, self._writing = self._writing, None
        with self._saving(saved) as path:
            self._writer.wait_until_finished()
            _sync_all(path)  # Orbax writes two small files after `_sync_unfinished`
            sync(self.directory.parent)
            sync(self.directory)
            self._delete_old()

    def _sync_unfinished(self) -> None:
        """Syncs what is written before it gets its name, so that a power cut leaves no half."""
        for path in self.directory.iterdir():
            if _TEMPORARY in path.name:
                _sync_all(path)

    def close(self) -> None:
        """Waits, then releases what the writer holds."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                writer, self._writer = self._writer, None
                with contextlib.suppress(Exception):  # wait() has reported it
                    writer.close()

    def _newest_best(self) -> tuple[int, float] | None:
        """The number and accuracy of the best checkpoint, according to the newest ones."""
        for saved in reversed(self.all()):
            try:
                best = self._document(saved).best
            except Damaged:
                if saved.evaluated:  # it may be the best itself
                    raise
                continue
            if best is not None:
                return best
        return None

    @contextlib.contextmanager
    def _saving(self, saved: Saved) -> Generator[pathlib.Path]:
        path = self._path(saved)
        try:
            yield path
        except Exception as error:  # Orbax passes on whatever its storage layers raise
            self._writing = None
            raise _kind(error)(
                f"The checkpoint {path} cannot be written: {in_short(error)}. Earlier checkpoints "
                "are untouched; the same command resumes the run from there."
            ) from error

    def _delete_old(self) -> None:
        there, best = self.all(), self.best()
        for newest in there[-1:]:
            self.progress(newest)  # it can be read back
        for saved in there[:-_KEPT]:
            if saved != best:
                path = self._path(saved)
                # NFS keeps files that another process reads. The next start tries again.
                with contextlib.suppress(OSError):
                    shutil.rmtree(path.rename(path.with_name(path.name + _DELETED)))

    # --- restoring ----------------------------------------------------------------------------

    def restore(self, like: TrainState, saved: Saved) -> tuple[TrainState, dict[str, Any]]:
        """Returns (state, progress) of a checkpoint, as they were saved.

        Args:
          like: a state of the same structure, made of arrays or of `jax.ShapeDtypeStruct`s, whose
            shardings say where to put the restored arrays.

        Raises:
          UserError: the checkpoint belongs to a different model or optimizer.
          Damaged: it cannot be read, or differs from what was saved.
        """
        document = self._document(saved)
        with self._reading(saved) as path:
            metadata = _metadata(path)
            _check_shapes(path, document, metadata, vars(like))
            # What the checkpoint lacks was added by a later version, and is None here too.
            wanted = {name: tree for name, tree in vars(like).items() if name in metadata}
            with ocp.StandardCheckpointer(multiprocessing_options=_this_process()) as reader:
                state = like.replace(**reader.restore(path / "state", wanted))
            if not jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
                # With several processes, a key is written and read as its raw data.
                state = state.replace(key=jax.random.wrap_key_data(state.key))
            _check_digests(path, document, vars(state))
        return state, document.progress

    def set_aside(self, saved: Saved, why: Exception) -> None:
        """Renames the folder of a damaged checkpoint, and tells the user."""
        path, n = self._path(saved), 1
        while (aside := path.with_name(f"damaged-{path.name}-{n}")).exists():
            n += 1
        path.rename(aside)
        sync(self.directory)
        note(f"{why} It was set aside as {aside.name}.")

    def restore_variables(self, like: dict[str, Any], saved: Saved) -> dict[str, Any]:
        """Returns the variables of a checkpoint: their moving average, if it keeps one.

        `like` is {"params", "batch_stats"}, see `restore`. The optimizer does not matter.

        Raises:
          UserError: the checkpoint belongs to a different model.
          Damaged: it cannot be read, or differs from what was saved.
        """
        document = self._document(saved)
        with self._reading(saved) as path:
            metadata = _metadata(path)
            if "ema" in document.digests:
                like = {"ema": like}
            _check_shapes(path, document, metadata, like)
            arguments = ocp.args.PyTreeRestore(
                item=like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_this_process())
            with ocp.Checkpointer(handler, multiprocessing_options=_this_process()) as reader:
                restored = reader.restore(path / "state", args=arguments)
            _check_digests(path, document, restored)
        return restored.get("ema", restored)

    def _path(self, saved: Saved) -> pathlib.Path:
        return self.directory / str(saved.number)

    def _document(self, saved: Saved) -> _Document:
        with self._reading(saved) as path:
            content = json.loads((path / "progress" / "metadata").read_text())
            expected = content.pop("sha256")
            if sha256(content) != expected:
                raise ValueError("its progress differs from what was saved")
            content["digests"] = {k: Digest(*v) for k, v in content["digests"].items()}
            best = content["best"]
            document = _Document(**content | {"best": best and (best[0], best[1])})
            written_as = _written_as(document)
            if written_as not in (None, saved):
                raise Damaged(
                    f"The checkpoint {path} is damaged: it holds checkpoint {written_as.number}, "
                    f"of step {written_as.step}."
                )
            return document

    @contextlib.contextmanager
    def _reading(self, saved: Saved) -> Generator[pathlib.Path]:
        """Yields the folder of a checkpoint; turns errors of reading it into `Damaged`."""
        path = self._path(saved)
        try:
            yield path
        except UserError:
            raise
        except Exception as error:  # Orbax passes on whatever its storage layers raise
            if isinstance(error, jax.errors.JaxRuntimeError) and not may_pass(error):
                raise  # a device failed, which says nothing about the checkpoint
            if may_pass(error):
                raise _kind(error)(
                    f"The checkpoint {path} cannot be read now ({in_short(error)}), but it may be "
                    "intact. Try again. If that does not help, move it away, and the one before it "
                    "is used."
                ) from error
            gone = "" if path.exists() else "it is not there, "
            raise Damaged(
                f"The checkpoint {path} cannot be read ({gone}{in_short(error)})."
            ) from error


def _written_as(document: _Document) -> Saved | None:
    """The checkpoint that a document was written for; None if its progress does not say it."""
    progress = document.progress
    if "history" not in progress:
        return None
    done = progress["history"][-1]["record"]["step"] if progress["history"] else 0
    step = done + len(progress["steps"].get("loss", ()))
    return Saved(step, document.val_accuracy is not None)


def _sync_all(top: pathlib.Path) -> None:
    for folder, _, names in os.walk(top):
        for name in (*names, "."):
            sync(pathlib.Path(folder, name))


def may_pass(error: Exception) -> bool:
    """Whether an error of reading says nothing certain about what is on the disk."""
    if (number := _number(error)) is not None:
        return number in _PASSING
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _kind(error: Exception) -> type[UserError]:
    """The error to raise for one of a storage layer."""
    return Temporary if _number(error) in TEMPORARY else UserError


def _number(error: Exception) -> int | None:
    """The number of the operating system's error; None if it is none."""
    if found := re.search(r"\[OS error (\d+)", str(error)):  # TensorStore's, in a ValueError
        return int(found[1])
    return error.errno if isinstance(error, OSError) else None


@functools.cache
def _silence() -> None:
    """Suppresses the tracebacks that Orbax's threads print for errors that are raised here too."""

    def of_storage(record: logging.LogRecord) -> bool:
        text, error = record.getMessage(), record.exc_info and record.exc_info[1]
        frames = traceback.walk_tb(error.__traceback__) if error else ()
        where = [text, *(frame.f_code.co_filename for frame, _ in frames)]
        known = any("orbax" in part or "tensorstore" in part for part in where)
        return "orbax" in record.pathname or ("never retrieved" in text and known)

    def hook(unraisable: Any) -> None:
        late = str(unraisable.exc_value) == "Event loop is closed"  # from a late callback
        code = getattr(unraisable.object, "cr_code", None)
        given_up = code is not None and "orbax" in code.co_filename  # since another read failed
        if not (late or given_up):
            before(unraisable)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not of_storage(record))
    before, sys.unraisablehook = sys.unraisablehook, hook


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _this_process() -> Any:
    """Lets a process read or write alone, where Orbax would wait for the others of the run."""
    if jax.device_count() > 1:
        # Each array whole. By default, Orbax writes only this process's share of it; and of that a
        # slice from each device, which takes a program of its own for each shape.
        whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        ocp.type_handlers.register_type_handler(jax.Array, whole, override=True)
    if processes.count() == 1:
        return ocp.options.MultiprocessingOptions()
    i = processes.index()
    return ocp.options.MultiprocessingOptions(i, {i}, barrier_sync_key_prefix=f"process{i}")


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    """Returns the names and shapes of a checkpoint's arrays, by part."""
    handler: Any = ocp.StandardCheckpointHandler(multiprocessing_options=_this_process())
    with contextlib.closing(handler):
        return dict(handler.metadata(path / "state"))


def _check_shapes(
    path: pathlib.Path, document: _Document, metadata: dict[str, Any], like: dict[str, Any]
) -> None:
    known = document.digests
    wanted = {name: shapes_digest(tree) for name, tree in like.items() if jax.tree.leaves(tree)}
    # A whole state must have every part of the checkpoint; variables alone need not.
    names = known if "step" in like else wanted
    alike = wanted == {name: known[name].shapes for name in names if name in known}
    saved_shapes = _shapes({name: metadata.get(name) for name in like})
    like_shapes = _shapes(like)
    for name in sorted(saved_shapes.keys() | like_shapes.keys()):
        if saved_shapes.get(name) != like_shapes.get(name):
            message = (
                f"{name} has shape {saved_shapes.get(name, 'none (it is absent)')} in it, and "
                f"{like_shapes.get(name, 'none (it is absent)')} in this config's model."
            )
            if alike:  # by its digests, this model's state was saved
                raise Damaged(f"The checkpoint {path} is damaged: {message}")
            raise UserError(f"The checkpoint {path} belongs to a different model: {message}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape}, without the PRNG key, whose stored form differs."""
    return {name: shape for name, shape in shapes(tree).items() if name != "key"}


def _check_digests(path: pathlib.Path, document: _Document, parts: dict[str, Any]) -> None:
    found, _ = digests(parts)
    if changed := [name for name in found if found[name].bits != document.digests[name].bits]:
        raise Damaged(
            f"The checkpoint {path} is damaged. Changed since it was saved: {', '.join(changed)}."
        )
