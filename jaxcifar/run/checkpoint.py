"""Saving and restoring a run with Orbax: the last checkpoint and the best one.

Nothing else in the package knows Orbax, whose interface changes often.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxcifar.errors import UserError
from jaxcifar.state import TrainState


class Saved(NamedTuple):
    """Which checkpoint: that after `step` steps, before or after the evaluation of its epoch.

    (A run stopped at the end of an epoch may be saved before and, resumed, after its evaluation.)
    """

    step: int
    evaluated: bool

    @property
    def number(self) -> int:
        """The name of its folder."""
        return 2 * self.step + self.evaluated

    @classmethod
    def of(cls, number: int) -> "Saved":
        """The checkpoint in the folder `number`."""
        return cls(number // 2, number % 2 == 1)


class _BestAndLast(checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoint, and of those with a metric the best (the first of equals)."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = _best([(c.step, c.metrics) for c in checkpoints])
        last = max(c.step for c in checkpoints)
        return [c.step in (best, last) for c in checkpoints]


def _best(checkpoints: Sequence[tuple[int, dict | None]]) -> int | None:
    scored = [(metrics["val_accuracy"], -number) for number, metrics in checkpoints if metrics]
    return -max(scored)[1] if scored else None


class Checkpointer:
    """The checkpoints of one run.

    A checkpoint holds the state and `progress`, a JSON-ready dict. Writing goes on in the
    background while training does; a checkpoint that a kill left half-written is not seen again.

    Args:
      directory: made where it does not exist.
      read_only: touch nothing there; another process may be writing.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_BestAndLast(),
                # Without it Orbax does not write the metrics to disk, and a resumed run would
                # not know its best.
                best_fn=lambda metrics: metrics["val_accuracy"],
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def save(
        self, step: int, state: TrainState, progress: dict, val_accuracy: float | None
    ) -> None:
        """Saves the state after `step` steps; with a `val_accuracy` it may become the best."""
        number = Saved(step, val_accuracy is not None).number
        if number == self._manager.latest_step():
            return
        self._manager.save(
            number,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if val_accuracy is None else {"val_accuracy": val_accuracy},
        )

    def last(self) -> Saved | None:
        """The newest checkpoint; None where there is none."""
        number = self._manager.latest_step()
        return None if number is None else Saved.of(number)

    def best(self) -> Saved | None:
        """The checkpoint of highest validation accuracy.

        None before the first epoch's end, but where there is a checkpoint of step 0 (of imported
        weights), that one.
        """
        numbers = self._manager.all_steps()
        best = _best([(number, self._manager.metrics(number)) for number in numbers])
        best = 0 if best is None and 0 in numbers else best
        return None if best is None else Saved.of(best)

    def restore(self, like: TrainState, saved: Saved) -> tuple[TrainState, dict]:
        """Returns (state, progress) of a checkpoint.

        Args:
          like: a state of the same structure, of arrays or of `jax.ShapeDtypeStruct`s with
            shardings: where the restored arrays are put.
          saved: one that `last` or `best` returned.

        Raises:
          UserError: the checkpoint belongs to a different model or optimizer, or cannot be read.
        """
        with self._reading(saved):
            _check_structure(self._metadata(saved), like)
            restored = self._manager.restore(
                saved.number,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        return restored["state"], restored["progress"]

    def restore_variables(self, like: dict[str, Any], saved: Saved) -> dict[str, Any]:
        """Returns the variables of a checkpoint, averaged where it keeps an average.

        Its optimizer may be any.

        Args:
          like: {"params", "batch_stats"}, see `restore`.
          saved: one that `last` or `best` returned.

        Raises:
          UserError: the checkpoint belongs to a different model, or cannot be read.
        """
        with self._reading(saved) as path:
            metadata = self._metadata(saved)
            if averaged := metadata.get("ema"):
                _check_structure(averaged, like)
                like = {"ema": like}
            else:
                _check_structure({name: metadata[name] for name in like}, like)
            arguments = ocp.args.PyTreeRestore(
                item=like,
                restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                partial_restore=True,
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(path / "state", args=arguments)
        return restored.get("ema", restored)

    def _metadata(self, saved: Saved) -> Any:
        items: Any = self._manager.metadata(saved.number).item_metadata
        return items["state"]

    @contextlib.contextmanager
    def _reading(self, saved: Saved) -> Iterator[pathlib.Path]:
        """Yields the folder of a checkpoint; says what is wrong where it cannot be read."""
        path = pathlib.Path(self._manager.directory) / str(saved.number)
        try:
            yield path
        except UserError as error:
            raise UserError(
                f"The checkpoint {path} belongs to a different model: {error}"
            ) from error
        except Exception as error:  # Orbax lets through what its storage layers raise
            raise UserError(
                f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}). "
                "Delete its folder to resume from an older one, or start in a new workdir."
            ) from error

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self._manager.close()


def _check_structure(saved: Any, like: Any) -> None:
    saved_shapes, like_shapes = _shapes(saved), _shapes(like)
    for path in sorted(saved_shapes.keys() | like_shapes.keys()):
        if saved_shapes.get(path) != like_shapes.get(path):
            raise UserError(
                f"{path} has shape {saved_shapes.get(path, 'none (it is absent)')} there, "
                f"and {like_shapes.get(path, 'none (it is absent)')} in this config's model."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} but of the key, whose stored form differs."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # Orbax stores dataclass fields and tuple places as dict keys.
        names = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
        shapes["/".join(map(str, names))] = tuple(leaf.shape)
    shapes.pop("key", None)
    return shapes
